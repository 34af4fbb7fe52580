//! Where the bytes of one file are that are not in its backing file. Pure.
//!
//! A range is *in place* where nothing is said of it; otherwise it is *staged* or *missing* (DESIGN, section 5).

use rangemap::RangeMap;

use crate::mutants::{self, Mutant};
use crate::types::{ByteRange, LogIndex};

/// Why bytes are not in the backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// They are in the stage of the entry at `index`, `shift` further on (modulo 2^64).
    Staged {
        /// Which stage.
        index: LogIndex,
        /// Offset in the stage minus offset in the file.
        shift: u64,
    },
    /// They are not here: a peer that has the file at this data_version, or a later one, has them.
    Missing {
        /// Which.
        version: LogIndex,
    },
    /// The same; but the backing file has some, which may be the right ones: this replica's state was wrong when they came.
    Doubted {
        /// Which.
        version: LogIndex,
        /// The wrong state said of the file what the right one says: where nobody else has the bytes, they are believed.
        is_agreed: bool,
    },
}

impl Away {
    /// Whether they are bytes of what the entry at `index` writes, or lack them.
    #[must_use]
    pub fn is_of(self, index: LogIndex) -> bool {
        match self {
            Self::Staged { index: of, .. } | Self::Missing { version: of } => of == index,
            Self::Doubted { .. } => false,
        }
    }

    /// The version that is missing; nothing where the bytes are staged.
    #[must_use]
    pub fn missing(self) -> Option<LogIndex> {
        match self {
            Self::Missing { version } | Self::Doubted { version, .. } => Some(version),
            Self::Staged { .. } => None,
        }
    }
}

/// A part of a range, and where it is: in place where nothing is said.
pub(super) type Part = (ByteRange, Option<Away>);

/// One file's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout(RangeMap<u64, Away>);

impl Layout {
    /// These bytes are somewhere else from now on.
    pub fn set(&mut self, range: ByteRange, away: Away) {
        if !range.is_empty() {
            self.0.insert(range.start..range.end, away);
        }
    }

    /// These bytes are in place from now on.
    pub fn clear(&mut self, range: ByteRange) {
        if !range.is_empty() {
            self.0.remove(range.start..range.end);
        }
    }

    /// Whether all bytes are in place.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.0.is_empty()
    }

    /// The parts of a range, ascending, without gaps.
    #[must_use]
    pub fn parts(&self, range: ByteRange) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = range.start;
        if range.is_empty() {
            return parts;
        }
        for (found, away) in self.0.overlapping(range.start..range.end) {
            let part = ByteRange { start: found.start.max(at), end: found.end.min(range.end) };
            if at < part.start {
                parts.push((ByteRange { start: at, end: part.start }, None));
            }
            parts.push((part, Some(*away)));
            at = part.end;
        }
        if at < range.end {
            parts.push((ByteRange { start: at, end: range.end }, None));
        }
        parts
    }

    /// Everything that is not in place, ascending.
    pub fn away(&self) -> impl Iterator<Item = (ByteRange, Away)> + '_ {
        self.0.iter().map(|(range, away)| (ByteRange { start: range.start, end: range.end }, *away))
    }

    /// How many bytes are missing.
    pub(super) fn missing_len(&self) -> u64 {
        self.missing(ByteRange::from(0)).map(|(range, _)| range.len()).sum()
    }

    /// The parts of a range that wait for bytes of the stage that the entry at `index` writes: nobody has written
    /// others there since.
    #[must_use]
    pub fn waiting_for(&self, range: ByteRange, index: LogIndex) -> Vec<ByteRange> {
        let any = mutants::is(Mutant::FillAnother);
        let waits = self.missing(range).filter(|(_, needed)| *needed == index || any);
        waits.map(|(part, _)| part).collect()
    }

    /// The parts of a range that bytes of a version of the file may fill: those of an older one than is needed may
    /// not.
    #[must_use]
    pub fn lacking(&self, range: ByteRange, version: LogIndex) -> Vec<ByteRange> {
        let any = mutants::is(Mutant::FillWithOlder);
        let lacks = self.missing(range).filter(|(_, needed)| *needed <= version || any);
        lacks.map(|(part, _)| part).collect()
    }

    /// The parts of a range that are missing, each with the version that it needs; ascending.
    pub fn missing(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, LogIndex)> + use<> {
        let parts = self.parts(range).into_iter();
        parts.filter_map(|(part, away)| Some((part, away.and_then(Away::missing)?)))
    }

    /// The parts of a range that are here and believed where nobody else has them.
    #[must_use]
    pub fn believed_at_last(&self, range: ByteRange) -> Vec<ByteRange> {
        self.parts_that(range, |away| matches!(away, Away::Doubted { is_agreed: true, .. }))
    }

    /// The parts of a range of which the backing file has bytes that are in doubt.
    #[must_use]
    pub fn doubted(&self, range: ByteRange) -> Vec<ByteRange> {
        self.parts_that(range, |away| matches!(away, Away::Doubted { .. }))
    }

    fn parts_that(&self, range: ByteRange, are: impl Fn(Away) -> bool) -> Vec<ByteRange> {
        let parts = self.parts(range).into_iter().filter(|(_, away)| away.is_some_and(&are));
        parts.map(|(part, _)| part).collect()
    }

    /// The first part of a range that can be merged: at most `limit` bytes of it, the entry that wrote their stage,
    /// and by how much they are shifted in it.
    #[must_use]
    pub fn to_merge(&self, range: ByteRange, limit: u64) -> Option<(ByteRange, LogIndex, u64)> {
        self.parts(range).into_iter().find_map(|(part, away)| match away {
            Some(Away::Staged { index, shift }) => {
                let end = part.end.min(part.start + limit);
                Some((ByteRange { end, ..part }, index, shift))
            }
            Some(Away::Missing { .. } | Away::Doubted { .. }) | None => None,
        })
    }

    /// The stage that has all of the file, at its own offsets; nothing where something is elsewhere.
    #[must_use]
    pub fn is_one_stage(&self) -> Option<LogIndex> {
        let mut all = self.away().map(|(_, away)| away);
        let Some(Away::Staged { index, shift: 0 }) = all.next() else { return None };
        all.all(|away| away == Away::Staged { index, shift: 0 }).then_some(index)
    }

    /// The stages that it needs; each once, ascending.
    #[must_use]
    pub fn stages(&self) -> Vec<LogIndex> {
        let of = |(_, away)| match away {
            Away::Staged { index, .. } => Some(index),
            Away::Missing { .. } | Away::Doubted { .. } => None,
        };
        let mut stages: Vec<_> = self.away().filter_map(of).collect();
        stages.sort_unstable();
        stages.dedup();
        stages
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};

    use super::{Away, ByteRange, Layout, LogIndex};

    fn staged(index: u64, shift: u64) -> Away {
        Away::Staged { index: LogIndex(index), shift }
    }

    fn missing(version: u64) -> Away {
        Away::Missing { version: LogIndex(version) }
    }

    #[test]
    fn parts_cover_a_range() {
        let mut layout = Layout::default();
        assert!(layout.is_in_place());
        layout.set(ByteRange::at(10, 10), staged(5, 0));
        layout.set(ByteRange::at(15, 10), missing(6));
        layout.set(ByteRange::at(30, 0), missing(7));
        let range = |start, end| ByteRange { start, end };
        let parts = [
            (range(5, 10), None),
            (range(10, 15), Some(staged(5, 0))),
            (range(15, 25), Some(missing(6))),
            (range(25, 26), None),
        ];
        assert_eq!(layout.parts(range(5, 26)), parts);
        assert_eq!(layout.parts(range(12, 12)), []);
        assert_eq!(layout.stages(), [LogIndex(5)]);
        assert_eq!(layout.missing_len(), 10);
        layout.clear(ByteRange::at(0, 100));
        assert!(layout.is_in_place());
    }

    proptest! {
        /// What was said last of a byte counts.
        #[test]
        fn the_last_word_counts(
            steps in vec((0..60_u64, 0..30_u64, prop_oneof![
                (1..4_u64, any::<u64>()).prop_map(|(index, shift)| Some(staged(index, shift))),
                (1..4_u64).prop_map(|version| Some(missing(version))),
                proptest::strategy::Just(None),
            ]), 0..20),
            asked in (0..100_u64, 0..100_u64),
        ) {
            let mut layout = Layout::default();
            let mut bytes = [None; 200];
            for (start, len, away) in steps {
                let range = ByteRange::at(start, len);
                match away {
                    Some(away) => layout.set(range, away),
                    None => layout.clear(range),
                }
                bytes[usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap()].fill(away);
            }
            let asked = ByteRange::at(asked.0, asked.1);
            let mut at = asked.start;
            for (part, away) in layout.parts(asked) {
                prop_assert_eq!(part.start, at);
                prop_assert_eq!(part.is_empty(), false);
                for byte in part.start..part.end {
                    prop_assert_eq!(bytes[usize::try_from(byte).unwrap()], away);
                }
                at = part.end;
            }
            prop_assert_eq!(at, asked.end);
            prop_assert_eq!(layout.is_in_place(), bytes.iter().all(Option::is_none));
        }
    }
}
