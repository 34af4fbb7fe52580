//! Proposals of this node from the moment they are wanted until they may be acknowledged.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::Wait;
use crate::types::{LogIndex, Monotonic, ProposalKey};

#[derive(Debug)]
struct Proposal {
    data: Bytes,
    wait: Wait,
    /// When it was last proposed; never, where it is queued.
    proposed: Option<Monotonic>,
}

/// A leader may drop a proposal silently, so each is proposed again until it is applied: sessions and
/// sequence numbers make that harmless.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    /// Not applied yet.
    open: BTreeMap<ProposalKey, Proposal>,
    /// To be proposed, in order.
    queue: VecDeque<ProposalKey>,
    in_flight_bytes: usize,
    /// Applied here, but not yet shown by the whole roster.
    unstable: BTreeMap<LogIndex, Vec<ProposalKey>>,
    retries: u64,
}

impl Proposals {
    pub(super) fn add(&mut self, key: ProposalKey, data: Bytes, wait: Wait) {
        let replaced = self.open.insert(key, Proposal { data, wait, proposed: None });
        debug_assert!(replaced.is_none(), "a key names one proposal");
        self.queue.push_back(key);
    }

    pub(super) fn abandon(&mut self, key: ProposalKey) {
        self.close(key);
        self.unstable.values_mut().for_each(|keys| keys.retain(|waiting| *waiting != key));
    }

    /// Queues again whatever was proposed before `since` and has no outcome. The oldest go first.
    pub(super) fn retry(&mut self, since: Monotonic) {
        let mut lost: Vec<_> = self
            .open
            .iter_mut()
            .filter(|(_, proposal)| proposal.proposed.is_some_and(|at| at <= since))
            .map(|(key, proposal)| {
                self.in_flight_bytes -= proposal.data.len();
                (proposal.proposed.take(), *key)
            })
            .collect();
        lost.sort_unstable();
        self.retries += lost.len() as u64;
        lost.into_iter().rev().for_each(|(_, key)| self.queue.push_front(key));
    }

    /// Takes queued proposals for one message of about `message_bytes`, as far as the budget of bytes
    /// in flight goes (one always fits).
    pub(super) fn take_batch(
        &mut self,
        now: Monotonic,
        budget: usize,
        message_bytes: usize,
    ) -> Vec<Bytes> {
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        while batch_bytes < message_bytes
            && let Some(key) = self.queue.front()
        {
            let Some(proposal) = self.open.get_mut(key) else {
                self.queue.pop_front();
                continue;
            };
            let size = proposal.data.len();
            if self.in_flight_bytes > 0 && self.in_flight_bytes + size > budget {
                break;
            }
            self.in_flight_bytes += size;
            batch_bytes += size;
            proposal.proposed = Some(now);
            batch.push(proposal.data.clone());
            self.queue.pop_front();
        }
        batch
    }

    /// A command was applied here at `index`. Returns it if it may be acknowledged at once.
    pub(super) fn applied(&mut self, key: ProposalKey, index: LogIndex) -> Option<ProposalKey> {
        match self.close(key)? {
            Wait::Here => Some(key),
            Wait::Roster => {
                self.unstable.entry(index).or_default().push(key);
                None
            }
        }
    }

    /// What may be acknowledged now that everything up to `stable` is shown by the whole roster.
    pub(super) fn acknowledge(&mut self, stable: LogIndex) -> Vec<ProposalKey> {
        let rest = self.unstable.split_off(&stable.next());
        std::mem::replace(&mut self.unstable, rest).into_values().flatten().collect()
    }

    pub(super) fn is_queue_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many proposals were proposed again.
    pub(super) fn retries(&self) -> u64 {
        self.retries
    }

    fn close(&mut self, key: ProposalKey) -> Option<Wait> {
        let proposal = self.open.remove(&key)?;
        if proposal.proposed.is_some() {
            self.in_flight_bytes -= proposal.data.len();
        }
        Some(proposal.wait)
    }
}
