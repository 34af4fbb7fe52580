//! Who is a member, as a node's services ask for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Handle, Members, NodeError};
use crate::fs::Errno;
use crate::fs::proto::{Member, PromoteMember, RemoveMember, command::Op};
use crate::fs::query;
use crate::types::{NodeId, Suffrage};

/// Why a membership stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberRefusal {
    /// There is none.
    #[error("there is no such member: `quorumfs member list` shows them")]
    Unknown,
    /// Somebody has to vote.
    #[error("nobody else has a vote: promote another member first (quorumfs member promote)")]
    LastVoter,
}

impl Handle {
    /// Takes a node's membership away. Its place in the Raft group goes soon after.
    ///
    /// # Errors
    /// When no quorum agrees in time.
    pub async fn remove_member(
        &self,
        node: NodeId,
    ) -> Result<Result<(), MemberRefusal>, NodeError> {
        self.change_members(Op::RemoveMember(RemoveMember { node: node.0 })).await
    }

    /// Gives a learner a vote, as soon as it holds everything.
    ///
    /// # Errors
    /// When no quorum agrees in time.
    pub async fn promote_member(
        &self,
        node: NodeId,
    ) -> Result<Result<(), MemberRefusal>, NodeError> {
        self.change_members(Op::PromoteMember(PromoteMember { node: node.0 })).await
    }

    async fn change_members(&self, op: Op) -> Result<Result<(), MemberRefusal>, NodeError> {
        let errno = self.mutate_cluster(op).await?.errno;
        Ok(match errno {
            0 => Ok(()),
            errno if errno == Errno::EBUSY.number() => Err(MemberRefusal::LastVoter),
            _ => Err(MemberRefusal::Unknown),
        })
    }

    /// Who is a member, and who has a place in the Raft group, as far as is known here. Waits for nothing.
    #[must_use]
    pub fn members(&self) -> Arc<Members> {
        self.0.members.get()
    }

    /// A node has said where it listens. What the table of members says counts more; a newcomer has only a part of it.
    pub fn meet(&self, node: NodeId, address: &str) {
        if self.members().get(node).is_none() {
            self.0.transport.learn(node, address);
        }
    }

    /// Whether the Raft group does not follow the table of members yet.
    pub(super) fn is_membership_moving(&self) -> bool {
        let members = self.members();
        let all = |wanted| {
            let is_it = |member: &&Member| query::suffrage(member) == Some(wanted);
            members.list.iter().filter(is_it).map(|member| member.node).collect::<BTreeSet<_>>()
        };
        let (voters, learners) = (all(Suffrage::Voter), all(Suffrage::Learner));
        let placed = &members.placed;
        !placed.voters_outgoing.is_empty()
            || placed.voters.iter().copied().collect::<BTreeSet<_>>() != voters
            || placed.learners.iter().copied().collect::<BTreeSet<_>>() != learners
    }

    /// Told when the table of members has changed.
    #[must_use]
    pub fn members_changed(&self) -> watch::Receiver<()> {
        self.0.members_changed.subscribe()
    }
}
