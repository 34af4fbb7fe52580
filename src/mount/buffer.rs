//! What the programs of this mount wrote to one inode and the cluster has not committed yet.
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
use crate::fs::proto;
use crate::types::{ByteRange, Ino, LogIndex};

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
}

/// One lot of bytes, ready to be proposed.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) writes: Vec<proto::Write>,
    /// Appends: each command waits for the one before.
    pub(super) ordered: bool,
    /// When the last of them was written.
    pub(super) time: proto::Time,
}

/// What the buffer adds to the attributes of the record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct BufferedAttributes {
    /// The file is at least this long.
    pub(super) end: u64,
    pub(super) bytes: usize,
    pub(super) time: proto::Time,
    pub(super) kill_suid_sgid: bool,
}

/// The buffer of one inode.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) ino: Ino,
    state: Mutex<State>,
    /// One permit: whoever holds it takes a lot and sees it settled.
    pub(super) turn: Semaphore,
}

/// What a buffer holds; see the stages in the module's description.
#[derive(Debug, Default)]
pub(super) struct State {
    dirty: Extents,
    appends: Vec<Bytes>,
    append_bytes: usize,
    kill_suid_sgid: bool,
    written: Option<proto::Time>,
    dirty_since: Option<Instant>,
    taken: Option<Taken>,
    /// Number of WRITEs taken in, and of those that are settled.
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
    time: proto::Time,
    accepted: u64,
}

impl Buffer {
    pub(super) fn new(ino: Ino) -> Self {
        Self { ino, state: Mutex::default(), turn: Semaphore::new(1) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    /// Takes bytes in, unless bytes of the other kind (appended, positioned) are pending: these have
    /// to be committed first, or their order would be lost.
    pub(super) fn accept(&mut self, new: &NewBytes, now: Instant) -> bool {
        match new.offset {
            Some(_) if !self.appends.is_empty() => return false,
            None if self.dirty.bytes() > 0 => return false,
            Some(offset) => self.dirty.write(offset, &new.data),
            None => {
                self.append_bytes += new.data.len();
                self.appends.push(new.data.clone());
            }
        }
        self.kill_suid_sgid |= new.kill_suid_sgid;
        self.written = Some(new.time);
        self.dirty_since.get_or_insert(now);
        self.accepted += 1;
        true
    }

    /// Takes what is pending for a flush, in commands of at most `inline_max` bytes; `None` where
    /// nothing is.
    pub(super) fn take(&mut self, ino: Ino, inline_max: usize) -> Option<Batch> {
        debug_assert!(self.taken.is_none(), "one lot at a time");
        self.commit_scheduled = false;
        let time = self.written.take()?;
        self.dirty_since = None;
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
        self.taken =
            Some(Taken { pieces, bytes, appends: ordered, kill_suid_sgid, time, accepted });
        let write = |pieces| proto::Write { ino: ino.0, pieces, append: ordered, kill_suid_sgid };
        Some(Batch { writes: commands.into_iter().map(write).collect(), ordered, time })
    }

    /// The lot that was taken is applied here (up to which index), or lost (with which errno).
    /// Answers how many bytes it had.
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
        taken.bytes
    }

    /// Number of WRITEs taken in so far: what a commit that starts now has to settle.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Whether the first `accepted` WRITEs are settled.
    pub(super) fn is_settled(&self, accepted: u64) -> bool {
        self.settled >= accepted
    }

    /// The highest index at which bytes of this buffer were committed.
    pub(super) fn committed(&self) -> LogIndex {
        self.committed
    }

    /// Bytes that are not settled.
    pub(super) fn bytes(&self) -> usize {
        self.dirty.bytes() + self.append_bytes + self.taken.as_ref().map_or(0, |taken| taken.bytes)
    }

    /// Since when bytes have been pending.
    pub(super) fn dirty_since(&self) -> Option<Instant> {
        self.dirty_since
    }

    /// Whether a commit has to be started in the background; true only once until it takes a lot.
    pub(super) fn schedule_commit(&mut self) -> bool {
        self.written.is_some() && !std::mem::replace(&mut self.commit_scheduled, true)
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
        if let Some(taken) = &self.taken {
            extents::overlay(&taken.pieces, range, &mut patch);
        }
        self.dirty.overlay(range, &mut patch);
        patch
    }

    /// What the buffer adds to the record; `None` where nothing is unsettled.
    pub(super) fn attributes(&self) -> Option<BufferedAttributes> {
        let taken = self.taken.as_ref();
        let time = self.written.or(taken.map(|taken| taken.time))?;
        let taken_end = taken
            .and_then(|taken| taken.pieces.last())
            .map_or(0, |piece| piece.offset + piece.data.len() as u64);
        Some(BufferedAttributes {
            end: self.dirty.end().max(taken_end),
            bytes: self.bytes(),
            time,
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

    fn bytes(offset: Option<u64>, len: usize, seconds: i64) -> NewBytes {
        let time = proto::Time { seconds, nanos: 0 };
        NewBytes { offset, data: vec![1; len].into(), kill_suid_sgid: false, time }
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
        assert_eq!((attributes.end, attributes.bytes, attributes.time.seconds), (110, 120, 2));
        let target = state.accepted();
        assert_eq!(state.settle(Ok(LogIndex(5))), 100);
        assert!(!state.is_settled(target));
        state.take_all().expect("the second write");
        state.settle(Ok(LogIndex(6)));
        assert!(state.is_settled(target));
        assert_eq!((state.attributes(), state.bytes(), state.committed()), (None, 0, LogIndex(6)));
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
}
