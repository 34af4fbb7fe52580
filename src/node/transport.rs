//! How a node talks to its peers. Implemented by `rpc`.

use super::space::SpaceReport;
use crate::consensus::PeerMessage;
use crate::types::NodeId;

/// What daemons say to each other.
#[derive(Clone, Debug)]
pub enum ToPeer {
    /// What their cores do.
    Core(PeerMessage),
    /// What room the sender's disk has.
    Space(SpaceReport),
}

/// Messages to peers. They may be lost, repeated or reordered; whoever needs an answer asks again.
pub trait Transport: Send + Sync {
    /// Sends without waiting; drops the message where the peer is out of reach or far behind.
    fn send(&self, to: NodeId, message: ToPeer);

    /// A peer listens at this address from now on.
    fn learn(&self, node: NodeId, address: &str);

    /// Whether messages to a peer are getting through at present.
    fn is_connected(&self, node: NodeId) -> bool;
}
