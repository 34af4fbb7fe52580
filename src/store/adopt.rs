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
    /// What the files were changed under, all of it; nothing where that is not known.
    pub(super) under: Option<&'a State>,
    /// Nobody else has them.
    pub(super) is_alone: bool,
}

impl Trust<'_> {
    fn belief(self, ino: Ino, inode: &proto::Inode) -> Belief {
        // What time says need not be looked up.
        if self.under.is_none() || (inode.data_version > self.until.0 && !self.is_alone) {
            return belief(inode, Known::Nothing, self.until, self.is_alone);
        }
        let known = self.under.map(|state| state.read().record::<proto::Inode>(&keys::inode(ino)));
        // A record that cannot be read says nothing good.
        let known = known.and_then(Result::ok).flatten();
        belief(inode, Known::Says(known.as_ref()), self.until, self.is_alone)
    }
}

/// What is known of the state that a replica's files were changed under.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    /// It is gone.
    Nothing,
    /// What it says of a file.
    Says(Option<&'a proto::Inode>),
}

/// Whether a replica has the bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belief {
    /// It has.
    Here,
    /// Perhaps: a peer is asked for them.
    Doubted,
}

/// Whether a replica has the bytes that a file had when it was changed last, where its own state was that of the others
/// up to an entry. What changed later is not believed, unless nobody else has it; nor is a file of which its own state says
/// something else, or nothing: there something was done that should not have been.
#[must_use]
pub fn belief(inode: &proto::Inode, known: Known<'_>, until: LogIndex, is_alone: bool) -> Belief {
    let bytes = |inode: &proto::Inode| (inode.generation, inode.data_version, inode.size);
    let is_older = inode.data_version <= until.0;
    let is_believed = match known {
        Known::Nothing => is_older,
        Known::Says(known) => {
            let is_same = known.is_some_and(|known| bytes(known) == bytes(inode));
            is_same && (is_older || is_alone)
        }
    };
    if is_believed || mutants::is(Mutant::BelieveAllFiles) { Belief::Here } else { Belief::Doubted }
}

/// The first state under which all of a replica's files can be, where its own is at `applied`, effects are carried out up to
/// `carried_out`, and those of earlier processes up to `reached` at most. Under an older one a replay would take what is there
/// for what it has done itself.
#[must_use]
pub fn first_state_of_files(
    applied: LogIndex,
    carried_out: LogIndex,
    reached: LogIndex,
    last_index: LogIndex,
) -> LogIndex {
    if mutants::is(Mutant::HealFromAny) {
        return applied;
    }
    // What is not in the log any more was never committed.
    applied.max(carried_out).max(reached.min(last_index))
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
        // What an older state does not believe comes again with the log only where it was not carried out.
        assert!(
            trust.until >= self.carried_out() || index >= self.carried_out().max(self.begun()),
            "files of {} cannot follow a state of {index}",
            self.carried_out()
        );
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
                let is_file = inode.kind() == proto::Kind::Regular;
                if is_file && trust.belief(ino, &inode) == Belief::Doubted {
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
