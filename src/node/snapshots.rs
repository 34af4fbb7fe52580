//! The thread that writes snapshot files and cuts the log behind them, and installs those of peers.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc::Receiver;

use super::Handle;
use super::install::{install, open_newest};
use super::shared::{Shared, ToDriver};
use crate::fs::limits::FEATURE_LEVEL;
use crate::store::{SnapshotHeader, StoreError, read_snapshot, write_snapshot};
use crate::types::{LogIndex, NodeId, VolumeId};

/// The log behind a snapshot that is sent to a peer is kept for so long, after its last piece, so that the peer
/// finds it there afterwards.
const LENT_FOR: Duration = Duration::from_secs(600);

/// What the thread is to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    /// A snapshot of this node.
    Own,
    /// The snapshot of a leader, whose log begins only there.
    Of { leader: NodeId, first_index: LogIndex },
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
    fn wanted(&self, holds: impl Fn(NodeId) -> LogIndex) -> Option<LogIndex> {
        let mut lent = self.0.lock();
        lent.retain(|node, (index, since)| since.elapsed() < LENT_FOR && holds(*node) <= *index);
        lent.values().map(|(index, _)| *index).min()
    }
}

/// Runs until the apply thread and the driver are gone, or until this replica cannot go on.
pub(super) fn run(shared: &Arc<Shared>, due: &mut Receiver<Due>) {
    plan_next(shared, 0);
    while let Some(next) = due.blocking_recv() {
        let done = match next {
            Due::Own if !shared.snapshot_is_due() => continue,
            Due::Own => take(shared).map(|size| plan_next(shared, size)),
            Due::Of { leader, first_index } => install(shared, leader, first_index),
        };
        if let Err(error) = done {
            shared.fail(&error);
            return;
        }
    }
}

/// Writing snapshots costs at most about as much as writing the log does.
fn plan_next(shared: &Shared, last_snapshot: u64) {
    let growth = shared.config.snapshot_min_log.max(last_snapshot);
    shared.next_snapshot.store(shared.log.used_size() + growth, Ordering::Relaxed);
}

/// Writes a snapshot file and cuts the log behind it. Returns the file's size in bytes.
fn take(shared: &Shared) -> Result<u64, StoreError> {
    let started = Instant::now();
    let export = shared.state.export();
    let index = export.index();
    // Bytes reach their files before the state says so, so this covers whatever the image names.
    shared.files.pass(index);
    shared.files.sync()?;
    let header = SnapshotHeader {
        cluster: shared.config.cluster,
        volume: VolumeId::FIRST,
        index,
        term: export.term(),
        conf_state: export.conf_state().clone(),
        digest: export.digest(),
        feature_level: FEATURE_LEVEL,
    };
    let file = write_snapshot(&shared.config.directory.snapshots_dir(), &header, export)?;
    shared.files.forget(index)?;
    let size = std::fs::metadata(&file).map_or(0, |metadata| metadata.len());
    let needed = needed(shared).min(index);
    shared.log.compact_to(needed)?;
    tracing::info!(index = index.0, log_from = needed.0, size, took = ?started.elapsed(), "snapshot");
    Ok(size)
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
        known.and_then(|(_, _, matched)| *matched).unwrap_or_default()
    };
    let lent = shared.lent.wanted(holds).filter(|_| size <= 2 * max);
    let needed = if size > max { status.applied } else { status.needed };
    lent.map_or(needed, |lent| lent.min(needed))
}

impl Handle {
    /// The newest snapshot file of this node, for a peer whose log position was cut off, or who has lost its own: the log
    /// from there on is kept for it for a while. Nothing before there is one at `from` or later, which is made then.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn lend_snapshot(&self, to: NodeId, from: LogIndex) -> Result<Option<File>, StoreError> {
        let Some((path, file)) = open_newest(&self.0.config.directory.snapshots_dir())? else {
            return Ok(None);
        };
        let (header, _) = read_snapshot(&path)?;
        if header.index < from {
            if self.state().applied() < from {
                // A new one would be too old as well.
                return Ok(None);
            }
            self.0.next_snapshot.store(0, Ordering::Relaxed);
            // The thread may be at work on one, or at its end.
            let _ = self.0.due.upgrade().map(|due| due.try_send(Due::Own));
            return Ok(None);
        }
        tracing::info!(peer = to.0, index = header.index.0, "a snapshot goes to a peer");
        self.0.lent.lend(to, header.index);
        Ok(Some(file))
    }

    /// It is still on its way.
    pub fn lends_on(&self, to: NodeId) {
        self.0.lent.lends_on(to);
    }
}
