//! A Raft log on a disk that loses, at a crash, what was not synced.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use quorumfs::types::{LogIndex, Position, Term};
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::util::limit_size;
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

use crate::random::Random;

#[derive(Debug)]
struct Write {
    number: u64,
    entries: Vec<Entry>,
    hard_state: Option<HardState>,
}

#[derive(Debug, Default)]
struct Contents {
    /// What was cut off ends here.
    cut: Position,
    entries: Vec<Entry>,
    hard_state: HardState,
    /// Written, and not yet durable.
    pending: VecDeque<Write>,
}

/// A log, shared between the core that reads it and the driver that writes it.
#[derive(Clone, Debug)]
pub struct Disk(Rc<RefCell<Contents>>);

impl Disk {
    /// An empty log of a replica whose state machine stands at `base`.
    pub fn new(base: Position) -> Self {
        let hard_state =
            HardState { term: base.term.0, commit: base.index.0, ..HardState::default() };
        let contents = Contents { cut: base, hard_state, ..Contents::default() };
        Self(Rc::new(RefCell::new(contents)))
    }

    pub fn write(&self, number: u64, entries: Vec<Entry>, hard_state: Option<HardState>) {
        self.0.borrow_mut().pending.push_back(Write { number, entries, hard_state });
    }

    /// The writes up to `number` became durable.
    pub fn sync(&self, number: u64) {
        let mut contents = self.0.borrow_mut();
        while contents.pending.front().is_some_and(|write| write.number <= number) {
            let write = contents.pending.pop_front().expect("the loop has just seen it");
            contents.keep(write);
        }
    }

    /// Some of what was not synced happens to be there afterwards: whole writes, in their order (each
    /// is one atomic batch). Returns how many were lost.
    pub fn crash(&self, random: &mut Random) -> u64 {
        let mut contents = self.0.borrow_mut();
        let kept = random.index(contents.pending.len() + 1);
        for _ in 0..kept {
            let write = contents.pending.pop_front().expect("there are so many");
            contents.keep(write);
        }
        let lost = contents.pending.len() as u64;
        contents.pending.clear();
        lost
    }

    /// What is committed, as far as it would know after a crash.
    pub fn commit(&self) -> LogIndex {
        LogIndex(self.0.borrow().hard_state.commit)
    }

    /// The last entry that is durable.
    pub fn end(&self) -> LogIndex {
        LogIndex(self.0.borrow().last_index())
    }

    /// What a node does before raft-rs starts: the hard state may lag behind what was applied.
    pub fn raise_commit(&self, applied: Position) {
        let mut contents = self.0.borrow_mut();
        let hard_state = &mut contents.hard_state;
        hard_state.commit = hard_state.commit.max(applied.index.0);
    }

    /// Starts after `at`, where the log does not have it.
    pub fn fit(&self, at: Position) {
        let mut contents = self.0.borrow_mut();
        assert!(contents.pending.is_empty(), "nothing is under way");
        if contents.term(at.index.0).ok() == Some(at.term.0) {
            return;
        }
        contents.entries.clear();
        contents.cut = at;
        contents.hard_state.commit = at.index.0;
        if contents.hard_state.term < at.term.0 {
            (contents.hard_state.term, contents.hard_state.vote) = (at.term.0, 0);
        }
    }

    /// Forgets the entries up to `index`.
    pub fn cut(&self, index: LogIndex) {
        let mut contents = self.0.borrow_mut();
        if index <= contents.cut.index {
            return;
        }
        let term = contents.term(index.0).expect("only what is there is cut");
        let count = contents.place(index.0 + 1);
        contents.entries.drain(..count);
        contents.cut = Position { index, term: Term(term) };
    }
}

impl Contents {
    fn keep(&mut self, write: Write) {
        if let Some(first) = write.entries.first() {
            assert!(first.index <= self.last_index() + 1, "a hole in the log");
            assert!(first.index > self.cut.index.0, "a write behind the cut");
            let kept = self.place(first.index);
            self.entries.truncate(kept);
            self.entries.extend(write.entries);
        }
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
    }

    fn place(&self, index: u64) -> usize {
        usize::try_from(index - self.cut.index.0 - 1).expect("logs are short")
    }

    fn last_index(&self) -> u64 {
        self.cut.index.0 + self.entries.len() as u64
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.cut.index.0 {
            return Ok(self.cut.term.0);
        }
        if index < self.cut.index.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let entry = self.entries.get(self.place(index));
        entry.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }
}

impl Storage for Disk {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(self.0.borrow().hard_state.clone(), ConfState::default()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        let contents = self.0.borrow();
        if low <= contents.cut.index.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > contents.last_index() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let mut entries = contents.entries[contents.place(low)..contents.place(high)].to_vec();
        limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64> {
        self.0.borrow().term(index)
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.0.borrow().cut.index.0 + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.0.borrow().last_index())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> Result<Snapshot> {
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
