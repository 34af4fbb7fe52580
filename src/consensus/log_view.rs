//! The log as raft-rs sees it: what the store has made durable, with the newest entries on top.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, Snapshot};
use raft::util::limit_size;
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

use crate::types::{LogIndex, NodeId};

/// raft-rs considers an entry stored as soon as it was handed out to be persisted, so everything from
/// there on is kept here until it is durable (and applied: each entry is read at least once more).
pub(super) struct LogView<S> {
    durable: S,
    conf_state: ConfState,
    /// Consecutive; replaces whatever `durable` holds from the first one's index on.
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    kept_bytes: usize,
    /// Which peer raft-rs wanted to send a snapshot to.
    snapshot_wanted: Cell<Option<NodeId>>,
}

impl<S: Storage> LogView<S> {
    /// A view of `durable`, of a group whose membership at the applied index is `conf_state`. Keeps
    /// about `kept_bytes` of it in memory.
    pub(super) fn new(durable: S, conf_state: ConfState, kept_bytes: usize) -> Self {
        Self {
            durable,
            conf_state,
            tail: VecDeque::new(),
            tail_bytes: 0,
            kept_bytes,
            snapshot_wanted: Cell::new(None),
        }
    }

    /// Adds entries that are on their way to the disk.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.tail.back().is_some_and(|last| last.index >= first.index) {
            let replaced = self.tail.pop_back().expect("the loop has just seen it");
            self.tail_bytes -= replaced.data.len();
        }
        debug_assert!(self.tail.back().is_none_or(|last| last.index + 1 == first.index));
        for entry in entries {
            self.tail_bytes += entry.data.len();
            self.tail.push_back(entry.clone());
        }
    }

    /// Forgets the oldest entries, all of which are durable and applied up to `index`, where they take
    /// too much memory.
    pub(super) fn trim(&mut self, index: LogIndex) {
        while self.tail_bytes > self.kept_bytes
            && self.tail.front().is_some_and(|first| first.index <= index.0)
        {
            let first = self.tail.pop_front().expect("the loop has just seen it");
            self.tail_bytes -= first.data.len();
        }
    }

    /// The peer that needs entries which are cut off, if one was seen since the last call.
    pub(super) fn take_snapshot_wanted(&self) -> Option<NodeId> {
        self.snapshot_wanted.take()
    }

    fn tail_at(&self, index: u64) -> Option<&Entry> {
        let first = self.tail.front()?.index;
        self.tail.get(usize::try_from(index.checked_sub(first)?).ok()?)
    }
}

impl<S: Storage> Storage for LogView<S> {
    fn initial_state(&self) -> Result<RaftState> {
        let hard_state = self.durable.initial_state()?.hard_state;
        Ok(RaftState::new(hard_state, self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        let max_size = max_size.into();
        let tail_first = self.tail.front().map_or(u64::MAX, |first| first.index);
        if low < tail_first {
            // What the tail has besides is asked for again with a higher `low`.
            return self.durable.entries(low, high.min(tail_first), max_size, context);
        }
        if high > self.last_index()? + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let mut budget = max_size.unwrap_or(u64::MAX);
        let mut entries = Vec::new();
        for index in low..high {
            let entry = self.tail_at(index).expect("the tail is consecutive");
            let size = entry.data.len() as u64 + 32;
            if !entries.is_empty() && size > budget {
                break;
            }
            budget = budget.saturating_sub(size);
            entries.push(entry.clone());
        }
        limit_size(&mut entries, max_size);
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64> {
        match self.tail_at(index) {
            Some(entry) => Ok(entry.term),
            None if self.tail.back().is_some_and(|last| index > last.index) => {
                Err(Error::Store(StorageError::Unavailable))
            }
            None => self.durable.term(index),
        }
    }

    fn first_index(&self) -> Result<u64> {
        self.durable.first_index()
    }

    fn last_index(&self) -> Result<u64> {
        self.tail.back().map_or_else(|| self.durable.last_index(), |last| Ok(last.index))
    }

    fn snapshot(&self, _request_index: u64, to: u64) -> Result<Snapshot> {
        self.snapshot_wanted.set(Some(NodeId(to)));
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
