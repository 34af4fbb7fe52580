//! Stages become bytes of files: written where an entry says so, merged into backing files later, and read
//! meanwhile where they are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::XattrFlags;

use super::files::{Files, Key};
use super::layout::{Away, Layout, Part};
use super::space::copy_data;
use super::stages::{Found, Stage, checksum_blocks};
use crate::fs::StagedPiece;
use crate::store::StoreError;
use crate::types::{ByteRange, LogIndex, StageId};

/// What is merged at once: applying waits no longer than this takes, if it concerns the same file.
const CHUNK: u64 = 1 << 20;

/// Where the bytes of a stage go that was written, perhaps before all of them had come.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) key: Key,
    pub(super) index: LogIndex,
    pieces: Vec<StagedPiece>,
}

impl Target {
    /// Where bytes of the stage go in the file, and by how much they are shifted.
    fn places(&self, came: ByteRange) -> impl Iterator<Item = (ByteRange, u64)> + '_ {
        self.pieces.iter().filter_map(move |piece| {
            let part = ByteRange {
                start: came.start.max(piece.staged.start),
                end: came.end.min(piece.staged.end),
            };
            let shift = piece.staged.start.wrapping_sub(piece.at);
            (part.start < part.end).then(|| (part.moved(shift.wrapping_neg()), shift))
        })
    }
}

impl Files {
    /// Bytes of a stage arrive: those of a session that has not written it, or has not sent all of it when it did.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn stage(&self, id: StageId, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let stage = self.stages().arriving(id)?;
        let came = ByteRange::at(offset, data.len() as u64);
        let target = {
            let mut state = stage.state.lock();
            let Some(target) = state.target.clone() else {
                let written = stage.file.write_all_at(data, offset);
                written.map_err(StoreError::io("write", &self.stages().fresh_path(id)))?;
                state.received.insert(came.start..came.end);
                return Ok(());
            };
            target
        };
        self.fill(&stage, &target, came, Some(data))?;
        if self.missing_of(&target).is_empty() {
            self.give_up_stage(id);
            self.place(target.key)?;
        }
        Ok(())
    }

    /// Reads bytes that have been added to a stage; false where it has been written, or is gone.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn read_stage(
        &self,
        id: StageId,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<bool, StoreError> {
        self.stages().read(id, offset, buffer)
    }

    /// Makes all that has come of a stage durable.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn sync_stage(&self, id: StageId) -> Result<(), StoreError> {
        self.stages().sync(id)
    }

    /// Deletes a stage that its session will not write.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn abandon_stage(&self, id: StageId) -> Result<(), StoreError> {
        self.stages().abandon(id)
    }

    /// Nothing more comes of a stage: what of it was written, and has not come, stays missing.
    pub fn give_up_stage(&self, id: StageId) {
        if self.stages().finish(id) {
            self.tell_changed();
        }
    }

    /// The entry at `index` writes a stage.
    pub(super) fn write_stage(
        &self,
        index: LogIndex,
        key: Key,
        id: StageId,
        pieces: &[StagedPiece],
    ) -> Result<(), StoreError> {
        for piece in pieces {
            self.save_pinned(key, piece.range())?;
        }
        let found = match self.stages().find(id, pieces)? {
            Found::Nothing => self.stages().find_written(index, pieces)?,
            found => found,
        };
        let stage = match found {
            Found::Fresh(stage) => {
                self.stages().move_to_written(id, index)?;
                stage
            }
            Found::Written(stage) => stage,
            Found::Nothing => return self.find_again(index, key, pieces),
        };
        let mut layouts = self.layouts().lock(key.0);
        for piece in pieces {
            layouts.set(key, piece.range(), Away::Missing { version: index })?;
        }
        drop(layouts);
        let target = Arc::new(Target { key, index, pieces: pieces.to_vec() });
        let received = {
            let mut state = stage.state.lock();
            // Whatever comes from here on is only taken where it is still missing.
            state.target = Some(target.clone());
            state.received.clone()
        };
        for came in received {
            let came = ByteRange { start: came.start, end: came.end };
            self.fill(&stage, &target, came, None)?;
        }
        if self.missing_of(&target).is_empty() {
            self.give_up_stage(id);
            self.place(key)?;
        }
        Ok(())
    }

    /// The stage becomes the backing file, where there is none, and the stage is all that the file has. It is
    /// marked as this entry's: nothing else tells, after a crash, that its bytes were whole.
    fn place(&self, key: Key) -> Result<bool, StoreError> {
        let mut layouts = self.layouts().lock(key.0);
        let Some(index) = layouts.get(key).and_then(Layout::is_one_stage) else { return Ok(false) };
        let Some(stage) = self.stages().file(index)? else { return Ok(false) };
        if self.path_of(key.0, key.1).exists() || !mark(&stage, index) {
            return Ok(false);
        }
        let (from, to) = (self.stages().written_path(index), self.path_for(key)?);
        std::fs::rename(&from, &to).map_err(StoreError::io("rename into place", &to))?;
        self.stages().close(index);
        layouts.forget(key)?;
        Ok(true)
    }

    /// After a process has died: a stage that became the backing file just before.
    pub(super) fn note_placed(&self) -> Result<(), StoreError> {
        for key in self.layouts().keys() {
            let mut layouts = self.layouts().lock(key.0);
            let Some(index) = layouts.get(key).and_then(Layout::is_one_stage) else { continue };
            if !self.stages().written_path(index).exists() && self.is_placed(key, index)? {
                layouts.forget(key)?;
            }
        }
        Ok(())
    }

    /// Stages that were merged by an earlier process go with the next sync.
    pub(super) fn retire_unneeded(&self) -> Result<(), StoreError> {
        let needed = self.layouts().stages();
        let all = self.stages().all_written()?;
        all.into_iter()
            .filter(|index| !needed.contains(index))
            .for_each(|i| self.layouts().retire(i));
        Ok(())
    }

    fn is_placed(&self, key: Key, index: LogIndex) -> Result<bool, StoreError> {
        Ok(self.file(key.0, key.1)?.is_some_and(|file| is_marked(&file, index)))
    }

    /// What is still missing because of one entry.
    fn missing_of(&self, target: &Target) -> Vec<ByteRange> {
        let missing = |piece: &StagedPiece| self.missing(target.key, piece.range());
        let of_all = target.pieces.iter().flat_map(missing);
        of_all.filter(|(_, version)| *version == target.index).map(|(range, _)| range).collect()
    }

    /// Bytes of a stage that is written have come, `data` where they are not in it yet: they are missing no more,
    /// where nobody has written others.
    fn fill(
        &self,
        stage: &Stage,
        target: &Target,
        came: ByteRange,
        data: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let Target { key, index, .. } = *target;
        let mut layouts = self.layouts().lock(key.0);
        for (range, shift) in target.places(came) {
            for (part, away) in layouts.parts(key, range) {
                if away != Some(Away::Missing { version: index }) {
                    continue;
                }
                if let Some(data) = data {
                    let staged = part.moved(shift);
                    let at = |at: u64| usize::try_from(at - came.start).expect("within what came");
                    let written = stage
                        .file
                        .write_all_at(&data[at(staged.start)..at(staged.end)], staged.start);
                    written.map_err(|source| self.failed("write", key.0, key.1, source))?;
                }
                layouts.set(key, part, Away::Staged { index, shift })?;
            }
        }
        drop(layouts);
        self.tell_changed();
        Ok(())
    }

    /// There is no stage. It was the backing file already when more than a process died: what was lost then are
    /// zeros; or it never came.
    fn find_again(
        &self,
        index: LogIndex,
        key: Key,
        pieces: &[StagedPiece],
    ) -> Result<(), StoreError> {
        let file = self.file(key.0, key.1)?.filter(|file| is_marked(file, index));
        let mut layouts = self.layouts().lock(key.0);
        for piece in pieces {
            let lost = match &file {
                Some(file) => lost_blocks(file, piece)
                    .map_err(|source| self.failed("read", key.0, key.1, source))?,
                None => vec![piece.range()],
            };
            for range in lost {
                layouts.set(key, range, Away::Missing { version: index })?;
            }
        }
        Ok(())
    }

    /// Where the bytes of a range are; nothing where all are in place.
    pub(super) fn parts(&self, key: Key, range: ByteRange) -> Option<Vec<Part>> {
        if self.layouts().are_in_place() {
            return None;
        }
        let parts = self.layouts().lock(key.0).parts(key, range);
        parts.iter().any(|(_, away)| away.is_some()).then_some(parts)
    }

    /// The same where nobody has to be waited for; false where that is not to be found out.
    pub(super) fn is_in_place(&self, key: Key, range: ByteRange) -> bool {
        if self.layouts().are_in_place() {
            return true;
        }
        let Some(layouts) = self.layouts().try_lock(key.0) else { return false };
        layouts.parts(key, range).iter().all(|(_, away)| away.is_none())
    }

    /// The parts of a range that are missing here, each with the data_version that it needs; ascending.
    #[must_use]
    pub fn missing(&self, key: Key, range: ByteRange) -> Vec<(ByteRange, LogIndex)> {
        let missing = |(part, away)| match away {
            Some(Away::Missing { version }) => Some((part, version)),
            Some(Away::Staged { .. }) | None => None,
        };
        self.parts(key, range).into_iter().flatten().filter_map(missing).collect()
    }

    /// Whether all bytes of all files are in place.
    #[must_use]
    pub fn are_in_place(&self) -> bool {
        self.layouts().are_in_place()
    }

    /// Bytes of stages that nothing but a replay needs.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn kept(&self) -> Result<u64, StoreError> {
        let needed = self.layouts().stages();
        let all = self.stages().all_written()?;
        let unneeded = all.into_iter().filter(|index| !needed.contains(index));
        // One that goes meanwhile counts nothing.
        let len =
            |index| std::fs::metadata(self.stages().written_path(index)).map_or(0, |m| m.len());
        Ok(unneeded.map(len).sum())
    }

    /// Some files that lack bytes.
    #[must_use]
    pub fn incomplete(&self, limit: usize) -> Vec<Key> {
        let keys = self.layouts().keys().into_iter();
        keys.filter(|key| !self.missing(*key, ByteRange::from(0)).is_empty()).take(limit).collect()
    }

    /// Whether bytes that one entry has written may still come by themselves.
    #[must_use]
    pub fn is_arriving(&self, key: Key, version: LogIndex) -> bool {
        self.stages().any_written(|target| target.key == key && target.index == version)
    }

    /// Bytes of a version of the file have come from a peer, and this replica has applied that version: they
    /// fill what of them is still missing.
    ///
    /// # Errors
    /// When the local file system refuses.
    ///
    /// # Panics
    /// Where a part of what came lies outside of it, which cannot be.
    pub fn install(
        &self,
        key: Key,
        offset: u64,
        data: &[u8],
        version: LogIndex,
    ) -> Result<(), StoreError> {
        let mut layouts = self.layouts().lock(key.0);
        for (part, away) in layouts.parts(key, ByteRange::at(offset, data.len() as u64)) {
            if !matches!(away, Some(Away::Missing { version: needed }) if needed <= version) {
                continue;
            }
            let at = |at: u64| usize::try_from(at - offset).expect("within what came");
            let file = self.file_or_new(key.0, key.1)?;
            let written = file.write_all_at(&data[at(part.start)..at(part.end)], part.start);
            written.map_err(|source| self.failed("write", key.0, key.1, source))?;
            layouts.clear(key, part)?;
        }
        drop(layouts);
        self.tell_changed();
        Ok(())
    }

    /// Merges one chunk of some stage into its file; false where there is nothing to merge.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn merge_some(&self) -> Result<bool, StoreError> {
        for key in self.layouts().keys() {
            if self.place(key)? || self.merge_chunk(key, ByteRange::from(0))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Merges all that is staged of a range.
    pub(super) fn merge(&self, key: Key, range: ByteRange) -> Result<(), StoreError> {
        while !self.layouts().are_in_place() && self.merge_chunk(key, range)? {}
        Ok(())
    }

    fn merge_chunk(&self, key: Key, range: ByteRange) -> Result<bool, StoreError> {
        let mut layouts = self.layouts().lock(key.0);
        let staged = layouts.parts(key, range).into_iter().find_map(|(part, away)| match away {
            Some(Away::Staged { index, shift }) => Some((part, index, shift)),
            Some(Away::Missing { .. }) | None => None,
        });
        let Some((part, index, shift)) = staged else { return Ok(false) };
        let chunk = ByteRange { end: part.end.min(part.start + CHUNK), ..part };
        let stage = self.stages().file(index)?.ok_or_else(|| self.lost_stage(index))?;
        let file = self.file_or_new(key.0, key.1)?;
        let merged = copy_data(&stage, chunk.moved(shift), &file, chunk.start);
        merged.map_err(|source| self.failed("merge a stage into", key.0, key.1, source))?;
        layouts.clear(key, chunk)?;
        Ok(true)
    }

    /// Reads a range that is partly staged; false where it has changed meanwhile.
    pub(super) fn read_parts(
        &self,
        key: Key,
        offset: u64,
        buffer: &mut [u8],
        parts: &[Part],
    ) -> Result<bool, StoreError> {
        for (part, away) in parts {
            let at = |at: u64| usize::try_from(at - offset).expect("within the buffer");
            let buffer = &mut buffer[at(part.start)..at(part.end)];
            match away {
                None => self.read_in_place(key, part.start, buffer)?,
                Some(Away::Staged { index, shift }) => {
                    // It may have been merged and removed by now.
                    let Some(stage) = self.stages().file(*index)? else { return Ok(false) };
                    stage
                        .read_exact_at(buffer, part.moved(*shift).start)
                        .map_err(StoreError::io("read", &self.stages().written_path(*index)))?;
                }
                Some(Away::Missing { .. }) => return Ok(false),
            }
        }
        let range = ByteRange::at(offset, buffer.len() as u64);
        Ok(self.layouts().lock(key.0).parts(key, range) == parts)
    }

    fn lost_stage(&self, index: LogIndex) -> StoreError {
        StoreError::Corrupt {
            path: self.stages().written_path(index),
            offset: None,
            what: "it is gone, and bytes of a file are only there".to_owned(),
            advice: crate::store::error::REJOIN,
        }
    }
}

/// The extended attribute of a backing file that was a stage: the index of the entry that wrote it.
const MARK: &str = "user.quorumfs.stage";

/// Marks a stage as written by an entry; false where this file system cannot.
fn mark(stage: &File, index: LogIndex) -> bool {
    rustix::fs::fsetxattr(stage, MARK, &index.0.to_le_bytes(), XattrFlags::empty()).is_ok()
}

fn is_marked(file: &File, index: LogIndex) -> bool {
    let mut value = [0; 8];
    rustix::fs::fgetxattr(file, MARK, &mut value[..]).is_ok_and(|len| len == value.len())
        && u64::from_le_bytes(value) == index.0
}

/// Blocks of a piece of which a file has nothing but zeros or nothing at all, though it should.
fn lost_blocks(file: &File, piece: &StagedPiece) -> std::io::Result<Vec<ByteRange>> {
    let mut lost = Vec::new();
    for (block, checksum) in checksum_blocks(piece.staged).zip(&piece.checksums) {
        let mut bytes = vec![0; usize::try_from(block.len()).expect("at most a block")];
        let mut read = 0;
        while read < bytes.len() {
            match file.read_at(&mut bytes[read..], block.start + read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        let is_empty = bytes.iter().all(|byte| *byte == 0);
        if is_empty && crc32c::crc32c(&bytes) != *checksum {
            lost.push(block);
        }
    }
    Ok(lost)
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
