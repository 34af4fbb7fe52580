//! The log itself: appending, cutting, reading.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};
use raft::eraftpb::{Entry, HardState};
use raft_engine::internals::LogQueue;
use raft_engine::{Command, LogBatch};

use super::check;
use super::engine::{
    EntryCodec, LogOptions, OpenEngine, TRUNCATED, VOLUME, contained, encode_truncated,
    prefill_current_file, put_hard_state,
};
use super::index::Index;
use super::promised::Promised;
use crate::store::StoreError;
use crate::types::{LogIndex, Term};

/// The Raft log, and with it the hard state. Cheap to clone: all clones are the same log.
#[derive(Clone)]
pub struct RaftLog(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) engine: OpenEngine,
    pub(super) index: Mutex<Index>,
    /// Held while writing, so that `index` need not be.
    writing: Mutex<()>,
    /// A write failed: what is on disk is not known any more.
    poisoned: AtomicBool,
    /// Held while entries are replaced; after `writing`, before `index`.
    pub(super) promised: Mutex<Option<Promised>>,
}

impl fmt::Debug for RaftLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftLog")
            .field("dir", &self.0.dir)
            .field("first", &self.first_index())
            .field("last", &self.last_index())
            .finish_non_exhaustive()
    }
}

impl RaftLog {
    /// Opens the log in `dir`, created where it is absent, and reads all of it: a replica that votes
    /// must hold what it has acknowledged.
    ///
    /// # Errors
    /// When the disk refuses, or the log is damaged anywhere but in a torn last write.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(dir, LogOptions::default())
    }

    /// The same with other options.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(dir: &Path, options: LogOptions) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
        check::check_files(dir)?;
        let engine = OpenEngine::open(dir, options)?;
        let log = Self(Arc::new(Shared {
            dir: dir.to_owned(),
            engine,
            index: Mutex::default(),
            writing: Mutex::default(),
            poisoned: AtomicBool::new(false),
            promised: Mutex::default(),
        }));
        log.load()?;
        if options.prefill {
            prefill_current_file(dir, options.file_bytes)?;
        }
        Ok(log)
    }

    /// Of a log that was opened and found good, and not cut since. raft-engine keeps a file that it is through with under
    /// its name until it uses it again. If the process dies before, and files behind that one have been given back, the next one
    /// ignores it, for ever: each death could cost a file.
    ///
    /// # Errors
    /// When the disk refuses; they only take room.
    pub(in crate::store) fn remove_ignored_files(&self) -> Result<(), StoreError> {
        let (first, _) = self.0.engine.file_span(LogQueue::Append);
        for (number, path) in check::files(&self.0.dir, ".raftlog")? {
            if number < first {
                std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Writes entries and the hard state in one step. Entries that the log has from the first new
    /// one on are replaced. With `sync`, this and everything before it is durable on return.
    ///
    /// # Errors
    /// When the entries do not follow the log, or the disk refuses: the log then takes nothing more.
    pub fn append(
        &self,
        entries: &[Entry],
        hard_state: Option<&HardState>,
        sync: bool,
    ) -> Result<(), StoreError> {
        let _writing = self.0.writing.lock();
        self.check_follows(entries)?;
        let replaces = entries.first().is_some_and(|first| first.index <= self.last_index().0);
        let _nobody_promises = if replaces { Some(self.take_back()?) } else { None };
        // raft-engine takes an empty batch for nothing to do, and would not sync what came before.
        let again = (sync && entries.is_empty() && hard_state.is_none()).then(|| self.hard_state());
        let hard_state = hard_state.or(again.as_ref());
        self.write("append to", sync, |batch| {
            batch.add_entries::<EntryCodec>(VOLUME, entries)?;
            hard_state.map_or(Ok(()), |state| put_hard_state(batch, state))
        })?;
        let mut index = self.0.index.lock();
        index.append(entries);
        if let Some(hard_state) = hard_state {
            index.hard_state = hard_state.clone();
        }
        Ok(())
    }

    /// Forgets entries up to `at` (its term stays known), and gives back the files that held nothing
    /// else. Does nothing where they are gone already. Raises the hard state's commit to `at`.
    ///
    /// # Errors
    /// When the log does not hold `at`, or the disk refuses.
    pub fn compact_to(&self, at: LogIndex) -> Result<(), StoreError> {
        let writing = self.0.writing.lock();
        let (truncated, _) = self.truncated();
        if at <= truncated {
            return Ok(());
        }
        let term = self.term(at).ok_or_else(|| self.gap(at))?;
        let mut hard_state = self.hard_state();
        hard_state.commit = hard_state.commit.max(at.0);
        // Before files go that it makes needless.
        self.write("cut", true, |batch| {
            batch.put(VOLUME, TRUNCATED.to_vec(), encode_truncated(at, term))?;
            put_hard_state(batch, &hard_state)?;
            batch.add_command(VOLUME, Command::Compact { index: at.0 + 1 });
            Ok(())
        })?;
        {
            let mut index = self.0.index.lock();
            index.cut(at.0);
            index.hard_state = hard_state;
        }
        drop(writing);
        self.unpoisoned()?;
        let purged =
            contained("give back files of", &self.0.dir, || self.0.engine.purge_expired_files());
        purged.map(|_| ()).inspect_err(|_| self.poison())
    }

    /// Throws all entries away and starts after `at`, the index and term of a snapshot. The hard
    /// state's commit becomes `at`, its term at least `term`. Durable on return.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn reset_to(&self, at: LogIndex, term: Term) -> Result<(), StoreError> {
        let _writing = self.0.writing.lock();
        let _nobody_promises = self.take_back()?;
        let mut hard_state = self.hard_state();
        hard_state.commit = at.0;
        if hard_state.term < term.0 {
            (hard_state.term, hard_state.vote) = (term.0, 0);
        }
        let beyond = self.0.engine.last_index(VOLUME).map(|last| last + 1);
        self.write("reset", true, |batch| {
            if let Some(index) = beyond {
                batch.add_command(VOLUME, Command::Compact { index });
            }
            batch.put(VOLUME, TRUNCATED.to_vec(), encode_truncated(at, term))?;
            put_hard_state(batch, &hard_state)
        })?;
        *self.0.index.lock() = Index::after(at.0, term.0, hard_state);
        Ok(())
    }

    /// Entries of `[low, high)`, as many as fit into `max_bytes` but at least one.
    ///
    /// # Errors
    /// When the log does not hold them all, or cannot be read.
    pub fn entries(
        &self,
        low: LogIndex,
        high: LogIndex,
        max_bytes: Option<u64>,
    ) -> Result<Vec<Entry>, StoreError> {
        if low >= high {
            return Ok(Vec::new());
        }
        let end = {
            let index = self.0.index.lock();
            if low.0 < index.first() || high.0 > index.last() + 1 {
                let missing = if low.0 < index.first() { low } else { LogIndex(high.0 - 1) };
                return Err(gap(&index, missing));
            }
            let end = index.limit(low.0, high.0, max_bytes.unwrap_or(u64::MAX));
            if low.0 >= index.tail_first() {
                return Ok(index.tail(low.0, end).collect());
            }
            end
        };
        // What is in memory too is read as well: it is little, and may have moved on meanwhile.
        let cut_meanwhile = |error| if low < self.first_index() { self.gap(low) } else { error };
        self.read(low.0, end).map_err(cut_meanwhile)
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// The first entry that the log holds, or will hold.
    #[must_use]
    pub fn first_index(&self) -> LogIndex {
        LogIndex(self.0.index.lock().first())
    }

    /// The last entry that the log holds; one before [`Self::first_index`] where it is empty.
    #[must_use]
    pub fn last_index(&self) -> LogIndex {
        LogIndex(self.0.index.lock().last())
    }

    /// The term of an entry; known also for the last one that was cut off.
    #[must_use]
    pub fn term(&self, index: LogIndex) -> Option<Term> {
        self.0.index.lock().term(index.0).map(Term)
    }

    /// The last hard state that was written.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        self.0.index.lock().hard_state.clone()
    }

    /// Index and term of the last entry that was cut off; zeros at first.
    #[must_use]
    pub fn truncated(&self) -> (LogIndex, Term) {
        let index = self.0.index.lock();
        (LogIndex(index.cut_at), Term(index.cut_term))
    }

    /// Bytes of the entries that the log holds.
    #[must_use]
    pub fn used_size(&self) -> u64 {
        self.0.index.lock().bytes()
    }

    /// Bytes of those behind one entry up to another, of those that there are.
    #[must_use]
    pub fn used_size_of(&self, after: LogIndex, to: LogIndex) -> u64 {
        self.0.index.lock().bytes_of(after.0, to.0)
    }

    /// Reads `[low, high)` from disk, on a thread of its own: raft-engine keeps the last block that a
    /// thread has read, by its place in *a* log, so that two logs in one process (as in tests) would
    /// read each other's. It is rare: recent entries are in memory.
    pub(super) fn read(&self, low: u64, high: u64) -> Result<Vec<Entry>, StoreError> {
        let engine = &self.0.engine;
        let fetch = || {
            let mut entries = Vec::new();
            engine.fetch_entries_to::<EntryCodec>(VOLUME, low, high, None, &mut entries)?;
            Ok(entries)
        };
        std::thread::scope(|scope| {
            let reader = std::thread::Builder::new().name("log-read".to_owned());
            let reader = reader.spawn_scoped(scope, || contained("read", &self.0.dir, fetch));
            let reader = reader.map_err(StoreError::io("start a thread to read", &self.0.dir))?;
            reader.join().expect("panics are contained")
        })
    }

    fn check_follows(&self, entries: &[Entry]) -> Result<(), StoreError> {
        let Some(first) = entries.first() else { return Ok(()) };
        let index = self.0.index.lock();
        if first.index < index.first() || first.index > index.last() + 1 {
            return Err(gap(&index, LogIndex(first.index)));
        }
        let out_of_order = entries.iter().zip(first.index..).find(|(entry, at)| entry.index != *at);
        out_of_order.map_or(Ok(()), |(entry, _)| Err(gap(&index, LogIndex(entry.index))))
    }

    /// Writes what `fill` puts into a batch. The caller holds `writing`.
    pub(super) fn write(
        &self,
        action: &'static str,
        sync: bool,
        fill: impl FnOnce(&mut LogBatch) -> raft_engine::Result<()>,
    ) -> Result<(), StoreError> {
        self.unpoisoned()?;
        let written = contained(action, &self.0.dir, || {
            let mut batch = LogBatch::default();
            fill(&mut batch)?;
            self.0.engine.write(&mut batch, sync)
        });
        written.map(|_| ()).inspect_err(|_| self.poison())
    }

    /// Entries are going to be replaced: nobody says that they are there, for as long as this is held.
    fn take_back(&self) -> Result<MutexGuard<'_, Option<Promised>>, StoreError> {
        let mut promised = self.0.promised.lock();
        self.unpoisoned()?;
        let taken_back = promised.as_mut().map_or(Ok(()), Promised::take_back);
        taken_back.inspect_err(|_| self.poison())?;
        Ok(promised)
    }

    pub(super) fn unpoisoned(&self) -> Result<(), StoreError> {
        if self.0.poisoned.load(Ordering::Acquire) {
            return Err(StoreError::LogPoisoned { path: self.0.dir.clone() });
        }
        Ok(())
    }

    pub(super) fn poison(&self) {
        self.0.poisoned.store(true, Ordering::Release);
    }

    fn gap(&self, at: LogIndex) -> StoreError {
        gap(&self.0.index.lock(), at)
    }
}

fn gap(index: &Index, at: LogIndex) -> StoreError {
    StoreError::LogGap { index: at, first: LogIndex(index.first()), last: LogIndex(index.last()) }
}

#[cfg(test)]
#[path = "raft_log_tests.rs"]
mod tests;
