//! What applying a command did: its outcome, what caches must forget, what backing files must become.

use bytes::Bytes;

use super::proto;
use crate::types::{
    ByteRange, Generation, Ino, LogIndex, NodeId, Seq, SessionId, StageId, Suffrage,
};

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
    /// Attributes of some inodes: nobody knows yet of which.
    SomeAttributes,
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
    /// A session is to keep the locks of an inode by itself from now on.
    LocksDelegated {
        /// Whose locks.
        ino: Ino,
        /// To whom.
        session: SessionId,
        /// Index of the entry that did it.
        at: LogIndex,
        /// All that it has.
        held: Vec<proto::Lock>,
    },
    /// The delegate is to return them.
    LocksRecalled {
        /// Whose locks.
        ino: Ino,
        /// Who has them.
        session: SessionId,
    },
    /// It did.
    LocksReturned {
        /// Whose locks.
        ino: Ino,
        /// Who had them.
        session: SessionId,
    },
    /// A request for a lock that was queued has its answer.
    LockAnswered {
        /// Who asked.
        session: SessionId,
        /// By which command.
        seq: Seq,
        /// The answer.
        answer: proto::LockAnswer,
        /// Who has it, where it was refused.
        conflict: Option<proto::Lock>,
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
    /// What is said of a member from now on.
    MemberChanged {
        /// Its id.
        node: NodeId,
        /// Where its daemon listens.
        address: String,
        /// What it is to be; nothing while it has only been announced.
        suffrage: Option<Suffrage>,
    },
    /// A member was removed.
    MemberRemoved {
        /// Its id.
        node: NodeId,
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
    /// Bytes of a stage become bytes of the file, creating it where it is absent.
    Stage {
        /// The entry of the log that orders it: the file's `data_version` from here on.
        index: LogIndex,
        /// Whose bytes.
        ino: Ino,
        /// Which life of them.
        generation: Generation,
        /// Where they are.
        stage: StageId,
        /// Which of them go where.
        pieces: Vec<StagedPiece>,
    },
    /// What a session has staged and not written goes: it never will be.
    EndStages {
        /// Which session.
        session: SessionId,
    },
    /// A life of the bytes ends, and another one begins, empty.
    Renew {
        /// Whose bytes.
        ino: Ino,
        /// The life that ends.
        generation: Generation,
        /// The one that begins.
        next: Generation,
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
    /// Reserve space without changing a byte; the file's own size stays.
    Allocate {
        /// Whose bytes.
        ino: Ino,
        /// Which life of them.
        generation: Generation,
        /// Which of them.
        range: ByteRange,
    },
    /// Make bytes zeros; the file's own size stays.
    Zero {
        /// Whose bytes.
        ino: Ino,
        /// Which life of them.
        generation: Generation,
        /// Which of them.
        range: ByteRange,
        /// Whether their space stays reserved; it is given back otherwise.
        reserved: bool,
    },
    /// Copy bytes from file to file. Its replay needs the bytes that the source had at `index`, whatever
    /// has become of them since.
    Copy {
        /// The entry of the log that orders it.
        index: LogIndex,
        /// Whose bytes are read.
        source: Ino,
        /// Which life of them.
        source_generation: Generation,
        /// Which of them; all lie within the file's size.
        range: ByteRange,
        /// Whose bytes are written.
        ino: Ino,
        /// Which life of them.
        generation: Generation,
        /// Where the first one goes.
        offset: u64,
    },
    /// Delete the file.
    Remove {
        /// Whose bytes.
        ino: Ino,
        /// Which life of them.
        generation: Generation,
    },
}

/// Bytes of a stage, and where they go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedPiece {
    /// Offset in the file of the first one.
    pub at: u64,
    /// Where they are in the stage.
    pub staged: ByteRange,
    /// CRC-32C of what is in the piece of each block of the stage.
    pub checksums: Vec<u32>,
}

impl StagedPiece {
    /// Where they go.
    #[must_use]
    pub fn range(&self) -> ByteRange {
        ByteRange::at(self.at, self.staged.len())
    }
}

impl FileEffect {
    /// Whose bytes may be others afterwards.
    #[must_use]
    pub fn changes(&self) -> Option<Ino> {
        match self {
            Self::Write { ino, .. }
            | Self::Stage { ino, .. }
            | Self::Renew { ino, .. }
            | Self::Truncate { ino, .. }
            | Self::Allocate { ino, .. }
            | Self::Zero { ino, .. }
            | Self::Copy { ino, .. }
            | Self::Remove { ino, .. } => Some(*ino),
            Self::EndStages { .. } => None,
        }
    }

    /// Whether bytes go that the state counts until it says so itself: a reader in between would find
    /// too few.
    #[must_use]
    pub fn cuts(&self) -> bool {
        match self {
            Self::Renew { .. } | Self::Truncate { .. } | Self::Remove { .. } => true,
            Self::Write { .. }
            | Self::Stage { .. }
            | Self::EndStages { .. }
            | Self::Allocate { .. }
            | Self::Zero { .. }
            | Self::Copy { .. } => false,
        }
    }
}
