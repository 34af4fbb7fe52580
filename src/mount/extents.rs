//! Dirty bytes of a file: extents that do not overlap.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::buffer::Patch;
use crate::fs::proto;
use crate::types::ByteRange;

/// The most pieces that one command carries.
const PIECES_MAX: usize = 512;

/// An extent does not grow beyond this, so that growing it never copies much.
const EXTENT_MAX: usize = 1 << 20;

/// Bytes at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) data: Bytes,
}

impl Piece {
    pub(super) fn range(&self) -> ByteRange {
        ByteRange::at(self.offset, self.data.len() as u64)
    }
}

/// Dirty bytes by offset; extents never overlap.
#[derive(Debug, Default)]
pub(super) struct Extents {
    by_offset: BTreeMap<u64, Vec<u8>>,
    bytes: usize,
}

impl Extents {
    /// Number of dirty bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// One past the last dirty byte; 0 where there is none.
    pub(super) fn end(&self) -> u64 {
        self.by_offset.last_key_value().map_or(0, |(start, extent)| start + extent.len() as u64)
    }

    /// Puts bytes over what is there.
    pub(super) fn write(&mut self, offset: u64, mut data: &[u8]) {
        let mut position = offset;
        while !data.is_empty() {
            let done = self.write_some(position, data);
            position += done as u64;
            data = &data[done..];
        }
    }

    /// Writes up to the next border of an extent, and says how much.
    fn write_some(&mut self, position: u64, data: &[u8]) -> usize {
        let next = self.by_offset.range(position + 1..).next().map(|(start, _)| *start);
        let free = next.map_or(data.len(), |next| fit(next - position, data.len()));
        if let Some((start, extent)) = self.by_offset.range_mut(..=position).next_back() {
            let within = position - start;
            let len = extent.len() as u64;
            if within < len {
                let done = fit(len - within, data.len());
                let within = index(within);
                extent[within..within + done].copy_from_slice(&data[..done]);
                return done;
            }
            if within == len && extent.len() + free <= EXTENT_MAX {
                extent.extend_from_slice(&data[..free]);
                self.bytes += free;
                return free;
            }
        }
        self.by_offset.insert(position, data[..free].to_vec());
        self.bytes += free;
        free
    }

    /// Where they are; ascending.
    pub(super) fn ranges(&self) -> impl Iterator<Item = ByteRange> + '_ {
        self.by_offset.iter().map(|(offset, data)| ByteRange::at(*offset, data.len() as u64))
    }

    /// Whether one command of at most `inline_max` data bytes can carry everything.
    pub(super) fn fit_one_command(&self, inline_max: usize) -> bool {
        self.bytes <= inline_max && self.by_offset.len() <= PIECES_MAX
    }

    /// Takes everything, in the order of offsets, in pieces of at most `inline_max` bytes.
    pub(super) fn take(&mut self, inline_max: usize) -> Vec<Piece> {
        self.bytes = 0;
        let mut pieces = Vec::new();
        for (start, extent) in std::mem::take(&mut self.by_offset) {
            let mut data = Bytes::from(extent);
            let mut offset = start;
            while !data.is_empty() {
                let piece = data.split_to(data.len().min(inline_max));
                let len = piece.len() as u64;
                pieces.push(Piece { offset, data: piece });
                offset += len;
            }
        }
        pieces
    }

    /// Copies what overlaps `range` to the end of `patch`.
    pub(super) fn overlay(&self, range: ByteRange, patch: &mut Vec<Patch>) {
        let first = self.by_offset.range(..=range.start).next_back().map_or(range.start, |e| *e.0);
        for (start, extent) in self.by_offset.range(first..range.end) {
            if let Some((offset, bytes)) = overlap(*start, extent, range) {
                let data = Bytes::copy_from_slice(bytes);
                patch.push(Patch::Bytes(Piece { offset, data }));
            }
        }
    }
}

/// Those of `pieces` (in the order of offsets, not overlapping) that overlap `range`.
pub(super) fn overlay(pieces: &[Piece], range: ByteRange, patch: &mut Vec<Patch>) {
    let first = pieces.partition_point(|piece| piece.range().end <= range.start);
    let overlapping = pieces[first..].iter().take_while(|piece| piece.offset < range.end);
    patch.extend(overlapping.cloned().map(Patch::Bytes));
}

/// Puts bytes onto those that were read from `offset` on.
pub(super) fn apply(piece: &Piece, offset: u64, bytes: &mut [u8]) {
    let range = ByteRange::at(offset, bytes.len() as u64);
    if let Some((at, data)) = overlap(piece.offset, &piece.data, range) {
        let at = index(at - offset);
        bytes[at..at + data.len()].copy_from_slice(data);
    }
}

/// Distributes pieces over commands of at most `inline_max` data bytes each.
pub(super) fn into_commands(pieces: &[Piece], inline_max: usize) -> Vec<Vec<proto::Piece>> {
    let mut commands: Vec<Vec<proto::Piece>> = Vec::new();
    let mut bytes = 0;
    for piece in pieces {
        let full = commands
            .last()
            .is_none_or(|last| last.len() == PIECES_MAX || bytes + piece.data.len() > inline_max);
        if full {
            commands.push(Vec::new());
            bytes = 0;
        }
        bytes += piece.data.len();
        if let Some(last) = commands.last_mut() {
            last.push(proto::Piece {
                offset: piece.offset,
                data: piece.data.clone(),
                ..Default::default()
            });
        }
    }
    commands
}

/// The part of `data`, which stands at `start`, that lies in `range`.
fn overlap(start: u64, data: &[u8], range: ByteRange) -> Option<(u64, &[u8])> {
    let from = start.max(range.start);
    let to = (start + data.len() as u64).min(range.end);
    (from < to).then(|| (from, &data[index(from - start)..index(to - start)]))
}

fn fit(room: u64, wanted: usize) -> usize {
    usize::try_from(room).map_or(wanted, |room| room.min(wanted))
}

fn index(within: u64) -> usize {
    usize::try_from(within).expect("a position within a buffer in memory")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{
        Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof,
        proptest,
    };

    use super::{ByteRange, Extents, PIECES_MAX, Patch, apply, index, into_commands, overlay};

    const INLINE_MAX: usize = 64 << 10;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        Take,
        Applied,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..200_000u64, 1..100_000usize, any::<u8>())
                .prop_map(|(at, len, byte)| Step::Write(at, vec![byte; len])),
            4 => (0..400u64, 1..60usize, any::<u8>())
                .prop_map(|(at, len, byte)| Step::Write(at, vec![byte; len])),
            1 => Just(Step::Take),
            1 => Just(Step::Applied),
        ]
    }

    fn put(file: &mut Vec<u8>, offset: u64, data: &[u8]) {
        let (from, to) = (index(offset), index(offset) + data.len());
        file.resize(file.len().max(to), 0);
        file[from..to].copy_from_slice(data);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever is buffered, taken for a flush or applied: a read through the buffer sees what
        /// was written, and what is committed in the end is that too.
        #[test]
        fn behaves_like_a_file(
            steps in prop::collection::vec(step(), 1..30),
            reads in prop::collection::vec((0..300_000u64, 1..50_000u64), 1..8),
        ) {
            let (mut model, mut committed) = (Vec::new(), Vec::new());
            let (mut dirty, mut taken) = (Extents::default(), Vec::new());
            for step in steps {
                match step {
                    Step::Write(offset, data) => {
                        put(&mut model, offset, &data);
                        dirty.write(offset, &data);
                    }
                    Step::Take if taken.is_empty() => taken = dirty.take(INLINE_MAX),
                    Step::Take | Step::Applied => {
                        let taken = std::mem::take(&mut taken);
                        for piece in into_commands(&taken, INLINE_MAX).concat() {
                            put(&mut committed, piece.offset, &piece.data);
                        }
                    }
                }
                prop_assert_eq!(
                    dirty.bytes(),
                    dirty.by_offset.values().map(Vec::len).sum::<usize>()
                );
                for &(offset, len) in &reads {
                    let mut patch = Vec::new();
                    overlay(&taken, ByteRange::at(offset, len), &mut patch);
                    dirty.overlay(ByteRange::at(offset, len), &mut patch);
                    let mut seen = vec![0; index(len)];
                    let mut wanted = seen.clone();
                    for (i, byte) in seen.iter_mut().enumerate() {
                        *byte = committed.get(index(offset) + i).copied().unwrap_or(0);
                    }
                    for (i, byte) in wanted.iter_mut().enumerate() {
                        *byte = model.get(index(offset) + i).copied().unwrap_or(0);
                    }
                    for patch in &patch {
                        let Patch::Bytes(piece) = patch else { unreachable!("nothing is staged") };
                        apply(piece, offset, &mut seen);
                    }
                    prop_assert!(seen == wanted, "read of {} bytes at {}", len, offset);
                }
            }
            for piece in taken.into_iter().chain(dirty.take(INLINE_MAX)) {
                prop_assert!(piece.data.len() <= INLINE_MAX);
                put(&mut committed, piece.offset, &piece.data);
            }
            prop_assert!(committed == model);
        }
    }

    /// Sequential small writes become few pieces, and commands respect their limit.
    #[test]
    fn sequential_writes_coalesce() {
        let mut dirty = Extents::default();
        for i in 0..64 {
            dirty.write(i * 4096, &[7; 4096]);
        }
        assert_eq!(dirty.end(), 256 << 10);
        assert!(dirty.fit_one_command(256 << 10) && !dirty.fit_one_command(INLINE_MAX));
        let pieces = dirty.take(INLINE_MAX);
        assert_eq!(pieces.len(), 4);
        assert_eq!(into_commands(&pieces, INLINE_MAX).len(), 4);
        assert_eq!(dirty.bytes(), 0);
    }

    /// Many scattered small extents share one command.
    #[test]
    fn scattered_writes_share_a_command() {
        let mut dirty = Extents::default();
        let most = u64::try_from(PIECES_MAX).expect("few");
        for i in 0..most {
            dirty.write(i * 10_000, &[1; 100]);
        }
        assert!(dirty.fit_one_command(INLINE_MAX));
        assert_eq!(into_commands(&dirty.take(INLINE_MAX), INLINE_MAX).len(), 1);
        for i in 0..=most {
            dirty.write(i * 10_000, &[1; 100]);
        }
        assert!(!dirty.fit_one_command(INLINE_MAX));
        assert_eq!(into_commands(&dirty.take(INLINE_MAX), INLINE_MAX).len(), 2);
    }
}
