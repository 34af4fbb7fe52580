//! One piece: asked for, checked, installed.

use std::time::Duration;

use super::peers::What;
use super::under_way::Claim;
use super::{Fetched, Key, Wanted};
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

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    /// These bytes are here now.
    Kept(ByteRange),
    NoRoom,
    /// They would have completed this block, and are not what goes with the rest of it.
    Misfit(ByteRange),
    /// Nobody gave any; `lacked` where somebody said that it lacks them.
    Nothing {
        lacked: bool,
    },
}

async fn fetch_claimed(
    handle: &Handle,
    claim: &Claim,
    patience: Duration,
) -> Result<bool, StoreError> {
    let missing = handle.files().missing(claim.key, claim.range);
    let (Some((first, _)), Some((last, _))) = (missing.first(), missing.last()) else {
        return Ok(true);
    };
    let range = ByteRange { start: first.start, end: last.end };
    let version = missing.iter().map(|(_, version)| *version).max().unwrap_or_default();
    let (ino, generation) = claim.key;
    let wanted = Wanted { ino, generation, range, version, apart: false };
    let mut silent = Vec::new();
    match ask(handle, wanted, patience, &mut silent).await? {
        Came::Kept(_) => Ok(true),
        Came::NoRoom | Came::Nothing { lacked: false } => Ok(false),
        Came::Nothing { lacked: true } => fetch_apart(handle, claim, patience, silent).await,
        Came::Misfit(block) => {
            let lacked = lacking(handle, claim);
            fetch_block(handle, claim.key, block, patience, &mut silent).await?;
            Ok(lacking(handle, claim) < lacked)
        }
    }
}

/// How many bytes of a claimed range are missing.
fn lacking(handle: &Handle, claim: &Claim) -> u64 {
    let missing = handle.files().missing(claim.key, claim.range);
    missing.into_iter().map(|(part, _)| part.len()).sum()
}

/// What there was of a block, and what came of it, are not of the same bytes: only who has all of it can prove what it has.
async fn fetch_block(
    handle: &Handle,
    key: Key,
    block: ByteRange,
    patience: Duration,
    silent: &mut Vec<NodeId>,
) -> Result<(), StoreError> {
    let missing = handle.files().missing(key, block);
    let Some(version) = missing.into_iter().map(|(_, version)| version).max() else {
        return Ok(());
    };
    let wanted = Wanted { ino: key.0, generation: key.1, range: block, version, apart: false };
    match ask(handle, wanted, patience, silent).await? {
        Came::Kept(_) | Came::NoRoom => {}
        Came::Misfit(_) | Came::Nothing { .. } => {
            let (fetching, asked) = (&handle.0.fetching, connected(handle));
            let is_sound = handle.has_replayed();
            if is_sound && fetching.asked.lacked_by_all(&asked, What::of(&wanted)) {
                fetching.nobody_has(key, block, &asked);
            }
        }
    }
    Ok(())
}

/// Nobody has all of a claimed range: one has this part, another one that. What is missing in the end that all have said
/// to lack is nowhere.
async fn fetch_apart(
    handle: &Handle,
    claim: &Claim,
    patience: Duration,
    mut silent: Vec<NodeId>,
) -> Result<bool, StoreError> {
    let fetching = &handle.0.fetching;
    let (ino, generation) = claim.key;
    // What came may be condemned again with what it completed.
    let (lacked, mut from) = (lacking(handle, claim), claim.range.start);
    while let Some((range, version)) = handle
        .files()
        .missing(claim.key, ByteRange { start: from, ..claim.range })
        .into_iter()
        .next()
    {
        let wanted = Wanted { ino, generation, range, version, apart: true };
        match ask(handle, wanted, patience, &mut silent).await? {
            // What lies before it somebody else may have.
            Came::Kept(_) => {}
            Came::NoRoom => break,
            Came::Misfit(block) => {
                fetch_block(handle, claim.key, block, patience, &mut silent).await?;
                from = block.end.clamp(range.end, claim.range.end);
            }
            Came::Nothing { .. } => {
                let asked = connected(handle);
                // What this replica asks for it may have from a state that is wrong, or old.
                if handle.has_replayed()
                    && fetching.asked.lacked_by_all(&asked, What::of(&wanted))
                    && !find_here(handle, claim.key, range, is_everybody(handle, &asked)).await?
                {
                    fetching.nobody_has(claim.key, range, &asked);
                }
                from = range.end;
            }
        }
    }
    Ok(lacking(handle, claim) < lacked)
}

/// Asks one peer after the other, until one has given something: none of those that were `silent` already.
async fn ask(
    handle: &Handle,
    wanted: Wanted,
    patience: Duration,
    silent: &mut Vec<NodeId>,
) -> Result<Came, StoreError> {
    let fetching = &handle.0.fetching;
    let (what, ino) = (What::of(&wanted), wanted.ino);
    let connected = connected(handle);
    let mut lacked = false;
    for node in fetching.asked.choose(&connected, what, monotonic(), patience) {
        if silent.contains(&node) {
            continue;
        }
        let load = fetching.asked.begin(node, wanted.range.len());
        let asked = handle.0.transport.fetch(node, wanted);
        let answer = tokio::time::timeout(handle.op_timeout() / 3, asked).await.ok().flatten();
        drop(load);
        let lacks = matches!(answer, Some(None));
        lacked |= lacks;
        if answer.is_none() {
            silent.push(node);
        }
        if let Some(Some(fetched)) = answer
            && fetched.answers(&wanted)
            && handle.until_applied(fetched.version).await
        {
            let range = fetched.range();
            match install(handle, wanted, fetched).await {
                Ok(Taken::Kept) => {
                    fetching.asked.given(&connected, what);
                    fetching.came((wanted.ino, wanted.generation), range);
                    return Ok(Came::Kept(range));
                }
                Ok(Taken::NoRoom) => {
                    // It would come in vain for some time, from whomever.
                    fetching.asked.refused(node, what, false, monotonic());
                    return Ok(Came::NoRoom);
                }
                Ok(Taken::Misfit(block)) => {
                    fetching.asked.refused(node, what, false, monotonic());
                    return Ok(Came::Misfit(block));
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
    Ok(Came::Nothing { lacked })
}

async fn install(handle: &Handle, wanted: Wanted, fetched: Fetched) -> Result<Taken, StoreError> {
    let handle = handle.clone();
    let installed = tokio::task::spawn_blocking(move || handle.take_fetched(&wanted, &fetched));
    // It ends where the daemon stops.
    installed.await.unwrap_or(Ok(Taken::Kept))
}

/// No peer has these bytes: whether some are in the backing file all the same, and count.
async fn find_here(
    handle: &Handle,
    key: Key,
    range: ByteRange,
    is_last: bool,
) -> Result<bool, StoreError> {
    let handle = handle.clone();
    let found = tokio::task::spawn_blocking(move || {
        let is_proven = handle.find_here(key, range)?;
        Ok(is_proven || (is_last && handle.files().believe_at_last(key, range)?))
    });
    // It ends where the daemon stops.
    found.await.unwrap_or(Ok(false))
}

/// Whether these are all that may have what this replica lacks.
fn is_everybody(handle: &Handle, connected: &[NodeId]) -> bool {
    let all = handle.members().with_a_place();
    all.iter().all(|node| *node == handle.node() || connected.contains(node))
}

/// The peers that can be asked. Also those that are removed and still have a place: they keep it until most of the others hold
/// what they hold.
pub(super) fn connected(handle: &Handle) -> Vec<NodeId> {
    let transport = &handle.0.transport;
    let can_be_asked = |node: &NodeId| transport.stage_lane(*node).is_some();
    transport.peers().into_iter().filter(can_be_asked).collect()
}
