//! Every record once, in the order of keys.

use prost::Message;

use super::Problem;
use super::locks::Locks;
use super::sessions::Sessions;
use super::tree::Tree;
use crate::fs::acl::{ACCESS_ACL, Acl, DEFAULT_ACL};
use crate::fs::keys::{self, Counter, Parsed};
use crate::fs::pages::Pages;
use crate::fs::proto;
use crate::fs::record::{self, Records};
use crate::types::{Ino, NodeId};

const PAGE: usize = 64;

/// Everything that is wrong with the state; empty where nothing is. Records that cannot be decoded
/// are problems too, not errors.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn check<V: Records>(view: &V) -> Result<Vec<Problem>, V::Error> {
    let mut check = Check::default();
    let mut pages = Pages::new(keys::everything(), PAGE);
    while let Some(page) = pages.next(view)? {
        for (key, value) in page {
            check.see(&key, &value);
        }
    }
    Ok(check.finish())
}

/// What was seen so far.
#[derive(Default)]
struct Check {
    tree: Tree,
    sessions: Sessions,
    locks: Locks,
    next_ino: u64,
    next_node: u64,
    problems: Vec<Problem>,
}

impl Check {
    fn see(&mut self, key: &[u8], value: &[u8]) {
        let Some(parsed) = keys::parse(key) else {
            self.problems.push(Problem::Corrupt(record::bad_key(key)));
            return;
        };
        match parsed {
            Parsed::Inode { ino } => {
                if let Some(inode) = self.decode(key, value) {
                    self.tree.see_inode(ino, &inode);
                }
            }
            Parsed::Dentry { parent, cookie, name } => {
                if let Some(dentry) = self.decode(key, value) {
                    if keys::dentry_cookie(name) != cookie {
                        let name = name.to_vec();
                        self.problems.push(Problem::MisplacedName { parent, name });
                    }
                    self.tree.see_dentry(parent, name, dentry);
                }
            }
            Parsed::Xattr { ino, name } => self.see_xattr(ino, name, key, value),
            Parsed::Orphan { ino } => {
                if let Some(orphan) = self.decode(key, value) {
                    self.tree.see_orphan(ino);
                    self.sessions.see_orphan(ino, &orphan);
                }
            }
            Parsed::Session { session } => {
                if let Some(record) = self.decode(key, value) {
                    self.sessions.see_live(session, &record);
                }
            }
            Parsed::Tombstone { session, .. } => {
                if let Some(record) = self.decode(key, value) {
                    self.sessions.see_ended(session, &record);
                }
            }
            Parsed::Outcome { session, seq } => {
                self.decode::<proto::Outcome>(key, value);
                self.sessions.see_outcome(session, seq);
            }
            Parsed::Member { node } => self.see_member(node, key, value),
            Parsed::Locks { ino } => {
                if let Some(locks) = self.decode(key, value) {
                    self.locks.see_locks(ino, &locks);
                }
            }
            Parsed::LockWait { .. } => {
                if let Some(wait) = self.decode(key, value) {
                    self.locks.see_wait(key, wait);
                }
            }
            Parsed::Counter => self.see_counter(key, value),
            Parsed::Meta => {}
        }
    }

    fn see_xattr(&mut self, ino: Ino, name: &[u8], key: &[u8], value: &[u8]) {
        self.tree.see_xattr(ino, name, value.len());
        if name != ACCESS_ACL && name != DEFAULT_ACL {
            return;
        }
        match Acl::decode(value) {
            Ok(acl) => self.tree.see_acl(ino, name == ACCESS_ACL, &acl),
            Err(_) => self.problems.push(Problem::Corrupt(record::not_an_acl(key.to_vec()))),
        }
    }

    fn see_member(&mut self, node: NodeId, key: &[u8], value: &[u8]) {
        if let Some(member) = self.decode::<proto::Member>(key, value) {
            self.sessions.see_member(node, &member);
        }
    }

    fn see_counter(&mut self, key: &[u8], value: &[u8]) {
        let Some(number) = self.decode(key, value) else { return };
        if key == keys::counter(Counter::NextIno) {
            self.next_ino = number;
        } else {
            self.next_node = number;
        }
    }

    fn finish(mut self) -> Vec<Problem> {
        let next_ino = Ino(self.next_ino);
        let locks = std::mem::take(&mut self.locks);
        let of_locks =
            locks.finish(|ino| self.tree.exists(ino), |session| self.sessions.is_live(session));
        self.problems.extend(of_locks);
        self.problems.extend(self.tree.finish(next_ino));
        self.problems.extend(self.sessions.finish(next_ino, NodeId(self.next_node)));
        self.problems
    }

    fn decode<M: Message + Default>(&mut self, key: &[u8], value: &[u8]) -> Option<M> {
        match record::decode(key, value) {
            Ok(record) => Some(record),
            Err(corrupt) => {
                self.problems.push(Problem::Corrupt(corrupt));
                None
            }
        }
    }
}
