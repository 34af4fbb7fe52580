//! Space of backing files: reserving it, giving it back, telling bytes from holes, copying from file to
//! file so that holes stay holes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rangemap::RangeSet;
use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;

use super::files::{Files, Key};
use super::layout::Away;
use super::sys;
use crate::store::StoreError;
use crate::types::{ByteRange, LogIndex};

/// What is copied at once where the kernel does not copy by itself.
const BUFFER: u64 = 1 << 20;

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that was written.
    Data,
    /// The next byte that was not; there is one behind the last of a file.
    Hole,
}

impl Files {
    /// The next data or hole from `offset` on, in a file of `size` bytes, of which `offset` is one; no data
    /// where only a hole follows.
    ///
    /// # Errors
    /// When the local file system cannot say.
    pub fn seek(
        &self,
        key: Key,
        what: Seek,
        offset: u64,
        size: u64,
    ) -> Result<Option<u64>, StoreError> {
        let range = ByteRange { start: offset, end: size };
        // What is staged or missing was written: it is data, wherever it is.
        let parts = self.parts(key, range).unwrap_or_else(|| vec![(range, None)]);
        let file = self.file(key.0, key.1)?;
        for (part, away) in parts {
            let found = match (&file, away, what) {
                (_, Some(_), Seek::Data) | (None, None, Seek::Hole) => Ok(part.start),
                (_, Some(_), Seek::Hole) | (None, None, Seek::Data) => continue,
                (Some(file), None, Seek::Data) => next_data(file, part),
                (Some(file), None, Seek::Hole) => next_hole(file, part),
            };
            let found =
                found.map_err(|source| self.failed("find the holes of", key.0, key.1, source))?;
            if found < part.end {
                return Ok(Some(found));
            }
        }
        // There is a hole behind the last byte.
        Ok((what == Seek::Hole).then_some(size))
    }

    /// How many bytes of a range have space already, so that writing them needs none.
    ///
    /// # Errors
    /// When the local file system cannot say.
    pub fn mapped(&self, key: Key, range: ByteRange) -> Result<u64, StoreError> {
        let Some(file) = self.file(key.0, key.1)? else { return Ok(0) };
        match sys::mapped_bytes(&file, range) {
            Ok(mapped) => Ok(mapped),
            // One that has no extents.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(0),
            Err(source) => Err(self.failed("find the extents of", key.0, key.1, source)),
        }
    }

    /// Reserves space for a range. Where this file system cannot, or is full, the file goes without: its
    /// bytes are zeros in any case, and whoever asked made sure that a quorum has the space.
    pub(super) fn reserve(&self, key: Key, range: ByteRange) -> Result<(), StoreError> {
        let file = self.file_or_new(key.0, key.1)?;
        let needed = range.len() - self.mapped(key, range)?.min(range.len());
        let space = self.statvfs()?;
        // The kernel would take all that is left and fail then.
        if needed > space.f_bavail * space.f_frsize {
            tracing::warn!(ino = %key.0, needed, "there is no space here that could be reserved");
            return Ok(());
        }
        match fallocate(&*file, FallocateFlags::KEEP_SIZE, range.start, range.len()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => {
                tracing::warn!(ino = %key.0, %error, "space of a file could not be reserved here");
                Ok(())
            }
            Err(error) => Err(self.failed("reserve space for", key.0, key.1, error.into())),
        }
    }

    /// Makes a range zeros; a file that does not exist has nothing else.
    pub(super) fn zero(
        &self,
        key: Key,
        range: ByteRange,
        reserved: bool,
    ) -> Result<(), StoreError> {
        if reserved {
            let file = self.file_or_new(key.0, key.1)?;
            let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            if fallocate(&*file, flags, range.start, range.len()).is_ok() {
                return Ok(());
            }
        }
        let Some(file) = self.file(key.0, key.1)? else { return Ok(()) };
        punch(&file, range).map_err(|source| self.failed("punch", key.0, key.1, source))?;
        if reserved { self.reserve(key, range) } else { Ok(()) }
    }

    /// Copies a range of one file to `offset` of another, with the bytes that it had at `index`.
    pub(super) fn copy(
        &self,
        index: LogIndex,
        source: Key,
        range: ByteRange,
        target: Key,
        offset: u64,
    ) -> Result<(), StoreError> {
        self.merge(source, range)?;
        let saved = self.pins().stage(index, range.len())?;
        if saved.is_none() {
            self.pins().pin(index, source, range)?;
        }
        // What is staged here still, for want of room, cannot be copied either.
        let away = self.parts(source, range).into_iter().flatten();
        let away = away.filter(|(_, away)| away.is_some()).map(|(part, _)| part);
        let lacking = saved.as_ref().and_then(|saved| saved.lacking);
        let lacking = lacking.map(|part| part.moved(range.start));
        let missing: Vec<_> = away.chain(lacking).collect();
        // Until it is done, nobody merges what was written before.
        let mut layouts = self.layouts().lock(target.0);
        let (by, to) = (offset.wrapping_sub(range.start), ByteRange::at(offset, range.len()));
        if !self.has_room_for_acknowledged(target, to)? {
            // No stage becomes the file: a replay may have room.
            self.file_or_new(target.0, target.1)?;
            return layouts.set(target, to, Away::Missing { version: index });
        }
        let aside = self.would_bare(&layouts, target, offset)?;
        let file = if aside {
            // Nothing else is in it; it is whole also where the copy ends in a hole.
            let stage = self.aside(index)?;
            let longer = stage.set_len(to.end);
            longer
                .map_err(|source| self.failed("extend a stage of", target.0, target.1, source))?;
            Arc::new(stage)
        } else {
            self.file_or_new(target.0, target.1)?
        };
        let copied = match (saved, self.file(source.0, source.1)?) {
            (Some(saved), _) => {
                copy_bytes(&saved.bytes, ByteRange::at(0, range.len()), &file, offset)
            }
            (None, Some(from)) => copy_bytes(&from, range, &file, offset),
            (None, None) => punch(&file, to),
        };
        let copied = copied.map_err(|source| self.failed("copy to", target.0, target.1, source));
        let is_whole = copied.is_ok();
        let lacking: RangeSet<u64> =
            missing.iter().map(|part| part.moved(by)).map(|part| part.start..part.end).collect();
        let written = copied.and_then(|()| {
            // First: at no moment is any of it in place.
            for Range { start, end } in lacking.iter().cloned() {
                layouts.set(target, ByteRange { start, end }, Away::Missing { version: index })?;
            }
            lacking.gaps(&(to.start..to.end)).try_for_each(|Range { start, end }| {
                let part = ByteRange { start, end };
                if aside {
                    layouts.set(target, part, Away::Staged { index, shift: 0 })
                } else {
                    layouts.clear(target, part)
                }
            })
        });
        self.or_missing(written, &mut layouts, (target, to), index)?;
        if !is_whole && !aside && !self.lent().has(target.0) {
            // What came of it takes room. Whether it can be given back or not, it is not believed. (Whoever reads the file
            // by himself would take the hole for zeros.)
            let _ = punch(&file, to);
        }
        Ok(())
    }
}

/// Copies bytes; what is a hole in `from`, or lies behind its end, becomes one in `to`.
pub(super) fn copy_bytes(from: &File, range: ByteRange, to: &File, offset: u64) -> io::Result<()> {
    let moved = |at: u64| at - range.start + offset;
    let mut at = range.start;
    while at < range.end {
        let data = next_data(from, ByteRange { start: at, ..range })?;
        if data > at {
            punch(to, ByteRange { start: moved(at), end: moved(data) })?;
        }
        at = data;
        if data < range.end {
            let end = next_hole(from, ByteRange { start: data, ..range })?;
            copy_data(from, ByteRange { start: data, end }, to, moved(data))?;
            at = end;
        }
    }
    Ok(())
}

/// The first byte of data in a range; its end where there is none.
fn next_data(file: &File, range: ByteRange) -> io::Result<u64> {
    match seek(file, SeekFrom::Data(range.start)) {
        Ok(data) => Ok(data.min(range.end)),
        Err(Errno::NXIO) => Ok(range.end),
        Err(error) => Err(error.into()),
    }
}

/// The first byte of a hole in a range; its end where there is none.
fn next_hole(file: &File, range: ByteRange) -> io::Result<u64> {
    match seek(file, SeekFrom::Hole(range.start)) {
        Ok(hole) => Ok(hole.min(range.end)),
        // Behind the end of the file.
        Err(Errno::NXIO) => Ok(range.start),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn copy_data(from: &File, range: ByteRange, to: &File, offset: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (range.start, offset);
    while read_at < range.end {
        let left = usize::try_from(range.end - read_at).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), left) {
            // It has become shorter: the caller is the only one that changes it.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                return copy_through_memory(
                    from,
                    ByteRange { start: read_at, ..range },
                    to,
                    write_at,
                );
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_through_memory(from: &File, range: ByteRange, to: &File, offset: u64) -> io::Result<()> {
    let mut buffer = vec![0; length(range.len().min(BUFFER))];
    let mut at = range.start;
    while at < range.end {
        let part = &mut buffer[..length((range.end - at).min(BUFFER))];
        from.read_exact_at(part, at)?;
        to.write_all_at(part, at - range.start + offset)?;
        at += part.len() as u64;
    }
    Ok(())
}

/// Makes a range a hole, or zeros where this file system has no holes. The file's size stays.
fn punch(file: &File, range: ByteRange) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, range.start, range.len()) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP) => write_zeros(file, range),
        Err(error) => Err(error.into()),
    }
}

fn write_zeros(file: &File, range: ByteRange) -> io::Result<()> {
    let end = range.end.min(file.metadata()?.len());
    let zeros = vec![0; length(end.saturating_sub(range.start).min(BUFFER))];
    let mut at = range.start;
    while at < end {
        let part = &zeros[..length((end - at).min(BUFFER))];
        file.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    Ok(())
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).expect("at most a buffer's length")
}

#[cfg(test)]
#[path = "space_tests.rs"]
pub(super) mod tests;
