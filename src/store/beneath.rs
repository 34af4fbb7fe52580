//! Backing files of a data directory that must stay as it is: they are read where they are, and one that an effect
//! is going to change is copied first. Only for who looks at a stopped replica (`scratch.rs`).

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;

use super::checksums::Checksums;
use super::datadir::DataDir;
use super::files::{Files, Key, path_below};
use super::layout::Away;
use super::space::copy_bytes;
use super::{lent, merge};
use crate::fs::FileEffect;
use crate::store::StoreError;
use crate::types::{ByteRange, LogIndex};

/// The backing files that others lie over.
#[derive(Debug)]
pub(super) struct Beneath {
    files: PathBuf,
    checksums: Checksums,
    /// Those that effects have removed or renamed since.
    hidden: Mutex<HashSet<Key>>,
}

impl Beneath {
    pub(super) fn new(data: &DataDir) -> Self {
        let checksums = Checksums::beneath(data.path().join("checksums"));
        Self { files: data.files_dir(), checksums, hidden: Mutex::default() }
    }

    /// Where they are.
    pub(super) fn dir(&self) -> &Path {
        &self.files
    }

    /// Where their checksums are.
    pub(super) fn checksums_dir(&self) -> &Path {
        self.checksums.dir()
    }

    pub(super) fn checksums(&self, key: Key, version: LogIndex, page: u64) -> Option<Vec<u32>> {
        self.checksums.load(key, version, page)
    }

    /// Whether effects have removed or renamed a file.
    pub(super) fn has_hidden(&self, key: Key) -> bool {
        self.hidden.lock().contains(&key)
    }

    fn open(&self, key: Key) -> io::Result<File> {
        if self.has_hidden(key) {
            return Err(ErrorKind::NotFound.into());
        }
        File::open(path_below(&self.files, key))
    }
}

impl Files {
    /// Opens a backing file that exists: for reading alone where it is one beneath.
    pub(super) fn open_existing(&self, key: Key) -> io::Result<File> {
        let own = OpenOptions::new().read(true).write(true).open(self.path_of(key.0, key.1));
        match (own, self.beneath()) {
            (Err(error), Some(beneath)) if error.kind() == ErrorKind::NotFound => beneath.open(key),
            (own, _) => own,
        }
    }

    /// Where a backing file is, whether it exists or not.
    pub(super) fn found_at(&self, key: Key) -> PathBuf {
        let own = self.path_of(key.0, key.1);
        match self.beneath() {
            Some(beneath) if !own.exists() && !beneath.has_hidden(key) => {
                path_below(&beneath.files, key)
            }
            Some(_) | None => own,
        }
    }

    /// A file is removed or renamed: one beneath does not show any more.
    pub(super) fn hide(&self, key: Key) {
        if let Some(beneath) = self.beneath() {
            beneath.hidden.lock().insert(key);
        }
    }

    /// Before an effect is carried out: what it changes, or would merge stages into, is copied from beneath.
    pub(super) fn bring_up(&self, effect: &FileEffect) -> Result<(), StoreError> {
        touched(effect).into_iter().flatten().try_for_each(|key| self.bring_up_file(key))
    }

    /// The same of one file.
    pub(super) fn bring_up_file(&self, key: Key) -> Result<(), StoreError> {
        let Some(beneath) = self.beneath() else { return Ok(()) };
        if self.path_of(key.0, key.1).exists() {
            return Ok(());
        }
        let from = match beneath.open(key) {
            Ok(from) => from,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(self.failed("open", key.0, key.1, source)),
        };
        let path = self.path_for(key)?;
        let copy = || {
            let len = from.metadata()?.len();
            let to = File::create_new(&path)?;
            to.set_len(len)?;
            copy_bytes(&from, ByteRange::at(0, len), &to, 0)?;
            copy_marks(&from, &to)
        };
        copy().map_err(StoreError::io("copy a backing file to", &path))?;
        self.close(key);
        Ok(())
    }

    /// Copies the bytes of a file of `size` bytes into an empty one, holes as holes, from wherever they are. Those that
    /// are missing become a hole; answers which these are.
    ///
    /// # Errors
    /// When one of the two cannot be read or written.
    pub fn copy_out(&self, key: Key, size: u64, to: &File) -> Result<Vec<ByteRange>, StoreError> {
        let failed = |source| self.failed("copy out", key.0, key.1, source);
        to.set_len(size).map_err(failed)?;
        let whole = ByteRange::at(0, size);
        if whole.is_empty() {
            return Ok(Vec::new());
        }
        let file = self.file(key.0, key.1)?;
        let missing = self.lacks(key, size)?;
        for (part, away) in self.parts(key, whole).unwrap_or_else(|| vec![(whole, None)]) {
            match away {
                None => {
                    if let Some(file) = &file {
                        copy_bytes(file, part, to, part.start).map_err(failed)?;
                    }
                }
                Some(Away::Staged { index, shift }) => {
                    let stage = self.stages().file(index)?.ok_or_else(|| self.lost_stage(index))?;
                    copy_bytes(&stage, part.moved(shift), to, part.start).map_err(failed)?;
                }
                // A hole.
                Some(Away::Missing { .. } | Away::Doubted { .. }) => {}
            }
        }
        Ok(missing)
    }

    /// Where people find a backing file.
    #[must_use]
    pub fn path_in_data(&self, key: Key) -> PathBuf {
        let dir = self.beneath().map_or(self.path(), Beneath::dir);
        path_below(dir, key)
    }

    /// How many bytes the backing file has; nothing where there is none.
    ///
    /// # Errors
    /// When the local file system cannot say.
    pub fn backing_len(&self, key: Key) -> Result<Option<u64>, StoreError> {
        match std::fs::metadata(self.found_at(key)) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed("stat", key.0, key.1, source)),
        }
    }
}

/// The files whose bytes an effect changes, or merges before it reads them.
fn touched(effect: &FileEffect) -> [Option<Key>; 2] {
    match effect {
        FileEffect::Write { ino, generation, .. }
        | FileEffect::Stage { ino, generation, .. }
        | FileEffect::Truncate { ino, generation, .. }
        | FileEffect::Allocate { ino, generation, .. }
        | FileEffect::Zero { ino, generation, .. } => [Some((*ino, *generation)), None],
        FileEffect::Renew { ino, generation, next } => {
            [Some((*ino, *generation)), Some((*ino, *next))]
        }
        FileEffect::Copy { source, source_generation, ino, generation, .. } => {
            [Some((*source, *source_generation)), Some((*ino, *generation))]
        }
        FileEffect::Remove { .. } | FileEffect::EndStages { .. } => [None, None],
    }
}

/// What a backing file says of itself beside its bytes.
fn copy_marks(from: &File, to: &File) -> io::Result<()> {
    let mut value = [0; 64];
    for mark in [merge::MARK, lent::MARK] {
        match fgetxattr(from, mark, &mut value[..]) {
            Ok(len) => fsetxattr(to, mark, &value[..len], XattrFlags::empty())?,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
