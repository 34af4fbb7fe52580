//! Backing files under a state that is ahead of them: one that was built from a peer's snapshot.
//!
//! No effects say what the entries did that were not applied here, and none is needed: a file's `data_version` says
//! when its bytes changed last, so what was changed since is missing, and fetched as anything that is missing. Nothing
//! says how far this has come: until all of it is done, the files are behind the state, and whoever finds them so
//! begins again.
//!
//! Where nothing is known of the files, because their image is damaged, all of their bytes are missing. But they stay where
//! they are: what nobody else has, and checksums prove, is found in them again ([`Files::find_here`]).

use prost::Message;

use super::files::{Files, Key};
use super::layout::Away;
use super::lent::was_lent;
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
        let Some(state) = self.under else {
            return belief(inode, Known::Nothing, self.until, self.is_alone);
        };
        // A record that cannot be read says nothing good, and is no reason to stop: this state is about to go.
        let known = state.read().get_quietly(&keys::inode(ino));
        let known = known.and_then(|record| proto::Inode::decode(&record[..]).ok());
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
    /// Perhaps: its own state said the same of the file, but it may have been wrong already. Peers are asked first.
    Agreed,
    /// Nobody can say: peers are asked.
    Doubted,
}

/// Whether a replica has the bytes that a file had when it was changed last, where its own state was that of the others
/// up to an entry. What changed later is not believed, unless nobody else has it; nor is a file of which its own state says
/// something else, or nothing: there something was done that should not have been.
#[must_use]
pub fn belief(inode: &proto::Inode, known: Known<'_>, until: LogIndex, is_alone: bool) -> Belief {
    let bytes = |inode: &proto::Inode| (inode.generation, inode.data_version, inode.size);
    let is_older = inode.data_version <= until.0;
    let is_same = match known {
        Known::Nothing => None,
        Known::Says(known) => Some(known.is_some_and(|known| bytes(known) == bytes(inode))),
    };
    match is_same {
        _ if mutants::is(Mutant::BelieveAllFiles) => Belief::Here,
        None if is_older => Belief::Here,
        Some(true) if is_older || is_alone => Belief::Here,
        Some(true) => Belief::Agreed,
        Some(false) | None => Belief::Doubted,
    }
}

/// Whether a replica that does not find bytes of a version says that it lacks them: whoever believes that gives up what
/// others have told it, and may take a copy in doubt for the only one. It does not while its state may be wrong or is not
/// that of its files yet (`is_ready`), nor before it has applied that version.
#[must_use]
pub fn says_it_lacks(is_ready: bool, applied: LogIndex, version: LogIndex) -> bool {
    mutants::is(Mutant::TakeNotNowForLacking) || (is_ready && applied >= version)
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
    /// Whether `state` says more than was carried out here: `adopt` it before anything else.
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
                let belief = if is_file { trust.belief(ino, &inode) } else { Belief::Here };
                if belief != Belief::Here {
                    self.doubt_bytes(index, ino, &inode, belief)?;
                    adopted.missing += u64::from(inode.size > 0);
                }
            }
        }
        // What they still bring is not all that is missing now: whoever lacks it asks for it.
        self.stages().finish_written();
        self.layouts().skip_to(index)?;
        self.sync()?;
        // Until the image says so, a power loss has older entries carried out again, which need what is forgotten here.
        self.forget(index)?;
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

    /// Bytes of a file may be other ones than it has here. They stay until others come in their place. Whoever reads the file
    /// by itself finds nothing meanwhile, rather than a mixture.
    fn doubt_bytes(
        &self,
        at: LogIndex,
        ino: Ino,
        inode: &proto::Inode,
        belief: Belief,
    ) -> Result<(), StoreError> {
        let key = (ino, Generation(inode.generation));
        let version = LogIndex(inode.data_version);
        self.checksums().changing(ino, at);
        if belief == Belief::Agreed {
            // What is staged may be the only copy as well as what is in place: it goes there first.
            self.place_durably(key)?;
            self.merge(key, ByteRange::from(0))?;
        }
        let mut layouts = self.layouts().lock(ino);
        self.bring_up_file(key)?;
        let file = self.file(key.0, key.1)?;
        let failed = |action| move |source| self.failed(action, key.0, key.1, source);
        let found = match &file {
            Some(file) => file.metadata().map_err(failed("stat"))?.len(),
            None => 0,
        };
        let is_seen = self.lent().has(ino) || file.as_deref().is_some_and(was_lent);
        // Where it is only not known which bytes it has, checksums may prove some.
        let is_lost = self.layouts().is_lost();
        let kept = if is_seen && !is_lost { 0 } else { found.min(inode.size) };
        let before: Vec<_> =
            layouts.get(key).map_or_else(Vec::new, |layout| layout.away().collect());
        // At no moment is any of it in place.
        let all = ByteRange { start: 0, end: inode.size };
        layouts.set(key, all, Away::Missing { version })?;
        layouts.clear(key, ByteRange::from(inode.size))?;
        let is_agreed = belief == Belief::Agreed;
        layouts.set(key, ByteRange::at(0, kept), Away::Doubted { version, is_agreed })?;
        for (part, away) in before {
            let part = ByteRange { end: part.end.min(kept).max(part.start), ..part };
            // Beneath what is staged still there are older bytes.
            layouts.set(key, part, still_doubted(away, version, is_agreed))?;
        }
        if !is_lost {
            self.checksums().forget(key)?;
        }
        match file {
            Some(file) if kept < found => file.set_len(kept).map_err(failed("truncate")),
            Some(_) | None => Ok(()),
        }
    }

    /// Nobody else has these bytes of a file: those that a wrong state and the right one agree about count. Whether there
    /// are some.
    ///
    /// # Errors
    /// When the local file system refuses.
    pub fn believe_at_last(&self, key: Key, range: ByteRange) -> Result<bool, StoreError> {
        let mut layouts = self.layouts().lock(key.0);
        let parts = layouts.get(key).map(|layout| layout.believed_at_last(range));
        for part in parts.iter().flatten() {
            tracing::warn!(
                ino = key.0.0,
                start = part.start,
                end = part.end,
                "these bytes came while this replica's state was wrong, and nobody else has them: they count"
            );
            layouts.clear(key, *part)?;
        }
        drop(layouts);
        self.tell_changed();
        Ok(parts.is_some_and(|parts| !parts.is_empty()))
    }
}

/// What was in doubt before, or missing, is not less so.
#[must_use]
pub fn still_doubted(before: Away, version: LogIndex, is_agreed: bool) -> Away {
    match before {
        Away::Doubted { is_agreed: was_agreed, .. } => {
            Away::Doubted { version, is_agreed: is_agreed && was_agreed }
        }
        Away::Missing { .. } | Away::Staged { .. } => Away::Missing { version },
    }
}

#[cfg(test)]
#[path = "adopt_tests.rs"]
mod tests;
