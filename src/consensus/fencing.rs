//! Sessions of daemons that are dead for sure: ended without waiting for a TTL.

use raft::Storage;

use super::Effect;
use super::core::Core;
use crate::types::{NodeId, SessionId};

impl<S: Storage> Core<S> {
    /// A guardian says that nothing is served under this session any more. Every node keeps that in mind: whoever leads
    /// acts on it, and whoever leads next, should that one fail.
    pub(super) fn fenced(&mut self, node: NodeId, session: SessionId) {
        self.keeper.fenced(node, session);
        self.expire_overdue();
    }

    /// Has those ended that are overdue, where this node leads.
    pub(super) fn expire_overdue(&mut self) {
        for session in self.keeper.overdue(self.now, self.applied.index, &self.roster) {
            self.effects.push_back(Effect::Expire { session });
        }
    }
}
