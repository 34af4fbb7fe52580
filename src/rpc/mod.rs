//! gRPC: what daemons say to each other, and what people and scripts ask of a daemon.

/// Messages, client and server of `proto/admin.proto`.
#[allow(missing_docs, rustdoc::all, clippy::all, clippy::pedantic)]
pub mod admin {
    tonic::include_proto!("quorumfs.admin.v1");
}

/// Messages, client and server of `proto/peer.proto`.
#[allow(missing_docs, rustdoc::all, clippy::all, clippy::pedantic)]
pub mod peer {
    tonic::include_proto!("quorumfs.peer.v1");
}
