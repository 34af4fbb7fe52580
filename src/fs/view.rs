//! The state as seen by `apply` and the queries: byte keys to records, in layers.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::digest::Digest;
use super::record::CorruptRecord;

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Reads of the state at one applied index.
///
/// An error is this replica's own trouble (its disk, its cache) and never an outcome.
pub trait View {
    /// Why this replica could not read.
    type Error;

    /// The value of `key`.
    ///
    /// # Errors
    /// When this replica cannot read its own state.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Self::Error>;

    /// At most `limit` pairs with keys in `[from, to)`, ascending.
    ///
    /// # Errors
    /// When this replica cannot read its own state.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, Self::Error>;
}

/// A view that takes changes.
pub trait ViewMut: View {
    /// Sets `key` to `value`.
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>);

    /// Removes `key`; nothing happens where it is absent.
    fn delete(&mut self, key: Vec<u8>);
}

impl<V: View + ?Sized> View for &V {
    type Error = V::Error;

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Self::Error> {
        (**self).get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, Self::Error> {
        (**self).scan(from, to, limit)
    }
}

/// The simplest view: an ordered map in memory. The simulation's and the tests' state. Reading it
/// cannot fail; only what it holds can be corrupt.
impl View for BTreeMap<Vec<u8>, Vec<u8>> {
    type Error = CorruptRecord;

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Self::Error> {
        Ok(BTreeMap::get(self, key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, Self::Error> {
        let range = (Bound::Included(from), Bound::Excluded(to));
        Ok(self
            .range::<[u8], _>(range)
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }
}

/// Changes on top of a base that stays as it is: an apply round, later a lease holder's own effects.
#[derive(Debug)]
pub struct Overlay<B> {
    base: B,
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Of keys and values that were put.
    bytes: usize,
}

/// What an overlay changed: to be written to its base in one atomic step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The new value of each changed key; `None` removes it.
    pub writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// What to add to the base's digest.
    pub digest: Digest,
}

impl<B: View> Overlay<B> {
    /// An overlay without changes.
    pub fn new(base: B) -> Self {
        Self { base, changes: BTreeMap::new(), bytes: 0 }
    }

    /// How many bytes of keys and values were put: at least as many as are in the end.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The changes, and what they do to the digest of the base.
    ///
    /// # Errors
    /// When the base cannot be read.
    pub fn finish(self) -> Result<Batch, B::Error> {
        let mut digest = Digest::default();
        let mut writes = BTreeMap::new();
        for (key, value) in self.changes {
            let before = self.base.get(&key)?;
            if before == value {
                continue;
            }
            if let Some(before) = &before {
                digest.remove(&key, before);
            }
            if let Some(value) = &value {
                digest.add(&key, value);
            }
            writes.insert(key, value);
        }
        Ok(Batch { writes, digest })
    }
}

impl<B: View> View for Overlay<B> {
    type Error = B::Error;

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Self::Error> {
        match self.changes.get(key) {
            Some(change) => Ok(change.clone()),
            None => self.base.get(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, Self::Error> {
        let range = (Bound::Included(from), Bound::Excluded(to));
        let changed: Vec<_> = self.changes.range::<[u8], _>(range).collect();
        // Every change may hide one pair of the base: ask for as many more.
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> =
            self.base.scan(from, to, limit.saturating_add(changed.len()))?.into_iter().collect();
        for (key, change) in changed {
            match change {
                Some(value) => merged.insert(key.clone(), value.clone()),
                None => merged.remove(key),
            };
        }
        Ok(merged.into_iter().take(limit).collect())
    }
}

impl<B: View> ViewMut for Overlay<B> {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.changes.insert(key, Some(value));
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }
}

impl Batch {
    /// Writes the changes to a map in memory.
    pub fn write_to(self, map: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
        for (key, value) in self.writes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
    }
}

impl ViewMut for BTreeMap<Vec<u8>, Vec<u8>> {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.insert(key, value);
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.remove(&key);
    }
}
