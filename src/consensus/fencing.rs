//! Sessions of daemons that are dead for sure: ended without waiting for a TTL.

use raft::Storage;

use super::core::Core;
use super::{CoreError, Effect};
use crate::types::{NodeId, SessionId};

impl<S: Storage> Core<S> {
    /// A guardian says that nothing is served under this session any more. Every node keeps that in mind: whoever leads
    /// acts on it, and whoever leads next, should that one fail.
    pub(super) fn fenced(&mut self, node: NodeId, session: SessionId) -> Result<(), CoreError> {
        self.keeper.fenced(node, session);
        if self.roster.node_of(session) == Some(node) {
            self.elect_without(node)?;
        }
        self.expire_overdue();
        Ok(())
    }

    /// Where the dead daemon led, nobody waits for an election timeout: one voter stands for election at once, and the others, who
    /// are told too, are free to vote for it. Should it not be elected, a timeout decides as ever.
    fn elect_without(&mut self, node: NodeId) -> Result<(), CoreError> {
        let own = self.config.node;
        if self.raft.raft.leader_id != node.0 || node == own {
            return Ok(());
        }
        let term = self.raft.raft.term;
        self.raft.raft.become_follower(term, raft::INVALID_ID);
        let voters = self.membership().filter(|(_, votes)| *votes);
        let is_first = voters.map(|(voter, _)| voter).find(|voter| *voter != node) == Some(own);
        // Whoever is known to be wrong would lead nobody.
        if is_first && !self.digests.is_diverged() {
            self.raft.campaign()?;
        }
        Ok(())
    }

    /// Has those ended that are overdue, where this node leads.
    pub(super) fn expire_overdue(&mut self) {
        for session in self.keeper.overdue(self.now, self.applied.index, &self.roster) {
            self.effects.push_back(Effect::Expire { session });
        }
    }
}
