//! What the operations share: the command that is being applied, and how records are read and changed.

use prost::Message;

use crate::fs::Position;
use crate::fs::applied::{Applied, Change, FileEffect};
use crate::fs::errno::Errno;
use crate::fs::keys;
use crate::fs::limits::NAME_MAX;
use crate::fs::pages::Pages;
use crate::fs::proto::{self, Kind};
use crate::fs::query;
use crate::fs::record::{self, CorruptRecord, Records};
use crate::fs::view::{View, ViewMut};
use crate::types::{Ino, NodeId, Seq, SessionId};

/// Pairs that a deletion of many looks at together: attributes may have 64 KiB each.
const PAGE: usize = 64;

/// Why an operation ends early.
pub(super) enum Stop<E> {
    /// With an outcome that every replica comes to.
    Refused(Errno),
    /// With this replica's own trouble.
    View(E),
}

impl<E> From<Errno> for Stop<E> {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

/// What a part of an operation comes to.
pub(super) type Step<T, V> = Result<T, Stop<<V as View>::Error>>;

/// One command on its way through `apply`.
pub(super) struct Context<'a, V> {
    pub(super) view: &'a mut V,
    pub(super) at: Position,
    /// The session that proposed it, with its record; 0 is the cluster.
    pub(super) session: SessionId,
    pub(super) session_record: proto::Session,
    pub(super) seq: Seq,
    /// The proposer's clocks and node.
    pub(super) time: proto::Time,
    clock: u64,
    node: NodeId,
    changes: Vec<Change>,
    effects: Vec<FileEffect>,
}

/// An inode's record with its number.
pub(super) struct Inode {
    pub(super) ino: Ino,
    pub(super) record: proto::Inode,
}

/// A name in a directory, and what it means.
pub(super) struct Slot {
    pub(super) parent: Ino,
    pub(super) name: Vec<u8>,
    pub(super) dentry: Option<proto::Dentry>,
    key: Vec<u8>,
}

impl Inode {
    pub(super) fn is_directory(&self) -> bool {
        self.record.kind() == Kind::Directory
    }

    pub(super) fn is_regular(&self) -> bool {
        self.record.kind() == Kind::Regular
    }

    /// What a name in a directory says of it.
    pub(super) fn dentry(&self) -> proto::Dentry {
        proto::Dentry { ino: self.ino.0, kind: self.record.kind }
    }
}

impl<'a, V: ViewMut + Records> Context<'a, V> {
    pub(super) fn new(
        view: &'a mut V,
        at: Position,
        command: &proto::Command,
        session_record: proto::Session,
    ) -> Self {
        Self {
            view,
            at,
            session: SessionId(command.session),
            session_record,
            seq: Seq(command.seq),
            time: command.time.unwrap_or_default(),
            clock: command.clock,
            node: NodeId(command.node),
            changes: Vec::new(),
            effects: Vec::new(),
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.session == SessionId::CLUSTER
    }

    pub(super) fn is_unchanged(&self) -> bool {
        self.changes.is_empty() && self.effects.is_empty()
    }

    pub(super) fn into_applied(self, outcome: proto::Outcome) -> Applied {
        Applied { outcome, changes: self.changes, effects: self.effects }
    }

    pub(super) fn note(&mut self, change: Change) {
        self.changes.push(change);
    }

    pub(super) fn order(&mut self, effect: FileEffect) {
        self.effects.push(effect);
    }

    /// An inode, orphan or not.
    pub(super) fn inode(&self, ino: Ino) -> Step<Inode, V> {
        let record = query::inode(self.view, ino).map_err(Stop::View)?.ok_or(Errno::ENOENT)?;
        Ok(Inode { ino, record })
    }

    /// An inode that another record points to.
    pub(super) fn referenced_inode(&self, ino: Ino) -> Step<Inode, V> {
        let record = query::inode(self.view, ino).map_err(Stop::View)?;
        let record = record.ok_or_else(|| corrupt::<V>(record::missing(keys::inode(ino))))?;
        Ok(Inode { ino, record })
    }

    /// A directory that can hold names.
    pub(super) fn directory(&self, ino: Ino) -> Step<Inode, V> {
        let directory = self.inode(ino)?;
        if !directory.is_directory() {
            return Err(Errno::ENOTDIR.into());
        }
        if directory.record.nlink == 0 {
            return Err(Errno::ENOENT.into());
        }
        Ok(directory)
    }

    /// What a valid name means in a directory.
    pub(super) fn slot(&self, parent: &Inode, name: &[u8]) -> Step<Slot, V> {
        let key = keys::dentry(parent.ino, name);
        let dentry = self.view.record(&key).map_err(Stop::View)?;
        Ok(Slot { parent: parent.ino, name: name.to_vec(), dentry, key })
    }

    /// Gives a name to an inode, or takes it away.
    pub(super) fn set_slot(&mut self, slot: Slot, dentry: Option<proto::Dentry>) {
        match dentry {
            Some(dentry) => self.view.put(slot.key, dentry.encode_to_vec()),
            None => self.view.delete(slot.key),
        }
        let existed = slot.dentry.is_some();
        self.note(Change::Name { parent: slot.parent, name: slot.name, existed });
    }

    /// Marks an inode as changed by this command.
    pub(super) fn stamp(&self, inode: &mut Inode) {
        let record = &mut inode.record;
        record.version += 1;
        record.mod_index = self.at.index.0;
        record.clock = self.clock;
        record.writer = self.node.0;
        record.ctime = Some(self.time);
    }

    /// Marks a directory as changed by this command because its names are.
    pub(super) fn stamp_names(&self, directory: &mut Inode) {
        self.stamp(directory);
        directory.record.mtime = Some(self.time);
    }

    /// Writes an inode's record.
    pub(super) fn save(&mut self, inode: &Inode) {
        self.view.put(keys::inode(inode.ino), inode.record.encode_to_vec());
        self.note(Change::Attributes { ino: inode.ino });
    }

    pub(super) fn counter(&self, counter: keys::Counter, first: u64) -> Step<u64, V> {
        let value = self.view.record(&keys::counter(counter)).map_err(Stop::View)?;
        Ok(value.unwrap_or(first))
    }

    pub(super) fn set_counter(&mut self, counter: keys::Counter, value: u64) {
        self.view.put(keys::counter(counter), value.encode_to_vec());
    }

    /// Deletes all keys of a range.
    pub(super) fn delete_range(&mut self, range: keys::KeyRange) -> Step<(), V> {
        let mut pages = Pages::new(range, PAGE);
        while let Some(page) = pages.next(self.view).map_err(Stop::View)? {
            for (key, _) in page {
                self.view.delete(key);
            }
        }
        Ok(())
    }
}

/// What a corrupt record makes of an operation.
pub(super) fn corrupt<V: Records>(record: CorruptRecord) -> Stop<V::Error> {
    Stop::View(record.into())
}

/// Refuses what cannot be a name in a directory.
pub(super) fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let reserved = name.is_empty() || name == b"." || name == b"..";
    if reserved || name.iter().any(|&byte| byte == b'/' || byte == 0) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// Refuses a time that no `struct timespec` holds.
pub(super) fn check_time(time: Option<proto::Time>) -> Result<(), Errno> {
    match time {
        Some(time) if time.nanos >= 1_000_000_000 => Err(Errno::EINVAL),
        Some(_) | None => Ok(()),
    }
}

/// The later of two times.
pub(super) fn later(one: Option<proto::Time>, other: proto::Time) -> proto::Time {
    match one {
        Some(one) if (one.seconds, one.nanos) > (other.seconds, other.nanos) => one,
        Some(_) | None => other,
    }
}

/// The mode without suid, and without sgid where the group may execute (without that bit, sgid means
/// mandatory locking); only regular files lose them.
pub(super) fn without_suid_sgid(inode: &Inode) -> u32 {
    const S_ISUID: u32 = 0o4000;
    const S_ISGID: u32 = 0o2000;
    const S_IXGRP: u32 = 0o0010;
    let mode = inode.record.mode;
    if !inode.is_regular() {
        return mode;
    }
    if mode & S_IXGRP == 0 { mode & !S_ISUID } else { mode & !(S_ISUID | S_ISGID) }
}

/// A successful outcome that tells what an inode is now.
pub(super) fn left_behind(inode: Inode) -> proto::Outcome {
    proto::Outcome { id: inode.ino.0, inode: Some(inode.record), ..proto::Outcome::default() }
}
