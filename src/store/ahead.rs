//! Bytes that are asked of the disk before somebody reads them.

use super::files::Files;
use super::sys;
use crate::types::{Generation, Ino};

impl Files {
    /// Has the kernel begin to read the first `len` bytes of a backing file, where it can be opened without waiting
    /// for a disk: false where it cannot. What goes wrong here shows when they are read.
    #[must_use]
    pub fn begin_to_read(&self, ino: Ino, generation: Generation, len: u64) -> bool {
        self.file_nowait(ino, generation).is_ok_and(|file| {
            sys::will_need(&file, len);
            true
        })
    }

    /// The same, and opens it although that waits for the disk.
    pub fn open_and_begin_to_read(&self, ino: Ino, generation: Generation, len: u64) {
        if let Ok(Some(file)) = self.file(ino, generation) {
            sys::will_need(&file, len);
        }
    }
}
