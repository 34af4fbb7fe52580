//! A bounded map that forgets what was not used lately.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// Two generations: what is used moves to the newer one; when that is full it becomes the older one,
/// and what the older one still held is forgotten. Cheaper than a linked list, and near enough to LRU.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    newer: HashMap<K, V>,
    older: HashMap<K, V>,
    /// Entries in one generation.
    half: usize,
}

impl<K: Hash + Eq, V> Recent<K, V> {
    /// A map of at most `capacity` entries.
    pub(super) fn new(capacity: usize) -> Self {
        Self { newer: HashMap::new(), older: HashMap::new(), half: (capacity / 2).max(1) }
    }

    /// The value of `key`, which counts as used.
    pub(super) fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        if !self.newer.contains_key(key)
            && let Some((key, value)) = self.older.remove_entry(key)
        {
            self.make_room();
            self.newer.insert(key, value);
        }
        self.newer.get(key)
    }

    /// Sets `key`.
    pub(super) fn insert(&mut self, key: K, value: V) {
        self.older.remove(&key);
        if !self.newer.contains_key(&key) {
            self.make_room();
        }
        self.newer.insert(key, value);
    }

    /// Forgets `key` and gives back what it had.
    pub(super) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.newer.remove(key).or_else(|| self.older.remove(key))
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.newer.len() + self.older.len()
    }

    fn make_room(&mut self) {
        if self.newer.len() >= self.half {
            self.older = std::mem::take(&mut self.newer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Recent;

    #[test]
    fn stays_bounded_and_keeps_what_is_used() {
        let mut recent = Recent::new(8);
        recent.insert(0, 'x');
        for key in 1..1000 {
            recent.insert(key, 'y');
            assert_eq!(recent.get(&0), Some(&'x'));
            assert!(recent.len() <= 8);
        }
        assert_eq!(recent.get(&1), None);
        recent.insert(0, 'z');
        assert_eq!(recent.get(&0), Some(&'z'));
        recent.remove(&0);
        assert_eq!(recent.get(&0), None);
    }
}
