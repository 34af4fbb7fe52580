//! How far the files are, and how they follow a peer's snapshot: what `store::Files::adopt` does.

use std::collections::BTreeSet;

use quorumfs::fs::{proto, query};
use quorumfs::store::Away;
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

    /// The files under a state that came with a peer's snapshot.
    pub fn adopt(&mut self, state: &State) {
        let (applied, before) = (state.applied.index, self.done);
        let inodes = query::inodes(&state.view, Ino(0), usize::MAX).expect("nothing rots here");
        let mut named = BTreeSet::new();
        for (ino, inode) in inodes {
            let key = (ino, Generation(inode.generation));
            named.insert(key);
            if inode.kind() == proto::Kind::Regular && inode.data_version > before.0 {
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
