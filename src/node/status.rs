//! What a node says of itself.

use std::time::Duration;

use crate::consensus::{Role, SessionInfo, Suspicion};
use crate::types::{LogIndex, NodeId, Term};

/// The core's part of a node's status.
#[derive(Clone, Debug)]
pub struct RaftStatus {
    /// What this node is.
    pub role: Role,
    /// In which term.
    pub term: Term,
    /// Who leads; 0 while nobody is known to.
    pub leader: NodeId,
    /// The highest index known to be committed.
    pub commit: LogIndex,
    /// The last index of the log.
    pub last_index: LogIndex,
    /// Members: id, whether it votes, and on a leader what it is known to hold.
    pub members: Vec<(NodeId, bool, Option<LogIndex>)>,
    /// How long this node's own disk has had the write that it has not done; zero where it works.
    pub stalled: Duration,
    /// What is known of the others' health.
    pub suspicions: Vec<(NodeId, Suspicion)>,
    /// Open sessions, and what each is known to show.
    pub sessions: Vec<(SessionInfo, LogIndex)>,
    /// The log from here on may still be needed by a member.
    pub needed: LogIndex,
    /// What the core knows to be applied.
    pub applied: LogIndex,
}
