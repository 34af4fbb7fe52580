//! Bytes that this replica lacks come from peers that have them: what somebody waits for first, then what its
//! reader will want next, the rest in the background.
//!
//! A peer answers with bytes of one version of the file. They are taken once this replica has applied that
//! version, and only where they are still missing: nothing that was written since can differ there. So a file that
//! is written, cut or removed meanwhile needs no further care, and what has been installed is not fetched again
//! after a restart.

mod around;
mod background;
mod bucket;
mod meter;
mod peers;
mod piece;
mod readers;
mod report;
mod slots;
mod under_way;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::meter::Meter;
use self::peers::Asked;
use self::readers::Readers;
use self::report::Nowhere;
use self::slots::Slots;
use self::under_way::UnderWay;
use super::handle::{Handle, NodeError};
use crate::fs::limits::CHECKSUM_BLOCK;
use crate::store::StoreError;
use crate::types::{ByteRange, Generation, Ino, LogIndex, NodeId};

pub(super) use background::heal;
pub use report::Missing;

/// Bytes that are asked for at once.
const PIECE: u64 = 1 << 20;
/// Requests that are under way at once, of each kind: small files need many.
const REQUESTS: usize = 64;
/// Memory for their answers, of each kind.
const BYTES: usize = 16 << 20;
/// Whoever waits for bytes that nobody has now looks again after this time.
const AGAIN: Duration = Duration::from_millis(200);

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
    /// Nobody has all of it: whoever has some gives the first part that it has. Also of blocks of which it lacks
    /// other bytes, so that nothing can prove what it has.
    pub apart: bool,
}

/// What a peer has answered.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The data_version that the bytes are of.
    pub version: LogIndex,
    /// Where in the file they begin.
    pub start: u64,
    /// All that was asked for, or one part of it where that was asked for. What lies behind the end of the file is
    /// zeros.
    pub data: Bytes,
}

/// What a replica says to a peer that asks it for bytes.
#[derive(Clone, Debug)]
pub enum Given {
    /// These.
    Bytes(Fetched),
    /// It lacks them, or some of them where all are wanted.
    Lacks,
    /// It cannot say now: see [`says_it_lacks`](crate::store::says_it_lacks); or the file changes all the time, or the bytes are on
    /// their way to it.
    NotNow,
}

impl Fetched {
    pub(super) fn range(&self) -> ByteRange {
        ByteRange::at(self.start, self.data.len() as u64)
    }

    /// Whether it is an answer to that.
    fn answers(&self, wanted: &Wanted) -> bool {
        let (range, asked) = (self.range(), wanted.range);
        let is_part = !range.is_empty() && asked.start <= range.start && range.end <= asked.end;
        self.version >= wanted.version && if wanted.apart { is_part } else { range == asked }
    }
}

/// What is under way.
#[derive(Debug)]
pub(super) struct Fetching {
    under_way: UnderWay,
    asked: Asked,
    readers: Mutex<Readers>,
    /// For what somebody waits for.
    urgent: Slots,
    /// For what somebody is going to read.
    ahead: Slots,
    background: Slots,
    /// Pieces that somebody waits for and that are being fetched: the background waits meanwhile.
    waited_for: AtomicUsize,
    meter: Mutex<Meter>,
    nowhere: Nowhere,
    /// By whoever installs parts of blocks. Before the lock of a layout.
    pub(super) completing: Mutex<()>,
    /// Told when something that was missing may be here, or is not being fetched any more.
    pub(super) changed: Notify,
}

/// Somebody waits, until this is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Fetching {
    pub(super) fn new() -> Self {
        let slots = || Slots::new(REQUESTS, BYTES);
        Self {
            under_way: UnderWay::default(),
            asked: Asked::default(),
            readers: Mutex::default(),
            urgent: slots(),
            ahead: slots(),
            background: slots(),
            waited_for: AtomicUsize::new(0),
            meter: Mutex::default(),
            nowhere: Nowhere::default(),
            completing: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// A peer can be asked: what it has not refused before it may have, whoever else lacks it.
    pub(super) fn lane_opened(&self, node: NodeId) {
        self.nowhere.ask(node);
    }

    /// The connection for bulk data to a peer is lost.
    pub(super) fn lane_lost(&self, node: NodeId) {
        self.asked.lost(node);
    }
}

impl Handle {
    /// Waits until bytes of a backing file are on this node.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] where that takes too long.
    pub async fn until_here(&self, key: Key, range: ByteRange) -> Result<(), NodeError> {
        let ahead = self.0.fetching.readers.lock().read(key, range);
        if let Some(ahead) = ahead {
            self.fetch_ahead(key, ahead);
        }
        let here = async {
            loop {
                let mut changed = std::pin::pin!(self.0.fetching.changed.notified());
                // From now on nothing is missed.
                changed.as_mut().enable();
                if self.files().missing(key, range).is_empty() {
                    return;
                }
                if !self.fetch_now(key, range).await {
                    // Somebody else is fetching it, or nobody has it now. Being late is no failure.
                    let _ = tokio::time::timeout(AGAIN, changed).await;
                }
            }
        };
        self.within(here).await
    }

    /// Bytes that are here have been read: whoever goes on will find the next ones here, too.
    pub fn has_read(&self, key: Key, range: ByteRange) {
        if self.files().are_in_place() {
            return;
        }
        let ahead = {
            let mut readers = self.0.fetching.readers.lock();
            if !readers.knows(key) {
                return;
            }
            if self.files().missing(key, ByteRange::from(0)).is_empty() {
                return readers.forget(key);
            }
            readers.read(key, range)
        };
        if let Some(ahead) = ahead {
            self.fetch_ahead(key, ahead);
        }
    }

    /// Fetches whole blocks of a range that nobody else is fetching; false where none of them came.
    async fn fetch_now(&self, key: Key, range: ByteRange) -> bool {
        let fetching = &self.0.fetching;
        let blocks = ByteRange {
            start: range.start / CHECKSUM_BLOCK * CHECKSUM_BLOCK,
            end: range.end.checked_next_multiple_of(CHECKSUM_BLOCK).unwrap_or(range.end),
        };
        let mut pieces = FuturesUnordered::new();
        for part in self.not_coming(key, blocks).await {
            while let Some(claim) = fetching.under_way.claim(key, part, PIECE) {
                pieces.push(async move {
                    let _slot = fetching.urgent.take(claim.range.len()).await;
                    let _waiting = Waiting::begin(&fetching.waited_for);
                    piece::fetch(self, claim, AGAIN).await
                });
            }
        }
        let mut came = false;
        while let Some(one) = pieces.next().await {
            came |= one;
            fetching.changed.notify_waiters();
        }
        came
    }

    /// Fetches what is missing of a range, while nobody waits for it.
    fn fetch_ahead(&self, key: Key, range: ByteRange) {
        if self.files().missing(key, range).is_empty() {
            return;
        }
        let handle = self.clone();
        self.0.runtime.spawn(async move {
            for missing in handle.not_coming(key, range).await {
                let mut at = missing.start;
                while at < missing.end {
                    let part = ByteRange { start: at, end: missing.end.min(at + PIECE) };
                    at = part.end;
                    tokio::spawn(fetch_part(handle.clone(), key, part));
                }
            }
        });
    }

    /// What is missing of a range and does not come by itself.
    async fn not_coming(&self, key: Key, range: ByteRange) -> Vec<ByteRange> {
        let handle = self.clone();
        // Whoever makes a stage holds up those who ask what is arriving, and waits for the disk.
        let looking = tokio::task::spawn_blocking(move || {
            let files = handle.files();
            let missing = files.missing(key, range).into_iter();
            let lacks = missing.filter(|(_, version)| !files.is_arriving(key, *version));
            lacks.map(|(part, _)| part).collect()
        });
        // This node is stopping otherwise.
        looking.await.unwrap_or_default()
    }

    /// What a peer wants, as far as this replica has it and can say so. Waits for the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    ///
    /// # Panics
    /// Where a piece does not fit into memory's addresses, which cannot be.
    pub fn give(&self, wanted: Wanted) -> Result<Given, StoreError> {
        let most = ByteRange::at(wanted.range.start, wanted.range.len().min(PIECE));
        let given = self.read_for_peer(&Wanted { range: most, ..wanted })?;
        // It may have been found wrong meanwhile.
        Ok(if matches!(given, Given::Lacks) && !self.is_sound() { Given::NotNow } else { given })
    }
}

/// Fetches a part that somebody is going to read.
async fn fetch_part(handle: Handle, key: Key, part: ByteRange) {
    let fetching = &handle.0.fetching;
    let _slot = fetching.ahead.take(part.len()).await;
    // Whoever needed it at once may have been here, or be about it.
    for (missing, _) in handle.files().missing(key, part) {
        if let Some(claim) = fetching.under_way.claim(key, missing, PIECE) {
            piece::fetch(&handle, claim, AGAIN).await;
            fetching.changed.notify_waiters();
        }
    }
}
