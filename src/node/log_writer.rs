//! The thread that makes the Raft log durable: whatever waits is one write and one fsync.

use std::sync::Arc;

use raft::eraftpb::{Entry, HardState};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use super::shared::Shared;
use crate::consensus::Input;
use crate::store::StoreError;

/// What the thread is given.
pub(super) enum Work {
    Write(Write),
    /// To be told once everything before it is done.
    Barrier(oneshot::Sender<()>),
}

/// One `Persist` effect.
pub(super) struct Write {
    pub(super) number: u64,
    pub(super) entries: Vec<Entry>,
    pub(super) hard_state: Option<HardState>,
}

/// At most about this much goes into one write.
const BATCH_BYTES: usize = 8 << 20;

/// Runs until the driver is gone, or until a write fails: then nothing is ever acknowledged again.
pub(super) fn run(shared: &Arc<Shared>, inbox: &mut UnboundedReceiver<Work>) {
    while let Some(first) = inbox.blocking_recv() {
        let mut barrier = None;
        match first {
            Work::Write(first) => match write_batch(shared, inbox, first, &mut barrier) {
                Ok(number) => shared.input(Input::Persisted { number }),
                Err(error) => {
                    shared.fail(&error);
                    return;
                }
            },
            Work::Barrier(waiting) => barrier = Some(waiting),
        }
        // Whoever waited may have gone.
        let _ = barrier.map(|waiting| waiting.send(()));
    }
}

/// Writes what waits, up to a barrier. Answers the number of the last of it.
fn write_batch(
    shared: &Shared,
    inbox: &mut UnboundedReceiver<Work>,
    first: Write,
    barrier: &mut Option<oneshot::Sender<()>>,
) -> Result<u64, StoreError> {
    let mut number = first.number;
    let mut entries = first.entries;
    let mut hard_state = first.hard_state;
    let mut bytes: usize = entries.iter().map(|entry| entry.data.len()).sum();
    while bytes < BATCH_BYTES
        && let Ok(next) = inbox.try_recv()
    {
        let next = match next {
            Work::Write(next) => next,
            Work::Barrier(waiting) => {
                *barrier = Some(waiting);
                break;
            }
        };
        // A later write replaces the tail of an earlier one, as a new leader does.
        if let Some(from) = next.entries.first() {
            entries.retain(|entry| entry.index < from.index);
        }
        bytes += next.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
        entries.extend(next.entries);
        hard_state = next.hard_state.or(hard_state);
        number = next.number;
    }
    shared.log.append(&entries, hard_state.as_ref(), true)?;
    Ok(number)
}
