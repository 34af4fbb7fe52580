//! This node's own session: its heartbeats, and the lease that their answers extend.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::mutants::{self, Mutant};
use crate::types::{Monotonic, SessionId};

/// The lease of a session, on the session's own node. It runs from the moment when the renewed
/// heartbeat was *sent*; the leader counts from its receipt, so the lease is always the shorter one.
#[derive(Debug, Default)]
pub(super) struct Lease {
    session: Option<SessionId>,
    /// Heartbeats without an answer: number, and when they were sent.
    sent: BTreeMap<u64, Monotonic>,
    last_number: u64,
    last_sent: Option<Monotonic>,
    until: Monotonic,
}

impl Lease {
    pub(super) fn session(&self) -> Option<SessionId> {
        self.session
    }

    /// A session's lease never carries over to the next one.
    pub(super) fn begin(&mut self, session: Option<SessionId>) {
        *self = Self { session, last_number: self.last_number, ..Self::default() };
    }

    pub(super) fn until(&self) -> Monotonic {
        self.until
    }

    pub(super) fn is_due(&self, now: Monotonic, interval: Duration) -> bool {
        self.session.is_some() && self.last_sent.is_none_or(|sent| now.since(sent) >= interval)
    }

    /// Makes a heartbeat due at once: there is a new leader, or a new way to it.
    pub(super) fn hurry(&mut self) {
        self.last_sent = None;
    }

    /// Numbers a heartbeat that is sent at `now`.
    pub(super) fn send(&mut self, now: Monotonic, ttl: Duration) -> u64 {
        self.sent.retain(|_, sent| now.since(*sent) < ttl);
        self.last_number += 1;
        self.last_sent = Some(now);
        self.sent.insert(self.last_number, now);
        self.last_number
    }

    /// The leader renewed `session` for the heartbeat `number`.
    pub(super) fn renewed(
        &mut self,
        now: Monotonic,
        session: SessionId,
        number: u64,
        ttl: Duration,
    ) {
        if self.session != Some(session) {
            return;
        }
        if let Some(sent) = self.sent.remove(&number) {
            let since = if mutants::is(Mutant::LeaseFromReceipt) { now } else { sent };
            self.until = self.until.max(since + ttl);
            self.sent.retain(|earlier, _| *earlier > number);
        }
    }
}
