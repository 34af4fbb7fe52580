//! LSEEK, FALLOCATE, COPY_FILE_RANGE, STATFS; and whether there is room for what is to be written.
//!
//! ENOSPC is said where room is asked for, before anything is buffered or proposed: what a call has taken
//! in is never lost for want of space. What has space already (reserved, or written before) needs none,
//! so it goes on when the disks are full.

use super::buffer::NewBytes;
use super::core::{Caller, Core};
use super::errors::OpError;
use crate::fs::limits::{COPY_MAX, INO_END, SIZE_MAX};
use crate::fs::proto::{self, command::Op};
use crate::fs::{Errno, query};
use crate::node::{Deadline, NodeError};
use crate::store::Seek;
use crate::types::{ByteRange, Generation, Ino, LogIndex, SessionId};

/// The most bytes that one COPY_FILE_RANGE copies: the kernel holds the file's lock until it is answered.
/// Programs ask for the rest.
const COPY_REQUEST: u64 = 8 * COPY_MAX;
/// Bytes go to the log and to the backing file; the log's are given back later.
const COPIES_OF_WRITE: u64 = 2;
/// What a new record and its entry in the log take at most, but for the values of attributes.
const RECORD_BYTES: u64 = 4096;
const PUNCH_HOLE: u32 = libc::FALLOC_FL_PUNCH_HOLE.unsigned_abs();
/// What STATFS counts in.
pub(super) const BLOCK: u32 = 4096;

/// What STATFS answers: blocks, and inode numbers.
pub(super) struct Room {
    pub(super) blocks: u64,
    pub(super) free: u64,
    pub(super) inos: u64,
    pub(super) free_inos: u64,
}

/// A copy insists on the source that it saw so many times; then it takes what there is.
const INSISTENCE: usize = 8;

impl Core {
    /// LSEEK with `SEEK_DATA` or `SEEK_HOLE`, over what was written here so far. Waits as READ does.
    pub(super) async fn lseek(
        &self,
        handle: u64,
        offset: i64,
        whence: i32,
    ) -> Result<i64, OpError> {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return Err(OpError::Errno(libc::EINVAL)),
        };
        let offset = u64::try_from(offset).map_err(|_| OpError::Errno(libc::ENXIO))?;
        let file = self.file(handle)?;
        let deadline = Deadline::current();
        loop {
            self.commit(&file.buffer).await;
            self.until_fresh().await?;
            let (cuts, session) = (self.node.cuts(), self.node.session());
            let inode = self.inode(file.buffer.ino)?;
            let version = LogIndex(inode.data_version);
            if !self.may_serve(version, session) {
                self.node.until_servable(version).await?;
                continue;
            }
            if offset >= inode.size {
                return Err(OpError::Errno(libc::ENXIO));
            }
            let key = (file.buffer.ino, Generation(inode.generation));
            let node = self.node.clone();
            let seek = move || node.files().seek(key, what, offset, inode.size);
            let found =
                tokio::task::spawn_blocking(seek).await.map_err(|_| NodeError::Stopping)??;
            if cuts.is_some() && self.node.cuts() == cuts {
                let found = found.ok_or(OpError::Errno(libc::ENXIO))?;
                return i64::try_from(found).map_err(|_| OpError::Errno(libc::EOVERFLOW));
            }
            self.node.check(&deadline)?;
            tokio::task::yield_now().await;
        }
    }

    /// FALLOCATE, after everything that was written before.
    pub(super) async fn fallocate(
        &self,
        caller: Caller,
        handle: u64,
        range: ByteRange,
        mode: u32,
    ) -> Result<(), OpError> {
        let (file, only_in) = self.fenced(handle)?;
        let ino = file.buffer.ino;
        if range.end > SIZE_MAX {
            return Err(OpError::Errno(libc::EFBIG));
        }
        self.commit(&file.buffer).await;
        if mode & PUNCH_HOLE == 0 {
            self.take_space(ino, range, range.len()).await?;
        }
        let op = proto::Allocate {
            ino: ino.0,
            offset: range.start,
            length: range.len(),
            mode,
            kill_suid_sgid: caller.uid != 0,
        };
        self.mutate_in(only_in, &[ino], Op::Allocate(op)).await.map(drop)
    }

    /// COPY_FILE_RANGE, after everything that was written to either file before. Answers how many bytes
    /// were copied: 0 at the end of the source.
    pub(super) async fn copy_file_range(
        &self,
        caller: Caller,
        (source, source_offset): (u64, u64),
        (target, offset): (u64, u64),
        length: u64,
    ) -> Result<u32, OpError> {
        self.writable()?;
        let source = self.file(source)?;
        let (target, only_in) = self.fenced(target)?;
        self.commit(&source.buffer).await;
        self.commit(&target.buffer).await;
        let length = length.min(COPY_REQUEST);
        let mut copied = 0;
        let mut last = LogIndex(0);
        while copied < length {
            let op = proto::CopyRange {
                source: source.buffer.ino.0,
                source_offset: source_offset.saturating_add(copied),
                source_version: 0,
                ino: target.buffer.ino.0,
                offset: offset.saturating_add(copied),
                length: (length - copied).min(COPY_MAX),
                kill_suid_sgid: caller.uid != 0,
            };
            let range = ByteRange::at(op.offset, op.length);
            let room = self.take_space(target.buffer.ino, range, op.length).await;
            let done = match room {
                Ok(()) => self.copy_range(op, only_in).await,
                Err(error) => Err(error),
            };
            match done {
                Ok((0, _)) => break,
                Ok((more, index)) => (copied, last) = (copied + more, index),
                // What was copied counts; the next request meets the error.
                Err(_) if copied > 0 => break,
                Err(error) => return Err(error),
            }
        }
        if last > LogIndex(0) {
            self.node.until_acknowledged(last).await?;
        }
        Ok(u32::try_from(copied).expect("at most one request"))
    }

    /// One command: how many bytes it copied, and the index at which it was applied.
    async fn copy_range(
        &self,
        mut op: proto::CopyRange,
        only_in: Option<SessionId>,
    ) -> Result<(u64, LogIndex), OpError> {
        let touched = [Ino(op.ino)];
        for left in (0..=INSISTENCE).rev() {
            // Whoever makes the copy durable must not find that a replay cannot make it.
            let durable = self.node.make_durable(Ino(op.source)).await?;
            op.source_version = if left > 0 { durable.0 } else { 0 };
            let now = super::times::now();
            let pending = self.node.mutate_here(only_in, Op::CopyRange(op), now);
            let outcome = pending.await.map_err(|error| self.unknown_outcome(&touched, error))?;
            match outcome.errno {
                0 => {
                    let index = outcome.inode.map_or(0, |inode| inode.mod_index);
                    return Ok((outcome.offset, LogIndex(index)));
                }
                errno if errno == Errno::ECANCELED.number() => {}
                errno => return Err(OpError::Errno(i32::try_from(errno).unwrap_or(libc::EIO))),
            }
        }
        Err(OpError::Errno(libc::EIO))
    }

    /// STATFS: what the disks of a quorum hold, and inode numbers, which are never used again.
    pub(super) fn statfs(&self) -> Result<Room, OpError> {
        let space = self.node.space();
        let given = self.query(|state| Ok(query::inos_given(state)?))?;
        Ok(Room {
            blocks: space.total_bytes / u64::from(BLOCK),
            free: space.free_bytes / u64::from(BLOCK),
            inos: INO_END,
            free_inos: INO_END - given,
        })
    }

    /// Room for a WRITE.
    pub(super) async fn take_space_to_write(
        &self,
        ino: Ino,
        new: &NewBytes,
    ) -> Result<(), OpError> {
        let bytes = new.data.len() as u64;
        let range = new.offset.map_or(ByteRange::at(0, 0), |offset| ByteRange::at(offset, bytes));
        let room = self.take_space(ino, range, COPIES_OF_WRITE * bytes).await;
        if room.is_err() {
            // Mapped pages stay as the program changed them, but nobody else will ever see that.
            self.cache.forget_pages(ino);
            self.kernel().drop_pages(ino, range);
        }
        room
    }

    /// Room for a change of names or attributes that adds records.
    pub(super) fn take_space_for(&self, op: &Op) -> Result<(), OpError> {
        let bytes = match op {
            Op::Make(_) | Op::Link(_) => RECORD_BYTES,
            Op::SetXattr(op) => RECORD_BYTES + COPIES_OF_WRITE * op.value.len() as u64,
            _ => return Ok(()),
        };
        if self.node.take_space(bytes) { Ok(()) } else { Err(OpError::Errno(libc::ENOSPC)) }
    }

    /// Room for so many bytes, less what the range that they are for has already.
    async fn take_space(&self, ino: Ino, range: ByteRange, bytes: u64) -> Result<(), OpError> {
        if self.node.take_space(bytes) {
            return Ok(());
        }
        let key = (ino, Generation(self.inode(ino)?.generation));
        let node = self.node.clone();
        let mapped = tokio::task::spawn_blocking(move || node.files().mapped(key, range));
        let mapped = mapped.await.map_err(|_| NodeError::Stopping)??;
        let needed = share(bytes, range.len() - mapped.min(range.len()), range.len());
        if self.node.take_space(needed) { Ok(()) } else { Err(OpError::Errno(libc::ENOSPC)) }
    }

    /// An inode as it is in the state, stable or not.
    fn inode(&self, ino: Ino) -> Result<proto::Inode, OpError> {
        let inode = self.query(|state| Ok(query::inode(state, ino)?))?;
        inode.ok_or(OpError::Errno(libc::ESTALE))
    }
}

/// `part` parts in `whole` of `bytes`; all of them where there are no parts.
fn share(bytes: u64, part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return bytes;
    }
    let share = u128::from(bytes) * u128::from(part) / u128::from(whole);
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn what_has_its_space_needs_none() {
        assert_eq!((share(200, 0, 100), share(200, 50, 100), share(200, 100, 100)), (0, 100, 200));
        assert_eq!(share(200, 0, 0), 200, "an append has no range yet");
        assert_eq!(share(1 << 45, 1 << 44, 1 << 44), 1 << 45);
    }
}
