//! What `status` shows of missing bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rangemap::RangeMap;

use super::{Fetching, Key};
use crate::node::Handle;
use crate::node::clock::monotonic;
use crate::store::Files;
use crate::types::{ByteRange, Ino, NodeId};

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

/// Ranges of a file, with the peers that have said not to have them.
type Refused = RangeMap<u64, Arc<[NodeId]>>;

/// Ranges that all peers that were connected have said not to have.
#[derive(Debug, Default)]
pub(super) struct Nowhere(Mutex<BTreeMap<Key, Refused>>);

impl Nowhere {
    fn add(&self, key: Key, range: ByteRange, refused: &[NodeId]) {
        if !range.is_empty() {
            self.0.lock().entry(key).or_default().insert(range.start..range.end, refused.into());
        }
    }

    /// A peer can be asked. It has not refused all of it yet; what it has refused when its connection was another one it still
    /// lacks, until it is found to have it.
    pub(super) fn ask(&self, node: NodeId) {
        self.0.lock().retain(|_, ranges| {
            let all = std::mem::take(ranges).into_iter();
            *ranges = all.filter(|(_, refused)| refused.contains(&node)).collect();
            ranges.iter().next().is_some()
        });
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
            for (range, _) in ranges.iter() {
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
            ranges.iter().flat_map(|(range, _)| {
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

    /// All of these peers, which are all that can be asked, lack it.
    pub(super) fn nobody_has(&self, key: Key, range: ByteRange, refused: &[NodeId]) {
        self.nowhere.add(key, range, refused);
    }

    /// Files that have been removed, or written anew.
    pub(super) fn forget_what_is_here(&self, files: &Files) {
        let is_missing = |key: &Key, ranges: &Refused| {
            let range =
                |range: &std::ops::Range<u64>| ByteRange { start: range.start, end: range.end };
            ranges.iter().any(|(some, _)| !files.missing(*key, range(some)).is_empty())
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

#[cfg(test)]
mod tests {
    use super::{ByteRange, Key, NodeId, Nowhere};
    use crate::types::{Generation, Ino};

    const KEY: Key = (Ino(1), Generation(1));
    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);
    const THREE: NodeId = NodeId(3);

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    fn listed(nowhere: &Nowhere) -> Vec<(u64, u64)> {
        let all = nowhere.0.lock();
        let ranges = all.values().flat_map(|ranges| ranges.iter());
        ranges.map(|(range, _)| (range.start, range.end)).collect()
    }

    /// A peer whose connection comes and goes does not make it forgotten what it has refused itself.
    #[test]
    fn only_who_has_not_refused_it_may_have_it() {
        let nowhere = Nowhere::default();
        nowhere.add(KEY, range(0, 10), &[ONE, TWO]);
        nowhere.add(KEY, range(10, 20), &[ONE]);
        nowhere.add((Ino(2), KEY.1), range(0, 5), &[ONE]);
        nowhere.ask(ONE);
        assert_eq!(listed(&nowhere), [(0, 10), (10, 20), (0, 5)]);
        nowhere.ask(TWO);
        assert_eq!(listed(&nowhere), [(0, 10)]);
        nowhere.add(KEY, range(5, 15), &[ONE, TWO, THREE]);
        nowhere.ask(THREE);
        assert_eq!(listed(&nowhere), [(5, 15)]);
        nowhere.remove(KEY, range(7, 9));
        assert_eq!(listed(&nowhere), [(5, 7), (9, 15)]);
        nowhere.ask(NodeId(4));
        assert!(nowhere.0.lock().is_empty());
    }
}
