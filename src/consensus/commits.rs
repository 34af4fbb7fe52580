//! Who learns when how far the log is committed.
//!
//! raft-rs has the leader send the commit index to everybody as soon as it moves: a message and several
//! wake-ups for each follower and entry. Here it goes to those who wait for it, who have proposed the entry
//! or have asked; everybody else learns it with the next entries, or at the next tick.
//!
//! A node that waits need not even wait for the leader to hear from a quorum: an entry of the present term
//! is committed once a quorum has it on disk (Raft, section 5.4.2), and who knows that may count for itself.
//! So the leader says at once what it has on disk, and where its disk and that of the one who waits are a
//! quorum, it says nothing more.

use std::collections::BTreeMap;

use raft::{StateRole, Storage};

use super::core::Core;
use super::{Claim, Effect, PeerMessage};
use crate::types::{LogIndex, NodeId};

/// What is known of others' disks, and who has to be told what.
#[derive(Debug, Default)]
pub(super) struct Commits {
    /// What others have said that they have on disk of a term's log.
    durable: BTreeMap<NodeId, Claim>,
    /// On a leader: up to where each node waits for the commit index.
    wanted: BTreeMap<NodeId, LogIndex>,
    /// On a leader: what each was last told to be on this disk, in this term.
    told_durable: BTreeMap<NodeId, Claim>,
}

impl<S: Storage> Core<S> {
    /// A node waits until it knows that `index` is committed. To be called on a leader.
    pub(super) fn want_commit(&mut self, node: NodeId, index: LogIndex) {
        if node != self.config.node {
            let wanted = self.commits.wanted.entry(node).or_default();
            *wanted = index.max(*wanted);
        }
    }

    /// A new leader tells everybody that its first entry is committed: nobody counts anything before.
    pub(super) fn begin_reign(&mut self) {
        self.commits = Commits::default();
        let members: Vec<_> = self.membership().map(|(node, _)| node).collect();
        for node in members {
            self.want_commit(node, self.last_index());
        }
    }

    /// Whether a node is going to be told something that comes with news of `index`.
    pub(super) fn will_tell_commit(&self, node: NodeId, index: LogIndex) -> bool {
        let durable = self.commits.told_durable.get(&node);
        let told = durable.is_some_and(|told| told.term == self.term() && told.index >= index);
        self.is_leader() && !told && self.commits.wanted.get(&node).is_some_and(|at| *at >= index)
    }

    /// Tells those who wait what is on this disk, and what is committed where they do not see it themselves.
    pub(super) fn spread_commit(&mut self) {
        if !self.is_leader() || self.commits.wanted.is_empty() {
            return;
        }
        let own = self.config.node;
        let (durable, commit) = (self.durable(), self.commit_index());
        let mut tell = Vec::new();
        let mut wanted = std::mem::take(&mut self.commits.wanted);
        wanted.retain(|node, index| {
            let told = self.commits.told_durable.get(node).copied().unwrap_or_default();
            let knows_durable = told.term == durable.term && told.index >= *index;
            let is_news = !knows_durable && durable.index >= *index;
            let counts = (knows_durable || is_news) && self.is_quorum([own, *node]);
            let is_committed = commit >= *index;
            if is_news || (is_committed && !counts) {
                tell.push(*node);
            }
            !(is_committed || counts)
        });
        self.commits.wanted = wanted;
        for node in tell {
            self.tell_commit(node);
        }
    }

    /// Tells everybody who may not know it what is committed: those who wait for nothing.
    pub(super) fn spread_commit_to_all(&mut self) {
        if !self.is_leader() {
            return;
        }
        let behind: Vec<_> = self
            .membership()
            .map(|(node, _)| node)
            .filter(|node| *node != self.config.node)
            .filter(|node| self.heard.get(node) < Some(&self.commit_index()))
            .collect();
        for node in behind {
            self.tell_commit(node);
        }
    }

    fn tell_commit(&mut self, to: NodeId) {
        let (durable, commit) = (self.durable(), self.commit_index());
        self.commits.told_durable.insert(to, durable);
        if self.untold.remove(&to) {
            self.tell_now.insert(to);
        }
        let message = PeerMessage::Commit { durable, commit };
        self.effects.push_back(Effect::Send { to, message });
    }

    /// A peer has said what it has on disk, and what it knows to be committed.
    pub(super) fn hear_commit(&mut self, from: NodeId, durable: Claim, commit: LogIndex) {
        if durable.term != self.term() {
            return;
        }
        let known = self.commits.durable.entry(from).or_default();
        *known = durable.max(*known);
        // As far as this log is known to be that of the same leader: there it holds what is committed.
        if self.verified.term == durable.term {
            self.commit_to(commit.min(self.verified.index));
        }
        self.count_commit();
    }

    /// Counts, on a follower, what a quorum has on disk.
    pub(super) fn count_commit(&mut self) {
        let term = self.term();
        let follows = self.raft.raft.state == StateRole::Follower && self.verified.term == term;
        // A change of members that is still to come may make another set of nodes the quorum.
        if !follows || self.handed_out < self.last_membership_change {
            return;
        }
        let own = (self.config.node, self.durable());
        let others = self.commits.durable.iter().map(|(node, durable)| (*node, *durable));
        let claims: Vec<_> = others.chain([own]).filter(|(_, claim)| claim.term == term).collect();
        let have = |index| claims.iter().filter(move |(_, claim)| claim.index >= index);
        let counted = claims
            .iter()
            .map(|(_, claim)| claim.index)
            .filter(|index| self.is_quorum(have(*index).map(|(node, _)| *node)))
            .max()
            .unwrap_or_default()
            .min(self.verified.index);
        // Only entries of the term itself are committed by counting.
        if self.raft.raft.raft_log.term(counted.0) == Ok(term.0) {
            self.commit_to(counted);
        }
    }

    /// What this node has on disk of the log of its term's leader.
    fn durable(&self) -> Claim {
        let persisted = LogIndex(self.raft.raft.raft_log.persisted);
        if self.is_leader() {
            Claim { term: self.term(), index: persisted }
        } else {
            Claim { term: self.verified.term, index: persisted.min(self.verified.index) }
        }
    }

    fn commit_to(&mut self, index: LogIndex) {
        debug_assert!(index <= self.last_index(), "only what is in the log is committed");
        self.raft.raft.raft_log.commit_to(index.0);
    }

    fn is_quorum(&self, nodes: impl IntoIterator<Item = NodeId>) -> bool {
        let nodes = nodes.into_iter().map(|node| node.0).collect();
        self.raft.raft.prs().has_quorum(&nodes)
    }
}
