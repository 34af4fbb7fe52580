//! Locks, who waits for them, and whom they are delegated to.

use std::collections::{BTreeMap, BTreeSet};

use super::problem::Problem;
use crate::fs::locks::LockTable;
use crate::fs::proto;
use crate::types::{Ino, SessionId};

/// What was seen of them. Judged at the end: waits come after the queues, sessions after the locks.
#[derive(Default)]
pub(super) struct Locks {
    locked: BTreeSet<Ino>,
    /// Of each session that has, keeps or waits for a lock, one inode.
    sessions: BTreeMap<SessionId, Ino>,
    /// Keys of those who wait, as the queues and as the index has them.
    queued: BTreeMap<Vec<u8>, Ino>,
    indexed: BTreeMap<Vec<u8>, Ino>,
    problems: Vec<Problem>,
}

impl Locks {
    pub(super) fn see_locks(&mut self, ino: Ino, locks: &proto::Locks) {
        self.locked.insert(ino);
        let waiters = locks.waiting.iter().map(proto::WaitingLock::session);
        let holders = locks.held.iter().map(|lock| SessionId(lock.session));
        let delegate = SessionId(locks.delegate);
        let is_delegated = delegate != SessionId::CLUSTER;
        self.sessions.extend(waiters.chain(holders).map(|session| (session, ino)));
        if is_delegated {
            self.sessions.insert(delegate, ino);
        }
        let queued = locks.waiting.iter().map(|waiting| (waiting.key(), ino));
        self.queued.extend(queued);
        let Some(table) = LockTable::new(locks.held.clone()) else {
            self.problems.push(Problem::LocksOverlap { ino });
            return;
        };
        if is_delegated && (!table.is_empty() || (!locks.recalled && !locks.waiting.is_empty())) {
            self.problems.push(Problem::Delegated { ino });
        }
        if !is_delegated && table.is_empty() {
            self.problems.push(Problem::NoLocks { ino });
        }
        let waits = |waiting: &proto::WaitingLock| {
            let wanted = waiting.lock.unwrap_or_default();
            waiting.mode() == proto::LockMode::Wait && table.conflicts(&wanted).next().is_some()
        };
        if !is_delegated && !locks.waiting.iter().all(waits) {
            self.problems.push(Problem::NeedNotWait { ino });
        }
    }

    pub(super) fn see_wait(&mut self, key: &[u8], wait: proto::LockWait) {
        self.indexed.insert(key.to_vec(), Ino(wait.ino));
    }

    pub(super) fn finish(
        mut self,
        exists: impl Fn(Ino) -> bool,
        is_live: impl Fn(SessionId) -> bool,
    ) -> Vec<Problem> {
        let gone = self.locked.iter().filter(|ino| !exists(**ino));
        self.problems.extend(gone.map(|ino| Problem::LocksWithoutInode { ino: *ino }));
        let ended = self.sessions.iter().filter(|(session, _)| !is_live(**session));
        let problem = |(&session, &ino)| Problem::LockOfEnded { ino, session };
        self.problems.extend(ended.map(problem));
        let differ = self.queued.iter().filter(|(key, ino)| self.indexed.get(*key) != Some(ino));
        let differ =
            differ.chain(self.indexed.iter().filter(|(key, _)| !self.queued.contains_key(*key)));
        self.problems.extend(differ.map(|(_, ino)| Problem::LockWaits { ino: *ino }));
        self.problems
    }
}
