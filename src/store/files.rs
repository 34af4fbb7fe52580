//! Backing files: one for each generation of a regular file, with the file's own offsets.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::checksums::Checksums;
use super::layout::Away;
use super::layouts::{Layouts, Locked};
use super::pins::Pins;
use super::recent::Recent;
use super::spares::Spares;
use super::stages::Stages;
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
type Shard = Mutex<Recent<Key, Arc<File>>>;

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
    checksums: Checksums,
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
        std::fs::create_dir_all(path).map_err(StoreError::io("create", path))?;
        let dir = File::open(path).map_err(StoreError::io("open", path))?;
        let open = std::array::from_fn(|_| Mutex::new(Recent::new(DESCRIPTORS / SHARDS)));
        let spares = Spares::open(path.join("spare"))?;
        let pins = Pins::open(stages, same_boot)?;
        let layouts = Layouts::open(stages, same_boot)?;
        let stages = Stages::open(stages)?;
        let checksums = Checksums::open(path.with_file_name("checksums"))?;
        let (path, changed) = (path.to_owned(), Listener::default());
        let files = Self { path, dir, open, spares, pins, layouts, stages, checksums, changed };
        files.note_placed()?;
        files.retire_unneeded()?;
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
            return Ok(());
        }
        effects.iter().try_for_each(|effect| self.carry_out(effect))?;
        self.layouts.end(index, effects.iter().any(|e| matches!(e, FileEffect::Stage { .. })))?;
        Ok(())
    }

    pub(super) fn carry_out(&self, effect: &FileEffect) -> Result<(), StoreError> {
        match effect {
            FileEffect::Write { ino, generation, offset, data } => {
                self.save_pinned((*ino, *generation), ByteRange::at(*offset, data.len() as u64))?;
                let mut layouts = self.changing(*ino);
                let file = self.file_or_new(*ino, *generation)?;
                let written = file.write_all_at(data, *offset);
                written.map_err(|source| self.failed("write", *ino, *generation, source))?;
                layouts.clear((*ino, *generation), ByteRange::at(*offset, data.len() as u64))
            }
            FileEffect::Stage { index, ino, generation, stage, pieces } => {
                self.write_stage(*index, (*ino, *generation), *stage, pieces)
            }
            FileEffect::EndStages { session } => self.stages.end(*session),
            FileEffect::Truncate { ino, generation, size } => {
                self.save_pinned((*ino, *generation), ByteRange::from(*size))?;
                let mut layouts = self.changing(*ino);
                layouts.clear((*ino, *generation), ByteRange::from(*size))?;
                let file = self.file_or_new(*ino, *generation)?;
                let cut = file.set_len(*size);
                cut.map_err(|source| self.failed("truncate", *ino, *generation, source))
            }
            FileEffect::Allocate { ino, generation, range } => {
                self.reserve((*ino, *generation), *range)
            }
            FileEffect::Zero { ino, generation, range, reserved } => {
                self.save_pinned((*ino, *generation), *range)?;
                let mut layouts = self.changing(*ino);
                if layouts.get((*ino, *generation)).is_some() {
                    // A stage that has these bytes must not become the file.
                    self.file_or_new(*ino, *generation)?;
                }
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
            FileEffect::Remove { ino, generation } => {
                let key = (*ino, *generation);
                self.changing(*ino).forget(key)?;
                let bytes = || self.blocks(*ino, *generation).map_or(0, |blocks| blocks * 512);
                if self.pins.defers_removal(key, bytes)? {
                    return Ok(());
                }
                self.remove(*ino, *generation)
            }
        }
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
        self.pins.save(key, range, || self.file(key.0, key.1))
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

    pub(super) fn checksums(&self) -> &Checksums {
        &self.checksums
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
            if parts.iter().any(|(_, away)| matches!(away, Some(Away::Missing { .. }))) {
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
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(more) => done += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed("read", ino, generation, source)),
            }
        }
        buffer[done..].fill(0);
        Ok(())
    }

    /// The same where it needs no waiting for a disk (`RWF_NOWAIT`): false, and `buffer` undefined,
    /// where it would.
    ///
    /// # Errors
    /// When the local file system cannot read.
    pub fn read_cached(
        &self,
        ino: Ino,
        generation: Generation,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<bool, StoreError> {
        if !self.is_in_place((ino, generation), ByteRange::at(offset, buffer.len() as u64)) {
            return Ok(false);
        }
        let file = match self.file_nowait(ino, generation) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                buffer.fill(0);
                return Ok(true);
            }
            // Not in memory, or not to be found out without waiting: `read` will say.
            Err(_) => return Ok(false),
        };
        let mut done = 0;
        while done < buffer.len() {
            match sys::read_nowait(&file, offset + done as u64, &mut buffer[done..]) {
                Ok(0) => break,
                Ok(more) => done += more,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // What the disk cannot read `read` will say.
                    Some(libc::EAGAIN | libc::EIO) => return Ok(false),
                    // This file system cannot tell: better to wait than never to answer from here.
                    Some(libc::EOPNOTSUPP) => {
                        return self.read(ino, generation, offset, buffer);
                    }
                    _ => return Err(self.failed("read", ino, generation, error)),
                },
            }
        }
        buffer[done..].fill(0);
        Ok(true)
    }

    /// 512-byte blocks that a file occupies here; 0 where it does not exist.
    ///
    /// # Errors
    /// When the local file system cannot say.
    pub fn blocks(&self, ino: Ino, generation: Generation) -> Result<u64, StoreError> {
        match std::fs::metadata(self.path_of(ino, generation)) {
            Ok(metadata) => Ok(metadata.blocks()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
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
    /// When bytes could not be written; some are lost then.
    pub fn sync(&self) -> Result<(), StoreError> {
        let image = self.layouts.image()?;
        sys::syncfs(&self.dir).map_err(StoreError::io("sync", &self.path))?;
        self.layouts.keep(&image)?;
        self.stages.remove_written(&image.retired)
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
        self.path.join(format!("{:02x}/{ino}.{generation}", ino.0 >> 8 & 0xff))
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
        let opened = OpenOptions::new().read(true).write(true).open(self.path_of(ino, generation));
        match opened {
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

    /// The backing file where neither a lock nor a disk has to be waited for.
    fn file_nowait(&self, ino: Ino, generation: Generation) -> io::Result<Arc<File>> {
        let mut open = self.shard(ino).try_lock().ok_or(ErrorKind::WouldBlock)?;
        if let Some(file) = open.get(&(ino, generation)) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(sys::open_nowait(&self.path_of(ino, generation))?);
        open.insert((ino, generation), Arc::clone(&file));
        Ok(file)
    }

    fn remove(&self, ino: Ino, generation: Generation) -> Result<(), StoreError> {
        self.checksums.forget((ino, generation))?;
        let mut open = self.shard(ino).lock();
        let path = self.path_of(ino, generation);
        // Without another descriptor of it (reads that are under way have one) it can become another file.
        let alone = open.remove(&(ino, generation)).and_then(Arc::into_inner);
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

    fn shard(&self, ino: Ino) -> &Shard {
        &self.open[usize::from(ino.0.to_le_bytes()[0]) % SHARDS]
    }

    pub(super) fn failed(
        &self,
        action: &'static str,
        ino: Ino,
        generation: Generation,
        source: io::Error,
    ) -> StoreError {
        StoreError::Io { action, path: self.path_of(ino, generation), source }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use bytes::Bytes;

    use super::{DESCRIPTORS, FileEffect, Files, Generation, Ino};
    use crate::store::spares::SPARES;

    const GENERATION: Generation = Generation(7);

    fn open(dir: &std::path::Path) -> Files {
        Files::open(&dir.join("files"), &dir.join("stages"), true).unwrap()
    }

    fn write(ino: u64, offset: u64, data: &'static [u8]) -> FileEffect {
        let data = Bytes::from_static(data);
        FileEffect::Write { ino: Ino(ino), generation: GENERATION, offset, data }
    }

    fn truncate(ino: u64, size: u64) -> FileEffect {
        FileEffect::Truncate { ino: Ino(ino), generation: GENERATION, size }
    }

    fn remove(ino: u64) -> FileEffect {
        FileEffect::Remove { ino: Ino(ino), generation: GENERATION }
    }

    fn bytes(files: &Files, ino: u64, len: usize) -> Vec<u8> {
        let mut buffer = vec![0xee; len];
        files.read(Ino(ino), GENERATION, 0, &mut buffer).unwrap();
        let mut cached = vec![0xee; len];
        if files.read_cached(Ino(ino), GENERATION, 0, &mut cached).unwrap() {
            assert_eq!(buffer, cached);
        }
        buffer
    }

    #[test]
    fn holes_absent_files_and_what_lies_beyond_the_end_are_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path());
        assert_eq!(bytes(&files, 1, 4), [0; 4]);
        assert_eq!(files.blocks(Ino(1), GENERATION).unwrap(), 0);
        files.carry_out(&write(1, 3, b"abc")).unwrap();
        assert_eq!(bytes(&files, 1, 8), b"\0\0\0abc\0\0");
        files.carry_out(&write(2, 1 << 20, b"far")).unwrap();
        assert_eq!(bytes(&files, 2, 4), [0; 4]);
        files.sync().unwrap();
        assert!(files.blocks(Ino(2), GENERATION).unwrap() < 64, "a hole takes no space");
        assert!(files.statvfs().unwrap().f_blocks > 0);
    }

    #[test]
    fn what_truncation_cut_off_never_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path());
        files.carry_out(&write(1, 0, b"abcdef")).unwrap();
        files.carry_out(&truncate(1, 2)).unwrap();
        files.carry_out(&truncate(1, 6)).unwrap();
        assert_eq!(bytes(&files, 1, 6), b"ab\0\0\0\0");
    }

    #[test]
    fn replaying_leaves_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path());
        let effects = [
            write(1, 0, b"first"),
            truncate(1, 3),
            write(1, 5, b"x"),
            write(2, 0, b"y"),
            remove(2),
        ];
        for replayed_from in 0..effects.len() {
            for effect in effects.iter().chain(&effects[replayed_from..]) {
                files.carry_out(effect).unwrap();
            }
            assert_eq!(bytes(&files, 1, 7), b"fir\0\0x\0");
            assert_eq!(bytes(&files, 2, 1), [0]);
            assert!(!files.path_of(Ino(2), GENERATION).exists());
        }
        files.carry_out(&remove(1)).unwrap();
        files.carry_out(&remove(1)).unwrap();
    }

    #[test]
    fn a_removed_file_leaves_nothing_in_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path());
        files.carry_out(&write(1, 0, b"secret")).unwrap();
        let reading = files.file(Ino(1), GENERATION).unwrap().unwrap();
        files.carry_out(&remove(1)).unwrap();
        files.carry_out(&write(2, 0, b"in another file")).unwrap();
        let mut seen = [0; 6];
        reading.read_at(&mut seen, 0).unwrap();
        assert_eq!(&seen, b"secret", "a read that is under way has the removed file still");

        files.carry_out(&remove(2)).unwrap();
        files.carry_out(&write(0x103, 12, b"next")).unwrap();
        assert_eq!(bytes(&files, 0x103, 16), b"\0\0\0\0\0\0\0\0\0\0\0\0next");
        assert!(!files.path_of(Ino(2), GENERATION).exists());
        drop(files);
        let files = open(dir.path());
        assert_eq!(bytes(&files, 0x103, 16)[12..], *b"next");
        for spares in std::fs::read_dir(dir.path().join("files/spare")).unwrap() {
            assert_eq!(std::fs::read_dir(spares.unwrap().path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn descriptors_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path());
        for ino in 0..3 * DESCRIPTORS as u64 {
            files.carry_out(&write(ino, 0, b"a")).unwrap();
        }
        // Only ours: other tests of this process have descriptors too.
        let ours = |fd: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_link(fd.unwrap().path())
                .is_ok_and(|to| to.starts_with(dir.path().join("files")))
        };
        let open =
            std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| ours(fd).then_some(()));
        assert!(open.count() <= DESCRIPTORS + SPARES + 1);
        assert_eq!(bytes(&files, 0, 1), b"a");
    }

    #[test]
    fn cached_reads_answer_what_is_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path());
        files.carry_out(&write(1, 0, b"abc")).unwrap();
        let mut buffer = [0xee; 5];
        assert!(files.read_cached(Ino(1), GENERATION, 0, &mut buffer).unwrap());
        assert_eq!(&buffer, b"abc\0\0");
    }
}
