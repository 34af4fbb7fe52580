//! The world of one run: nodes, network and clients under one seed and one clock.

use std::collections::BTreeMap;

use quorumfs::consensus::PeerMessage;
use quorumfs::types::{LogIndex, NodeId, SessionId, Term};

use crate::checks::Truth;
use crate::clock::{MILLI, Nanos, SECOND};
use crate::coverage::Coverage;
use crate::faults::{Cure, choose_kinds};
use crate::fetching::Fetch;
use crate::history::History;
use crate::lanes::{Lanes, ToStage};
use crate::locks::Locker;
use crate::members::Replacing;
use crate::network::Network;
use crate::node::{Node, NodeEvent};
use crate::random::Random;
use crate::reference::Reference;
use crate::state::State;
use crate::trace::Trace;
use crate::workload::{Client, Subjects};

/// Something that happens at a certain time.
#[derive(Debug)]
pub enum Event {
    /// To a node, in one of its lives.
    Node {
        node: usize,
        boot: u64,
        event: NodeEvent,
    },
    Arrival {
        from: NodeId,
        to: usize,
        message: PeerMessage,
    },
    /// On a connection for stages.
    Staged {
        from: usize,
        to: usize,
        lane: u64,
        message: ToStage,
    },
    /// All has arrived on one that was given up.
    LaneDrained {
        from: usize,
        to: usize,
        lane: u64,
    },
    /// An answer on one, which goes the other way.
    Marked {
        from: usize,
        to: usize,
        lane: u64,
        mark: u64,
        holds: bool,
    },
    Fetch {
        from: usize,
        to: usize,
        message: Fetch,
    },
    /// A node says what it has on its disk.
    Holds {
        from: usize,
        to: usize,
        index: LogIndex,
    },
    /// A guardian says that its node's daemon is dead.
    Fenced {
        from: usize,
        to: usize,
        session: SessionId,
    },
    /// A client wants to do something.
    Client {
        client: usize,
    },
    Fault,
    Cure(Cure),
    /// A member is being replaced.
    Replace,
    /// A node has learnt that it was removed.
    Retire {
        node: usize,
    },
}

/// See the module's documentation.
pub struct World {
    pub now: Nanos,
    pub random: Random,
    queue: BTreeMap<(Nanos, u64), Event>,
    events: u64,
    pub nodes: Vec<Node>,
    pub network: Network,
    pub lanes: Lanes,
    pub clients: Vec<Client>,
    pub lockers: Vec<Locker>,
    pub subjects: Subjects,
    /// What every node starts from.
    pub genesis: State,
    pub replacing: Option<Replacing>,
    pub history: History,
    pub truth: Truth,
    pub reference: Reference,
    pub leaders: BTreeMap<Term, usize>,
    pub faults: u64,
    pub fault_kinds: Vec<u64>,
    /// Faults happen, clients work.
    pub stormy: bool,
    pub working: bool,
    pub trace: Trace,
    pub coverage: Coverage,
}

impl World {
    /// Some of them have a member that never votes.
    pub fn new(seed: u64, trace: Trace) -> Self {
        Self::with(seed, seed % 8 == 7, trace)
    }

    pub fn with(seed: u64, has_learner: bool, trace: Trace) -> Self {
        let mut random = Random::new(seed);
        let count = random.pick(&[2_u64, 3, 3, 3, 5]);
        // Now and then the group grows from one node.
        let voters = if random.chance(250) { vec![1] } else { (1..=count).collect() };
        let (subjects, commands) = Subjects::new();
        let genesis = State::genesis(voters, commands);
        let mut nodes: Vec<Node> =
            (1..=count).map(|id| Node::new(NodeId(id), &genesis, &mut random)).collect();
        if has_learner {
            let learner = Node::new(NodeId(count + 1), &genesis, &mut random);
            nodes.push(Node { is_learner: true, ..learner });
        }
        let fault_kinds = choose_kinds(&mut random);
        let per_node = if count == 3 { 4 } else { 3 };
        let clients = (0..nodes.len() * per_node).map(|i| Client::new(i % nodes.len())).collect();
        Self {
            now: 0,
            random,
            queue: BTreeMap::new(),
            events: 0,
            network: Network::new(nodes.len()),
            lanes: Lanes::default(),
            reference: Reference::default(),
            lockers: (0..nodes.len() as u64)
                .flat_map(|node| [Locker::new(node), Locker::new(node)])
                .collect(),
            nodes,
            clients,
            subjects,
            replacing: None,
            history: History::default(),
            truth: Truth::new(genesis.applied.index),
            genesis,
            leaders: BTreeMap::new(),
            faults: 0,
            fault_kinds,
            stormy: false,
            working: true,
            trace,
            coverage: Coverage::default(),
        }
    }

    /// Starts all nodes and clients, and has the nodes join that are no members yet.
    pub fn begin(&mut self) {
        for node in 0..self.nodes.len() {
            self.boot(node);
        }
        for client in 0..self.clients.len() {
            let delay = self.random.below(SECOND);
            self.schedule(delay, Event::Client { client });
        }
        let voters = self.nodes[0].state.membership.get_voters().len();
        for comes in voters..self.nodes.len() {
            self.add_member(0, comes);
        }
    }

    /// Whether all nodes serve, and vote as far as they are to.
    pub fn is_up(&self) -> bool {
        let learners = self.nodes.iter().filter(|node| node.is_learner).count();
        let voters = self.nodes.len() - learners;
        self.nodes.iter().all(|node| {
            let placed = &node.state.membership;
            let are_there = (placed.get_voters().len(), placed.get_learners().len());
            node.has_lease(self.now) && are_there == (voters, learners)
        })
    }

    pub fn boot(&mut self, node: usize) {
        if self.nodes[node].is_retired {
            return;
        }
        self.nodes[node].boot(&mut self.random);
        let boots = self.nodes[node].boots;
        self.trace.note(self.now, self.nodes[node].id.0, "boots", &[("time", boots)]);
        let first_tick = self.random.below(50 * MILLI);
        self.after(first_tick, node, NodeEvent::Tick);
        self.snapshot_later(node);
        self.start_lockers(node);
        self.stand(node);
        if !self.nodes[node].is_sound() {
            self.after(0, node, NodeEvent::Heal);
        }
        self.keep_later(node);
        self.open_session(node);
        for other in 0..self.nodes.len() {
            if other != node {
                self.connect_later(node, other);
                self.connect_later(other, node);
                self.connect_lane_later(node, other);
            }
        }
        self.fetch_later(node);
        self.hold_later(node);
        self.merge_later(node);
        self.pump(node);
    }

    /// `node` notices that its connection to `other` is new. Now and then it does not.
    pub fn connect_later(&mut self, node: usize, other: usize) {
        if self.nodes[node].daemon.is_some() && self.random.chance(800) {
            let peer = self.nodes[other].id;
            let delay = self.random.within(MILLI, 300 * MILLI);
            self.after(delay, node, NodeEvent::Connected { node: peer });
        }
    }

    /// Something will happen to this life of a node.
    pub fn after(&mut self, delay: Nanos, node: usize, event: NodeEvent) {
        let boot = self.nodes[node].boots;
        self.schedule(delay, Event::Node { node, boot, event });
    }

    pub fn schedule(&mut self, delay: Nanos, event: Event) {
        self.events += 1;
        self.queue.insert((self.now + delay, self.events), event);
    }

    /// Runs until `done`, for at most `limit`; whether it was done in time.
    pub fn run_until(&mut self, limit: Nanos, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + limit;
        while !done(self) {
            let Some(((at, _), event)) = self.queue.pop_first() else { return false };
            if at > end {
                return false;
            }
            self.now = at;
            self.happen(event);
        }
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Node { node, boot, event } => {
                if self.nodes[node].boots == boot && self.nodes[node].daemon.is_some() {
                    self.deliver(node, event);
                }
            }
            Event::Arrival { from, to, message } => {
                let sender = usize::try_from(from.0).expect("few nodes") - 1;
                if self.network.is_open(sender, to) && self.nodes[to].daemon.is_some() {
                    self.trace.note(self.now, self.nodes[to].id.0, "hears", &[("from", from.0)]);
                    self.trace.remark(self.now, self.nodes[to].id.0, || format!("{message:?}"));
                    self.deliver(to, NodeEvent::Peer { from, message });
                }
            }
            Event::Staged { from, to, lane, message } => {
                if self.arrives(from, to, from, to, lane) {
                    self.trace.note(self.now, self.nodes[to].id.0, "staged", &[("lane", lane)]);
                    self.trace.remark(self.now, self.nodes[to].id.0, || format!("{message:?}"));
                    self.deliver(to, NodeEvent::Staged { from, lane, message });
                }
            }
            Event::LaneDrained { from, to, lane } => self.lane_drained(from, to, lane),
            Event::Marked { from, to, lane, mark, holds } => {
                if self.arrives(to, from, from, to, lane) {
                    self.deliver(to, NodeEvent::Marked { from, mark, holds });
                }
            }
            Event::Fetch { from, to, message } => {
                if self.network.is_open(from, to) && self.nodes[to].daemon.is_some() {
                    self.trace.note(
                        self.now,
                        self.nodes[to].id.0,
                        "fetch",
                        &[("from", from as u64)],
                    );
                    self.trace.remark(self.now, self.nodes[to].id.0, || format!("{message:?}"));
                    self.deliver(to, NodeEvent::Fetch { from, message });
                }
            }
            Event::Holds { from, to, index } => {
                if self.network.is_open(from, to) && self.nodes[to].daemon.is_some() {
                    let from = self.nodes[from].id;
                    self.deliver(to, NodeEvent::Holds { from, index });
                }
            }
            Event::Fenced { from, to, session } => {
                if self.network.is_open(from, to) && self.nodes[to].daemon.is_some() {
                    self.coverage.count("fenced");
                    let from = self.nodes[from].id;
                    self.deliver(to, NodeEvent::Fenced { from, session });
                }
            }
            Event::Client { client } => self.begin_operation(client),
            Event::Fault => self.strike(),
            Event::Cure(cure) => self.cure(cure),
            Event::Replace => self.go_on_replacing(),
            Event::Retire { node } => self.retire(node),
        }
    }

    pub fn snapshot_later(&mut self, node: usize) {
        let delay = self.random.within(2 * SECOND, 12 * SECOND);
        self.after(delay, node, NodeEvent::Snapshot);
    }

    /// A guardian has survived its daemon: some milliseconds later the others hear of it, or do not.
    fn fence(&mut self, from: usize, session: SessionId) {
        // Every other one; with numbers of its own, so that older seeds remain what they are until then.
        if !(session.0 + self.nodes[from].boots).is_multiple_of(2) {
            return;
        }
        for to in (0..self.nodes.len()).filter(|to| *to != from) {
            let delay = (1 + (session.0 + to as u64) % 40) * MILLI;
            self.schedule(delay, Event::Fenced { from, to, session });
        }
    }

    /// A daemon dies; with `power_lost` so does its machine.
    pub fn crash(&mut self, node: usize, power_lost: bool) {
        let Some(daemon) = self.nodes[node].daemon.take() else { return };
        // Bytes that only a wrong replica has beside one that loses power go with it: they were closed, and not fsynced. And
        // one that has healed has them from the others.
        let id = self.nodes[node].id;
        let may_go = |other: &Node| other.id == id || !(other.is_off() || other.is_healing());
        let power_lost = power_lost && self.members().all(may_go);
        let power_lost = self.lose_state(node, power_lost);
        self.coverage.add("retries", daemon.core.retries());
        let target = &mut self.nodes[node];
        target.backlog = None;
        target.dies_after_effects = None;
        let lost = target.disk.crash(&mut self.random);
        target.files.crash(power_lost, &mut self.random);
        self.coverage.add("unsynced writes lost", lost);
        if power_lost {
            self.coverage.add("divergence: power lost", u64::from(target.diverged.is_some()));
            target.is_state_lost = true;
            target.clock.reboot(&mut self.random, self.now);
            self.coverage.count("rebuilds");
        }
        let values = [("power", u64::from(power_lost)), ("lost", lost)];
        self.trace.note(self.now, target.id.0, "crashes", &values);
        for client in 0..self.clients.len() {
            if self.clients[client].node == node {
                self.finish(client, None);
            }
        }
        self.break_lanes_of(node);
        self.forget_lockers(node);
        if !power_lost && let Some(session) = daemon.mount.session {
            self.fence(node, session);
        }
        let delay = self.random.within(200 * MILLI, 4 * SECOND);
        self.schedule(delay, Event::Cure(Cure::Restart { node }));
    }
}
