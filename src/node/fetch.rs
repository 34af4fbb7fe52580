//! Bytes that this replica lacks come from peers that have them: what somebody waits for first, the rest in the
//! background.
//!
//! A peer answers with bytes of one version of the file. They are taken once this replica has applied that
//! version, and only where they are still missing: nothing that was written since can differ there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use super::handle::{Handle, NodeError};
use crate::fs::query;
use crate::store::StoreError;
use crate::types::{ByteRange, Generation, Ino, LogIndex, NodeId};

/// Bytes that are asked for at once.
const PIECE: u64 = 1 << 20;
/// Pieces that are under way at once.
const AT_ONCE: usize = 8;
/// How long to wait where nobody has what is missing, or nothing is.
const IDLE: Duration = Duration::from_millis(200);
/// Files that are looked at in a round.
const FILES: usize = 64;

/// A backing file.
type Key = (Ino, Generation);

/// What a peer is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Of which inode.
    pub ino: Ino,
    /// Of which life of its bytes.
    pub generation: Generation,
    /// Which of them.
    pub range: ByteRange,
    /// The data_version that is needed, or a later one.
    pub version: LogIndex,
}

/// What a peer has answered.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The data_version that the bytes are of.
    pub version: LogIndex,
    /// All that was asked for, from its first byte on. What is not there is zeros.
    pub data: Bytes,
}

/// What is under way.
#[derive(Debug)]
pub(super) struct Fetching {
    /// What somebody waits for.
    urgent: Mutex<BTreeMap<Key, Vec<ByteRange>>>,
    /// Pieces under way, by their first bytes.
    under_way: Mutex<BTreeSet<(Key, u64)>>,
    /// How many each peer is asked for.
    asked: Mutex<BTreeMap<NodeId, usize>>,
    slots: Arc<Semaphore>,
    wake: Notify,
    /// Told when something that was missing may be here.
    pub(super) changed: Notify,
}

impl Fetching {
    pub(super) fn new() -> Self {
        Self {
            urgent: Mutex::default(),
            under_way: Mutex::default(),
            asked: Mutex::default(),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            wake: Notify::new(),
            changed: Notify::new(),
        }
    }
}

impl Handle {
    /// Waits until bytes of a backing file are on this node.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] after `op_timeout`.
    pub async fn until_here(&self, key: Key, range: ByteRange) -> Result<(), NodeError> {
        let files = self.files();
        let here = async {
            loop {
                let mut changed = std::pin::pin!(self.0.fetching.changed.notified());
                // From now on nothing is missed.
                changed.as_mut().enable();
                if files.missing(key, range).is_empty() {
                    return;
                }
                self.0.fetching.urgent.lock().entry(key).or_default().push(range);
                self.0.fetching.wake.notify_one();
                changed.await;
            }
        };
        let waited = tokio::time::timeout(self.op_timeout(), here).await;
        waited.map_err(|_| NodeError::Deadline)
    }

    /// What a peer wants: nothing where this replica does not have it. Waits for the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn give(&self, wanted: Wanted) -> Result<Option<Fetched>, StoreError> {
        let given = self.read_for_peer(&wanted, wanted.range.len().min(PIECE))?;
        Ok(given.map(|(version, data)| Fetched { version, data: data.into() }))
    }
}

/// Fetches what is missing, for as long as the node runs.
pub(super) async fn fetch(handle: Handle) {
    loop {
        let mut found = false;
        for (key, part, version) in next(&handle) {
            let slots = handle.0.fetching.slots.clone();
            let Ok(slot) = slots.acquire_owned().await else { return };
            if !handle.0.fetching.under_way.lock().insert((key, part.start)) {
                continue;
            }
            found = true;
            let handle = handle.clone();
            tokio::spawn(async move {
                let (ino, generation) = key;
                let wanted = Wanted { ino, generation, range: part, version };
                if let Err(error) = fetch_piece(&handle, wanted).await {
                    tracing::warn!(%ino, %error, "missing bytes could not be stored");
                }
                handle.0.fetching.under_way.lock().remove(&(key, part.start));
                drop(slot);
            });
        }
        if !found {
            let _ = tokio::time::timeout(IDLE, handle.0.fetching.wake.notified()).await;
        }
    }
}

/// Pieces to fetch next: what somebody waits for, else some of the rest.
fn next(handle: &Handle) -> Vec<(Key, ByteRange, LogIndex)> {
    let files = handle.files();
    if files.are_in_place() {
        handle.0.fetching.urgent.lock().clear();
        return Vec::new();
    }
    let urgent = std::mem::take(&mut *handle.0.fetching.urgent.lock());
    let mut wanted: Vec<_> = urgent
        .into_iter()
        .flat_map(|(key, ranges)| ranges.into_iter().map(move |range| (key, range)))
        .collect();
    if wanted.is_empty() {
        let some = files.incomplete(FILES).into_iter();
        wanted.extend(some.map(|key| (key, ByteRange::from(0))));
    }
    let mut pieces = Vec::new();
    for (key, range) in wanted {
        for (missing, version) in files.missing(key, range) {
            if files.is_arriving(key, version) {
                continue;
            }
            let mut at = missing.start;
            while at < missing.end && pieces.len() < 4 * AT_ONCE {
                let piece = ByteRange { start: at, end: missing.end.min(at + PIECE) };
                pieces.push((key, piece, version));
                at = piece.end;
            }
        }
    }
    pieces
}

async fn fetch_piece(handle: &Handle, wanted: Wanted) -> Result<(), StoreError> {
    for node in peers_by_load(handle) {
        *handle.0.fetching.asked.lock().entry(node).or_default() += 1;
        let fetched = handle.0.transport.fetch(node, wanted).await;
        if let Some(asked) = handle.0.fetching.asked.lock().get_mut(&node) {
            *asked -= 1;
        }
        let Some(fetched) = fetched else { continue };
        if fetched.data.len() as u64 != wanted.range.len()
            || !applied(handle, fetched.version).await
        {
            continue;
        }
        let handle = handle.clone();
        let stored = tokio::task::spawn_blocking(move || handle.take_fetched(&wanted, &fetched));
        if stored.await.unwrap_or(Ok(true))? {
            return Ok(());
        }
        tracing::warn!(ino = %wanted.ino, peer = %node, "bytes of a peer are not what checksums here say");
    }
    // Nobody has it now.
    tokio::time::sleep(IDLE).await;
    Ok(())
}

/// The connected peers, those that are asked for least first.
fn peers_by_load(handle: &Handle) -> Vec<NodeId> {
    let members = query::members(&handle.state()).unwrap_or_default();
    let asked = handle.0.fetching.asked.lock();
    let mut peers: Vec<_> = members
        .into_iter()
        .map(|member| NodeId(member.node))
        .filter(|node| *node != handle.node() && handle.0.transport.is_connected(*node))
        .map(|node| (asked.get(&node).copied().unwrap_or(0), node))
        .collect();
    peers.sort_unstable();
    peers.into_iter().map(|(_, node)| node).collect()
}

/// Waits until this replica has applied an entry; false where that takes too long.
pub(super) async fn applied(handle: &Handle, index: LogIndex) -> bool {
    let until = async {
        while handle.state().applied() < index {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(handle.op_timeout(), until).await.is_ok()
}
