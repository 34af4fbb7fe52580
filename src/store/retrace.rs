//! The state that a replica should have, built a second time from its own snapshot file and log: for one that is known, or
//! suspected, to be wrong. What is wrong with it is its state; snapshots count only once they are attested, and the log is
//! never cut behind another one, so the two hold everything. The verdicts in the log judge the new state on the way.
//!
//! Files are left alone: what has happened to them is up to whoever puts the new state in the place of the old one.

use std::path::{Path, PathBuf};

use raft::eraftpb::{ConfState, Entry, EntryType};

use super::datadir::DataDir;
use super::divergence::put_ledger;
use super::log::RaftLog;
use super::point::AppliedPoint;
use super::recover::build_from;
use super::replay::command;
use super::snapshot::latest_snapshot;
use super::state::State;
use crate::fs::{self, Batch, Digest, Finding, Ledger, Overlay, Position, Verdict};
use crate::store::StoreError;
use crate::store::error::REJOIN;
use crate::types::{LogIndex, Term};

/// At most this many entries, and bytes, are read at once.
const ROUND: u64 = 512;
const ROUND_BYTES: u64 = 16 << 20;

/// The membership behind an entry, with that before it; nothing where the entry does not change it.
pub type Following<'a> = &'a dyn Fn(&ConfState, &Entry) -> Result<Option<ConfState>, String>;

/// See the module's documentation. Nothing of it counts yet.
#[derive(Debug)]
pub struct Retraced {
    pub(super) state: State,
    pub(super) state_dir: PathBuf,
    /// The snapshot file's index.
    from: LogIndex,
    ledger: Ledger,
    conf_state: ConfState,
    differs: Option<LogIndex>,
    parted: Option<LogIndex>,
}

impl Retraced {
    /// Builds the state of `last`, an entry of the log that is committed, or of the snapshot where that is newer.
    ///
    /// # Errors
    /// When snapshot file or log are damaged, or the disk refuses.
    pub fn build(
        dir: &DataDir,
        log: &RaftLog,
        last: LogIndex,
        following: Following<'_>,
    ) -> Result<Self, StoreError> {
        let state_dir = dir.new_state_dir()?;
        let state = match latest_snapshot(&dir.snapshots_dir())? {
            Some(file) => build_from(&file, &state_dir)?,
            None => State::open(&state_dir)?,
        };
        let conf_state = state.conf_state();
        let (from, ledger) = (state.applied(), Ledger::default());
        let mut retraced =
            Self { state, state_dir, from, ledger, conf_state, differs: None, parted: None };
        while retraced.state.applied() < last {
            let first = retraced.state.applied().next();
            let end = LogIndex(last.0.min(first.0 + ROUND - 1)).next();
            let entries = log.entries(first, end, Some(ROUND_BYTES))?;
            if entries.is_empty() {
                return Err(damaged(log.dir(), format!("entry {first} is not there")));
            }
            let mut rest = &entries[..];
            while !rest.is_empty() {
                rest = retraced.apply(log, rest, following)?;
            }
        }
        retraced.state.flush()?;
        Ok(retraced)
    }

    /// Applies entries up to one that judges; answers what is left of them.
    fn apply<'a>(
        &mut self,
        log: &RaftLog,
        entries: &'a [Entry],
        following: Following<'_>,
    ) -> Result<&'a [Entry], StoreError> {
        let mut overlay = Overlay::new(&self.state);
        let (mut verdict, mut changed, mut count) = (None, None, 0);
        for entry in entries {
            count += 1;
            if entry.get_entry_type() != EntryType::EntryNormal {
                let before = changed.as_ref().unwrap_or(&self.conf_state);
                let after = following(before, entry).map_err(|what| damaged(log.dir(), what))?;
                changed = after.or(changed);
            }
            let Some(command) = command(log, entry)? else { continue };
            let at = Position { index: LogIndex(entry.index), term: Term(entry.term) };
            fs::apply(&mut overlay, at, &command)?;
            verdict = Verdict::of(&command);
            if verdict.is_some() {
                break;
            }
        }
        let (entries, rest) = entries.split_at(count);
        let Some(last) = entries.last() else { return Ok(rest) };
        let mut batch = overlay.finish()?;
        let at = LogIndex(last.index);
        if let Some(conf_state) = &changed {
            self.conf_state.clone_from(conf_state);
        }
        if let Some(verdict) = verdict {
            self.judge(verdict, at, &mut batch);
        }
        let conf_state = changed.as_ref();
        self.state.commit(batch, AppliedPoint { index: at, term: Term(last.term), conf_state })?;
        Ok(rest)
    }

    fn judge(&mut self, verdict: Verdict, at: LogIndex, batch: &mut Batch) {
        let mut digest = self.state.digest();
        digest.merge(batch.digest);
        // What a lone voter says is what the state said that is in doubt.
        let is_of_one =
            self.conf_state.voters.len() == 1 && self.conf_state.voters_outgoing.is_empty();
        match self.ledger.judge(verdict) {
            Finding::Differs { index, .. } if is_of_one => {
                let _ = self.parted.get_or_insert(self.ledger.equal().min(index));
            }
            Finding::Differs { index, .. } => {
                let _ = self.differs.get_or_insert(index);
            }
            Finding::Equal | Finding::Doubt | Finding::Nothing => {}
        }
        self.ledger.sample(at, digest);
        put_ledger(batch, &self.ledger);
    }

    /// Where most replicas have another state than this one: so what was wrong comes again.
    #[must_use]
    pub fn differs(&self) -> Option<LogIndex> {
        self.differs
    }

    /// Whether nothing but this replica's own word speaks for it: it is built on a snapshot that counts although nobody has
    /// compared it, no later state was found equal, and there are others who could say.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn is_unproven(&self, dir: &DataDir) -> Result<bool, StoreError> {
        let is_compared = self.ledger.equal() > LogIndex(0) || self.conf_state.voters.len() == 1;
        Ok(!is_compared && dir.unattested()? == Some(self.from))
    }

    /// What its digest was at one of the last entries that asked for it.
    #[must_use]
    pub fn sample_at(&self, index: LogIndex) -> Option<Digest> {
        self.ledger.sample_at(index)
    }

    /// Up to where the state was right that is in doubt, where it only ever agreed with itself.
    #[must_use]
    pub fn parted(&self) -> Option<LogIndex> {
        self.parted
    }
}

fn damaged(log: &Path, what: String) -> StoreError {
    StoreError::Corrupt { path: log.to_owned(), offset: None, what, advice: REJOIN }
}

#[cfg(test)]
#[path = "retrace_tests.rs"]
mod tests;
