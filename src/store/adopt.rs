//! Backing files under a state that is ahead of them: one that was built from a peer's snapshot.
//!
//! No effects say what the entries did that were not applied here, and none is needed: a file's `data_version` says
//! when its bytes changed last, so what was changed since is missing, and fetched as anything that is missing. Nothing
//! says how far this has come: until all of it is done, the files are behind the state, and whoever finds them so
//! begins again.

use super::files::{Files, Key};
use super::layout::Away;
use super::state::State;
use crate::fs::{Records, keys, proto, query};
use crate::mutants::{self, Mutant};
use crate::store::StoreError;
use crate::types::{ByteRange, Generation, Ino, LogIndex};

/// What of the files that are here may be wrong, although it was carried out: this replica's state may have differed from
/// the others' for a while.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trust<'a> {
    /// Since then.
    pub(super) until: LogIndex,
    /// What the files were changed under; nothing where that is not to be asked.
    pub(super) under: Option<&'a State>,
}

impl Trust<'_> {
    fn believes(self, ino: Ino, inode: &proto::Inode) -> bool {
        let Some(state) = self.under else { return inode.data_version <= self.until.0 };
        // A record that cannot be read says nothing good.
        let known = state.read().record::<proto::Inode>(&keys::inode(ino));
        is_believed(inode, known.ok().flatten().as_ref(), self.until)
    }
}

/// Whether a replica has the bytes that a file had when it was changed last, given what its own state said of the file
/// before, and that this was that of the others up to an entry. What changed later is not believed; nor is a file of which
/// its own state says something else, or nothing: there something was done that should not have been.
#[must_use]
pub fn is_believed(inode: &proto::Inode, known: Option<&proto::Inode>, until: LogIndex) -> bool {
    let bytes = |inode: &proto::Inode| (inode.generation, inode.data_version, inode.size);
    let is_same = known.is_some_and(|known| bytes(known) == bytes(inode));
    (inode.data_version <= until.0 && is_same) || mutants::is(Mutant::BelieveAllFiles)
}

/// Inodes that are read under one hold of the state's lock.
const CHUNK: usize = 1000;

/// What became of the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Files whose bytes are missing now: all of them, or what is not older than the snapshot.
    pub missing: u64,
    /// Files that are gone.
    pub removed: u64,
}

impl Files {
    /// Whether `state` says more than was carried out here: [`Self::adopt`] it before anything else.
    #[must_use]
    pub fn are_behind(&self, state: &State) -> bool {
        self.carried_out() < state.applied()
    }

    /// Makes the files agree with `state`, which came from a snapshot. Nobody carries anything out meanwhile. Durable
    /// on return.
    ///
    /// # Errors
    /// When the local file system refuses, or the state cannot be read.
    pub(super) fn adopt(&self, state: &State, trust: Trust<'_>) -> Result<Adopted, StoreError> {
        let index = state.applied();
        let mut adopted = Adopted::default();
        let mut known = self.all_files()?;
        known.extend(self.layouts().keys());
        for key in known {
            // What began later comes again with the log.
            if key.1.0 <= index.0 && self.follow_life(state, index, key)? {
                adopted.removed += 1;
            }
        }
        let mut after = Ino(0);
        loop {
            let inodes = query::inodes(&state.read(), after, CHUNK)?;
            let Some((last, _)) = inodes.last() else { break };
            after = *last;
            for (ino, inode) in inodes {
                if inode.kind() == proto::Kind::Regular && !trust.believes(ino, &inode) {
                    self.renew_bytes(index, ino, &inode)?;
                    adopted.missing += u64::from(inode.size > 0);
                }
            }
        }
        self.forget(index)?;
        self.layouts().skip_to(index)?;
        self.sync()?;
        Ok(adopted)
    }

    /// Ends a life of a file's bytes that the state does not know any more. Whoever reads the file by itself goes on
    /// with the life that it has now.
    fn follow_life(&self, state: &State, at: LogIndex, key: Key) -> Result<bool, StoreError> {
        let inode = state.read().record::<proto::Inode>(&keys::inode(key.0))?;
        let life = inode.map(|inode| Generation(inode.generation));
        if life == Some(key.1) {
            return Ok(false);
        }
        self.checksums().changing(key.0, at);
        match life {
            Some(next) if !self.path_of(key.0, next).exists() => self.renew(key, next)?,
            _ => self.discard(key)?,
        }
        Ok(true)
    }

    /// All bytes of a file are other ones than it has here. Whoever reads it by itself finds nothing, until they come,
    /// rather than a mixture.
    fn renew_bytes(&self, at: LogIndex, ino: Ino, inode: &proto::Inode) -> Result<(), StoreError> {
        let key = (ino, Generation(inode.generation));
        self.checksums().changing(ino, at);
        let mut layouts = self.layouts().lock(ino);
        layouts.clear(key, ByteRange::from(0))?;
        let all = ByteRange { start: 0, end: inode.size };
        layouts.set(key, all, Away::Missing { version: LogIndex(inode.data_version) })?;
        self.checksums().forget(key)?;
        self.bring_up_file(key)?;
        match self.file(key.0, key.1)? {
            None => Ok(()),
            Some(file) => {
                let cut = file.set_len(0);
                cut.map_err(|source| self.failed("truncate", key.0, key.1, source))
            }
        }
    }
}

#[cfg(test)]
#[path = "adopt_tests.rs"]
mod tests;
