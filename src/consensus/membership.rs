//! The Raft group follows the table of members.

use std::collections::{BTreeMap, BTreeSet};

use raft::Storage;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};

use super::core::Core;
use crate::types::{LogIndex, NodeId, Suffrage};

/// A learner this close to the leader's log becomes a voter.
const PROMOTION_LAG: u64 = 64;

/// What a leader knows of members that come or go.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// What has to be held before a learner votes, or a voter goes: all that was committed when this leader first met
    /// them so.
    targets: BTreeMap<NodeId, LogIndex>,
    /// Up to where nodes have said that they hold all bytes, on their disks.
    holds: BTreeMap<NodeId, LogIndex>,
}

impl Moves {
    fn holds(&self, node: NodeId, target: LogIndex) -> bool {
        self.holds.get(&node).is_some_and(|held| *held >= target)
    }
}

impl<S: Storage> Core<S> {
    /// A node has all bytes that came up to `index`.
    pub(super) fn note_holds(&mut self, node: NodeId, index: LogIndex) {
        self.moves.holds.insert(node, index);
    }

    /// Of whoever is no member, and has no place, nothing is kept: a node is what it says it is, and there may be many.
    pub(super) fn forget_strangers(&mut self) {
        let placed = self.membership().map(|(node, _)| node);
        let mut known: BTreeSet<_> = placed.chain(self.members.keys().copied()).collect();
        known.remove(&self.config.node);
        self.suspicions.expect(&known, self.now);
        self.heard.retain(|node, _| known.contains(node));
        self.told.retain(|node, _| known.contains(node));
        known.insert(self.config.node);
        self.moves.holds.retain(|node, _| known.contains(node));
    }

    /// Gives every known member a place: a learner first, a voter once it holds everything and has the same state. Whoever is no member
    /// loses its place. The members are replicated state, so that nothing is lost with a leader. All that is to be
    /// changed changes at once, by joint consensus.
    pub(super) fn reconcile_membership(&mut self) {
        // What the table of members says is not to be believed where the state is wrong.
        if self.raft.raft.has_pending_conf() || self.digests.is_diverged() {
            return;
        }
        let is_joint = !self.raft.raft.prs().conf().to_conf_state().voters_outgoing.is_empty();
        let changes = if is_joint {
            // A leader that died in between has left that to the next one: no changes are its end.
            Vec::new()
        } else {
            self.forget_targets();
            let mut changes = self.newcomers();
            changes.extend(self.promotions());
            changes.extend(self.removals());
            if changes.is_empty() {
                return;
            }
            changes
        };
        let mut change = ConfChangeV2::default();
        change.set_changes(changes.into_iter().map(single).collect::<Vec<_>>().into());
        // A refusal (a change that is not applied yet) is tried again at the next tick.
        let _ = self.raft.propose_conf_change(Vec::new(), change);
    }

    fn newcomers(&self) -> Vec<(ConfChangeType, NodeId)> {
        let placed: BTreeMap<_, _> = self.membership().collect();
        let new = self.members.keys().filter(|node| !placed.contains_key(node));
        new.map(|node| (ConfChangeType::AddLearnerNode, *node)).collect()
    }

    pub(super) fn is_to_vote(&self, node: NodeId) -> bool {
        self.members.get(&node) == Some(&Suffrage::Voter)
    }

    /// A learner whose state is another one is a harmless one; as a voter it would be half of a quorum. In doubt nobody knows
    /// whose is.
    fn promotions(&mut self) -> Vec<(ConfChangeType, NodeId)> {
        if !self.digests.is_sound() {
            return Vec::new();
        }
        let learners = self.membership().filter(|(_, votes)| !votes).map(|(node, _)| node);
        let waiting: Vec<_> = learners.filter(|node| self.is_to_vote(*node)).collect();
        let last = self.last_index().0;
        let ready = waiting.into_iter().filter(|node| {
            let target = self.target(*node);
            self.moves.holds(*node, target)
                && self.digests.has_agreed(*node)
                && self.raft.raft.prs().get(node.0).is_some_and(|progress| {
                    progress.recent_active && progress.matched + PROMOTION_LAG >= last
                })
        });
        ready.map(|node| (ConfChangeType::AddNode, node)).collect()
    }

    /// A voter goes once most of those who stay hold what it may have helped to hold. A leader that is to go hands over
    /// first; somebody always stays to vote.
    fn removals(&mut self) -> Vec<(ConfChangeType, NodeId)> {
        let own = self.config.node;
        let (gone, stay): (Vec<_>, Vec<_>) =
            self.membership().partition(|(node, _)| !self.members.contains_key(node));
        let voters: Vec<_> =
            stay.iter().filter(|(_, votes)| *votes).map(|(node, _)| *node).collect();
        let mut removed = Vec::new();
        for (node, votes) in gone {
            let target = self.target(node);
            let holders = voters.iter().filter(|other| self.moves.holds(**other, target)).count();
            if votes && holders <= voters.len() / 2 {
                continue;
            }
            if node == own {
                let stays = self.fit_to_lead().filter(|node| voters.contains(node));
                let best = stays.max_by_key(|node| self.matched(*node));
                if best.is_some() {
                    self.transfer(best);
                }
            } else {
                removed.push((ConfChangeType::RemoveNode, node));
            }
        }
        removed
    }

    /// Whoever was elected with its own removal in its log leads without a place once that is applied, and raft-rs would look for
    /// that place at the next word of anybody, or when the next write is done. The others elect a leader.
    pub(super) fn leave_if_removed(&mut self) {
        let own = self.config.node.0;
        if self.is_leader() && self.raft.raft.prs().get(own).is_none() {
            let term = self.raft.raft.term;
            self.raft.raft.become_follower(term, raft::INVALID_ID);
        }
    }

    fn target(&mut self, node: NodeId) -> LogIndex {
        let commit = self.commit_index();
        *self.moves.targets.entry(node).or_insert(commit)
    }

    /// Who neither comes nor goes any more is met anew when it does.
    fn forget_targets(&mut self) {
        let placed: BTreeMap<_, _> = self.membership().collect();
        let members = &self.members;
        self.moves.targets.retain(|node, _| {
            let (votes, wanted) = (placed.get(node), members.get(node));
            votes.is_some() && (wanted.is_none() || votes == Some(&false))
        });
    }
}

fn single((kind, node): (ConfChangeType, NodeId)) -> ConfChangeSingle {
    let mut single = ConfChangeSingle::default();
    single.set_change_type(kind);
    single.node_id = node.0;
    single
}
