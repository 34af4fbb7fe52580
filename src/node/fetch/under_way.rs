//! Which bytes are being fetched: never the same ones twice at once. Pure, but for its lock.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rangemap::RangeSet;

use super::Key;
use crate::types::ByteRange;

/// All ranges that are being fetched.
#[derive(Clone, Debug, Default)]
pub(super) struct UnderWay(Arc<Mutex<BTreeMap<Key, RangeSet<u64>>>>);

/// A range that is being fetched by whoever has this.
#[derive(Debug)]
pub(super) struct Claim {
    all: UnderWay,
    pub(super) key: Key,
    pub(super) range: ByteRange,
}

impl UnderWay {
    /// Claims the first part of a range that nobody is fetching, of at most `most` bytes.
    pub(super) fn claim(&self, key: Key, range: ByteRange, most: u64) -> Option<Claim> {
        if range.is_empty() || most == 0 {
            return None;
        }
        let mut all = self.0.lock();
        let of_file = all.entry(key).or_default();
        let gap = of_file.gaps(&(range.start..range.end)).next();
        if let Some(gap) = gap {
            let range =
                ByteRange { start: gap.start, end: gap.end.min(gap.start.saturating_add(most)) };
            of_file.insert(range.start..range.end);
            return Some(Claim { all: self.clone(), key, range });
        }
        None
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(of_file) = all.get_mut(&self.key) {
            of_file.remove(self.range.start..self.range.end);
            if of_file.is_empty() {
                all.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ByteRange, Key, UnderWay};
    use crate::types::{Generation, Ino};

    const KEY: Key = (Ino(1), Generation(1));

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    #[test]
    fn no_byte_is_claimed_twice() {
        let all = UnderWay::default();
        let one = all.claim(KEY, range(10, 20), 100).expect("nobody fetches it");
        assert_eq!(one.range, range(10, 20));
        assert!(all.claim(KEY, range(12, 20), 100).is_none());
        let before = all.claim(KEY, range(5, 30), 100).expect("what lies before");
        assert_eq!(before.range, range(5, 10));
        let behind = all.claim(KEY, range(5, 30), 4).expect("what lies behind");
        assert_eq!(behind.range, range(20, 24));
        let other = (Ino(2), Generation(1));
        assert_eq!(
            all.claim(other, range(10, 20), 100).expect("another file").range,
            range(10, 20)
        );
        drop(one);
        assert_eq!(all.claim(KEY, range(5, 24), 100).expect("let go").range, range(10, 20));
        drop((before, behind));
        assert!(all.0.lock().is_empty());
    }
}
