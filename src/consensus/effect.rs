//! What the core wants done.

use std::time::Duration;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Message};

use super::ReadGate;

use crate::types::{LogIndex, NodeId, Position, ProposalKey, SessionId, Term};

/// One thing to do, in the order in which they are polled; `Persist`, `Send` and `Apply` may each run
/// on a thread of its own as long as each kind keeps its order. `Invalidate` goes with `Apply`, or ahead
/// of it.
#[derive(Debug)]
pub enum Effect {
    /// Write to the log and make it durable; then answer [`super::Input::Persisted`]. A failure must
    /// stop the replica.
    Persist {
        /// Ascending.
        number: u64,
        /// Entries; they replace what the log holds from the first one's index on.
        entries: Vec<Entry>,
        /// The new hard state, where it changed.
        hard_state: Option<HardState>,
    },
    /// Send to a peer. It may be lost, repeated or reordered.
    Send {
        /// Whom.
        to: NodeId,
        /// What.
        message: PeerMessage,
    },
    /// These were received and may be committed soon: see to it that this mount serves nothing older from
    /// now on (its kernel forgets what they change, reads of that wait until they are applied); then
    /// answer [`super::Input::Invalidated`]. They replace what was received from the first one's index on.
    Invalidate {
        /// Consecutive entries, at least one.
        entries: Vec<Received>,
    },
    /// Apply these, in order; then answer [`super::Input::Applied`].
    Apply {
        /// Consecutive committed entries.
        entries: Vec<Committed>,
        /// Everybody else serves nothing older any more: unless one of these opens a session, whoever
        /// proposed one may be told its outcome as soon as it is applied.
        shown_by_others: bool,
    },
    /// The proposer may be told the outcome.
    Acknowledge {
        /// Of which proposal.
        key: ProposalKey,
    },
    /// What decides about reads is different now.
    Gate(ReadGate),
    /// This leader has not heard from a session for too long, or its guardian has fenced it: encode the command that ends it and
    /// answer [`super::Input::ProposeExpiry`].
    Expire {
        /// The session.
        session: SessionId,
    },
    /// The replicas' digests are to be compared: encode the command that says what most voters have at an entry, and
    /// answer [`super::Input::ProposeVerdict`].
    Attest {
        /// The entry; 0 where there is none yet.
        index: LogIndex,
        /// What most have; none where they differ.
        digest: Option<u128>,
    },
    /// Term, role or leader changed.
    Role {
        /// What this node is.
        role: Role,
        /// In which term.
        term: Term,
        /// Who leads; 0 while nobody is known to.
        leader: NodeId,
    },
    /// The leader no longer has the entries that this replica lacks: it needs a snapshot, see
    /// [`super::Core::install`].
    LogWasCut {
        /// Who says so, and has one.
        leader: NodeId,
        /// The first one that the leader has.
        first_index: LogIndex,
    },
}

/// An entry that was received.
#[derive(Clone, Debug)]
pub struct Received {
    /// Where it stands, unless it is replaced.
    pub position: Position,
    /// An encoded command; empty for entries of Raft's own.
    pub data: Bytes,
}

/// A committed entry.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Where it stands.
    pub position: Position,
    /// An encoded command; empty for entries of Raft's own.
    pub data: Bytes,
    /// The membership from here on, where the entry changed it.
    pub conf_state: Option<ConfState>,
}

/// What cores say to each other.
#[derive(Clone, Debug)]
pub enum PeerMessage {
    /// Raft's own.
    Raft(Box<Message>),
    /// What the sender's session serves nothing older than.
    Visible {
        /// The sender's session.
        session: SessionId,
        /// It shows everything up to this index.
        index: LogIndex,
        /// It shows nothing older than the log of this term's leader up to an index.
        invalidated: Claim,
    },
    /// The sender's session wants to live on.
    Heartbeat {
        /// The sender's session.
        session: SessionId,
        /// Ascending within a session.
        number: u64,
        /// What it shows.
        visible: LogIndex,
    },
    /// The leader's renewal of a session.
    HeartbeatAck {
        /// The session.
        session: SessionId,
        /// Which heartbeat this answers.
        number: u64,
    },
    /// The sender's disk has had a write for so long; zero: it works again.
    Stalled {
        /// How long.
        stalled: Duration,
    },
    /// The sender has a read that waits until the receiver shows an index.
    Ask {
        /// The index.
        index: LogIndex,
    },
    /// How far the log of a term is known to the sender to be on disks.
    Commit {
        /// On the sender's own.
        durable: Claim,
        /// On those of a quorum, and so committed.
        commit: LogIndex,
    },
    /// What the sender's state came to.
    Digest(Sample),
    /// The receiver needs entries that the sender no longer has.
    LogCut {
        /// The first entry that the sender has.
        first_index: LogIndex,
    },
}

/// What a replica's state came to at an entry: equal states have equal digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The entry.
    pub index: LogIndex,
    /// The state's digest, which means nothing here.
    pub digest: u128,
}

/// What a node says of entries that it has received: nothing older than the log of a term's leader, up to
/// an index, is served by its mount. A leader never takes back what it sent in its term, so within the
/// term that holds for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Whose log.
    pub term: Term,
    /// Up to where.
    pub index: LogIndex,
}

/// What a node is in its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It leads.
    Leader,
    /// It follows, and votes.
    Follower,
    /// It stands for election.
    Candidate,
    /// It follows without a vote.
    Learner,
}
