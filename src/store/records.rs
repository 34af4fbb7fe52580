//! The records of a state: sled, what it has not been given yet, and what was used lately.
//!
//! sled is a cache (of the snapshot file and the log), so nothing has to reach it at once: committed
//! rounds gather in memory and go to it together about once a second. That costs a commit microseconds
//! instead of tens of them, and what changes often is written seldom. A process that is killed finds an
//! older state in sled, and replays the log from there.
//!
//! While sled takes a batch it answers nobody. So the rounds of a second go to it in groups: each is an
//! atomic batch of whole rounds, and ends in a state that was. Only when sled has written one does it get the next one:
//! it has seven threads that write, and where all of them are at it, it can wait for an eighth for ever (decision 0027).

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, VecDeque};
use std::hash::BuildHasher;
use std::iter::Peekable;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use super::recent::Recent;
use crate::fs::Pair;
use crate::store::StoreError;

/// Records that are kept in memory at most.
const RECENT: usize = 64 << 10;
/// Longer values are not kept: a bound on memory (about 64 MiB).
const RECENT_VALUE_BYTES: usize = 1024;
/// Locks that they are spread over.
const SHARDS: usize = 16;
/// A group with at least as many changes is closed: sled takes that many in a few milliseconds.
const GROUP: usize = 256;
/// So is one with at least as many bytes: sled writes whole pages for them, into segments of 512 KiB.
const GROUP_BYTES: usize = 64 << 10;
/// More bytes than this do not wait for the next time: whoever commits gives them to sled.
const MAX_PENDING_BYTES: usize = 32 << 20;

/// A value, or that there is none: looking up names that do not exist is common.
type Known = Option<Vec<u8>>;
/// Values by key; `None` where the key is removed.
type Changes = BTreeMap<Vec<u8>, Known>;

/// The records of a state. The caller's lock keeps [`Self::commit`] apart from everything else but
/// [`Self::drain`]; without that, a reader could remember what a batch has just replaced.
#[derive(Debug)]
pub(super) struct Records {
    path: PathBuf,
    db: sled::Db,
    pending: RwLock<Pending>,
    /// Held by whoever gives to sled.
    draining: Mutex<()>,
    recent: [Mutex<Recent<Vec<u8>, Known>>; SHARDS],
    hasher: RandomState,
}

/// Whole rounds that sled does not have, or may not have whole.
#[derive(Debug, Default)]
struct Pending {
    newest: Changes,
    newest_bytes: usize,
    /// On its way to sled; older than `newest`.
    leaving: Arc<Changes>,
    /// The changes of both for sled, in the order in which they were made.
    groups: VecDeque<Group>,
}

/// How sled is given what it does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// It is left to others for as long as it took each group: who reads 32 records must not wait for 32 groups.
    Gently,
    /// Somebody waits.
    AtOnce,
}

/// Whole rounds, to be written as one.
#[derive(Debug, Default)]
struct Group {
    batch: sled::Batch,
    changes: usize,
    bytes: usize,
}

impl Group {
    fn is_closed(&self) -> bool {
        self.changes >= GROUP || self.bytes >= GROUP_BYTES
    }

    fn add(&mut self, key: &[u8], value: Option<&[u8]>) {
        self.changes += 1;
        self.bytes += key.len() + value.map_or(0, <[u8]>::len);
        match value {
            Some(value) => self.batch.insert(key, value),
            None => self.batch.remove(key),
        }
    }
}

impl Records {
    pub(super) fn new(db: sled::Db, path: PathBuf) -> Self {
        let recent = std::array::from_fn(|_| Mutex::new(Recent::new(RECENT / SHARDS)));
        let (pending, draining) = (RwLock::default(), Mutex::default());
        Self { path, db, pending, draining, recent, hasher: RandomState::new() }
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Known, StoreError> {
        if let Some(known) = self.shard(key).lock().get(key) {
            return Ok(known.clone());
        }
        let value = self.find(key)?;
        if worth_keeping(value.as_ref()) {
            self.shard(key).lock().insert(key.to_vec(), value.clone());
        }
        Ok(value)
    }

    /// Bytes that sled's files have.
    pub(super) fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.db.size_on_disk().map_err(StoreError::sled("ask the size of", &self.path))
    }

    /// The same, only where it is in memory. Needs no lock of the caller's: what it finds was the newest at
    /// some moment of the call.
    pub(super) fn get_in_memory(&self, key: &[u8]) -> Option<Known> {
        self.shard(key).lock().get(key).cloned()
    }

    /// At most `limit` pairs of a range of keys, ascending.
    pub(super) fn scan(
        &self,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        limit: usize,
    ) -> Result<Vec<Pair>, StoreError> {
        // Not behind whoever waits for a scan that waits for the disk.
        let pending = self.pending.read_recursive();
        let owned = |(key, value): (&Vec<u8>, &Known)| Ok((key.clone(), value.clone()));
        let in_sled = self.db.range::<&[u8], _>(range).map(|pair| {
            let (key, value) = pair.map_err(StoreError::sled("read", &self.path))?;
            Ok((key.to_vec(), Some(value.to_vec())))
        });
        let leaving = pending.leaving.range::<[u8], _>(range).map(owned);
        let newest = pending.newest.range::<[u8], _>(range).map(owned);
        let all = Over::new(newest, Over::new(leaving, in_sled));
        all.filter_map(|found| match found {
            Ok((key, value)) => value.map(|value| Ok((key, value))),
            Err(error) => Some(Err(error)),
        })
        .take(limit)
        .collect()
    }

    /// Takes the changes of a round.
    pub(super) fn commit(&self, writes: impl Iterator<Item = (Vec<u8>, Known)>) {
        let mut pending = self.pending.write();
        let Pending { newest, newest_bytes, groups, .. } = &mut *pending;
        if groups.back().is_none_or(Group::is_closed) {
            groups.push_back(Group::default());
        }
        let group = groups.back_mut().expect("there is one");
        for (key, value) in writes {
            self.remember(&key, value.as_ref());
            *newest_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            group.add(&key, value.as_deref());
            newest.insert(key, value);
        }
    }

    /// Whoever commits waits for sled where there is too much that sled does not have.
    pub(super) fn make_room(&self) -> Result<(), StoreError> {
        if self.is_full() { self.drain(Pace::AtOnce) } else { Ok(()) }
    }

    fn is_full(&self) -> bool {
        self.pending.read_recursive().newest_bytes > MAX_PENDING_BYTES
    }

    /// Gives sled all rounds that it does not have. Readers and commits go on.
    pub(super) fn drain(&self, pace: Pace) -> Result<(), StoreError> {
        let _only_one = self.draining.lock();
        let mut groups = {
            let mut pending = self.pending.write();
            pending.newest_bytes = 0;
            let mut newest = std::mem::take(&mut pending.newest);
            // Something is still leaving only where sled has refused it.
            let mut leaving = Arc::unwrap_or_clone(std::mem::take(&mut pending.leaving));
            leaving.append(&mut newest);
            pending.leaving = Arc::new(leaving);
            std::mem::take(&mut pending.groups)
        };
        let written = self.write(&mut groups, pace);
        let mut pending = self.pending.write();
        if written.is_ok() {
            pending.leaving = Arc::default();
        } else {
            groups.append(&mut pending.groups);
            pending.groups = groups;
        }
        written
    }

    /// Takes away what sled has taken.
    fn write(&self, groups: &mut VecDeque<Group>, pace: Pace) -> Result<(), StoreError> {
        while let Some(group) = groups.front() {
            let batch = group.batch.clone();
            let began = Instant::now();
            self.db.apply_batch(batch).map_err(StoreError::sled("write", &self.path))?;
            let taken = began.elapsed();
            // Its threads are done with it, or about to be.
            self.db.flush().map_err(StoreError::sled("write", &self.path))?;
            // One that is not written is given again: with nothing left to give, nobody would meet the error.
            groups.pop_front();
            if pace == Pace::Gently && !self.is_full() {
                thread::sleep(taken);
            }
        }
        Ok(())
    }

    /// Hands everything to the kernel.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        self.drain(Pace::AtOnce)
    }

    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    fn find(&self, key: &[u8]) -> Result<Known, StoreError> {
        {
            let pending = self.pending.read_recursive();
            if let Some(known) = pending.newest.get(key).or_else(|| pending.leaving.get(key)) {
                return Ok(known.clone());
            }
        }
        // Nobody commits meanwhile, so what is in neither is in sled, whatever sled is given. It may wait for the disk.
        let value = self.db.get(key).map_err(StoreError::sled("read", &self.path))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn remember(&self, key: &[u8], value: Option<&Vec<u8>>) {
        let mut shard = self.shard(key).lock();
        if worth_keeping(value) {
            shard.insert(key.to_vec(), value.cloned());
        } else {
            shard.remove(key);
        }
    }

    fn shard(&self, key: &[u8]) -> &Mutex<Recent<Vec<u8>, Known>> {
        let hash = self.hasher.hash_one(key).to_le_bytes()[0];
        &self.recent[usize::from(hash) % SHARDS]
    }
}

fn worth_keeping(value: Option<&Vec<u8>>) -> bool {
    value.is_none_or(|value| value.len() <= RECENT_VALUE_BYTES)
}

type Found = Result<(Vec<u8>, Known), StoreError>;

/// Two ascending runs of keys as one: where both have a key, the upper one counts.
struct Over<U: Iterator, L: Iterator> {
    upper: Peekable<U>,
    lower: Peekable<L>,
}

impl<U: Iterator<Item = Found>, L: Iterator<Item = Found>> Over<U, L> {
    fn new(upper: U, lower: L) -> Self {
        Self { upper: upper.peekable(), lower: lower.peekable() }
    }
}

impl<U: Iterator<Item = Found>, L: Iterator<Item = Found>> Iterator for Over<U, L> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        let (Some(Ok((upper, _))), Some(Ok((lower, _)))) = (self.upper.peek(), self.lower.peek())
        else {
            // One has ended, or has failed: then that is what comes next.
            let lower_failed = matches!(self.lower.peek(), Some(Err(_)));
            return if lower_failed {
                self.lower.next()
            } else {
                self.upper.next().or_else(|| self.lower.next())
            };
        };
        match upper.cmp(lower) {
            std::cmp::Ordering::Less => self.upper.next(),
            std::cmp::Ordering::Greater => self.lower.next(),
            std::cmp::Ordering::Equal => {
                self.lower.next();
                self.upper.next()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{GROUP_BYTES, Pace, Records};

    const VALUE: usize = 10 << 10;
    const IN_A_ROUND: usize = 3;

    fn commit(records: &Records, rounds: std::ops::Range<u32>) {
        for round in rounds {
            let value = vec![u8::try_from(round).expect("few rounds"); VALUE];
            let keys = (0..IN_A_ROUND).map(|key| format!("{round} {key}").into_bytes());
            records.commit(keys.map(|key| (key, Some(value.clone()))));
        }
    }

    /// However much is committed: sled is given little at once, and has written that before it is given more.
    #[test]
    fn sled_has_one_small_group_to_write() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = sled::Config::new().path(dir.path()).flush_every_ms(None);
        let records = Records::new(config.open().expect("sled"), dir.path().to_owned());
        commit(&records, 0..20);
        let groups: Vec<_> =
            records.pending.read().groups.iter().map(|group| group.bytes).collect();
        let (last, closed) = groups.split_last().expect("there are some");
        assert!(closed.len() > 5 && closed.iter().all(|bytes| *bytes >= GROUP_BYTES), "{groups:?}");
        let largest = GROUP_BYTES + IN_A_ROUND * (VALUE + 8);
        assert!(*last > 0 && groups.iter().all(|bytes| *bytes < largest), "{groups:?}");
        for pace in [Pace::Gently, Pace::AtOnce] {
            records.drain(pace).expect("a drain");
            assert!(records.pending.read().groups.is_empty());
            assert_eq!(records.db.flush().expect("a flush"), 0, "all is written");
            commit(&records, 20..23);
        }
        assert_eq!(records.get(b"7 1").expect("a read"), Some(vec![7; VALUE]));
    }
}
