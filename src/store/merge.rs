//! Stages become bytes of files: written where an entry says so, merged into backing files later, and read
//! meanwhile where they are.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::XattrFlags;

use super::files::{Files, Key};
use super::layout::{Away, Part};
use super::layouts::Locked;
use super::refused::is_lost;
use super::room;
use super::space::copy_data;
use super::stages::{Found, Stage};
use super::sys;
use crate::fs::StagedPiece;
use crate::store::StoreError;
use crate::types::{ByteRange, LogIndex, SessionId, StageId};

/// What is merged at once: applying waits no longer than this takes, if it concerns the same file.
const CHUNK: u64 = 1 << 20;
/// A stage goes to the disk in lots of so many bytes.
const WRITE_BACK: u64 = 8 << 20;

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
        if !self.room().take(data.len() as u64) {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            return Err(StoreError::io("keep bytes in", &self.stages().fresh_path(id))(full));
        }
        let Some(stage) = self.stages().unless_written(id)? else { return Ok(()) };
        let came = ByteRange::at(offset, data.len() as u64);
        let target = {
            let mut state = stage.state.lock();
            let Some(target) = state.target.clone() else {
                if stage.is_closed() {
                    return Ok(());
                }
                let file = self.stages().file_of(id, &stage)?;
                let written = file.write_all_at(data, offset);
                written.map_err(StoreError::io("write", &self.stages().fresh_path(id)))?;
                state.received.insert(came.start..came.end);
                state.is_over = false;
                state.unwritten += came.len();
                let is_much = state.unwritten >= WRITE_BACK;
                if is_much {
                    state.unwritten = 0;
                }
                drop(state);
                // So that there is little left to do when it is to be durable.
                if is_much {
                    sys::start_write_back(&file);
                }
                return Ok(());
            };
            target
        };
        self.fill((id, &stage), &target, came, Some(data))?;
        if self.missing_of(&target).is_empty() {
            self.give_up_stage(id);
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

    /// Makes all that has come of a stage durable; false where it is not here, or not any more.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn sync_stage(&self, id: StageId) -> Result<bool, StoreError> {
        self.stages().sync(id)
    }

    /// Deletes a stage that its session will not write.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn abandon_stage(&self, id: StageId) -> Result<(), StoreError> {
        self.stages().abandon(id)
    }

    /// Deletes what sessions have staged, and not written, that are not to be kept. Before bytes arrive.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub(super) fn keep_stages(
        &self,
        is_kept: impl Fn(SessionId) -> bool,
    ) -> Result<(), StoreError> {
        self.stages().keep(is_kept)
    }

    /// Whether bytes of a stage may still come, as far as this replica knows.
    #[must_use]
    pub fn is_stage_open(&self, id: StageId) -> bool {
        self.stages().is_open(id)
    }

    /// Whether a stage is written, or never will be, as far as this replica knows.
    #[must_use]
    pub fn is_stage_done(&self, id: StageId) -> bool {
        self.stages().is_done(id)
    }

    /// Nothing more comes of a stage, unless it is sent again: what of it is written, and has not come, stays
    /// missing.
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
        self.stages().is_being_written(id);
        // One that an earlier process has begun to write is complete; what came for it since need not be.
        let found = match self.stages().find_written(index, pieces)? {
            Found::Nothing => self.stages().find(id, pieces)?,
            found => found,
        };
        let stage = match found {
            Found::Fresh(stage) => {
                self.stages().move_to_written(id, &stage, index)?;
                stage
            }
            Found::Written(stage) => stage,
            Found::Nothing => return self.find_again(index, key, pieces),
        };
        let mut layouts = self.layouts().lock(key.0);
        if layouts.get(key).is_some() {
            // It does not become the file: a replay would merge what was written before over it.
            self.file_or_new(key.0, key.1)?;
        }
        for piece in pieces {
            layouts.set(key, piece.range(), Away::Missing { version: index })?;
        }
        drop(layouts);
        let target = Arc::new(Target { key, index, pieces: pieces.to_vec() });
        let (received, is_durable, is_over) = {
            let mut state = stage.state.lock();
            // Whatever comes from here on is only taken where it is still missing.
            state.target = Some(target.clone());
            {
                let covers = |piece: &StagedPiece| {
                    let staged = piece.staged.start..piece.staged.end;
                    state.synced.gaps(&staged).next().is_none()
                };
                (state.received.clone(), pieces.iter().all(covers), state.is_over)
            }
        };
        for came in received {
            let came = ByteRange { start: came.start, end: came.end };
            self.fill((id, &stage), &target, came, None)?;
        }
        if self.missing_of(&target).is_empty() {
            self.give_up_stage(id);
            if is_durable {
                self.place(key, index)?;
            }
        } else if is_over {
            self.give_up_stage(id);
        }
        Ok(())
    }

    /// A stage that may not be durable yet becomes the backing file. Waits for the disk: not for the thread that
    /// applies.
    pub(super) fn place_durably(&self, key: Key) -> Result<bool, StoreError> {
        let index = self.layouts().get(key).and_then(|layout| layout.is_one_stage());
        let Some(index) = index else { return Ok(false) };
        if self.path_of(key.0, key.1).exists() {
            return Ok(false);
        }
        let Some(stage) = self.stages().file(index)? else { return Ok(false) };
        // Cheap where everything was synced; its last bytes may have come after that.
        self.stages().sync_one(index, &stage)?;
        self.place(key, index)
    }

    /// The stage of the entry at `index`, which is durable, becomes the backing file, where there is none, and the
    /// stage is all that the file has. It is marked as this entry's: nothing else tells, after a crash, that its
    /// bytes are here. Were it not durable, a power loss could leave zeros in it, and later writes beside them, which
    /// no checksum tells apart.
    fn place(&self, key: Key, index: LogIndex) -> Result<bool, StoreError> {
        let mut layouts = self.layouts().lock(key.0);
        if layouts.get(key).and_then(|layout| layout.is_one_stage()) != Some(index) {
            return Ok(false);
        }
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

    /// At the start: stages that are not where the layouts say. One has become the backing file since; or that is
    /// gone, too, and a replay will find so.
    pub(super) fn note_placed(&self) -> Result<(), StoreError> {
        for key in self.layouts().keys() {
            let mut layouts = self.layouts().lock(key.0);
            let stages = layouts.get(key).map(|layout| layout.stages()).unwrap_or_default();
            for index in stages {
                if self.stages().written_path(index).exists() {
                    continue;
                }
                let is_placed = self.is_placed(key, index)?;
                // What was missing when the layout was synced had come when the stage was placed.
                let of_it = |(_, away): &(ByteRange, Away)| away.is_of(index);
                let away: Vec<_> =
                    layouts.get(key).map_or_else(Vec::new, |layout| layout.away().collect());
                for (part, _) in away.into_iter().filter(of_it) {
                    if is_placed {
                        layouts.clear(key, part)?;
                    } else {
                        layouts.set(key, part, Away::Missing { version: index })?;
                    }
                }
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
            .for_each(|i| self.layouts().retire(i, None));
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
        (id, stage): (StageId, &Stage),
        target: &Target,
        came: ByteRange,
        data: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let Target { key, index, .. } = *target;
        let mut layouts = self.layouts().lock(key.0);
        // Nobody closes it and finds out, before this is done, that nothing needs it.
        if stage.is_closed() {
            return Ok(());
        }
        for (range, shift) in target.places(came) {
            let waiting = layouts.get(key).map(|layout| layout.waiting_for(range, index));
            for part in waiting.into_iter().flatten() {
                if let Some(data) = data {
                    let staged = part.moved(shift);
                    let at = |at: u64| usize::try_from(at - came.start).expect("within what came");
                    let data = &data[at(staged.start)..at(staged.end)];
                    let written =
                        self.stages().file_of(id, stage)?.write_all_at(data, staged.start);
                    written.map_err(|source| self.failed("write", key.0, key.1, source))?;
                }
                layouts.set(key, part, Away::Staged { index, shift })?;
            }
        }
        drop(layouts);
        self.tell_changed();
        Ok(())
    }

    /// There is no stage. It was the backing file already when more than a process died, and durable before that;
    /// or it never came.
    fn find_again(
        &self,
        index: LogIndex,
        key: Key,
        pieces: &[StagedPiece],
    ) -> Result<(), StoreError> {
        let is_placed = self.is_placed(key, index)?;
        let mut layouts = self.layouts().lock(key.0);
        for piece in pieces {
            if is_placed {
                // What the last sync knew of is older.
                layouts.clear(key, piece.range())?;
            } else {
                layouts.set(key, piece.range(), Away::Missing { version: index })?;
            }
        }
        Ok(())
    }

    /// Where the bytes of a range are; nothing where all are in place.
    pub(super) fn parts(&self, key: Key, range: ByteRange) -> Option<Vec<Part>> {
        if self.layouts().are_in_place() {
            return None;
        }
        let parts = self.layouts().parts(key, range);
        parts.iter().any(|(_, away)| away.is_some()).then_some(parts)
    }

    /// The parts of a range that are missing here, each with the data_version that it needs; ascending. Waits for no
    /// disk.
    #[must_use]
    pub fn missing(&self, key: Key, range: ByteRange) -> Vec<(ByteRange, LogIndex)> {
        if self.layouts().are_in_place() {
            return Vec::new();
        }
        let layout = self.layouts().get(key);
        layout.map_or_else(Vec::new, |layout| layout.missing(range).collect())
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

    /// Up to `limit` files that lack bytes, in order, beginning behind `after`.
    #[must_use]
    pub fn incomplete(&self, after: Option<Key>, limit: usize) -> Vec<Key> {
        self.layouts().missing_after(after, limit)
    }

    /// How many files lack bytes here, and how many bytes those are. Costs nothing.
    #[must_use]
    pub fn missing_in_all(&self) -> (u64, u64) {
        self.layouts().missing_in_all()
    }

    /// Whether bytes that one entry has written may still come by themselves.
    #[must_use]
    pub fn is_arriving(&self, key: Key, version: LogIndex) -> bool {
        self.stages().any_written(|target| target.key == key && target.index == version)
    }

    /// Bytes of a version of the file have come from a peer, and this replica has applied that version: they
    /// fill what of them is still missing. False where this disk has no room for all of it.
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
    ) -> Result<bool, StoreError> {
        let mut layouts = self.layouts().lock(key.0);
        let range = ByteRange::at(offset, data.len() as u64);
        let lacking = layouts.get(key).map(|layout| layout.lacking(range, version));
        let at = |at: u64| usize::try_from(at - offset).expect("within what came");
        let mut fits = true;
        for part in lacking.into_iter().flatten() {
            fits =
                self.install_part(&mut layouts, key, part, &data[at(part.start)..at(part.end)])?;
            if !fits {
                break;
            }
        }
        drop(layouts);
        self.tell_changed();
        Ok(fits)
    }

    /// False where it has no room here, or the disk does not take it. Until the next look at the disk there is none for
    /// anybody then, or nothing is taken for that file: nobody is to bring it again and again.
    fn install_part(
        &self,
        layouts: &mut Locked<'_>,
        key: Key,
        part: ByteRange,
        data: &[u8],
    ) -> Result<bool, StoreError> {
        if self.is_broken(key) || self.would_bare(layouts, key, part.start)? {
            return Ok(false);
        }
        let written = if self.has_room(key, part)? {
            self.write_at(key, part.start, data).map(|()| true)
        } else {
            Ok(false)
        };
        match written {
            Ok(true) => layouts.clear(key, part).map(|()| true),
            Err(error) if !error.is_refused() => Err(error),
            Err(error) if !error.is_full() => {
                tracing::warn!(start = part.start, end = part.end, "{error}");
                self.room().broke(key);
                Ok(false)
            }
            _ => {
                self.room().is_gone();
                Ok(false)
            }
        }
    }

    /// Merges one chunk of some stage into its file; false where there is nothing to merge.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn merge_some(&self) -> Result<bool, StoreError> {
        let mut after = None;
        while let Some(key) = self.layouts().staged_after(after) {
            let merged = self.place_durably(key)?
                || (!self.may_be_placed_yet(key) && self.merge_chunk(key, ByteRange::from(0))?);
            if merged {
                return Ok(true);
            }
            after = Some(key);
        }
        Ok(false)
    }

    /// Whether bytes still come of a stage that can become the file when it has them all: copying what has come would
    /// write it twice.
    fn may_be_placed_yet(&self, key: Key) -> bool {
        self.stages().any_written(|target| target.key == key)
            && !self.path_of(key.0, key.1).exists()
    }

    /// How many files have bytes that are staged.
    #[must_use]
    pub fn staged_files(&self) -> usize {
        self.layouts().staged_files()
    }

    /// Merges all that is staged of a range.
    pub(super) fn merge(&self, key: Key, range: ByteRange) -> Result<(), StoreError> {
        while !self.layouts().are_in_place() && self.merge_chunk(key, range)? {}
        Ok(())
    }

    fn merge_chunk(&self, key: Key, range: ByteRange) -> Result<bool, StoreError> {
        let mut layouts = self.layouts().lock(key.0);
        let staged = layouts.get(key).and_then(|layout| layout.to_merge(range, CHUNK));
        let Some((chunk, index, shift)) = staged else { return Ok(false) };
        // Where this would bare what is missing, those behind it would, too.
        if self.is_broken(key)
            || self.would_bare(&layouts, key, chunk.start)?
            || !self.has_room(key, chunk)?
        {
            return Ok(false);
        }
        let Some(stage) = self.stages().file(index)? else {
            let gone = io::Error::from(io::ErrorKind::NotFound);
            self.give_up_staged(&mut layouts, (key, chunk), index, &gone)?;
            return Ok(true);
        };
        let file = self.file_or_new(key.0, key.1)?;
        match copy_data(&stage, chunk.moved(shift), &file, chunk.start) {
            Ok(()) => layouts.clear(key, chunk)?,
            // Which of the two the disk refuses is not said.
            Err(error) if is_lost(&error) => {
                let staged = (&*stage, index, shift);
                return self.not_merged(&mut layouts, (key, chunk), staged, &error);
            }
            Err(error) if room::is_full(&error) => {
                self.room().is_gone();
                return Ok(false);
            }
            Err(source) => return Err(self.failed("merge a stage into", key.0, key.1, source)),
        }
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
                    if !self.read_staged((key, *part), (*index, *shift), buffer)? {
                        return Ok(false);
                    }
                }
                Some(Away::Missing { .. } | Away::Doubted { .. }) => return Ok(false),
            }
        }
        let range = ByteRange::at(offset, buffer.len() as u64);
        Ok(self.layouts().parts(key, range) == parts)
    }
}

/// The extended attribute of a backing file that was a stage: the index of the entry that wrote it.
pub(super) const MARK: &str = "user.quorumfs.stage";

/// Marks a stage as written by an entry; false where this file system cannot.
fn mark(stage: &File, index: LogIndex) -> bool {
    rustix::fs::fsetxattr(stage, MARK, &index.0.to_le_bytes(), XattrFlags::empty()).is_ok()
}

fn is_marked(file: &File, index: LogIndex) -> bool {
    let mut value = [0; 8];
    rustix::fs::fgetxattr(file, MARK, &mut value[..]).is_ok_and(|len| len == value.len())
        && u64::from_le_bytes(value) == index.0
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "power_loss_tests.rs"]
mod power_loss_tests;
