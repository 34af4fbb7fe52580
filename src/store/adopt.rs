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

/// What is to be believed of the files that are here.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trust<'a> {
    /// Whatever was carried out.
    CarriedOut,
    /// This replica was found to differ from the others, and what it carried out may be wrong: only what was not changed
    /// after `until`, and of which the state that it was done under says the same. What was done to another file than
    /// it should have been, that state says, too.
    Until { until: LogIndex, under: Option<&'a State> },
}

impl Trust<'_> {
    /// Whether a file may have other bytes here than it says.
    fn doubts(self, carried_out: LogIndex, ino: Ino, inode: &proto::Inode) -> bool {
        match self {
            Self::Until { .. } if mutants::is(Mutant::BelieveAllFiles) => {
                inode.data_version > carried_out.0
            }
            Self::CarriedOut => inode.data_version > carried_out.0,
            Self::Until { until, under } => {
                inode.data_version > until.0
                    || under.is_some_and(|state| differs(state, ino, inode))
            }
        }
    }
}

/// Whether a state says something else of a file's bytes, or nothing that can be read.
fn differs(state: &State, ino: Ino, inode: &proto::Inode) -> bool {
    let bytes = |inode: &proto::Inode| (inode.generation, inode.data_version, inode.size);
    let known = state.read().record::<proto::Inode>(&keys::inode(ino));
    !known.is_ok_and(|known| known.as_ref().map(bytes) == Some(bytes(inode)))
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
        let (index, before) = (state.applied(), self.carried_out());
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
                if inode.kind() == proto::Kind::Regular && trust.doubts(before, ino, &inode) {
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
