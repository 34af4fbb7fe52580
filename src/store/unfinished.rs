//! Which files have bytes that are not in their backing files, in order, so that nobody has to look at all layouts
//! to find some, or to say how many bytes are missing. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::files::Key;

/// An index over all layouts.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// Files that lack bytes, and how many.
    missing: BTreeMap<Key, u64>,
    missing_bytes: u64,
    staged: BTreeSet<Key>,
}

impl Unfinished {
    /// What a file's layout says from now on.
    pub(super) fn set(&mut self, key: Key, missing: u64, is_staged: bool) {
        let before = match missing {
            0 => self.missing.remove(&key),
            missing => self.missing.insert(key, missing),
        };
        self.missing_bytes = self.missing_bytes - before.unwrap_or(0) + missing;
        if is_staged {
            self.staged.insert(key);
        } else {
            self.staged.remove(&key);
        }
    }

    /// Up to `limit` files that lack bytes, in order, beginning behind `after`.
    pub(super) fn missing_after(&self, after: Option<Key>, limit: usize) -> Vec<Key> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.missing.range((from, Bound::Unbounded)).take(limit).map(|(key, _)| *key).collect()
    }

    /// How many files lack bytes, and how many bytes those are.
    pub(super) fn missing_in_all(&self) -> (u64, u64) {
        (self.missing.len() as u64, self.missing_bytes)
    }

    /// The first file behind `after` that has staged bytes.
    pub(super) fn staged_after(&self, after: Option<Key>) -> Option<Key> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.staged.range((from, Bound::Unbounded)).next().copied()
    }

    /// How many files have staged bytes.
    pub(super) fn staged_files(&self) -> usize {
        self.staged.len()
    }
}

#[cfg(test)]
mod tests {
    use super::{Key, Unfinished};
    use crate::types::{Generation, Ino};

    fn key(ino: u64) -> Key {
        (Ino(ino), Generation(1))
    }

    #[test]
    fn counts_and_order_follow_the_layouts() {
        let mut unfinished = Unfinished::default();
        for ino in [5, 3, 9, 7] {
            unfinished.set(key(ino), ino * 100, ino == 7);
        }
        unfinished.set(key(5), 50, true);
        assert_eq!(unfinished.missing_in_all(), (4, 1950));
        assert_eq!(unfinished.missing_after(None, 2), [key(3), key(5)]);
        assert_eq!(unfinished.missing_after(Some(key(4)), 9), [key(5), key(7), key(9)]);
        assert_eq!(unfinished.staged_after(None), Some(key(5)));
        assert_eq!(unfinished.staged_after(Some(key(5))), Some(key(7)));
        assert_eq!((unfinished.staged_after(Some(key(7))), unfinished.staged_files()), (None, 2));
        for ino in [3, 5, 7, 9] {
            unfinished.set(key(ino), 0, false);
        }
        assert_eq!(unfinished.missing_in_all(), (0, 0));
        assert_eq!(
            (unfinished.missing_after(None, 9), unfinished.staged_after(None)),
            (vec![], None)
        );
    }
}
