//! sled, and in front of it the records that were used lately: a get of sled costs microseconds.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::ops::Bound;
use std::path::Path;

use parking_lot::Mutex;

use super::recent::Recent;
use crate::fs::Pair;
use crate::store::StoreError;

/// Records that are kept in memory at most.
const RECENT: usize = 64 << 10;
/// Longer values are not kept: a bound on memory (about 64 MiB).
const RECENT_VALUE_BYTES: usize = 1024;
/// Locks that they are spread over.
const SHARDS: usize = 16;

/// A value, or that there is none: looking up names that do not exist is common.
type Known = Option<Vec<u8>>;

/// The records of a state. The caller's lock keeps [`Self::apply`] and [`Self::remember`] apart from
/// everything else; without that, a reader could remember what a batch has just replaced.
#[derive(Debug)]
pub(super) struct Records {
    db: sled::Db,
    recent: [Mutex<Recent<Vec<u8>, Known>>; SHARDS],
    hasher: RandomState,
}

impl Records {
    pub(super) fn new(db: sled::Db) -> Self {
        let recent = std::array::from_fn(|_| Mutex::new(Recent::new(RECENT / SHARDS)));
        Self { db, recent, hasher: RandomState::new() }
    }

    pub(super) fn get(&self, key: &[u8], path: &Path) -> Result<Known, StoreError> {
        if let Some(known) = self.shard(key).lock().get(key) {
            return Ok(known.clone());
        }
        let value = self.db.get(key).map_err(StoreError::sled("read", path))?;
        let value = value.map(|value| value.to_vec());
        if worth_keeping(value.as_ref()) {
            self.shard(key).lock().insert(key.to_vec(), value.clone());
        }
        Ok(value)
    }

    pub(super) fn scan(
        &self,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        limit: usize,
        path: &Path,
    ) -> Result<Vec<Pair>, StoreError> {
        let pairs = self.db.range::<&[u8], _>(range).take(limit);
        let pairs = pairs.map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())));
        pairs.collect::<Result<_, _>>().map_err(StoreError::sled("read", path))
    }

    pub(super) fn apply(&self, writes: sled::Batch, path: &Path) -> Result<(), StoreError> {
        self.db.apply_batch(writes).map_err(StoreError::sled("write", path))
    }

    /// Takes over what a batch has written.
    pub(super) fn remember(&self, writes: &BTreeMap<Vec<u8>, Known>) {
        for (key, value) in writes {
            let mut shard = self.shard(key).lock();
            if worth_keeping(value.as_ref()) {
                shard.insert(key.clone(), value.clone());
            } else {
                shard.remove(key.as_slice());
            }
        }
    }

    pub(super) fn flush(&self, path: &Path) -> Result<(), StoreError> {
        self.db.flush().map(|_| ()).map_err(StoreError::sled("flush", path))
    }

    fn shard(&self, key: &[u8]) -> &Mutex<Recent<Vec<u8>, Known>> {
        let hash = self.hasher.hash_one(key).to_le_bytes()[0];
        &self.recent[usize::from(hash) % SHARDS]
    }
}

fn worth_keeping(value: Option<&Vec<u8>>) -> bool {
    value.is_none_or(|value| value.len() <= RECENT_VALUE_BYTES)
}
