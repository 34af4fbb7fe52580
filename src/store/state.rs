//! The replicated state in sled: the cache that answers queries.

use crate::fs::{Pair, View};
use crate::store::StoreError;
use crate::types::LogIndex;

/// The state, written by the apply loop alone and read by queries.
#[derive(Debug)]
pub struct State(());

/// The whole state at one applied index: applies wait while it lives.
#[derive(Debug)]
pub struct StateRead<'a>(&'a State);

impl StateRead<'_> {
    /// The index up to which commands are applied.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        unimplemented!()
    }
}

impl View for StateRead<'_> {
    type Error = StoreError;

    fn get(&self, _key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let _ = self.0;
        unimplemented!()
    }

    fn scan(&self, _from: &[u8], _to: &[u8], _limit: usize) -> Result<Vec<Pair>, StoreError> {
        unimplemented!()
    }
}
