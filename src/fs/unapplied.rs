//! What commands that were received may change once they are applied. A mount that has been told to
//! serve nothing older than an entry has its kernel forget these, and has reads of them wait.

use std::collections::{BTreeMap, BTreeSet};

use super::applied::Change;
use super::proto::{self, command::Op};
use super::query;
use super::record::Records;
use crate::mutants::{self, Mutant};
use crate::types::{Ino, LogIndex, MountId};

/// A name that may come to mean more inodes than these may mean any: one that many entries which are not applied yet
/// rename others to, each of which may change the inodes of all before it.
const MEANINGS: usize = 16;

/// Inodes and names that entries which are not applied yet may change, each with the indexes of those
/// entries.
#[derive(Clone, Debug, Default)]
pub struct Unapplied {
    inodes: BTreeMap<Ino, Vec<Mark>>,
    /// Entries that may change any inode.
    any: Vec<LogIndex>,
    names: BTreeMap<Ino, BTreeMap<Vec<u8>, UnappliedName>>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    index: LogIndex,
    /// It only writes bytes, which this mount of ours shows already.
    writer: Option<MountId>,
}

#[derive(Clone, Debug, Default)]
struct UnappliedName {
    indexes: Vec<LogIndex>,
    means: Meanings,
}

/// What a name may come to mean.
#[derive(Clone, Debug)]
enum Meanings {
    These(BTreeSet<Ino>),
    Any,
}

impl Default for Meanings {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl Meanings {
    fn add(&mut self, others: &Self) {
        match (&mut *self, others) {
            (Self::These(inos), Self::These(more)) => {
                inos.extend(more);
                if inos.len() > MEANINGS {
                    *self = Self::Any;
                }
            }
            _ => *self = Self::Any,
        }
    }
}

impl From<Ino> for Meanings {
    fn from(ino: Ino) -> Self {
        Self::These([ino].into())
    }
}

impl Unapplied {
    /// Takes in a command that was received at `index`, over the state as far as it is applied. Answers
    /// what a cache may hold of what it may change: more rather than less. `proposer` is the mount of this
    /// node that proposed it, where one still waits for it.
    ///
    /// # Errors
    /// When this replica cannot read its own state.
    pub fn receive<V: Records>(
        &mut self,
        view: &V,
        index: LogIndex,
        command: &proto::Command,
        proposer: Option<MountId>,
    ) -> Result<Vec<Change>, V::Error> {
        let mut marks = Marks { unapplied: self, index, writer: None, changes: Vec::new() };
        match command.op.as_ref() {
            Some(Op::Make(op)) => {
                marks.name(op.parent, &op.name, false);
                marks.means(op.parent, &op.name, &Ino(op.ino).into());
                marks.inode(op.ino);
            }
            Some(Op::Link(op)) => {
                marks.name(op.parent, &op.name, false);
                marks.means(op.parent, &op.name, &Ino(op.ino).into());
                marks.inode(op.ino);
            }
            Some(Op::Unlink(op)) => marks.unlink(view, op.parent, &op.name)?,
            Some(Op::Rmdir(op)) => marks.unlink(view, op.parent, &op.name)?,
            Some(Op::Rename(op)) => marks.rename(view, op)?,
            Some(Op::SetAttr(op)) => marks.inode(op.ino),
            Some(Op::SetXattr(op)) => marks.inode(op.ino),
            Some(Op::RemoveXattr(op)) => marks.inode(op.ino),
            Some(Op::Write(op)) => {
                marks.writer = proposer;
                marks.inode(op.ino);
            }
            Some(Op::Allocate(op)) => marks.inode(op.ino),
            Some(Op::CopyRange(op)) => marks.inode(op.ino),
            Some(Op::AcceptLost(op)) => marks.inode(op.ino),
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
                | Op::AddMember(_)
                | Op::RemoveMember(_)
                | Op::PromoteMember(_)
                | Op::Attest(_),
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

    /// The last entry up to `since` that may change what `reader` shows of an inode; 0 where there is
    /// none. Bytes that a mount is writing it shows already.
    #[must_use]
    pub fn of_inode(&self, ino: Ino, since: LogIndex, reader: Option<MountId>) -> LogIndex {
        let marks = self.inodes.get(&ino).into_iter().flatten();
        let shown = |mark: &Mark| mark.writer.is_some() && mark.writer == reader;
        let marks = marks.filter(|mark| !shown(mark)).map(|mark| mark.index);
        last(marks.chain(self.any.iter().copied()), since)
    }

    /// The last entry up to `since` that may change what a name means; 0 where there is none.
    #[must_use]
    pub fn of_name(&self, parent: Ino, name: &[u8], since: LogIndex) -> LogIndex {
        if mutants::is(Mutant::ServeReceivedNames) {
            return LogIndex(0);
        }
        let name = self.names.get(&parent).and_then(|names| names.get(name));
        last(name.into_iter().flat_map(|name| &name.indexes).copied(), since)
    }

    /// Whether what the entry at `index` did was marked: an invariant.
    #[must_use]
    pub fn covers(&self, index: LogIndex, change: &Change) -> bool {
        match change {
            Change::Attributes { ino } | Change::Bytes { ino, .. } | Change::Orphaned { ino } => {
                self.of_inode(*ino, index, None) == index
            }
            Change::Name { parent, name, .. } => {
                self.of_name(*parent, name, index) == index
                    && self.of_inode(*parent, index, None) == index
            }
            Change::SomeAttributes => self.any.contains(&index),
            // Nobody sees an inode without a name that nobody holds.
            Change::Removed { .. }
            | Change::LocksDelegated { .. }
            | Change::LocksRecalled { .. }
            | Change::LocksReturned { .. }
            | Change::LockAnswered { .. }
            | Change::SessionOpened { .. }
            | Change::SessionEnded { .. }
            | Change::MemberChanged { .. }
            | Change::MemberRemoved { .. } => true,
        }
    }

    fn retain(&mut self, keep: impl Fn(LogIndex) -> bool) {
        let keep_some = |indexes: &mut Vec<LogIndex>| {
            indexes.retain(|index| keep(*index));
            !indexes.is_empty()
        };
        self.any.retain(|index| keep(*index));
        self.inodes.retain(|_, marks| {
            marks.retain(|mark| keep(mark.index));
            !marks.is_empty()
        });
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
    ) -> Result<Meanings, V::Error> {
        let pending = self.names.get(&Ino(parent)).and_then(|names| names.get(name));
        let mut means = pending.map(|name| name.means.clone()).unwrap_or_default();
        if let Some(dentry) = query::lookup(view, Ino(parent), name)? {
            means.add(&Ino(dentry.ino).into());
        }
        Ok(means)
    }
}

fn last(indexes: impl Iterator<Item = LogIndex>, since: LogIndex) -> LogIndex {
    indexes.filter(|index| *index <= since).max().unwrap_or_default()
}

/// What one command marks.
struct Marks<'a> {
    unapplied: &'a mut Unapplied,
    index: LogIndex,
    writer: Option<MountId>,
    changes: Vec<Change>,
}

impl Marks<'_> {
    fn inode(&mut self, ino: u64) {
        let mark = Mark { index: self.index, writer: self.writer };
        let marks = self.unapplied.inodes.entry(Ino(ino)).or_default();
        if marks.last().is_none_or(|last| last.index != self.index) {
            marks.push(mark);
        }
        self.change(Change::Attributes { ino: Ino(ino) });
    }

    fn change(&mut self, change: Change) {
        if !self.changes.contains(&change) {
            self.changes.push(change);
        }
    }

    /// Whatever a name may mean.
    fn inodes(&mut self, means: &Meanings) {
        match means {
            Meanings::These(inos) => inos.iter().for_each(|ino| self.inode(ino.0)),
            Meanings::Any => {
                if self.unapplied.any.last() != Some(&self.index) {
                    self.unapplied.any.push(self.index);
                }
                self.change(Change::SomeAttributes);
            }
        }
    }

    /// A name may change, and with it its directory.
    fn name(&mut self, parent: u64, name: &[u8], existed: bool) {
        let names = self.unapplied.names.entry(Ino(parent)).or_default();
        names.entry(name.to_vec()).or_default().indexes.push(self.index);
        self.changes.push(Change::Name { parent: Ino(parent), name: name.to_vec(), existed });
        self.inode(parent);
    }

    fn means(&mut self, parent: u64, name: &[u8], means: &Meanings) {
        let names = self.unapplied.names.entry(Ino(parent)).or_default();
        names.entry(name.to_vec()).or_default().means.add(means);
    }

    fn unlink<V: Records>(&mut self, view: &V, parent: u64, name: &[u8]) -> Result<(), V::Error> {
        let means = self.unapplied.meanings(view, parent, name)?;
        self.inodes(&means);
        self.name(parent, name, true);
        Ok(())
    }

    /// Each name may come to mean what the other means.
    fn rename<V: Records>(&mut self, view: &V, op: &proto::Rename) -> Result<(), V::Error> {
        let moved = self.unapplied.meanings(view, op.parent, &op.name)?;
        let replaced = self.unapplied.meanings(view, op.new_parent, &op.new_name)?;
        self.inodes(&moved);
        self.inodes(&replaced);
        self.name(op.parent, &op.name, true);
        self.name(op.new_parent, &op.new_name, true);
        self.means(op.new_parent, &op.new_name, &moved);
        self.means(op.parent, &op.name, &replaced);
        Ok(())
    }
}
