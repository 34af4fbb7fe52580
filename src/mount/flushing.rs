//! Committing what programs wrote: taking lots from buffers, proposing them (alone, or with a change of
//! attributes), settling them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::buffer::{Batch, Buffer, NewBytes, SetTimes};
use super::core::Core;
use super::errors::OpError;
use super::times;
use crate::fs::proto::command::Op;
use crate::fs::{proto, query};
use crate::node::{Deadline, NodeError, OpenStage, Pending};
use crate::types::{ByteRange, Ino, LogIndex, SessionId, StageId};

/// An inode with this many buffered bytes is committed in the background.
const START_BYTES: usize = 1 << 20;
/// A writer waits while its inode has more buffered bytes than this.
const INODE_MAX_BYTES: usize = 4 << 20;
/// A writer waits for its inode while the mount has more buffered bytes than this.
const MOUNT_MAX_BYTES: usize = 64 << 20;
/// Bytes older than this are committed without being asked for.
const MAX_AGE: Duration = Duration::from_secs(1);
/// The same for those in a stage: each commit of part of a file may cost a copy of it.
const MAX_STAGE_AGE: Duration = Duration::from_secs(30);
/// Where a quorum's disks take in less than this, bytes travel in the log whatever their number: what has its space
/// already can be written when there is no room for a stage.
const NEARLY_FULL: u64 = 32 << 20;
/// How often ages are looked at.
const AGE_TICK: Duration = Duration::from_millis(250);

/// When bytes have to be on the disks of a quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disks {
    /// Before they are proposed.
    Now,
    /// Some time after, or when somebody asks for it.
    Later,
}

/// Where the bytes of a stage are.
enum Kept {
    /// On this node's disk, too.
    Here,
    /// It has no room for some of them: they are in memory until they are committed, which cannot wait.
    Elsewhere,
}

impl Core {
    /// Takes a WRITE into the buffer, and keeps the buffer small.
    pub(super) async fn buffer_bytes(
        self: &Arc<Self>,
        buffer: &Arc<Buffer>,
        new: NewBytes,
    ) -> Result<(), OpError> {
        let deadline = Deadline::current();
        while !self.accept(buffer, &new) {
            self.commit(buffer).await;
            // Others may have written since it was answered.
            self.node.check(&deadline)?;
        }
        let bytes = buffer.lock().weight();
        if bytes > INODE_MAX_BYTES || self.buffered.load(Ordering::Relaxed) > MOUNT_MAX_BYTES {
            self.drain(buffer).await;
        } else if bytes >= START_BYTES {
            self.drain_soon(buffer);
        }
        Ok(())
    }

    /// Moves what is pending out of memory: to the stage, or appended bytes to the log.
    async fn drain(&self, buffer: &Buffer) {
        buffer.lock().drain_begins();
        if buffer.lock().has_appends() {
            return self.commit(buffer).await;
        }
        let _turn = buffer.turn.acquire().await.expect("a turn is never closed");
        if !self.is_to_stage(buffer) {
            return self.commit_lot(buffer, Disks::Later).await;
        }
        match self.stage_pending(buffer).await {
            Ok(Kept::Here) => {}
            Ok(Kept::Elsewhere) => self.commit_lot(buffer, Disks::Later).await,
            Err(error) => self.lose_pending(buffer, &error).await,
        }
    }

    /// Whether what is pending is to go through a stage.
    fn is_to_stage(&self, buffer: &Buffer) -> bool {
        let room = self.node.space();
        // Nobody has looked at the disks yet where they are said to have no bytes at all.
        let is_nearly_full = room.total_bytes > 0 && room.free_bytes < NEARLY_FULL;
        let may_begin = !is_nearly_full && self.node.may_begin_stage();
        let state = buffer.lock();
        state.has_staged() || (state.wants_stage(self.inline_max) && may_begin)
    }

    /// The same in the background.
    fn drain_soon(self: &Arc<Self>, buffer: &Arc<Buffer>) {
        if buffer.lock().schedule_drain() {
            let (core, buffer) = (self.clone(), buffer.clone());
            self.runtime.spawn(async move { core.drain(&buffer).await });
        }
    }

    /// Adds what is pending to the buffer's stage. By whoever has the turn.
    async fn stage_pending(&self, buffer: &Buffer) -> Result<Kept, NodeError> {
        // Whoever has not got all of a stage when it is written takes what comes late where nothing is yet.
        let goes_first = {
            let state = buffer.lock();
            state.overwrites_staged() || state.has_times()
        };
        if goes_first {
            self.commit_lot(buffer, Disks::Later).await;
        }
        if let Some(stage) = &*buffer.open_stage.lock().await
            && stage.id().session != self.node.session()
        {
            // Nobody will write it.
            return Err(NodeError::SessionLost);
        }
        let pieces = buffer.lock().move_to_stage();
        if pieces.is_empty() {
            return Ok(Kept::Here);
        }
        let mut open = buffer.open_stage.lock().await;
        if open.is_none() {
            *open = Some(Deadline::of_bytes().covers(self.node.begin_stage()).await?);
        }
        let stage = open.as_mut().expect("just opened");
        for piece in pieces {
            Deadline::of_bytes().covers(stage.add(piece.offset, piece.data)).await?;
        }
        if !stage.is_kept_here() {
            return Ok(Kept::Elsewhere);
        }
        let moved = buffer.lock().moved(stage.id());
        self.buffered.fetch_sub(moved, Ordering::Relaxed);
        Ok(Kept::Here)
    }

    /// What is pending cannot be kept: the next fsync or close says so. By whoever has the turn.
    async fn lose_pending(&self, buffer: &Buffer, error: &NodeError) {
        report(error);
        let batch = buffer.lock().take(buffer.ino, self.inline_max);
        drop(buffer.open_stage.lock().await.take());
        if batch.is_some() {
            self.settle(buffer, Err(libc::EIO));
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
    /// recorded as a failure, which the handles report. A quorum has the bytes then, perhaps in memory only.
    pub(super) async fn commit(&self, buffer: &Buffer) {
        self.commit_to(buffer, Disks::Later).await;
    }

    async fn commit_to(&self, buffer: &Buffer, disks: Disks) {
        let target = buffer.lock().accepted();
        while !buffer.lock().is_settled(target) {
            let _turn = buffer.turn.acquire().await.expect("a turn is never closed");
            if buffer.lock().is_settled(target) {
                return;
            }
            if self.is_to_stage(buffer)
                && let Err(error) = self.stage_pending(buffer).await
            {
                // What was written since the stage was begun is still to be committed.
                self.lose_pending(buffer, &error).await;
                continue;
            }
            self.commit_lot(buffer, disks).await;
        }
    }

    /// Commits one lot. By whoever has the turn.
    async fn commit_lot(&self, buffer: &Buffer, disks: Disks) {
        let batch = buffer.lock().take(buffer.ino, self.inline_max);
        let Some(batch) = batch else { return };
        let stage = if batch.is_staged { buffer.open_stage.lock().await.take() } else { None };
        let stage = stage.map(|stage| (stage, disks));
        // It may have been brought by others than the one who waits here.
        let result = Deadline::of_bytes().covers(self.propose(buffer.ino, batch, stage)).await;
        self.settle(buffer, result);
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
        self.node.check(&Deadline::current())?;
        let batch = buffer.lock().take_carried(buffer.ino, self.inline_max);
        if let Some(batch) = batch {
            let mut carrying = set.clone();
            batch.clone().put_into(&mut carrying);
            let only_in = batch.only_in.or(only_in);
            let carried =
                async { self.node.mutate_here(only_in, Op::SetAttr(carrying), times::now()).await };
            match Deadline::of_bytes().covers(carried).await {
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
                    let proposed = self.propose(buffer.ino, batch, None);
                    let result = Deadline::of_bytes().covers(proposed).await;
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

    /// The same, for FSYNC: waits until it is on the disks of a quorum, and may be acknowledged.
    pub(super) async fn commit_durably(&self, buffer: &Buffer) -> Result<(), OpError> {
        self.commit_to(buffer, Disks::Now).await;
        self.node.make_durable(buffer.ino).await?;
        self.until_acknowledged(buffer).await
    }

    /// The same, for FLUSH: waits until it may be acknowledged.
    pub(super) async fn commit_and_acknowledge(&self, buffer: &Buffer) -> Result<(), OpError> {
        self.commit(buffer).await;
        self.until_acknowledged(buffer).await
    }

    async fn until_acknowledged(&self, buffer: &Buffer) -> Result<(), OpError> {
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

    /// Commits every buffer; when the mount stops. What takes longer goes on for as long as the daemon lives.
    pub(super) async fn commit_all(self: &Arc<Self>, until: tokio::time::Instant) {
        let mut commits: FuturesUnordered<_> = self
            .open
            .buffers()
            .into_iter()
            .filter(|buffer| !buffer.lock().is_clean())
            .map(|buffer| {
                let core = self.clone();
                self.runtime.spawn(async move { core.commit(&buffer).await })
            })
            .collect();
        let all = async { while commits.next().await.is_some() {} };
        if tokio::time::timeout_at(until, all).await.is_err() {
            tracing::error!(
                files = commits.len(),
                "no quorum takes what was written: it is lost where none is back before this daemon ends"
            );
        }
    }

    /// Commits what has been pending for too long, for as long as the mount lives.
    pub(super) async fn commit_aged(core: std::sync::Weak<Self>) {
        loop {
            tokio::time::sleep(AGE_TICK).await;
            let Some(core) = core.upgrade() else { return };
            core.cache.tidy(Instant::now());
            for buffer in core.open.buffers() {
                let (since, is_staged) = {
                    let state = buffer.lock();
                    (state.dirty_since(), state.has_staged())
                };
                let max_age = if is_staged { MAX_STAGE_AGE } else { MAX_AGE };
                // A stage of a session that is over is lost: better said at once.
                let is_lost = is_staged
                    && buffer.open_stage.try_lock().is_ok_and(|stage| {
                        let session = core.node.session();
                        stage.as_ref().is_some_and(|stage| stage.id().session != session)
                    });
                if is_lost || since.is_some_and(|since| since.elapsed() >= max_age) {
                    core.commit_soon(&buffer);
                }
            }
        }
    }

    /// Proposes one lot. Answers the index at which the last of it was applied.
    async fn propose(
        &self,
        ino: Ino,
        mut batch: Batch,
        stage: Option<(OpenStage, Disks)>,
    ) -> Result<LogIndex, i32> {
        if batch.is_staged && stage.is_none() {
            debug_assert!(false, "bytes of {ino} are in a stage that is not here");
            return Err(libc::EIO);
        }
        let ctime = batch.ctime.take();
        let Some(ctime) = ctime else { return self.propose_bytes(ino, batch, stage).await };
        let only_in = batch.only_in.or(stage.as_ref().map(|(stage, _)| stage.id().session));
        let mut set = proto::SetAttr { ino: ino.0, raise_ctime: true, ..<_>::default() };
        let mut written = LogIndex(0);
        debug_assert!(
            batch.is_portable() || !batch.times.any(),
            "times go with what they came after"
        );
        if batch.is_portable() {
            batch.put_into(&mut set);
        } else {
            written = self.propose_bytes(ino, batch, stage).await?;
        }
        let outcome = outcome_of(self.node.mutate_here(only_in, Op::SetAttr(set), ctime)).await?;
        Ok(written.max(mod_index(&outcome)))
    }

    /// Proposes what was written, without what came after it.
    async fn propose_bytes(
        &self,
        ino: Ino,
        batch: Batch,
        stage: Option<(OpenStage, Disks)>,
    ) -> Result<LogIndex, i32> {
        let Some((mut stage, disks)) = stage else { return self.propose_writes(ino, batch).await };
        let eio = |error: NodeError| {
            report(&error);
            libc::EIO
        };
        let mut disks = if self.overwrites(ino, &stage).map_err(eio)? { Disks::Now } else { disks };
        loop {
            let mut filled = batch.clone();
            self.fill_in(&mut filled, &mut stage, disks).await.map_err(eio)?;
            let proposed = self.propose_writes(ino, filled).await;
            let Some(wanted) = asked_for(&proposed, disks) else { return proposed };
            stage.refused();
            disks = wanted;
        }
    }

    /// Says what the stage has, once a quorum has it.
    async fn fill_in(
        &self,
        batch: &mut Batch,
        stage: &mut OpenStage,
        disks: Disks,
    ) -> Result<(), NodeError> {
        let id = stage.id();
        let is_over = id.session != self.node.session();
        if is_over || batch.only_in.is_some_and(|session| session != id.session) {
            return Err(NodeError::SessionLost);
        }
        batch.only_in = Some(id.session);
        stage.hold(disks == Disks::Now).await?;
        let pieces = stage.pieces().await?;
        let [write] = &mut batch.writes[..] else { unreachable!("one command takes a stage") };
        put_stage(write, id, pieces, disks);
        stage.written();
        Ok(())
    }

    /// Whether a stage takes the place of bytes that the file has here. They may have been synced, so no power loss may leave
    /// neither them nor these. The command asks again, of the state that it is applied to.
    fn overwrites(&self, ino: Ino, stage: &OpenStage) -> Result<bool, NodeError> {
        let inode = query::inode(&self.node.state(), ino)?;
        let first = stage.ranges().first().map(|range| range.start);
        Ok(inode.zip(first).is_some_and(|(inode, first)| first < inode.size))
    }

    async fn propose_writes(&self, ino: Ino, batch: Batch) -> Result<LogIndex, i32> {
        let Batch { writes, ordered, time, times: _, ctime: _, only_in, is_staged: _ } = batch;
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

/// The command writes a stage that a quorum holds like this.
fn put_stage(write: &mut proto::Write, id: StageId, pieces: Vec<proto::Piece>, disks: Disks) {
    (write.stage, write.pieces) = (id.number, pieces);
    write.loose = disks == Disks::Later;
    // What is replaced may be on disks.
    write.adds_only = write.loose;
}

/// Where a stage has to be before it is proposed once more: it would have taken the place of bytes that were not known here,
/// and so it was not written.
fn asked_for(proposed: &Result<LogIndex, i32>, disks: Disks) -> Option<Disks> {
    let is_canceled = *proposed == Err(libc::ECANCELED);
    (is_canceled && disks == Disks::Later).then_some(Disks::Now)
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

#[cfg(test)]
mod tests {
    use super::{Disks, StageId, asked_for, proto, put_stage};
    use crate::types::{LogIndex, SessionId};

    /// What was told to be in memory only, and would have replaced bytes, is brought to disks and written then, whatever there
    /// is. Nothing else is tried again.
    #[test]
    fn a_stage_that_would_replace_bytes_goes_to_disks_first() {
        let id = StageId { session: SessionId(3), number: 7 };
        let write = |disks| {
            let mut write = proto::Write { ino: 5, ..proto::Write::default() };
            put_stage(&mut write, id, vec![proto::Piece::default()], disks);
            write
        };
        let loose = write(Disks::Later);
        assert!(loose.loose && loose.adds_only, "{loose:?}");
        assert_eq!((loose.ino, loose.stage, loose.pieces.len()), (5, 7, 1));
        let refused = Err(libc::ECANCELED);
        assert_eq!(asked_for(&refused, Disks::Later), Some(Disks::Now));
        let durable = write(Disks::Now);
        assert_eq!(durable, proto::Write { loose: false, adds_only: false, ..loose });
        for disks in [Disks::Now, Disks::Later] {
            assert_eq!(asked_for(&Ok(LogIndex(9)), disks), None);
            assert_eq!(asked_for(&Err(libc::EIO), disks), None);
        }
        assert_eq!(asked_for(&refused, Disks::Now), None, "nothing would come of it");
    }
}
