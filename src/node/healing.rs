//! What takes the place of a state that is wrong: first what this replica's own snapshot file and log make of it, which
//! needs nobody and heals whatever went wrong once (a bit that flipped, a record that rotted); where that comes to the
//! same, a peer's. All of it on the thread that writes snapshots.

use std::sync::Arc;

use super::divergence::diverge;
use super::install::{install_newer, put_in_place};
use super::shared::Shared;
use crate::consensus::membership_after;
use crate::store::{Retraced, StoreError, first_state_of_files};
use crate::types::{LogIndex, NodeId};

/// Has another state take the place of this one, which differs from the others', unless that was done; whether it did.
/// Entries up to `committed` are known to be committed.
pub(super) fn heal(
    shared: &Arc<Shared>,
    committed: LogIndex,
    peer: Option<NodeId>,
) -> Result<bool, StoreError> {
    if !shared.comparison.is_diverged() {
        return Ok(false);
    }
    let (applied, last) = (shared.state.applied(), shared.log.last_index());
    let at_least = first_state_of_files(applied, shared.files.carried_out(), shared.reached, last);
    if shared.comparison.may_retrace() {
        if at_least > committed {
            // It is in the log, and the others will say what becomes of it.
            return Ok(false);
        }
        match retrace(shared, at_least)? {
            Some(own) if own.differs().is_none() => {
                let is_done = put_in_place(shared, own.into(), shared.node)?;
                if is_done {
                    shared.comparison.retraced();
                }
                return Ok(is_done);
            }
            Some(own) => {
                let index = own.differs().unwrap_or_default();
                tracing::error!(
                    index = index.0,
                    "this replica's snapshot and log lead to another state than most have: it takes a peer's"
                );
            }
            None => {}
        }
        shared.comparison.retracing_fails();
        remove_other_states(shared);
    }
    let Some(peer) = peer else { return Ok(false) };
    install_newer(shared, peer, at_least)
}

/// Where the voters differ and no majority is known: whether this replica's own log says something else than its state.
/// Then it is wrong, whoever else is.
pub(super) fn examine(shared: &Arc<Shared>) -> Result<(), StoreError> {
    let Some((index, found)) = shared.comparison.to_examine() else { return Ok(()) };
    let own = retrace(shared, index)?;
    let expected = own.as_ref().and_then(|own| own.sample_at(index));
    drop(own);
    remove_other_states(shared);
    shared.comparison.examined(index);
    match expected.filter(|expected| *expected != found) {
        Some(expected) => {
            let why = format!(
                "at entry {index} its digest was {found}, but its snapshot and log lead to {expected}"
            );
            diverge(shared, &why)?;
            shared.state.flush()
        }
        None => Ok(()),
    }
}

/// Nothing where snapshot file or log cannot be used.
fn retrace(shared: &Shared, last: LogIndex) -> Result<Option<Retraced>, StoreError> {
    let following =
        |before: &_, entry: &_| membership_after(before, entry).map_err(|error| error.to_string());
    let started = std::time::Instant::now();
    match Retraced::build(&shared.config.directory, &shared.log, last, &following) {
        Ok(own) => {
            tracing::info!(index = last.0, took = ?started.elapsed(), "the state is built a second time");
            Ok(Some(own))
        }
        Err(error @ StoreError::Corrupt { .. }) => {
            tracing::error!("the state cannot be built a second time: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn remove_other_states(shared: &Shared) {
    if let Err(error) = shared.config.directory.remove_other_states() {
        tracing::info!(%error, "another state stays until the next start");
    }
}
