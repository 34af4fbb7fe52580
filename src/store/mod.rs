//! What is on this replica's disk: the Raft log, the cache of the state, backing files, snapshot
//! files, and the data directory that holds them.
//!
//! The truth is the last snapshot file plus the log since; the state in sled is a cache of it that
//! answers queries.

mod error;
mod files;
mod state;

pub use error::StoreError;
pub use files::Files;
pub use state::{State, StateRead};
