//! The thread that makes checksums of files that have become quiet.
//!
//! It comes after everybody else: it reads where the disk is idle, no faster than it is let, and past the kernel's
//! pages. What changed lately it is told; the rest it walks through slowly, because an earlier process may have
//! ended, or too much have changed at once.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::blocks::Look;
use super::handle::Handle;
use crate::fs::{proto, query};
use crate::store::{PAGE_BLOCKS, Steady, StoreError, run_idly};
use crate::types::{ByteRange, Ino};

/// How long a file has not changed when its checksums are made.
const QUIET: Duration = Duration::from_secs(10);
/// How often it is looked whether there are such files.
const EVERY: Duration = Duration::from_secs(1);
/// So many of those that changed are looked at in a round.
const CHANGED: usize = 4096;
/// So many of all inodes are: a million in two hours.
const WALKED: usize = 128;
/// Rounds between two walks.
const REST: u32 = 3600;
/// Blocks that are read between two pauses, and how long these are: at most 100 MiB/s.
const AT_ONCE: u64 = 8;
const PAUSE: Duration = Duration::from_millis(10);

/// Why it stops.
enum Stop {
    /// The node does.
    Ended,
    Failed(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

struct Maker<'a> {
    handle: &'a Handle,
    ended: &'a Receiver<()>,
    /// How far the walk is.
    after: Ino,
    /// Rounds until it begins anew.
    rest: u32,
    /// Blocks that were read.
    read: u64,
}

/// Runs until whoever holds the other end of `ended` has ended.
pub(super) fn run(handle: &Handle, ended: &Receiver<()>) {
    run_idly();
    let mut maker = Maker { handle, ended, after: Ino(0), rest: 0, read: 0 };
    loop {
        match maker.pause(EVERY).and_then(|()| maker.round()) {
            Ok(()) => {}
            Err(Stop::Ended) => return,
            // Bytes are read and written without them.
            Err(Stop::Failed(error)) => tracing::warn!(%error, "no checksums of files for now"),
        }
    }
}

impl Maker<'_> {
    fn pause(&self, pause: Duration) -> Result<(), Stop> {
        match self.ended.recv_timeout(pause) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(Stop::Ended),
        }
    }

    fn round(&mut self) -> Result<(), Stop> {
        for ino in self.handle.files().take_quiet(QUIET, CHANGED) {
            self.file(ino)?;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return Ok(());
        }
        let page = query::inodes(&self.handle.state(), self.after, WALKED)?;
        let Some((last, _)) = page.last() else {
            self.handle.files().forget_stray_checksums()?;
            (self.after, self.rest) = (Ino(0), REST);
            return Ok(());
        };
        self.after = *last;
        for (ino, inode) in page {
            let is_file = inode.kind() == proto::Kind::Regular && inode.size > 0;
            if is_file && !self.handle.files().has_changed(ino) {
                self.file(ino)?;
            }
        }
        Ok(())
    }

    /// Makes the checksums of a file, where it has none and is all here. If it changes, it will be named again.
    fn file(&mut self, ino: Ino) -> Result<(), Stop> {
        let handle = self.handle;
        let files = handle.files();
        let Look::Steady(file) = handle.look_at(ino)? else { return Ok(()) };
        if !files.path_of(file.key.0, file.key.1).exists() {
            // All zeros.
            return Ok(());
        }
        for page in 0..file.blocks().div_ceil(PAGE_BLOCKS) {
            if files.checksums_of(&file, page).is_some() {
                continue;
            }
            let Some(sums) = self.page(&file, page)? else { return Ok(()) };
            files.keep_checksums(&file, page, &sums)?;
        }
        Ok(())
    }

    /// What the blocks of a page are; nothing where some are not here, or the file changes.
    fn page(&mut self, file: &Steady, page: u64) -> Result<Option<Vec<u32>>, Stop> {
        let handle = self.handle;
        let files = handle.files();
        let blocks = file.page(page);
        let end = file.block(blocks.end - 1).end;
        let range = ByteRange { start: file.block(blocks.start).start, end };
        let is_whole = || files.is_whole(file.key, range);
        // Before as well as after: a block that is filled in between may have been read half filled.
        if !is_whole() {
            return Ok(None);
        }
        let mut reader = files.read_blocks(file);
        let mut sums = Vec::new();
        for block in blocks {
            self.read += 1;
            if self.read.is_multiple_of(AT_ONCE) {
                self.pause(PAUSE)?;
            }
            let Some(sum) = reader.sum(block)? else {
                handle.condemn(file, &[block], "the disk cannot read a block")?;
                return Ok(None);
            };
            if !files.is_still(file) {
                return Ok(None);
            }
            sums.push(sum);
        }
        // Of all of them, and of nothing that changed while it was read.
        Ok((files.is_still(file) && is_whole()).then_some(sums))
    }
}
