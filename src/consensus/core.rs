//! The core: inputs in, effects out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType};
use raft::{GetEntriesContext, RawNode, StateRole, Storage};

use super::commits::Commits;
use super::digests::Digests;
use super::keeper::{Beat, Keeper};
use super::lease::Lease;
use super::log_view::LogView;
use super::membership::Moves;
use super::proposals::Proposals;
use super::roster::Roster;
use super::suspicion::Suspicions;
use super::{
    Claim, CoreConfig, Effect, Input, PeerMessage, ReadGate, Role, Sample, SessionChange,
    SessionInfo,
};
use crate::types::{LogIndex, Monotonic, NodeId, Position, SessionId, Suffrage, Term};

/// A batch of proposals goes out in messages of about this many bytes.
pub(super) const MESSAGE_BYTES: usize = 1 << 20;
/// A disk that took no longer for the last write is not worth a message of its own to those who wait.
const QUICK_DISK: Duration = Duration::from_millis(1);
/// What a node shows is said again every so many ticks, for those who missed it.
pub(super) const REPEAT_TICKS: u64 = 4;

/// Why a core cannot go on. The replica must stop.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// raft-rs refused the log, or a membership change in it.
    #[error("the Raft log cannot be used: {0}")]
    Raft(#[from] raft::Error),
    /// A committed entry of Raft's own cannot be decoded.
    #[error("log entry {index} holds a membership change that cannot be decoded")]
    Undecodable {
        /// Its index.
        index: LogIndex,
    },
}

/// Where a core starts: the state machine as of its applied index.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// The last applied entry.
    pub applied: Position,
    /// The membership there.
    pub conf_state: ConfState,
    /// The open sessions there.
    pub sessions: Vec<SessionInfo>,
    /// The members there that have joined, and what each is to be.
    pub members: Vec<(NodeId, Suffrage)>,
    /// What its digest was at the last entry that asked for it.
    pub sample: Option<Sample>,
}

/// One replica's consensus. See the module's documentation.
pub struct Core<S: Storage> {
    pub(super) config: CoreConfig,
    pub(super) raft: RawNode<LogView<S>>,
    pub(super) now: Monotonic,
    pub(super) ticks: u64,
    pub(super) effects: VecDeque<Effect>,

    /// Numbers of `Persist` effects without an answer, and what may go out only after one.
    pub(super) persisting: VecDeque<(u64, Monotonic)>,
    /// How long the disk took for the last one.
    pub(super) persist_took: Duration,
    pub(super) held: VecDeque<(u64, Vec<Message>)>,
    pub(super) last_ready: u64,
    /// raft-rs counts from 1; numbers up to here were given out before it began anew.
    pub(super) numbers_before: u64,
    pub(super) hard_state: Option<HardState>,

    pub(super) applied: Position,
    /// The last entry that was handed out to be applied.
    pub(super) handed_out: LogIndex,
    /// This mount serves nothing older than this node's log up to here.
    pub(super) invalidated: LogIndex,
    /// How far this node's log is known to be that of a term's leader.
    pub(super) verified: Claim,
    pub(super) role: (Role, Term, NodeId),
    pub(super) members: BTreeMap<NodeId, Suffrage>,
    pub(super) moves: Moves,
    /// What each peer has said that it has applied, and when.
    pub(super) heard: BTreeMap<NodeId, (LogIndex, Monotonic)>,

    pub(super) suspicions: Suspicions,
    pub(super) roster: Roster,
    pub(super) lease: Lease,
    pub(super) keeper: Keeper,
    pub(super) proposals: Proposals,
    /// What nobody of the roster serves anything older than; never goes back.
    pub(super) stable: LogIndex,
    pub(super) gate: ReadGate,
    /// Who is to be told at once what this node shows.
    pub(super) tell_now: BTreeSet<NodeId>,
    /// What each peer was last told that this mount serves nothing older than.
    pub(super) told: BTreeMap<NodeId, Claim>,
    /// Who has not been told the newest: told with the next message to them, or at the next tick.
    pub(super) untold: BTreeSet<NodeId>,
    /// Who has asked for more than this node shows: told when it does.
    pub(super) asked_by: BTreeMap<NodeId, LogIndex>,
    /// The highest index that this node has asked the others for.
    pub(super) asked_for: LogIndex,
    pub(super) commits: Commits,
    pub(super) digests: Digests,
    /// The last received entry that changes the membership.
    pub(super) last_membership_change: LogIndex,
    /// The last acknowledgement of entries to a leader: term, index, when.
    pub(super) answered: (u64, u64, Monotonic),
}

impl<S: Storage> Core<S> {
    /// A replica over `log`, whose state machine stands at `boot`.
    ///
    /// # Errors
    /// When the log is not one that raft-rs can use: its hard state must not be behind `boot`.
    pub fn new(
        config: CoreConfig,
        log: S,
        boot: Boot,
        logger: &slog::Logger,
    ) -> Result<Self, CoreError> {
        let raft_config = raft::Config {
            id: config.node.0,
            election_tick: config.election_ticks.0,
            min_election_tick: config.election_ticks.0,
            max_election_tick: config.election_ticks.1,
            heartbeat_tick: config.heartbeat_ticks,
            applied: boot.applied.index.0,
            max_size_per_msg: MESSAGE_BYTES as u64,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: 4 * config.max_in_flight_bytes as u64,
            max_committed_size_per_ready: 4 << 20,
            // Who waits for it is told, see `commits`.
            skip_bcast_commit: true,
            ..raft::Config::default()
        };
        let view = LogView::new(log, boot.conf_state.clone(), config.kept_log_bytes);
        let mut raft = RawNode::new(&raft_config, view, logger)?;
        if boot.conf_state.get_voters() == [config.node.0] {
            // Nobody else could win, so there is nothing to wait for.
            raft.campaign()?;
        }
        let mut core = Self {
            raft,
            now: Monotonic::default(),
            ticks: 0,
            effects: VecDeque::new(),
            persisting: VecDeque::new(),
            persist_took: Duration::ZERO,
            held: VecDeque::new(),
            last_ready: 0,
            numbers_before: 0,
            hard_state: None,
            applied: boot.applied,
            handed_out: boot.applied.index,
            invalidated: boot.applied.index,
            verified: Claim::default(),
            role: (Role::Follower, Term(0), NodeId(0)),
            members: boot.members.into_iter().collect(),
            moves: Moves::default(),
            heard: BTreeMap::new(),
            suspicions: Suspicions::default(),
            roster: Roster::new(boot.sessions),
            lease: Lease::default(),
            keeper: Keeper::new(config.session_ttl, config.expiry()),
            proposals: Proposals::default(),
            stable: LogIndex(0),
            gate: ReadGate::default(),
            tell_now: BTreeSet::new(),
            told: BTreeMap::new(),
            untold: BTreeSet::new(),
            asked_by: BTreeMap::new(),
            asked_for: LogIndex(0),
            commits: Commits::default(),
            digests: Digests::new(boot.sample),
            last_membership_change: LogIndex(0),
            answered: (0, 0, Monotonic::default()),
            config,
        };
        core.receive_again()?;
        Ok(core)
    }

    /// What the log holds beyond the applied index was received in an earlier life.
    fn receive_again(&mut self) -> Result<(), CoreError> {
        let end = self.raft.store().last_index()? + 1;
        let mut next = self.applied.index.0 + 1;
        while next < end {
            let context = GetEntriesContext::empty(false);
            let entries = self.raft.store().entries(next, end, MESSAGE_BYTES as u64, context)?;
            next += entries.len() as u64;
            let effect = self.invalidate(&entries);
            self.effects.extend(effect);
        }
        Ok(())
    }

    /// Takes one input in. `now` never goes back.
    ///
    /// # Errors
    /// When the replica cannot go on.
    pub fn handle(&mut self, now: Monotonic, input: Input) -> Result<(), CoreError> {
        debug_assert!(now >= self.now, "a monotonic clock went back");
        self.now = now;
        match input {
            Input::Tick => self.tick(),
            Input::AwaitStable { index } => self.ask(index),
            Input::Peer { from, message } => self.hear(from, message),
            Input::Connected { node } => self.connected(node),
            Input::Propose { key, data, wait } => self.proposals.add(key, data, wait),
            Input::Abandon { key } => self.proposals.abandon(key),
            Input::Persisted { number } => {
                // What was persisted before everything began anew is not what is waited for now.
                if let Some(number) = number.checked_sub(self.numbers_before) {
                    self.persisted(number);
                }
            }
            Input::Invalidated { last, sessions } => self.note_invalidated(last, &sessions),
            Input::Applied { index, term, commands, sessions, members } => {
                self.note_members(members);
                self.note_applied(Position { index, term }, &sessions);
                self.digests.commands_applied(commands.len());
                for (key, index) in commands {
                    self.tell_proposer(key.session, index);
                    let done = self.proposals.applied(key, index);
                    self.effects.extend(done.map(|key| Effect::Acknowledge { key }));
                }
            }
            Input::Sampled { sample, judged } => self.sampled(sample, judged),
            Input::Stands(standing) => self.stand(standing),
            Input::ProposeVerdict { data } => self.propose_verdict(data),
            Input::Holds { node, index } => self.note_holds(node, index),
            Input::OwnSession { session } => {
                self.lease.begin(session.filter(|_| self.digests.is_sound()));
                self.tell_everybody();
            }
            Input::Fenced { node, session } => self.fenced(node, session)?,
            Input::ProposeExpiry { session, data } => {
                if self.is_leader() && self.keeper.is_expiring(session) {
                    // Lost at a change of leader, which then judges for itself.
                    self.step(proposal(self.config.node, vec![data]));
                }
            }
            Input::TransferLeader { to } => self.transfer(to),
        }
        Ok(())
    }

    /// The next thing to do, if any. Poll until there is none before waiting for input.
    ///
    /// # Errors
    /// When the replica cannot go on.
    pub fn poll_effect(&mut self) -> Result<Option<Effect>, CoreError> {
        while self.effects.is_empty() {
            self.settle()?;
            if !self.raft.has_ready() {
                break;
            }
        }
        Ok(self.effects.pop_front())
    }

    /// What decides about reads at present.
    #[must_use]
    pub fn gate(&self) -> ReadGate {
        self.gate
    }

    /// The open sessions, and the index that each is known to show.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionInfo, LogIndex)> + '_ {
        self.roster.iter()
    }

    /// How many proposals had to be proposed again so far.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.proposals.retries()
    }

    /// The highest index known to be committed.
    #[must_use]
    pub fn commit_index(&self) -> LogIndex {
        LogIndex(self.raft.raft.raft_log.committed)
    }

    /// What it knows to be applied: Raft may still ask for what comes after, so the log must not be cut there.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.applied.index
    }

    /// The last index of the log, durable or not.
    #[must_use]
    pub fn last_index(&self) -> LogIndex {
        LogIndex(self.raft.raft.raft_log.last_index())
    }

    /// The members with a place in the Raft group, and whether each votes.
    pub fn membership(&self) -> impl Iterator<Item = (NodeId, bool)> {
        let conf = self.raft.raft.prs().conf().to_conf_state();
        let voters: BTreeSet<u64> =
            conf.get_voters().iter().chain(conf.get_voters_outgoing()).copied().collect();
        let learners: Vec<u64> = conf.get_learners().to_vec();
        voters
            .into_iter()
            .map(|id| (NodeId(id), true))
            .chain(learners.into_iter().map(|id| (NodeId(id), false)))
    }

    /// How much of the leader's log a member is known to hold; only a leader knows.
    #[must_use]
    pub fn matched(&self, node: NodeId) -> Option<LogIndex> {
        if !self.is_leader() {
            return None;
        }
        self.raft.raft.prs().get(node.0).map(|progress| LogIndex(progress.matched))
    }

    /// The log after this index may still be needed: by a member that has not said that it has applied
    /// more since this core started, or (where this node leads) not acknowledged more: there a leader
    /// starts again after a message was lost, however much the member holds.
    #[must_use]
    pub fn needed_by_peers(&self) -> LogIndex {
        self.membership()
            .map(|(node, _)| node)
            .filter(|node| *node != self.config.node)
            .map(|node| {
                let (heard, _) = self.heard.get(&node).copied().unwrap_or_default();
                self.matched(node).map_or(heard, |matched| matched.min(heard))
            })
            .fold(self.applied.index, LogIndex::min)
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.raft.tick();
        self.proposals.retry(self.now - self.config.retry_after);
        self.tell_now.append(&mut self.untold);
        if self.ticks.is_multiple_of(REPEAT_TICKS) {
            self.tell_everybody();
        }
        if self.ticks == 1 || self.ticks.is_multiple_of(REPEAT_TICKS) {
            self.forget_strangers();
        }
        self.keeper.note_commit(self.now, self.commit_index());
        self.expire_overdue();
        if self.is_leader() {
            self.spread_commit_to_all();
            self.reconcile_membership();
            self.yield_if_stuck();
        }
        self.tick_digests();
        self.tell_stall();
        self.tell_log_cut();
    }

    fn hear(&mut self, from: NodeId, message: PeerMessage) {
        self.suspicions.heard(from, self.now, self.config.session_ttl);
        match message {
            PeerMessage::Raft(message) => self.step_and_verify(*message),
            PeerMessage::Visible { session, index, invalidated } => {
                self.heard.insert(from, (index, self.now));
                self.roster.shows(session, index);
                self.roster.claims(session, invalidated);
            }
            PeerMessage::Heartbeat { session, number, visible } => {
                self.roster.shows(session, visible);
                // Who was removed lives no longer than its last lease.
                if self.members.contains_key(&from) {
                    self.keeper.beat(Beat { from, session, number, received: self.now });
                }
            }
            PeerMessage::HeartbeatAck { session, number } => {
                self.lease.renewed(self.now, session, number, self.config.session_ttl);
            }
            PeerMessage::Stalled { stalled } => self.suspicions.stalls(from, stalled, self.now),
            PeerMessage::Ask { index } => self.asked(from, index),
            PeerMessage::Commit { durable, commit } => self.hear_commit(from, durable, commit),
            PeerMessage::Digest(sample) => self.hear_digest(from, sample),
            PeerMessage::LogCut { first_index } => self.log_was_cut(from, first_index),
        }
    }

    fn connected(&mut self, node: NodeId) {
        self.tell_now.insert(node);
        self.answered = (0, 0, self.now);
        if node == self.role.2 {
            self.proposals.retry(self.now);
            self.lease.hurry();
            self.say_digest();
        }
    }

    /// A peer has a read that waits for `index`.
    fn asked(&mut self, from: NodeId, index: LogIndex) {
        if self.is_leader() {
            // An entry that is not here has been replaced.
            self.want_commit(from, index.min(self.last_index()));
        }
        if index <= self.applied.index.max(self.claim().index) {
            self.tell_now.insert(from);
        } else {
            self.asked_by.insert(from, index);
        }
    }

    /// A read here waits for `index` to be stable: asks those who are not known to show it, and the leader
    /// where it is not known here to be committed; once.
    fn ask(&mut self, index: LogIndex) {
        if index <= self.asked_for.max(self.stable) {
            return;
        }
        self.asked_for = index;
        let own = self.config.node;
        let behind = self.roster.covered(self.term()).filter(|(_, covered)| *covered < index);
        let mut to: BTreeSet<_> = behind.map(|(node, _)| node).collect();
        if self.commit_index() < index {
            to.insert(self.role.2);
        }
        to.retain(|node| *node != own && *node != NodeId(0));
        let ask = |to| Effect::Send { to, message: PeerMessage::Ask { index } };
        self.effects.extend(to.into_iter().map(ask));
    }

    fn note_members(&mut self, members: Vec<(NodeId, Option<Suffrage>)>) {
        for (node, suffrage) in members {
            match suffrage {
                Some(suffrage) => drop(self.members.insert(node, suffrage)),
                None => drop(self.members.remove(&node)),
            }
        }
    }

    fn tell_everybody(&mut self) {
        let members: Vec<_> = self.membership().map(|(node, _)| node).collect();
        self.tell_now.extend(members);
    }

    pub(super) fn persisted(&mut self, number: u64) {
        while let Some((_, since)) = self.persisting.pop_front_if(|(first, _)| *first <= number) {
            self.persist_took = self.now.since(since);
        }
        // Whatever was handed out before the next write that is still under way needs nothing more.
        let done = self.persisting.front().map_or(self.last_ready, |(next, _)| next - 1);
        self.raft.on_persist_ready(done);
        while self.held.front().is_some_and(|(number, _)| *number <= done) {
            let (_, messages) = self.held.pop_front().expect("the loop has just seen it");
            self.send_all(messages);
        }
        self.count_commit();
    }

    fn note_applied(&mut self, applied: Position, sessions: &[SessionChange]) {
        debug_assert!(applied.index >= self.applied.index, "applying never goes back");
        self.applied = applied;
        self.pass(applied.index);
        for change in sessions {
            if *change == SessionChange::Ended(self.lease.session().unwrap_or_default()) {
                self.lease.begin(None);
            }
            self.roster.apply(change);
        }
        self.shows_more(applied.index);
        let durable = self.raft.raft.raft_log.persisted.min(applied.index.0);
        self.raft.mut_store().trim(LogIndex(durable));
    }

    /// Entries were received, and nothing older is served here: those who proposed them wait for that.
    fn note_invalidated(&mut self, last: Position, sessions: &BTreeSet<SessionId>) {
        if self.raft.raft.raft_log.term(last.index.0) != Ok(last.term.0) {
            // Replaced meanwhile.
            return;
        }
        self.invalidated = self.invalidated.max(last.index);
        self.shows_more(self.claim().index);
        for session in sessions {
            self.tell_proposer(*session, last.index);
        }
    }

    /// What this mount serves nothing older than, of the entries that this node has received.
    pub(super) fn claim(&self) -> Claim {
        let verified = if self.is_leader() {
            Claim { term: self.term(), index: self.last_index() }
        } else {
            self.verified
        };
        Claim { term: verified.term, index: verified.index.min(self.invalidated) }
    }

    /// Whoever has asked for no more than `index` is told; everybody else in time.
    fn shows_more(&mut self, index: LogIndex) {
        self.untold = self.membership().map(|(node, _)| node).collect();
        let answered = self.asked_by.extract_if(.., |_, asked| *asked <= index);
        self.tell_now.extend(answered.map(|(node, _)| node));
    }

    /// A proposer waits until this node serves nothing older than `index`: it is told, unless it was.
    fn tell_proposer(&mut self, session: SessionId, index: LogIndex) {
        let Some(node) = self.roster.node_of(session) else { return };
        let told = self.told.get(&node).copied().unwrap_or_default();
        let knows = told.term == self.term() && told.index >= index;
        if !knows && !self.will_acknowledge(node) && !self.will_tell_commit(node, index) {
            self.tell_now.insert(node);
        }
    }

    /// Whether a leader is going to be sent an acknowledgement very soon, with which news can travel.
    fn will_acknowledge(&self, node: NodeId) -> bool {
        node == self.role.2 && !self.persisting.is_empty() && self.persist_took <= QUICK_DISK
    }

    pub(super) fn term(&self) -> Term {
        Term(self.raft.raft.term)
    }

    pub(super) fn is_leader(&self) -> bool {
        self.raft.raft.state == StateRole::Leader
    }

    pub(super) fn step(&mut self, message: Message) {
        // What raft-rs refuses (a message of an old peer, a proposal without a leader) is as good as
        // lost, and everything lost is said again.
        let _ = self.raft.step(message);
    }

    /// Takes a message of a peer in. Notes who waits for what it proposes, and how much of this node's log a
    /// leader has confirmed by it: all up to the last entry that it names, where that is here.
    fn step_and_verify(&mut self, message: Message) {
        let named = (message.get_msg_type() == MessageType::MsgAppend).then(|| {
            let last = message.entries.last();
            let (index, term) =
                last.map_or((message.index, message.log_term), |last| (last.index, last.term));
            (Claim { term: Term(message.term), index: LogIndex(index) }, term)
        });
        let (from, kind) = (NodeId(message.from), message.get_msg_type());
        self.step(message);
        if kind == MessageType::MsgPropose && self.is_leader() {
            self.want_commit(from, self.last_index());
        }
        let Some((claim, entry_term)) = named else { return };
        if claim.term != self.term() || self.is_leader() {
            return;
        }
        if self.raft.raft.raft_log.term(claim.index.0) == Ok(entry_term) {
            if self.verified.term != claim.term {
                self.tell_everybody();
            }
            self.verified = self.verified.max(claim);
        }
    }

    pub(super) fn send_all(&mut self, messages: Vec<Message>) {
        // What this node shows travels with what is sent anyway.
        for message in &messages {
            let to = NodeId(message.to);
            if self.untold.remove(&to) {
                self.tell_now.insert(to);
            }
        }
        self.effects.extend(messages.into_iter().map(|message| Effect::Send {
            to: NodeId(message.to),
            message: PeerMessage::Raft(Box::new(message)),
        }));
    }
}

pub(super) fn proposal(from: NodeId, commands: Vec<bytes::Bytes>) -> Message {
    let entries: Vec<Entry> =
        commands.into_iter().map(|data| Entry { data, ..Entry::default() }).collect();
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgPropose);
    message.from = from.0;
    message.set_entries(entries.into());
    message
}
