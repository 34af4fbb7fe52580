//! What can be wrong with a state.

use crate::fs::record::CorruptRecord;
use crate::types::{Ino, NodeId, Seq, SessionId};

/// A broken invariant: this replica's state is not what the commands made it, or `apply` is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the message of each says what it and its fields are")]
pub enum Problem {
    #[error("{0}")]
    Corrupt(CorruptRecord),
    #[error("there is no root directory")]
    NoRoot,
    #[error("inode {ino} has no kind")]
    UnknownKind { ino: Ino },
    #[error("inode {ino} has {recorded} links, but {counted} were found")]
    LinkCount { ino: Ino, recorded: u32, counted: u32 },
    #[error("inode {ino} cannot have size {size}")]
    Size { ino: Ino, size: u64 },
    #[error("inode {ino} has a field of another kind")]
    ForeignField { ino: Ino },
    #[error(
        "the bytes of inode {ino} changed at {data_version}, after its last change {mod_index}"
    )]
    VersionOrder { ino: Ino, data_version: u64, mod_index: u64 },
    #[error("inode {ino} exists, but numbers from {next} on were never granted")]
    NotAllocated { ino: Ino, next: Ino },
    #[error("directory {parent} has the impossible name {}", .name.escape_ascii())]
    BadName { parent: Ino, name: Vec<u8> },
    #[error("name {} of directory {parent} has another's place", .name.escape_ascii())]
    MisplacedName { parent: Ino, name: Vec<u8> },
    #[error("name {} of directory {parent} means inode {ino}, which is missing", .name.escape_ascii())]
    NameWithoutInode { parent: Ino, name: Vec<u8>, ino: Ino },
    #[error("name {} is in {parent}, which is no directory", .name.escape_ascii())]
    NameWithoutDirectory { parent: Ino, name: Vec<u8> },
    #[error("name {} is in directory {parent}, which was removed", .name.escape_ascii())]
    NameInRemovedDirectory { parent: Ino, name: Vec<u8> },
    #[error("name {} of directory {parent} gives inode {ino} another kind", .name.escape_ascii())]
    KindOfName { parent: Ino, name: Vec<u8>, ino: Ino },
    #[error("directory {ino} records parent {recorded}, but its name is in {found}")]
    Parent { ino: Ino, recorded: Ino, found: Ino },
    #[error("directory {ino} has {names} names")]
    DirectoryNames { ino: Ino, names: u32 },
    #[error("directory {ino} cannot be reached from the root")]
    Unreachable { ino: Ino },
    #[error("inode {ino} has no links, but is not among the orphans")]
    NotOrphaned { ino: Ino },
    #[error("orphan {ino} is missing")]
    OrphanWithoutInode { ino: Ino },
    #[error("orphan {ino} has {nlink} links")]
    OrphanWithLinks { ino: Ino, nlink: u32 },
    #[error("orphan {ino} is held by nobody")]
    OrphanNotHeld { ino: Ino },
    #[error("the holders of orphan {ino} are not in order")]
    HoldersOutOfOrder { ino: Ino },
    #[error("orphan {ino} is held by session {session}, which is not live")]
    HolderNotLive { ino: Ino, session: SessionId },
    #[error("attribute {} belongs to inode {ino}, which is missing", .name.escape_ascii())]
    XattrWithoutInode { ino: Ino, name: Vec<u8> },
    #[error("attribute {} of inode {ino} is larger than allowed", .name.escape_ascii())]
    XattrTooLarge { ino: Ino, name: Vec<u8> },
    #[error("inode {ino} has locks, but is missing")]
    LocksWithoutInode { ino: Ino },
    #[error("the locks of inode {ino} overlap or are not in order")]
    LocksOverlap { ino: Ino },
    #[error("inode {ino} has a record of locks without any")]
    NoLocks { ino: Ino },
    #[error("the locks of inode {ino} are delegated and held, or waited for and not recalled")]
    Delegated { ino: Ino },
    #[error("a lock of inode {ino} that nobody has is waited for")]
    NeedNotWait { ino: Ino },
    #[error("who waits for locks of inode {ino} differs from its index")]
    LockWaits { ino: Ino },
    #[error("session {session}, which is not live, has a lock of inode {ino}")]
    LockOfEnded { ino: Ino, session: SessionId },
    #[error("inode {ino} has mode {mode:o}, which its access ACL does not give")]
    ModeOfAcl { ino: Ino, mode: u32 },
    #[error("inode {ino} cannot have the ACL that it has")]
    ForeignAcl { ino: Ino },
    #[error("sessions {session} and {other} were granted the same inode numbers")]
    RangesOverlap { session: SessionId, other: SessionId },
    #[error("session {session} was granted numbers up to {end}, but {next} is the next one")]
    RangeNotAllocated { session: SessionId, end: Ino, next: Ino },
    #[error("session {session} is both live and ended")]
    LiveAndEnded { session: SessionId },
    #[error("session {session} has ended, but still has inode numbers")]
    GrantsOfEnded { session: SessionId },
    #[error("node {node} has several live sessions")]
    SeveralSessions { node: NodeId },
    #[error("there is an outcome {seq} of session {session}, which is unknown")]
    OutcomeWithoutSession { session: SessionId, seq: Seq },
    #[error("outcome {seq} of session {session} is outside of its window")]
    OutcomeOutsideWindow { session: SessionId, seq: Seq },
    #[error("member {recorded} is recorded under id {key}")]
    MemberKey { key: NodeId, recorded: NodeId },
    #[error("member {node} exists, but ids from {next} on were never given")]
    MemberNotAllocated { node: NodeId, next: NodeId },
    #[error("several members have nonce {nonce:#x}")]
    SeveralMembers { nonce: u64 },
}
