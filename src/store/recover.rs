//! What a starting replica may believe (DESIGN, "What is true after a crash").
//!
//! The truth is the newest snapshot file plus the log. The state in sled is believed only where nothing
//! but the process has died since it was written, and where it agrees with the log; otherwise it is
//! built anew from the snapshot file. In both cases the node then applies what the log holds after
//! [`State::applied`]: nothing is replayed here.
//!
//! Damage is mended here where this replica has what it takes (decision 0023): a damaged snapshot file is written anew
//! from a state that is believed; marks and images of files that are damaged are as good as none. A replica that has
//! neither state nor snapshot file still has its log, which is all that a vote needs: it takes a peer's snapshot
//! ([`StoreError::StateLost`]) before it starts. Without its log it must not come back.

use std::path::Path;

use raft::eraftpb::{ConfState, Entry, EntryType};

use super::adopt::{Adopted, Trust};
use super::beneath::Beneath;
use super::datadir::DataDir;
use super::files::Files;
use super::layout_notes;
use super::layouts::Believed;
use super::log::{LogOptions, RaftLog, mend_log};
use super::marks;
use super::point::AppliedPoint;
use super::refused::is_broken;
use super::reread;
use super::snapshot::{
    SnapshotHeader, latest_snapshot, put_snapshot, read_snapshot, remove_snapshots_but,
    write_snapshot,
};
use super::state::State;
use crate::fs::query;
use crate::store::StoreError;
use crate::store::error::REJOIN;
use crate::types::{LogIndex, VolumeId};

/// Bytes of the log that are looked through at once.
const SCAN_BYTES: u64 = 16 << 20;
const FOREIGN: &str = "it belongs to another data directory: put back the one that was here";
/// So many other voters must be there for this replica to give up all of its bytes: more than one of them has each.
const OTHER_HOLDERS: usize = 2;

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
    /// What says how far the files have come is damaged.
    DamagedMarks,
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
    let marks = look_at_marks(dir)?;
    let same_boot = dir.same_boot() && marks.is_none();
    if beneath.is_none() {
        read_from_disk(dir)?;
    }
    let verified = match verify_snapshot(dir) {
        // Nothing is changed where this cannot be mended.
        Err(error) if !is_unusable(&error) || beneath.is_some() => return Err(error),
        verified => verified,
    };
    let log = match RaftLog::open_with(&dir.log_dir(), options) {
        Err(damage @ StoreError::Corrupt { .. }) if beneath.is_none() => {
            reopen_log(dir, options, damage)?
        }
        log => log?,
    };
    check_log_is_there(dir, &log)?;
    log.keep_promised(&dir.logged())?;
    if let Err(error) = log.remove_ignored_files() {
        tracing::info!(%error, "what the log does not use any more stays until the next start");
    }
    let snapshot = match verified.and_then(|snapshot| {
        fit_log_to_snapshot(dir, &log, snapshot.as_ref())?;
        Ok(snapshot)
    }) {
        Err(damage) if is_unusable(&damage) && beneath.is_none() => {
            tracing::warn!("{damage}");
            Some(mend_snapshot(dir, &log, same_boot, damage)?)
        }
        snapshot => snapshot?,
    };
    let covered = snapshot.as_ref().map_or(LogIndex(0), |snapshot| snapshot.index);
    let believed = match marks {
        None => believe_state(dir, &log, covered)?,
        Some(_) => Err(Rebuilt::DamagedMarks),
    };
    let (state, rebuilt) = match believed {
        Ok(state) => (state, None),
        Err(why) => {
            tracing::info!(?why, "building the state anew from the snapshot file and the log");
            (rebuild_state(dir, &log)?, Some(why))
        }
    };
    if let Err(error) = dir.remove_other_states() {
        tracing::info!(%error, "an old state stays until the next start");
    }
    raise_commit(&log, &state)?;
    let (files, is_known) = open_files(dir, &state, same_boot, beneath)?;
    let (state, rebuilt) = match rebuilt {
        None if dir.diverged()?.is_some() && !(is_known && state.applied() >= files.begun()) => {
            drop(state);
            (rebuild_state(dir, &log)?, Some(Rebuilt::Differed))
        }
        _ => (state, rebuilt),
    };
    if rebuilt.is_none() && is_known {
        // What a state says has reached the files before.
        files.pass(state.applied());
    }
    follow(dir, &log, &state, &files, rebuilt)?;
    check_log_has_what_was_carried_out(dir, &log, files.carried_out())?;
    files.forget(covered)?;
    forget_stages(&files, &state)?;
    // What has reached the files was in the log before, and a power loss takes with it how far that was: also where that was
    // some starts ago, and this replica has not healed since. Nor does a state that was built anew say how far the lost one was.
    let knows_all =
        same_boot && is_known && rebuilt.is_none() && dir.diverged()? != Some(LogIndex(0));
    let reached = if knows_all { files.begun() } else { log.last_index() };
    // From here on it may vote.
    log.promise()?;
    dir.record_start()?;
    // From now on all that is here is of this boot.
    dir.record_boot()?;
    Ok(Recovered { log, state, files, snapshot, rebuilt, reached })
}

/// What is wrong with the marks of the files, where they are to be believed.
fn look_at_marks(dir: &DataDir) -> Result<Option<StoreError>, StoreError> {
    let marks = if dir.same_boot() { marks::damage(&dir.stages_dir())? } else { None };
    if let Some(damage) = &marks {
        tracing::warn!("{damage}");
    }
    Ok(marks)
}

fn read_from_disk(dir: &DataDir) -> Result<(), StoreError> {
    // All that is found in it counts as durable.
    reread::from_disk(&dir.log_dir())?;
    if !dir.same_boot() {
        // The kernel may be the same, and a sync may have failed.
        reread::from_disk(&dir.snapshots_dir())?;
        reread::from_disk(&dir.stages_dir())?;
    }
    Ok(())
}

/// The files follow the state, where they are behind it; but one that was found to differ, when another one takes its place.
fn follow(
    dir: &DataDir,
    log: &RaftLog,
    state: &State,
    files: &Files,
    rebuilt: Option<Rebuilt>,
) -> Result<(), StoreError> {
    if dir.diverged()?.is_some() {
        if rebuilt.is_none() {
            return Ok(());
        }
        if !is_alone(state, log)? {
            // The state is gone that would say what the files were changed under.
            return dir.set_diverged(LogIndex(0));
        }
        // Nobody else can tell, or has more: what the log makes of it is all that there is.
        dir.end_diverged()?;
    }
    if files.are_behind(state) {
        let until = files.carried_out();
        let adopted = files.adopt(state, Trust { until, under: None, is_alone: false })?;
        // A new replica has none.
        if adopted != Adopted::default() {
            tracing::info!(?adopted, "the files follow a snapshot that came from a peer");
        }
    }
    Ok(())
}

/// Whether this replica was the only member from its snapshot on.
pub(super) fn is_alone(state: &State, log: &RaftLog) -> Result<bool, StoreError> {
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

/// A damaged log, where the snapshot covers all that the damage can have been.
fn reopen_log(
    dir: &DataDir,
    options: LogOptions,
    damage: StoreError,
) -> Result<RaftLog, StoreError> {
    let snapshot = match verify_snapshot(dir) {
        Ok(Some(snapshot)) => snapshot,
        Ok(None) | Err(StoreError::Corrupt { .. }) => return Err(damage),
        Err(error) => return Err(error),
    };
    if !mend_log(&dir.log_dir(), options, snapshot.index, snapshot.term)? {
        return Err(damage);
    }
    tracing::warn!(
        from = snapshot.index.0,
        "{damage}: but the snapshot covers all of that; the log begins behind it"
    );
    RaftLog::open_with(&dir.log_dir(), options)
}

/// The backing files, and whether it is known how far they have come. Where an image is damaged it is not, and all their
/// bytes are missing: only where others hold them. A start that is cut short leaves the image damaged.
fn open_files(
    dir: &DataDir,
    state: &State,
    same_boot: bool,
    beneath: Option<Beneath>,
) -> Result<(Files, bool), StoreError> {
    let is_copy = beneath.is_some();
    let (path, stages) = (dir.files_dir(), dir.stages_dir());
    let believed = if same_boot { Believed::Notes } else { Believed::Image };
    match Files::open_over(&path, &stages, believed, beneath) {
        Err(damage @ StoreError::Corrupt { .. }) if !is_copy => {
            let others = state.conf_state().voters.len().saturating_sub(1);
            if others < OTHER_HOLDERS {
                return Err(damage);
            }
            tracing::error!("{damage}: all bytes of files are fetched again from the other nodes");
            layout_notes::note_lost(&stages)?;
            Ok((Files::open_over(&path, &stages, Believed::Nothing, None)?, false))
        }
        files => Ok((files?, true)),
    }
}

/// Whether a snapshot file says nothing that can be used.
fn is_unusable(error: &StoreError) -> bool {
    match error {
        // What belongs to somebody else was put there by somebody.
        StoreError::Corrupt { advice, .. } => *advice != FOREIGN,
        StoreError::Io { action, source, .. } => {
            ["open", "read", "list"].contains(action) && is_broken(source)
        }
        _ => false,
    }
}

/// Another snapshot in the place of one that is damaged, or that is not there: from the state, where that is believed.
/// What is written adds up to the state's digest, or is not put in place.
fn mend_snapshot(
    dir: &DataDir,
    log: &RaftLog,
    same_boot: bool,
    damage: StoreError,
) -> Result<SnapshotHeader, StoreError> {
    let from = log.truncated().0;
    let lost = |damage| StoreError::StateLost { damage: Box::new(damage), from };
    if dir.diverged()?.is_some() {
        // The state is wrong.
        return Err(lost(damage));
    }
    let state = match believe_state(dir, log, from) {
        Ok(Ok(state)) if same_boot => state,
        Err(other) => return Err(other),
        Ok(Ok(_) | Err(_)) => return Err(lost(damage)),
    };
    let export = state.export();
    let header = export.header(dir.identity().cluster);
    let files = match Files::open(&dir.files_dir(), &dir.stages_dir(), same_boot) {
        // Then a peer's snapshot is better: what is not known of the files does not depend on it.
        Err(StoreError::Corrupt { .. }) => return Err(lost(damage)),
        files => files?,
    };
    files.pass(header.index);
    files.sync()?;
    match write_snapshot(&dir.snapshots_dir(), &header, export) {
        Ok(_) => {}
        // The state is no better.
        Err(StoreError::Corrupt { .. } | StoreError::Sled { .. } | StoreError::Rotten { .. }) => {
            return Err(lost(damage));
        }
        Err(error) => return Err(error),
    }
    remove_snapshots_but(&dir.snapshots_dir(), header.index)?;
    fit_log_to_snapshot(dir, log, Some(&header))?;
    tracing::warn!(index = header.index.0, "the snapshot file is written anew from the state");
    Ok(header)
}

/// A start has always left a log that is not empty: one that is has forgotten votes, and what was acknowledged.
fn check_log_is_there(dir: &DataDir, log: &RaftLog) -> Result<(), StoreError> {
    // Early versions did not record that they had started: what only a replica has that has run.
    let traces = ["boot", "peers", "stages/image", "stages/carried"];
    let has_run = || dir.has_started() || traces.iter().any(|name| dir.path().join(name).exists());
    if log.last_index() > LogIndex(0) || (dir.current_state()?.is_none() && !has_run()) {
        return Ok(());
    }
    Err(damaged_log(dir, "it is empty, but this replica had one".to_owned()))
}

/// Only what is in the log is ever carried out.
fn check_log_has_what_was_carried_out(
    dir: &DataDir,
    log: &RaftLog,
    carried_out: LogIndex,
) -> Result<(), StoreError> {
    let last = log.last_index();
    if carried_out <= last {
        return Ok(());
    }
    Err(damaged_log(
        dir,
        format!("entry {carried_out} reached the files, but the last one of the log is {last}"),
    ))
}

fn damaged_log(dir: &DataDir, what: String) -> StoreError {
    StoreError::Corrupt { path: dir.log_dir(), offset: None, what, advice: REJOIN }
}

/// Puts the snapshot in `file` (in the directory of snapshots), which came from a peer, in the place of what this replica
/// had before it starts ([`StoreError::StateLost`]); false where it ends before `from`, where the log begins. Durable on
/// return.
///
/// # Errors
/// When it is damaged, of another cluster, or the disk refuses.
pub fn replace_snapshot(dir: &DataDir, file: &Path, from: LogIndex) -> Result<bool, StoreError> {
    let header = verify(dir, file)?;
    if header.index < from {
        return Ok(false);
    }
    put_snapshot(file, &dir.snapshots_dir(), header.index)?;
    remove_snapshots_but(&dir.snapshots_dir(), header.index)?;
    tracing::info!(index = header.index.0, "a peer's snapshot is in the place of what was lost");
    Ok(true)
}

/// Removes a state that the next start will not believe, where there is what another one can be built from.
///
/// # Errors
/// When the disk refuses.
pub fn make_room(dir: &DataDir) -> Result<(), StoreError> {
    let is_of_no_use = !dir.same_boot() && dir.has_started();
    if is_of_no_use && verify_snapshot(dir).is_ok() { dir.remove_states(false) } else { Ok(()) }
}

/// Builds a state from the newest snapshot file (an empty one where there is none) in a new directory
/// and switches to it. Those that were there are removed first: nobody believes them any more, and beside them there may be no
/// room.
fn rebuild_state(dir: &DataDir, log: &RaftLog) -> Result<State, StoreError> {
    // Not one that was there: whoever had it open in this process may still write there.
    let path = dir.new_state_dir()?;
    dir.remove_states(log.last_index() > LogIndex(0))?;
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

/// The header of the newest snapshot file, all of which is verified: a state that is believed hides the
/// damage until a power loss, when nothing else is left; and what is built from it is built whole.
fn verify_snapshot(dir: &DataDir) -> Result<Option<SnapshotHeader>, StoreError> {
    latest_snapshot(&dir.snapshots_dir())?.map(|path| verify(dir, &path)).transpose()
}

pub(super) fn verify(dir: &DataDir, path: &Path) -> Result<SnapshotHeader, StoreError> {
    let (header, mut pairs) = read_snapshot(path)?;
    pairs.try_for_each(|pair| pair.map(drop))?;
    if header.cluster != dir.identity().cluster || header.volume != VolumeId::FIRST {
        return Err(StoreError::Corrupt {
            path: path.to_owned(),
            offset: None,
            what: format!("it is of volume {} of cluster {}", header.volume, header.cluster),
            advice: FOREIGN,
        });
    }
    Ok(header)
}

/// A log that ends before the snapshot, or has another entry there, is what a peer's snapshot was to
/// replace when the process died: it is reset. One that begins after the snapshot has a hole.
pub(super) fn fit_log_to_snapshot(
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
        let what = format!("entry {applied} was applied, but the last one of the log is {last}");
        return Err(damaged_log(dir, what));
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
pub(super) fn forget_stages(files: &Files, state: &State) -> Result<(), StoreError> {
    let (applied, view) = (state.applied(), state.read());
    let open: Vec<_> = query::sessions(&view)?.into_iter().map(|(session, _)| session).collect();
    files.keep_stages(|session| session.0 > applied.0 || open.contains(&session))
}

/// raft-rs panics where more is applied than committed.
pub(super) fn raise_commit(log: &RaftLog, state: &State) -> Result<(), StoreError> {
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

#[cfg(test)]
#[path = "damage_tests.rs"]
mod damage_tests;

#[cfg(test)]
#[path = "lost_image_tests.rs"]
mod lost_image_tests;
