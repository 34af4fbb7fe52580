//! LSEEK, FALLOCATE, COPY_FILE_RANGE.

use std::time::Instant;

use super::core::{Caller, Core};
use super::errors::OpError;
use crate::fs::limits::COPY_MAX;
use crate::fs::proto::{self, command::Op};
use crate::fs::{Errno, query};
use crate::node::NodeError;
use crate::store::Seek;
use crate::types::{ByteRange, Generation, Ino, LogIndex};

/// The most bytes that one COPY_FILE_RANGE copies: the kernel holds the file's lock until it is answered.
/// Programs ask for the rest.
const COPY_REQUEST: u64 = 8 * COPY_MAX;
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
        let deadline = Instant::now() + self.node.op_timeout();
        loop {
            self.commit(&file.buffer).await;
            let cuts = self.node.cuts();
            let inode = self.inode(file.buffer.ino)?;
            let version = LogIndex(inode.data_version);
            if !self.node.may_serve(version) {
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
            if Instant::now() >= deadline {
                return Err(NodeError::Deadline.into());
            }
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
        let file = self.file(handle)?;
        let ino = file.buffer.ino;
        self.commit(&file.buffer).await;
        let op = proto::Allocate {
            ino: ino.0,
            offset: range.start,
            length: range.len(),
            mode,
            kill_suid_sgid: caller.uid != 0,
        };
        self.mutate(&[ino], Op::Allocate(op)).await.map(drop)
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
        let (source, target) = (self.file(source)?, self.file(target)?);
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
            match self.copy_range(op).await {
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
    async fn copy_range(&self, mut op: proto::CopyRange) -> Result<(u64, LogIndex), OpError> {
        let touched = [Ino(op.ino)];
        for left in (0..=INSISTENCE).rev() {
            op.source_version = if left > 0 { self.inode(Ino(op.source))?.data_version } else { 0 };
            let pending = self.node.mutate_here(Op::CopyRange(op), super::times::now());
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

    /// An inode as it is in the state, stable or not.
    fn inode(&self, ino: Ino) -> Result<proto::Inode, OpError> {
        let inode = self.query(|state| Ok(query::inode(state, ino)?))?;
        inode.ok_or(OpError::Errno(libc::ESTALE))
    }
}
