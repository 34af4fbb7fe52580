//! Backing files that a kernel reads by itself: FUSE passthrough (DESIGN, section 5).
//!
//! While a file is lent it stays the same file, also where the life of its bytes ends, and it is never extended
//! past bytes that are missing: whoever reads it would take the hole for zeros. What would do so is set aside,
//! as a stage, until they have come.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};

use super::files::{Files, Key};
use super::layout::Away;
use super::layouts::Locked;
use crate::store::StoreError;
use crate::types::{ByteRange, Generation, Ino, LogIndex};

/// Marks a file that was lent once: somebody may have it mapped.
pub(super) const MARK: &str = "user.quorumfs.lent";

/// Whether somebody may have a mapping of a file, from when it was lent.
pub(super) fn was_lent(file: &File) -> bool {
    fgetxattr(file, MARK, &mut [0_u8; 1]).is_ok()
}

/// What comes of lending a file without waiting.
#[derive(Debug)]
pub enum Lending {
    /// It is lent, until [`Files::take_back`].
    Lent(Arc<File>),
    /// Not all of it is in place.
    NotWhole,
    /// A disk, or whoever waits for one, would have to be waited for: [`Files::lend`] does.
    Waits,
}

/// How often each inode's file is lent.
#[derive(Debug, Default)]
pub(super) struct Lent(Mutex<HashMap<Ino, usize>>);

impl Lent {
    pub(super) fn has(&self, ino: Ino) -> bool {
        self.0.lock().contains_key(&ino)
    }
}

impl Files {
    /// Lends the backing file of a file of `size` bytes, until [`Self::take_back`]. Nothing where not all of it is
    /// in place. Waits for the disk.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn lend(&self, key: Key, size: u64) -> Result<Option<Arc<File>>, StoreError> {
        if !self.is_whole(key, ByteRange::from(0)) {
            return Ok(None);
        }
        let Some(file) = self.file(key.0, key.1)? else { return Ok(None) };
        // Before anybody has to wait for this: it is a write, which a disk may take its time for.
        if !was_lent(&file) && fsetxattr(&*file, MARK, b"1", XattrFlags::empty()).is_err() {
            // Without it nobody would know of a mapping that outlives this.
            return Ok(None);
        }
        drop(file);
        let layouts = self.layouts().lock(key.0);
        // It may have gone meanwhile, or become another file.
        match self.file(key.0, key.1)? {
            Some(file) if was_lent(&file) => self.lend_marked(&layouts, key, size, &file),
            Some(_) | None => Ok(None),
        }
    }

    /// The same where nothing has to be waited for: of a file that was lent before.
    pub fn lend_nowait(&self, key: Key, size: u64) -> Lending {
        let Some(layouts) = self.layouts().try_lock(key.0) else { return Lending::Waits };
        if layouts.get(key).is_some() {
            return Lending::NotWhole;
        }
        match self.file_nowait(key.0, key.1) {
            Ok(file) if was_lent(&file) => {
                match self.lend_marked(&layouts, key, size, &file) {
                    Ok(Some(file)) => Lending::Lent(file),
                    Ok(None) => Lending::NotWhole,
                    // Who waits says why.
                    Err(_) => Lending::Waits,
                }
            }
            Ok(_) | Err(_) => Lending::Waits,
        }
    }

    /// Whatever changes the file from here on finds it lent.
    fn lend_marked(
        &self,
        layouts: &Locked<'_>,
        key: Key,
        size: u64,
        file: &Arc<File>,
    ) -> Result<Option<Arc<File>>, StoreError> {
        let found = file.metadata().map_err(|source| self.failed("stat", key.0, key.1, source))?;
        if layouts.get(key).is_some() || found.len() != size || found.nlink() == 0 {
            return Ok(None);
        }
        *self.lent().0.lock().entry(key.0).or_default() += 1;
        Ok(Some(file.clone()))
    }

    /// Ends what [`Self::lend`] began.
    pub fn take_back(&self, ino: Ino) {
        let mut lent = self.lent().0.lock();
        if let Some(count) = lent.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                lent.remove(&ino);
            }
        }
    }

    /// Some file on the file system of the backing files, by which the kernel can be asked whether it takes them.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn sample(&self) -> Result<File, StoreError> {
        self.layouts().sample()
    }

    /// Merges all that is staged of a file.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn merge_all(&self, key: Key) -> Result<(), StoreError> {
        self.merge(key, ByteRange::from(0))
    }

    /// A life of a file's bytes ends, and `next` begins, empty.
    pub(super) fn renew(&self, key: Key, next: Generation) -> Result<(), StoreError> {
        self.save_pinned(key, ByteRange::from(0))?;
        // Nobody lends it meanwhile.
        let mut layouts = self.layouts().lock(key.0);
        let file = self.file(key.0, key.1)?;
        let is_lent = self.lent().has(key.0) || file.as_deref().is_some_and(was_lent);
        if !is_lent {
            drop(file);
            return self.discard_locked(&mut layouts, key);
        }
        layouts.forget(key)?;
        if let Some(file) = file {
            let emptied = file.set_len(0);
            emptied.map_err(|source| self.failed("truncate", key.0, key.1, source))?;
            self.rename(key, next)?;
        }
        Ok(())
    }

    /// Whether bytes at `start` would extend a lent file past bytes that are missing.
    pub(super) fn would_bare(
        &self,
        layouts: &Locked<'_>,
        key: Key,
        start: u64,
    ) -> Result<bool, StoreError> {
        if layouts.get(key).is_none() || !self.lent().has(key.0) {
            return Ok(false);
        }
        let len = match self.file(key.0, key.1)? {
            Some(file) => {
                let found = file.metadata();
                found.map_err(|source| self.failed("stat", key.0, key.1, source))?.len()
            }
            None => 0,
        };
        let between = ByteRange { start: len.min(start), end: start };
        let parts = layouts.parts(key, between);
        Ok(parts.iter().any(|(_, away)| away.is_some()))
    }

    /// Bytes that the entry at `index` writes wait in a stage.
    pub(super) fn set_aside(
        &self,
        layouts: &mut Locked<'_>,
        index: LogIndex,
        key: Key,
        (offset, data): (u64, &[u8]),
    ) -> Result<(), StoreError> {
        let stage = self.aside(index)?;
        stage
            .write_all_at(data, offset)
            .map_err(StoreError::io("write", &self.stages().written_path(index)))?;
        let range = ByteRange::at(offset, data.len() as u64);
        layouts.set(key, range, Away::Staged { index, shift: 0 })
    }

    /// The stage that holds what is set aside for the entry at `index`.
    pub(super) fn aside(&self, index: LogIndex) -> Result<File, StoreError> {
        let path = self.stages().written_path(index);
        let stage =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        stage.map_err(StoreError::io("create", &path))
    }
}

#[cfg(test)]
#[path = "lent_tests.rs"]
mod tests;
