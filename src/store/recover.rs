//! What a starting replica may believe (DESIGN, "What is true after a crash").
//!
//! The truth is the newest snapshot file plus the log. The state in sled is believed only where nothing
//! but the process has died since it was written, and where it agrees with the log; otherwise it is
//! built anew from the snapshot file. In both cases the node then applies what the log holds after
//! [`State::applied`]: nothing is replayed here.

use std::path::{Path, PathBuf};

use raft::eraftpb::{ConfState, Entry, EntryType};

use super::adopt::{Adopted, Trust};
use super::beneath::Beneath;
use super::datadir::DataDir;
use super::divergence::put_ledger;
use super::files::Files;
use super::log::{LogOptions, RaftLog};
use super::point::AppliedPoint;
use super::retrace::Retraced;
use super::snapshot::{SnapshotHeader, latest_snapshot, put_snapshot, read_snapshot};
use super::state::State;
use crate::fs::{Batch, query};
use crate::store::StoreError;
use crate::store::error::REJOIN;
use crate::types::{LogIndex, VolumeId};

/// Bytes of the log that are looked through at once.
const SCAN_BYTES: u64 = 16 << 20;

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
    /// What earlier processes may have done to the files goes no further than this entry.
    pub reached: LogIndex,
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
    /// This replica was found to differ, and the state is not the one that the files were changed under.
    Differed,
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
    let files = Files::open_over(&dir.files_dir(), &dir.stages_dir(), dir.same_boot(), beneath)?;
    let (state, rebuilt) = match believe_state(dir, &log, covered)? {
        Ok(state) if dir.diverged()?.is_some() && state.applied() < files.begun() => {
            (rebuild_state(dir)?, Some(Rebuilt::Differed))
        }
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
    if rebuilt.is_none() {
        // What a state says has reached the files before.
        files.pass(state.applied());
    } else if dir.diverged()?.is_some() {
        if is_alone(&state, &log)? {
            // Nobody else can tell, or has more: what the log makes of it is all that there is.
            dir.end_diverged()?;
        } else {
            // The state is gone that would say what the files were changed under.
            dir.set_diverged(LogIndex(0))?;
        }
    }
    // Otherwise they follow the state that takes the place of this one.
    if files.are_behind(&state) && dir.diverged()?.is_none() {
        let until = files.carried_out();
        let adopted = files.adopt(&state, Trust { until, under: None, is_alone: false })?;
        // A new replica has none.
        if adopted != Adopted::default() {
            tracing::info!(?adopted, "the files follow a snapshot that came from a peer");
        }
    }
    files.forget(covered)?;
    forget_stages(&files, &state)?;
    // What has reached the files was in the log before, and a power loss takes with it how far that was.
    let reached = if dir.same_boot() { files.begun() } else { log.last_index() };
    // From now on all that is here is of this boot.
    dir.record_boot()?;
    Ok(Recovered { log, state, files, snapshot, rebuilt, reached })
}

/// Whether this replica was the only member from its snapshot on.
fn is_alone(state: &State, log: &RaftLog) -> Result<bool, StoreError> {
    if !is_of_one(&state.conf_state()) {
        return Ok(false);
    }
    let (mut next, end) = (state.applied().next(), log.last_index().next());
    while next < end {
        let entries = log.entries(next, end, Some(SCAN_BYTES))?;
        let changes = |entry: &Entry| entry.get_entry_type() != EntryType::EntryNormal;
        let Some(last) = entries.last() else { break };
        if entries.iter().any(changes) {
            return Ok(false);
        }
        next = LogIndex(last.index).next();
    }
    Ok(true)
}

fn is_of_one(members: &ConfState) -> bool {
    let others = [&members.voters_outgoing, &members.learners, &members.learners_next];
    members.voters.len() == 1 && others.iter().all(|others| others.is_empty())
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

pub(super) fn build_from(file: &Path, path: &Path) -> Result<State, StoreError> {
    let (header, pairs) = read_snapshot(file)?;
    let conf_state = Some(&header.conf_state);
    let at = AppliedPoint { index: header.index, term: header.term, conf_state };
    State::create_from(path, pairs, at, header.digest)
}

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
        if let Some((file, header)) = &self.snapshot {
            // What was noted is of another state.
            let mut batch = Batch::default();
            put_ledger(&mut batch, &state.ledger()?.of_replaced_state());
            let at = AppliedPoint { index: header.index, term: header.term, conf_state: None };
            self.state.commit(batch, at)?;
            self.state.flush()?;
            put_snapshot(file, &dir.snapshots_dir(), header.index)?;
            fit_log_to_snapshot(dir, log, Some(header))?;
        }
        let adopted = files.adopt(&self.state, self.trust(dir, files, state)?)?;
        dir.switch_state(&self.state_dir)?;
        state.replace(self.state);
        raise_commit(log, state)?;
        forget_stages(files, state)?;
        dir.end_diverged()?;
        Ok(adopted)
    }

    /// What of the files may be believed that were changed under `state`. It says nothing of what was done to them beyond
    /// it.
    fn trust<'a>(
        &self,
        dir: &DataDir,
        files: &Files,
        state: &'a State,
    ) -> Result<Trust<'a>, StoreError> {
        let under = (files.carried_out().max(files.begun()) <= state.applied()).then_some(state);
        let Some(since) = dir.diverged()? else {
            // It has only fallen behind.
            return Ok(Trust { until: files.carried_out(), under, is_alone: false });
        };
        let until = self.parted.map_or(since, |parted| parted.min(since));
        let until = if under.is_some() { until } else { LogIndex(0) };
        Ok(Trust { until, under, is_alone: is_of_one(&self.state.conf_state()) })
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
