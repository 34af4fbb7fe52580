//! Backing files under a state that is ahead of them: one that was built from a peer's snapshot.
//!
//! No effects say what the entries did that were not applied here, and none is needed: a file's `data_version` says
//! when its bytes changed last, so what was changed since is missing, and fetched as anything that is missing. Nothing
//! says how far this has come: until all of it is done, the files are behind the state, and whoever finds them so
//! begins again.
//!
//! Where nothing is known of the files, because their image is damaged, all of their bytes are missing. But they stay where
//! they are: what nobody else has, and checksums prove, is found in them again ([`Files::find_here`]).

use super::files::{Files, Key};
use super::layout::Away;
use super::state::State;
use crate::fs::{Records, keys, proto, query};
use crate::store::StoreError;
use crate::types::{ByteRange, Generation, Ino, LogIndex};

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
    pub fn adopt(&self, state: &State) -> Result<Adopted, StoreError> {
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
                if inode.kind() == proto::Kind::Regular && inode.data_version > before.0 {
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
    /// rather than a mixture. Where it is only not known which bytes it has, it keeps them.
    fn renew_bytes(&self, at: LogIndex, ino: Ino, inode: &proto::Inode) -> Result<(), StoreError> {
        let key = (ino, Generation(inode.generation));
        self.checksums().changing(ino, at);
        let mut layouts = self.layouts().lock(ino);
        layouts.clear(key, ByteRange::from(0))?;
        let all = ByteRange { start: 0, end: inode.size };
        layouts.set(key, all, Away::Missing { version: LogIndex(inode.data_version) })?;
        self.bring_up_file(key)?;
        let kept = if self.layouts().is_lost() { inode.size } else { 0 };
        if kept == 0 {
            self.checksums().forget(key)?;
        }
        let Some(file) = self.file(key.0, key.1)? else { return Ok(()) };
        let cut = || {
            let len = file.metadata()?.len();
            if len > kept { file.set_len(kept) } else { Ok(()) }
        };
        cut().map_err(|source| self.failed("truncate", key.0, key.1, source))
    }
}

#[cfg(test)]
#[path = "adopt_tests.rs"]
mod tests;
