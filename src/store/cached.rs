//! Reads of what is in memory already: no disk, and no lock, is waited for.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use super::files::Files;
use super::refused::is_broken;
use super::sys;
use crate::store::StoreError;
use crate::types::{ByteRange, Generation, Ino};

impl Files {
    /// As [`Self::read`] where it needs no waiting for a disk (`RWF_NOWAIT`): false, and `buffer` undefined,
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
        if !self.is_whole((ino, generation), ByteRange::at(offset, buffer.len() as u64)) {
            return Ok(false);
        }
        // Not there, not in memory, or not to be found out without waiting: `read` will say.
        let Ok(file) = self.file_nowait(ino, generation) else { return Ok(false) };
        let mut done = 0;
        while done < buffer.len() {
            match sys::read_nowait(&file, offset + done as u64, &mut buffer[done..]) {
                Ok(0) => break,
                Ok(more) => done += more,
                // What the disk cannot read `read` will say.
                Err(error) if is_broken(&error) => return Ok(false),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) => return Ok(false),
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

    /// The backing file where neither a lock nor a disk has to be waited for.
    pub(super) fn file_nowait(&self, ino: Ino, generation: Generation) -> io::Result<Arc<File>> {
        let mut open = self.shard(ino).try_lock().ok_or(ErrorKind::WouldBlock)?;
        if let Some(file) = open.get(&(ino, generation)) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(sys::open_nowait(&self.path_of(ino, generation))?);
        open.insert((ino, generation), Arc::clone(&file));
        Ok(file)
    }
}
