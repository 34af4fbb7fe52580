//! A node whose log position was cut off takes the leader's snapshot.

use quorumfs::consensus::{Boot, Sample, Standing};
use quorumfs::fs::Ledger;
use quorumfs::types::{LogIndex, NodeId};

use crate::clock::{MILLI, SECOND};
use crate::node::{Node, NodeEvent};
use crate::state::State;
use crate::world::World;

/// Where an installation may be cut by a crash.
const STEPS: u64 = 5;

impl World {
    /// The core needs what the leader no longer has in its log.
    pub fn log_was_cut(&mut self, node: usize, leader: NodeId, first_index: LogIndex) {
        let from = usize::try_from(leader.0).expect("few nodes") - 1;
        let is_needed = self.nodes[node].state.applied.index.next() < first_index;
        let is_reached = self.network.is_open(node, from) && self.network.is_open(from, node);
        let daemon = self.nodes[node].daemon.as_mut().expect("its core has just spoken");
        if !is_needed || !is_reached || daemon.is_installing || self.nodes[from].daemon.is_none() {
            return;
        }
        self.nodes[node].daemon.as_mut().expect("as above").is_installing = true;
        self.coverage.count("snapshots asked for");
        let state = Box::new(self.nodes[from].snapshot.clone());
        let delay = self.random.skewed(MILLI, 3 * SECOND);
        self.after(delay, node, NodeEvent::SnapshotCame { state, own: false });
    }

    /// It is there, whole. Everything that is under way comes to its end first.
    pub fn snapshot_came(&mut self, node: usize, state: Box<State>, own: bool) {
        let daemon = self.nodes[node].daemon.as_mut().expect("it runs");
        daemon.inbox.extend(std::mem::take(&mut daemon.late));
        self.pump(node);
        let Some(daemon) = self.nodes[node].daemon.as_mut() else { return };
        if daemon.applying || !daemon.to_apply.is_empty() {
            self.after(MILLI, node, NodeEvent::SnapshotCame { state, own });
            return;
        }
        daemon.is_installing = false;
        let applied = self.nodes[node].state.applied.index;
        let is_healing = self.nodes[node].diverged.is_some() && state.applied.index == applied;
        if state.applied.index <= applied && !is_healing {
            self.coverage.count("snapshots that came late");
            return;
        }
        self.invalidate(node);
        self.nodes[node].disk.sync(u64::MAX);
        let dies_at = if self.stormy && self.random.chance(200) {
            Some(self.random.below(STEPS))
        } else {
            None
        };
        for step in 0..STEPS {
            if dies_at == Some(step) {
                self.coverage.count("snapshots: installations cut by a crash");
                let power_lost = self.random.chance(500);
                return self.crash(node, power_lost);
            }
            // There is a snapshot file only where it came with one.
            if step > 1 || !own {
                self.nodes[node].install_step(step, &state, own);
            }
        }
        if own {
            self.coverage.count("divergence: state built from the own log");
            self.nodes[node].daemon.as_mut().expect("it runs").retracing.is_untried = true;
        }
        self.begin_anew(node);
    }

    fn begin_anew(&mut self, node: usize) {
        self.coverage.count("snapshots installed");
        let target = &mut self.nodes[node];
        let applied = target.state.applied;
        let values = [("index", applied.index.0), ("term", applied.term.0)];
        self.trace.note(self.now, target.id.0, "installs", &values);
        target.disk.raise_commit(applied);
        target.forget_stages();
        let was_unsound = target.daemon.as_ref().expect("it runs").standing != Standing::Sound;
        if was_unsound {
            self.coverage.count("divergence: healed");
        }
        let target = &mut self.nodes[node];
        let boot = target.boot_point();
        let disk = target.disk.clone();
        let daemon = target.daemon.as_mut().expect("it runs");
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        daemon.core.install(disk, boot, &logger).expect("the log is usable");
        // It may be that the voters differ still.
        daemon.standing = Standing::Sound;
        daemon.candidate = None;
        daemon.unapplied.applied(applied.index);
        daemon.invalidated = daemon.invalidated.split_off(&applied.index.next());
        daemon.shown = applied.index;
        daemon.mount.forget_everything();
        if let Some(session) = daemon.mount.session {
            self.session_ended(node, session);
        } else {
            self.open_session(node);
        }
        self.stand(node);
        self.bytes_changed(node);
    }
}

impl Node {
    /// Where the core starts over the state.
    pub fn boot_point(&self) -> Boot {
        Boot {
            applied: self.state.applied,
            conf_state: self.state.membership.clone(),
            sessions: self.state.sessions(),
            members: self.state.members(),
            sample: self
                .state
                .ledger
                .last_sample()
                .map(|(index, digest)| Sample { index, digest: digest.0 }),
        }
    }

    /// What a real node does in this order; [`Self::recover`] finishes it after a crash.
    fn install_step(&mut self, step: u64, state: &State, own: bool) {
        match step {
            0 => self.snapshot = state.clone(),
            1 => self.disk.fit(state.applied),
            2 => {
                let (carried_out, applied) = (self.files.carried_out(), self.state.applied.index);
                let knows_all = carried_out.max(self.files.begun()) <= applied;
                // Otherwise the state is not the one that they were changed under.
                let is_theirs = self
                    .diverged
                    .is_none_or(|since| since > LogIndex(0) && !self.files.are_behind(applied));
                let under = (knows_all && is_theirs).then_some(&self.state);
                let until = match self.diverged {
                    Some(since) if under.is_some() => since,
                    Some(_) => LogIndex(0),
                    None => carried_out,
                };
                self.trusted = until;
                let is_ahead = until >= carried_out || state.applied.index >= carried_out;
                assert!(is_ahead, "files of {carried_out} follow a state of {:?}", state.applied);
                self.files.adopt(state, until, under);
            }
            3 => {
                let ledger = if own {
                    let mut ledger = state.ledger.clone();
                    ledger.keep_equal(&self.state.ledger, self.trusted);
                    ledger
                } else {
                    self.state.ledger.of_replaced_state()
                };
                self.state = State { ledger, ..state.clone() };
                self.kept = self.state.clone();
            }
            _ if self.diverged.take().is_some() => self.healed_at = Some(state.applied.index),
            _ => {}
        }
    }

    /// What a starting node believes: the snapshot, where it is newer than the state, and of the files what they were
    /// brought to.
    pub fn recover(&mut self) {
        self.disk.fit(self.snapshot.applied);
        let applied = self.state.applied.index;
        let is_of_no_use = self.diverged.is_some() && applied < self.files.begun();
        let knows_all = !self.is_state_lost && self.diverged != Some(LogIndex(0));
        self.reached = if knows_all { self.files.begun() } else { self.disk.end() };
        if applied < self.snapshot.applied.index || is_of_no_use {
            self.is_state_lost = true;
        }
        if std::mem::take(&mut self.is_state_lost) {
            self.state = State { ledger: Ledger::default(), ..self.snapshot.clone() };
            // The state is gone that would say what the files were changed under.
            self.diverged = self.diverged.map(|_| LogIndex(0));
        } else {
            // What a state says has reached the files before.
            self.files.pass(self.state.applied.index);
        }
        if self.files.are_behind(self.state.applied.index) && self.diverged.is_none() {
            self.files.adopt(&self.state, self.files.carried_out(), None);
        }
        self.kept = self.state.clone();
        self.disk.raise_commit(self.state.applied);
        self.forget_stages();
    }

    pub fn forget_stages(&mut self) {
        let state = &self.state;
        let applied = state.applied.index.0;
        self.files.keep_stages(|session| session.0 > applied || state.has_session(session));
    }
}
