//! Opens the stores of a replica; one that has lost its state, and has its log, takes a peer's snapshot first.
//!
//! It does not take part in anything meanwhile. Its votes and all that it has acknowledged are in the log, which is whole
//! (decision 0023).

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::ending;
use crate::config::Config;
use crate::rpc;
use crate::store::{self, DataDir, LogOptions, Recovered, StoreError};
use crate::telemetry;
use crate::types::LogIndex;

/// Between two rounds of asking the others.
const AGAIN: Duration = Duration::from_secs(1);
/// Pieces that have come and are not on the disk.
const PIECES: usize = 4;
/// Rounds between two lines of the log.
const TELL: u32 = 10;

/// The stores, agreeing with each other.
///
/// # Errors
/// When they cannot be made to.
pub(super) async fn recover(config: &Config, directory: &Arc<DataDir>) -> Result<Recovered> {
    loop {
        // It takes as long as the log since the last snapshot is, or for as long as the disk does not answer.
        telemetry::notify_status(
            "reading its data directory: the state, and what the log has since",
        );
        let of = directory.clone();
        let recovering =
            tokio::task::spawn_blocking(move || store::recover(&of, LogOptions::default()));
        let (damage, from) = match recovering.await? {
            Ok(recovered) => return Ok(recovered),
            Err(StoreError::StateLost { damage, from }) => (damage, from),
            Err(error) => return Err(ending::not_started(directory, error)),
        };
        let mut peers = store::recorded_peers(directory.path());
        peers.extend(config.peers.iter().cloned());
        peers.retain(|peer| *peer != directory.identity().address);
        peers.sort_unstable();
        peers.dedup();
        if peers.is_empty() {
            let damage = StoreError::StateLost { damage, from };
            return Err(ending::not_started(directory, damage));
        }
        take(directory, &peers, from, &damage)
            .await
            .map_err(|error| ending::not_started(directory, error))?;
    }
}

/// Asks the peers in turn until one has sent what can be used. Fails where the own disk refuses.
async fn take(
    directory: &DataDir,
    peers: &[String],
    from: LogIndex,
    damage: &StoreError,
) -> Result<(), StoreError> {
    let mut rounds = 0_u32;
    loop {
        for peer in peers {
            if take_from(directory, peer, from).await? {
                return Ok(());
            }
        }
        if rounds.is_multiple_of(TELL) {
            let others = peers.join(", ");
            let line = format!(
                "the state of this node is lost ({damage}): waiting for a snapshot from one of {others}"
            );
            telemetry::notify_status(&line);
            tracing::warn!("{line}");
        }
        rounds += 1;
        tokio::time::sleep(AGAIN).await;
    }
}

/// False where the peer has sent nothing that can be used.
async fn take_from(directory: &DataDir, peer: &str, from: LogIndex) -> Result<bool, StoreError> {
    let identity = directory.identity();
    let file = directory.snapshots_dir().join("snap-of-a-peer");
    let (pieces, mut coming) = mpsc::channel::<Bytes>(PIECES);
    let path = file.clone();
    let writing = tokio::task::spawn_blocking(move || {
        let mut next = || coming.blocking_recv();
        write(&path, &mut next)
    });
    let own = (identity.cluster, identity.node, identity.address.as_str());
    let sent = rpc::fetch_snapshot(peer, own, from, pieces).await;
    let written = writing.await.expect("a panic ends the daemon, and nothing cancels this");
    written.map_err(|source| StoreError::Io { action: "write", path: file.clone(), source })?;
    if let Err(status) = sent {
        tracing::debug!(peer, "no snapshot: {}: {}", status.code(), status.message());
        return Ok(false);
    }
    match store::replace_snapshot(directory, &file, from) {
        Err(error @ (StoreError::Corrupt { .. } | StoreError::Newer { .. })) => {
            tracing::warn!(peer, "its snapshot cannot be used: {error}");
            Ok(false)
        }
        replaced => replaced,
    }
}

/// Durable on return.
fn write(path: &Path, next: &mut dyn FnMut() -> Option<Bytes>) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut file = std::fs::File::create(path)?;
    while let Some(piece) = next() {
        file.write_all(&piece)?;
    }
    file.sync_all()
}
