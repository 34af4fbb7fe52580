//! The driver of a node: hands inputs to its core and does what the core wants done.

use std::collections::BTreeSet;

use quorumfs::consensus::{
    Committed, Effect, Input, PeerMessage, Received, Role, Sample, SessionChange,
};
use quorumfs::fs::{self, Change, Digest, Finding, Verdict, proto, proto::command::Op, query};
use quorumfs::types::{
    Generation, Ino, LogIndex, NodeId, Position, ProposalKey, Seq, SessionId, Suffrage, Term,
};

use crate::calls::MOUNT;
use crate::clock::{MICRO, MILLI, Nanos};
use crate::node::{NodeEvent, Round};
use crate::state::add_member;
use crate::world::{Event, World};
use prost::Message;

/// Batches of entries that are applied together at most.
const ROUND_MAX: u64 = 10;

/// What some entries did.
#[derive(Default)]
struct Applied {
    last: Position,
    commands: Vec<(ProposalKey, LogIndex)>,
    sessions: Vec<SessionChange>,
    members: Vec<(NodeId, Option<Suffrage>)>,
    changes: Vec<Change>,
    /// Those of which the kernel is told again.
    forgets: Vec<Change>,
    /// What the last one said of this replica's state, and what that came to.
    judged: Option<(Finding, Sample, LogIndex)>,
}

impl World {
    /// An event reaches a node. While its daemon is stopped, it waits.
    pub fn deliver(&mut self, node: usize, event: NodeEvent) {
        if let Some(backlog) = self.nodes[node].backlog.as_mut() {
            backlog.push(event);
            return;
        }
        self.take(node, event);
        self.pump(node);
    }

    /// A stopped daemon goes on: everything that has come in meanwhile comes at once.
    pub fn resume(&mut self, node: usize) {
        let Some(backlog) = self.nodes[node].backlog.take() else { return };
        self.trace.note(
            self.now,
            self.nodes[node].id.0,
            "resumes",
            &[("late", backlog.len() as u64)],
        );
        let all_first = self.random.chance(500);
        for event in backlog {
            self.take(node, event);
            if !all_first {
                self.pump(node);
            }
        }
        self.pump(node);
    }

    fn take(&mut self, node: usize, event: NodeEvent) {
        let Some(daemon) = self.nodes[node].daemon.as_mut() else { return };
        match event {
            NodeEvent::Tick => {
                let tick = self.nodes[node].clock.true_length(std::time::Duration::from_millis(50));
                self.after(tick, node, NodeEvent::Tick);
                self.input(node, Input::Tick);
            }
            NodeEvent::Peer { from, message } => self.input(node, Input::Peer { from, message }),
            NodeEvent::Connected { node: peer } => {
                self.input(node, Input::Connected { node: peer });
            }
            NodeEvent::Fenced { from, session } => {
                self.input(node, Input::Fenced { node: from, session });
            }
            NodeEvent::Persisted { number } => {
                self.nodes[node].disk.sync(number);
                self.input(node, Input::Persisted { number });
            }
            NodeEvent::Invalidate => self.invalidate(node),
            NodeEvent::Apply => self.apply(node),
            NodeEvent::Show => {
                let round = daemon.round.take().expect("a round is under way");
                self.show(node, round);
            }
            NodeEvent::Attempt { client, operation } => {
                if self.clients[client].current.is_some_and(|now| now.operation == operation) {
                    self.attempt(node, client);
                }
            }
            NodeEvent::Deadline { client, operation } => self.give_up(node, client, operation),
            NodeEvent::Locker { locker, step } => self.locker_goes_on(node, locker, step),
            NodeEvent::LockDeadline { key } => self.give_up_lock_command(node, key),
            NodeEvent::ReturnLocks { ino } => self.return_locks(node, ino),
            NodeEvent::Snapshot => self.snapshot(node),
            NodeEvent::Heal => self.heal(node),
            NodeEvent::FoundWrong => self.found_wrong(node),
            NodeEvent::Keep => self.keep(node),
            NodeEvent::Die => {
                let power_lost = self.random.chance(300);
                self.crash(node, power_lost);
            }
            NodeEvent::Synced { sync, state } => self.synced(node, sync, state),
            NodeEvent::Merge => self.merge(node),
            NodeEvent::Hold => self.hold(node),
            NodeEvent::Holds { from, index } => {
                self.input(node, Input::Holds { node: from, index });
            }
            NodeEvent::SnapshotCame { state, own } => self.snapshot_came(node, state, own),
            NodeEvent::ConnectLane { peer } => self.connect_lane(node, peer),
            NodeEvent::LaneLost { peer } => self.lane_lost(node, peer),
            NodeEvent::LaneEnded { from, lane } => self.lane_ended(node, from, lane),
            NodeEvent::Staged { from, lane, message } => self.staged(node, from, lane, message),
            NodeEvent::MarkDue { from, lane, id, mark } => {
                self.mark_due(node, from, lane, id, mark);
            }
            NodeEvent::Marked { from, mark, holds } => self.stage_marked(node, from, mark, holds),
            NodeEvent::OwnStageSynced { client, id } => self.own_stage_synced(node, client, id),
            NodeEvent::StageAgain { client, id } => self.stage_again(node, client, id),
            NodeEvent::FetchRound => self.fetch_round(node),
            NodeEvent::Fetch { from, message } => self.fetch(node, from, message),
            NodeEvent::Give { to, wanted, before, first } => {
                self.give(node, to, wanted, before, first);
            }
            NodeEvent::FetchOver { key, start } => drop(daemon.fetching.remove(&(key, start))),
        }
    }

    fn input(&mut self, node: usize, input: Input) {
        let now = self.nodes[node].clock.local(self.now);
        let Some(daemon) = self.nodes[node].daemon.as_mut() else { return };
        let late = std::mem::take(&mut daemon.late);
        let handled =
            late.into_iter().chain([input]).try_for_each(|input| daemon.core.handle(now, input));
        handled.unwrap_or_else(|error| panic!("node {} stops: {error}", self.nodes[node].id));
    }

    /// An input that follows from an effect.
    pub fn input_later(&mut self, node: usize, input: Input) {
        if let Some(daemon) = self.nodes[node].daemon.as_mut() {
            daemon.inbox.push_back(input);
        }
    }

    /// Does what the core wants done until there is nothing left to do.
    pub fn pump(&mut self, node: usize) {
        while let Some(daemon) = self.nodes[node].daemon.as_mut() {
            if let Some(input) = daemon.inbox.pop_front() {
                self.input(node, input);
                continue;
            }
            let effect = daemon.core.poll_effect();
            match effect.unwrap_or_else(|error| panic!("node {} stops: {error}", node + 1)) {
                Some(effect) => self.perform(node, effect),
                None => return,
            }
            if let Some(left) = self.nodes[node].dies_after_effects.as_mut() {
                *left -= 1;
                if *left == 0 {
                    self.crash(node, false);
                }
            }
        }
    }

    fn perform(&mut self, node: usize, effect: Effect) {
        let id = self.nodes[node].id.0;
        let daemon = self.nodes[node].daemon.as_mut().expect("its core has just spoken");
        match effect {
            Effect::Persist { number, entries, hard_state } => {
                self.trace.note(self.now, id, "persist", &[("entries", entries.len() as u64)]);
                self.nodes[node].disk.write(number, entries, hard_state);
                let took = self.nodes[node].sync_time(&mut self.random, self.now);
                let daemon = self.nodes[node].daemon.as_mut().expect("as above");
                daemon.disk_busy_until = daemon.disk_busy_until.max(self.now + took);
                let wait = daemon.disk_busy_until - self.now;
                self.after(wait, node, NodeEvent::Persisted { number });
            }
            Effect::Send { to, message } => self.send(node, to, &message),
            Effect::Invalidate { entries } => {
                // By the driver itself, where nothing of it can wait.
                let at_once = daemon.to_invalidate.is_empty() && self.random.chance(500);
                daemon.to_invalidate.push_back(entries);
                if at_once {
                    self.coverage.count("invalidated by the driver");
                    self.invalidate(node);
                    return;
                }
                let delay = self.random.skewed(10 * MICRO, 2 * MILLI);
                self.after(self.stuck_for(node, true) + delay, node, NodeEvent::Invalidate);
            }
            Effect::Apply { entries, shown_by_others } => {
                daemon.to_apply.push_back((entries, shown_by_others));
                self.wake_applier(node);
            }
            Effect::Acknowledge { key } => self.acknowledge(node, key),
            Effect::Gate(gate) => self.set_gate(node, gate),
            Effect::Expire { session } => self.expire(node, session),
            Effect::Attest { index, digest } => self.attest(node, index, digest),
            Effect::Role { role, term, leader } => self.note_role(node, role, term, leader),
            Effect::LogWasCut { leader, first_index } => {
                self.log_was_cut(node, leader, first_index);
            }
        }
    }

    fn send(&mut self, node: usize, to: NodeId, message: &PeerMessage) {
        let target = usize::try_from(to.0).expect("few nodes") - 1;
        let from = self.nodes[node].id;
        for delay in self.network.carry(&mut self.random, node, target) {
            let message = message.clone();
            self.schedule(delay, Event::Arrival { from, to: target, message });
        }
    }

    fn note_role(&mut self, node: usize, role: Role, term: Term, leader: NodeId) {
        let daemon = self.nodes[node].daemon.as_mut().expect("its core has just spoken");
        if role == Role::Leader && daemon.role != Role::Leader {
            self.coverage.count("leader changes");
            let before = self.leaders.insert(term, node);
            assert!(before.is_none_or(|before| before == node), "two leaders in term {term}");
        }
        (daemon.role, daemon.term) = (role, term);
        let values = [("role", role as u64), ("term", term.0), ("leader", leader.0)];
        self.trace.note(self.now, self.nodes[node].id.0, "role", &values);
    }

    fn expire(&mut self, node: usize, session: SessionId) {
        self.coverage.count("expiries");
        self.trace.note(self.now, self.nodes[node].id.0, "expires", &[("session", session.0)]);
        let op = Op::SessionEnd(proto::SessionEnd { session: session.0, expired: true });
        let data = self.encode_for_cluster(op);
        self.input_later(node, Input::ProposeExpiry { session, data });
    }

    fn attest(&mut self, node: usize, index: LogIndex, digest: Option<u128>) {
        let verdict = Verdict { index, digest: digest.map(Digest) };
        let data = self.encode_for_cluster(verdict.to_op());
        self.input_later(node, Input::ProposeVerdict { data });
    }

    fn encode_for_cluster(&mut self, op: Op) -> bytes::Bytes {
        let seq = self.random.next();
        let command = proto::Command { volume: 1, seq, op: Some(op), ..proto::Command::default() };
        command.encode_to_vec().into()
    }

    /// A node joins: what an RPC to the leader would do.
    pub fn add_member(&mut self, node: usize, comes: usize) {
        let (nonce, learner) = (self.nodes[comes].id.0, self.nodes[comes].is_learner);
        let op = Op::AddMember(add_member(nonce, learner));
        let command =
            proto::Command { volume: 1, seq: nonce, op: Some(op), ..proto::Command::default() };
        let key = ProposalKey { session: SessionId::CLUSTER, seq: Seq(nonce) };
        let data = command.encode_to_vec().into();
        self.input_later(node, Input::Propose { key, data, wait: quorumfs::consensus::Wait::Here });
        self.pump(node);
    }

    // ------------------------------------------------------------ applying

    fn wake_applier(&mut self, node: usize) {
        if self.is_frozen(node) {
            return;
        }
        let stuck = self.stuck_for(node, false);
        let Some(daemon) = self.nodes[node].daemon.as_mut() else { return };
        if daemon.applying || daemon.to_apply.is_empty() {
            return;
        }
        daemon.applying = true;
        let delay = self.random.skewed(20 * MICRO, 2 * MILLI);
        self.after(stuck + delay, node, NodeEvent::Apply);
    }

    /// The applier has reads of what was received wait, and the kernel forget it.
    pub fn invalidate(&mut self, node: usize) {
        let target = &mut self.nodes[node];
        let daemon = target.daemon.as_mut().expect("its applier runs");
        let received = std::mem::take(&mut daemon.to_invalidate);
        let mut replaced = false;
        for entries in received {
            let first = entries.first().expect("there are some").position.index;
            let last = entries.last().expect("there are some").position;
            replaced |= !daemon.invalidated.split_off(&first).is_empty();
            daemon.unapplied.replace(first);
            let mut sessions = BTreeSet::new();
            for Received { position, data } in entries {
                daemon.invalidated.insert(position.index, position.term);
                if data.is_empty() {
                    continue;
                }
                let command = fs::decode(data).expect("only commands are proposed");
                sessions.insert(SessionId(command.session));
                let view = &target.state.view;
                let proposer = (command.node == target.id.0).then_some(MOUNT);
                let changes = daemon.unapplied.receive(view, position.index, &command, proposer);
                let changes = changes.expect("nothing rots here");
                // The mount shows the bytes that it writes.
                if proposer.is_none() || !matches!(command.op, Some(Op::Write(_))) {
                    daemon.mount.invalidate(&changes);
                }
            }
            daemon.inbox.push_back(Input::Invalidated { last, sessions });
        }
        if replaced {
            self.coverage.count("received entries replaced");
            self.retry_waiting(node);
        }
    }

    fn apply(&mut self, node: usize) {
        // What is applied was received before.
        self.invalidate(node);
        if self.is_frozen(node) {
            self.nodes[node].daemon.as_mut().expect("its applier runs").applying = false;
            return;
        }
        let count = self.random.within(1, ROUND_MAX);
        let daemon = self.nodes[node].daemon.as_mut().expect("its applier runs");
        let count = daemon.to_apply.len().min(usize::try_from(count).expect("small"));
        let rounds: Vec<(Vec<Committed>, bool)> = daemon.to_apply.drain(..count).collect();
        let shown_by_others = rounds.iter().all(|(_, shown)| *shown);
        let entries: Vec<Committed> = rounds.into_iter().flat_map(|(entries, _)| entries).collect();
        if self.stormy && self.random.chance(1) {
            return self.die_applying(node, &entries);
        }
        let mut applied = Applied::default();
        let mut left = entries.into_iter();
        for entry in left.by_ref() {
            self.apply_entry(node, &entry, &mut applied);
            if applied.judged.is_some() {
                break;
            }
        }
        let answered = shown_by_others && applied.sessions.is_empty();
        let left: Vec<_> = left.collect();
        if !left.is_empty() {
            let daemon = self.nodes[node].daemon.as_mut().expect("as above");
            // What is known of the others is known of nobody who opens a session here.
            daemon.to_apply.push_front((left, answered));
        }
        let Applied { last, commands, sessions, members, changes, forgets, judged } = applied;
        self.check_changed_bytes(node, &changes);
        self.merge_later(node);
        let daemon = self.nodes[node].daemon.as_mut().expect("as above");
        daemon.unapplied.applied(last.index);
        let answers = commands.iter().filter(|_| answered).map(|(key, _)| *key).collect();
        let report =
            Input::Applied { index: last.index, term: last.term, commands, sessions, members };
        let sample = judged.map(|(_, sample, judged)| (sample, judged));
        let round = Round { report, last: last.index, changes, forgets, answers, sample };
        self.nodes[node].daemon.as_mut().expect("as above").round = Some(round);
        if let Some((finding, ..)) = judged {
            self.judged(node, finding);
        }
        let delay = self.random.skewed(5 * MICRO, 5 * MILLI);
        self.after(self.stuck_for(node, true) + delay, node, NodeEvent::Show);
    }

    fn apply_entry(&mut self, node: usize, entry: &Committed, applied: &mut Applied) {
        let last = entry.position;
        applied.last = last;
        let target = &mut self.nodes[node];
        let effect = target.state.apply(entry);
        target.files.carry_out_all(last.index, &effect.applied.effects);
        let digest = target.state.digest;
        let right = (!target.is_off()).then_some(digest);
        if self.truth.applied(entry, right, &effect, &mut self.coverage) {
            self.reference.carry_out_all(last.index, &effect.applied.effects);
        }
        let target = &mut self.nodes[node];
        let low = u64::try_from(digest.0 & u128::from(u64::MAX)).expect("masked");
        let values = [("index", last.index.0), ("term", last.term.0), ("digest", low)];
        self.trace.note(self.now, target.id.0, "apply", &values);
        let daemon = target.daemon.as_mut().expect("its applier runs");
        for change in &effect.applied.changes {
            assert!(
                daemon.unapplied.covers(last.index, change),
                "{change:?} of {last:?} {:?} was not marked",
                fs::decode(entry.data.clone())
            );
        }
        if let Some(key) = effect.key {
            applied.commands.push((key, last.index));
            daemon.mount.note_outcome(key, last.index, &effect.applied.outcome);
        }
        // What was received needs no second notification, but for names; bytes of this mount were not.
        let own = effect.key.is_some_and(|key| daemon.mount.session == Some(key.session));
        let writes = |change: &Change| matches!(change, Change::Bytes { .. });
        let own_bytes = own && effect.applied.changes.iter().any(writes);
        let again = |change: &&Change| own_bytes || matches!(change, Change::Name { .. });
        applied.forgets.extend(effect.applied.changes.iter().filter(again).cloned());
        applied.changes.extend(effect.applied.changes);
        applied.members.extend(effect.members);
        if let Some(verdict) = effect.verdict {
            let (finding, sample) = target.state.judge(verdict);
            applied.judged = Some((finding, sample, verdict.index));
        }
        effect.sessions.iter().filter_map(ended).for_each(|session| self.check_lapsed(session));
        applied.sessions.extend(effect.sessions);
    }

    /// The process dies in the middle of a round: some effects are carried out, but the state says nothing of it.
    fn die_applying(&mut self, node: usize, entries: &[Committed]) {
        let count = 1 + self.random.index(entries.len());
        let steps = self.random.within(1, 8);
        let power_lost = self.random.chance(300);
        let target = &mut self.nodes[node];
        let mut state = target.state.clone();
        for (number, entry) in (1..).zip(&entries[..count]) {
            if number == count {
                target.files.die_after(steps);
            }
            let effects = state.apply(entry).applied.effects;
            target.files.carry_out_all(entry.position.index, &effects);
        }
        self.coverage.count("rounds cut by a crash");
        self.crash(node, power_lost);
    }

    fn check_changed_bytes(&mut self, node: usize, changes: &[Change]) {
        let mut inos: Vec<Ino> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Bytes { ino, .. } => Some(*ino),
                _ => None,
            })
            .collect();
        inos.sort_unstable();
        inos.dedup();
        for ino in inos {
            let inode = query::inode(&self.nodes[node].state.view, ino).expect("nothing rots here");
            let Some(inode) = inode else { continue };
            self.check_bytes(node, (ino, Generation(inode.generation)));
        }
    }

    fn stuck_for(&self, node: usize, in_kernel: bool) -> Nanos {
        let node = &self.nodes[node];
        if node.kernel_is_stuck == in_kernel {
            node.applier_stuck_until.saturating_sub(self.now)
        } else {
            0
        }
    }

    fn show(&mut self, node: usize, round: Round) {
        let daemon = self.nodes[node].daemon.as_mut().expect("its applier runs");
        daemon.mount.invalidate(&round.forgets);
        self.follow_locks(node, &round.changes);
        let daemon = self.nodes[node].daemon.as_mut().expect("as above");
        daemon.shown = round.last;
        daemon.invalidated = daemon.invalidated.split_off(&round.last.next());
        daemon.applying = false;
        let ended: Vec<SessionId> = match &round.report {
            Input::Applied { sessions, .. } => sessions.iter().filter_map(ended).collect(),
            _ => unreachable!("a round reports what was applied"),
        };
        let nobody_waits = !self.somebody_waits(node, &round);
        if !round.answers.is_empty() {
            self.answer(node, round.last, &round.answers);
        }
        if nobody_waits && round.sample.is_none() && self.random.chance(800) {
            self.coverage.count("told late what is applied");
            self.nodes[node].daemon.as_mut().expect("as above").late.push(round.report);
        } else {
            self.input(node, round.report);
        }
        for session in ended {
            self.session_ended(node, session);
        }
        if let Some((sample, judged)) = round.sample {
            self.input(node, Input::Sampled { sample, judged });
        }
        self.wake_applier(node);
    }

    /// Whether anybody here waits for the core to hear of a round.
    fn somebody_waits(&self, node: usize, round: &Round) -> bool {
        let daemon = self.nodes[node].daemon.as_ref().expect("its applier runs");
        let Input::Applied { commands, sessions, members, .. } = &round.report else {
            unreachable!("a round reports what was applied")
        };
        let own = daemon.mount.session.unwrap_or_default();
        let waits = |session| session == own || session == SessionId::CLUSTER;
        let unanswered =
            round.answers.is_empty() && commands.iter().any(|(key, _)| waits(key.session));
        unanswered || !sessions.is_empty() || !members.is_empty()
    }

    /// Nobody waits for a session from here on, so it must not serve any more (none is closed here while
    /// its daemon lives).
    fn check_lapsed(&self, session: SessionId) {
        for node in self.nodes.iter().filter(|node| node.has_lease(self.now)) {
            let own = node.daemon.as_ref().and_then(|daemon| daemon.mount.session);
            assert!(own != Some(session), "session {session} ended while it had a lease");
        }
    }

    /// The applier answers those who wait for what it has just applied and shown: the core has said that
    /// it may.
    fn answer(&mut self, node: usize, stable: LogIndex, answers: &[ProposalKey]) {
        let daemon = self.nodes[node].daemon.as_mut().expect("its applier runs");
        daemon.mount.raise_stable(stable);
        for key in answers {
            self.coverage.count("answered by the applier");
            self.acknowledge(node, *key);
        }
    }

    /// Panics where another node could still serve something older than `index` although this one says
    /// that nobody does.
    pub fn check_shown(&self, node: usize, index: LogIndex, what: &str) {
        if self.nodes[node].is_off() {
            // It knows neither indexes nor what is right.
            return;
        }
        for other in self.nodes.iter().filter(|other| other.has_lease(self.now)) {
            let daemon = other.daemon.as_ref().expect("it has a lease");
            let shown = daemon.shown;
            let received = |at: &u64| {
                let term = daemon.invalidated.get(&LogIndex(*at));
                term.copied() == self.truth.term_at(LogIndex(*at))
            };
            let covered = (shown.0 + 1..=index.0).all(|at| received(&at));
            assert!(
                covered,
                "node {} {what} at index {index}, but node {} has a lease and shows only {shown}",
                self.nodes[node].id, other.id,
            );
        }
    }
}

fn ended(change: &SessionChange) -> Option<SessionId> {
    match change {
        SessionChange::Opened(_) => None,
        SessionChange::Ended(session) => Some(*session),
    }
}
