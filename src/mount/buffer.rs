//! What the programs of this mount wrote to one inode and the cluster has not committed yet: bytes, and
//! the ctime of a change that changed nothing else.
//!
//! All open files of an inode share one [`Buffer`]; every read and stat of this mount looks through
//! it. Bytes go through three stages: *pending* (taken in), *taken* (on their way in commands, still
//! readable here) and *settled* (applied here, or lost and recorded as a failure). At most one lot
//! is taken at a time, so commands of one inode never overtake each other.

use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;

use super::extents::{self, Extents, Piece};
use super::locks::Lockers;
use super::times::later;
use crate::fs::proto;
use crate::types::{ByteRange, Ino, LogIndex, SessionId};

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

/// One lot, ready to be proposed.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    pub(super) writes: Vec<proto::Write>,
    /// Appends: each command waits for the one before.
    pub(super) ordered: bool,
    /// When the last of them was written.
    pub(super) time: proto::Time,
    /// A ctime that the writes do not bring.
    pub(super) ctime: Option<proto::Time>,
    /// The only session that may commit it.
    pub(super) only_in: Option<SessionId>,
}

impl Batch {
    /// Whether a change of attributes can carry all of it.
    pub(super) fn is_portable(&self) -> bool {
        self.writes.len() <= 1 && !self.ordered
    }

    /// Has a change of attributes carry the bytes that came before it.
    pub(super) fn put_into(self, set: &mut proto::SetAttr) {
        debug_assert!(self.is_portable(), "not all of it fits");
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
    /// `mtime` is at least this.
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
    pub(super) lockers: Lockers,
}

/// What a buffer holds; see the stages in the module's description.
#[derive(Debug, Default)]
pub(super) struct State {
    dirty: Extents,
    appends: Vec<Bytes>,
    append_bytes: usize,
    kill_suid_sgid: bool,
    written: Option<proto::Time>,
    ctime: Option<proto::Time>,
    dirty_since: Option<Instant>,
    only_in: Option<SessionId>,
    taken: Option<Taken>,
    /// Number of WRITEs and ctimes taken in, and of those that are settled.
    accepted: u64,
    settled: u64,
    committed: LogIndex,
    failures: u64,
    last_errno: i32,
    commit_scheduled: bool,
}

#[derive(Debug)]
struct Taken {
    pieces: Vec<Piece>,
    bytes: usize,
    appends: bool,
    kill_suid_sgid: bool,
    written: Option<proto::Time>,
    ctime: Option<proto::Time>,
    accepted: u64,
    /// A change of attributes carries it.
    carried: bool,
    /// That change is applied here: the record is newer than the lot now.
    superseded: bool,
}

impl Buffer {
    pub(super) fn new(ino: Ino) -> Self {
        Self { ino, state: Mutex::default(), turn: Semaphore::new(1), lockers: Lockers::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    /// Takes bytes in, unless bytes of the other kind (appended, positioned) are pending: these have
    /// to be committed first, or their order would be lost. So have bytes under another session's locks.
    pub(super) fn accept(&mut self, new: &NewBytes, now: Instant) -> bool {
        if self.is_pending() && self.only_in != new.only_in {
            return false;
        }
        match new.offset {
            Some(_) if !self.appends.is_empty() => return false,
            None if self.dirty.bytes() > 0 => return false,
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

    /// Takes what is pending for a change of attributes to carry; `None` where nothing is, or where one
    /// command cannot carry it.
    pub(super) fn take_carried(&mut self, ino: Ino, inline_max: usize) -> Option<Batch> {
        if !self.appends.is_empty() || !self.dirty.fit_one_command(inline_max) {
            return None;
        }
        let batch = self.take(ino, inline_max);
        if let Some(taken) = &mut self.taken {
            taken.carried = true;
        }
        batch
    }

    /// Takes what is pending for a flush, in commands of at most `inline_max` bytes; `None` where
    /// nothing is.
    pub(super) fn take(&mut self, ino: Ino, inline_max: usize) -> Option<Batch> {
        debug_assert!(self.taken.is_none(), "one lot at a time");
        self.commit_scheduled = false;
        if !self.is_pending() {
            return None;
        }
        self.dirty_since = None;
        let (written, ctime) = (self.written.take(), self.ctime.take());
        let kill_suid_sgid = std::mem::take(&mut self.kill_suid_sgid);
        let ordered = !self.appends.is_empty();
        let (bytes, pieces, commands) = if ordered {
            let commands = append_commands(std::mem::take(&mut self.appends), inline_max);
            (std::mem::take(&mut self.append_bytes), Vec::new(), commands)
        } else {
            let bytes = self.dirty.bytes();
            let pieces = self.dirty.take(inline_max);
            let commands = extents::into_commands(&pieces, inline_max);
            (bytes, pieces, commands)
        };
        let accepted = self.accepted;
        self.taken = Some(Taken {
            pieces,
            bytes,
            appends: ordered,
            kill_suid_sgid,
            written,
            ctime,
            accepted,
            carried: false,
            superseded: false,
        });
        let write = |pieces| proto::Write { ino: ino.0, pieces, append: ordered, kill_suid_sgid };
        let writes = commands.into_iter().map(write).collect();
        // A write raises ctime to its own time.
        let ctime = ctime.filter(|ctime| written.is_none_or(|time| later(time, *ctime) != time));
        let only_in = self.only_in.take();
        Some(Batch { writes, ordered, time: written.unwrap_or_default(), ctime, only_in })
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
            Err(errno) => {
                self.failures += 1;
                self.last_errno = errno;
            }
        }
        taken.bytes + usize::from(taken.ctime.is_some())
    }

    /// Number of WRITEs and ctimes taken in so far: what a commit that starts now has to settle.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Whether the first `accepted` of them are settled.
    pub(super) fn is_settled(&self, accepted: u64) -> bool {
        self.settled >= accepted
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

    fn pending_bytes(&self) -> usize {
        self.dirty.bytes() + self.append_bytes
    }

    fn is_pending(&self) -> bool {
        self.written.is_some() || self.ctime.is_some()
    }

    /// Since when something has been pending.
    pub(super) fn dirty_since(&self) -> Option<Instant> {
        self.dirty_since
    }

    /// Whether a commit has to be started in the background; true only once until it takes a lot.
    pub(super) fn schedule_commit(&mut self) -> bool {
        self.is_pending() && !std::mem::replace(&mut self.commit_scheduled, true)
    }

    /// Whether appended bytes are not settled: nobody knows yet where they will stand.
    pub(super) fn has_appends(&self) -> bool {
        !self.appends.is_empty() || self.taken.as_ref().is_some_and(|taken| taken.appends)
    }

    /// Number of lots lost so far, and the errno of the last.
    pub(super) fn failures(&self) -> (u64, i32) {
        (self.failures, self.last_errno)
    }

    /// What overlaps `range`, to be applied in this order over the backing file's bytes.
    pub(super) fn overlay(&self, range: ByteRange) -> Vec<Piece> {
        let mut patch = Vec::new();
        if let Some(taken) = self.shown() {
            extents::overlay(&taken.pieces, range, &mut patch);
        }
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
        let taken_end =
            taken.and_then(|taken| taken.pieces.last()).map_or(0, |piece| piece.range().end);
        Some(BufferedAttributes {
            end: self.dirty.end().max(taken_end),
            bytes: self.pending_bytes() + taken.map_or(0, |taken| taken.bytes),
            written,
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
        let piece = proto::Piece { offset: 0, data };
        match commands.last_mut() {
            Some(last) if fits => last.push(piece),
            Some(_) | None => commands.push(vec![piece]),
        }
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::{Batch, ByteRange, Ino, Instant, LogIndex, NewBytes, State, proto};

    const INLINE_MAX: usize = 64 << 10;

    impl State {
        fn take_all(&mut self) -> Option<Batch> {
            self.take(Ino(7), INLINE_MAX)
        }
    }

    fn at(seconds: i64) -> proto::Time {
        proto::Time { seconds, nanos: 0 }
    }

    fn bytes(offset: Option<u64>, len: usize, seconds: i64) -> NewBytes {
        let data = vec![1; len].into();
        NewBytes { offset, data, kill_suid_sgid: false, time: at(seconds), only_in: None }
    }

    /// Bytes stay visible from the WRITE until they are applied, and attributes only rise.
    #[test]
    fn visible_until_settled() {
        let mut state = State::default();
        assert!(state.accept(&bytes(Some(10), 100, 1), Instant::now()));
        let batch = state.take_all().expect("dirty");
        assert_eq!((batch.writes.len(), batch.ordered, batch.time.seconds), (1, false, 1));
        assert_eq!(state.overlay(ByteRange::at(0, 50)).len(), 1);
        assert!(state.accept(&bytes(Some(0), 20, 2), Instant::now()));
        let attributes = state.attributes().expect("unsettled");
        assert_eq!((attributes.end, attributes.bytes), (110, 120));
        assert_eq!((attributes.written, attributes.changed), (Some(at(2)), at(2)));
        let target = state.accepted();
        assert_eq!(state.settle(Ok(LogIndex(5))), 100);
        assert!(!state.is_settled(target));
        state.take_all().expect("the second write");
        state.settle(Ok(LogIndex(6)));
        assert!(state.is_settled(target));
        assert_eq!((state.attributes(), state.weight(), state.committed()), (None, 0, LogIndex(6)));
    }

    /// Appended and positioned bytes are never pending together.
    #[test]
    fn kinds_do_not_mix() {
        let mut state = State::default();
        assert!(state.accept(&bytes(None, 10, 1), Instant::now()));
        assert!(!state.accept(&bytes(Some(0), 10, 1), Instant::now()));
        assert!(state.has_appends());
        assert!(state.take_all().expect("pending").ordered);
        assert!(state.has_appends(), "until they are applied");
        assert!(state.accept(&bytes(Some(0), 10, 1), Instant::now()));
        assert!(!state.accept(&bytes(None, 10, 1), Instant::now()));
        state.settle(Ok(LogIndex(1)));
        assert!(!state.has_appends());
    }

    /// An appending write(2) is one piece of one command, however long; short ones share.
    #[test]
    fn appends_are_never_divided() {
        let mut state = State::default();
        for len in [1 << 20, 100, 200, INLINE_MAX, 1] {
            assert!(state.accept(&bytes(None, len, 1), Instant::now()));
        }
        let sizes: Vec<Vec<usize>> = state
            .take_all()
            .expect("pending")
            .writes
            .iter()
            .map(|write| write.pieces.iter().map(|piece| piece.data.len()).collect())
            .collect();
        assert_eq!(sizes, [vec![1 << 20], vec![100, 200], vec![INLINE_MAX], vec![1]]);
    }

    /// A lost lot is a failure that a handle can tell from those that it has already reported.
    #[test]
    fn failures_are_counted() {
        let mut state = State::default();
        state.accept(&bytes(Some(0), 1, 1), Instant::now());
        state.take_all();
        state.settle(Err(libc::ENOSPC));
        assert_eq!(state.failures(), (1, libc::ENOSPC));
        assert!(state.is_settled(1), "nobody waits for lost bytes");
    }

    /// A background commit is started once, and again only after it took what there was.
    #[test]
    fn scheduled_once() {
        let mut state = State::default();
        assert!(!state.schedule_commit(), "nothing to commit");
        state.accept(&bytes(Some(0), 1, 1), Instant::now());
        assert!(state.schedule_commit());
        assert!(!state.schedule_commit());
        state.take_all();
        state.settle(Ok(LogIndex(1)));
        state.accept(&bytes(Some(0), 1, 1), Instant::now());
        assert!(state.schedule_commit());
    }

    /// A change of nothing but ctime shows at once, is committed like bytes, and is no byte.
    #[test]
    fn a_ctime_by_itself() {
        let mut state = State::default();
        state.accept_ctime(at(5), Instant::now());
        assert!(state.dirty_since().is_some() && state.schedule_commit());
        let shown = state.attributes().expect("unsettled");
        assert_eq!((shown.end, shown.bytes, shown.written, shown.changed), (0, 0, None, at(5)));
        let target = state.accepted();
        let batch = state.take_all().expect("pending");
        assert!(batch.is_portable() && batch.writes.is_empty());
        assert_eq!(batch.ctime, Some(at(5)));
        assert_eq!((state.attributes(), state.weight()), (Some(shown), 1));
        assert!(!state.is_settled(target));
        assert_eq!(state.settle(Ok(LogIndex(3))), 1);
        assert!(state.is_settled(target));
        assert_eq!((state.attributes(), state.weight(), state.committed()), (None, 0, LogIndex(3)));
    }

    /// One command carries a ctime and the bytes before it; bytes that come later bring their own.
    #[test]
    fn a_ctime_with_bytes() {
        let mut state = State::default();
        state.accept(&bytes(Some(0), 3, 1), Instant::now());
        state.accept_ctime(at(5), Instant::now());
        let shown = state.attributes().expect("unsettled");
        assert_eq!((shown.written, shown.changed, shown.bytes), (Some(at(1)), at(5), 3));
        assert_eq!(state.weight(), 4);
        let batch = state.take_all().expect("pending");
        assert!(batch.is_portable());
        assert_eq!(batch.ctime, Some(at(5)));
        let mut set = proto::SetAttr::default();
        batch.put_into(&mut set);
        assert_eq!(
            (set.write.map(|write| write.pieces.len()), set.written),
            (Some(1), Some(at(1)))
        );
        assert_eq!(state.settle(Ok(LogIndex(3))), 4);

        state.accept_ctime(at(5), Instant::now());
        state.accept(&bytes(Some(0), 3, 5), Instant::now());
        assert_eq!(state.take_all().expect("pending").ctime, None);
        assert_eq!(state.settle(Ok(LogIndex(4))), 4);
    }

    /// A change of attributes carries positioned bytes that fit one command, and nothing else.
    #[test]
    fn what_can_be_carried() {
        let mut state = State::default();
        assert!(state.take_carried(Ino(7), INLINE_MAX).is_none(), "nothing");
        state.accept(&bytes(None, 1, 1), Instant::now());
        assert!(state.take_carried(Ino(7), INLINE_MAX).is_none(), "appended");
        state.take_all();
        state.settle(Ok(LogIndex(1)));
        state.accept(&bytes(Some(0), INLINE_MAX + 1, 1), Instant::now());
        assert!(state.take_carried(Ino(7), INLINE_MAX).is_none(), "two commands");
        assert!(state.take_carried(Ino(7), INLINE_MAX + 1).expect("one").is_portable());
    }

    /// What a change of attributes carries is not shown over the record which that change left: it
    /// may have cut the bytes or set their time back.
    #[test]
    fn what_was_carried_does_not_come_back() {
        let mut state = State::default();
        state.accept(&bytes(Some(10), 5, 1), Instant::now());
        state.take_carried(Ino(7), INLINE_MAX).expect("fits");
        state.applied(ByteRange::at(0, 5));
        assert_eq!(state.attributes().map(|shown| shown.end), Some(15), "applied was another");
        state.accept(&bytes(Some(0), 1, 2), Instant::now());
        state.applied(ByteRange::at(10, 5));
        let shown = state.attributes().expect("pending");
        assert_eq!((shown.end, shown.bytes), (1, 1));
        assert_eq!(state.overlay(ByteRange::at(0, 50)).len(), 1);
        assert_eq!((state.weight(), state.settle(Ok(LogIndex(1)))), (6, 5));
    }

    /// A flush only raises: until it is settled it is shown, applied or not.
    #[test]
    fn a_flush_is_shown_until_it_is_settled() {
        let mut state = State::default();
        state.accept(&bytes(Some(10), 5, 1), Instant::now());
        state.take_all().expect("dirty");
        state.applied(ByteRange::at(10, 5));
        assert_eq!(state.attributes().map(|shown| shown.end), Some(15));
    }
}
