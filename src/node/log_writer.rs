//! The thread that makes the Raft log durable: whatever waits is one write and one fsync.

use std::sync::Arc;

use raft::eraftpb::{Entry, HardState};
use tokio::sync::mpsc::UnboundedReceiver;

use super::shared::Shared;
use crate::consensus::Input;
use crate::store::StoreError;

/// One `Persist` effect.
pub(super) struct Write {
    pub(super) number: u64,
    pub(super) entries: Vec<Entry>,
    pub(super) hard_state: Option<HardState>,
}

/// At most about this much goes into one write.
const BATCH_BYTES: usize = 8 << 20;

/// Runs until the driver is gone, or until a write fails: then nothing is ever acknowledged again.
pub(super) fn run(shared: &Arc<Shared>, inbox: &mut UnboundedReceiver<Write>) {
    while let Some(first) = inbox.blocking_recv() {
        let mut number = first.number;
        if let Err(error) = write_batch(shared, inbox, first, &mut number) {
            shared.fail(&error);
            return;
        }
        shared.input(Input::Persisted { number });
    }
}

fn write_batch(
    shared: &Shared,
    inbox: &mut UnboundedReceiver<Write>,
    first: Write,
    number: &mut u64,
) -> Result<(), StoreError> {
    let mut entries = first.entries;
    let mut hard_state = first.hard_state;
    let mut bytes: usize = entries.iter().map(|entry| entry.data.len()).sum();
    while bytes < BATCH_BYTES
        && let Ok(next) = inbox.try_recv()
    {
        // A later write replaces the tail of an earlier one, as a new leader does.
        if let Some(from) = next.entries.first() {
            entries.retain(|entry| entry.index < from.index);
        }
        bytes += next.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
        entries.extend(next.entries);
        hard_state = next.hard_state.or(hard_state);
        *number = next.number;
    }
    shared.log.append(&entries, hard_state.as_ref(), true)
}
