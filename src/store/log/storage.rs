//! The log as raft-rs reads it.

use raft::eraftpb::{ConfState, Entry, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::RaftLog;
use crate::store::StoreError;
use crate::types::LogIndex;

impl Storage for RaftLog {
    /// The hard state, and an *empty* membership: that is part of the applied state, so the caller
    /// supplies it.
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state(), ConfState::default()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < Self::first_index(self).0 {
            return Err(StorageError::Compacted.into());
        }
        if high > Self::last_index(self).0 + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let entries = Self::entries(self, LogIndex(low), LogIndex(high), max_size.into());
        entries.map_err(|error| match error {
            StoreError::LogGap { .. } => StorageError::Compacted.into(),
            other => StorageError::Other(Box::new(other)).into(),
        })
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        Self::term(self, LogIndex(index)).map(u64::from).ok_or_else(|| {
            let cut = index < Self::first_index(self).0;
            if cut { StorageError::Compacted } else { StorageError::Unavailable }.into()
        })
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(Self::first_index(self).0)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(Self::last_index(self).0)
    }

    /// Snapshots travel outside of raft-rs's messages: the node sends the snapshot file.
    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}
