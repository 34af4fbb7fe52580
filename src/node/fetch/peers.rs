//! Which peer to ask: the least loaded one that has not said lately that it does not have the bytes. Pure, but for
//! its locks.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Key, Wanted};
use crate::types::{ByteRange, Monotonic, NodeId};

/// After the first refusal a peer is left alone for so long, after each further one for twice as long.
const FIRST: Duration = Duration::from_millis(200);
pub(super) const LONGEST: Duration = Duration::from_secs(30);
/// Refusals that are remembered at least, before those that are over are forgotten.
const REMEMBERED: usize = 4096;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct What {
    pub(super) key: Key,
    pub(super) range: ByteRange,
    /// See [`Wanted::apart`].
    pub(super) apart: bool,
}

impl What {
    pub(super) fn of(wanted: &Wanted) -> Self {
        let Wanted { ino, generation, range, apart, .. } = *wanted;
        Self { key: (ino, generation), range, apart }
    }
}

/// What peers are asked for, and have refused.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Bytes that each is asked for.
    load: Mutex<BTreeMap<NodeId, u64>>,
    refusals: Mutex<Refusals>,
}

#[derive(Debug, Default)]
struct Refusals {
    all: HashMap<(NodeId, What), Refusal>,
    /// When there are so many, those that are over are forgotten.
    many: usize,
}

#[derive(Debug)]
struct Refusal {
    at: Monotonic,
    pause: Duration,
    /// It has said so: otherwise it did not answer.
    lacks: bool,
}

/// A peer is being asked, until this is dropped.
#[derive(Debug)]
pub(super) struct Load<'a> {
    all: &'a Asked,
    node: NodeId,
    bytes: u64,
}

impl Asked {
    /// Those of some peers that may be asked now, the least loaded first; `patience` is the longest to leave one
    /// alone.
    pub(super) fn choose(
        &self,
        peers: &[NodeId],
        what: What,
        now: Monotonic,
        patience: Duration,
    ) -> Vec<NodeId> {
        let refusals = self.refusals.lock();
        let is_over = |refusal: &Refusal| now.since(refusal.at) >= refusal.pause.min(patience);
        let may = |node: &NodeId| refusals.all.get(&(*node, what)).is_none_or(is_over);
        let mut chosen: Vec<_> = peers.iter().copied().filter(may).collect();
        drop(refusals);
        let load = self.load.lock();
        chosen.sort_by_key(|node| (load.get(node).copied().unwrap_or(0), *node));
        chosen
    }

    /// Whether all of some peers have said last that they lack it.
    pub(super) fn lacked_by_all(&self, peers: &[NodeId], what: What) -> bool {
        let refusals = self.refusals.lock();
        let lacks = |node: &NodeId| refusals.all.get(&(*node, what)).is_some_and(|r| r.lacks);
        !peers.is_empty() && peers.iter().all(lacks)
    }

    pub(super) fn begin(&self, node: NodeId, bytes: u64) -> Load<'_> {
        *self.load.lock().entry(node).or_default() += bytes;
        Load { all: self, node, bytes }
    }

    /// A peer did not give what it was asked for.
    pub(super) fn refused(&self, node: NodeId, what: What, lacks: bool, now: Monotonic) {
        let mut refusals = self.refusals.lock();
        if refusals.all.len() >= refusals.many.max(REMEMBERED) {
            // Whoever is asked again and again stays, and is left alone for longer and longer.
            refusals.all.retain(|_, refusal| now.since(refusal.at) <= 2 * refusal.pause);
            refusals.many = 2 * refusals.all.len();
        }
        let before = refusals.all.get(&(node, what)).map(|refusal| refusal.pause);
        let pause = before.map_or(FIRST, |before| (2 * before).min(LONGEST));
        refusals.all.insert((node, what), Refusal { at: now, pause, lacks });
    }

    /// The connection to a peer is lost: it may be another one when it comes back.
    pub(super) fn lost(&self, node: NodeId) {
        self.refusals.lock().all.retain(|(peer, _), _| *peer != node);
    }

    /// Somebody gave it: what these peers have refused does not matter any more.
    pub(super) fn given(&self, peers: &[NodeId], what: What) {
        let mut refusals = self.refusals.lock();
        for node in peers {
            refusals.all.remove(&(*node, what));
        }
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        if let Some(load) = self.all.load.lock().get_mut(&self.node) {
            *load -= self.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Asked, Duration, FIRST, LONGEST, Monotonic, NodeId};
    use crate::types::{ByteRange, Generation, Ino};

    const PEERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn what(ino: u64) -> super::What {
        super::What { key: (Ino(ino), Generation(1)), range: ByteRange::at(0, 9), apart: false }
    }

    fn choose(asked: &Asked, what: super::What, now: Monotonic) -> Vec<NodeId> {
        asked.choose(&PEERS, what, now, LONGEST)
    }

    #[test]
    fn the_least_loaded_peer_comes_first() {
        let asked = Asked::default();
        let now = Monotonic(0);
        let _one = asked.begin(NodeId(1), 100);
        let two = asked.begin(NodeId(2), 200);
        assert_eq!(choose(&asked, what(1), now), [NodeId(3), NodeId(1), NodeId(2)]);
        drop(two);
        assert_eq!(choose(&asked, what(1), now), [NodeId(2), NodeId(3), NodeId(1)]);
    }

    #[test]
    fn who_refuses_is_left_alone_for_longer_and_longer() {
        let asked = Asked::default();
        let mut now = Monotonic(0);
        let mut pause = FIRST;
        for _ in 0..12 {
            asked.refused(NodeId(2), what(1), true, now);
            let almost = now + pause - Duration::from_millis(1);
            assert_eq!(choose(&asked, what(1), almost), [NodeId(1), NodeId(3)]);
            assert_eq!(choose(&asked, what(2), now), PEERS, "other bytes it may have");
            let hurry = asked.choose(&PEERS, what(1), now + FIRST, FIRST);
            assert_eq!(hurry, PEERS, "somebody waits");
            now = now + pause;
            assert_eq!(choose(&asked, what(1), now), PEERS);
            pause = (2 * pause).min(LONGEST);
        }
        asked.given(&PEERS, what(1));
        assert_eq!(choose(&asked, what(1), Monotonic(0)), PEERS);
    }

    #[test]
    fn only_who_says_so_lacks_bytes() {
        let asked = Asked::default();
        let lacked = |asked: &Asked| asked.lacked_by_all(&PEERS, what(1));
        assert!(!lacked(&asked) && !asked.lacked_by_all(&[], what(1)));
        for node in PEERS {
            asked.refused(node, what(1), node != NodeId(3), Monotonic(0));
        }
        assert!(!lacked(&asked), "one did not answer");
        asked.refused(NodeId(3), what(1), true, Monotonic(0));
        assert!(lacked(&asked));
        asked.lost(NodeId(3));
        assert!(!lacked(&asked));
    }
}
