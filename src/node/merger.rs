//! The thread that brings stages in place.

use std::sync::Arc;

use tokio::sync::mpsc::Receiver;

use super::shared::Shared;
use crate::store::StoreError;

/// Stages that were copied are kept for a replay until the file system is synced: it is when there are so many
/// bytes of them.
const KEPT: u64 = 256 << 20;

/// More staged files than this are brought to the disk at once before they are put in place.
const MANY: usize = 8;

/// Runs until the apply thread is gone, or until this replica cannot go on.
pub(super) fn run(shared: &Arc<Shared>, due: &mut Receiver<()>) {
    while due.blocking_recv().is_some() {
        if let Err(error) = merge(shared) {
            shared.fail(&error);
            return;
        }
    }
}

fn merge(shared: &Shared) -> Result<(), StoreError> {
    let mut merged = false;
    // One sync for many files costs less than one for each.
    if shared.files.staged_files() > MANY {
        shared.files.sync()?;
    }
    while shared.files.merge_some()? {
        merged = true;
    }
    if merged && shared.files.kept()? > KEPT {
        shared.files.sync()?;
    }
    Ok(())
}
