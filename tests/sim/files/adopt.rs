//! How far the files are, and how they follow a peer's snapshot: what `store::Files::adopt` does.

use std::collections::BTreeSet;

use quorumfs::fs::{proto, query};
use quorumfs::store::{Away, Belief, Known, Layout, belief, still_doubted};
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
            // Of a replica that is alone no state becomes wrong here.
            let belief = belief(&inode, known, until, false);
            if inode.kind() == proto::Kind::Regular && belief != Belief::Here {
                let version = LogIndex(inode.data_version);
                self.doubt(key, inode.size, version, belief == Belief::Agreed);
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
        // What they still bring is not all that is missing now.
        self.arriving.retain(|_, arrived| arrived.target.is_none());
        (self.begun, self.ended) = (applied, applied);
        self.newest = self.newest.max(applied);
        self.pass(applied);
        let sync = self.begin_sync();
        self.end_sync(sync, true);
    }

    /// Bytes of a file may be other ones than it has here: they stay until others come in their place.
    fn doubt(&mut self, key: Key, size: u64, version: LogIndex, is_agreed: bool) {
        let name = Name::Backing(key);
        // What is staged may be the only copy as well as what is in place.
        let goes_on = |files: &mut Self| {
            is_agreed
                && files.layouts.contains_key(&key)
                && (files.place_durably(key) || files.merge_chunk(key))
        };
        while goes_on(self) {}
        let before: Vec<_> = self.layouts.get(&key).into_iter().flat_map(Layout::away).collect();
        let kept = self.drive.len(name).min(size);
        self.clear(key, ByteRange::from(0));
        self.set(key, ByteRange { start: 0, end: size }, Away::Missing { version });
        self.set(key, ByteRange::at(0, kept), Away::Doubted { version, is_agreed });
        for (part, away) in before {
            let part = ByteRange { end: part.end.min(kept).max(part.start), ..part };
            self.set(key, part, still_doubted(away, version, is_agreed));
        }
        if self.drive.has(name) {
            self.drive.resize(name, kept);
        }
    }

    /// Nobody else has them.
    pub fn believe_at_last(&mut self, key: Key, range: ByteRange) -> bool {
        let layout = self.layouts.get(&key);
        let parts = layout.map(|layout| layout.believed_at_last(range)).unwrap_or_default();
        for part in &parts {
            self.clear(key, *part);
        }
        !parts.is_empty()
    }

    /// All bytes up to here are on the disk.
    pub fn held(&self) -> LogIndex {
        let missing = self.image.layouts.values().flat_map(|l| l.missing(ByteRange::from(0)));
        let before = missing.map(|(_, version)| LogIndex(version.0 - 1));
        before.fold(self.image.synced, LogIndex::min)
    }
}
