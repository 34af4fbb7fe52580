//! Blocks of files as the disk has them, and what becomes of those that are not what they were.
//!
//! Whoever judges a block has to know of which version of the file it is. A file is *steady* between two looks at
//! it where no entry began to change it in between; what was found is believed, kept or condemned only then.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;

use super::checksums::PAGE_BLOCKS;
use super::files::{Files, Key};
use super::layout::Away;
use super::refused::is_broken;
use super::sys;
use crate::fs::limits::CHECKSUM_BLOCK;
use crate::store::StoreError;
use crate::types::{ByteRange, Ino, LogIndex};

/// `O_DIRECT` wants offsets, lengths and memory at multiples of what disks have for blocks: at most this.
const ALIGNED: usize = 4096;

/// A file at a moment at which its bytes here were those of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steady {
    /// The backing file.
    pub key: Key,
    /// The data_version.
    pub version: LogIndex,
    /// Its bytes.
    pub size: u64,
    /// The last entry that had changed it.
    change: LogIndex,
}

impl Steady {
    /// A file that nothing has changed yet, for tests.
    #[cfg(test)]
    pub(crate) fn of(key: Key, version: LogIndex, size: u64) -> Self {
        Self { key, version, size, change: LogIndex(0) }
    }

    /// How many blocks it has.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(CHECKSUM_BLOCK)
    }

    /// The bytes of a block.
    #[must_use]
    pub fn block(&self, number: u64) -> ByteRange {
        let range = ByteRange::at(number * CHECKSUM_BLOCK, CHECKSUM_BLOCK);
        ByteRange { end: range.end.min(self.size), ..range }
    }

    /// The blocks whose checksums are in a page.
    #[must_use]
    pub fn page(&self, page: u64) -> Range<u64> {
        page * PAGE_BLOCKS..self.blocks().min((page + 1) * PAGE_BLOCKS)
    }
}

/// The blocks that a range touches.
#[must_use]
pub fn blocks_of(range: ByteRange) -> Range<u64> {
    range.start / CHECKSUM_BLOCK..range.end.div_ceil(CHECKSUM_BLOCK)
}

/// The blocks of which a range has some bytes, and not all that the file has.
#[must_use]
pub fn parted(file: &Steady, range: ByteRange) -> Vec<u64> {
    let all = blocks_of(range);
    let is_parted = |block: &u64| {
        let whole = file.block(*block);
        range.start > whole.start || range.end < whole.end
    };
    let ends = [all.start, all.end.saturating_sub(1)];
    let mut parted: Vec<_> =
        ends.into_iter().filter(|block| *block < file.blocks() && is_parted(block)).collect();
    parted.dedup();
    parted
}

impl Files {
    /// A file that has this version and size in the state at `applied`; nothing where a later entry is at work on
    /// it already.
    #[must_use]
    pub fn steady(
        &self,
        key: Key,
        version: LogIndex,
        size: u64,
        applied: LogIndex,
    ) -> Option<Steady> {
        let change = self.checksums().last_change(key.0);
        (change <= applied).then_some(Steady { key, version, size, change })
    }

    /// Whether no entry has begun to change the file since: what was read in between is of its version.
    #[must_use]
    pub fn is_still(&self, file: &Steady) -> bool {
        self.checksums().last_change(file.key.0) == file.change
    }

    /// Whether nothing of a range is staged or missing. Waits for no disk.
    #[must_use]
    pub fn is_whole(&self, key: Key, range: ByteRange) -> bool {
        self.parts(key, range).is_none()
    }

    /// What the blocks of a page should be, where that is known.
    #[must_use]
    pub fn checksums_of(&self, file: &Steady, page: u64) -> Option<Vec<u32>> {
        let own = self.checksums().load(file.key, file.version, page);
        let sums = own.or_else(|| self.beneath()?.checksums(file.key, file.version, page));
        let blocks = file.page(page);
        sums.filter(|sums| sums.len() as u64 == blocks.end.saturating_sub(blocks.start))
    }

    /// Keeps what all the blocks of a page are, where the file is still that.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn keep_checksums(&self, file: &Steady, page: u64, sums: &[u32]) -> Result<(), StoreError> {
        if !self.is_still(file) {
            return Ok(());
        }
        self.checksums().keep(file.key, file.version, page, sums)?;
        // It may have been removed meanwhile, and nobody would remove these.
        if self.is_still(file) { Ok(()) } else { self.checksums().forget(file.key) }
    }

    /// What is known of a file's blocks was found to be wrong.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn forget_checksums(&self, key: Key) -> Result<(), StoreError> {
        self.checksums().forget(key)
    }

    /// Deletes checksums that belong to no file any more.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn forget_stray_checksums(&self) -> Result<(), StoreError> {
        self.checksums().forget_gone(|(ino, generation)| self.path_of(ino, generation).exists())
    }

    /// Some files that have changed, and not for so long; each once after each change.
    #[must_use]
    pub fn take_quiet(&self, quiet: Duration, limit: usize) -> Vec<Ino> {
        self.checksums().take_quiet(quiet, limit)
    }

    /// Whether a file has changed lately and has not been named by [`Self::take_quiet`].
    #[must_use]
    pub fn has_changed(&self, ino: Ino) -> bool {
        self.checksums().has_changed(ino)
    }

    /// The blocks that lie wholly within bytes from `offset` on of a file, and are not what they should be.
    #[must_use]
    pub fn rotten(&self, file: &Steady, offset: u64, data: &[u8]) -> Vec<u64> {
        let given = ByteRange::at(offset, data.len() as u64);
        let mut page: Option<(u64, Option<Vec<u32>>)> = None;
        let mut rotten = Vec::new();
        for block in blocks_of(given) {
            let range = file.block(block);
            if range.start < given.start || range.end > given.end {
                continue;
            }
            let number = block / PAGE_BLOCKS;
            if page.as_ref().is_none_or(|(known, _)| *known != number) {
                page = Some((number, self.checksums_of(file, number)));
            }
            let Some((_, Some(sums))) = &page else { continue };
            let bytes = &data[index(range.start - offset)..index(range.end - offset)];
            if sums[index(block % PAGE_BLOCKS)] != crc32c::crc32c(bytes) {
                rotten.push(block);
            }
        }
        rotten
    }

    /// The blocks that bytes from `offset` on of a file complete, all else of them being here, and that are not what they should
    /// be then: either what is here or what has come is wrong.
    ///
    /// # Errors
    /// When the local file system has trouble, but what it cannot read.
    pub fn misfits(&self, file: &Steady, offset: u64, data: &[u8]) -> Result<Vec<u64>, StoreError> {
        let given = ByteRange::at(offset, data.len() as u64);
        let mut misfits = Vec::new();
        for block in parted(file, given) {
            let sums = self.checksums_of(file, block / PAGE_BLOCKS);
            let Some(sum) = sums.map(|sums| sums[index(block % PAGE_BLOCKS)]) else { continue };
            let completed = self.completed(file.key, file.block(block), (given, data))?;
            if completed.is_some_and(|completed| completed != sum) {
                misfits.push(block);
            }
        }
        Ok(misfits)
    }

    /// The CRC-32C of a range with bytes that have come where some are missing; nothing where that is not all that is missing.
    fn completed(
        &self,
        key: Key,
        range: ByteRange,
        (given, data): (ByteRange, &[u8]),
    ) -> Result<Option<u32>, StoreError> {
        let missing = self.missing(key, range);
        let comes = |part: &ByteRange| given.start <= part.start && part.end <= given.end;
        if missing.is_empty() || !missing.iter().all(|(part, _)| comes(part)) {
            return Ok(None);
        }
        let mut bytes = vec![0; index(range.len())];
        let at = |part: ByteRange, from: u64| index(part.start - from)..index(part.end - from);
        let mut read_from = range.start;
        let gaps = missing.iter().map(|(part, _)| *part).chain([ByteRange::at(range.end, 0)]);
        for gap in gaps {
            let here = ByteRange { start: read_from, end: gap.start };
            match self.read(key.0, key.1, here.start, &mut bytes[at(here, range.start)]) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(StoreError::Io { source, .. }) if is_broken(&source) => return Ok(None),
                Err(error) => return Err(error),
            }
            if !gap.is_empty() {
                bytes[at(gap, range.start)].copy_from_slice(&data[at(gap, given.start)]);
            }
            read_from = gap.end;
        }
        Ok(Some(crc32c::crc32c(&bytes)))
    }

    /// Blocks of a file are not what its version says: they are missing from now on, where the file is still of
    /// that version; false where it is not.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn condemn(&self, file: &Steady, blocks: &[u64]) -> Result<bool, StoreError> {
        let mut layouts = self.layouts().lock(file.key.0);
        // Whatever changes the file says so before it waits for this lock.
        if !self.is_still(file) {
            return Ok(false);
        }
        for block in blocks {
            for (part, away) in layouts.parts(file.key, file.block(*block)) {
                if away.is_none() {
                    layouts.set(file.key, part, Away::Missing { version: file.version })?;
                }
            }
        }
        Ok(true)
    }

    /// Blocks of a range are missing, though the backing file may have them: those that its checksums prove are in place
    /// from now on. False where there are none.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn find_here(&self, file: &Steady, range: ByteRange) -> Result<bool, StoreError> {
        let mut reader = self.read_blocks(file);
        let mut found = false;
        for block in blocks_of(ByteRange { end: range.end.min(file.size), ..range }) {
            let all = file.block(block);
            let known = self.checksums_of(file, block / PAGE_BLOCKS);
            let known = known.map(|sums| sums[index(block % PAGE_BLOCKS)]);
            if known.is_none() || self.missing(file.key, all).is_empty() {
                continue;
            }
            let is_it = reader.sum(block)? == known;
            let mut layouts = self.layouts().lock(file.key.0);
            // Whatever changes the file says so before it waits for this lock.
            if !is_it || !self.is_still(file) {
                continue;
            }
            for (part, away) in layouts.parts(file.key, all) {
                if away.and_then(Away::missing).is_some() {
                    layouts.clear(file.key, part)?;
                    found = true;
                }
            }
        }
        Ok(found)
    }

    /// Reads blocks of a file as the disk has them.
    #[must_use]
    pub fn read_blocks(&self, file: &Steady) -> BlockReader<'_> {
        let buffer = vec![0; index(CHECKSUM_BLOCK) + ALIGNED];
        BlockReader {
            files: self,
            file: *file,
            opened: None,
            is_broken: false,
            direct: true,
            buffer,
        }
    }
}

/// See [`Files::read_blocks`]. Of what it reads, nothing stays in memory that was not there before: where the file
/// system can, it goes past the kernel's pages, which would hide what the disk has.
#[derive(Debug)]
pub struct BlockReader<'a> {
    files: &'a Files,
    file: Steady,
    /// None as long as there is no file: all zeros.
    opened: Option<File>,
    /// The local file system has damaged what it knows of the file: no block can be read.
    is_broken: bool,
    direct: bool,
    buffer: Vec<u8>,
}

impl BlockReader<'_> {
    /// The CRC-32C of a block, of which nothing may be staged or missing; nothing where the disk cannot read it.
    ///
    /// # Errors
    /// When the local file system has other trouble.
    pub fn sum(&mut self, block: u64) -> Result<Option<u32>, StoreError> {
        self.open()?;
        if self.is_broken {
            return Ok(None);
        }
        let range = self.file.block(block);
        let start = self.buffer.as_ptr().align_offset(ALIGNED);
        let bytes = &mut self.buffer[start..start + index(CHECKSUM_BLOCK)];
        let read = match &self.opened {
            Some(file) if is_data(file, range) => read(file, range, bytes, &mut self.direct),
            Some(_) | None => Ok(0),
        };
        match read {
            Ok(len) => {
                let bytes = &mut bytes[..index(range.len())];
                let len = len.min(bytes.len());
                bytes[len..].fill(0);
                Ok(Some(crc32c::crc32c(bytes)))
            }
            Err(error) if is_broken(&error) => Ok(None),
            Err(source) => {
                let (ino, generation) = self.file.key;
                Err(self.files.failed("read", ino, generation, source))
            }
        }
    }
}

impl BlockReader<'_> {
    /// Not one of the descriptors that programs' reads use: those would be closed for this. A stage may have become
    /// the file since the last block.
    fn open(&mut self) -> Result<(), StoreError> {
        if self.opened.is_some() || self.is_broken {
            return Ok(());
        }
        let path = self.files.found_at(self.file.key);
        let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(&path);
        let opened = match open(libc::O_DIRECT) {
            // This file system has no such thing.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.direct = false;
                open(0)
            }
            opened => opened,
        };
        match opened {
            Ok(file) => self.opened = Some(file),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if is_broken(&error) => self.is_broken = true,
            Err(source) => return Err(StoreError::io("open", &path)(source)),
        }
        Ok(())
    }
}

/// False where a range is a hole, or lies behind the end of the file. Reading a hole takes time and memory.
fn is_data(file: &File, range: ByteRange) -> bool {
    match seek(file, SeekFrom::Data(range.start)) {
        Ok(data) => data < range.end,
        Err(error) => error != Errno::NXIO,
    }
}

fn read(file: &File, range: ByteRange, bytes: &mut [u8], direct: &mut bool) -> io::Result<usize> {
    if *direct {
        match read_up_to(file, range.start, bytes) {
            // This file system wants something else.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                rustix::fs::fcntl_setfl(file, rustix::fs::OFlags::empty())?;
                *direct = false;
            }
            other => return other,
        }
    }
    let bytes = &mut bytes[..index(range.len())];
    if sys::read_nowait(file, range.start, bytes).is_ok_and(|len| len == bytes.len()) {
        return Ok(bytes.len());
    }
    let len = read_up_to(file, range.start, bytes)?;
    // Memory is the programs'. It is only advice.
    let _ = fadvise(file, range.start, std::num::NonZeroU64::new(range.len()), Advice::DontNeed);
    Ok(len)
}

/// Fills `bytes`, up to the end of the file.
fn read_up_to(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    // What is no whole block of the disk is the end.
    while done < bytes.len() && done.is_multiple_of(ALIGNED) {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(more) => done += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn index(within: u64) -> usize {
    usize::try_from(within).expect("within a buffer")
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
