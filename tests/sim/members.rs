//! Members that are removed while their daemons live, and others that join in their place, under load.

use std::collections::BTreeMap;

use prost::Message;
use quorumfs::consensus::{Input, Wait};
use quorumfs::fs::proto::{self, command::Op};
use quorumfs::fs::query;
use quorumfs::types::{LogIndex, NodeId, ProposalKey, Seq, SessionId};

use crate::clock::{MILLI, SECOND};
use crate::locks::Locker;
use crate::node::{Node, NodeEvent};
use crate::state::{State, add_member};
use crate::world::{Event, World};

/// So many nodes there are at most, those included that were removed.
const NODES_MAX: usize = 7;
/// An operator asks again after this long.
const AGAIN: u64 = SECOND;

/// A node that leaves, and the one that comes.
#[derive(Clone, Copy, Debug)]
pub struct Replacing {
    leaves: usize,
    comes: usize,
    /// It has no place any more from there on.
    gone_at: Option<LogIndex>,
    /// It is going to notice that it was removed.
    is_noticing: bool,
}

impl World {
    /// Nodes that were not removed.
    pub fn members(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| !node.is_retired)
    }

    /// One of them.
    pub fn member(&self) -> &Node {
        self.members().next().expect("somebody stays")
    }

    /// Whether all of them vote that are to, and nobody else has a place.
    pub fn is_membership_settled(&self) -> bool {
        let ids: Vec<NodeId> = self.members().map(|node| node.id).collect();
        let is_settled = |node: &Node| {
            let known: Vec<_> = node.state.members().into_iter().map(|(node, _)| node).collect();
            known == ids && node.state.is_membership_settled()
        };
        self.replacing.is_none() && self.members().all(is_settled)
    }

    /// A member leaves, and another comes, one after the other or both at once.
    pub fn replace_member(&mut self, leaves: usize) -> &'static str {
        // Of two voters, one of which is wrong, no majority says who.
        let settled = self.is_membership_settled() && self.are_all_sound();
        if settled && !self.nodes[leaves].is_retired && self.may_replace() {
            self.replace(leaves);
        }
        "fault: member replaced"
    }

    /// The voters differ, and what each looks at tells nothing: a person has found out who is wrong.
    pub fn replace_wrong(&mut self, wrong: usize) {
        self.coverage.count("divergence: a person decides");
        self.replace(wrong);
    }

    pub fn may_replace(&self) -> bool {
        self.replacing.is_none() && self.nodes.len() < NODES_MAX
    }

    fn replace(&mut self, leaves: usize) {
        let comes = self.nodes.len();
        self.add_node(comes);
        // So that as many vote as before.
        self.nodes[comes].is_learner = self.nodes[leaves].is_learner;
        self.replacing = Some(Replacing { leaves, comes, gone_at: None, is_noticing: false });
        self.schedule(0, Event::Replace);
    }

    fn add_node(&mut self, place: usize) {
        let id = place as u64 + 1;
        let genesis: State = self.genesis.clone();
        self.nodes.push(Node::new(NodeId(id), &genesis, &mut self.random));
        self.lockers.extend([Locker::new(place as u64), Locker::new(place as u64)]);
        self.network.grow();
        self.boot(place);
    }

    /// What an operator does until it is so.
    pub fn go_on_replacing(&mut self) {
        let Some(replacing) = self.replacing else { return };
        let Replacing { leaves, comes, .. } = replacing;
        let (old, new) = (self.nodes[leaves].id, self.nodes[comes].id);
        let says = |node: &Node, id: NodeId| {
            let members = query::members(&node.state.view).expect("nothing rots here");
            members.iter().any(|member| member.node == id.0)
        };
        let newest = self.members().max_by_key(|node| node.state.applied.index);
        let newest = newest.expect("somebody stays");
        let (has_left, has_come) = (!says(newest, old), says(newest, new));
        // It votes for as long as it has a place.
        let places = &newest.state.membership;
        let voters = places.get_voters().iter().chain(places.get_voters_outgoing());
        let is_placed = voters.chain(places.get_learners()).any(|id| *id == old.0);
        let is_gone = has_left && !is_placed;
        let gone_at = replacing.gone_at.or(is_gone.then_some(newest.state.applied.index));
        // Who is to vote alone from then on, and does not remember it after a crash, needs the vote that is gone.
        let voters = places.get_voters();
        let all_know = gone_at.is_some_and(|at| {
            let knows = |node: &Node| node.disk.commit() >= at;
            self.members().all(|node| !voters.contains(&node.id.0) || knows(node))
        });
        self.replacing = Some(Replacing { gone_at, ..replacing });
        if is_gone && all_know && !replacing.is_noticing {
            self.replacing = Some(Replacing { gone_at, is_noticing: true, ..replacing });
            let delay = self.random.within(MILLI, 5 * SECOND);
            self.schedule(delay, Event::Retire { node: leaves });
        }
        if has_come && self.nodes[leaves].is_retired {
            self.coverage.count("members replaced");
            self.replacing = None;
            return;
        }
        let mut ops = BTreeMap::new();
        if !has_come {
            let learner = self.nodes[comes].is_learner;
            ops.insert(0, Op::AddMember(add_member(new.0, learner)));
        }
        if !has_left {
            ops.insert(1, Op::RemoveMember(proto::RemoveMember { node: old.0 }));
        }
        for op in ops.into_values().filter(|_| self.random.chance(700)).collect::<Vec<_>>() {
            let at = self.random.index(self.nodes.len());
            if at != comes && !self.nodes[at].is_retired {
                self.propose_for_cluster(at, op);
            }
        }
        self.schedule(AGAIN, Event::Replace);
    }

    /// A node has learnt that it was removed: its daemon ends for good, and its clients work elsewhere.
    pub fn retire(&mut self, node: usize) {
        self.nodes[node].is_retired = true;
        self.crash(node, false);
        let comes = self.replacing.expect("it is being replaced").comes;
        for client in self.clients.iter_mut().filter(|client| client.node == node) {
            client.node = comes;
        }
    }

    pub fn hold_later(&mut self, node: usize) {
        let delay = self.random.within(100 * MILLI, 600 * MILLI);
        self.after(delay, node, NodeEvent::Hold);
    }

    /// While members come and go, a node brings everything to its disk as soon as it has it, and tells the others.
    pub fn hold(&mut self, node: usize) {
        let target = &mut self.nodes[node];
        if !target.state.is_membership_settled() && target.files.lacks_nothing() {
            target.files.pass(target.state.applied.index);
            let sync = target.files.begin_sync();
            target.files.end_sync(sync, true);
        }
        let index = target.standing().holds(target.files.held());
        self.input_later(node, Input::Holds { node: self.nodes[node].id, index });
        for to in (0..self.nodes.len()).filter(|to| *to != node) {
            for delay in self.network.carry(&mut self.random, node, to) {
                self.schedule(delay, Event::Holds { from: node, to, index });
            }
        }
        self.hold_later(node);
    }

    fn propose_for_cluster(&mut self, node: usize, op: Op) {
        let seq = self.random.next();
        let command = proto::Command { volume: 1, seq, op: Some(op), ..proto::Command::default() };
        let key = ProposalKey { session: SessionId::CLUSTER, seq: Seq(seq) };
        let data = command.encode_to_vec().into();
        self.input_later(node, Input::Propose { key, data, wait: Wait::Here });
        self.pump(node);
    }
}
