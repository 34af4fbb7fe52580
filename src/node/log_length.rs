//! How long the log may be, in bytes, and when something is done about it.
//!
//! What a node itself needs of it comes after its last snapshot, and is about as much as that at most, so that writing
//! snapshots costs about as much as writing the log does, however often the daemon is started meanwhile. What is before is
//! kept for members that lag, as long as the whole has no more than `max_log`.

use std::sync::atomic::{AtomicU64, Ordering};

use super::NodeConfig;
use crate::types::LogIndex;

/// A log that is too long and could not be cut is looked at again when it has grown by this part of `max_log`.
const LOOK_AGAIN: u64 = 16;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct LogLength {
    min: u64,
    max: u64,
    /// What the last snapshot covers.
    snapshot: AtomicU64,
    /// By how much the log may grow until the next one.
    growth: AtomicU64,
    /// One is due when it has so much.
    next_snapshot: AtomicU64,
    /// It is to be cut behind the last one when it has more.
    next_cut: AtomicU64,
}

impl LogLength {
    /// Of a node that has not looked at its last snapshot yet.
    pub(super) fn of(config: &NodeConfig) -> Self {
        Self::new(config.snapshot_min_log, config.max_log)
    }

    fn new(min: u64, max: u64) -> Self {
        let [snapshot, growth, next_snapshot, next_cut] = [0, min, min, max].map(AtomicU64::new);
        Self { min, max, snapshot, growth, next_snapshot, next_cut }
    }

    /// Where all of it is applied: no snapshot covers more than that.
    pub(super) fn is_snapshot_due(&self, used: u64) -> bool {
        used >= self.next_snapshot.load(Ordering::Relaxed)
    }

    pub(super) fn is_cut_due(&self, used: u64) -> bool {
        used > self.next_cut.load(Ordering::Relaxed)
    }

    /// The last snapshot that is in force covers this, and has so many bytes.
    pub(super) fn know_snapshot(&self, index: LogIndex, size: u64) {
        self.snapshot.store(index.0, Ordering::Relaxed);
        self.growth.store(self.min.max(size), Ordering::Relaxed);
    }

    /// The last snapshot covers so many bytes of the log: what comes after them brings the next one nearer, whichever process
    /// has written it.
    pub(super) fn count_from(&self, covered: u64) {
        self.next_snapshot.store(covered + self.growth(), Ordering::Relaxed);
    }

    /// It was cut as far as it could be, behind the last snapshot.
    pub(super) fn was_cut(&self, before: u64, used: u64) {
        // What was before that snapshot did not bring the next one nearer.
        let cut = before.saturating_sub(used);
        let shorter = |next: u64| Some(next.saturating_sub(cut));
        let _ = self.next_snapshot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, shorter);
        let next = if used > self.max { used + self.max / LOOK_AGAIN } else { self.max };
        self.next_cut.store(next, Ordering::Relaxed);
    }

    /// What the last snapshot covers; 0 where that is not known.
    pub(super) fn snapshot(&self) -> LogIndex {
        LogIndex(self.snapshot.load(Ordering::Relaxed))
    }

    /// What the next snapshot is to cover beyond the last one, in bytes of the log.
    pub(super) fn growth(&self) -> u64 {
        self.growth.load(Ordering::Relaxed)
    }

    /// How long it becomes while all is well, whoever lags.
    pub(super) fn limit(&self) -> u64 {
        self.max.max(self.growth())
    }
}

#[cfg(test)]
mod tests {
    use super::{LogIndex, LogLength};

    /// A log that grows one byte at a time, beside a member that never gets on, where a snapshot has `size` bytes: how long it
    /// becomes.
    fn longest(min: u64, max: u64, size: u64) -> u64 {
        let length = LogLength::new(min, max);
        let (mut kept, mut since, mut longest) = (0, 0, 0);
        for index in 0..20 * max.max(size) {
            since += 1;
            longest = longest.max(kept + since);
            if length.is_cut_due(kept + since) {
                let before = kept + since;
                kept = 0;
                length.was_cut(before, since);
            }
            if length.is_snapshot_due(kept + since) {
                kept += since;
                since = 0;
                if kept > max {
                    kept = 0;
                }
                length.know_snapshot(LogIndex(index), size);
                length.count_from(kept);
                length.was_cut(kept, kept);
            }
        }
        assert!(longest <= length.limit() + 1, "{longest} of {}", length.limit());
        longest
    }

    /// However far somebody lags: the log has at most `max_log`, or as much as the state where that is larger.
    #[test]
    fn the_log_is_bounded_whoever_lags() {
        assert_eq!(longest(10, 1000, 10), 1001);
        assert_eq!(longest(10, 1000, 400), 1001);
        assert_eq!(longest(10, 1000, 990), 1001);
        assert_eq!(longest(10, 1000, 5000), 5000);
    }

    /// A daemon that ends again and again before it has written as much itself takes its snapshots all the same.
    #[test]
    fn what_earlier_processes_wrote_brings_the_next_snapshot_nearer() {
        let (min, life) = (100, 30);
        let mut snapshot = LogIndex(0);
        // One byte each, cut behind the snapshot.
        let (mut last, mut snapshots) = (0, 0);
        for _ in 0..100 {
            let length = LogLength::new(min, 1000);
            length.know_snapshot(snapshot, 10);
            length.count_from(0);
            for _ in 0..life {
                last += 1;
                let used = last - snapshot.0;
                assert!(used <= min, "{used} bytes since the last snapshot");
                if length.is_snapshot_due(used) {
                    (snapshot, snapshots) = (LogIndex(last), snapshots + 1);
                    length.know_snapshot(snapshot, 10);
                    length.count_from(0);
                }
            }
        }
        assert_eq!(snapshots, 100 * life / min);
    }

    /// What could not be cut is not looked at again all the time.
    #[test]
    fn a_log_that_cannot_be_cut_is_left_alone_for_a_while() {
        let length = LogLength::new(10, 1600);
        assert!(!length.is_cut_due(1600) && length.is_cut_due(1601));
        length.was_cut(1601, 1601);
        assert!(!length.is_cut_due(1701) && length.is_cut_due(1702));
        length.was_cut(1702, 20);
        assert!(!length.is_cut_due(1600) && length.is_cut_due(1601));
    }
}
