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
    /// On a leader: the first and the last entry that each node waits for and was not told of.
    wanted: BTreeMap<NodeId, (LogIndex, LogIndex)>,
}

impl<S: Storage> Core<S> {
    /// A node waits until it knows that `index` is committed. To be called on a leader.
    pub(super) fn want_commit(&mut self, node: NodeId, index: LogIndex) {
        if node != self.config.node {
            let (first, last) = self.commits.wanted.entry(node).or_insert((index, index));
            *first = index.min(*first);
            *last = index.max(*last);
        }
    }

    /// A new leader tells everybody that its first entry is committed: nobody counts anything before.
    pub(super) fn begin_reign(&mut self) {
        self.commits = Commits::default();
        self.digests.listen(self.now);
        let members: Vec<_> = self.membership().map(|(node, _)| node).collect();
        for node in members {
            self.want_commit(node, self.last_index());
        }
    }

    /// Whether a node is still going to be told of `index`: other news can travel with that.
    pub(super) fn will_tell_commit(&self, node: NodeId, index: LogIndex) -> bool {
        let wanted = self.commits.wanted.get(&node);
        self.is_leader() && wanted.is_some_and(|(first, last)| (first..=last).contains(&&index))
    }

    /// Tells those who wait what is on this disk and what is committed. Whoever sees by the first that
    /// something is committed is not told again when it is.
    pub(super) fn spread_commit(&mut self) {
        if !self.is_leader() || self.commits.wanted.is_empty() {
            return;
        }
        let (durable, commit) = (self.durable().index, self.commit_index());
        let mut news = Vec::new();
        let mut wanted = std::mem::take(&mut self.commits.wanted);
        wanted.retain(|node, (first, last)| {
            let counts = self.is_quorum([self.config.node, *node]);
            let told = if counts { durable.max(commit) } else { commit };
            if told >= *first {
                news.push(*node);
                *first = told.next();
            }
            told < *last
        });
        self.commits.wanted = wanted;
        for node in news {
            self.tell_commit(node);
        }
    }

    /// Tells everybody who may not know it what is committed: those who wait for nothing, and those to whom
    /// something was lost.
    pub(super) fn spread_commit_to_all(&mut self) {
        let own = self.config.node;
        let behind: Vec<_> = self
            .membership()
            .map(|(node, _)| node)
            .filter(|node| {
                let heard = self.heard.get(node).map(|(index, _)| *index);
                *node != own && heard < Some(self.commit_index())
            })
            .collect();
        for node in behind {
            // Also shows where entries are missing there.
            self.raft.raft.send_append(node.0);
        }
    }

    fn tell_commit(&mut self, to: NodeId) {
        let (durable, commit) = (self.durable(), self.commit_index());
        if self.untold.remove(&to) {
            self.tell_now.insert(to);
        }
        let message = PeerMessage::Commit { durable, commit };
        self.effects.push_back(Effect::Send { to, message });
    }

    /// A peer has said what it has on disk, and what it knows to be committed.
    pub(super) fn hear_commit(&mut self, from: NodeId, durable: Claim, commit: LogIndex) {
        let follows = self.raft.raft.state == StateRole::Follower;
        if !follows || durable.term != self.term() {
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

    pub(super) fn is_quorum(&self, nodes: impl IntoIterator<Item = NodeId>) -> bool {
        let nodes = nodes.into_iter().map(|node| node.0).collect();
        self.raft.raft.prs().has_quorum(&nodes)
    }
}
