//! The Raft log of this replica, in raft-engine.
//!
//! Called by the node's driver (appends, cuts) and by raft-rs (reads). What raft-engine would bear
//! in silence and a Raft log must not (a hole, a damaged record before the end) is an error of
//! [`RaftLog::open`].

mod check;
mod engine;
mod index;
mod load;
mod mend;
mod promised;
mod raft_log;
mod storage;

pub use engine::LogOptions;
pub(super) use mend::mend_log;
pub use raft_log::RaftLog;
