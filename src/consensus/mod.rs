//! One Raft replica, the roster of sessions, and the proposals in flight: everything that decides.
//!
//! Sans-I/O: [`Core::handle`] takes an input and the node's monotonic time, state changes at once,
//! and [`Core::poll_effect`] hands out what has to be done, in the order in which it may be done. The
//! driver in `node` and the simulation run the same core. It knows nothing of files: a command is
//! bytes under a [`ProposalKey`](crate::types::ProposalKey).
//!
//! What is decided here: in which order to persist, send and apply; when a mutation may be
//! acknowledged (`Effect::Acknowledge`); whether a read may be served ([`ReadGate`]); whose session
//! lives ([`Effect::Expire`]); whether the replicas' states are equal ([`Effect::Attest`]).

mod anew;
mod commits;
mod config;
mod core;
mod digests;
mod effect;
mod fencing;
mod gate;
mod input;
mod keeper;
mod lease;
mod log_view;
mod membership;
mod proposals;
mod replay;
mod roster;
mod settle;
mod suspicion;

pub use config::CoreConfig;
pub use core::{Boot, Core, CoreError};
pub use digests::Standing;
pub use effect::{Claim, Committed, Effect, PeerMessage, Received, Role, Sample};
pub use gate::ReadGate;
pub use input::{Input, SessionChange, Wait};
pub use raft::Storage as LogReader;
pub use replay::membership_after;
pub use roster::SessionInfo;
pub use suspicion::Suspicion;
