//! A node's mount: its session, the operations that wait in it, and a model of what the kernel keeps.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use quorumfs::consensus::{Input, ReadGate, Wait};
use quorumfs::fs::proto::{self, command::Op};
use quorumfs::fs::{Change, Errno};
use quorumfs::types::{LogIndex, Monotonic, ProposalKey, Seq, SessionId};

use crate::calls::{give_up, is_touched, look, op, will_change, with_inode};
use crate::clock::MILLI;
use crate::history::{Answer, Call, Subject};
use crate::locks::Locks;
use crate::staging::OpenStage;
use crate::world::World;

/// What the kernel forgets before the lease ends.
const TTL_MARGIN: std::time::Duration = std::time::Duration::from_millis(5);

#[derive(Debug, Default)]
pub struct Mount {
    pub session: Option<SessionId>,
    /// The nonce of the session that is being opened.
    opening: Option<Seq>,
    last_seq: u64,
    /// Of this session.
    given_up: Vec<u64>,
    inodes: proto::InoRange,
    /// Clients whose commands were proposed.
    proposed: BTreeMap<ProposalKey, usize>,
    /// What those came to that are applied here: where, and their outcome.
    outcomes: BTreeMap<ProposalKey, (LogIndex, proto::Outcome)>,
    /// Clients that wait for the session, the lease or stability.
    waiting: BTreeSet<usize>,
    pub gate: ReadGate,
    pub locks: Locks,
    /// What clients are about to write by stages.
    pub stages: BTreeMap<usize, OpenStage>,
    pub stages_begun: u64,
    pub marks_sent: u64,
    kernel: BTreeMap<(Subject, Call), (Answer, Monotonic)>,
}

impl Mount {
    /// The kernel forgets what changed.
    pub fn invalidate(&mut self, changes: &[Change]) {
        for change in changes {
            self.kernel.retain(|(subject, call), _| !is_touched(*subject, *call, change));
        }
    }

    /// Nothing that the kernel remembers is to be believed.
    pub fn forget_everything(&mut self) {
        self.kernel.clear();
    }

    /// What the kernel answers without asking the daemon.
    pub fn kernel_answer(&self, now: Monotonic, subject: Subject, call: Call) -> Option<Answer> {
        let (answer, until) = self.kernel.get(&(subject, call))?;
        (now < *until).then_some(*answer)
    }

    /// Keeps the outcome of a command of this session for whoever waits for it.
    pub fn note_outcome(&mut self, key: ProposalKey, index: LogIndex, outcome: &proto::Outcome) {
        let wanted = self.proposed.contains_key(&key)
            || self.locks.commands.contains_key(&key)
            || (key.session == SessionId::CLUSTER && self.opening == Some(key.seq));
        if wanted {
            self.outcomes.entry(key).or_insert_with(|| (index, outcome.clone()));
        }
    }

    /// What the core will say once it hears what was applied.
    pub fn raise_stable(&mut self, stable: LogIndex) {
        self.gate.stable = self.gate.stable.max(stable);
    }

    /// The next number of this session.
    pub fn next_key(&mut self) -> ProposalKey {
        let session = self.session.expect("the caller has seen it");
        self.last_seq += 1;
        ProposalKey { session, seq: Seq(self.last_seq) }
    }

    pub fn lowest_unanswered(&self) -> u64 {
        let first = [self.proposed.keys().next(), self.locks.commands.keys().next()];
        first.into_iter().flatten().map(|key| key.seq.0).min().unwrap_or(self.last_seq)
    }
}

impl World {
    /// Asks for a session where there is none.
    pub fn open_session(&mut self, node: usize) {
        let nonce = Seq(self.random.next());
        let id = self.nodes[node].id;
        let applied = Some(self.nodes[node].state.applied.index.0);
        if !self.nodes[node].is_sound() {
            return;
        }
        let Some(daemon) = self.nodes[node].daemon.as_mut() else { return };
        if daemon.mount.opening.is_some() {
            // One after the other.
            return;
        }
        daemon.mount.opening = Some(nonce);
        let op = Op::SessionOpen(proto::SessionOpen {
            node: id.0,
            nonce: nonce.0,
            principal: String::new(),
            strong: true,
            applied,
        });
        let key = ProposalKey { session: SessionId::CLUSTER, seq: nonce };
        let data = self.encode(node, key, 0, op);
        self.input_later(node, Input::Propose { key, data, wait: Wait::Here });
    }

    /// The daemon tries what a client asked for; it waits where it cannot be done yet.
    pub fn attempt(&mut self, node: usize, client: usize) {
        let Some(daemon) = self.nodes[node].daemon.as_mut() else { return };
        daemon.mount.waiting.remove(&client);
        let since = daemon.invalidated.last_key_value().map_or(LogIndex(0), |(last, _)| *last);
        let Some(current) = self.clients[client].current.as_mut() else { return };
        current.since.get_or_insert(since);
        let current = *current;
        let Some(daemon) = self.nodes[node].daemon.as_mut() else { return };
        if current.call.is_read() {
            self.read(node, client);
        } else if daemon.mount.session.is_some() {
            self.propose(node, client);
        } else {
            daemon.mount.waiting.insert(client);
        }
    }

    fn read(&mut self, node: usize, client: usize) {
        let current = self.clients[client].current.expect("the caller has seen it");
        let subject = current.subject;
        let now = self.nodes[node].clock.local(self.now);
        let target = &self.nodes[node];
        let unapplied = &target.daemon.as_ref().expect("it runs").unapplied;
        let (answer, mod_index) =
            look(&target.state.view, &target.files, current.subject, current.call);
        let pending = will_change(unapplied, current.subject, current.call, answer, current.since);
        let mod_index = mod_index.max(pending);
        let newest = Some(LogIndex(u64::MAX));
        let overtaken =
            will_change(unapplied, current.subject, current.call, answer, newest) > LogIndex(0);
        if pending > LogIndex(0) {
            self.coverage.count("waits for what was received");
        }
        let mount = &mut self.nodes[node].daemon.as_mut().expect("it runs").mount;
        if mount.session.is_none() || !mount.gate.may_serve(now, mod_index) {
            let live = mount.session.is_some() && now < mount.gate.lease_until;
            mount.waiting.insert(client);
            self.input_later(node, Input::AwaitStable { index: mod_index });
            self.coverage.count(if live { "waits for stability" } else { "waits for a lease" });
            return;
        }
        let Some(answer) = answer else {
            mount.waiting.insert(client);
            self.coverage.count("waits for missing bytes");
            return;
        };
        // Names that do not exist are not cached; nor is a reply that was overtaken by an invalidation.
        // Nor what a program here is changing at this moment: its kernel takes part in that.
        let until = mount.gate.lease_until - TTL_MARGIN;
        let mut proposers = mount.proposed.values();
        let appends = proposers.any(|proposer| {
            let current = self.clients[*proposer].current;
            current.is_some_and(|other| {
                other.subject == subject && matches!(other.call, Call::Append { .. })
            })
        });
        // Bytes in the kernel are dropped later than a change is acknowledged: these clients open before they read.
        let is_cached = answer != Answer::Entry(None) && current.call != Call::Peek;
        if is_cached && !overtaken && !appends {
            mount.kernel.insert((current.subject, current.call), (answer, until));
        }
        self.check_shown(node, mod_index, "served a read");
        self.coverage.count("reads served by the daemon");
        self.finish(client, Some(answer));
    }

    fn propose(&mut self, node: usize, client: usize) {
        let current = self.clients[client].current.expect("the caller has seen it");
        let daemon = self.nodes[node].daemon.as_mut().expect("it runs");
        let mount = &mut daemon.mount;
        let call = with_inode(current.call, &mut mount.inodes);
        if matches!(call, Call::Append { .. }) {
            // The kernel does not trust the size that it knows after a write(2).
            mount.kernel.retain(|(subject, _), _| *subject != current.subject);
        }
        if call.is_staged() {
            return self.begin_stage(node, client);
        }
        let given_up = current
            .operation
            .is_multiple_of(3)
            .then(|| give_up(&self.nodes[node].state.view, current.subject, call))
            .flatten();
        self.submit(node, client, call, given_up.unwrap_or_else(|| op(current.subject, call)));
    }

    /// A client's command is proposed.
    pub fn submit(&mut self, node: usize, client: usize, call: Call, op: Op) {
        let operation = self.clients[client].current.expect("the caller has seen it").operation;
        let mount = &mut self.nodes[node].daemon.as_mut().expect("it runs").mount;
        let key = mount.next_key();
        mount.proposed.insert(key, client);
        let lowest = mount.lowest_unanswered();
        let wait = match call {
            Call::Append { wait_for_roster: false, .. } => Wait::Here,
            _ => Wait::Roster,
        };
        self.history.records[operation].call = call;
        self.clients[client].proposed(key, call);
        let data = self.encode(node, key, lowest, op);
        self.input_later(node, Input::Propose { key, data, wait });
    }

    /// The core lets an outcome out.
    pub fn acknowledge(&mut self, node: usize, key: ProposalKey) {
        let mount = &mut self.nodes[node].daemon.as_mut().expect("it runs").mount;
        if key.session == SessionId::CLUSTER {
            if let Some((_, outcome)) = mount.outcomes.remove(&key) {
                self.session_opened(node, &outcome);
            }
            return;
        }
        if mount.locks.commands.contains_key(&key) {
            let (_, outcome) = mount.outcomes.remove(&key).expect("as below");
            self.lock_command_done(node, key, &outcome);
            return;
        }
        let Some(client) = mount.proposed.remove(&key) else { return };
        let (index, outcome) =
            mount.outcomes.remove(&key).expect("what is acknowledged was applied here");
        let call = self.clients[client].current.expect("it waits for this").call;
        if !matches!(call, Call::Append { wait_for_roster: false, .. }) {
            self.check_shown(node, index, "acknowledged");
        }
        self.trace.note(
            self.now,
            self.nodes[node].id.0,
            "ack",
            &[("index", index.0), ("seq", key.seq.0)],
        );
        let answer = match outcome.errno {
            0 if matches!(call, Call::Append { .. }) => Some(Answer::Offset(outcome.offset)),
            0 => Some(Answer::Done),
            errno if errno == Errno::ESTALE.number() => None,
            errno if errno == Errno::ECANCELED.number() => {
                // It was given up at a version that was not the last one: nothing was done.
                self.coverage.count("bytes: not given up, because they had changed");
                None
            }
            errno => Some(Answer::Errno(errno)),
        };
        assert!(outcome.errno != Errno::EAGAIN.number(), "few commands overtake each other here");
        self.finish(client, answer);
    }

    fn session_opened(&mut self, node: usize, outcome: &proto::Outcome) {
        let session = SessionId(outcome.id);
        let is_open = outcome.errno == 0 && self.nodes[node].state.has_session(session);
        self.nodes[node].daemon.as_mut().expect("it runs").mount.opening = None;
        if !is_open || !self.nodes[node].is_sound() {
            self.open_session(node);
            return;
        }
        let daemon = self.nodes[node].daemon.as_mut().expect("it runs");
        // Its opening comes after all that an earlier process can have applied.
        daemon.has_replayed = true;
        daemon.mount.session = Some(session);
        daemon.mount.last_seq = 0;
        daemon.mount.given_up.clear();
        daemon.mount.inodes = outcome.granted.expect("a session is granted inodes");
        self.trace.note(self.now, self.nodes[node].id.0, "session", &[("id", session.0)]);
        self.input_later(node, Input::OwnSession { session: Some(session) });
        self.retry_waiting(node);
    }

    /// The session ended while its daemon lives: whatever waited under it has an unknown outcome.
    pub fn session_ended(&mut self, node: usize, session: SessionId) {
        let daemon = self.nodes[node].daemon.as_mut().expect("it runs");
        if daemon.mount.session != Some(session) {
            return;
        }
        self.coverage.count("sessions lost by a live daemon");
        daemon.mount.session = None;
        daemon.mount.kernel.clear();
        daemon.mount.outcomes.clear();
        daemon.inbox.push_back(Input::OwnSession { session: None });
        self.stages_ended(node);
        let daemon = self.nodes[node].daemon.as_mut().expect("it runs");
        for (key, client) in std::mem::take(&mut daemon.mount.proposed) {
            self.input_later(node, Input::Abandon { key });
            self.finish(client, None);
        }
        self.locks_ended(node);
        self.open_session(node);
    }

    /// The deadline of an operation has come.
    pub fn give_up(&mut self, node: usize, client: usize, operation: usize) {
        let Some(current) = self.clients[client].current else { return };
        if current.operation != operation {
            return;
        }
        let mount = &mut self.nodes[node].daemon.as_mut().expect("it runs").mount;
        mount.waiting.remove(&client);
        if let Some(key) = current.key {
            mount.proposed.remove(&key);
            mount.outcomes.remove(&key);
            self.command_given_up(node, key);
        }
        self.abandon_stage(node, client);
        self.coverage.count("deadlines missed");
        self.finish(client, None);
    }

    /// Nobody waits for a command any more, and whoever did goes on.
    pub fn command_given_up(&mut self, node: usize, key: ProposalKey) {
        let mount = &mut self.nodes[node].daemon.as_mut().expect("it runs").mount;
        if mount.session == Some(key.session) {
            mount.given_up.push(key.seq.0);
            self.truth.given_up(key, Seq(mount.last_seq));
        }
        self.input_later(node, Input::Abandon { key });
    }

    /// What a command says of those before it.
    fn given_up(&self, node: usize, key: ProposalKey) -> Vec<u64> {
        let daemon = self.nodes[node].daemon.as_ref();
        let mount = daemon.map(|daemon| &daemon.mount);
        let mount = mount.filter(|mount| mount.session == Some(key.session));
        mount.map_or_else(Vec::new, |mount| mount.given_up.clone())
    }

    /// What decides about reads is different.
    pub fn set_gate(&mut self, node: usize, gate: ReadGate) {
        let mount = &mut self.nodes[node].daemon.as_mut().expect("it runs").mount;
        let risen = gate.stable > mount.gate.stable;
        mount.gate = gate;
        if risen {
            self.check_shown(node, gate.stable, "considers stable");
        }
        self.retry_waiting(node);
    }

    pub fn retry_waiting(&mut self, node: usize) {
        let mount = &self.nodes[node].daemon.as_ref().expect("it runs").mount;
        for client in mount.waiting.clone() {
            self.attempt(node, client);
        }
    }

    pub fn encode(&self, node: usize, key: ProposalKey, lowest: u64, op: Op) -> Bytes {
        let local = self.nodes[node].clock.local(self.now).0;
        let seconds = i64::try_from(local / (1000 * MILLI)).expect("a run is short");
        proto::Command {
            volume: 1,
            session: key.session.0,
            seq: key.seq.0,
            lowest_unanswered: lowest,
            time: Some(proto::Time { seconds, nanos: 0 }),
            clock: local,
            node: self.nodes[node].id.0,
            given_up: self.given_up(node, key),
            op: Some(op),
        }
        .encode_to_vec()
        .into()
    }
}
