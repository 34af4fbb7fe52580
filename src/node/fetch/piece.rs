//! One piece: asked for, checked, installed.

use std::time::Duration;

use super::under_way::Claim;
use super::{Fetched, Wanted};
use crate::node::Handle;
use crate::node::blocks::Taken;
use crate::node::clock::monotonic;
use crate::store::StoreError;
use crate::types::{ByteRange, NodeId};

/// Fetches what is still missing of a claimed range, from whoever has it; a peer that has refused it is left alone
/// for `patience` at most. Whether that was worth it: nothing is missing there any more, or less than before.
pub(super) async fn fetch(handle: &Handle, claim: Claim, patience: Duration) -> bool {
    let ino = claim.key.0;
    match fetch_claimed(handle, &claim, patience).await {
        Ok(came) => came,
        Err(error) => {
            // A full disk, for example: what did not come stays missing.
            tracing::warn!(%ino, %error, "missing bytes could not be stored");
            false
        }
    }
}

async fn fetch_claimed(
    handle: &Handle,
    claim: &Claim,
    patience: Duration,
) -> Result<bool, StoreError> {
    let fetching = &handle.0.fetching;
    let missing = handle.files().missing(claim.key, claim.range);
    let (Some((first, _)), Some((last, _))) = (missing.first(), missing.last()) else {
        return Ok(true);
    };
    let range = ByteRange { start: first.start, end: last.end };
    let version = missing.iter().map(|(_, version)| *version).max().unwrap_or_default();
    let (ino, generation) = claim.key;
    let wanted = Wanted { ino, generation, range, version };
    let what = (claim.key, range.start);
    let connected = connected(handle);
    for node in fetching.asked.choose(&connected, what, monotonic(), patience) {
        let load = fetching.asked.begin(node, range.len());
        let asked = handle.0.transport.fetch(node, wanted);
        let answer = tokio::time::timeout(handle.op_timeout() / 3, asked).await.ok().flatten();
        drop(load);
        let lacks = matches!(answer, Some(None));
        if let Some(Some(fetched)) = answer
            && fetched.data.len() as u64 == range.len()
            && handle.until_applied(fetched.version).await
        {
            match install(handle, wanted, fetched).await {
                Ok(Taken::Kept) => {
                    fetching.asked.given(&connected, what);
                    fetching.came(claim.key, range);
                    return Ok(true);
                }
                Ok(Taken::NoRoom) => {
                    // It would come in vain for some time, from whomever.
                    fetching.asked.refused(node, what, false, monotonic());
                    return Ok(false);
                }
                Ok(Taken::Wrong) => {
                    tracing::warn!(%ino, peer = %node, "bytes of a peer are not what checksums here say");
                }
                Err(error) => {
                    // A full disk does not get better by asking at once again.
                    fetching.asked.refused(node, what, false, monotonic());
                    return Err(error);
                }
            }
        }
        fetching.asked.refused(node, what, lacks, monotonic());
    }
    if fetching.asked.lacked_by_all(&connected, what) {
        let (handle, key) = (handle.clone(), claim.key);
        let is_everybody = is_everybody(&handle, &connected);
        let found = tokio::task::spawn_blocking(move || {
            let is_proven = handle.find_here(key, range)?;
            Ok::<_, StoreError>(
                is_proven || (is_everybody && handle.files().believe_at_last(key, range)?),
            )
        });
        // It ends where the daemon stops.
        if found.await.unwrap_or(Ok(false))? {
            return Ok(true);
        }
        fetching.nobody_has(claim.key, range);
    }
    Ok(false)
}

async fn install(handle: &Handle, wanted: Wanted, fetched: Fetched) -> Result<Taken, StoreError> {
    let handle = handle.clone();
    let installed = tokio::task::spawn_blocking(move || handle.take_fetched(&wanted, &fetched));
    // It ends where the daemon stops.
    installed.await.unwrap_or(Ok(Taken::Kept))
}

/// Whether these are all that may have what this replica lacks.
fn is_everybody(handle: &Handle, connected: &[NodeId]) -> bool {
    let placed = handle.0.state.conf_state();
    let mut others = placed.voters.iter().chain(&placed.voters_outgoing).chain(&placed.learners);
    others.all(|id| *id == handle.node().0 || connected.contains(&NodeId(*id)))
}

/// The peers that can be asked. Also those that are removed and still have a place: they keep it until most of the others hold
/// what they hold.
pub(super) fn connected(handle: &Handle) -> Vec<NodeId> {
    let transport = &handle.0.transport;
    let can_be_asked = |node: &NodeId| transport.stage_lane(*node).is_some();
    transport.peers().into_iter().filter(can_be_asked).collect()
}
