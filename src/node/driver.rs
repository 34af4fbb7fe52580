//! The task that owns the core: hands inputs in, carries effects out. It shares a thread with the
//! streams to the peers, so that a message costs one wake-up on its way in and none on its way out.
//! Nothing on that thread ever waits for a disk or a kernel: heartbeats go out whatever the rest of
//! the node is busy with.

use std::sync::Arc;

use prost::Message;
use rand::Rng;
use tokio::sync::mpsc::{Sender, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use super::apply::Work;
use super::clock;
use super::install::Paused;
use super::invalidate::try_invalidate;
use super::log_writer::{self, Write};
use super::shared::{Shared, ToDriver};
use super::snapshots::Due;
use super::status::RaftStatus;
use super::transport::ToPeer;
use crate::consensus::{Core, CoreError, Effect, Input, Role, Standing};
use crate::fs::proto::{Command, SessionEnd, Time, command::Op};
use crate::fs::{Digest, Verdict};
use crate::store::RaftLog;
use crate::types::{LogIndex, NodeId, SessionId, Term, VolumeId};

/// As many inputs are taken in before effects are carried out, so that what comes together is
/// proposed, persisted and sent together.
const BATCH: usize = 256;
/// How often the streams' tasks must have had their turn until a message is written: the one that frames
/// it, and the one that owns the connection.
const TURNS_TO_SEND: usize = 2;

/// How often, in ticks, a replica that differs tries to heal.
const HEAL_TICKS: usize = 10;

pub(super) struct Driver {
    pub(super) core: Core<RaftLog>,
    pub(super) shared: Arc<Shared>,
    pub(super) inbox: UnboundedReceiver<ToDriver>,
    pub(super) log: UnboundedSender<log_writer::Work>,
    pub(super) apply: UnboundedSender<Work>,
    pub(super) due: Sender<Due>,
    /// Who wants everything to stand still for a moment.
    pub(super) pausing: Option<oneshot::Sender<Paused>>,
    /// Ticks in which this replica has waited for another state.
    pub(super) healing: usize,
    pub(super) role: (Role, Term, NodeId),
    pub(super) lease_was_live: bool,
}

impl Driver {
    /// Runs until told to stop, or until the replica cannot go on.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.run_until_stopped().await {
            self.shared.fail(&error);
        }
    }

    async fn run_until_stopped(&mut self) -> Result<(), CoreError> {
        let mut ticks = tokio::time::interval(self.shared.config.core.tick);
        // Missed ticks would count as silence of the others.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        self.carry_out().await?;
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => {
                    self.take_late()?;
                    self.tick()?;
                }
                received = self.inbox.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        return Ok(());
                    }
                    self.take_late()?;
                    for message in batch.drain(..) {
                        match message {
                            ToDriver::Input(input) => self.core.handle(clock::monotonic(), input)?,
                            ToDriver::Late => {}
                            // Whoever asked may be gone.
                            ToDriver::Status(answer) => drop(answer.send(self.status())),
                            ToDriver::Pause(paused) => self.pausing = Some(paused),
                            ToDriver::Stop => return Ok(()),
                        }
                    }
                }
            }
            self.carry_out().await?;
            if let Some(pausing) = self.pausing.take()
                && !self.pause(pausing).await?
            {
                return Ok(());
            }
        }
    }

    /// Waits until nothing is under way, and for the word how to go on; false where this replica cannot.
    async fn pause(&mut self, pausing: oneshot::Sender<Paused>) -> Result<bool, CoreError> {
        loop {
            let (written, log) = oneshot::channel();
            let (applied, apply) = oneshot::channel();
            let _ = self.log.send(log_writer::Work::Barrier(written));
            let _ = self.apply.send(Work::Barrier(applied));
            if log.await.is_err() || apply.await.is_err() {
                // A thread has ended, and has said why.
                return Ok(false);
            }
            self.take_late()?;
            if !self.carry_out().await? {
                break;
            }
        }
        let (go_on, mut word) = oneshot::channel();
        if pausing.send(go_on).is_err() {
            return Ok(true);
        }
        let mut late = Vec::new();
        let word = loop {
            tokio::select! {
                word = &mut word => break word,
                () = tokio::time::sleep(self.shared.config.core.tick) => {
                    // Whoever waits may still miss its deadline.
                    let shared = &self.shared;
                    late.extend(shared.mutations.give_up(|deadline| shared.check(deadline)));
                    self.shared.gate.look_again();
                }
            }
        };
        // Whoever gives no word has failed: what is here is neither the old nor the new.
        let Ok(boot) = word else { return Ok(false) };
        if let Some(boot) = boot {
            let logger = crate::telemetry::raft_logger();
            self.core.install(self.shared.log.clone(), boot, &logger)?;
        }
        for key in late {
            self.core.handle(clock::monotonic(), Input::Abandon { key })?;
        }
        self.carry_out().await?;
        Ok(true)
    }

    /// What came later than it could have is older than what is taken in after it.
    fn take_late(&mut self) -> Result<(), CoreError> {
        for input in self.shared.take_late() {
            self.core.handle(clock::monotonic(), input)?;
        }
        Ok(())
    }

    fn tick(&mut self) -> Result<(), CoreError> {
        self.core.handle(clock::monotonic(), Input::Tick)?;
        for key in self.shared.mutations.give_up(|deadline| self.shared.check(deadline)) {
            self.core.handle(clock::monotonic(), Input::Abandon { key })?;
        }
        // Time alone closes the gate, and lets waiting reads miss their deadline.
        self.shared.gate.look_again();
        self.watch_lease();
        if self.shared.snapshot_is_due(self.core.applied()) || self.shared.cut_is_due() {
            // The thread may be at work on one.
            let _ = self.due.try_send(Due::Own);
        }
        self.heal();
        Ok(())
    }

    /// Has another state take the place of this replica's, where that differs: perhaps of one peer after the other. Where
    /// nobody knows who differs, it looks at itself.
    fn heal(&mut self) {
        let standing = self.shared.comparison.standing();
        if standing == Standing::Sound {
            self.healing = 0;
            return;
        }
        let turn = self.healing / HEAL_TICKS;
        let is_time = self.healing.is_multiple_of(HEAL_TICKS);
        self.healing += 1;
        if !is_time {
            return;
        }
        let others = self.core.membership().map(|(node, _)| node);
        let others: Vec<_> =
            others.filter(|node| self.shared.transport.is_connected(*node)).collect();
        let peer = others.get(turn % others.len().max(1)).copied();
        let committed = self.core.commit_index();
        let due = match standing {
            Standing::Doubtful => Due::Examination,
            Standing::Diverged | Standing::Sound => Due::Healing { committed, peer },
        };
        // The thread may be at work on it.
        let _ = self.due.try_send(due);
    }

    /// Tells the mount once when the lease has lapsed, on a thread that may wait for the kernel.
    fn watch_lease(&mut self) {
        let live = clock::monotonic() < self.core.gate().lease_until;
        if self.lease_was_live && !live {
            tracing::warn!("this mount's lease has lapsed: reads wait until the leader renews it");
            for (_, observer) in self.shared.observers.all().iter() {
                let observer = observer.clone();
                std::thread::spawn(move || observer.lease_lost());
            }
        }
        self.lease_was_live = live;
    }

    /// Carries out all effects; whether any was for the disk. Messages go first, really: a thread that is woken for a disk may take this
    /// core, and others wait for the messages.
    async fn carry_out(&mut self) -> Result<bool, CoreError> {
        let mut for_disk = Vec::new();
        let mut given = false;
        loop {
            let mut sent = false;
            while let Some(effect) = self.core.poll_effect()? {
                match effect {
                    // Programs wait for these answers.
                    Effect::Apply { shown_by_others: true, .. } if for_disk.is_empty() => {
                        self.hand_over(effect)?;
                        given = true;
                    }
                    Effect::Persist { .. } | Effect::Invalidate { .. } | Effect::Apply { .. } => {
                        for_disk.push(effect);
                    }
                    Effect::Send { to, message } => {
                        self.shared.transport.send(to, ToPeer::Core(message));
                        sent = true;
                    }
                    other => self.carry_out_here(&other)?,
                }
            }
            if for_disk.is_empty() {
                return Ok(given);
            }
            given = true;
            if sent {
                for _ in 0..TURNS_TO_SEND {
                    tokio::task::yield_now().await;
                }
            }
            for effect in for_disk.drain(..) {
                self.hand_over(effect)?;
            }
        }
    }

    /// To the threads that work on the disk. One that is gone has said why.
    fn hand_over(&mut self, effect: Effect) -> Result<(), CoreError> {
        match effect {
            Effect::Persist { number, entries, hard_state } => {
                let write = Write { number, entries, hard_state };
                let _ = self.log.send(log_writer::Work::Write(write));
            }
            Effect::Invalidate { entries } => {
                if let Some(input) = try_invalidate(&self.shared, &entries) {
                    return self.core.handle(clock::monotonic(), input);
                }
                self.shared.received.leave_to_applier();
                let _ = self.apply.send(Work::Invalidate(entries));
            }
            Effect::Apply { entries, shown_by_others } => {
                let _ = self.apply.send(Work::Apply { entries, shown_by_others });
            }
            other => unreachable!("not for a disk: {other:?}"),
        }
        Ok(())
    }

    fn carry_out_here(&mut self, effect: &Effect) -> Result<(), CoreError> {
        match effect {
            Effect::Acknowledge { key } => {
                let more = self.shared.mutations.acknowledge(*key, || self.shared.clock.next());
                for input in more {
                    self.core.handle(clock::monotonic(), input)?;
                }
            }
            Effect::Gate(gate) => self.shared.gate.set(*gate),
            Effect::Expire { session } => self.expire(*session)?,
            Effect::Attest { index, digest } => self.attest(*index, *digest)?,
            Effect::Role { role, term, leader } => self.note_role(*role, *term, *leader),
            Effect::LogWasCut { leader, first_index } => {
                let due = Due::Of { leader: *leader, first_index: *first_index };
                // The thread may be at work on it; it is said again.
                let _ = self.due.try_send(due);
            }
            Effect::Persist { .. }
            | Effect::Invalidate { .. }
            | Effect::Apply { .. }
            | Effect::Send { .. } => {
                unreachable!("carried out by the caller: {effect:?}")
            }
        }
        Ok(())
    }

    fn expire(&mut self, session: SessionId) -> Result<(), CoreError> {
        tracing::info!(
            session = session.0,
            "session is silent for too long or fenced: expiring it"
        );
        let op = Op::SessionEnd(SessionEnd { session: session.0, expired: true });
        let data = self.encode_for_cluster(op);
        self.core.handle(clock::monotonic(), Input::ProposeExpiry { session, data })
    }

    fn attest(&mut self, index: LogIndex, digest: Option<u128>) -> Result<(), CoreError> {
        let verdict = Verdict { index, digest: digest.map(Digest) };
        let data = self.encode_for_cluster(verdict.to_op());
        self.core.handle(clock::monotonic(), Input::ProposeVerdict { data })
    }

    fn encode_for_cluster(&self, op: Op) -> bytes::Bytes {
        let now = clock::wall();
        let command = Command {
            volume: VolumeId::FIRST.0,
            session: SessionId::CLUSTER.0,
            seq: rand::rng().random(),
            time: Some(Time { seconds: now.seconds, nanos: now.nanos }),
            clock: self.shared.clock.next(),
            node: self.shared.node.0,
            op: Some(op),
            ..Command::default()
        };
        command.encode_to_vec().into()
    }

    fn note_role(&mut self, role: Role, term: Term, leader: NodeId) {
        if (role, leader) != (self.role.0, self.role.2) {
            tracing::info!(term = term.0, leader = leader.0, ?role, "role");
        }
        self.role = (role, term, leader);
        self.shared.leader.send_if_modified(|known| std::mem::replace(known, leader) != leader);
    }

    fn status(&self) -> RaftStatus {
        let (role, term, leader) = self.role;
        RaftStatus {
            role,
            term,
            leader,
            commit: self.core.commit_index(),
            last_index: self.core.last_index(),
            members: self
                .core
                .membership()
                .map(|(node, votes)| (node, votes, self.core.matched(node)))
                .collect(),
            stalled: self.core.stands_still(),
            suspicions: self
                .core
                .membership()
                .filter(|(node, _)| *node != self.shared.node)
                .map(|(node, _)| (node, self.core.suspicion(node)))
                .collect(),
            sessions: self.core.sessions().collect(),
            needed: self.core.needed_by_peers(),
            applied: self.core.applied(),
        }
    }
}
