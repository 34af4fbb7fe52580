//! What a disk refuses of files' bytes: the ranges are missing here from then on, and fetched as everything that is.
//!
//! That holds for what is written and read, where it is known which bytes it was. A failed fsync does not say what it has
//! lost, and the next one would succeed: it stops the replica, whose next start believes the last image and the log.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use super::files::{Files, Key};
use super::layout::Away;
use super::layouts::Locked;
use super::room;
use crate::store::StoreError;
use crate::types::{ByteRange, LogIndex};

impl Files {
    /// After an attempt to write to a range: what the disk refused is missing from here on.
    pub(super) fn or_missing(
        &self,
        written: Result<(), StoreError>,
        layouts: &mut Locked<'_>,
        (key, range): (Key, ByteRange),
        version: LogIndex,
    ) -> Result<(), StoreError> {
        match written {
            Err(error) if error.is_refused() => {
                if error.is_full() {
                    self.room().is_gone();
                } else {
                    self.room().broke(key);
                    tracing::warn!(
                        start = range.start,
                        end = range.end,
                        "{error}: these bytes are fetched from a peer"
                    );
                }
                layouts.set(key, range, Away::Missing { version })?;
                // What of it was set aside nobody needs.
                self.layouts().retire(version, Some(key));
                Ok(())
            }
            written => written,
        }
    }

    /// Whether the backing file of a file that has a size is not there, though all of its bytes should be: whatever gives
    /// a file a size makes its backing file, or says where the bytes are.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn is_gone(&self, key: Key) -> Result<bool, StoreError> {
        let is_absent = || Ok::<_, StoreError>(self.file(key.0, key.1)?.is_none());
        // A stage may become the file between the first two looks.
        Ok(is_absent()? && self.is_whole(key, ByteRange::from(0)) && is_absent()?)
    }

    /// The parts of a file of `size` bytes that this disk does not have: what is missing, or all of a file that is
    /// [`Self::is_gone`].
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn lacks(&self, key: Key, size: u64) -> Result<Vec<ByteRange>, StoreError> {
        let whole = ByteRange::at(0, size);
        if size > 0 && self.is_gone(key)? {
            return Ok(vec![whole]);
        }
        Ok(self.missing(key, whole).into_iter().map(|(part, _)| part).collect())
    }

    /// Reads a part of a file that is staged; false where it is not any more.
    pub(super) fn read_staged(
        &self,
        (key, part): (Key, ByteRange),
        (index, shift): (LogIndex, u64),
        buffer: &mut [u8],
    ) -> Result<bool, StoreError> {
        let read = match self.stages().file(index)? {
            Some(stage) => stage.read_exact_at(buffer, part.moved(shift).start),
            None => Err(io::Error::from(ErrorKind::NotFound)),
        };
        match read {
            Ok(()) => Ok(true),
            Err(error) if is_lost(&error) => {
                self.give_up_staged(&mut self.layouts().lock(key.0), (key, part), index, &error)?;
                Ok(false)
            }
            Err(source) => Err(StoreError::io("read", &self.stages().written_path(index))(source)),
        }
    }

    pub(super) fn lost_stage(&self, index: LogIndex) -> StoreError {
        StoreError::Corrupt {
            path: self.stages().written_path(index),
            offset: None,
            what: "it is gone, and bytes of a file are only there".to_owned(),
            advice: crate::store::error::REJOIN,
        }
    }

    /// A chunk of a stage could not be copied to its file: what of it cannot be read is missing, the rest stays where it is,
    /// and is read there. False where nothing more is to be merged into that file for now.
    pub(super) fn not_merged(
        &self,
        layouts: &mut Locked<'_>,
        (key, chunk): (Key, ByteRange),
        (stage, index, shift): (&File, LogIndex, u64),
        why: &io::Error,
    ) -> Result<bool, StoreError> {
        let mut bytes = vec![0; usize::try_from(chunk.len()).expect("a chunk is small")];
        match stage.read_exact_at(&mut bytes, chunk.moved(shift).start) {
            Err(error) if is_lost(&error) => {
                self.give_up_staged(layouts, (key, chunk), index, &error)?;
                Ok(true)
            }
            read => {
                read.map_err(StoreError::io("read", &self.stages().written_path(index)))?;
                tracing::warn!(ino = key.0.0, start = chunk.start, "cannot merge a stage: {why}");
                self.room().broke(key);
                Ok(false)
            }
        }
    }

    /// A stage cannot be read, or is gone: what is still only there is missing.
    pub(super) fn give_up_staged(
        &self,
        layouts: &mut Locked<'_>,
        (key, part): (Key, ByteRange),
        index: LogIndex,
        why: &io::Error,
    ) -> Result<(), StoreError> {
        for (range, away) in layouts.parts(key, part) {
            // It may have been merged, and removed, before it was looked for.
            if matches!(away, Some(Away::Staged { index: of, .. }) if of == index) {
                let path = self.stages().written_path(index);
                tracing::warn!(
                    start = range.start,
                    end = range.end,
                    "cannot read {}: {why}: these bytes of inode {} are fetched from a peer",
                    path.display(),
                    key.0
                );
                layouts.set(key, range, Away::Missing { version: index })?;
            }
        }
        Ok(())
    }
}

/// Whether an error says that bytes are lost which were there.
pub(super) fn is_lost(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) || is_broken(error)
}

/// Whether a disk does not take bytes in.
pub(super) fn is_refused(error: &io::Error) -> bool {
    room::is_full(error) || is_broken(error)
}

/// Whether an error says that a place of the disk cannot be read or written, or that the local file system has found what
/// it knows of a file to be damaged.
#[must_use]
pub fn is_broken(error: &io::Error) -> bool {
    let broken = [libc::EIO, libc::EUCLEAN, libc::EBADMSG, libc::EILSEQ, libc::ENODATA];
    error.raw_os_error().is_some_and(|errno| broken.contains(&errno))
}
