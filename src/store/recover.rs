//! What a starting replica may believe (DESIGN, "What is true after a crash").
//!
//! The truth is the newest snapshot file plus the log. The state in sled is believed only where nothing
//! but the process has died since it was written, and where it agrees with the log; otherwise it is
//! built anew from the snapshot file. In both cases the node then applies what the log holds after
//! [`State::applied`]: nothing is replayed here.

use std::path::{Path, PathBuf};

use super::adopt::{Adopted, Trust};
use super::beneath::Beneath;
use super::datadir::DataDir;
use super::divergence::put_ledger;
use super::files::Files;
use super::log::{LogOptions, RaftLog};
use super::point::AppliedPoint;
use super::snapshot::{SnapshotHeader, latest_snapshot, put_snapshot, read_snapshot};
use super::state::State;
use crate::fs::{Batch, query};
use crate::store::StoreError;
use crate::store::error::REJOIN;
use crate::types::{LogIndex, VolumeId};

/// A replica's stores, agreeing with each other.
#[derive(Debug)]
pub struct Recovered {
    /// The log; its hard state's commit is at least the applied index.
    pub log: RaftLog,
    /// The state; the log holds everything after its applied index.
    pub state: State,
    /// The backing files.
    pub files: Files,
    /// The newest snapshot file; none before the first.
    pub snapshot: Option<SnapshotHeader>,
    /// Why the state was built anew; nothing where it was believed.
    pub rebuilt: Option<Rebuilt>,
}

/// Why a state was not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebuilt {
    /// There was none.
    Absent,
    /// The machine was restarted, or the mount is another one: unsynced writes may be gone.
    AnotherBoot,
    /// sled could not read it.
    Unreadable,
    /// It is older than the snapshot file: what a replay from there needs may be gone, from the log and
    /// from the stages.
    BehindTheSnapshot,
    /// It was reached over an entry that the log does not have.
    AnotherHistory,
}

/// Opens the stores of a replica and makes them agree.
///
/// # Errors
/// When something that must be true is damaged or missing: the snapshot file, the log, or the log's
/// last entries where the state shows that they were there.
pub fn recover(dir: &DataDir, options: LogOptions) -> Result<Recovered, StoreError> {
    recover_over(dir, options, None)
}

/// The same where the backing files are those of another data directory, which stays as it is.
pub(super) fn recover_over(
    dir: &DataDir,
    options: LogOptions,
    beneath: Option<Beneath>,
) -> Result<Recovered, StoreError> {
    let snapshot = verify_snapshot(dir)?;
    let log = RaftLog::open_with(&dir.log_dir(), options)?;
    fit_log_to_snapshot(dir, &log, snapshot.as_ref())?;
    let covered = snapshot.as_ref().map_or(LogIndex(0), |snapshot| snapshot.index);
    let (state, rebuilt) = match believe_state(dir, &log, covered)? {
        Ok(state) => (state, None),
        Err(why) => {
            tracing::info!(?why, "building the state anew from the snapshot file and the log");
            (rebuild_state(dir)?, Some(why))
        }
    };
    if let Err(error) = dir.remove_other_states() {
        tracing::info!(%error, "an old state stays until the next start");
    }
    raise_commit(&log, &state)?;
    let is_wrong = dir.diverged()?.is_some() && rebuilt.is_some();
    if is_wrong {
        // The state is gone that would say what the files were changed under.
        dir.set_diverged(LogIndex(0))?;
    }
    let files = Files::open_over(&dir.files_dir(), &dir.stages_dir(), dir.same_boot(), beneath)?;
    if rebuilt.is_none() {
        // What a state says has reached the files before.
        files.pass(state.applied());
    }
    if files.are_behind(&state) {
        let until = if is_wrong { LogIndex(0) } else { files.carried_out() };
        let adopted = files.adopt(&state, Trust { until, under: None })?;
        // A new replica has none.
        if adopted != Adopted::default() {
            tracing::info!(?adopted, "the files follow a snapshot that came from a peer");
        }
    }
    files.forget(covered)?;
    forget_stages(&files, &state)?;
    // From now on all that is here is of this boot.
    dir.record_boot()?;
    Ok(Recovered { log, state, files, snapshot, rebuilt })
}

/// Builds a state from the newest snapshot file (an empty one where there is none) in a new directory
/// and switches to it. Used at start, and when a peer's snapshot has been written to the directory.
///
/// # Errors
/// When the snapshot file is damaged or the disk refuses; the state that was there before stays.
pub fn rebuild_state(dir: &DataDir) -> Result<State, StoreError> {
    let path = dir.new_state_dir()?;
    let state = match latest_snapshot(&dir.snapshots_dir())? {
        Some(file) => build_from(&file, &path)?,
        None => State::open(&path)?,
    };
    state.flush()?;
    dir.switch_state(&path)?;
    Ok(state)
}

fn build_from(file: &Path, path: &Path) -> Result<State, StoreError> {
    let (header, pairs) = read_snapshot(file)?;
    let conf_state = Some(&header.conf_state);
    let at = AppliedPoint { index: header.index, term: header.term, conf_state };
    State::create_from(path, pairs, at, header.digest)
}

/// A peer's snapshot, with the state that was built from it.
#[derive(Debug)]
pub struct Received {
    file: PathBuf,
    header: SnapshotHeader,
    state: State,
    state_dir: PathBuf,
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
        Ok(Self { file: file.to_owned(), header, state, state_dir })
    }

    /// The last entry that is in it.
    #[must_use]
    pub fn index(&self) -> LogIndex {
        self.header.index
    }

    /// Puts it in the place of what this replica has: snapshot file, log, state and files. Whoever dies meanwhile goes
    /// on with either the old or the new, by [`recover`]. Nobody applies anything, or writes to the log, meanwhile.
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
        let ledger = state.ledger()?;
        let mut batch = Batch::default();
        put_ledger(&mut batch, &ledger.of_replaced_state());
        let at = AppliedPoint { index: self.index(), term: self.header.term, conf_state: None };
        self.state.commit(batch, at)?;
        self.state.flush()?;
        put_snapshot(&self.file, &dir.snapshots_dir(), self.header.index)?;
        fit_log_to_snapshot(dir, log, Some(&self.header))?;
        // Nobody has compared what came after the last comparison. A state that was built anew knows of none.
        let compared = Some(ledger.equal()).filter(|index| *index > LogIndex(0));
        let until = dir.diverged()?.or(compared).unwrap_or_else(|| files.carried_out());
        let adopted = files.adopt(&self.state, Trust { until, under: Some(state) })?;
        dir.switch_state(&self.state_dir)?;
        state.replace(self.state);
        raise_commit(log, state)?;
        forget_stages(files, state)?;
        dir.end_diverged()?;
        Ok(adopted)
    }
}

/// The header of the newest snapshot file, all of which is verified: a state that is believed hides the
/// damage until a power loss, when nothing else is left; and what is built from it is built whole.
fn verify_snapshot(dir: &DataDir) -> Result<Option<SnapshotHeader>, StoreError> {
    latest_snapshot(&dir.snapshots_dir())?.map(|path| verify(dir, &path)).transpose()
}

fn verify(dir: &DataDir, path: &Path) -> Result<SnapshotHeader, StoreError> {
    let (header, mut pairs) = read_snapshot(path)?;
    pairs.try_for_each(|pair| pair.map(drop))?;
    if header.cluster != dir.identity().cluster || header.volume != VolumeId::FIRST {
        return Err(StoreError::Corrupt {
            path: path.to_owned(),
            offset: None,
            what: format!("it is of volume {} of cluster {}", header.volume, header.cluster),
            advice: "it belongs to another data directory: put back the one that was here",
        });
    }
    Ok(header)
}

/// A log that ends before the snapshot, or has another entry there, is what a peer's snapshot was to
/// replace when the process died: it is reset. One that begins after the snapshot has a hole.
fn fit_log_to_snapshot(
    dir: &DataDir,
    log: &RaftLog,
    snapshot: Option<&SnapshotHeader>,
) -> Result<(), StoreError> {
    let (truncated, _) = log.truncated();
    let covered = snapshot.map_or(0.into(), |snapshot| snapshot.index);
    if truncated > covered {
        return Err(StoreError::Corrupt {
            path: dir.snapshots_dir(),
            offset: None,
            what: format!("the log begins after {truncated}, but the snapshot ends at {covered}"),
            advice: REJOIN,
        });
    }
    match snapshot {
        Some(snapshot) if log.term(snapshot.index) != Some(snapshot.term) => {
            tracing::info!(index = %snapshot.index, term = %snapshot.term, "the log starts anew");
            log.reset_to(snapshot.index, snapshot.term)
        }
        _ => Ok(()),
    }
}

/// The current state, or why it is not to be believed; the snapshot file covers entries up to `covered`.
fn believe_state(
    dir: &DataDir,
    log: &RaftLog,
    covered: LogIndex,
) -> Result<Result<State, Rebuilt>, StoreError> {
    let Some(path) = dir.current_state()? else { return Ok(Err(Rebuilt::Absent)) };
    if !dir.same_boot() {
        return Ok(Err(Rebuilt::AnotherBoot));
    }
    let state = match State::open(&path) {
        Ok(state) => state,
        Err(error) => {
            tracing::warn!(%error, "the state cannot be opened");
            return Ok(Err(Rebuilt::Unreadable));
        }
    };
    let (applied, last) = (state.applied(), log.last_index());
    if applied > last {
        // The same boot, so the log has everything that was ever written to it: but it has not.
        return Err(StoreError::Corrupt {
            path: dir.log_dir(),
            offset: None,
            what: format!("entry {applied} was applied, but the last one of the log is {last}"),
            advice: REJOIN,
        });
    }
    if applied < covered {
        return Ok(Err(Rebuilt::BehindTheSnapshot));
    }
    if log.term(applied) != Some(state.term()) {
        return Ok(Err(Rebuilt::AnotherHistory));
    }
    Ok(Ok(state))
}

/// What was staged by sessions that ended while an earlier process was dying. Those that are opened later are not
/// known yet.
fn forget_stages(files: &Files, state: &State) -> Result<(), StoreError> {
    let (applied, view) = (state.applied(), state.read());
    let open: Vec<_> = query::sessions(&view)?.into_iter().map(|(session, _)| session).collect();
    files.keep_stages(|session| session.0 > applied.0 || open.contains(&session))
}

/// raft-rs panics where more is applied than committed.
fn raise_commit(log: &RaftLog, state: &State) -> Result<(), StoreError> {
    let mut hard_state = log.hard_state();
    let applied = state.applied().0;
    if hard_state.commit >= applied {
        return Ok(());
    }
    hard_state.commit = applied;
    log.append(&[], Some(&hard_state), true)
}

#[cfg(test)]
#[path = "recover_tests.rs"]
mod tests;
