//! What is missing and nobody waits for: fetched in the background, file after file, no faster than `heal_rate`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::bucket::Bucket;
use super::peers::{LONGEST, What};
use super::{AGAIN, Key, PIECE, piece};
use crate::node::Handle;
use crate::node::clock::monotonic;
use crate::types::ByteRange;

/// Between two rounds where nothing is missing, or nobody has it.
const IDLE: Duration = Duration::from_millis(200);
/// Files that are looked up at once.
const FILES: usize = 64;
/// Pieces of a file that are begun in one round: after them it is the next file's turn.
const PER_FILE: usize = 8;

/// Fetches what is missing, for as long as the node runs.
pub(in crate::node) async fn heal(handle: Handle) {
    let mut bucket = Bucket::new(handle.0.config.heal_rate);
    loop {
        if handle.files().is_full() {
            // What came could not be kept.
            tokio::time::sleep(IDLE).await;
            continue;
        }
        let began = monotonic();
        let mut any = false;
        let mut after = None;
        loop {
            let keys = handle.files().incomplete(after, FILES);
            let Some(last) = keys.last() else { break };
            after = Some(*last);
            for key in keys {
                any |= heal_file(&handle, key, &mut bucket).await;
            }
        }
        handle.0.fetching.forget_what_is_here(handle.files());
        if !any {
            // However many files nobody has, looking for them costs little.
            tokio::time::sleep(IDLE.max(20 * monotonic().since(began))).await;
        }
    }
}

/// Begins to fetch some of a file; false where there is nothing of it to begin with.
async fn heal_file(handle: &Handle, key: Key, bucket: &mut Bucket) -> bool {
    let fetching = &handle.0.fetching;
    let (files, peers) = (handle.files(), piece::connected(handle));
    let mut begun = 0;
    for (missing, version) in files.missing(key, ByteRange::from(0)) {
        if files.is_arriving(key, version) {
            continue;
        }
        let mut at = missing.start;
        while at < missing.end && begun < PER_FILE {
            let part = ByteRange { start: at, end: missing.end.min(at + bucket.piece(PIECE)) };
            at = part.end;
            let what = What { key, range: part, apart: false };
            if fetching.asked.choose(&peers, what, monotonic(), LONGEST).is_empty() {
                continue;
            }
            let wait = bucket.wait(monotonic());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            while fetching.waited_for.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(AGAIN / 10).await;
            }
            let slot = fetching.background.take(part.len()).await;
            let Some(claim) = fetching.under_way.claim(key, part, part.len()) else { continue };
            bucket.take(claim.range.len());
            begun += 1;
            let handle = handle.clone();
            tokio::spawn(async move {
                piece::fetch(&handle, claim, LONGEST).await;
                drop(slot);
                handle.0.fetching.changed.notify_waiters();
            });
        }
    }
    begun > 0
}
