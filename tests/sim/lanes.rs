//! Connections between nodes on which bytes of stages travel, beside the messages of the core: in order, or not at
//! all. What was under way on one that breaks is lost; both ends notice some time later. One whose receiver does not
//! move is given up by its sender: what is under way still arrives, when the receiver moves again, and then its end.

use std::collections::{BTreeMap, BTreeSet};

use quorumfs::types::StageId;

use crate::clock::{MILLI, Nanos};
use crate::node::NodeEvent;
use crate::world::{Event, World};

/// What a node sends of its stages.
#[derive(Clone, Debug)]
pub enum ToStage {
    Data {
        id: StageId,
        offset: u64,
        data: Vec<u8>,
    },
    /// "Do you hold everything that I have sent of this stage on disk?"
    Mark {
        id: StageId,
        mark: u64,
    },
    Abandon {
        id: StageId,
    },
}

/// The other end of a connection.
#[derive(Debug, Default)]
pub struct Incoming {
    /// Those that may be incomplete when the connection ends.
    pub stages: BTreeSet<StageId>,
    /// Those of which something was not taken in.
    pub failed: BTreeSet<StageId>,
}

/// All connections, by sender and receiver; each has its number.
#[derive(Debug, Default)]
pub struct Lanes {
    open: BTreeMap<(usize, usize), u64>,
    /// Those that are given up, of which something may still arrive.
    given_up: BTreeMap<(usize, usize), u64>,
    made: u64,
    /// When the last that was sent arrives, in each direction of each pair.
    last_arrivals: BTreeMap<(usize, usize), Nanos>,
    /// Receivers that take in bytes slowly, and until when.
    slow_until: BTreeMap<usize, Nanos>,
}

impl Lanes {
    pub fn number(&self, from: usize, to: usize) -> Option<u64> {
        self.open.get(&(from, to)).copied()
    }

    /// A receiver takes in bytes slowly for a time: stages of several senders are then complete long after their
    /// entries.
    pub fn slow_down(&mut self, receiver: usize, until: Nanos) {
        self.slow_until.insert(receiver, until);
    }
}

impl World {
    pub fn connect_lane_later(&mut self, node: usize, peer: usize) {
        let delay = self.random.within(10 * MILLI, 200 * MILLI);
        self.after(delay, node, NodeEvent::ConnectLane { peer });
    }

    pub fn connect_lane(&mut self, node: usize, peer: usize) {
        if self.lanes.number(node, peer).is_some() {
            return;
        }
        if self.lanes.given_up.contains_key(&(node, peer)) {
            return self.connect_lane_later(node, peer);
        }
        let listens = self.nodes[peer].daemon.is_some() && self.nodes[peer].backlog.is_none();
        if listens && self.network.is_open(node, peer) && self.network.is_open(peer, node) {
            self.lanes.made += 1;
            self.lanes.open.insert((node, peer), self.lanes.made);
        } else {
            self.connect_lane_later(node, peer);
        }
    }

    /// Sends on a connection, if it is still that one.
    pub fn send_staged(&mut self, node: usize, peer: usize, lane: u64, message: ToStage) {
        if self.lanes.number(node, peer) != Some(lane) {
            return;
        }
        if self.random.chance(2) {
            return self.give_up_lane(node, peer);
        }
        if let Some(delay) = self.carry_in_order(node, peer) {
            self.schedule(delay, Event::Staged { from: node, to: peer, lane, message });
        } else {
            self.break_lane(node, peer);
        }
    }

    /// Answers a mark that came on a connection.
    pub fn answer_mark(&mut self, node: usize, from: usize, lane: u64, mark: u64, holds: bool) {
        if self.lanes.number(from, node) != Some(lane) {
            return;
        }
        if let Some(delay) = self.carry_in_order(node, from) {
            self.schedule(delay, Event::Marked { from: node, to: from, lane, mark, holds });
        } else {
            self.break_lane(from, node);
        }
    }

    /// When what is sent now arrives: after all that was sent before it. Never, where the connection breaks.
    fn carry_in_order(&mut self, from: usize, to: usize) -> Option<Nanos> {
        let mut delay = self.network.carry_stream(&mut self.random, from, to)?;
        if self.lanes.slow_until.get(&to).is_some_and(|until| self.now < *until) {
            delay += self.random.skewed(MILLI, 1000 * MILLI);
        }
        let last = self.lanes.last_arrivals.entry((from, to)).or_default();
        let arrives = (self.now + delay).max(*last + 1);
        *last = arrives;
        Some(arrives - self.now)
    }

    /// Something arrives on a connection; false where it does not.
    pub fn arrives(
        &mut self,
        sender: usize,
        receiver: usize,
        from: usize,
        to: usize,
        lane: u64,
    ) -> bool {
        let given_up = self.lanes.given_up.get(&(sender, receiver)).copied();
        if given_up.or(self.lanes.number(sender, receiver)) != Some(lane) {
            return false;
        }
        let is_open = self.network.is_open(from, to) && self.nodes[to].daemon.is_some();
        if !is_open {
            self.break_lane(sender, receiver);
        }
        is_open
    }

    /// What waits at the sender for a receiver that does not move is dropped.
    fn give_up_lane(&mut self, node: usize, peer: usize) {
        let Some(lane) = self.lanes.open.remove(&(node, peer)) else { return };
        self.coverage.count("stages: connections given up");
        self.lanes.given_up.insert((node, peer), lane);
        self.after(1, node, NodeEvent::LaneLost { peer });
        // The end comes after everything else.
        let last = self.lanes.last_arrivals.get(&(node, peer)).copied().unwrap_or_default();
        let end = last.max(self.now) - self.now + self.random.skewed(MILLI, 5000 * MILLI);
        self.schedule(end, Event::LaneDrained { from: node, to: peer, lane });
    }

    /// A receiver has come to the end of what it was sent before it was given up.
    pub fn lane_drained(&mut self, node: usize, peer: usize, lane: u64) {
        if self.lanes.given_up.get(&(node, peer)) == Some(&lane) {
            self.lanes.given_up.remove(&(node, peer));
            self.after(1, peer, NodeEvent::LaneEnded { from: node, lane });
            self.connect_lane_later(node, peer);
        }
    }

    pub fn break_lane(&mut self, node: usize, peer: usize) {
        if let Some(lane) = self.lanes.given_up.get(&(node, peer)).copied() {
            return self.lane_drained(node, peer, lane);
        }
        let Some(lane) = self.lanes.open.remove(&(node, peer)) else { return };
        self.coverage.count("stages: connections broken");
        let [one, other] = [(); 2].map(|()| self.random.skewed(MILLI, 500 * MILLI));
        self.after(one, node, NodeEvent::LaneLost { peer });
        self.after(other, peer, NodeEvent::LaneEnded { from: node, lane });
        self.connect_lane_later(node, peer);
    }

    /// The daemon of a node has died.
    pub fn break_lanes_of(&mut self, node: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.break_lane(node, other);
            self.break_lane(other, node);
        }
    }
}
