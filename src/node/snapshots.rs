//! The thread that writes snapshot files and cuts the log behind them, and installs those of peers.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc::Receiver;

use super::Handle;
use super::divergence::diverge;
use super::healing::{examine, heal};
use super::install::{install, open_newest};
use super::shared::{Shared, ToDriver};
use crate::fs::Digest;
use crate::store::{StoreError, prepare_snapshot, put_snapshot, read_snapshot};
use crate::types::{LogIndex, NodeId};

/// The log behind a snapshot that is sent to a peer is kept for so long, after its last piece or after the peer was last
/// connected, so that it finds that there when it has built its state.
const LENT_FOR: Duration = Duration::from_secs(600);

/// The log may have so many times the bytes that it may have otherwise while a peer takes a snapshot, or while one waits to
/// be compared.
const LOGS: u64 = 2;
/// A peer gets one that nobody has compared after this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// A person is told of a snapshot that waits to be compared for so long.
const TELLING: Duration = Duration::from_secs(30);

/// What the thread is to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    /// A snapshot of this node, or a shorter log.
    Own,
    /// The snapshot of a leader, whose log begins only there.
    Of { leader: NodeId, first_index: LogIndex },
    /// Another state, in the place of this one, which differs.
    Healing { committed: LogIndex, peer: Option<NodeId> },
    /// Whether the state is what the log makes of it: the voters differ.
    Examination,
}

/// A snapshot that is written, and counts once the state that it is of is known to be that of the others: what is wrong
/// here must not spread to whoever takes it, nor be all that is left of the log behind it.
#[derive(Debug)]
struct Candidate {
    file: PathBuf,
    index: LogIndex,
    digest: Digest,
    started: Instant,
}

/// The snapshot that waits to be compared: at which index, since when.
#[derive(Debug, Default)]
pub(super) struct Unattested(Mutex<Option<(LogIndex, Instant)>>);

impl Unattested {
    fn set(&self, waiting: Option<(LogIndex, Instant)>) {
        *self.0.lock() = waiting;
    }

    /// Whether there is one.
    pub(super) fn is_there(&self) -> bool {
        self.0.lock().is_some()
    }
}

/// Snapshots that peers are taking: at which index, since when.
#[derive(Debug, Default)]
pub(super) struct Lent(Mutex<HashMap<NodeId, (LogIndex, Instant)>>);

impl Lent {
    fn lend(&self, to: NodeId, index: LogIndex) {
        self.0.lock().insert(to, (index, Instant::now()));
    }

    fn lends_on(&self, to: NodeId) {
        if let Some((_, since)) = self.0.lock().get_mut(&to) {
            *since = Instant::now();
        }
    }

    /// The log from here on is wanted by somebody who takes a snapshot and is not known to hold more.
    fn wanted(
        &self,
        holds: impl Fn(NodeId) -> Option<LogIndex>,
        is_connected: impl Fn(NodeId) -> bool,
    ) -> Option<LogIndex> {
        let mut lent = self.0.lock();
        for (node, (_, since)) in lent.iter_mut() {
            // It builds its state. Only a leader knows when it has done so.
            if holds(*node).is_some() && is_connected(*node) {
                *since = Instant::now();
            }
        }
        lent.retain(|node, (index, since)| {
            since.elapsed() < LENT_FOR && holds(*node).unwrap_or_default() <= *index
        });
        lent.values().map(|(index, _)| *index).min()
    }
}

/// Runs until the apply thread and the driver are gone, or until this replica cannot go on.
pub(super) fn run(shared: &Arc<Shared>, due: &mut Receiver<Due>) {
    look_at_newest(shared);
    let mut candidate: Option<Candidate> = None;
    while let Some(next) = due.blocking_recv() {
        let done = match next {
            Due::Own => shorten(shared, &mut candidate),
            Due::Of { leader, first_index } => install(shared, leader, first_index)
                .map(|done| forget_if(done, shared, &mut candidate)),
            Due::Healing { committed, peer } => {
                heal(shared, committed, peer).map(|done| forget_if(done, shared, &mut candidate))
            }
            Due::Examination => examine(shared),
        };
        if let Err(error) = done {
            shared.fail(&error);
            return;
        }
        let waits = |waiting: &Candidate| (waiting.index, waiting.started);
        shared.unattested.set(candidate.as_ref().map(waits));
    }
}

/// Another state has come in the place of the one that it is of, with a snapshot and a log of its own.
fn forget_if(is_replaced: bool, shared: &Shared, candidate: &mut Option<Candidate>) {
    if is_replaced {
        *candidate = None;
        look_at_newest(shared);
        shared.log_length.was_cut(shared.log.used_size());
    }
}

/// What the snapshot covers that is in force, and its size. One that cannot be read is not cut behind.
fn look_at_newest(shared: &Shared) {
    let look = || -> Result<_, StoreError> {
        let Some((path, file)) = open_newest(&shared.config.directory.snapshots_dir())? else {
            return Ok((LogIndex(0), 0));
        };
        let size = file.metadata().map_err(StoreError::io("look at", &path))?.len();
        Ok((read_snapshot(&path)?.0.index, size))
    };
    match look() {
        Ok((index, size)) => shared.log_length.know_snapshot(index, size),
        Err(error) => tracing::warn!("{error}"),
    }
}

/// Has the log end at a new snapshot where one is due; or at the last one, whoever needs what is before it, where it is too
/// long.
fn shorten(shared: &Shared, candidate: &mut Option<Candidate>) -> Result<(), StoreError> {
    if shared.snapshot_is_due(shared.state.applied()) {
        advance(shared, candidate)?;
    }
    if !shared.cut_is_due() {
        return Ok(());
    }
    let before = shared.log.used_size();
    let log_from = needed(shared).min(shared.log_length.snapshot());
    shared.log.compact_to(log_from)?;
    let now = shared.log.used_size();
    shared.log_length.was_cut(now);
    if now < before {
        tracing::info!(log_from = log_from.0, before, now, "the log was too long");
    }
    Ok(())
}

/// Writes a snapshot file, or has the one that was written count, as soon as that may be.
fn advance(shared: &Shared, candidate: &mut Option<Candidate>) -> Result<(), StoreError> {
    let wanted = LogIndex(shared.wanted_snapshot.load(Ordering::Relaxed));
    if candidate.as_ref().is_none_or(|candidate| candidate.index < wanted) {
        *candidate = write(shared)?;
    }
    let Some(Candidate { index, digest, started, .. }) = *candidate else { return Ok(()) };
    let is_attested = shared.comparison.attests(index, digest);
    // Nothing is known against this replica: the log must end somewhere, and without a peer that waits for the snapshot there
    // may be no majority.
    let is_too_large = shared.log.used_size() > LOGS * shared.log_length.limit();
    let is_wanted = wanted > LogIndex(0) && started.elapsed() >= PATIENCE;
    let is_overdue = shared.comparison.is_sound() && (is_too_large || is_wanted);
    if (is_attested || is_overdue)
        && let Some(candidate) = candidate.take()
    {
        if !is_attested {
            tracing::warn!(
                index = index.0,
                is_too_large,
                is_wanted,
                "no majority of the voters has said that this snapshot is right: it counts all the same"
            );
            shared.config.directory.set_unattested(candidate.index)?;
        }
        put_in_force(shared, &candidate)?;
    }
    Ok(())
}

/// Writes a snapshot file, which does not count yet. Nothing where the records of the state are not what they should be:
/// so this replica differs.
fn write(shared: &Shared) -> Result<Option<Candidate>, StoreError> {
    let started = Instant::now();
    let export = shared.state.export();
    let index = export.index();
    // Bytes reach their files before the state says so, so this covers whatever the image names.
    shared.files.pass(index);
    shared.files.sync()?;
    let header = export.header(shared.config.cluster);
    match prepare_snapshot(&shared.config.directory.snapshots_dir(), &header, export) {
        Ok(file) => Ok(Some(Candidate { file, index, digest: header.digest, started })),
        Err(StoreError::Rotten { found, expected }) => {
            let why = format!("its records add up to {found}, and not to {expected} as written");
            diverge(shared, &why)?;
            // What the files were changed under is asked for after a restart, too.
            shared.state.flush()?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// From now on it is what this replica starts from, and what peers are given; the log is cut behind it.
fn put_in_force(shared: &Shared, candidate: &Candidate) -> Result<(), StoreError> {
    let Candidate { file, index, started, .. } = candidate;
    let size = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    put_snapshot(file, &shared.config.directory.snapshots_dir(), *index)?;
    shared.files.forget(*index)?;
    let wanted = shared.wanted_snapshot.load(Ordering::Relaxed);
    if wanted <= index.0 {
        // Who has asked for more meanwhile asks again.
        shared.wanted_snapshot.store(0, Ordering::Relaxed);
    }
    let needed = needed(shared).min(*index);
    shared.log.compact_to(needed)?;
    shared.log_length.know_snapshot(*index, size);
    shared.log_length.was_cut(shared.log.used_size());
    tracing::info!(index = index.0, log_from = needed.0, size, took = ?started.elapsed(), "snapshot");
    Ok(())
}

/// The first index that a member may still need; nothing is known while the daemon stops. Who lags by more than the log
/// may grow gets a snapshot instead, and who gets one finds what comes after it, unless it takes too long.
fn needed(shared: &Shared) -> LogIndex {
    let (size, max) = (shared.log.used_size(), shared.config.max_log);
    let (answer, status) = tokio::sync::oneshot::channel();
    let asked = shared.driver.send(ToDriver::Status(answer));
    let Some(status) = asked.ok().and_then(|()| status.blocking_recv().ok()) else {
        return LogIndex(0);
    };
    let holds = |node| {
        let known = status.members.iter().find(|(member, ..)| *member == node);
        known.and_then(|(_, _, matched)| *matched)
    };
    let lent = shared.lent.wanted(holds, |node| shared.transport.is_connected(node));
    let lent = lent.filter(|_| size <= LOGS * shared.log_length.limit());
    let needed = if size > max { status.applied } else { status.needed };
    lent.map_or(needed, |lent| lent.min(needed))
}

impl Handle {
    /// The newest snapshot file of this node, for a peer whose log position was cut off, or whose state differs: the log
    /// from there on is kept for it for a while. Nothing before there is one that covers `at_least`; one is made then. Nor
    /// where this node may be wrong, and nobody has compared it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn lend_snapshot(
        &self,
        to: NodeId,
        at_least: LogIndex,
    ) -> Result<Option<File>, StoreError> {
        let newest = open_newest(&self.0.config.directory.snapshots_dir())?;
        let newest = match newest {
            Some((path, file)) => Some((read_snapshot(&path)?.0, file)),
            None => None,
        };
        let Some((header, file)) = newest.filter(|(header, _)| header.index >= at_least) else {
            if self.0.state.applied() >= at_least {
                self.0.wanted_snapshot.fetch_max(at_least.0, Ordering::Relaxed);
            }
            return Ok(None);
        };
        let comparison = &self.0.comparison;
        if !comparison.is_sound()
            && self.0.config.directory.unattested()? == Some(header.index)
            && !comparison.was_equal_at(header.index, header.digest)
        {
            return Ok(None);
        }
        tracing::info!(peer = to.0, index = header.index.0, "a snapshot goes to a peer");
        self.0.lent.lend(to, header.index);
        Ok(Some(file))
    }

    /// That a snapshot of this node waits for the voters to compare it, where it has done so for long.
    #[must_use]
    pub fn waits_for_comparison(&self) -> Option<String> {
        let (index, since) = (*self.0.unattested.0.lock())?;
        let seconds = since.elapsed().as_secs();
        (since.elapsed() >= TELLING).then(|| {
            format!(
                "a snapshot at entry {index} has waited for {seconds} s for a majority of the voters to have the same \
                 state, and the log grows meanwhile: bring back the voters that are away or do not apply entries"
            )
        })
    }

    /// It is still on its way.
    pub fn lends_on(&self, to: NodeId) {
        self.0.lent.lends_on(to);
    }
}
