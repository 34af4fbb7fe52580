//! The replicated state in sled: the cache that answers queries.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use raft::eraftpb::ConfState;

use super::contained::contain;
use super::export::{Cursor, Export};
use super::point::{AppliedPoint, Point};
use super::records::{Pace, Records};
use crate::fs::{Batch, CorruptRecord, Digest, Pair, View};
use crate::store::StoreError;
use crate::store::error::REBUILD;
use crate::types::{LogIndex, Term};

/// sled's page cache, in bytes.
const CACHE_BYTES: u64 = 64 << 20;
/// How often sled is given what was committed, and hands it to the kernel. A killed process loses
/// what came after, which is replayed from the Raft log: the applied index is in the same batch as the
/// changes, so every prefix is a state that was. Never more is asked of it: sled's flush is no barrier
/// for a power loss, after which the state is rebuilt from the snapshot file.
const DRAIN: Duration = Duration::from_secs(1);
/// How long sled's threads may go on with a database after it was dropped in this process. Other
/// processes are kept out by the data directory's lock.
const CLOSING: Duration = Duration::from_secs(5);
/// A commit that has waited for so long for queries has others wait for itself no more.
const TURN: Duration = Duration::from_millis(20);
/// Pairs in one batch when a state is built from a snapshot.
const BUILD_CHUNK: usize = 1000;

/// The state, written by the apply loop alone and read by queries.
///
/// `&State` is a [`View`] too, for the apply loop: each call sees some applied index, and no other
/// thread changes it between two.
#[derive(Debug)]
pub struct State {
    /// Others only while `point` is held for writing.
    records: ArcSwap<Records>,
    /// Held for reading by queries, for writing by a commit.
    point: RwLock<Point>,
    exports: Mutex<Vec<Weak<Mutex<Cursor>>>>,
    damaged: Listener,
}

type OnDamage = Box<dyn Fn(&StoreError) + Send + Sync>;

/// Told of what sled cannot read.
#[derive(Default)]
struct Listener(OnceLock<OnDamage>);

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

/// The whole state at one applied index: applies wait while it lives. A thread that holds one must not
/// ask for another: with a commit waiting between the two, both would wait for ever.
#[derive(Debug)]
pub struct StateRead<'a> {
    state: &'a State,
    point: RwLockReadGuard<'a, Point>,
}

impl State {
    /// Opens the state in `dir`; an empty one at index 0 where there is none.
    ///
    /// # Errors
    /// When sled cannot read what is there.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let records = Arc::new(open_sled(dir)?);
        let point = Point::read_from(&records, dir)?;
        start_draining(&records)?;
        let records = ArcSwap::new(records);
        let (point, exports, damaged) = (RwLock::new(point), Mutex::default(), Listener::default());
        Ok(Self { records, point, exports, damaged })
    }

    /// Has `listener` called where something cannot be read: a query alone must not be the one to learn of it. Once.
    pub fn on_damage(&self, listener: impl Fn(&StoreError) + Send + Sync + 'static) {
        let first = self.damaged.0.set(Box::new(listener)).is_ok();
        debug_assert!(first, "there is one listener");
    }

    fn tell_damage(&self, error: &StoreError) {
        if let Some(listener) = self.damaged.0.get() {
            listener(error);
        }
    }

    /// Builds the state of a snapshot in `dir`, which must be empty or absent, and hands it to the
    /// kernel whole. Nobody should open `dir` as a state before this has returned.
    ///
    /// # Errors
    /// When `pairs` fails, sled refuses, or the pairs do not add up to `digest`.
    pub fn create_from(
        dir: &Path,
        pairs: impl Iterator<Item = Result<Pair, StoreError>>,
        at: AppliedPoint<'_>,
        digest: Digest,
    ) -> Result<Self, StoreError> {
        let state = Self::open(dir)?;
        let mut found = Digest::default();
        let mut writes = Vec::with_capacity(BUILD_CHUNK);
        for pair in pairs {
            let (key, value) = pair?;
            found.add(&key, &value);
            writes.push((key, Some(value)));
            if writes.len() == BUILD_CHUNK {
                state.records.load().commit(writes.drain(..));
                state.records.load().make_room()?;
            }
        }
        if found != digest {
            return Err(damaged(dir, format!("its pairs add up to {found} instead of {digest}")));
        }
        let point = Point::default().advanced(digest, at);
        writes.extend(point.writes(at.conf_state));
        state.records.load().commit(writes.into_iter());
        state.records.load().flush()?;
        *state.point.write() = point;
        Ok(state)
    }

    /// The state at one applied index, for a query. Short: applies wait while it lives. One that waits for the disk must not
    /// have others wait for it: they go before a commit that waits for it, too.
    pub fn read(&self) -> StateRead<'_> {
        StateRead { state: self, point: self.point() }
    }

    /// Where it is. Behind a commit that waits only for so long.
    fn point(&self) -> RwLockReadGuard<'_, Point> {
        self.point.try_read_for(TURN).unwrap_or_else(|| self.point.read_recursive())
    }

    /// What of the newest state is in memory, for whoever must wait neither for a disk nor for an apply
    /// round: during a round it may show some of its changes and not others.
    #[must_use]
    pub fn in_memory(&self) -> InMemory {
        InMemory(self.records.load())
    }

    /// Writes the changes of an apply round, and where it brings the state, in one atomic step. By the
    /// apply loop alone.
    ///
    /// # Errors
    /// When sled refuses: what it holds in memory is not known then, and must not be read.
    pub fn commit(&self, batch: Batch, at: AppliedPoint<'_>) -> Result<(), StoreError> {
        let point = self.point().clone().advanced(batch.digest, at);
        let meta = point.writes(at.conf_state);
        let mut current = self.point.write();
        self.keep_for_exports(&batch)?;
        self.records.load().commit(batch.writes.into_iter().chain(meta));
        *current = point;
        drop(current);
        // Queries go on while sled takes what there is too much of.
        self.records.load().make_room()
    }

    /// Becomes another state, whole: whoever reads sees either. No image may be under way. By the apply loop's turn.
    pub fn replace(&self, other: Self) {
        let Self { records, point, .. } = other;
        let mut current = self.point.write();
        debug_assert!(self.exports.lock().iter().all(|export| export.strong_count() == 0));
        self.records.store(records.into_inner());
        *current = point.into_inner();
    }

    /// Starts an image of the replicated tables as they are now.
    pub fn export(&self) -> Export<'_> {
        let point = self.point();
        let export = Export::new(self, point.clone());
        let mut exports = self.exports.lock();
        exports.retain(|export| export.strong_count() > 0);
        exports.push(export.cursor());
        drop(exports);
        export
    }

    /// The index up to which commands are applied.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.point().index
    }

    /// The term of the entry at that index.
    #[must_use]
    pub fn term(&self) -> Term {
        self.point().term
    }

    /// The membership as of that index.
    #[must_use]
    pub fn conf_state(&self) -> ConfState {
        self.point().conf_state.clone()
    }

    /// The digest of the replicated tables at that index.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.point().digest
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.records.load().path().to_owned()
    }

    /// Bytes that its files have.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.records.load().size_on_disk()
    }

    /// Hands everything to the kernel: a process that is killed afterwards has nothing to replay.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.records.load().flush()
    }

    /// Gives running exports the values that `batch` is about to change. The caller holds `point`.
    fn keep_for_exports(&self, batch: &Batch) -> Result<(), StoreError> {
        let exports = self.exports.lock();
        for export in exports.iter().filter_map(Weak::upgrade) {
            let mut cursor = export.lock();
            for key in batch.writes.keys() {
                cursor.keep(key, || self.records.load().get(key))?;
            }
        }
        Ok(())
    }
}

/// See [`State::in_memory`].
#[derive(Debug)]
pub struct InMemory(Guard<Arc<Records>>);

/// The disk has to be asked.
#[derive(Debug)]
pub struct NotInMemory;

impl From<CorruptRecord> for NotInMemory {
    fn from(_: CorruptRecord) -> Self {
        // Whoever asks the disk finds it, too, and says so.
        Self
    }
}

impl View for InMemory {
    type Error = NotInMemory;

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, NotInMemory> {
        self.0.get_in_memory(key).ok_or(NotInMemory)
    }

    fn scan(&self, _from: &[u8], _to: &[u8], _limit: usize) -> Result<Vec<Pair>, NotInMemory> {
        Err(NotInMemory)
    }
}

impl View for State {
    type Error = StoreError;

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read().get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        self.read().scan(from, to, limit)
    }
}

impl StateRead<'_> {
    /// The index up to which commands are applied.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.point.index
    }

    /// The digest of the replicated tables at that index.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.point.digest
    }

    /// A record, for whoever expects that some cannot be read: nobody is told, and there is none then.
    pub(super) fn get_quietly(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.state.records.load().get(key).ok().flatten()
    }

    /// At most `limit` pairs from `from` on, ascending, of all tables.
    pub(super) fn scan_from(&self, from: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        self.state.records.load().scan((Bound::Included(from), Bound::Unbounded), limit)
    }
}

impl View for StateRead<'_> {
    type Error = StoreError;

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.state.records.load().get(key).inspect_err(|error| self.state.tell_damage(error))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let range = (Bound::Included(from), Bound::Excluded(to));
        let found = self.state.records.load().scan(range, limit);
        found.inspect_err(|error| self.state.tell_damage(error))
    }
}

/// Gives sled what was committed, on a thread of its own, for as long as the state lives. An error is
/// left to the next commit or flush, which meets it again.
fn start_draining(records: &Arc<Records>) -> Result<(), StoreError> {
    let weak = Arc::downgrade(records);
    let body = move || {
        while let Some(records) = weak.upgrade() {
            if let Err(error) = records.drain(Pace::Gently) {
                tracing::error!("{error}");
            }
            drop(records);
            std::thread::sleep(DRAIN);
        }
    };
    let started = std::thread::Builder::new().name("state".to_owned()).spawn(body);
    started.map(drop).map_err(StoreError::io("start a thread for", records.path()))
}

fn open_sled(dir: &Path) -> Result<Records, StoreError> {
    let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES);
    // Whoever gives it something flushes (decision 0027).
    let config = config.flush_every_ms(None);
    let deadline = Instant::now() + CLOSING;
    loop {
        // sled panics on some damage that it meets while it opens.
        match contain(|| config.open()) {
            Ok(Ok(db)) => return Ok(Records::new(db, dir.to_owned())),
            Ok(Err(error)) if is_locked(&error) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(Err(error)) => return Err(StoreError::sled("open", dir)(error)),
            Err(_) => {
                return Err(damaged(dir, "sled gave up on it (see its panic above)".to_owned()));
            }
        }
    }
}

/// sled says so in words only.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

pub(super) fn damaged(dir: &Path, what: String) -> StoreError {
    StoreError::Corrupt { path: dir.to_owned(), offset: None, what, advice: REBUILD }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
