//! What follows from the inputs: derives the effects of a [`Core`], in the order in which they may be
//! carried out.

use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{StateRole, Storage};

use super::core::{Core, CoreError, MESSAGE_BYTES, proposal};
use super::keeper::Beat;
use super::replay::change_membership;
use super::{Committed, Effect, PeerMessage, ReadGate, Received, Role};
use crate::mutants::{self, Mutant};
use crate::types::{LogIndex, NodeId, Position, Term};

impl<S: Storage> Core<S> {
    /// Derives everything that follows from the inputs since the last call.
    pub(super) fn settle(&mut self) -> Result<(), CoreError> {
        self.beat();
        self.propose();
        if let Some(context) = self.keeper.begin_round(self.now) {
            self.raft.read_index(context.to_be_bytes().to_vec());
        }
        while self.raft.has_ready() {
            self.take_ready()?;
        }
        self.note_role();
        self.spread_commit();
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
        let mut after = ready.take_persisted_messages();
        after.retain(|message| self.says_something_new(message));
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
        // an older one only means learning it again. Not so where members changed: whoever is left alone by that, and forgets
        // it, needs a vote that is gone.
        let members_change = committed.iter().any(changes_members);
        let write = ready.must_sync() || !entries.is_empty() || members_change;
        self.raft.mut_store().append(&entries);
        let invalidate = self.invalidate(&entries);
        self.raft.advance_append_async(ready);
        self.held.push_back((number, after));
        if write {
            self.persisting.push_back((number, self.now));
            let hard_state = self.hard_state.take();
            let number = self.numbers_before + number;
            self.effects.push_back(Effect::Persist { number, entries, hard_state });
            if mutants::is(Mutant::AcknowledgeBeforeFsync) {
                self.persisted(number - self.numbers_before);
            }
        } else if self.persisting.is_empty() {
            self.persisted(number);
        }
        self.effects.extend(invalidate);
        self.hand_out(committed)
    }

    /// Has the mount forget what these entries will change once they are committed.
    pub(super) fn invalidate(&mut self, entries: &[Entry]) -> Option<Effect> {
        let before = LogIndex(entries.first()?.index - 1);
        if let Some(entry) = entries.iter().rev().find(|entry| changes_members(entry)) {
            self.last_membership_change = self.last_membership_change.max(LogIndex(entry.index));
        }
        self.invalidated = self.invalidated.min(before);
        self.asked_for = self.asked_for.min(before);
        let received = entries.iter().map(|entry| Received {
            position: Position { index: LogIndex(entry.index), term: Term(entry.term) },
            data: match entry.get_entry_type() {
                EntryType::EntryNormal => entry.data.clone(),
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => bytes::Bytes::new(),
            },
        });
        Some(Effect::Invalidate { entries: received.collect() })
    }

    /// An acknowledgement of entries that repeats the last one is answer to a message that only moved the
    /// commit index: it is left out, unless that is so long ago that the first one may be lost.
    fn says_something_new(&mut self, message: &Message) -> bool {
        if message.get_msg_type() != MessageType::MsgAppendResponse || message.reject {
            return true;
        }
        let (term, index, when) = self.answered;
        if (term, index) == (message.term, message.index) && self.now.since(when) < self.config.tick
        {
            return false;
        }
        self.answered = (message.term, message.index, self.now);
        true
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
                    Some(change_membership(&mut self.raft, &entry)?)
                }
            };
            let data = if conf_state.is_some() { bytes::Bytes::new() } else { entry.take_data() };
            committed.push(Committed { position, data, conf_state });
        }
        self.leave_if_removed();
        let last = committed.last().expect("there are some").position.index;
        let shown_by_others = self.is_shown_by_others(last);
        self.handed_out = last;
        self.effects.push_back(Effect::Apply { entries: committed, shown_by_others });
        Ok(())
    }

    /// Whether nobody else serves anything older than `index`: known for sure only where the roster is that
    /// of all entries handed out before.
    fn is_shown_by_others(&self, index: LogIndex) -> bool {
        let own = self.config.node;
        let term = self.term();
        self.applied.index == self.handed_out
            && self.applied.term == term
            && self.roster.covered(term).all(|(node, covered)| node == own || covered >= index)
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
        if role == Role::Leader {
            self.begin_reign();
        }
        if new_leader {
            // What the last one was sent may be lost.
            self.proposals.retry(self.now);
            self.lease.hurry();
            self.tell_now.append(&mut self.untold);
            self.say_digest();
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
            if !self.members.contains_key(&leader) {
                return;
            }
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
            self.lease.renewed(self.now, session, number, self.config.session_ttl);
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
            let stable = self.roster.stable(self.applied.index, self.term());
            self.stable = self.stable.max(stable);
        }
        let keys = self.proposals.acknowledge(self.stable);
        self.effects.extend(keys.into_iter().map(|key| Effect::Acknowledge { key }));
        let mut gate = ReadGate { lease_until: self.lease.until(), stable: self.stable };
        if mutants::is(Mutant::ReadWithoutLease) {
            gate.lease_until = self.now + self.config.session_ttl;
        }
        if gate != self.gate {
            self.gate = gate;
            self.effects.push_back(Effect::Gate(gate));
        }
    }

    /// Tells what this node shows to those whose mutations or reads wait for it, and to those who are sent
    /// something anyway. The others learn it at the next tick.
    fn tell(&mut self) {
        let peers = std::mem::take(&mut self.tell_now);
        let Some(session) = self.lease.session() else { return };
        let invalidated = self.claim();
        for to in peers.into_iter().filter(|node| *node != self.config.node) {
            self.untold.remove(&to);
            self.told.insert(to, invalidated);
            let index = self.applied.index;
            let message = PeerMessage::Visible { session, index, invalidated };
            self.effects.push_back(Effect::Send { to, message });
        }
    }

    pub(super) fn tell_log_cut(&mut self) {
        let log = self.raft.store();
        let (Some(to), Ok(first_index)) = (log.take_snapshot_wanted(), log.first_index()) else {
            return;
        };
        let Some(progress) = self.raft.raft.mut_prs().get_mut(to.0) else { return };
        if progress.matched + 1 >= first_index {
            // It has what was cut off: a stale refusal took raft-rs back behind what the peer had
            // acknowledged, from where it would never get on.
            progress.next_idx = progress.next_idx.max(progress.matched + 1);
            progress.resume();
        } else {
            let message = PeerMessage::LogCut { first_index: LogIndex(first_index) };
            self.effects.push_back(Effect::Send { to, message });
        }
    }
}

fn changes_members(entry: &Entry) -> bool {
    entry.get_entry_type() != EntryType::EntryNormal
}
