//! Committing what programs wrote: taking lots from buffers, proposing them (alone, or with a change of
//! attributes), settling them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::buffer::{Batch, Buffer, NewBytes, SetTimes};
use super::core::Core;
use super::errors::OpError;
use super::times;
use crate::fs::proto;
use crate::fs::proto::command::Op;
use crate::node::{NodeError, Pending};
use crate::types::{ByteRange, Ino, LogIndex, SessionId};

/// An inode with this many buffered bytes is committed in the background.
const START_BYTES: usize = 1 << 20;
/// A writer waits while its inode has more buffered bytes than this.
const INODE_MAX_BYTES: usize = 4 << 20;
/// A writer waits for its inode while the mount has more buffered bytes than this.
const MOUNT_MAX_BYTES: usize = 64 << 20;
/// Bytes older than this are committed without being asked for.
const MAX_AGE: Duration = Duration::from_secs(1);
/// How often ages are looked at.
const AGE_TICK: Duration = Duration::from_millis(250);

impl Core {
    /// Takes a WRITE into the buffer, and keeps the buffer small.
    pub(super) async fn buffer_bytes(self: &Arc<Self>, buffer: &Arc<Buffer>, new: NewBytes) {
        while !self.accept(buffer, &new) {
            self.commit(buffer).await;
        }
        let bytes = buffer.lock().weight();
        if bytes > INODE_MAX_BYTES || self.buffered.load(Ordering::Relaxed) > MOUNT_MAX_BYTES {
            self.commit(buffer).await;
        } else if bytes >= START_BYTES {
            self.commit_soon(buffer);
        }
    }

    fn accept(&self, buffer: &Buffer, new: &NewBytes) -> bool {
        let mut state = buffer.lock();
        let before = state.weight();
        let accepted = state.accept(new, Instant::now());
        self.buffered.fetch_add(state.weight() - before, Ordering::Relaxed);
        accepted
    }

    /// Takes times that are set (where there are none: a change of nothing but ctime) into the buffer, where
    /// somebody here has the inode open for writing and so will commit them; answers whether. Times only
    /// go with bytes that were written before.
    pub(super) fn buffer_times(&self, ino: Ino, times: SetTimes) -> bool {
        let mut accepted = false;
        self.open.while_written(ino, |state| {
            let (before, ctime, now) = (state.weight(), times::now(), Instant::now());
            accepted = if times.any() {
                state.accept_times(times, ctime, self.inline_max, now)
            } else {
                state.accept_ctime(ctime, now);
                true
            };
            self.buffered.fetch_add(state.weight() - before, Ordering::Relaxed);
        });
        accepted
    }

    /// Commits everything that was written to the inode before this call. What cannot be committed is
    /// recorded as a failure, which the handles report.
    pub(super) async fn commit(&self, buffer: &Buffer) {
        let target = buffer.lock().accepted();
        while !buffer.lock().is_settled(target) {
            let _turn = buffer.turn.acquire().await.expect("a turn is never closed");
            if buffer.lock().is_settled(target) {
                return;
            }
            let batch = buffer.lock().take(buffer.ino, self.inline_max);
            let Some(batch) = batch else { return };
            let result = self.propose(buffer.ino, batch).await;
            self.settle(buffer, result);
        }
    }

    /// Changes attributes after everything that was written to the inode before this call: by one
    /// command that carries what is buffered, where one can. Waits until it may be acknowledged.
    pub(super) async fn set_attr_after_bytes(
        &self,
        buffer: &Buffer,
        set: proto::SetAttr,
        only_in: Option<SessionId>,
    ) -> Result<proto::Outcome, OpError> {
        let turn = buffer.turn.acquire().await.expect("a turn is never closed");
        let batch = buffer.lock().take_carried(buffer.ino, self.inline_max);
        if let Some(batch) = batch {
            let mut carrying = set.clone();
            batch.clone().put_into(&mut carrying);
            let only_in = batch.only_in.or(only_in);
            match self.node.mutate_here(only_in, Op::SetAttr(carrying), times::now()).await {
                Ok(outcome) if outcome.errno == 0 => {
                    let index = mod_index(&outcome);
                    self.settle(buffer, Ok(index));
                    // Whoever writes next need not wait for the roster.
                    drop(turn);
                    self.node.until_acknowledged(index).await?;
                    return Ok(outcome);
                }
                // It left nothing behind: the bytes and the change go by themselves, and each has
                // an outcome of its own.
                Ok(_) => {
                    let result = self.propose(buffer.ino, batch).await;
                    self.settle(buffer, result);
                }
                Err(error) => {
                    self.settle(buffer, Err(libc::EIO));
                    return Err(self.unknown_outcome(&[buffer.ino], error));
                }
            }
        }
        drop(turn);
        self.commit(buffer).await;
        self.mutate_in(only_in, &[buffer.ino], Op::SetAttr(set)).await
    }

    fn settle(&self, buffer: &Buffer, result: Result<LogIndex, i32>) {
        if let Err(errno) = result {
            self.lost_bytes(buffer.ino, errno);
        }
        let settled = buffer.lock().settle(result);
        self.buffered.fetch_sub(settled, Ordering::Relaxed);
    }

    /// The same, for FLUSH and FSYNC: waits until it may be acknowledged, too.
    pub(super) async fn commit_and_acknowledge(&self, buffer: &Buffer) -> Result<(), OpError> {
        self.commit(buffer).await;
        let committed = buffer.lock().committed();
        if committed > LogIndex(0) {
            self.node.until_acknowledged(committed).await?;
        }
        Ok(())
    }

    /// Commits in the background.
    pub(super) fn commit_soon(self: &Arc<Self>, buffer: &Arc<Buffer>) {
        if buffer.lock().schedule_commit() {
            let (core, buffer) = (self.clone(), buffer.clone());
            self.runtime.spawn(async move { core.commit(&buffer).await });
        }
    }

    /// Commits every buffer; when the mount stops.
    pub(super) async fn commit_all(&self) {
        for buffer in self.open.buffers() {
            self.commit(&buffer).await;
        }
    }

    /// Commits what has been pending for too long, for as long as the mount lives.
    pub(super) async fn commit_aged(core: std::sync::Weak<Self>) {
        loop {
            tokio::time::sleep(AGE_TICK).await;
            let Some(core) = core.upgrade() else { return };
            if core.buffered.load(Ordering::Relaxed) == 0 {
                continue;
            }
            for buffer in core.open.buffers() {
                let since = buffer.lock().dirty_since();
                if since.is_some_and(|since| since.elapsed() >= MAX_AGE) {
                    core.commit_soon(&buffer);
                }
            }
        }
    }

    /// Proposes one lot. Answers the index at which the last of it was applied.
    async fn propose(&self, ino: Ino, mut batch: Batch) -> Result<LogIndex, i32> {
        let Some(ctime) = batch.ctime.take() else { return self.propose_writes(ino, batch).await };
        let only_in = batch.only_in;
        let mut set = proto::SetAttr { ino: ino.0, raise_ctime: true, ..<_>::default() };
        let mut written = LogIndex(0);
        debug_assert!(
            batch.is_portable() || !batch.times.any(),
            "times go with what they came after"
        );
        if batch.is_portable() {
            batch.put_into(&mut set);
        } else {
            written = self.propose_writes(ino, batch).await?;
        }
        let outcome = outcome_of(self.node.mutate_here(only_in, Op::SetAttr(set), ctime)).await?;
        Ok(written.max(mod_index(&outcome)))
    }

    async fn propose_writes(&self, ino: Ino, batch: Batch) -> Result<LogIndex, i32> {
        let Batch { writes, ordered, time, times: _, ctime: _, only_in } = batch;
        let mut last = Ok(LogIndex(0));
        let propose = |write| self.node.mutate_here(only_in, Op::Write(write), time);
        if ordered {
            for write in writes {
                let pieces: Vec<u64> = write.pieces.iter().map(|p| p.data.len() as u64).collect();
                let outcome = outcome_of(propose(write)).await?;
                self.appended(ino, ByteRange::at(outcome.offset, pieces.iter().sum()));
                last = last.max(Ok(mod_index(&outcome)));
            }
            return last;
        }
        let pending: Vec<Pending> = writes.into_iter().map(propose).collect();
        for pending in pending {
            // All are waited for, so that none is on its way when the next lot goes out.
            last = match (last, outcome_of(pending).await) {
                (Ok(last), Ok(outcome)) => Ok(last.max(mod_index(&outcome))),
                (Err(errno), _) | (Ok(_), Err(errno)) => Err(errno),
            };
        }
        last
    }

    /// Appended bytes stand where the log put them, perhaps not where the kernel believes.
    fn appended(&self, ino: Ino, range: ByteRange) {
        self.cache.forget_pages(ino);
        self.kernel().drop_pages(ino, range);
    }

    /// The kernel's pages have bytes that the cluster may never have.
    fn lost_bytes(&self, ino: Ino, errno: i32) {
        tracing::warn!(%ino, errno, "written bytes could not be committed");
        self.cache.doubt(&[ino]);
        self.cache.forget_pages(ino);
        self.kernel().drop_pages(ino, ByteRange::from(0));
    }
}

async fn outcome_of(pending: Pending) -> Result<proto::Outcome, i32> {
    match pending.await {
        Ok(outcome) if outcome.errno == 0 => Ok(outcome),
        Ok(outcome) => Err(i32::try_from(outcome.errno).unwrap_or(libc::EIO)),
        Err(error) => {
            report(&error);
            Err(libc::EIO)
        }
    }
}

fn report(error: &NodeError) {
    tracing::warn!(%error, "a write was not answered");
}

fn mod_index(outcome: &proto::Outcome) -> LogIndex {
    outcome.inode.as_ref().map_or(LogIndex(0), |inode| inode.mod_index.into())
}
