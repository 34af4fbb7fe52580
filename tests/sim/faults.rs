//! What goes wrong, and how it ends.

use std::collections::BTreeSet;

use quorumfs::consensus::Input;

use crate::clock::{MILLI, SECOND};
use crate::divergence::Wrong;
use crate::network::Direction;
use crate::random::Random;
use crate::world::{Event, World};

/// Kinds of faults.
const KINDS: u64 = 20;

/// The kinds that a run has: most have some but not all, so that others meet more often.
pub fn choose_kinds(random: &mut Random) -> Vec<u64> {
    let kinds: Vec<u64> = (0..KINDS).filter(|_| random.chance(600)).collect();
    if kinds.len() < 4 { (0..KINDS).collect() } else { kinds }
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub enum Cure {
    Restart { node: usize },
    Network,
    Weather,
    Resume { node: usize },
}

impl World {
    /// From now on, things go wrong.
    pub fn begin_faults(&mut self) {
        self.stormy = true;
        self.schedule(0, Event::Fault);
    }

    /// Something goes wrong.
    pub fn strike(&mut self) {
        if !self.stormy {
            return;
        }
        self.faults += 1;
        let victim = self.random.index(self.nodes.len());
        let leader = self.leader().unwrap_or(victim);
        let kind = match self.random.pick(&self.fault_kinds) {
            0 => self.kill(victim, false, "fault: process killed"),
            1 => self.kill(victim, true, "fault: power lost"),
            2 => {
                let power_lost = self.random.chance(500);
                self.kill(leader, power_lost, "fault: leader crashed")
            }
            3 => self.lose_all_power(),
            4 => {
                self.nodes[victim].dies_after_effects = Some(self.random.within(1, 30));
                "fault: killed between effects"
            }
            5 => self.cut_off(&BTreeSet::from([victim]), None, "fault: node cut off"),
            6 => self.cut_off(&BTreeSet::from([leader]), None, "fault: leader cut off"),
            7 => self.cut_off_minority(),
            8 => {
                let direction = self.random.pick(&[Direction::In, Direction::Out]);
                let node = self.random.pick(&[victim, leader]);
                self.cut_off(&BTreeSet::from([node]), Some(direction), "fault: one-way partition")
            }
            9 => self.cut_one_link(victim),
            10 => self.storm(),
            11 => {
                let until = self.now + self.random.within(SECOND, 5 * SECOND);
                self.nodes[victim].slow_disk_until = until;
                "fault: slow disk"
            }
            12 => {
                let until = self.now + self.random.within(SECOND / 2, 6 * SECOND);
                self.nodes[victim].applier_stuck_until = until;
                self.nodes[victim].kernel_is_stuck = self.random.chance(500);
                "fault: stuck applier"
            }
            13 => {
                self.input_later(leader, Input::TransferLeader { to: None });
                self.pump(leader);
                "fault: leadership handed over"
            }
            14 => {
                let node = self.random.pick(&[victim, leader]);
                self.pause(node)
            }
            15 => self.replace_member(victim),
            16 => {
                let until = self.now + self.random.within(SECOND, 10 * SECOND);
                self.lanes.slow_down(victim, until);
                "fault: bytes come slowly"
            }
            17 => self.spoil(victim, Wrong::Rotten),
            18 => self.spoil(victim, Wrong::Misapplied),
            _ => {
                let mut clock = self.nodes[victim].clock;
                clock.change_rate(&mut self.random, self.now);
                self.nodes[victim].clock = clock;
                "fault: clock rate changed"
            }
        };
        self.coverage.count(kind);
        self.trace.note(self.now, self.nodes[victim].id.0, kind, &[("leader", leader as u64 + 1)]);
        let pause = self.random.within(500 * MILLI, 4 * SECOND);
        self.schedule(pause, Event::Fault);
    }

    fn leader(&self) -> Option<usize> {
        let term = |node: &usize| self.nodes[*node].daemon.as_ref().map(|daemon| daemon.term);
        (0..self.nodes.len()).filter(|node| self.nodes[*node].leads()).max_by_key(term)
    }

    fn kill(&mut self, node: usize, power_lost: bool, kind: &'static str) -> &'static str {
        self.crash(node, power_lost);
        kind
    }

    fn lose_all_power(&mut self) -> &'static str {
        (0..self.nodes.len()).for_each(|node| self.crash(node, true));
        "fault: everybody's power lost"
    }

    fn cut_off(
        &mut self,
        side: &BTreeSet<usize>,
        one_way: Option<Direction>,
        kind: &'static str,
    ) -> &'static str {
        self.network.partition(side, one_way);
        self.end_partition_later();
        kind
    }

    fn cut_off_minority(&mut self) -> &'static str {
        let count = self.nodes.len();
        let first = self.random.index(count);
        let side = (0..count / 2).map(|i| (first + i) % count).collect();
        self.cut_off(&side, None, "fault: minority cut off")
    }

    fn cut_one_link(&mut self, node: usize) -> &'static str {
        let count = self.nodes.len();
        let other = (node + 1 + self.random.index(count - 1)) % count;
        self.network.cut_link(node, other);
        self.end_partition_later();
        "fault: one link cut"
    }

    fn end_partition_later(&mut self) {
        let delay = self.random.within(300 * MILLI, 6 * SECOND);
        self.schedule(delay, Event::Cure(Cure::Network));
    }

    fn storm(&mut self) -> &'static str {
        self.network.storm(&mut self.random);
        let delay = self.random.within(SECOND, 5 * SECOND);
        self.schedule(delay, Event::Cure(Cure::Weather));
        "fault: messages delayed, dropped, repeated"
    }

    fn pause(&mut self, node: usize) -> &'static str {
        if self.nodes[node].daemon.is_some() && self.nodes[node].backlog.is_none() {
            self.nodes[node].backlog = Some(Vec::new());
            let delay = self.random.within(200 * MILLI, 5 * SECOND);
            self.schedule(delay, Event::Cure(Cure::Resume { node }));
        }
        "fault: daemon stopped for a while"
    }

    pub fn cure(&mut self, cure: Cure) {
        match cure {
            Cure::Restart { node } => {
                if self.nodes[node].daemon.is_none() {
                    self.boot(node);
                }
            }
            Cure::Network => {
                for (from, to) in self.network.heal() {
                    self.connect_later(from, to);
                    self.connect_later(to, from);
                }
            }
            Cure::Weather => self.network.calm(),
            Cure::Resume { node } => self.resume(node),
        }
    }

    /// All faults end, and there are no more.
    pub fn cure_everything(&mut self) {
        self.stormy = false;
        self.cure(Cure::Network);
        self.cure(Cure::Weather);
        for node in 0..self.nodes.len() {
            self.nodes[node].dies_after_effects = None;
            self.nodes[node].slow_disk_until = 0;
            self.nodes[node].applier_stuck_until = 0;
            self.lanes.slow_down(node, 0);
            self.cure(Cure::Resume { node });
            self.cure(Cure::Restart { node });
        }
    }
}
