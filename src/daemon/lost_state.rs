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
use super::starting::Starting;
use crate::config::Config;
use crate::node::{Fatal, Heard, Removal, Removals, monotonic};
use crate::rpc;
use crate::store::{self, DataDir, LogOptions, Recovered, StoreError};
use crate::types::LogIndex;

/// Between two rounds of asking the others.
const AGAIN: Duration = Duration::from_secs(1);
/// Pieces that have come and are not on the disk.
const PIECES: usize = 4;
/// Rounds between two lines of the log.
const TELL: u32 = 10;

/// What asking for a snapshot came to.
enum Taken {
    /// It is in place.
    Usable,
    /// Nothing has come that can be used.
    Nothing,
    /// This node is no member any more, a peer says.
    Refused(Removal),
}

/// The stores, agreeing with each other. It may take minutes, and can be given up at any point of it, as by a SIGKILL.
///
/// # Errors
/// When they cannot be made to.
pub(super) async fn recover(
    config: &Config,
    directory: &Arc<DataDir>,
    starting: &Starting,
) -> Result<Recovered> {
    loop {
        starting.says(
            "opening the stores; a state that is not to be believed is built anew from the snapshot file and the log",
        );
        let stores = directory.clone();
        let opening =
            tokio::task::spawn_blocking(move || store::recover(&stores, LogOptions::default()));
        let opened = opening.await.expect("a panic ends the daemon, and nothing cancels this");
        let (damage, from) = match opened {
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
        let is_member = take(directory, peers, from, &damage, starting)
            .await
            .map_err(|error| ending::not_started(directory, error))?;
        if !is_member {
            return Err(ending::ended(directory, Fatal::removed(directory.identity().node)));
        }
    }
}

/// Asks the peers in turn until one has sent what can be used; false where this node is no member any more. Fails where the
/// own disk refuses.
async fn take(
    directory: &DataDir,
    mut peers: Vec<String>,
    from: LogIndex,
    damage: &StoreError,
    starting: &Starting,
) -> Result<bool, StoreError> {
    let mut removals = Removals::default();
    let mut rounds = 0_u32;
    loop {
        for peer in peers.clone() {
            match take_from(directory, &peer, from).await? {
                Taken::Usable => return Ok(true),
                Taken::Nothing => {}
                Taken::Refused(removal) => {
                    let heard = removals.hear_of_asked(monotonic(), removal, &mut peers);
                    if heard == Heard::Certain {
                        return Ok(false);
                    }
                }
            }
        }
        if rounds.is_multiple_of(TELL) {
            let others = peers.join(", ");
            let line = format!(
                "the state of this node is lost ({damage}): waiting for a snapshot from one of {others}"
            );
            starting.says(&line);
            tracing::warn!("{line}");
        }
        rounds += 1;
        tokio::time::sleep(AGAIN).await;
    }
}

async fn take_from(directory: &DataDir, peer: &str, from: LogIndex) -> Result<Taken, StoreError> {
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
        return Ok(rpc::removal(&status).map_or(Taken::Nothing, Taken::Refused));
    }
    match store::replace_snapshot(directory, &file, from) {
        Err(error @ (StoreError::Corrupt { .. } | StoreError::Newer { .. })) => {
            tracing::warn!(peer, "its snapshot cannot be used: {error}");
            Ok(Taken::Nothing)
        }
        replaced => Ok(if replaced? { Taken::Usable } else { Taken::Nothing }),
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
