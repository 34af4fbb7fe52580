//! One daemon: puts the store, the node, the services and the mount together.

use crate::config::Config;
use crate::types::{ClusterId, NodeId};

/// What `cluster init` made, and what the others need to join.
#[derive(Clone, Debug)]
pub struct InitReport {
    /// The new cluster.
    pub cluster: ClusterId,
    /// Its first node.
    pub node: NodeId,
    /// Where the others reach it.
    pub address: String,
}

/// Runs a daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or cannot go on.
pub fn run(_config: Config) -> anyhow::Result<()> {
    unimplemented!()
}

/// Makes a new cluster's first node in an empty data directory.
///
/// # Errors
/// When the directory holds anything already, or cannot be written.
pub fn init(_config: Config) -> anyhow::Result<InitReport> {
    unimplemented!()
}
