//! How far the files are, and how they follow a peer's snapshot: what `store::Files::adopt` does.

use std::collections::BTreeSet;

use quorumfs::fs::{proto, query};
use quorumfs::store::{Away, Belief, Known, belief};
use quorumfs::types::{ByteRange, Generation, Ino, LogIndex};

use super::Files;
use crate::drive::{Key, Name};
use crate::state::State;

impl Files {
    /// What the entries up to `index` did to files is carried out.
    pub fn pass(&mut self, index: LogIndex) {
        self.done = self.done.max(index);
    }

    /// Whether a state at `applied` says more than was carried out here.
    pub fn are_behind(&self, applied: LogIndex) -> bool {
        self.done < applied
    }

    /// Up to where that is so.
    pub fn carried_out(&self) -> LogIndex {
        self.done
    }

    /// The last entry whose effects an earlier life may have begun.
    pub fn begun(&self) -> LogIndex {
        self.begun.max(self.image.synced)
    }

    /// The files under a state that takes the place of another one, as far as they are to be believed.
    pub fn adopt(&mut self, state: &State, until: LogIndex, under: Option<&State>) {
        let applied = state.applied.index;
        let inodes = query::inodes(&state.view, Ino(0), usize::MAX).expect("nothing rots here");
        let mut named = BTreeSet::new();
        for (ino, inode) in inodes {
            let key = (ino, Generation(inode.generation));
            named.insert(key);
            let record = under.and_then(|under| query::inode(&under.view, ino).expect("readable"));
            let known = under.map_or(Known::Nothing, |_| Known::Says(record.as_ref()));
            let is_alone = state.membership.get_voters().len() == 1;
            let is_doubted = belief(&inode, known, until, is_alone) == Belief::Doubted;
            if inode.kind() == proto::Kind::Regular && is_doubted {
                self.clear(key, ByteRange::from(0));
                let version = LogIndex(inode.data_version);
                self.set(key, ByteRange { start: 0, end: inode.size }, Away::Missing { version });
                if self.drive.has(Name::Backing(key)) {
                    self.drive.resize(Name::Backing(key), 0);
                }
            }
        }
        let backing = self.drive.names().filter_map(|name| match name {
            Name::Backing(key) => Some(key),
            Name::Fresh(_) | Name::Written(_) => None,
        });
        let known: BTreeSet<Key> = backing.chain(self.layouts.keys().copied()).collect();
        for key in known.difference(&named).filter(|(_, life)| life.0 <= applied.0) {
            self.forget(*key);
            self.drive.remove(Name::Backing(*key));
        }
        (self.begun, self.ended) = (applied, applied);
        self.newest = self.newest.max(applied);
        self.pass(applied);
        let sync = self.begin_sync();
        self.end_sync(sync, true);
    }

    /// All bytes up to here are on the disk.
    pub fn held(&self) -> LogIndex {
        let missing = self.image.layouts.values().flat_map(|l| l.missing(ByteRange::from(0)));
        let before = missing.map(|(_, version)| LogIndex(version.0 - 1));
        before.fold(self.image.synced, LogIndex::min)
    }
}
