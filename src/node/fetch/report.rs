//! What `status` shows of missing bytes.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use rangemap::RangeSet;

use super::{Fetching, Key};
use crate::node::Handle;
use crate::node::clock::monotonic;
use crate::store::Files;
use crate::types::{ByteRange, Ino};

/// Ranges that are listed one by one.
const LISTED: usize = 32;

/// Bytes that this replica lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Files that lack some.
    pub files: u64,
    /// How many.
    pub bytes: u64,
    /// Bytes per second that have come lately.
    pub rate: u64,
    /// How long the rest takes at that rate; nothing where none come.
    pub left: Option<Duration>,
    /// Some of those that no connected peer has.
    pub nowhere: Vec<(Ino, ByteRange)>,
    /// How many ranges more there are of these.
    pub nowhere_more: u64,
}

/// Ranges that all connected peers have said not to have.
#[derive(Debug, Default)]
pub(super) struct Nowhere(Mutex<BTreeMap<Key, RangeSet<u64>>>);

impl Nowhere {
    fn add(&self, key: Key, range: ByteRange) {
        if !range.is_empty() {
            self.0.lock().entry(key).or_default().insert(range.start..range.end);
        }
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    fn remove(&self, key: Key, range: ByteRange) {
        if let Some(ranges) = self.0.lock().get_mut(&key) {
            ranges.remove(range.start..range.end);
        }
    }

    /// Some of what is still missing of it, and the number of ranges beyond.
    fn list(&self, limit: usize, files: &Files) -> (Vec<(Ino, ByteRange)>, u64) {
        let (mut listed, mut more) = (Vec::new(), 0);
        for (key, ranges) in self.0.lock().iter() {
            for range in ranges.iter() {
                if listed.len() >= limit {
                    more += 1;
                    continue;
                }
                let missing = files.missing(*key, ByteRange { start: range.start, end: range.end });
                listed.extend(missing.into_iter().map(|(part, _)| (key.0, part)));
            }
        }
        (listed, more)
    }
}

impl Nowhere {
    /// How many bytes of it are still missing.
    fn bytes(&self, files: &Files) -> u64 {
        let known = self.0.lock();
        let missing = known.iter().flat_map(|(key, ranges)| {
            ranges.iter().flat_map(|range| {
                files.missing(*key, ByteRange { start: range.start, end: range.end })
            })
        });
        missing.map(|(range, _)| range.len()).sum()
    }
}

impl Fetching {
    /// How many bytes are missing that no connected peer has.
    pub(in crate::node) fn bytes_nowhere(&self, files: &Files) -> u64 {
        self.nowhere.bytes(files)
    }

    pub(super) fn came(&self, key: Key, range: ByteRange) {
        self.meter.lock().add(monotonic(), range.len());
        self.nowhere.remove(key, range);
    }

    pub(super) fn nobody_has(&self, key: Key, range: ByteRange) {
        self.nowhere.add(key, range);
    }

    /// Files that have been removed, or written anew.
    pub(super) fn forget_what_is_here(&self, files: &Files) {
        let is_missing = |key: &Key, ranges: &RangeSet<u64>| {
            let range =
                |range: &std::ops::Range<u64>| ByteRange { start: range.start, end: range.end };
            ranges.iter().any(|some| !files.missing(*key, range(some)).is_empty())
        };
        self.nowhere.0.lock().retain(|key, ranges| is_missing(key, ranges));
    }
}

impl Handle {
    /// What this replica lacks. Costs little, however much it is.
    #[must_use]
    pub fn missing(&self) -> Missing {
        let (files, bytes) = self.files().missing_in_all();
        let fetching = &self.0.fetching;
        let rate = fetching.meter.lock().rate(monotonic());
        let left = bytes.checked_div(rate).map(Duration::from_secs);
        let (nowhere, nowhere_more) = fetching.nowhere.list(LISTED, self.files());
        Missing { files, bytes, rate, left, nowhere, nowhere_more }
    }
}
