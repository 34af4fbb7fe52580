//! Keys of the state: a one-byte table tag, then big-endian integers and bytes, so that the order of
//! keys is the order of scans.

use crate::types::{Ino, NodeId, Seq, SessionId};

const INODE: u8 = b'i';
const DENTRY: u8 = b'd';
const XATTR: u8 = b'x';
const SESSION: u8 = b's';
const OUTCOME: u8 = b'r';
const ORPHAN: u8 = b'o';
const MEMBER: u8 = b'n';
const TOMBSTONE: u8 = b't';
const LOCKS: u8 = b'l';
const LOCK_WAIT: u8 = b'w';
const COUNTER: u8 = b'c';
const META: u8 = b'm';

/// Keys `[from, to)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key.
    pub from: Vec<u8>,
    /// What comes after the last one.
    pub to: Vec<u8>,
}

/// A counter that is replicated, unlike what is in `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// The lowest inode number that nobody was granted yet.
    NextIno,
    /// The lowest id that no member ever had.
    NextNode,
}

/// A key taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the functions of the same names")]
pub enum Parsed<'a> {
    Inode { ino: Ino },
    Dentry { parent: Ino, cookie: u64, name: &'a [u8] },
    Xattr { ino: Ino, name: &'a [u8] },
    Session { session: SessionId },
    Outcome { session: SessionId, seq: Seq },
    Orphan { ino: Ino },
    Member { node: NodeId },
    Tombstone { node: NodeId, session: SessionId },
    Locks { ino: Ino },
    LockWait { session: SessionId, owner: u64, seq: Seq },
    Counter,
    Meta,
}

/// Whether a key belongs to the tables that every replica holds alike; `meta` is each one's own.
#[must_use]
pub fn is_replicated(key: &[u8]) -> bool {
    key.first() != Some(&META)
}

/// inode: ino.
#[must_use]
pub fn inode(ino: Ino) -> Vec<u8> {
    number(INODE, ino.0)
}

/// session: id.
#[must_use]
pub fn session(session: SessionId) -> Vec<u8> {
    number(SESSION, session.0)
}

/// outcome: session, seq.
#[must_use]
pub fn outcome(session: SessionId, seq: Seq) -> Vec<u8> {
    let mut key = number(OUTCOME, session.0);
    key.extend_from_slice(&seq.0.to_be_bytes());
    key
}

/// orphan: ino.
#[must_use]
pub fn orphan(ino: Ino) -> Vec<u8> {
    number(ORPHAN, ino.0)
}

/// member: node.
#[must_use]
pub fn member(node: NodeId) -> Vec<u8> {
    number(MEMBER, node.0)
}

/// meta: name.
#[must_use]
pub fn meta(name: &str) -> Vec<u8> {
    let mut key = vec![META];
    key.extend_from_slice(name.as_bytes());
    key
}

/// xattr: ino, name.
#[must_use]
pub fn xattr(ino: Ino, name: &[u8]) -> Vec<u8> {
    let mut key = number(XATTR, ino.0);
    key.extend_from_slice(name);
    key
}

/// dentry: parent, then the name's place in the directory's order, then the name.
#[must_use]
pub fn dentry(parent: Ino, name: &[u8]) -> Vec<u8> {
    let mut key = number(DENTRY, parent.0);
    key.extend_from_slice(&dentry_cookie(name).to_be_bytes());
    key.extend_from_slice(name);
    key
}

/// Where a name stands in the order of its directory: a hash, so that a directory stream can go on
/// after any name, at any later time, whatever was created and removed meanwhile. From 3 (1 and 2
/// stand for `.` and `..`) to `i64::MAX`, which is what `telldir(3)` can hold.
#[must_use]
pub fn dentry_cookie(name: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(name).as_bytes()[..8]);
    (u64::from_be_bytes(first) >> 1).max(3)
}

/// tombstone: node, ended session.
#[must_use]
pub fn tombstone(node: NodeId, session: SessionId) -> Vec<u8> {
    let mut key = number(TOMBSTONE, node.0);
    key.extend_from_slice(&session.0.to_be_bytes());
    key
}

/// The locks of an inode.
#[must_use]
pub fn locks(ino: Ino) -> Vec<u8> {
    number(LOCKS, ino.0)
}

/// That an owner waits for a lock: session, owner, seq of the command that asked.
#[must_use]
pub fn lock_wait(session: SessionId, owner: u64, seq: Seq) -> Vec<u8> {
    let mut key = number(LOCK_WAIT, session.0);
    key.extend_from_slice(&owner.to_be_bytes());
    key.extend_from_slice(&seq.0.to_be_bytes());
    key
}

/// counter: name.
#[must_use]
pub fn counter(counter: Counter) -> Vec<u8> {
    let name: &[u8] = match counter {
        Counter::NextIno => b"next_ino",
        Counter::NextNode => b"next_node",
    };
    [&[COUNTER], name].concat()
}

/// The names of a directory whose cookies are above `after`, in the order of their cookies.
#[must_use]
pub fn dentries(parent: Ino, after: u64) -> KeyRange {
    let to = end_of(number(DENTRY, parent.0));
    let mut from = number(DENTRY, parent.0);
    match after.checked_add(1) {
        Some(first) => from.extend_from_slice(&first.to_be_bytes()),
        None => from.clone_from(&to),
    }
    KeyRange { from, to }
}

/// The attributes of an inode, in the order of their names.
#[must_use]
pub fn xattrs(ino: Ino) -> KeyRange {
    starting_with(number(XATTR, ino.0))
}

/// The outcomes of a session, in the order of their seqs.
#[must_use]
pub fn outcomes(session: SessionId) -> KeyRange {
    starting_with(number(OUTCOME, session.0))
}

/// The ended sessions of a node, oldest first.
#[must_use]
pub fn tombstones(node: NodeId) -> KeyRange {
    starting_with(number(TOMBSTONE, node.0))
}

/// The locks of all inodes.
#[must_use]
pub fn all_locks() -> KeyRange {
    starting_with(vec![LOCKS])
}

/// What an owner waits for.
#[must_use]
pub fn lock_waits(session: SessionId, owner: u64) -> KeyRange {
    let mut prefix = number(LOCK_WAIT, session.0);
    prefix.extend_from_slice(&owner.to_be_bytes());
    starting_with(prefix)
}

/// All live sessions, oldest first.
#[must_use]
pub fn sessions() -> KeyRange {
    starting_with(vec![SESSION])
}

/// Orphans with numbers above `after`, ascending.
#[must_use]
pub fn orphans(after: Ino) -> KeyRange {
    KeyRange { from: end_of(number(ORPHAN, after.0)), to: vec![ORPHAN + 1] }
}

/// Inodes with numbers above `after`.
#[must_use]
pub fn inodes(after: Ino) -> KeyRange {
    KeyRange { from: end_of(number(INODE, after.0)), to: vec![INODE + 1] }
}

/// All members, by id.
#[must_use]
pub fn members() -> KeyRange {
    starting_with(vec![MEMBER])
}

/// All keys of all tables, `meta` too.
#[must_use]
pub fn everything() -> KeyRange {
    KeyRange { from: Vec::new(), to: vec![u8::MAX] }
}

/// Takes a key apart; `None` for one that none of the functions here makes.
#[must_use]
pub fn parse(key: &[u8]) -> Option<Parsed<'_>> {
    let (&table, rest) = key.split_first()?;
    if table == META {
        return Some(Parsed::Meta);
    }
    if table == COUNTER {
        let known = [Counter::NextIno, Counter::NextNode];
        return known.iter().any(|&one| counter(one) == key).then_some(Parsed::Counter);
    }
    let (first, rest) = take_u64(rest)?;
    if let Some(parsed) = parse_named(table, first, rest) {
        return Some(parsed);
    }
    match (table, rest.len()) {
        (INODE, 0) => Some(Parsed::Inode { ino: Ino(first) }),
        (SESSION, 0) => Some(Parsed::Session { session: SessionId(first) }),
        (ORPHAN, 0) => Some(Parsed::Orphan { ino: Ino(first) }),
        (MEMBER, 0) => Some(Parsed::Member { node: NodeId(first) }),
        (LOCKS, 0) => Some(Parsed::Locks { ino: Ino(first) }),
        (LOCK_WAIT, 16) => {
            let (owner, rest) = take_u64(rest)?;
            let seq = Seq(take_u64(rest)?.0);
            Some(Parsed::LockWait { session: SessionId(first), owner, seq })
        }
        (OUTCOME, 8) => {
            let seq = Seq(take_u64(rest)?.0);
            Some(Parsed::Outcome { session: SessionId(first), seq })
        }
        (TOMBSTONE, 8) => {
            let session = SessionId(take_u64(rest)?.0);
            Some(Parsed::Tombstone { node: NodeId(first), session })
        }
        _ => None,
    }
}

fn parse_named(table: u8, first: u64, rest: &[u8]) -> Option<Parsed<'_>> {
    match table {
        DENTRY => {
            let (cookie, name) = take_u64(rest)?;
            Some(Parsed::Dentry { parent: Ino(first), cookie, name })
        }
        XATTR => Some(Parsed::Xattr { ino: Ino(first), name: rest }),
        _ => None,
    }
}

fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*number), rest))
}

fn starting_with(prefix: Vec<u8>) -> KeyRange {
    KeyRange { to: end_of(prefix.clone()), from: prefix }
}

/// The first key after all those that start with `prefix`, whose first byte is a table's tag.
fn end_of(mut prefix: Vec<u8>) -> Vec<u8> {
    while let Some(last) = prefix.pop() {
        if last < u8::MAX {
            prefix.push(last + 1);
            break;
        }
    }
    prefix
}

fn number(table: u8, number: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(32);
    key.push(table);
    key.extend_from_slice(&number.to_be_bytes());
    key
}
