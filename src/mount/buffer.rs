//! What the programs of this mount wrote to one inode and the cluster has not committed yet: bytes, times
//! that were set after them, and the ctime of a change that changed nothing else.
//!
//! All open files of an inode share one [`Buffer`]; every read and stat of this mount looks through
//! it. Bytes are first *pending* (taken in), then *taken* (on their way in commands, still
//! readable here) and at last *settled* (applied here, or lost and recorded as a failure). At most one lot
//! is taken at a time, so commands of one inode never overtake each other. Many pending bytes are moved out of
//! memory, to a stage, from where one command takes them.

use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use rangemap::RangeSet;
use tokio::sync::Semaphore;

use super::extents::{self, Extents, Piece};
use super::locks::Lockers;
use super::times::later;
use crate::fs::proto;
use crate::node::OpenStage;
use crate::types::{ByteRange, Ino, LogIndex, SessionId, StageId};

/// What one WRITE brings.
#[derive(Clone, Debug)]
pub(super) struct NewBytes {
    /// Where; `None` appends to the file as it is when the bytes are applied.
    pub(super) offset: Option<u64>,
    pub(super) data: Bytes,
    /// suid and sgid are to be cleared.
    pub(super) kill_suid_sgid: bool,
    /// When the program wrote: becomes `mtime`.
    pub(super) time: proto::Time,
    /// They are written under a lock of this session: in another one they must not appear.
    pub(super) only_in: Option<SessionId>,
}

/// Times that were set after bytes were written; absent ones stay.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct SetTimes {
    pub(super) atime: Option<proto::Time>,
    pub(super) mtime: Option<proto::Time>,
}

impl SetTimes {
    pub(super) fn any(self) -> bool {
        self.atime.is_some() || self.mtime.is_some()
    }

    /// These, set after `earlier`.
    fn after(self, earlier: Self) -> Self {
        Self { atime: self.atime.or(earlier.atime), mtime: self.mtime.or(earlier.mtime) }
    }
}

/// One lot, ready to be proposed.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    pub(super) writes: Vec<proto::Write>,
    /// Appends: each command waits for the one before.
    pub(super) ordered: bool,
    /// When the last of them was written.
    pub(super) time: proto::Time,
    /// Times that were set after the writes.
    pub(super) times: SetTimes,
    /// A ctime that the writes do not bring.
    pub(super) ctime: Option<proto::Time>,
    /// The only session that may commit it.
    pub(super) only_in: Option<SessionId>,
    /// The bytes are in the open stage; `writes` says nothing of them yet.
    pub(super) is_staged: bool,
}

/// Bytes that lie over what the record says.
#[derive(Clone, Debug)]
pub(super) enum Patch {
    /// Here.
    Bytes(Piece),
    /// At the same offsets of a stage.
    Staged(StageId, ByteRange),
}

impl Patch {
    pub(super) fn range(&self) -> ByteRange {
        match self {
            Self::Bytes(piece) => piece.range(),
            Self::Staged(_, range) => *range,
        }
    }
}

impl Batch {
    /// Whether a change of attributes can carry all of it.
    pub(super) fn is_portable(&self) -> bool {
        self.writes.len() <= 1 && !self.ordered && !self.is_staged
    }

    /// Has a change of attributes carry the bytes and times that came before it.
    pub(super) fn put_into(self, set: &mut proto::SetAttr) {
        debug_assert!(self.is_portable(), "not all of it fits");
        let times = SetTimes { atime: set.atime, mtime: set.mtime }.after(self.times);
        (set.atime, set.mtime) = (times.atime, times.mtime);
        set.write = self.writes.into_iter().next();
        set.written = set.write.as_ref().map(|_| self.time);
    }
}

/// What the buffer adds to the attributes of the record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct BufferedAttributes {
    /// The file is at least this long.
    pub(super) end: u64,
    pub(super) bytes: usize,
    /// These were set.
    pub(super) set: SetTimes,
    /// `mtime` is at least this, whatever was set.
    pub(super) written: Option<proto::Time>,
    /// `ctime` is at least this.
    pub(super) changed: proto::Time,
    pub(super) kill_suid_sgid: bool,
}

/// The buffer of one inode.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) ino: Ino,
    state: Mutex<State>,
    /// One permit: whoever holds it takes a lot and sees it settled.
    pub(super) turn: Semaphore,
    /// The stage that pending bytes go to; of whoever has the turn.
    pub(super) open_stage: tokio::sync::Mutex<Option<OpenStage>>,
    pub(super) lockers: Lockers,
}

/// What a buffer holds; see the stages in the module's description.
#[derive(Debug, Default)]
pub(super) struct State {
    dirty: Extents,
    /// On their way to the stage; older than `dirty`.
    moving: Vec<Piece>,
    /// In it; older than both.
    staged: Staged,
    /// How many WRITEs had been taken in when the last of these were moved.
    staged_accepted: u64,
    appends: Vec<Bytes>,
    append_bytes: usize,
    kill_suid_sgid: bool,
    written: Option<proto::Time>,
    /// Set after all bytes that are pending, of which there are some.
    times: SetTimes,
    ctime: Option<proto::Time>,
    dirty_since: Option<Instant>,
    only_in: Option<SessionId>,
    taken: Option<Taken>,
    /// Number of WRITEs, times and ctimes taken in, and of those that are settled.
    accepted: u64,
    settled: u64,
    committed: LogIndex,
    failures: u64,
    last_errno: i32,
    commit_scheduled: bool,
    drain_scheduled: bool,
}

/// Ranges of a stage.
#[derive(Clone, Debug, Default)]
struct Staged {
    stage: Option<StageId>,
    ranges: RangeSet<u64>,
}

impl Staged {
    fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.end)
    }

    fn overlay(&self, range: ByteRange, patch: &mut Vec<Patch>) {
        let Some(stage) = self.stage.filter(|_| !range.is_empty()) else { return };
        patch.extend(self.ranges.overlapping(range.start..range.end).map(|found| {
            let start = found.start.max(range.start);
            Patch::Staged(stage, ByteRange { start, end: found.end.min(range.end) })
        }));
    }
}

#[derive(Debug)]
struct Taken {
    pieces: Vec<Piece>,
    staged: Staged,
    bytes: usize,
    appends: bool,
    kill_suid_sgid: bool,
    written: Option<proto::Time>,
    times: SetTimes,
    ctime: Option<proto::Time>,
    accepted: u64,
    /// A change of attributes carries it, or it is one.
    carried: bool,
    /// That change is applied here: the record is newer than the lot now.
    superseded: bool,
}

impl Buffer {
    pub(super) fn new(ino: Ino) -> Self {
        Self {
            ino,
            state: Mutex::default(),
            turn: Semaphore::new(1),
            open_stage: tokio::sync::Mutex::default(),
            lockers: Lockers::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    /// Takes bytes in, unless bytes of the other kind (appended, positioned) are pending: these have
    /// to be committed first, or their order would be lost. So have bytes under another session's locks, and
    /// times that were set before.
    pub(super) fn accept(&mut self, new: &NewBytes, now: Instant) -> bool {
        if self.is_pending() && (self.only_in != new.only_in || self.times.any()) {
            return false;
        }
        match new.offset {
            Some(_) if !self.appends.is_empty() => return false,
            None if self.dirty.bytes() > 0 || self.has_staged() => return false,
            Some(offset) => self.dirty.write(offset, &new.data),
            None => {
                self.append_bytes += new.data.len();
                self.appends.push(new.data.clone());
            }
        }
        self.only_in = new.only_in;
        self.kill_suid_sgid |= new.kill_suid_sgid;
        self.written = Some(new.time);
        self.dirty_since.get_or_insert(now);
        self.accepted += 1;
        true
    }

    /// Takes in a change of nothing but ctime.
    pub(super) fn accept_ctime(&mut self, time: proto::Time, now: Instant) {
        self.ctime = Some(time);
        self.dirty_since.get_or_insert(now);
        self.accepted += 1;
    }

    /// Takes in times that are set, where bytes are pending that go out in one command with them; not where these
    /// depend on a lock, which whoever sets times may not have.
    pub(super) fn accept_times(
        &mut self,
        times: SetTimes,
        ctime: proto::Time,
        inline_max: usize,
        now: Instant,
    ) -> bool {
        let fits = self.written.is_some()
            && self.appends.is_empty()
            && self.only_in.is_none()
            && !self.has_staged();
        if !fits || !self.dirty.fit_one_command(inline_max) {
            return false;
        }
        self.times = times.after(self.times);
        self.accept_ctime(ctime, now);
        true
    }

    /// Takes what is pending for a change of attributes to carry; `None` where nothing is, or where one
    /// command cannot carry it.
    pub(super) fn take_carried(&mut self, ino: Ino, inline_max: usize) -> Option<Batch> {
        let is_small = self.dirty.fit_one_command(inline_max) && !self.has_staged();
        if !self.appends.is_empty() || !is_small {
            return None;
        }
        let batch = self.take(ino, inline_max);
        if let Some(taken) = &mut self.taken {
            taken.carried = true;
        }
        batch
    }

    /// Whether pending bytes are in a stage, or on their way.
    pub(super) fn has_staged(&self) -> bool {
        !self.staged.ranges.is_empty() || !self.moving.is_empty()
    }

    /// Whether what is pending has to go through a stage: because some does, or because it is more than one
    /// command is to carry. Appended bytes do not.
    pub(super) fn wants_stage(&self, inline_max: usize) -> bool {
        self.has_staged() || self.dirty.bytes() > inline_max
    }

    /// Whether times were set after the pending bytes, which go with them in one command.
    pub(super) fn has_times(&self) -> bool {
        self.times.any()
    }

    /// Whether pending bytes lie over others that are in the stage: nothing is added to it twice.
    pub(super) fn overwrites_staged(&self) -> bool {
        let mut ranges = self.dirty.ranges();
        ranges.any(|range| self.staged.ranges.overlaps(&(range.start..range.end)))
    }

    /// Pending bytes that are to be added to the stage now. They stay readable here; then [`Self::moved`].
    pub(super) fn move_to_stage(&mut self) -> Vec<Piece> {
        debug_assert!(self.moving.is_empty(), "one at a time");
        self.moving = self.dirty.take(usize::MAX);
        self.staged_accepted = self.accepted;
        self.moving.clone()
    }

    /// They are in it. Answers what they weighed.
    pub(super) fn moved(&mut self, stage: StageId) -> usize {
        debug_assert!(self.staged.stage.is_none_or(|open| open == stage), "one stage at a time");
        self.staged.stage = Some(stage);
        let moved = std::mem::take(&mut self.moving);
        for range in moved.iter().map(Piece::range) {
            self.staged.ranges.insert(range.start..range.end);
        }
        moved.iter().map(|piece| piece.data.len()).sum()
    }

    /// Takes what is pending for a flush, in commands of at most `inline_max` bytes; `None` where
    /// nothing is.
    pub(super) fn take(&mut self, ino: Ino, inline_max: usize) -> Option<Batch> {
        debug_assert!(self.taken.is_none(), "one lot at a time");
        self.commit_scheduled = false;
        if !self.is_pending() {
            return None;
        }
        let is_staged = self.has_staged();
        // Written since the others were moved: they remain, for the next lot.
        let rest = is_staged && self.dirty.bytes() > 0;
        let (written, ctime) = (self.written, self.ctime.take());
        if !rest {
            self.dirty_since = None;
            self.written = None;
        }
        let times = std::mem::take(&mut self.times);
        let kill_suid_sgid = self.kill_suid_sgid;
        self.kill_suid_sgid &= rest;
        let ordered = !self.appends.is_empty();
        // What could not be moved is shown until the lot is settled.
        let moving = std::mem::take(&mut self.moving);
        let in_memory = moving.iter().map(|piece| piece.data.len()).sum::<usize>();
        let staged = std::mem::take(&mut self.staged);
        let (bytes, pieces, commands) = if is_staged {
            (0, moving, vec![Vec::new()])
        } else if ordered {
            let commands = append_commands(std::mem::take(&mut self.appends), inline_max);
            (std::mem::take(&mut self.append_bytes), Vec::new(), commands)
        } else {
            let bytes = self.dirty.bytes();
            let pieces = self.dirty.take(inline_max);
            let commands = extents::into_commands(&pieces, inline_max);
            (bytes, pieces, commands)
        };
        let accepted = if rest { self.staged_accepted } else { self.accepted };
        self.taken = Some(Taken {
            pieces,
            staged,
            bytes: bytes + in_memory,
            appends: ordered,
            kill_suid_sgid,
            written,
            times,
            ctime,
            accepted,
            carried: times.any(),
            superseded: false,
        });
        let write = |pieces| proto::Write {
            ino: ino.0,
            pieces,
            append: ordered,
            kill_suid_sgid,
            ..Default::default()
        };
        let writes = commands.into_iter().map(write).collect();
        // A write raises ctime to its own time.
        let brings = |ctime| written.is_some_and(|time| later(time, ctime) == time);
        let ctime = ctime.filter(|ctime| times.any() || !brings(*ctime));
        let only_in = self.only_in;
        self.only_in = self.only_in.filter(|_| rest);
        let time = written.unwrap_or_default();
        Some(Batch { writes, ordered, time, times, ctime, only_in, is_staged })
    }

    /// Bytes of this mount were applied here. Where they came with a change of attributes, which may
    /// have cut them or set the times back, what is in the record counts from now on.
    pub(super) fn applied(&mut self, range: ByteRange) {
        if let Some(taken) = &mut self.taken
            && taken.carried
            && taken.pieces.first().is_some_and(|piece| piece.range() == range)
        {
            taken.superseded = true;
        }
    }

    /// The lot that was taken is applied here (up to which index), or lost (with which errno).
    /// Answers what it weighed.
    pub(super) fn settle(&mut self, result: Result<LogIndex, i32>) -> usize {
        let Some(taken) = self.taken.take() else { return 0 };
        self.settled = taken.accepted;
        match result {
            Ok(index) => self.committed = self.committed.max(index),
            Err(errno) => self.lose(errno),
        }
        taken.bytes + usize::from(taken.ctime.is_some())
    }

    /// Bytes that were not taken in are lost.
    pub(super) fn lose(&mut self, errno: i32) {
        self.failures += 1;
        self.last_errno = errno;
    }

    /// Number of WRITEs and ctimes taken in so far: what a commit that starts now has to settle.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Whether the first `accepted` of them are settled.
    pub(super) fn is_settled(&self, accepted: u64) -> bool {
        self.settled >= accepted
    }

    /// Whether all that was taken in is settled.
    pub(super) fn is_clean(&self) -> bool {
        self.is_settled(self.accepted)
    }

    /// The highest index at which something of this buffer was committed.
    pub(super) fn committed(&self) -> LogIndex {
        self.committed
    }

    /// Bytes that are not settled; a ctime counts as one, so that the mount knows that there is something.
    pub(super) fn weight(&self) -> usize {
        let taken = self.taken.as_ref();
        let ctimes = [self.ctime, taken.and_then(|taken| taken.ctime)];
        let bytes = self.pending_bytes() + taken.map_or(0, |taken| taken.bytes);
        bytes + ctimes.iter().flatten().count()
    }

    /// In memory.
    fn pending_bytes(&self) -> usize {
        let moving = self.moving.iter().map(|piece| piece.data.len()).sum::<usize>();
        self.dirty.bytes() + moving + self.append_bytes
    }

    fn is_pending(&self) -> bool {
        self.written.is_some() || self.ctime.is_some()
    }

    /// Since when something has been pending.
    pub(super) fn dirty_since(&self) -> Option<Instant> {
        self.dirty_since
    }

    /// Whether pending bytes have to be moved out of memory in the background; true only once until that begins.
    pub(super) fn schedule_drain(&mut self) -> bool {
        !std::mem::replace(&mut self.drain_scheduled, true)
    }

    pub(super) fn drain_begins(&mut self) {
        self.drain_scheduled = false;
    }

    /// Whether a commit has to be started in the background; true only once until it takes a lot.
    pub(super) fn schedule_commit(&mut self) -> bool {
        self.is_pending() && !std::mem::replace(&mut self.commit_scheduled, true)
    }

    /// Whether appended bytes are not settled: nobody knows yet where they will stand.
    pub(super) fn has_appends(&self) -> bool {
        !self.appends.is_empty() || self.taken.as_ref().is_some_and(|taken| taken.appends)
    }

    /// How often something was lost so far, and the errno of the last.
    pub(super) fn failures(&self) -> (u64, i32) {
        (self.failures, self.last_errno)
    }

    /// What overlaps `range`, to be applied in this order over the backing file's bytes.
    pub(super) fn overlay(&self, range: ByteRange) -> Vec<Patch> {
        let mut patch = Vec::new();
        if let Some(taken) = self.shown() {
            taken.staged.overlay(range, &mut patch);
            extents::overlay(&taken.pieces, range, &mut patch);
        }
        self.staged.overlay(range, &mut patch);
        extents::overlay(&self.moving, range, &mut patch);
        self.dirty.overlay(range, &mut patch);
        patch
    }

    /// The lot that is under way, while it says more than the record.
    fn shown(&self) -> Option<&Taken> {
        self.taken.as_ref().filter(|taken| !taken.superseded)
    }

    /// What the buffer adds to the record; `None` where nothing is unsettled.
    pub(super) fn attributes(&self) -> Option<BufferedAttributes> {
        let taken = self.shown();
        let written = self.written.or(taken.and_then(|taken| taken.written));
        let ctime = self.ctime.or(taken.and_then(|taken| taken.ctime));
        let changed = [written, ctime].into_iter().flatten().reduce(later)?;
        let end_of = |pieces: &[Piece]| pieces.last().map_or(0, |piece| piece.range().end);
        let taken_end = taken.map_or(0, |taken| end_of(&taken.pieces).max(taken.staged.end()));
        let pending_end = self.dirty.end().max(end_of(&self.moving)).max(self.staged.end());
        // In the order in which they happened.
        let mut shown = (SetTimes::default(), None);
        for (written, times) in [
            taken.map_or((None, SetTimes::default()), |taken| (taken.written, taken.times)),
            (self.written, self.times),
        ] {
            shown.1 = written.or(shown.1).filter(|_| times.mtime.is_none());
            shown.0 = times.after(shown.0);
        }
        Some(BufferedAttributes {
            set: shown.0,
            end: pending_end.max(taken_end),
            bytes: self.pending_bytes() + taken.map_or(0, |taken| taken.bytes),
            written: shown.1,
            changed,
            kill_suid_sgid: self.kill_suid_sgid || taken.is_some_and(|taken| taken.kill_suid_sgid),
        })
    }
}

/// Distributes appended pieces, in order, over commands: small ones share one, and one write(2) is
/// never divided, so that it stays atomic.
fn append_commands(appends: Vec<Bytes>, inline_max: usize) -> Vec<Vec<proto::Piece>> {
    let mut commands: Vec<Vec<proto::Piece>> = Vec::new();
    let mut bytes = 0;
    for data in appends {
        let fits = bytes + data.len() <= inline_max;
        bytes = if fits { bytes } else { 0 } + data.len();
        let piece = proto::Piece { data, ..Default::default() };
        match commands.last_mut() {
            Some(last) if fits => last.push(piece),
            Some(_) | None => commands.push(vec![piece]),
        }
    }
    commands
}

#[cfg(test)]
#[path = "buffer_tests.rs"]
mod tests;
