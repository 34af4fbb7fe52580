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
const META: u8 = b'm';

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

fn number(table: u8, number: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(32);
    key.push(table);
    key.extend_from_slice(&number.to_be_bytes());
    key
}
