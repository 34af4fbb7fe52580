//! Sessions, their outcomes and grants, holders of orphans, and members.

use std::collections::{BTreeMap, BTreeSet};

use super::problem::Problem;
use crate::fs::limits::OUTCOME_WINDOW;
use crate::fs::proto;
use crate::types::{Ino, NodeId, Seq, SessionId};

/// What was seen of them. Judged at the end: outcomes come before the sessions that they belong to.
#[derive(Default)]
pub(super) struct Sessions {
    live: BTreeMap<SessionId, NodeId>,
    lowest: BTreeMap<SessionId, u64>,
    granted: Vec<(u64, u64, SessionId)>,
    /// Of each session, the first and the last outcome.
    outcomes: BTreeMap<SessionId, (Seq, Seq)>,
    /// Of each holder, one orphan.
    holders: BTreeMap<SessionId, Ino>,
    members: BTreeSet<NodeId>,
    nonces: BTreeSet<u64>,
    problems: Vec<Problem>,
}

impl Sessions {
    pub(super) fn see_live(&mut self, id: SessionId, session: &proto::Session) {
        let node = NodeId(session.node);
        if self.live.values().any(|&other| other == node) {
            self.problems.push(Problem::SeveralSessions { node });
        }
        self.live.insert(id, node);
        self.lowest.insert(id, session.lowest);
        self.granted.extend(session.granted.iter().map(|range| (range.first, range.end, id)));
    }

    pub(super) fn see_ended(&mut self, id: SessionId, session: &proto::Session) {
        if self.live.contains_key(&id) {
            self.problems.push(Problem::LiveAndEnded { session: id });
        }
        if !session.granted.is_empty() {
            self.problems.push(Problem::GrantsOfEnded { session: id });
        }
        self.lowest.insert(id, session.lowest);
    }

    pub(super) fn see_outcome(&mut self, session: SessionId, seq: Seq) {
        self.outcomes.entry(session).or_insert((seq, seq)).1 = seq;
    }

    pub(super) fn see_orphan(&mut self, ino: Ino, orphan: &proto::Orphan) {
        if orphan.holders.is_empty() {
            self.problems.push(Problem::OrphanNotHeld { ino });
        }
        if !orphan.holders.is_sorted_by(|one, next| one < next) {
            self.problems.push(Problem::HoldersOutOfOrder { ino });
        }
        self.holders.extend(orphan.holders.iter().map(|&holder| (SessionId(holder), ino)));
    }

    pub(super) fn see_member(&mut self, key: NodeId, member: &proto::Member) {
        let recorded = NodeId(member.node);
        if recorded != key {
            self.problems.push(Problem::MemberKey { key, recorded });
        }
        if member.nonce != 0 && !self.nonces.insert(member.nonce) {
            self.problems.push(Problem::SeveralMembers { nonce: member.nonce });
        }
        self.members.insert(key);
    }

    pub(super) fn is_live(&self, session: SessionId) -> bool {
        self.live.contains_key(&session)
    }

    pub(super) fn finish(mut self, next_ino: Ino, next_node: NodeId) -> Vec<Problem> {
        self.check_grants(next_ino);
        self.check_outcomes();
        for (&session, &ino) in &self.holders {
            if !self.live.contains_key(&session) {
                self.problems.push(Problem::HolderNotLive { ino, session });
            }
        }
        if let Some(&node) = self.members.range(next_node..).next() {
            self.problems.push(Problem::MemberNotAllocated { node, next: next_node });
        }
        self.problems
    }

    fn check_grants(&mut self, next: Ino) {
        self.granted.sort_unstable();
        for pair in self.granted.windows(2) {
            let [(_, end, session), (first, _, other)] = *pair else { continue };
            if end > first {
                self.problems.push(Problem::RangesOverlap { session, other });
            }
        }
        for &(_, end, session) in &self.granted {
            if end > next.0 {
                self.problems.push(Problem::RangeNotAllocated { session, end: Ino(end), next });
            }
        }
    }

    fn check_outcomes(&mut self) {
        for (&session, &(first, last)) in &self.outcomes {
            let Some(&lowest) = self.lowest.get(&session) else {
                self.problems.push(Problem::OutcomeWithoutSession { session, seq: first });
                continue;
            };
            for seq in [first, last] {
                if seq.0.checked_sub(lowest).is_none_or(|ahead| ahead >= OUTCOME_WINDOW) {
                    self.problems.push(Problem::OutcomeOutsideWindow { session, seq });
                }
            }
        }
    }
}
