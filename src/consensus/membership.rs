//! The Raft group follows the table of members.

use std::collections::BTreeMap;

use raft::Storage;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};

use super::core::Core;

/// A learner this close to the leader's log becomes a voter.
const PROMOTION_LAG: u64 = 64;

impl<S: Storage> Core<S> {
    /// Gives every known member a place: a learner first, a voter once it holds (nearly) everything.
    /// The members are replicated state, so that nothing is lost with a leader.
    pub(super) fn reconcile_membership(&mut self) {
        if self.raft.raft.has_pending_conf() {
            return;
        }
        let placed: BTreeMap<_, _> = self.membership().collect();
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
}
