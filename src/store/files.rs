//! Backing files: one for each generation of a regular file, with the file's own offsets.

use crate::fs::FileEffect;
use crate::store::StoreError;
use crate::types::{Generation, Ino};

/// The backing files of this replica, `files/<hh>/<ino>.<gen>`, behind a bounded cache of descriptors.
#[derive(Debug)]
pub struct Files(());

impl Files {
    /// Carries out one effect of an applied command. Buffered by the kernel: durable only after
    /// [`Self::sync`].
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn carry_out(&self, _effect: &FileEffect) -> Result<(), StoreError> {
        unimplemented!()
    }

    /// Fills `buffer` from `offset` on; what lies beyond the backing file's end, or in a file that does
    /// not exist, is zeros (the caller has cut the request to the file's size).
    ///
    /// # Errors
    /// When the local file system cannot read.
    pub fn read(
        &self,
        _ino: Ino,
        _generation: Generation,
        _offset: u64,
        _buffer: &mut [u8],
    ) -> Result<(), StoreError> {
        unimplemented!()
    }

    /// The same where it needs no waiting for a disk (`RWF_NOWAIT`): false, and `buffer` undefined,
    /// where it would.
    ///
    /// # Errors
    /// When the local file system cannot read.
    pub fn read_cached(
        &self,
        _ino: Ino,
        _generation: Generation,
        _offset: u64,
        _buffer: &mut [u8],
    ) -> Result<bool, StoreError> {
        unimplemented!()
    }

    /// 512-byte blocks that a file occupies here; 0 where it does not exist.
    ///
    /// # Errors
    /// When the local file system cannot say.
    pub fn blocks(&self, _ino: Ino, _generation: Generation) -> Result<u64, StoreError> {
        unimplemented!()
    }

    /// Space and inodes of the file system that holds the backing files.
    ///
    /// # Errors
    /// When the local file system cannot say.
    pub fn statvfs(&self) -> Result<libc::statvfs, StoreError> {
        unimplemented!()
    }

    /// Makes everything carried out so far durable (`syncfs(2)`).
    ///
    /// # Errors
    /// When bytes could not be written; some are lost then.
    pub fn sync(&self) -> Result<(), StoreError> {
        unimplemented!()
    }
}
