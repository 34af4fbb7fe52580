//! The replicated state machine: a tree of files as a map of byte keys to records.
//!
//! [`apply`] turns a command of the log into changes of a [`View`]; [`query`] reads. Pure and
//! deterministic: no clock, no randomness, no environment, no I/O. Everything that could differ
//! between replicas comes in the command. An errno is an outcome like any other; an error of the
//! view is this replica's own trouble and never becomes one.
//!
//! Called by `node` (over sled) and by the simulation (over a map in memory).

mod digest;
pub mod keys;
pub mod query;
mod view;

/// Records, commands and outcomes, generated from `proto/fs.proto`.
#[allow(missing_docs, clippy::pedantic)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/quorumfs.fs.v1.rs"));
}

pub use digest::Digest;
pub use view::{Batch, Overlay, Pair, View, ViewMut};

use bytes::Bytes;

use crate::types::{ByteRange, Generation, Ino, LogIndex, NodeId, SessionId, Term};

/// What applying one command did, besides its changes of the view.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// The answer to the proposer.
    pub outcome: proto::Outcome,
    /// What others may have cached that is different now; empty where the command was a retry.
    pub changes: Vec<Change>,
    /// What has to happen to backing files, in this order.
    pub effects: Vec<FileEffect>,
}

/// Something that a cache may hold and that is different now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Attributes of an inode.
    Attributes {
        /// Whose.
        ino: Ino,
    },
    /// Bytes of a file, including those that a truncation cut off.
    Bytes {
        /// Whose.
        ino: Ino,
        /// Which.
        range: ByteRange,
    },
    /// A name now means another inode, or none, or did not exist before.
    Name {
        /// Its directory.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
        /// Whether the name existed before, so that a kernel may have cached it.
        existed: bool,
    },
    /// An inode lost its last name; sessions must say whether they hold it.
    Orphaned {
        /// Which.
        ino: Ino,
    },
    /// An inode is gone for good.
    Removed {
        /// Which.
        ino: Ino,
    },
    /// A session began.
    SessionOpened {
        /// Its id.
        session: SessionId,
        /// Its node.
        node: NodeId,
        /// Whether it is in the roster.
        strong: bool,
    },
    /// A session ended: closed, expired or superseded.
    SessionEnded {
        /// Its id.
        session: SessionId,
        /// Its node.
        node: NodeId,
    },
    /// A member is known by this address from now on.
    MemberAdded {
        /// Its id.
        node: NodeId,
        /// Where its daemon listens.
        address: String,
    },
}

/// Something that has to happen to a backing file. Each is idempotent, and replaying all of them
/// from any earlier index on leaves the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileEffect {
    /// Write bytes at an offset, creating the file where it is absent.
    Write {
        /// Whose bytes.
        ino: Ino,
        /// Which life of them.
        generation: Generation,
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// Cut or extend (with zeros) to a size, creating the file where it is absent.
    Truncate {
        /// Whose bytes.
        ino: Ino,
        /// Which life of them.
        generation: Generation,
        /// The size in bytes.
        size: u64,
    },
    /// Delete the file.
    Remove {
        /// Whose bytes.
        ino: Ino,
        /// Which life of them.
        generation: Generation,
    },
}

/// Where in the log a command stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Its index.
    pub index: LogIndex,
    /// The term of its leader.
    pub term: Term,
}
