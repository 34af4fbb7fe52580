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
    /// What the next one is to cover beyond that, in bytes of the log.
    growth: AtomicU64,
    /// It is to be cut behind the last one when it has more.
    next_cut: AtomicU64,
}

impl LogLength {
    /// Of a node that has not looked at its last snapshot yet.
    pub(super) fn of(config: &NodeConfig) -> Self {
        Self::new(config.snapshot_min_log, config.max_log)
    }

    fn new(min: u64, max: u64) -> Self {
        let [snapshot, growth, next_cut] = [0, min, max].map(AtomicU64::new);
        Self { min, max, snapshot, growth, next_cut }
    }

    /// Where so many bytes are applied beyond the last snapshot, whichever process has done so. What is not applied no
    /// snapshot covers.
    pub(super) fn is_snapshot_due(&self, applied: u64) -> bool {
        applied >= self.growth.load(Ordering::Relaxed)
    }

    pub(super) fn is_cut_due(&self, used: u64) -> bool {
        used > self.next_cut.load(Ordering::Relaxed)
    }

    /// The last snapshot that is in force covers this, and has so many bytes.
    pub(super) fn know_snapshot(&self, index: LogIndex, size: u64) {
        self.snapshot.store(index.0, Ordering::Relaxed);
        self.growth.store(self.min.max(size), Ordering::Relaxed);
    }

    /// It was cut as far as it could be, behind the last snapshot.
    pub(super) fn was_cut(&self, used: u64) {
        let next = if used > self.max { used + self.max / LOOK_AGAIN } else { self.max };
        self.next_cut.store(next, Ordering::Relaxed);
    }

    /// What the last snapshot covers; 0 where that is not known.
    pub(super) fn snapshot(&self) -> LogIndex {
        LogIndex(self.snapshot.load(Ordering::Relaxed))
    }

    /// How long it becomes while all is well, whoever lags.
    pub(super) fn limit(&self) -> u64 {
        self.max.max(self.growth.load(Ordering::Relaxed))
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
                kept = 0;
                length.was_cut(since);
            }
            if length.is_snapshot_due(since) {
                kept += since;
                since = 0;
                if kept > max {
                    kept = 0;
                }
                length.know_snapshot(LogIndex(index), size);
                length.was_cut(kept);
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

    /// What could not be cut is not looked at again all the time.
    #[test]
    fn a_log_that_cannot_be_cut_is_left_alone_for_a_while() {
        let length = LogLength::new(10, 1600);
        assert!(!length.is_cut_due(1600) && length.is_cut_due(1601));
        length.was_cut(1601);
        assert!(!length.is_cut_due(1701) && length.is_cut_due(1702));
        length.was_cut(20);
        assert!(!length.is_cut_due(1600) && length.is_cut_due(1601));
    }
}
