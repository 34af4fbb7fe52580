//! READ, WRITE, FLUSH and FSYNC.

use std::sync::Arc;
use std::time::Duration;

use super::attributes::Seen;
use super::buffer::{NewBytes, Patch};
use super::core::Core;
use super::errors::OpError;
use super::extents;
use super::open_table::OpenFile;
use crate::fs::limits::SIZE_MAX;
use crate::node::{Deadline, Left, NodeError};
use crate::store::StoreError;
use crate::types::{ByteRange, Generation, Ino, LogIndex, SessionId};

/// The bits that clear on a write by somebody without privileges.
const SUID_SGID: u32 = 0o6000;

/// What came so often, and cannot be read from the disk again, is read past the disk.
const ROUNDS: u32 = 3;
/// Between two attempts to read past a full disk.
const AGAIN: Duration = Duration::from_millis(20);

/// Where a read found its bytes: a backing file and, over it, what is buffered.
struct Source {
    seen: Seen,
    patch: Vec<Patch>,
}

impl Core {
    /// READ. Waits for the lease, and for the roster where the bytes have just changed.
    pub(super) async fn read(
        &self,
        handle: u64,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, OpError> {
        let file = self.file(handle)?;
        self.settle_appends(file.buffer.ino).await;
        let deadline = Deadline::current();
        loop {
            self.until_fresh().await?;
            let session = self.node.session();
            let cuts = self.node.cuts();
            if cuts.is_some() {
                let source = self.source(&file, ByteRange::at(offset, u64::from(size)))?;
                // Without the lease others may have changed them. Bytes that others may not show yet
                // would be seen, and then not be seen elsewhere.
                let version = LogIndex(source.seen.inode.data_version);
                if !self.may_serve(version, session) {
                    self.node.until_servable(version).await?;
                    continue;
                }
                let bytes = self.read_source(&source, offset, size).await?;
                if let Some(bytes) = bytes
                    && self.node.cuts() == cuts
                {
                    // The session may have ended while this waited.
                    self.file(handle)?;
                    return Ok(bytes);
                }
            }
            self.node.check(&deadline)?;
            tokio::task::yield_now().await;
        }
    }

    /// WRITE: into the buffer. `flags` are those of the file as it is now; fcntl(2) may have changed
    /// `O_APPEND` since the OPEN.
    pub(super) async fn write(
        self: &Arc<Self>,
        handle: u64,
        new: NewBytes,
        flags: i32,
    ) -> Result<u32, OpError> {
        self.writable()?;
        let (file, only_in) = self.fenced(handle)?;
        self.take_in(&file, NewBytes { only_in, ..new }, flags).await
    }

    /// WRITE of mapped pages, which somebody has stored to some time ago. It comes by any handle that they are
    /// mapped with, so what may not be committed is not refused: it is lost, and whoever asks for it is told.
    pub(super) async fn write_pages(
        self: &Arc<Self>,
        handle: u64,
        new: NewBytes,
    ) -> Result<u32, OpError> {
        self.writable()?;
        let file = self.open_file_of(handle)?;
        let (buffer, session) = (&file.buffer, self.node.session());
        if !self.lose_pages(buffer, session) && !buffer.lockers.are_lost(handle, session) {
            let only_in = buffer.lockers.have_pages().then_some(session);
            return self.take_in(&file, NewBytes { only_in, ..new }, 0).await;
        }
        let range = ByteRange::at(new.offset.unwrap_or(0), new.data.len() as u64);
        tracing::warn!(ino = %buffer.ino, ?range, "what was stored to pages under a lost lock is lost");
        buffer.lock().lose(libc::EIO);
        // They show it still.
        self.cache.forget_pages(buffer.ino);
        self.kernel().drop_pages(buffer.ino, range);
        Ok(u32::try_from(new.data.len()).expect("a request is at most 16 MiB"))
    }

    async fn take_in(
        self: &Arc<Self>,
        file: &OpenFile,
        new: NewBytes,
        flags: i32,
    ) -> Result<u32, OpError> {
        let end = new.offset.unwrap_or(0).saturating_add(new.data.len() as u64);
        if end > SIZE_MAX {
            return Err(OpError::Errno(libc::EFBIG));
        }
        self.take_space_to_write(file.buffer.ino, &new).await?;
        let written = u32::try_from(new.data.len()).expect("a request is at most 16 MiB");
        let (appends, kill) = (new.offset.is_none(), new.kill_suid_sgid);
        self.open.go_on_writing(file);
        self.buffer_bytes(&file.buffer, new).await?;
        if self.passthrough.reads(file.buffer.ino) {
            // They read the backing file, where it is not yet.
            self.commit(&file.buffer).await;
            self.show_to_passthrough(file.buffer.ino).await?;
        }
        if appends && !file.mode.direct {
            // The kernel has put the bytes where it believes that the file ends.
            self.cache.forget_pages(file.buffer.ino);
            self.kernel().drop_pages(file.buffer.ino, ByteRange::from(0));
        }
        if flags & libc::O_DSYNC != 0 {
            self.commit_durably(&file.buffer).await?;
            return self.report_failure(file).await.map(|()| written);
        }
        if kill && self.has_suid_sgid(file.buffer.ino)? {
            // The kernel goes on believing in the bits until the change is applied.
            self.commit(&file.buffer).await;
        }
        Ok(written)
    }

    /// FLUSH, at each close(2): everything written so far is committed and visible everywhere; a quorum has it, perhaps
    /// in memory only. The process that closes loses its locks of the file.
    pub(super) async fn flush(&self, handle: u64, owner: u64) -> Result<(), OpError> {
        let file = self.open_file_of(handle)?;
        self.open.stop_writing(&file);
        let flushed = async {
            let file = self.file(handle)?;
            let acknowledged = self.commit_and_acknowledge(&file.buffer).await;
            self.until_lost(&file).await;
            report(&file, file.untold_failure())?;
            acknowledged
        };
        let flushed = flushed.await;
        let unlocked = self.closed_by(&file, owner).await;
        flushed.and(unlocked)
    }

    /// FSYNC: everything written so far is on the disks of a quorum and visible everywhere.
    pub(super) async fn fsync(&self, handle: u64) -> Result<(), OpError> {
        let file = self.file(handle)?;
        let acknowledged = self.commit_durably(&file.buffer).await;
        self.report_failure(&file).await?;
        acknowledged
    }

    /// EIO, or whatever it was, where bytes were lost since this file was opened: once. Whoever was told already that nothing is
    /// known of them hears no more of it; whoever was killed leaves it to others who have the file open.
    async fn report_failure(&self, file: &OpenFile) -> Result<(), OpError> {
        if Deadline::current().has_left() == Some(Left::Killed) {
            return Ok(());
        }
        self.until_lost(file).await;
        report(file, file.unreported_failure())
    }

    /// Where bytes were lost, waits until they are gone from the kernel's pages, too: what else is lost with them is then.
    async fn until_lost(&self, file: &OpenFile) {
        if file.untold_failure().is_some() {
            // Where they are locked for too long, they go in any case.
            let _ = self.until_pages_fit(file.buffer.ino).await;
        }
    }

    /// An open file that is to be used. EIO where its programs believe in locks that others may have.
    pub(super) fn file(&self, handle: u64) -> Result<Arc<OpenFile>, OpError> {
        self.fenced(handle).map(|(file, _)| file)
    }

    /// The same for what changes it: where the file is locked through this mount, only this session may make
    /// the change, since others may have the locks in the next.
    pub(super) fn fenced(
        &self,
        handle: u64,
    ) -> Result<(Arc<OpenFile>, Option<SessionId>), OpError> {
        let file = self.open_file_of(handle)?;
        let (session, lockers) = (self.node.session(), &file.buffer.lockers);
        if lockers.are_lost(handle, session) {
            return Err(OpError::Errno(libc::EIO));
        }
        let only_in = lockers.any().then_some(session);
        Ok((file, only_in))
    }

    pub(super) fn open_file_of(&self, handle: u64) -> Result<Arc<OpenFile>, OpError> {
        self.open.file(handle).ok_or(OpError::Errno(libc::EBADF))
    }

    /// Takes the overlay before the backing file is read: bytes that are applied in between are then
    /// read twice instead of not at all.
    fn source(&self, file: &OpenFile, range: ByteRange) -> Result<Source, OpError> {
        self.query(|state| {
            let patch = file.buffer.lock().overlay(range);
            let seen = self.see(state, file.buffer.ino)?;
            Ok(Source { seen: seen.ok_or(OpError::Errno(libc::ESTALE))?, patch })
        })
    }

    /// Nothing where a stage that bytes were in has become part of the file meanwhile.
    async fn read_source(
        &self,
        source: &Source,
        offset: u64,
        size: u32,
    ) -> Result<Option<Vec<u8>>, OpError> {
        let left = source.seen.size().saturating_sub(offset).min(u64::from(size));
        let mut bytes = vec![0; usize::try_from(left).expect("at most a request's size")];
        let wanted = ByteRange::at(offset, left);
        let covered = source
            .patch
            .iter()
            .map(Patch::range)
            .any(|range| range.start <= wanted.start && range.end >= wanted.end);
        if left > 0 && !covered {
            let generation = Generation(source.seen.inode.generation);
            bytes = self.read_backing(source.seen.ino, generation, offset, bytes).await?;
        }
        for patch in &source.patch {
            match patch {
                Patch::Bytes(piece) => extents::apply(piece, offset, &mut bytes),
                Patch::Staged(stage, range) => {
                    let range = ByteRange { end: range.end.min(wanted.end), ..*range };
                    if range.start >= range.end {
                        continue;
                    }
                    let node = self.node.clone();
                    let (stage, len) =
                        (*stage, usize::try_from(range.len()).expect("within a read"));
                    let read = tokio::task::spawn_blocking(move || {
                        let mut part = vec![0; len];
                        let is_there = node.files().read_stage(stage, range.start, &mut part)?;
                        Ok::<_, StoreError>(is_there.then_some(part))
                    });
                    let Some(part) = read.await.map_err(|_| NodeError::Stopping)?? else {
                        return Ok(None);
                    };
                    let at = usize::try_from(range.start - offset).expect("within a read");
                    bytes[at..at + len].copy_from_slice(&part);
                }
            }
        }
        Ok(Some(bytes))
    }

    /// Fills `bytes` from the backing file: here where they are in memory, else on a thread that may
    /// wait for the disk.
    async fn read_backing(
        &self,
        ino: Ino,
        generation: Generation,
        offset: u64,
        mut bytes: Vec<u8>,
    ) -> Result<Vec<u8>, OpError> {
        let range = ByteRange::at(offset, bytes.len() as u64);
        if self.node.files().read_cached(ino, generation, offset, &mut bytes)? {
            self.node.has_read((ino, generation), range);
            return Ok(bytes);
        }
        let deadline = Deadline::current();
        let mut rounds = 0;
        loop {
            let node = self.node.clone();
            let read = tokio::task::spawn_blocking(move || {
                let is_whole = node.read_bytes(ino, generation, offset, &mut bytes)?;
                Ok::<_, StoreError>((bytes, is_whole))
            });
            let (read, is_whole) = read.await.map_err(|_| NodeError::Stopping)??;
            if is_whole {
                self.node.has_read((ino, generation), range);
                return Ok(read);
            }
            bytes = read;
            rounds += 1;
            if self.node.files().takes_nothing((ino, generation)) || rounds > ROUNDS {
                let around = self.node.read_around((ino, generation), range);
                match self.node.within(around).await? {
                    Ok(Some(whole)) => return Ok(whole),
                    // Some of it came meanwhile, and this disk cannot read it again.
                    Ok(None) | Err(NodeError::Store(_)) => {}
                    Err(error) => return Err(error.into()),
                }
                self.node.check(&deadline)?;
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            // What comes may find no room: then it is read past the disk.
            tokio::select! {
                here = self.node.until_here((ino, generation), range) => here?,
                () = self.until_full((ino, generation)) => {}
            }
        }
    }

    async fn until_full(&self, key: (Ino, Generation)) {
        while !self.node.files().takes_nothing(key) {
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn has_suid_sgid(&self, ino: Ino) -> Result<bool, OpError> {
        let seen = self.query(|state| self.see(state, ino))?;
        Ok(seen.is_some_and(|seen| seen.inode.mode & SUID_SGID != 0))
    }
}

/// Says that bytes were lost.
fn report(file: &OpenFile, failure: Option<i32>) -> Result<(), OpError> {
    let Some(errno) = failure else { return Ok(()) };
    tracing::warn!(ino = %file.buffer.ino, errno, "a program is told that bytes were lost");
    Err(OpError::Errno(errno))
}
