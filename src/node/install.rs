//! A node whose log position was cut off takes a peer's snapshot instead: its names and attributes. Bytes come after, as
//! anything that is missing.
//!
//! The file is received and a state is built from it while the node goes on; then everything stands still for as long
//! as it takes to put one in the place of the other. It is what a restart over that snapshot would do, and a restart
//! does it where this one is cut short.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::healing::{is_useless, put_off, room_for_another};
use super::pace::Pace;
use super::shared::{Shared, ToDriver};
use super::start::boot;
use crate::consensus::{Boot, Input};
use crate::store::{Received, StoreError, first_state_of_files};
use crate::types::{LogIndex, NodeId, SessionId};

/// Pieces of a snapshot that have come and are not on the disk.
const PIECES: usize = 4;
/// Bytes after which what has come is brought to the disk.
const WRITE_BACK_BYTES: usize = 8 << 20;

/// The driver waits to be told how to go on; nothing is applied or written to the log meanwhile.
pub(super) type Paused = oneshot::Sender<Option<Boot>>;

/// Takes the snapshot of `leader`, whose log begins at `first_index`, unless that is not needed any more; whether it did.
/// On the thread that writes snapshots: neither is under way while the other is.
pub(super) fn install(
    shared: &Arc<Shared>,
    leader: NodeId,
    first_index: LogIndex,
) -> Result<bool, StoreError> {
    let applied = shared.state.applied();
    if applied.next() >= first_index || shared.comparison.is_hindered() {
        return Ok(false);
    }
    let (carried_out, last) = (shared.files.carried_out(), shared.log.last_index());
    let at_least = LogIndex(first_index.0 - 1);
    // One that differs takes no state that is older than its files.
    let at_least = if shared.comparison.is_diverged() {
        at_least.max(first_state_of_files(applied, carried_out, shared.reached, last))
    } else {
        at_least
    };
    install_newer(shared, leader, at_least)
}

/// The same where it covers `at_least`.
pub(super) fn install_newer(
    shared: &Arc<Shared>,
    leader: NodeId,
    at_least: LogIndex,
) -> Result<bool, StoreError> {
    match receive(shared, leader, at_least)? {
        Some(received) => put_in_place(shared, received, leader),
        None => Ok(false),
    }
}

/// Puts a state in the place of this one while everything stands still, unless this one has got as far; whether it did.
pub(super) fn put_in_place(
    shared: &Arc<Shared>,
    received: Received,
    from: NodeId,
) -> Result<bool, StoreError> {
    let started = std::time::Instant::now();
    let index = received.index();
    let (paused, waiting) = oneshot::channel();
    let asked = shared.driver.send(ToDriver::Pause(paused));
    // Otherwise the daemon is stopping.
    let Some(go_on) = asked.ok().and_then(|()| waiting.blocking_recv().ok()) else {
        return Ok(false);
    };
    let found = shared.state.applied();
    // Otherwise the log has come after all.
    let is_newer = index > found || (index == found && shared.comparison.is_diverged());
    let boot = if is_newer { Some(switch(shared, received)?) } else { None };
    let is_switched = boot.is_some();
    if let Err(error) = shared.config.directory.remove_other_states() {
        tracing::info!(%error, "an old state stays until the next start");
    }
    // The driver ends only with the daemon.
    let _ = go_on.send(boot);
    if is_switched {
        // The core that begins anew knows nothing of it.
        shared.input(Input::Stands(shared.comparison.standing()));
        let what = if from == shared.node {
            "what this node's own snapshot and log lead to is in the place of its state"
        } else {
            "a peer's snapshot is installed"
        };
        tracing::info!(index = index.0, before = found.0, from = from.0, took = ?started.elapsed(), "{what}");
        shared.fetching.changed.notify_waiters();
    }
    Ok(is_switched)
}

/// Nothing where the peer cannot send it, what came is of no use, or there is no room for it: it is asked for again.
fn receive(
    shared: &Shared,
    leader: NodeId,
    at_least: LogIndex,
) -> Result<Option<Received>, StoreError> {
    let path = shared.config.directory.snapshots_dir().join("snap-of-a-peer");
    let received =
        room_for_another(shared).and_then(|()| receive_into(shared, &path, leader, at_least));
    match received {
        Err(error @ StoreError::Sled { .. }) => put_off(shared, &error),
        Err(error) if error.is_full() => put_off(shared, &error),
        received => {
            shared.comparison.can_again();
            return received;
        }
    }
    // It may be what fills the disk.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(StoreError::io("remove", &path)(error))
        }
        Ok(()) | Err(_) => Ok(None),
    }
}

fn receive_into(
    shared: &Shared,
    path: &Path,
    leader: NodeId,
    at_least: LogIndex,
) -> Result<Option<Received>, StoreError> {
    let (pieces, coming) = mpsc::channel(PIECES);
    let sending = shared.transport.fetch_snapshot(leader, at_least, pieces);
    let sent = shared.runtime.spawn(sending);
    let written = write(path, coming, &shared.runtime, shared.config.op_timeout)?;
    // It may have come to an end because nothing more came.
    let patience = shared.config.op_timeout;
    let ended = shared.runtime.block_on(async { tokio::time::timeout(patience, sent).await });
    let is_whole = ended.is_ok_and(|sent| sent.ok().flatten().is_some());
    if !is_whole {
        tracing::info!(
            peer = leader.0,
            bytes = written,
            "no whole snapshot has come; asking again"
        );
        return Ok(None);
    }
    match Received::prepare(&shared.config.directory, path) {
        Ok(received) => Ok(Some(received)),
        Err(error) if is_useless(&error) => {
            tracing::error!(peer = leader.0, "the snapshot of a peer cannot be used: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Writes what comes to a file and makes it durable. Answers how many bytes that is.
fn write(
    path: &Path,
    mut coming: mpsc::Receiver<bytes::Bytes>,
    runtime: &tokio::runtime::Handle,
    patience: Duration,
) -> Result<usize, StoreError> {
    let mut file = File::create(path).map_err(StoreError::io("create", path))?;
    let (mut written, mut unsynced) = (0, 0);
    // A peer whose disk hangs, or that trickles, must not keep this node from its own snapshots.
    let mut pace = Pace::new(patience);
    let mut next = || {
        let asked = std::time::Instant::now();
        let received = async { tokio::time::timeout(pace.left(), coming.recv()).await };
        let piece = runtime.block_on(received).ok().flatten()?;
        pace.came(piece.len(), asked.elapsed());
        Some(piece)
    };
    while let Some(piece) = next() {
        file.write_all(&piece).map_err(StoreError::io("write", path))?;
        written += piece.len();
        unsynced += piece.len();
        if unsynced >= WRITE_BACK_BYTES {
            unsynced = 0;
            file.sync_data().map_err(StoreError::io("fsync", path))?;
        }
    }
    file.sync_all().map_err(StoreError::io("fsync", path))?;
    Ok(written)
}

/// What was known of the old state is forgotten before anybody sees the new one, or with it.
fn switch(shared: &Shared, received: Received) -> Result<Boot, StoreError> {
    let index = received.index();
    let session = shared.mutations.session();
    shared.durability.skip_to(index);
    shared.mutations.skip();
    // Files are cut before the state says so.
    shared.cuts.begin();
    let adopted =
        received.install(&shared.config.directory, &shared.log, &shared.files, &shared.state)?;
    shared.cuts.end();
    tracing::info!(
        files_missing = adopted.missing,
        removed = adopted.removed,
        "files follow another state"
    );
    shared.comparison.state_replaced(&shared.state)?;
    shared.received.unapplied.write().applied(index);
    for (_, observer) in shared.observers.all().iter() {
        observer.state_replaced();
    }
    shared.meet_members()?;
    // It may be open there still, but what it holds is not known any more.
    if session != SessionId::CLUSTER {
        shared.session_ended(session);
    }
    shared.gate.look_again();
    boot(&shared.state)
}

/// The newest snapshot file, for a peer.
pub(super) fn open_newest(dir: &Path) -> Result<Option<(PathBuf, File)>, StoreError> {
    // Another one may be put in its place between finding and opening it.
    for _ in 0..3 {
        let Some(path) = crate::store::latest_snapshot(dir)? else { return Ok(None) };
        match File::open(&path) {
            Ok(file) => return Ok(Some((path, file))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(StoreError::io("open", &path)(source)),
        }
    }
    Ok(None)
}
