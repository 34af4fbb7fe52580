//! Who is silent for longer than it used to be, and whose disk stands still.
//!
//! Suspicion is phi of the phi-accrual failure detector (Hayashibara and others, 2004), with exponentially distributed
//! times between messages: at phi, one silence in 10^phi is a false alarm.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use raft::Storage;

use super::core::{Core, REPEAT_TICKS};
use super::{Effect, PeerMessage};
use crate::types::{Monotonic, NodeId};

/// Times between messages that are remembered of each peer.
const REMEMBERED: usize = 64;
/// Nobody is expected to say something more often than this.
const SHORTEST: Duration = Duration::from_millis(50);
/// Whom to suspect: one false alarm in 10^8 silences.
const SUSPECTED: f64 = 8.0;
/// A disk that takes longer for one write stands still.
const STANDS_STILL: Duration = Duration::from_millis(500);

/// What is known of a peer's health.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Suspicion {
    /// How sure it is that the peer is gone.
    pub phi: f64,
    /// Since it was last heard, or since it is a member as far as this node knows.
    pub silent: Duration,
    /// How long its disk has had the write that it has not done; zero where it works.
    pub stalled: Duration,
}

impl Suspicion {
    /// Whether nothing should depend on it that could depend on another.
    #[must_use]
    pub fn is_suspected(&self) -> bool {
        self.phi >= SUSPECTED || !self.stalled.is_zero()
    }
}

/// What peers have said, and when.
#[derive(Debug, Default)]
pub(super) struct Suspicions {
    peers: BTreeMap<NodeId, Peer>,
    /// The others know that this disk stands still.
    told: bool,
}

#[derive(Debug)]
struct Peer {
    /// Or, before the first word, since when one is expected.
    heard: Monotonic,
    /// The last times between two messages, as far as they came apart.
    between: VecDeque<Duration>,
    /// What it has said of its disk, and when.
    stalled: (Duration, Monotonic),
}

impl Peer {
    fn new(now: Monotonic) -> Self {
        Self { heard: now, between: VecDeque::new(), stalled: (Duration::ZERO, now) }
    }
}

impl Suspicions {
    /// These are to speak from now on, where they were not before; of nobody else anything is kept.
    pub(super) fn expect(&mut self, nodes: &BTreeSet<NodeId>, now: Monotonic) {
        self.peers.retain(|node, _| nodes.contains(node));
        for node in nodes {
            self.peers.entry(*node).or_insert_with(|| Peer::new(now));
        }
    }

    pub(super) fn heard(&mut self, from: NodeId, now: Monotonic, patience: Duration) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let since = now.since(peer.heard);
        // What comes together is one sign of life.
        if since >= SHORTEST {
            // Whoever was away for an hour is not expected to be silent for as long again.
            peer.between.push_back(since.min(patience));
            if peer.between.len() > REMEMBERED {
                peer.between.pop_front();
            }
            peer.heard = now;
        }
    }

    pub(super) fn stalls(&mut self, from: NodeId, stalled: Duration, now: Monotonic) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.stalled = (stalled, now);
        }
    }

    pub(super) fn of(&self, node: NodeId, now: Monotonic, patience: Duration) -> Suspicion {
        let Some(peer) = self.peers.get(&node) else { return Suspicion::default() };
        let silent = now.since(peer.heard);
        let count = u32::try_from(peer.between.len()).expect("few are remembered");
        let sum: Duration = peer.between.iter().sum();
        let mean = if count == 0 { patience } else { (sum / count).max(SHORTEST) };
        let phi = silent.as_secs_f64() / mean.as_secs_f64() * std::f64::consts::LOG10_E;
        // Whoever says nothing more of its disk may be well again.
        let (stalled, said) = peer.stalled;
        let stalled = if now.since(said) < patience { stalled } else { Duration::ZERO };
        Suspicion { phi, silent, stalled }
    }
}

impl<S: Storage> Core<S> {
    /// What is known of a peer's health.
    #[must_use]
    pub fn suspicion(&self, node: NodeId) -> Suspicion {
        self.suspicions.of(node, self.now, self.config.session_ttl)
    }

    /// How long this disk has had the oldest write that it has not done.
    fn stalled(&self) -> Duration {
        self.persisting.front().map_or(Duration::ZERO, |(_, since)| self.now.since(*since))
    }

    /// How long this node's disk has had the write that it has not done; zero where it works.
    #[must_use]
    pub fn stands_still(&self) -> Duration {
        let stalled = self.stalled();
        if stalled >= STANDS_STILL { stalled } else { Duration::ZERO }
    }

    /// A disk that stands still is no reason for silence: the others are told.
    pub(super) fn tell_stall(&mut self) {
        let stalled = self.stalled();
        let stands_still = stalled >= STANDS_STILL;
        if !self.suspicions.told && !stands_still {
            return;
        }
        if stands_still && self.suspicions.told && !self.ticks.is_multiple_of(REPEAT_TICKS) {
            return;
        }
        self.suspicions.told = stands_still;
        let stalled = if stands_still { stalled } else { Duration::ZERO };
        let members: Vec<_> = self.membership().map(|(node, _)| node).collect();
        let others = members.into_iter().filter(|node| *node != self.config.node);
        let tell = |to| Effect::Send { to, message: PeerMessage::Stalled { stalled } };
        self.effects.extend(others.map(tell));
    }

    /// Hands leadership over where this node does not apply what was committed half a TTL ago, or its disk has had a
    /// write for as long, and another voter does: a leader that is stuck renews nobody, so everybody would wait for it.
    /// What the others have lately said of themselves counts, and not the roster: that is as old as what is applied here.
    pub(super) fn yield_if_stuck(&mut self) {
        let must_show = self.keeper.must_show(self.now);
        let stands_still = self.stalled() >= self.config.session_ttl / 2;
        if self.applied.index >= must_show && !stands_still {
            return;
        }
        let serving = |node| {
            let (applied, when) = self.heard.get(&node)?;
            let is_ahead = *applied >= must_show && self.now.since(*when) < self.config.session_ttl;
            is_ahead.then_some((self.answers(node), *applied, node))
        };
        if let Some((.., node)) = self.fit_to_lead().filter_map(serving).max() {
            self.transfer(Some(node));
        }
    }

    /// Has another voter lead: this one, whom a node that does not lead names to the leader; or, where this node leads, the
    /// one that holds most of the log.
    pub(super) fn transfer(&mut self, to: Option<NodeId>) {
        let best = || {
            let others = self.is_leader().then(|| self.fit_to_lead());
            others?.max_by_key(|node| (self.answers(*node), self.matched(*node)))
        };
        if let Some(to) = to.or_else(best) {
            // raft-rs ignores who has no vote, or leads.
            self.raft.transfer_leader(to.0);
        }
    }

    /// The other voters, but those of whom it is known that they are silent or that their disks stand still.
    pub(super) fn fit_to_lead(&self) -> impl Iterator<Item = NodeId> + '_ {
        let own = self.config.node;
        let voters = self.raft.raft.prs().conf().to_conf_state().take_voters();
        let others = voters.into_iter().map(NodeId).filter(move |node| *node != own);
        others.filter(|node| !self.suspicion(*node).is_suspected())
    }

    /// Whether a node has lately acknowledged something to this leader: what is sent to it arrives.
    fn answers(&self, node: NodeId) -> bool {
        self.raft.raft.prs().get(node.0).is_some_and(|progress| progress.recent_active)
    }
}

#[cfg(test)]
mod tests {
    use super::{BTreeSet, Duration, Monotonic, NodeId, Suspicions};

    const PATIENCE: Duration = Duration::from_secs(2);
    const NODE: NodeId = NodeId(2);

    fn expecting(now: Monotonic) -> Suspicions {
        let mut known = Suspicions::default();
        known.expect(&BTreeSet::from([NODE]), now);
        known
    }

    /// The same silence says more of a peer that talks often.
    #[test]
    fn suspicion_adapts() {
        let phi_of = |between: u64| {
            let (mut known, mut now) = (expecting(Monotonic(0)), Monotonic(0));
            for _ in 0..100 {
                now = now + Duration::from_millis(between);
                known.heard(NODE, now, PATIENCE);
            }
            known.of(NODE, now + Duration::from_secs(4), PATIENCE)
        };
        let (often, seldom) = (phi_of(100), phi_of(2000));
        assert!(often.is_suspected() && (often.phi - 17.4).abs() < 0.1, "{often:?}");
        assert!(!seldom.is_suspected() && (seldom.phi - 0.87).abs() < 0.01, "{seldom:?}");
        assert_eq!(often.silent, Duration::from_secs(4));
    }

    /// A peer that is dead when this node starts is not well for ever.
    #[test]
    fn who_never_speaks_is_suspected() {
        let start = Monotonic(0) + Duration::from_secs(1000);
        let known = expecting(start);
        let after = |seconds| known.of(NODE, start + Duration::from_secs(seconds), PATIENCE);
        assert!(!after(2).is_suspected(), "{:?}", after(2));
        assert!(after(60).is_suspected(), "{:?}", after(60));
        assert_eq!(after(60).silent, Duration::from_secs(60));
    }

    /// An outage of an hour is not what is expected next.
    #[test]
    fn who_was_away_for_long_is_suspected_as_soon_as_before() {
        let (mut known, mut now) = (expecting(Monotonic(0)), Monotonic(0));
        for number in 0..100 {
            let hour = Duration::from_secs(if number == 95 { 3600 } else { 0 });
            now = now + Duration::from_millis(100) + hour;
            known.heard(NODE, now, PATIENCE);
        }
        let silent = known.of(NODE, now + Duration::from_secs(4), PATIENCE);
        assert!(silent.is_suspected(), "{silent:?}");
    }

    #[test]
    fn nothing_is_kept_of_strangers() {
        let start = Monotonic(0) + Duration::from_secs(10);
        let mut known = expecting(start);
        (3..100).for_each(|node| known.heard(NodeId(node), start, PATIENCE));
        assert_eq!(known.peers.len(), 1);
        known.expect(&BTreeSet::from([NodeId(3)]), start);
        assert_eq!(known.peers.keys().collect::<Vec<_>>(), [&NodeId(3)]);
    }

    /// What a peer has said of its disk counts for as long as it goes on saying it.
    #[test]
    fn a_disk_that_stands_still_is_suspected() {
        let start = Monotonic(0) + Duration::from_secs(10);
        let mut known = expecting(start);
        known.stalls(NODE, Duration::from_secs(1), start);
        assert!(known.of(NODE, start, PATIENCE).is_suspected());
        known.stalls(NODE, Duration::ZERO, start);
        assert!(!known.of(NODE, start, PATIENCE).is_suspected());
        known.stalls(NODE, Duration::from_secs(1), start);
        let later = start + PATIENCE;
        assert_eq!(known.of(NODE, later, PATIENCE).stalled, Duration::ZERO);
    }
}
