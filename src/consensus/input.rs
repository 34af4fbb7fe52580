//! What happens to the core.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{PeerMessage, Sample, SessionInfo, Standing};
use crate::types::{LogIndex, NodeId, Position, ProposalKey, SessionId, Suffrage, Term};

/// One event. Handing one in changes the state at once; effects are polled afterwards.
#[derive(Debug)]
pub enum Input {
    /// [`super::CoreConfig::tick`] has passed.
    Tick,
    /// A read on this node waits until an index is stable.
    AwaitStable {
        /// The index.
        index: LogIndex,
    },
    /// A peer said something.
    Peer {
        /// Which.
        from: NodeId,
        /// What.
        message: PeerMessage,
    },
    /// The connection to a peer is new: what was sent on the old one may be lost.
    Connected {
        /// Which peer.
        node: NodeId,
    },
    /// This node wants a command in the log.
    Propose {
        /// Its name until it is acknowledged.
        key: ProposalKey,
        /// The encoded command.
        data: Bytes,
        /// What its proposer waits for.
        wait: Wait,
    },
    /// Nobody waits for this proposal any more.
    Abandon {
        /// Which.
        key: ProposalKey,
    },
    /// [`super::Effect::Persist`] with this number, and all before it, are done.
    Persisted {
        /// The number.
        number: u64,
    },
    /// [`super::Effect::Invalidate`] up to this entry is done.
    Invalidated {
        /// The last of the entries.
        last: Position,
        /// The sessions that proposed them.
        sessions: BTreeSet<SessionId>,
    },
    /// Entries were applied here, and this node's own kernel serves nothing older.
    Applied {
        /// The last of them.
        index: LogIndex,
        /// Its term.
        term: Term,
        /// The commands among them, with their indexes.
        commands: Vec<(ProposalKey, LogIndex)>,
        /// What they did to the sessions, in order.
        sessions: Vec<SessionChange>,
        /// What members are to be from now on; nothing of those that have no place.
        members: Vec<(NodeId, Option<Suffrage>)>,
    },
    /// What this replica's state came to at an entry that asks for it: the last one that was applied.
    Sampled {
        /// That.
        sample: Sample,
        /// The entry of which it says what most had.
        judged: LogIndex,
    },
    /// How this replica's state stands to those of the others.
    Stands(Standing),
    /// Answer to [`super::Effect::Attest`]: the command.
    ProposeVerdict {
        /// Encoded.
        data: Bytes,
    },
    /// A node has all bytes that came up to an entry on its disk.
    Holds {
        /// Which.
        node: NodeId,
        /// The entry.
        index: LogIndex,
    },
    /// This node's session is this one now.
    OwnSession {
        /// The session; none while there is none.
        session: Option<SessionId>,
    },
    /// The daemon of a session is dead, and its kernel serves nothing under it any more: the session may end at once.
    Fenced {
        /// Whose session it is.
        node: NodeId,
        /// The session.
        session: SessionId,
    },
    /// Answer to [`super::Effect::Expire`]: the command that ends the session.
    ProposeExpiry {
        /// The session.
        session: SessionId,
        /// The encoded command.
        data: Bytes,
    },
    /// Hand leadership over: to the named voter, whoever leads; or from this node, to the voter that holds most of the log.
    TransferLeader {
        /// To whom.
        to: Option<NodeId>,
    },
}

/// What a proposer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Committed and applied here.
    Here,
    /// The same, and shown by every mount of the roster.
    Roster,
}

/// What an applied command did to the sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionChange {
    /// One began.
    Opened(SessionInfo),
    /// One ended.
    Ended(SessionId),
}
