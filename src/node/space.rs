//! Room on disks: what the voters say of theirs, and what that leaves to this mount.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::durability::{has_all, voters};
use super::transport::ToPeer;
use super::{Handle, clock};
use crate::consensus::Input;
use crate::store::StoreError;
use crate::types::{LogIndex, NodeId};

/// How often a node looks at its disk, and tells the others.
const EVERY: Duration = Duration::from_millis(500);

/// What the disk of a node takes in before it is down to the node's reserve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceReport {
    /// Still.
    pub free_bytes: u64,
    /// If there was nothing on it.
    pub total_bytes: u64,
}

/// What a node has on its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnDisk {
    /// All that came up to this entry.
    pub synced: LogIndex,
    /// All of it that any connected node has.
    pub holds: LogIndex,
}

/// What is known of the disks.
#[derive(Debug)]
pub(super) struct Space {
    node: NodeId,
    reserve: u64,
    known: Mutex<Known>,
    /// What this mount may take until the next look.
    left: AtomicU64,
    /// The others wait to be told.
    pub(super) look_again: Notify,
}

#[derive(Debug, Default)]
struct Known {
    reports: BTreeMap<NodeId, SpaceReport>,
    of_quorum: SpaceReport,
    /// No quorum takes in anything.
    is_full: bool,
    /// What was left after the last look.
    given: u64,
}

impl Space {
    /// Nothing is known yet, and nothing refused.
    pub(super) fn new(node: NodeId, reserve: u64) -> Self {
        let (known, look_again) = (Mutex::default(), Notify::new());
        Self { node, reserve, known, left: AtomicU64::new(u64::MAX), look_again }
    }

    pub(super) fn heard(&self, node: NodeId, report: SpaceReport) {
        self.known.lock().reports.insert(node, report);
    }

    /// Of other nodes nothing is kept.
    pub(super) fn retain(&self, is_known: impl Fn(NodeId) -> bool) {
        self.known.lock().reports.retain(|node, _| is_known(*node));
    }

    pub(super) fn of_quorum(&self) -> SpaceReport {
        self.known.lock().of_quorum
    }

    pub(super) fn take(&self, bytes: u64) -> bool {
        let taken = |left: u64| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    /// What of the reserve is for the log alone.
    pub(super) fn for_log(&self) -> u64 {
        self.reserve / 8
    }

    /// What of the reserve is for bytes that are acknowledged already, where `available` bytes are left in all. The log
    /// and a snapshot keep half of it; unless no quorum has room: then these bytes may be nowhere else, and they keep no
    /// more than it takes to end what was on its way, and to delete.
    fn of_reserve(&self, available: u64, own: SpaceReport) -> u64 {
        let kept = if self.known.lock().is_full { self.for_log() } else { self.reserve / 2 };
        available.saturating_sub(kept).saturating_sub(own.free_bytes)
    }

    /// Looks at what is known now. Who cannot be reached helps nobody, as long as the others are a quorum.
    fn look(&self, voters: &[NodeId], is_connected: impl Fn(NodeId) -> bool, own: SpaceReport) {
        let quorum = voters.len() / 2 + 1;
        let reached = voters.iter().filter(|node| **node == self.node || is_connected(**node));
        let reached: Vec<_> = reached.copied().collect();
        let judged = if reached.len() < quorum { voters } else { &reached };
        let mut known = self.known.lock();
        known.reports.insert(self.node, own);
        let of_quorum = of_quorum(&known.reports, judged, quorum);
        known.of_quorum = of_quorum.unwrap_or(own);
        known.is_full = of_quorum.is_some_and(|space| space.free_bytes == 0);
        // What was taken since the last look may not have come to the disks yet.
        let taken = known.given.saturating_sub(self.left.load(Ordering::Relaxed));
        known.given = of_quorum.map_or(u64::MAX, |space| space.free_bytes.saturating_sub(taken));
        self.left.store(known.given, Ordering::Relaxed);
    }
}

/// What at least `quorum` of these nodes take in: none where too few have said anything. Who has said
/// nothing yet is believed to have room.
fn of_quorum(
    reports: &BTreeMap<NodeId, SpaceReport>,
    nodes: &[NodeId],
    quorum: usize,
) -> Option<SpaceReport> {
    let mut known: Vec<_> = nodes.iter().filter_map(|node| reports.get(node)).copied().collect();
    known.sort_unstable_by_key(|report| std::cmp::Reverse(report.free_bytes));
    let silent = nodes.len() - known.len();
    known.get(quorum.checked_sub(silent + 1)?).copied()
}

/// Looks at this node's disk and tells the others of it. Runs for ever.
pub(super) async fn watch(handle: Handle) {
    let mut every = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = handle.0.space.look_again.notified() => {}
        }
        let shared = handle.0.clone();
        // A disk that does not answer holds up nobody else.
        let look = tokio::task::spawn_blocking(move || -> Result<(), StoreError> {
            let space = shared.files.statvfs()?;
            let above_reserve =
                |blocks: u64| (blocks * space.f_frsize).saturating_sub(shared.space.reserve);
            let own = SpaceReport {
                free_bytes: above_reserve(space.f_bavail),
                // What only root may take does not count.
                total_bytes: above_reserve(space.f_blocks - space.f_bfree + space.f_bavail),
            };
            // Bytes that are in doubt may go: also those that were here before another state took the place of this one,
            // which may happen meanwhile.
            let comparison = &shared.comparison;
            let (counts, standing) = (comparison.counts(), comparison.standing());
            let durable = shared.files.durable();
            let holds = if has_all(&shared) { shared.files.imaged().max(durable) } else { durable };
            let synced = durable.min(counts).min(comparison.counts());
            let holds = comparison.standing().holds(standing.holds(holds));
            let on_disk = OnDisk { synced, holds };
            // Also to those who are removed: one of them may lead still.
            for node in shared.transport.peers() {
                shared.transport.send(node, ToPeer::Disk(own, on_disk, clock::wall()));
            }
            let voters = voters(&shared);
            shared.durability.heard(shared.node, synced, &voters);
            shared.input_later(Input::Holds { node: shared.node, index: holds });
            let is_connected = |node| shared.transport.is_connected(node);
            shared.space.look(&voters, is_connected, own);
            let available = space.f_bavail * space.f_frsize;
            shared.files.set_room(own.free_bytes, shared.space.of_reserve(available, own));
            Ok(())
        });
        if let Ok(Err(error)) = look.await {
            tracing::warn!(%error, "cannot look at the space of this node's disk");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{NodeId, Space, SpaceReport};

    const VOTERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn report(free_bytes: u64) -> SpaceReport {
        SpaceReport { free_bytes, total_bytes: 1000 }
    }

    #[test]
    fn what_a_quorum_has_counts() {
        let space = Space::new(NodeId(1), 0);
        assert!(space.take(u64::MAX), "nothing is known yet");
        space.look(&VOTERS, |_| true, report(0));
        assert!(space.take(1 << 60), "the others may have room");
        space.heard(NodeId(2), report(0));
        space.look(&VOTERS, |_| true, report(0));
        assert!(!space.take(1), "whatever the third one has");
        space.heard(NodeId(3), report(500));
        space.look(&VOTERS, |_| true, report(100));
        assert_eq!(space.of_quorum(), report(100), "two have so much");
        space.look(&VOTERS, |_| true, report(900));
        assert_eq!(space.of_quorum(), report(500));
        space.look(&[NodeId(1)], |_| true, report(7));
        assert_eq!(space.of_quorum(), report(7));
    }

    #[test]
    fn half_of_the_reserve_is_for_what_is_acknowledged_unless_nobody_has_room() {
        let space = Space::new(NodeId(1), 1000);
        space.heard(NodeId(2), report(500));
        space.heard(NodeId(3), report(500));
        space.look(&VOTERS, |_| true, report(200));
        assert_eq!(space.of_reserve(1200, report(200)), 500);
        space.look(&VOTERS, |_| true, report(0));
        assert_eq!(space.of_reserve(800, report(0)), 300, "the others keep it");
        assert_eq!(space.of_reserve(400, report(0)), 0);
        space.heard(NodeId(2), report(0));
        space.look(&VOTERS, |_| true, report(0));
        assert_eq!(space.of_reserve(400, report(0)), 275);
        let silent = Space::new(NodeId(1), 1000);
        silent.look(&VOTERS, |_| true, report(0));
        assert_eq!(silent.of_reserve(800, report(0)), 300, "the others may have room");
    }

    #[test]
    fn who_is_gone_does_not_count_unless_too_many_are() {
        let space = Space::new(NodeId(1), 0);
        space.heard(NodeId(2), report(500));
        space.heard(NodeId(3), report(0));
        space.look(&VOTERS, |_| true, report(300));
        assert_eq!(space.of_quorum(), report(300));
        space.look(&VOTERS, |node| node == NodeId(3), report(300));
        assert_eq!(space.of_quorum(), report(0), "a quorum is left, and one of it is full");
        space.look(&VOTERS, |node| node == NodeId(2), report(300));
        assert_eq!(space.of_quorum(), report(300));
        space.look(&VOTERS, |_| false, report(300));
        assert_eq!(space.of_quorum(), report(300), "that there is no quorum is said otherwise");
    }

    #[test]
    fn what_is_taken_between_two_looks_is_bounded() {
        let space = Space::new(NodeId(1), 0);
        space.look(&[NodeId(1)], |_| true, report(100));
        assert!(space.take(60));
        assert!(!space.take(60) && space.take(40));
        assert!(!space.take(1));
        // It may be on its way to the disk still.
        space.look(&[NodeId(1)], |_| true, report(120));
        assert!(space.take(20) && !space.take(1));
        space.look(&[NodeId(1)], |_| true, report(120));
        assert!(space.take(100) && !space.take(1));
        space.look(&[NodeId(1)], |_| true, report(120));
        space.look(&[NodeId(1)], |_| true, report(120));
        assert!(space.take(120));
    }
}
