//! What takes the place of a state that is wrong: first what this replica's own snapshot file and log make of it, which
//! needs nobody and heals whatever went wrong once (a bit that flipped, a record that rotted); where that comes to the
//! same, a peer's. All of it on the thread that writes snapshots.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::divergence::diverge;
use super::install::{install_newer, put_in_place};
use super::shared::Shared;
use crate::consensus::membership_after;
use crate::store::{Retraced, StoreError, first_state_of_files};
use crate::types::{LogIndex, NodeId};

/// Where another state cannot be built, it is tried again after this long.
const AGAIN: Duration = Duration::from_secs(10);

/// What building the state a second time comes to.
enum Second {
    Built(Box<Retraced>),
    /// Snapshot file or log cannot be used.
    Useless,
    /// It cannot be built now, and nothing has changed.
    Later,
}

/// Has another state take the place of this one, which differs from the others', unless that was done; whether it did.
/// Entries up to `committed` are known to be committed.
pub(super) fn heal(
    shared: &Arc<Shared>,
    committed: LogIndex,
    peer: Option<NodeId>,
) -> Result<bool, StoreError> {
    if !shared.comparison.is_diverged() || shared.comparison.is_hindered() {
        return Ok(false);
    }
    let (applied, last) = (shared.state.applied(), shared.log.last_index());
    let at_least = first_state_of_files(applied, shared.files.carried_out(), shared.reached, last);
    if shared.comparison.may_retrace() {
        if at_least > committed {
            // It is in the log, and the others will say what becomes of it.
            return Ok(false);
        }
        match retrace(shared, at_least) {
            Second::Later => return Ok(false),
            Second::Built(own) if own.is_unproven(&shared.config.directory)? => {
                tracing::error!(
                    "nobody has compared this replica's snapshot, nor what its log leads to from there: it takes a peer's"
                );
            }
            Second::Built(own) if own.differs().is_none() => {
                let is_done = put_in_place(shared, (*own).into(), shared.node)?;
                if is_done {
                    shared.comparison.retraced();
                }
                return Ok(is_done);
            }
            Second::Built(own) => {
                let index = own.differs().unwrap_or_default();
                tracing::error!(
                    index = index.0,
                    "this replica's snapshot and log lead to another state than most have: it takes a peer's"
                );
            }
            Second::Useless => {}
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
    if shared.comparison.is_hindered() {
        return Ok(());
    }
    let expected = match retrace(shared, index) {
        Second::Built(own) => own.sample_at(index),
        Second::Useless => None,
        Second::Later => return Ok(()),
    };
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

/// Whatever hinders it: this replica goes on voting and storing entries, which it could not if it ended.
fn retrace(shared: &Shared, last: LogIndex) -> Second {
    let directory = &shared.config.directory;
    let following =
        |before: &_, entry: &_| membership_after(before, entry).map_err(|error| error.to_string());
    let started = Instant::now();
    let built = room_for_another(shared)
        .and_then(|()| Retraced::build(directory, &shared.log, last, &following));
    match built {
        Ok(own) => {
            shared.comparison.can_again();
            tracing::info!(index = last.0, took = ?started.elapsed(), "the state is built a second time");
            Second::Built(Box::new(own))
        }
        Err(error) if is_useless(&error) => {
            tracing::error!("the state cannot be built a second time: {error}");
            Second::Useless
        }
        Err(error) => {
            put_off(shared, &error);
            Second::Later
        }
    }
}

/// Whether what a state is built from is of no use, so that trying again comes to the same.
pub(super) fn is_useless(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Corrupt { .. }
            | StoreError::CorruptRecord { .. }
            | StoreError::NewerCommand { .. }
    )
}

/// Refuses where there is no room for another state beside this one: the log would have none then.
pub(super) fn room_for_another(shared: &Shared) -> Result<(), StoreError> {
    let directory = &shared.config.directory;
    // While it is built, sled may take twice as much.
    let needed = 2 * shared.state.size_on_disk()? + shared.space.for_log();
    if directory.available()? >= needed {
        return Ok(());
    }
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    Err(StoreError::io("build another state in", directory.path())(full))
}

/// Another state cannot be built now: what there is of it goes, and it is tried again later.
pub(super) fn put_off(shared: &Shared, error: &StoreError) {
    remove_other_states(shared);
    tracing::error!("another state cannot be built now: {error}; trying again in {AGAIN:?}");
    shared.comparison.cannot_now(error.to_string(), Instant::now() + AGAIN);
}

fn remove_other_states(shared: &Shared) {
    if let Err(error) = shared.config.directory.remove_other_states() {
        tracing::info!(%error, "another state stays until the next start");
    }
}
