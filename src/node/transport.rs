//! How a node talks to its peers. Implemented by `rpc`.

use std::pin::Pin;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::blocks::{Block, Examined};
use super::durability::Synced;
use super::fetch::{Fetched, Wanted};
use super::space::{OnDisk, SpaceReport};
use super::staging::Weighed;
use super::survey::{Lacked, Lacking};
use crate::consensus::PeerMessage;
use crate::types::{LogIndex, NodeId, StageId, Timestamp};

/// What daemons say to each other.
#[derive(Clone, Debug)]
pub enum ToPeer {
    /// What their cores do.
    Core(PeerMessage),
    /// What the sender's disk has room for, what is on it, and what time it is there.
    Disk(SpaceReport, OnDisk, Timestamp),
}

/// What a node tells a peer of a stage of its own.
#[derive(Clone, Debug)]
pub enum ToStage {
    /// Bytes.
    Data {
        /// Of which stage.
        id: StageId,
        /// Where in it.
        offset: u64,
        /// What.
        bytes: Weighed,
    },
    /// Asks whether it holds what it was sent of a stage: answered by [`Handle::stage_marked`](super::Handle::stage_marked).
    Mark {
        /// Of which stage.
        id: StageId,
        /// The number of the question.
        mark: u64,
        /// On disk.
        durable: bool,
    },
    /// The stage will not be written.
    Abandon {
        /// Which.
        id: StageId,
    },
}

/// What a peer answers, if it does.
pub type Answered<T> = Pin<Box<dyn Future<Output = Option<T>> + Send>>;

/// Messages to peers. They may be lost, repeated or reordered; whoever needs an answer asks again.
pub trait Transport: Send + Sync {
    /// Sends without waiting; drops the message where the peer is out of reach or far behind.
    fn send(&self, to: NodeId, message: ToPeer);

    /// The connection that carries stages to a peer, by its number; nothing where there is none.
    fn stage_lane(&self, node: NodeId) -> Option<u64>;

    /// Sends by that connection, in order, without waiting; nothing is sent where it is lost. Whoever sends bounds
    /// what is on its way.
    fn stage(&self, to: NodeId, lane: u64, message: ToStage);

    /// Asks a peer for bytes; nothing in its answer where it lacks them, and none where it cannot be asked, or cannot say
    /// now.
    fn fetch(&self, from: NodeId, wanted: Wanted) -> Answered<Option<Fetched>>;

    /// Has a peer bring bytes to its disk; false where it has not all of them, nothing where it cannot be asked.
    fn sync(&self, to: NodeId, wanted: Synced) -> Answered<bool>;

    /// Asks a peer what blocks of a file are on its disk; nothing where it does not have that version, or cannot be
    /// asked.
    fn examine(&self, at: NodeId, asked: Examined) -> Answered<Vec<Block>>;

    /// Tells a peer what a majority of the replicas has for a block; whether it has another one, which is missing
    /// there from then on. Nothing where it cannot be asked.
    fn outvote(&self, at: NodeId, asked: Examined, sum: u32) -> Answered<bool>;

    /// Asks a peer which bytes of a file it lacks; nothing where it does not have that version, or cannot be asked.
    fn lacking(&self, at: NodeId, asked: Lacking) -> Answered<Lacked>;

    /// Asks a peer for its newest snapshot file, which must cover `at_least`: its bytes go to `pieces` in order; nothing
    /// in the end where not all of them came.
    fn fetch_snapshot(
        &self,
        from: NodeId,
        at_least: LogIndex,
        pieces: mpsc::Sender<Bytes>,
    ) -> Answered<()>;

    /// A node is no peer any more.
    fn forget(&self, node: NodeId);

    /// All peers.
    fn peers(&self) -> Vec<NodeId>;

    /// A peer listens at this address from now on.
    fn learn(&self, node: NodeId, address: &str);

    /// Whether messages to a peer are getting through at present.
    fn is_connected(&self, node: NodeId) -> bool;
}
