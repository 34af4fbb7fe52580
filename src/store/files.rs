//! Backing files: one for each generation of a regular file, with the file's own offsets.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::beneath::Beneath;
use super::checksums::Checksums;
use super::durable::Syncs;
use super::layout::Away;
use super::layout_notes;
use super::layouts::{Believed, Layouts, Locked};
use super::lent::{Lent, was_lent};
use super::pins::Pins;
use super::recent::Recent;
use super::room::Room;
use super::spares::Spares;
use super::stages::Stages;
use super::sweep::has_files;
use super::sys;
use crate::fs::FileEffect;
use crate::store::StoreError;
use crate::types::{ByteRange, Generation, Ino, LogIndex};

/// Descriptors that are kept open at most.
const DESCRIPTORS: usize = 1024;
/// Locks that they are spread over.
const SHARDS: usize = 16;

/// What names a backing file.
pub(super) type Key = (Ino, Generation);
pub(super) type Shard = Mutex<Recent<Key, Arc<File>>>;

/// Whoever wants to know.
#[derive(Default)]
struct Listener(OnceLock<Box<dyn Fn() + Send + Sync>>);

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

/// The backing files of this replica, `files/<hh>/<ino>.<gen>` (`hh` is the second byte of the inode
/// number in hexadecimal, so that files made one after the other lie side by side), behind a bounded
/// cache of descriptors.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    /// Open from the start, so that `syncfs` reports every failed write-back since.
    dir: File,
    /// A file is opened, and its name removed, under its shard's lock: so no descriptor of a removed
    /// file can stay behind.
    open: [Shard; SHARDS],
    spares: Spares,
    pins: Pins,
    layouts: Layouts,
    stages: Stages,
    lent: Lent,
    room: Room,
    checksums: Checksums,
    /// Those of a data directory that stays as it is; nothing in a running replica.
    beneath: Option<Beneath>,
    syncing: Mutex<()>,
    syncs: Syncs,
    /// Told when bytes that were missing are no more, or will not come by themselves.
    changed: Listener,
}

impl Files {
    /// The backing files below `path`, beside it their checksums, and below `stages` what replays of copies read;
    /// all are created where they are absent. `same_boot` says that nothing but the process has died since they were
    /// written.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn open(path: &Path, stages: &Path, same_boot: bool) -> Result<Self, StoreError> {
        let believed = if same_boot { Believed::Notes } else { Believed::Image };
        Self::open_over(path, stages, believed, None)
    }

    /// The same over others, which are read where they are, and copied before they are changed.
    pub(super) fn open_over(
        path: &Path,
        stages: &Path,
        believed: Believed,
        beneath: Option<Beneath>,
    ) -> Result<Self, StoreError> {
        let same_boot = believed == Believed::Notes;
        std::fs::create_dir_all(path).map_err(StoreError::io("create", path))?;
        if believed != Believed::Nothing {
            let files = beneath.as_ref().map_or(path, Beneath::dir);
            layout_notes::check_image_is_there(stages, has_files(files)?)?;
        }
        let dir = File::open(path).map_err(StoreError::io("open", path))?;
        let open = std::array::from_fn(|_| Mutex::new(Recent::new(DESCRIPTORS / SHARDS)));
        let spares = Spares::open(path.join("spare"))?;
        let syncs = Syncs::of(path.parent().unwrap_or(path));
        let pins = Pins::open(stages, same_boot, syncs.clone())?;
        let layouts = Layouts::open(stages, believed)?;
        let stages = Stages::open(stages, syncs.clone())?;
        let checksums = Checksums::open(path.with_file_name("checksums"))?;
        let changed = Listener::default();
        let (lent, room, syncing) = (Lent::default(), Room::default(), Mutex::default());
        let path = path.to_owned();
        let files = Self {
            path,
            dir,
            open,
            spares,
            pins,
            layouts,
            stages,
            lent,
            room,
            checksums,
            beneath,
            syncing,
            syncs,
            changed,
        };
        files.note_placed()?;
        files.layouts.lower_held();
        // Where nothing is known of the files, a stage may be the only place of what was not merged yet.
        if !files.layouts.is_lost() {
            files.retire_unneeded()?;
        }
        Ok(files)
    }

    /// Carries out the effects of the entry at `index`, where no earlier process has. Buffered by the kernel:
    /// durable only after [`Self::sync`].
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn carry_out_all(&self, index: LogIndex, effects: &[FileEffect]) -> Result<(), StoreError> {
        // Also where they are: the state may not say so yet.
        effects
            .iter()
            .filter_map(FileEffect::changes)
            .for_each(|ino| self.checksums.changing(ino, index));
        if effects.is_empty() || !self.layouts.begin(index)? {
            // A session whose end is replayed was open when this process started: stages may have come for it since.
            let mut ends = effects.iter().filter(|e| matches!(e, FileEffect::EndStages { .. }));
            ends.try_for_each(|end| self.carry_out(index, end))?;
            self.layouts.pass(index);
            return Ok(());
        }
        for effect in effects {
            self.bring_up(effect)?;
            self.carry_out(index, effect)?;
        }
        self.layouts.end(index, effects.iter().any(|e| matches!(e, FileEffect::Stage { .. })))?;
        Ok(())
    }

    pub(super) fn carry_out(&self, at: LogIndex, effect: &FileEffect) -> Result<(), StoreError> {
        match effect {
            FileEffect::Write { ino, generation, offset, data } => {
                self.write(at, (*ino, *generation), *offset, data)
            }
            FileEffect::Stage { index, ino, generation, stage, pieces } => {
                self.write_stage(*index, (*ino, *generation), *stage, pieces)
            }
            FileEffect::EndStages { session } => self.stages.end(*session),
            FileEffect::Renew { ino, generation, next } => self.renew((*ino, *generation), *next),
            FileEffect::Truncate { ino, generation, size } => {
                self.resize(at, (*ino, *generation), *size)
            }
            FileEffect::Allocate { ino, generation, range } => {
                // No stage becomes a file that is made here at the same time.
                let _layouts = self.changing(*ino);
                self.reserve((*ino, *generation), *range)
            }
            FileEffect::Zero { ino, generation, range, reserved } => {
                self.save_pinned((*ino, *generation), *range)?;
                let mut layouts = self.changing(*ino);
                // No stage becomes a file that others have changed before: a replay would change it then.
                self.file_or_new(*ino, *generation)?;
                self.zero((*ino, *generation), *range, *reserved)?;
                layouts.clear((*ino, *generation), *range)
            }
            FileEffect::Copy {
                index,
                source,
                source_generation,
                range,
                ino,
                generation,
                offset,
            } => {
                let (source, target) = ((*source, *source_generation), (*ino, *generation));
                self.save_pinned(target, ByteRange::at(*offset, range.len()))?;
                self.copy(*index, source, *range, target, *offset)
            }
            FileEffect::Remove { ino, generation } => self.discard((*ino, *generation)),
        }
    }

    /// What the entries up to `index` did to files is carried out.
    pub fn pass(&self, index: LogIndex) {
        self.layouts.pass(index);
    }

    fn write(&self, at: LogIndex, key: Key, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let range = ByteRange::at(offset, data.len() as u64);
        self.save_pinned(key, range)?;
        let mut layouts = self.changing(key.0);
        if !self.has_room_for_acknowledged(key, range)? {
            // No stage becomes the file: a replay may have room.
            self.file_or_new(key.0, key.1)?;
            return layouts.set(key, range, Away::Missing { version: at });
        }
        let written = if self.would_bare(&layouts, key, offset)? {
            self.set_aside(&mut layouts, at, key, (offset, data))
        } else {
            self.write_at(key, offset, data).and_then(|()| layouts.clear(key, range))
        };
        self.or_missing(written, &mut layouts, (key, range), at)
    }

    pub(super) fn write_at(&self, key: Key, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let written = self.file_or_new(key.0, key.1)?.write_all_at(data, offset);
        written.map_err(|source| self.failed("write", key.0, key.1, source))
    }

    fn resize(&self, at: LogIndex, key: Key, size: u64) -> Result<(), StoreError> {
        self.save_pinned(key, ByteRange::from(size))?;
        let mut layouts = self.changing(key.0);
        layouts.clear(key, ByteRange::from(size))?;
        if let Some(last) = size.checked_sub(1)
            && self.would_bare(&layouts, key, last)?
        {
            if layouts.parts(key, ByteRange::at(last, 1)).iter().any(|(_, away)| away.is_some()) {
                // It ends where bytes are that are still to come.
                return Ok(());
            }
            let aside = self.set_aside(&mut layouts, at, key, (last, &[0]));
            return self.or_missing(aside, &mut layouts, (key, ByteRange::at(last, 1)), at);
        }
        let cut = self.file_or_new(key.0, key.1)?.set_len(size);
        cut.map_err(|source| self.failed("truncate", key.0, key.1, source))
    }

    /// Removes a backing file, but for what a replay will copy.
    pub(super) fn discard(&self, key: Key) -> Result<(), StoreError> {
        self.discard_locked(&mut self.changing(key.0), key)
    }

    pub(super) fn discard_locked(
        &self,
        layouts: &mut Locked<'_>,
        key: Key,
    ) -> Result<(), StoreError> {
        layouts.forget(key)?;
        let found = std::fs::metadata(self.path_of(key.0, key.1));
        let bytes = || found.map_or(0, |found| found.blocks() * 512);
        if self.pins.defers_removal(key, bytes)? {
            return Ok(());
        }
        self.remove(key.0, key.1)
    }

    /// A snapshot at `index` is durable: no replay begins before it, and what was kept for one can go.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn forget(&self, index: LogIndex) -> Result<(), StoreError> {
        self.pins
            .forget(index)?
            .into_iter()
            .try_for_each(|(ino, generation)| self.remove(ino, generation))
    }

    /// Bytes that [`Self::forget`] is to give back.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.pins.held()
    }

    /// Before bytes of a file change: saves those that a replay will copy.
    pub(super) fn save_pinned(&self, key: Key, range: ByteRange) -> Result<(), StoreError> {
        let lacking = |range| {
            let parts = self.parts(key, range)?.into_iter().filter(|(_, away)| away.is_some());
            parts.map(|(part, _)| part).reduce(|first, last| ByteRange { end: last.end, ..first })
        };
        self.pins.save(key, range, || self.file(key.0, key.1), lacking)
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    pub(super) fn layouts(&self) -> &Layouts {
        &self.layouts
    }

    pub(super) fn stages(&self) -> &Stages {
        &self.stages
    }

    pub(super) fn lent(&self) -> &Lent {
        &self.lent
    }

    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    pub(super) fn checksums(&self) -> &Checksums {
        &self.checksums
    }

    pub(super) fn beneath(&self) -> Option<&Beneath> {
        self.beneath.as_ref()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Has `listener` called when bytes that were missing are no more, or will not come by themselves. Once.
    pub fn on_change(&self, listener: impl Fn() + Send + Sync + 'static) {
        let first = self.changed.0.set(Box::new(listener)).is_ok();
        debug_assert!(first, "there is one listener");
    }

    pub(super) fn tell_changed(&self) {
        if let Some(listener) = self.changed.0.get() {
            listener();
        }
    }

    /// Nobody merges into a file of `ino`, or fetches for it, meanwhile.
    fn changing(&self, ino: Ino) -> Locked<'_> {
        self.layouts.lock(ino)
    }

    /// Fills `buffer` from `offset` on; what lies beyond the backing file's end, or in a file that does
    /// not exist, is zeros (the caller has cut the request to the file's size). False, and `buffer` undefined,
    /// where some of it is [`Self::missing`].
    ///
    /// # Errors
    /// When the local file system cannot read.
    pub fn read(
        &self,
        ino: Ino,
        generation: Generation,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<bool, StoreError> {
        let key = (ino, generation);
        let range = ByteRange::at(offset, buffer.len() as u64);
        while let Some(parts) = self.parts(key, range) {
            if parts.iter().any(|(_, away)| away.and_then(Away::missing).is_some()) {
                return Ok(false);
            }
            if self.read_parts(key, offset, buffer, &parts)? {
                return Ok(true);
            }
        }
        self.read_in_place(key, offset, buffer)?;
        Ok(true)
    }

    /// The same of the backing file alone.
    pub(super) fn read_in_place(
        &self,
        (ino, generation): Key,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), StoreError> {
        let Some(file) = self.file(ino, generation)? else {
            buffer.fill(0);
            return Ok(());
        };
        sys::read_up_to(&file, buffer, offset)
            .map_err(|source| self.failed("read", ino, generation, source))
    }

    /// 512-byte blocks that a file occupies here; 0 where it does not exist.
    ///
    /// # Errors
    /// When the local file system cannot say.
    pub fn blocks(&self, ino: Ino, generation: Generation) -> Result<u64, StoreError> {
        // What is staged or missing will occupy some, too.
        let away = self.layouts.away_len((ino, generation)).div_ceil(512);
        match std::fs::metadata(self.path_of(ino, generation)) {
            Ok(metadata) => Ok(metadata.blocks() + away),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(away),
            Err(source) => Err(self.failed("stat", ino, generation, source)),
        }
    }

    /// Space and inodes of the file system that holds the backing files.
    ///
    /// # Errors
    /// When the local file system cannot say.
    pub fn statvfs(&self) -> Result<libc::statvfs, StoreError> {
        sys::statvfs(&self.dir).map_err(StoreError::io("ask the space of", &self.path))
    }

    /// Makes everything carried out so far durable (`syncfs(2)`).
    ///
    /// # Errors
    /// When bytes could not be written: some are lost, nobody knows which, and nothing is made durable any more.
    pub fn sync(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.syncing.lock();
        let is_arriving = |index| self.stages.any_written(|target| target.index == index);
        let image = self.layouts.image(is_arriving)?;
        self.syncs.sync_alone(&self.dir, &self.path, sys::syncfs)?;
        // Not where a sync of a stage has failed since.
        self.layouts.keep(&image, &self.syncs)?;
        self.stages.remove_written(&image.retired)
    }

    /// For tests: the next sync fails, as where the disk could not write.
    #[cfg(test)]
    pub(super) fn fail_next_sync(&self) {
        self.syncs.fail_next();
    }

    /// Makes the bytes of one file durable: those that are in place, and the stages that a replay would take them from.
    /// What was missing and has come only an image says, which is of all files.
    ///
    /// # Errors
    /// When bytes could not be written.
    pub fn sync_file(&self, key: Key) -> Result<(), StoreError> {
        if self.layouts.has_regained(key) {
            return self.sync();
        }
        self.stages.sync_written(&self.layouts.stages_of(key))?;
        let Some(file) = self.file(key.0, key.1)? else { return Ok(()) };
        let path = self.path_of(key.0, key.1);
        self.syncs.sync(&file, &path, File::sync_data)?;
        self.syncs.sync_parent(&path)
    }

    /// All bytes up to here are on this disk: what is missing is not.
    #[must_use]
    pub fn durable(&self) -> LogIndex {
        self.layouts.held()
    }

    /// The same, whatever is missing.
    #[must_use]
    pub fn imaged(&self) -> LogIndex {
        self.layouts.synced()
    }

    /// Whether a sync would make anything durable of what came up to here, or of what was missing since the last.
    #[must_use]
    pub fn needs_sync(&self, index: LogIndex) -> bool {
        let (synced, held) = (self.layouts.synced(), self.layouts.held());
        let has_all_again = || held < synced && self.missing_in_all() == (0, 0);
        index > synced || self.layouts.have_regained() || has_all_again()
    }

    /// All effects up to here are carried out.
    #[must_use]
    pub fn carried_out(&self) -> LogIndex {
        self.layouts.done()
    }

    /// The last entry whose effects an earlier process may have begun.
    pub(super) fn begun(&self) -> LogIndex {
        self.layouts.begun()
    }

    /// The same, in a directory that exists.
    pub(super) fn path_for(&self, (ino, generation): Key) -> Result<PathBuf, StoreError> {
        let path = self.path_of(ino, generation);
        let dir = path.parent().expect("a backing file is in a directory");
        std::fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
        Ok(path)
    }

    /// Where the backing file of a generation is, whether it exists or not.
    #[must_use]
    pub fn path_of(&self, ino: Ino, generation: Generation) -> PathBuf {
        path_below(&self.path, (ino, generation))
    }

    /// The backing file, or nothing where there is none.
    pub(super) fn file(
        &self,
        ino: Ino,
        generation: Generation,
    ) -> Result<Option<Arc<File>>, StoreError> {
        let mut open = self.shard(ino).lock();
        if let Some(file) = open.get(&(ino, generation)) {
            return Ok(Some(Arc::clone(file)));
        }
        match self.open_existing((ino, generation)) {
            Ok(file) => {
                let file = Arc::new(file);
                open.insert((ino, generation), Arc::clone(&file));
                Ok(Some(file))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed("open", ino, generation, source)),
        }
    }

    /// The backing file, created where it is absent.
    pub(super) fn file_or_new(
        &self,
        ino: Ino,
        generation: Generation,
    ) -> Result<Arc<File>, StoreError> {
        let mut open = self.shard(ino).lock();
        if let Some(file) = open.get(&(ino, generation)) {
            return Ok(Arc::clone(file));
        }
        let path = self.path_of(ino, generation);
        let file = match self.open_or_create(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let dir = path.parent().expect("a backing file is in a directory");
                std::fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
                self.open_or_create(&path)
            }
            other => other,
        };
        let file = Arc::new(file.map_err(StoreError::io("create", &path))?);
        open.insert((ino, generation), Arc::clone(&file));
        Ok(file)
    }

    fn open_or_create(&self, path: &Path) -> io::Result<File> {
        match self.spares.take(path) {
            Ok(Some(file)) => return Ok(file),
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(error),
            // It exists, or this file system knows no renaming without replacing.
            Ok(None) | Err(_) => {}
        }
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
    }

    /// The backing file becomes that of the file's next generation.
    pub(super) fn rename(&self, key: Key, next: Generation) -> Result<(), StoreError> {
        let mut open = self.shard(key.0).lock();
        open.remove(&key);
        self.hide(key);
        self.checksums.forget(key)?;
        let (from, to) = (self.path_of(key.0, key.1), self.path_for((key.0, next))?);
        std::fs::rename(&from, &to).map_err(StoreError::io("rename", &to))
    }

    fn remove(&self, ino: Ino, generation: Generation) -> Result<(), StoreError> {
        self.hide((ino, generation));
        self.checksums.forget((ino, generation))?;
        let mut open = self.shard(ino).lock();
        let path = self.path_of(ino, generation);
        // Without another descriptor of it (reads that are under way have one) it can become another file.
        let alone = open.remove(&(ino, generation)).and_then(Arc::into_inner);
        // A mapping of a lent file outlives the descriptor that it was made of.
        let alone = alone.filter(|file| !self.lent.has(ino) && !was_lent(file));
        if alone.is_some_and(|file| self.spares.keep(&path, file)) {
            return Ok(());
        }
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(self.failed("remove", ino, generation, source))
            }
            _ => Ok(()),
        }
    }

    /// Closes the descriptor that is kept of a file, which is going to be another one.
    pub(super) fn close(&self, key: Key) {
        self.shard(key.0).lock().remove(&key);
    }

    pub(super) fn shard(&self, ino: Ino) -> &Shard {
        &self.open[usize::from(ino.0.to_le_bytes()[0]) % SHARDS]
    }

    pub(super) fn failed(
        &self,
        action: &'static str,
        ino: Ino,
        generation: Generation,
        source: io::Error,
    ) -> StoreError {
        StoreError::Io { action, path: self.found_at((ino, generation)), source }
    }
}

/// Where the backing file of a generation is, below the directory of all.
pub(super) fn path_below(dir: &Path, (ino, generation): Key) -> PathBuf {
    dir.join(format!("{:02x}/{ino}.{generation}", ino.0 >> 8 & 0xff))
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
