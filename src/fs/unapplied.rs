//! What commands that were received may change once they are applied. A mount that has been told to
//! serve nothing older than an entry has its kernel forget these, and has reads of them wait.

use std::collections::BTreeMap;

use super::applied::Change;
use super::proto::{self, command::Op};
use super::query;
use super::record::Records;
use crate::types::{Ino, LogIndex, NodeId};

/// Inodes and names that entries which are not applied yet may change, each with the indexes of those
/// entries.
#[derive(Clone, Debug, Default)]
pub struct Unapplied {
    inodes: BTreeMap<Ino, Vec<LogIndex>>,
    /// Of these, the mount of this node has the bytes anyway, unless it gave them up.
    own_writes: BTreeMap<Ino, Vec<LogIndex>>,
    names: BTreeMap<Ino, BTreeMap<Vec<u8>, UnappliedName>>,
}

#[derive(Clone, Debug, Default)]
struct UnappliedName {
    indexes: Vec<LogIndex>,
    /// What the name may come to mean.
    inos: Vec<Ino>,
}

impl Unapplied {
    /// Takes in a command that was received at `index`, over the state as far as it is applied. Answers
    /// what a cache may hold of what it may change: more rather than less. Bytes that `own` writes are
    /// left out, and kept apart: its mount shows them already, or its session is another now and begins
    /// after them, or it does not know that they are still coming.
    ///
    /// # Errors
    /// When this replica cannot read its own state.
    pub fn receive<V: Records>(
        &mut self,
        view: &V,
        index: LogIndex,
        command: &proto::Command,
        own: NodeId,
    ) -> Result<Vec<Change>, V::Error> {
        let mut marks = Marks { unapplied: self, index, changes: Vec::new() };
        let is_own = command.node == own.0;
        match command.op.as_ref() {
            Some(Op::Make(op)) => {
                marks.name(op.parent, &op.name, false);
                marks.means(op.parent, &op.name, [Ino(op.ino)]);
                marks.inode(op.ino);
            }
            Some(Op::Link(op)) => {
                marks.name(op.parent, &op.name, false);
                marks.means(op.parent, &op.name, [Ino(op.ino)]);
                marks.inode(op.ino);
            }
            Some(Op::Unlink(op)) => marks.unlink(view, op.parent, &op.name)?,
            Some(Op::Rmdir(op)) => marks.unlink(view, op.parent, &op.name)?,
            Some(Op::Rename(op)) => marks.rename(view, op)?,
            Some(Op::SetAttr(op)) => marks.inode(op.ino),
            Some(Op::SetXattr(op)) => marks.inode(op.ino),
            Some(Op::RemoveXattr(op)) => marks.inode(op.ino),
            Some(Op::Write(op)) if is_own => marks.own_write(op.ino),
            Some(Op::Write(op)) => marks.inode(op.ino),
            Some(Op::Allocate(op)) => marks.inode(op.ino),
            Some(Op::CopyRange(op)) => marks.inode(op.ino),
            Some(Op::Touch(op)) => op.inodes.iter().for_each(|touched| marks.inode(touched.ino)),
            // What a mount shows does not depend on these.
            Some(
                Op::ReleaseOrphans(_)
                | Op::GrantInodes(_)
                | Op::RequestLock(_)
                | Op::Unlock(_)
                | Op::CancelLock(_)
                | Op::ReturnLocks(_)
                | Op::SessionOpen(_)
                | Op::SessionEnd(_)
                | Op::AddMember(_),
            )
            | None => {}
        }
        Ok(marks.changes)
    }

    /// Entries from `first` on are replaced: what they would have changed is as it was.
    pub fn replace(&mut self, first: LogIndex) {
        self.retain(|index| index < first);
    }

    /// Everything up to `index` is applied.
    pub fn applied(&mut self, index: LogIndex) {
        self.retain(|unapplied| unapplied > index);
    }

    /// The last entry up to `since` that may change an inode; 0 where there is none.
    #[must_use]
    pub fn of_inode(&self, ino: Ino, since: LogIndex) -> LogIndex {
        last(self.inodes.get(&ino), since)
    }

    /// The last entry up to `since` that brings bytes of the own mount to an inode; 0 where there is none.
    #[must_use]
    pub fn of_own_writes(&self, ino: Ino, since: LogIndex) -> LogIndex {
        last(self.own_writes.get(&ino), since)
    }

    /// The last entry up to `since` that may change what a name means; 0 where there is none.
    #[must_use]
    pub fn of_name(&self, parent: Ino, name: &[u8], since: LogIndex) -> LogIndex {
        let name = self.names.get(&parent).and_then(|names| names.get(name));
        last(name.map(|name| &name.indexes), since)
    }

    /// Whether what the entry at `index` did was marked: an invariant.
    #[must_use]
    pub fn covers(&self, index: LogIndex, change: &Change) -> bool {
        match change {
            Change::Attributes { ino } | Change::Bytes { ino, .. } | Change::Orphaned { ino } => {
                self.of_inode(*ino, index).max(self.of_own_writes(*ino, index)) == index
            }
            Change::Name { parent, name, .. } => {
                self.of_name(*parent, name, index) == index
                    && self.of_inode(*parent, index) == index
            }
            // Nobody sees an inode without a name that nobody holds.
            Change::Removed { .. }
            | Change::LocksDelegated { .. }
            | Change::LocksRecalled { .. }
            | Change::LocksReturned { .. }
            | Change::LockAnswered { .. }
            | Change::SessionOpened { .. }
            | Change::SessionEnded { .. }
            | Change::MemberAdded { .. } => true,
        }
    }

    fn retain(&mut self, keep: impl Fn(LogIndex) -> bool) {
        let keep_some = |indexes: &mut Vec<LogIndex>| {
            indexes.retain(|index| keep(*index));
            !indexes.is_empty()
        };
        self.inodes.retain(|_, indexes| keep_some(indexes));
        self.own_writes.retain(|_, indexes| keep_some(indexes));
        self.names.retain(|_, names| {
            names.retain(|_, name| keep_some(&mut name.indexes));
            !names.is_empty()
        });
    }

    /// What a name means now or may come to mean.
    fn meanings<V: Records>(
        &self,
        view: &V,
        parent: u64,
        name: &[u8],
    ) -> Result<Vec<Ino>, V::Error> {
        let pending = self.names.get(&Ino(parent)).and_then(|names| names.get(name));
        let mut inos = pending.map(|name| name.inos.clone()).unwrap_or_default();
        inos.extend(query::lookup(view, Ino(parent), name)?.map(|dentry| Ino(dentry.ino)));
        Ok(inos)
    }
}

fn last(indexes: Option<&Vec<LogIndex>>, since: LogIndex) -> LogIndex {
    let indexes = indexes.into_iter().flatten().copied();
    indexes.filter(|index| *index <= since).max().unwrap_or_default()
}

/// What one command marks.
struct Marks<'a> {
    unapplied: &'a mut Unapplied,
    index: LogIndex,
    changes: Vec<Change>,
}

impl Marks<'_> {
    fn inode(&mut self, ino: u64) {
        self.unapplied.inodes.entry(Ino(ino)).or_default().push(self.index);
        self.changes.push(Change::Attributes { ino: Ino(ino) });
    }

    fn own_write(&mut self, ino: u64) {
        self.unapplied.own_writes.entry(Ino(ino)).or_default().push(self.index);
    }

    /// A name may change, and with it its directory.
    fn name(&mut self, parent: u64, name: &[u8], existed: bool) {
        let names = self.unapplied.names.entry(Ino(parent)).or_default();
        names.entry(name.to_vec()).or_default().indexes.push(self.index);
        self.changes.push(Change::Name { parent: Ino(parent), name: name.to_vec(), existed });
        self.inode(parent);
    }

    fn means(&mut self, parent: u64, name: &[u8], inos: impl IntoIterator<Item = Ino>) {
        let names = self.unapplied.names.entry(Ino(parent)).or_default();
        names.entry(name.to_vec()).or_default().inos.extend(inos);
    }

    fn unlink<V: Records>(&mut self, view: &V, parent: u64, name: &[u8]) -> Result<(), V::Error> {
        for ino in self.unapplied.meanings(view, parent, name)? {
            self.inode(ino.0);
        }
        self.name(parent, name, true);
        Ok(())
    }

    /// Each name may come to mean what the other means.
    fn rename<V: Records>(&mut self, view: &V, op: &proto::Rename) -> Result<(), V::Error> {
        let moved = self.unapplied.meanings(view, op.parent, &op.name)?;
        let replaced = self.unapplied.meanings(view, op.new_parent, &op.new_name)?;
        for ino in moved.iter().chain(&replaced) {
            self.inode(ino.0);
        }
        self.name(op.parent, &op.name, true);
        self.name(op.new_parent, &op.new_name, true);
        self.means(op.new_parent, &op.new_name, moved);
        self.means(op.parent, &op.name, replaced);
        Ok(())
    }
}
