//! Who is a member and who has a place in the Raft group, in memory: for whoever must not wait for the state, which
//! waits for the disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use raft::eraftpb::ConfState;

use crate::fs::proto::Member;
use crate::fs::query;
use crate::store::{State, StoreError};
use crate::types::NodeId;

/// As of the last applied entry that changed it.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// The table of members, by their ids.
    pub list: Vec<Member>,
    /// The Raft group.
    pub placed: ConfState,
    /// Ids from here on were given to nobody.
    next: u64,
}

impl Members {
    fn of(state: &State) -> Result<Self, StoreError> {
        // Two looks: who comes or goes in between has this read again.
        let placed = state.conf_state();
        let read = state.read();
        Ok(Self { list: query::members(&read)?, placed, next: query::next_node(&read)?.0 })
    }

    /// Who has a place in the Raft group.
    #[must_use]
    pub fn with_a_place(&self) -> BTreeSet<NodeId> {
        let voters = self.placed.voters.iter().chain(&self.placed.voters_outgoing);
        let all = voters.chain(&self.placed.learners).chain(&self.placed.learners_next);
        all.copied().map(NodeId).collect()
    }

    /// One of the table.
    #[must_use]
    pub fn get(&self, node: NodeId) -> Option<&Member> {
        self.list.iter().find(|member| member.node == node.0)
    }

    /// Whether a node is a member, or has a place in the Raft group.
    #[must_use]
    pub fn is_known(&self, node: NodeId) -> bool {
        self.get(node).is_some() || self.with_a_place().contains(&node)
    }

    /// Whether a node was a member once, and is none any more. It votes for as long as it has a place in the Raft group:
    /// who takes that away may need it.
    #[must_use]
    pub fn is_removed(&self, node: NodeId) -> bool {
        node.0 < self.next && !self.is_known(node)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct MemberTable(ArcSwap<Members>);

impl MemberTable {
    /// As the state has it.
    ///
    /// # Errors
    /// When this replica cannot read its own state.
    pub(super) fn of(state: &State) -> Result<Self, StoreError> {
        Ok(Self(ArcSwap::from_pointee(Members::of(state)?)))
    }

    /// To be called when an entry has changed it, or the state was replaced.
    pub(super) fn read_again(&self, state: &State) -> Result<Arc<Members>, StoreError> {
        let now = Arc::new(Members::of(state)?);
        self.0.store(now.clone());
        Ok(now)
    }

    /// Waits for nothing.
    pub(super) fn get(&self) -> Arc<Members> {
        self.0.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::{ConfState, Member, Members, NodeId};

    #[test]
    fn who_was_a_member_and_has_no_place_is_removed() {
        let list = vec![Member { node: 1, ..Member::default() }];
        let placed = ConfState { voters: vec![1], learners: vec![3], ..ConfState::default() };
        let members = Members { list, placed, next: 4 };
        let removed: Vec<u64> = (1..=5).filter(|node| members.is_removed(NodeId(*node))).collect();
        assert_eq!(removed, [2]);
    }
}
