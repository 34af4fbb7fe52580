//! gRPC services and clients: peers, and people.
//!
//! Implements `node`'s [`Transport`](crate::node::Transport) with one long-lived stream to each
//! peer, and serves the `Peer` and `Admin` services. Knows nothing of what the messages mean.

mod admin_service;
mod bulk_service;
mod connection;
mod envelope;
mod examining;
mod fencing;
mod hello;
mod join;
mod lanes;
mod local_caller;
mod losing;
mod lost_state;
mod membership;
mod metrics;
mod mounts;
mod peer_service;
mod peers;
mod removal;
mod scrubbing;
mod server;
mod stage_lanes;
mod stage_queue;
mod starting;
mod wire;

/// Messages and services of `proto/admin.proto`.
#[allow(missing_docs, clippy::pedantic, rustdoc::all, reason = "generated")]
pub mod admin {
    tonic::include_proto!("quorumfs.admin.v1");
}

/// Messages and services of `proto/peer.proto`.
#[allow(missing_docs, clippy::pedantic, rustdoc::all, reason = "generated")]
pub mod peer {
    tonic::include_proto!("quorumfs.peer.v1");
}

pub use admin_service::AdminService;
pub use bulk_service::BulkService;
pub use fencing::{Fenced, tell_fenced};
pub use join::{JoinError, Joined, join};
pub use lost_state::fetch_snapshot;
pub use metrics::serve_metrics;
pub use mounts::{Mounts, MountsError};
pub use peer_service::PeerService;
pub use peers::Peers;
pub use removal::removal;
pub use server::{ServeError, bind, serve};
pub use starting::Starting;

/// The format of the peer protocol. A peer with another one is refused.
pub const FORMAT: u32 = 8;

/// The largest message that a peer accepts.
const MAX_MESSAGE: usize = 64 << 20;
/// HTTP/2 flow-control windows of a stream and of a connection.
const WINDOW: u32 = 8 << 20;
/// The largest HTTP/2 frame of bulk data. By default it is 16 KiB, and each costs a system call and wake-ups.
const FRAME: u32 = 1 << 20;
