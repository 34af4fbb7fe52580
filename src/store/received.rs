//! Another state takes the place of this replica's while it runs. What a crash cuts short, a start finishes
//! (`recover.rs`).

use std::path::{Path, PathBuf};

use super::adopt::{Adopted, Trust};
use super::datadir::DataDir;
use super::divergence::put_ledger;
use super::files::Files;
use super::log::RaftLog;
use super::point::AppliedPoint;
use super::recover::{
    build_from, fit_log_to_snapshot, forget_stages, is_alone, raise_commit, verify,
};
use super::retrace::Retraced;
use super::snapshot::{SnapshotHeader, put_snapshot};
use super::state::State;
use crate::fs::{Batch, Ledger};
use crate::store::StoreError;
use crate::types::LogIndex;

/// A state that is to take the place of this replica's: of a peer's snapshot, or what its own snapshot and log make of it.
#[derive(Debug)]
pub struct Received {
    /// Where it came with one.
    snapshot: Option<(PathBuf, SnapshotHeader)>,
    state: State,
    state_dir: PathBuf,
    /// Up to where the old state was right, where more is known of that than was.
    parted: Option<LogIndex>,
}

impl From<Retraced> for Received {
    fn from(own: Retraced) -> Self {
        let parted = own.parted();
        Self { snapshot: None, state: own.state, state_dir: own.state_dir, parted }
    }
}

impl Received {
    /// Verifies the snapshot in `file` (in the directory of snapshots), which came from a peer, and builds a state from
    /// it. Nothing of it counts yet.
    ///
    /// # Errors
    /// When it is damaged, of another cluster, or the disk refuses.
    pub fn prepare(dir: &DataDir, file: &Path) -> Result<Self, StoreError> {
        let header = verify(dir, file)?;
        let state_dir = dir.new_state_dir()?;
        let state = build_from(file, &state_dir)?;
        state.flush()?;
        Ok(Self { snapshot: Some((file.to_owned(), header)), state, state_dir, parted: None })
    }

    /// The last entry that is in it.
    #[must_use]
    pub fn index(&self) -> LogIndex {
        self.state.applied()
    }

    /// Puts it in the place of what this replica has: snapshot file, log, state and files. Whoever dies meanwhile goes
    /// on with either the old or the new, by [`super::recover()`]. Nobody applies anything, or writes to the log, meanwhile.
    ///
    /// # Errors
    /// When the disk refuses: this replica must stop.
    pub fn install(
        self,
        dir: &DataDir,
        log: &RaftLog,
        files: &Files,
        state: &State,
    ) -> Result<Adopted, StoreError> {
        let (trust, before) = (self.trust(dir, log, files, state)?, state.ledger()?);
        if let Some((file, header)) = &self.snapshot {
            // What was noted is of another state.
            self.put_ledger(&before.of_replaced_state())?;
            put_snapshot(file, &dir.snapshots_dir(), header.index)?;
            fit_log_to_snapshot(dir, log, Some(header))?;
        } else {
            let mut ledger = self.state.ledger()?;
            ledger.keep_equal(&before, trust.until);
            self.put_ledger(&ledger)?;
        }
        let adopted = files.adopt(&self.state, trust)?;
        dir.switch_state(&self.state_dir)?;
        state.replace(self.state);
        raise_commit(log, state)?;
        forget_stages(files, state)?;
        dir.end_diverged()?;
        Ok(adopted)
    }

    fn put_ledger(&self, ledger: &Ledger) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        put_ledger(&mut batch, ledger);
        let (index, term) = (self.state.applied(), self.state.term());
        self.state.commit(batch, AppliedPoint { index, term, conf_state: None })?;
        self.state.flush()
    }

    /// What of the files may be believed that were changed under `state`. It says nothing of what was done to them beyond
    /// it.
    fn trust<'a>(
        &self,
        dir: &DataDir,
        log: &RaftLog,
        files: &Files,
        state: &'a State,
    ) -> Result<Trust<'a>, StoreError> {
        let under = (files.carried_out().max(files.begun()) <= state.applied()).then_some(state);
        let Some(since) = dir.diverged()? else {
            // It has only fallen behind.
            return Ok(Trust { until: files.carried_out(), under, is_alone: false });
        };
        let until = self.parted.map_or(since, |parted| parted.min(since));
        // Others may have come later, or it may be one of them itself.
        let own = dir.identity().node;
        let is_alone = self.state.conf_state().voters == [own.0] && is_alone(&self.state, log)?;
        // A start that could not believe the state has written 0. The one that is there was built since, perhaps of the very
        // snapshot that takes its place now: it agrees with itself. So does one that is ahead of the files.
        let is_theirs = is_alone || (since > LogIndex(0) && !files.are_behind(state));
        let under = under.filter(|_| is_theirs);
        let until = if under.is_some() { until } else { LogIndex(0) };
        Ok(Trust { until, under, is_alone })
    }
}
