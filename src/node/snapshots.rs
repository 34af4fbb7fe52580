//! The thread that writes snapshot files and cuts the log behind them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc::Receiver;

use super::shared::{Shared, ToDriver};
use crate::store::{SnapshotHeader, StoreError, write_snapshot};
use crate::types::{LogIndex, VolumeId};

/// How records are encoded.
const FEATURE_LEVEL: u32 = 1;
/// However far a member lags, the log is cut when it holds this many bytes.
const MAX_LOG: u64 = 1 << 30;

/// Runs until the apply thread is gone, or until this replica cannot go on.
pub(super) fn run(shared: &Arc<Shared>, due: &mut Receiver<()>) {
    plan_next(shared, 0);
    while due.blocking_recv().is_some() {
        if !shared.snapshot_is_due() {
            continue;
        }
        match take(shared) {
            Ok(size) => plan_next(shared, size),
            Err(error) => {
                shared.fail(&error);
                return;
            }
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
    let started = std::time::Instant::now();
    let export = shared.state.export();
    let index = export.index();
    // Bytes reach their files before the state says so, so this covers whatever the image names.
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
    let file = write_snapshot(&shared.config.snapshots, &header, export)?;
    shared.files.forget(index)?;
    let size = std::fs::metadata(&file).map_or(0, |metadata| metadata.len());
    let needed = if shared.log.used_size() > MAX_LOG { index } else { needed(shared).min(index) };
    shared.log.compact_to(needed)?;
    tracing::info!(index = index.0, log_from = needed.0, size, took = ?started.elapsed(), "snapshot");
    Ok(size)
}

/// The first index that a member may still need; nothing is known while the daemon stops.
fn needed(shared: &Shared) -> LogIndex {
    let (answer, status) = tokio::sync::oneshot::channel();
    let asked = shared.driver.send(ToDriver::Status(answer));
    asked
        .ok()
        .and_then(|()| status.blocking_recv().ok())
        .map_or(LogIndex(0), |status| status.needed)
}
