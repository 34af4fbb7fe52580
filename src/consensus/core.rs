//! The core: inputs in, effects out.

use std::collections::{BTreeSet, VecDeque};

use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState,
    Message, MessageType,
};
use raft::{RawNode, StateRole, Storage};

use super::keeper::{Beat, Keeper};
use super::lease::Lease;
use super::log_view::LogView;
use super::proposals::Proposals;
use super::roster::Roster;
use super::{
    Committed, CoreConfig, Effect, Input, PeerMessage, ReadGate, Role, SessionChange, SessionInfo,
};
use crate::types::{LogIndex, Monotonic, NodeId, Position, Term};

/// A batch of proposals goes out in messages of about this many bytes.
const MESSAGE_BYTES: usize = 1 << 20;
/// What a node shows is said again every so many ticks, for those who missed it.
const REPEAT_TICKS: u64 = 4;
/// A learner this close to the leader's log becomes a voter.
const PROMOTION_LAG: u64 = 64;

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
    /// The known members there.
    pub members: Vec<NodeId>,
}

/// One replica's consensus. See the module's documentation.
pub struct Core<S: Storage> {
    config: CoreConfig,
    raft: RawNode<LogView<S>>,
    now: Monotonic,
    ticks: u64,
    effects: VecDeque<Effect>,

    /// Numbers of `Persist` effects without an answer, and what may go out only after one.
    persisting: VecDeque<u64>,
    held: VecDeque<(u64, Vec<Message>)>,
    last_ready: u64,
    hard_state: Option<HardState>,

    applied: Position,
    role: (Role, Term, NodeId),
    members: BTreeSet<NodeId>,

    roster: Roster,
    lease: Lease,
    keeper: Keeper,
    proposals: Proposals,
    /// What the whole roster shows; never goes back.
    stable: LogIndex,
    gate: ReadGate,
    tell_visible: bool,
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
            ..raft::Config::default()
        };
        let view = LogView::new(log, boot.conf_state.clone(), config.kept_log_bytes);
        let mut raft = RawNode::new(&raft_config, view, logger)?;
        if boot.conf_state.get_voters() == [config.node.0] {
            // Nobody else could win, so there is nothing to wait for.
            raft.campaign()?;
        }
        Ok(Self {
            raft,
            now: Monotonic::default(),
            ticks: 0,
            effects: VecDeque::new(),
            persisting: VecDeque::new(),
            held: VecDeque::new(),
            last_ready: 0,
            hard_state: None,
            applied: boot.applied,
            role: (Role::Follower, Term(0), NodeId(0)),
            members: boot.members.into_iter().collect(),
            roster: Roster::new(boot.sessions),
            lease: Lease::default(),
            keeper: Keeper::new(config.session_ttl, config.expiry()),
            proposals: Proposals::default(),
            stable: LogIndex(0),
            gate: ReadGate::default(),
            tell_visible: false,
            config,
        })
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
            Input::Peer { from, message } => self.hear(from, message),
            Input::Connected { node } => self.connected(node),
            Input::Propose { key, data, wait } => self.proposals.add(key, data, wait),
            Input::Abandon { key } => self.proposals.abandon(key),
            Input::Persisted { number } => self.persisted(number),
            Input::Applied { index, term, commands, sessions, members } => {
                self.members.extend(members);
                self.note_applied(Position { index, term }, &sessions);
                for (key, index) in commands {
                    let done = self.proposals.applied(key, index);
                    self.effects.extend(done.map(|key| Effect::Acknowledge { key }));
                }
            }
            Input::OwnSession { session } => {
                self.lease.begin(session);
                self.tell_visible = true;
            }
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

    // ------------------------------------------------------------ inputs

    fn tick(&mut self) {
        self.ticks += 1;
        self.raft.tick();
        self.proposals.retry(self.now - self.config.retry_after);
        self.tell_visible |= self.ticks.is_multiple_of(REPEAT_TICKS);
        self.keeper.note_commit(self.now, self.commit_index());
        for session in self.keeper.overdue(self.now, &self.roster) {
            self.effects.push_back(Effect::Expire { session });
        }
        if self.is_leader() {
            self.reconcile_membership();
            self.yield_if_stuck();
        }
        self.tell_log_cut();
    }

    fn hear(&mut self, from: NodeId, message: PeerMessage) {
        match message {
            PeerMessage::Raft(message) => self.step(*message),
            PeerMessage::Visible { session, index } => self.roster.shows(session, index),
            PeerMessage::Heartbeat { session, number, visible } => {
                self.roster.shows(session, visible);
                self.keeper.beat(Beat { from, session, number, received: self.now });
            }
            PeerMessage::HeartbeatAck { session, number } => {
                self.lease.renewed(session, number, self.config.session_ttl);
            }
            PeerMessage::LogCut { first_index } => {
                self.effects.push_back(Effect::LogWasCut { first_index });
            }
        }
    }

    fn connected(&mut self, node: NodeId) {
        self.tell_visible = true;
        if node == self.role.2 {
            self.proposals.retry(self.now);
            self.lease.hurry();
        }
    }

    fn persisted(&mut self, number: u64) {
        while self.persisting.front().is_some_and(|first| *first <= number) {
            self.persisting.pop_front();
        }
        // Whatever was handed out before the next write that is still under way needs nothing more.
        let done = self.persisting.front().map_or(self.last_ready, |next| next - 1);
        self.raft.on_persist_ready(done);
        while self.held.front().is_some_and(|(number, _)| *number <= done) {
            let (_, messages) = self.held.pop_front().expect("the loop has just seen it");
            self.send_all(messages);
        }
    }

    fn note_applied(&mut self, applied: Position, sessions: &[SessionChange]) {
        debug_assert!(applied.index >= self.applied.index, "applying never goes back");
        self.applied = applied;
        self.raft.advance_apply_to(applied.index.0);
        sessions.iter().for_each(|change| self.roster.apply(change));
        self.tell_visible = true;
        let durable = self.raft.raft.raft_log.persisted.min(applied.index.0);
        self.raft.mut_store().trim(LogIndex(durable));
    }

    fn transfer(&mut self, to: Option<NodeId>) {
        if !self.is_leader() {
            return;
        }
        let own = self.config.node.0;
        let voters = self.raft.raft.prs().conf().to_conf_state().take_voters();
        let best = voters
            .into_iter()
            .filter(|id| *id != own)
            .filter_map(|id| Some((self.raft.raft.prs().get(id)?, id)))
            .filter(|(progress, _)| progress.recent_active)
            .max_by_key(|(progress, _)| progress.matched)
            .map(|(_, id)| id);
        if let Some(to) = to.map(|node| node.0).or(best) {
            self.raft.transfer_leader(to);
        }
    }

    /// Hands leadership over where this node does not apply what was committed half a TTL ago and
    /// another does: a leader that is stuck renews nobody, so everybody would wait for it.
    fn yield_if_stuck(&mut self) {
        let must_show = self.keeper.must_show(self.now);
        if self.applied.index >= must_show {
            return;
        }
        let ahead = self.roster.iter().filter(|(_, shown)| *shown >= must_show);
        if let Some((info, _)) = ahead.max_by_key(|(_, shown)| *shown) {
            self.transfer(Some(info.node));
        }
    }

    // ------------------------------------------------------------ effects

    /// Derives everything that follows from the inputs since the last call.
    fn settle(&mut self) -> Result<(), CoreError> {
        self.beat();
        self.propose();
        if let Some(context) = self.keeper.begin_round(self.now) {
            self.raft.read_index(context.to_be_bytes().to_vec());
        }
        while self.raft.has_ready() {
            self.take_ready()?;
        }
        self.note_role();
        for beat in self.keeper.renew(self.now, self.applied.index, &self.roster) {
            self.renewed(beat);
        }
        self.advance_stable();
        self.tell();
        Ok(())
    }

    fn propose(&mut self) {
        let leader_known = self.raft.raft.leader_id != 0;
        while leader_known && !self.proposals.is_queue_empty() {
            let budget = self.config.max_in_flight_bytes;
            let batch = self.proposals.take_batch(self.now, budget, MESSAGE_BYTES);
            if batch.is_empty() {
                break;
            }
            self.step(proposal(self.config.node, batch));
        }
    }

    fn take_ready(&mut self) -> Result<(), CoreError> {
        let mut ready = self.raft.ready();
        let number = ready.number();
        self.last_ready = number;
        self.send_all(ready.take_messages());
        let after = ready.take_persisted_messages();
        let entries = ready.take_entries();
        let committed = ready.take_committed_entries();
        for state in ready.take_read_states() {
            if let Ok(context) = <[u8; 8]>::try_from(state.request_ctx.as_slice()) {
                self.keeper.confirmed(u64::from_be_bytes(context), LogIndex(state.index));
            }
        }
        if let Some(hard_state) = ready.hs() {
            self.hard_state = Some(hard_state.clone());
        }
        // A hard state in which only the commit index is new goes with the next write: after a restart
        // an older one only means learning it again.
        let write = ready.must_sync() || !entries.is_empty();
        self.raft.mut_store().append(&entries);
        self.raft.advance_append_async(ready);
        self.held.push_back((number, after));
        if write {
            self.persisting.push_back(number);
            let hard_state = self.hard_state.take();
            self.effects.push_back(Effect::Persist { number, entries, hard_state });
        } else if self.persisting.is_empty() {
            self.persisted(number);
        }
        self.hand_out(committed)
    }

    fn hand_out(&mut self, entries: Vec<Entry>) -> Result<(), CoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut committed = Vec::with_capacity(entries.len());
        for mut entry in entries {
            let position = Position { index: LogIndex(entry.index), term: Term(entry.term) };
            let conf_state = match entry.get_entry_type() {
                EntryType::EntryNormal => None,
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    Some(self.change_membership(&entry)?)
                }
            };
            let data = if conf_state.is_some() { bytes::Bytes::new() } else { entry.take_data() };
            committed.push(Committed { position, data, conf_state });
        }
        self.effects.push_back(Effect::Apply { entries: committed });
        Ok(())
    }

    fn change_membership(&mut self, entry: &Entry) -> Result<ConfState, CoreError> {
        let mut change = ConfChangeV2::default();
        let undecodable = |_| CoreError::Undecodable { index: LogIndex(entry.index) };
        if entry.get_entry_type() == EntryType::EntryConfChange {
            let mut v1 = raft::eraftpb::ConfChange::default();
            protobuf::Message::merge_from_bytes(&mut v1, &entry.data).map_err(undecodable)?;
            return Ok(self.raft.apply_conf_change(&v1)?);
        }
        protobuf::Message::merge_from_bytes(&mut change, &entry.data).map_err(undecodable)?;
        Ok(self.raft.apply_conf_change(&change)?)
    }

    fn note_role(&mut self) {
        let raft = &self.raft.raft;
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if raft.promotable() => Role::Follower,
            StateRole::Follower => Role::Learner,
        };
        let now = (role, Term(raft.term), NodeId(raft.leader_id));
        if now == self.role {
            return;
        }
        let new_leader = (now.1, now.2) != (self.role.1, self.role.2) && now.2 != NodeId(0);
        self.role = now;
        self.keeper.set_leading(role == Role::Leader);
        if new_leader {
            // What the last one was sent may be lost.
            self.proposals.retry(self.now);
            self.lease.hurry();
            self.tell_visible = true;
        }
        // With an effect to hand out, `settle` runs once more before the driver waits.
        self.effects.push_back(Effect::Role { role, term: now.1, leader: now.2 });
    }

    /// Asks the leader to renew this node's session, where it is time.
    fn beat(&mut self) {
        let leader = self.role.2;
        let interval = self.config.heartbeat_interval();
        if leader == NodeId(0) || !self.lease.is_due(self.now, interval) {
            return;
        }
        let Some(session) = self.lease.session() else { return };
        let number = self.lease.send(self.now, self.config.session_ttl);
        let visible = self.applied.index;
        if leader == self.config.node {
            self.roster.shows(session, visible);
            self.keeper.beat(Beat { from: leader, session, number, received: self.now });
        } else {
            let message = PeerMessage::Heartbeat { session, number, visible };
            self.effects.push_back(Effect::Send { to: leader, message });
        }
    }

    fn renewed(&mut self, beat: Beat) {
        let Beat { from, session, number, .. } = beat;
        if from == self.config.node {
            self.lease.renewed(session, number, self.config.session_ttl);
        } else {
            let message = PeerMessage::HeartbeatAck { session, number };
            self.effects.push_back(Effect::Send { to: from, message });
        }
    }

    /// Nobody counts anything before an entry of the current term is applied: until then this node may
    /// not know of sessions that others wait for.
    fn advance_stable(&mut self) {
        if self.applied.term.0 == self.raft.raft.term {
            if let Some(session) = self.lease.session() {
                self.roster.shows(session, self.applied.index);
            }
            self.stable = self.stable.max(self.roster.stable(self.applied.index));
        }
        let keys = self.proposals.acknowledge(self.stable);
        self.effects.extend(keys.into_iter().map(|key| Effect::Acknowledge { key }));
        let gate = ReadGate { lease_until: self.lease.until(), stable: self.stable };
        if gate != self.gate {
            self.gate = gate;
            self.effects.push_back(Effect::Gate(gate));
        }
    }

    fn tell(&mut self) {
        let Some(session) = self.lease.session() else { return };
        if !std::mem::take(&mut self.tell_visible) {
            return;
        }
        let own = self.config.node;
        let peers: Vec<_> =
            self.membership().map(|(node, _)| node).filter(|node| *node != own).collect();
        for to in peers {
            let message = PeerMessage::Visible { session, index: self.applied.index };
            self.effects.push_back(Effect::Send { to, message });
        }
    }

    fn tell_log_cut(&mut self) {
        let log = self.raft.store();
        if let Some(to) = log.take_snapshot_wanted()
            && let Ok(first_index) = log.first_index()
        {
            let message = PeerMessage::LogCut { first_index: LogIndex(first_index) };
            self.effects.push_back(Effect::Send { to, message });
        }
    }

    // ------------------------------------------------------------ membership

    /// Gives every known member a place: a learner first, a voter once it holds (nearly) everything.
    /// The members are replicated state, so that nothing is lost with a leader.
    fn reconcile_membership(&mut self) {
        if self.raft.raft.has_pending_conf() {
            return;
        }
        let placed: std::collections::BTreeMap<_, _> = self.membership().collect();
        let newcomer = self.members.iter().find(|node| !placed.contains_key(node));
        let change = if let Some(node) = newcomer {
            Some((ConfChangeType::AddLearnerNode, *node))
        } else {
            let last = self.raft.raft.raft_log.last_index();
            placed
                .iter()
                .filter(|(_, votes)| !**votes)
                .find(|(node, _)| {
                    self.raft.raft.prs().get(node.0).is_some_and(|progress| {
                        progress.recent_active && progress.matched + PROMOTION_LAG >= last
                    })
                })
                .map(|(node, _)| (ConfChangeType::AddNode, *node))
        };
        if let Some((kind, node)) = change {
            let mut single = ConfChangeSingle::default();
            single.set_change_type(kind);
            single.node_id = node.0;
            let mut change = ConfChangeV2::default();
            change.set_changes(vec![single].into());
            // A refusal (a change that is not applied yet) is tried again at the next tick.
            let _ = self.raft.propose_conf_change(Vec::new(), change);
        }
    }

    // ------------------------------------------------------------ raft

    fn is_leader(&self) -> bool {
        self.raft.raft.state == StateRole::Leader
    }

    fn step(&mut self, message: Message) {
        // What raft-rs refuses (a message of an old peer, a proposal without a leader) is as good as
        // lost, and everything lost is said again.
        let _ = self.raft.step(message);
    }

    fn send_all(&mut self, messages: Vec<Message>) {
        self.effects.extend(messages.into_iter().map(|message| Effect::Send {
            to: NodeId(message.to),
            message: PeerMessage::Raft(Box::new(message)),
        }));
    }
}

fn proposal(from: NodeId, commands: Vec<bytes::Bytes>) -> Message {
    let entries: Vec<Entry> = commands
        .into_iter()
        .map(|data| {
            let mut entry = Entry::default();
            entry.data = data;
            entry
        })
        .collect();
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgPropose);
    message.from = from.0;
    message.set_entries(entries.into());
    message
}
