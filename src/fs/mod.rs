//! The replicated state machine: a tree of files as a map of byte keys to records.
//!
//! [`apply()`] turns a command of the log into changes of a [`View`]; [`query`] reads; [`check()`]
//! verifies the invariants. Pure and deterministic: no clock, no randomness, no environment, no I/O.
//! Everything that could differ between replicas comes in the command. An errno is an outcome like
//! any other; an error of the view is this replica's own trouble and never becomes one.
//!
//! Called by `node` (over sled) and by the simulation (over a map in memory).

mod acl;
mod applied;
mod apply;
mod check;
mod delegations;
mod digest;
mod errno;
mod genesis;
pub mod keys;
mod ledger;
pub mod limits;
mod locks;
mod pages;
pub mod query;
mod record;
#[cfg(test)]
mod tests;
mod unapplied;
mod view;

/// Records, commands and outcomes, generated from `proto/fs.proto`.
#[allow(missing_docs, clippy::pedantic, rustdoc::all, reason = "generated")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/quorumfs.fs.v1.rs"));
}

pub use acl::{ACCESS_ACL, DEFAULT_ACL};
pub use applied::{Applied, Change, FileEffect, StagedPiece};
pub use apply::{NoCommand, apply, decode};
pub use check::{Problem, check};
pub use delegations::{Delegations, Local};
pub use digest::Digest;
pub use errno::Errno;
pub use genesis::genesis;
pub use ledger::{Finding, Ledger, Verdict};
pub use locks::{LockTable, WHOLE_FILE};
pub use pages::Pages;
pub use record::{CorruptRecord, Corruption, Records};
pub use unapplied::Unapplied;
pub use view::{Batch, Overlay, Pair, View, ViewMut};

pub use crate::types::Position;
