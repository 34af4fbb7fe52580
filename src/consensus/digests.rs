//! Whether the replicas' states are equal: voters say what theirs came to at certain entries, the leader counts, and has
//! the log say what most have. Each replica compares by itself when it applies that.
//!
//! What the log says of an entry is itself the next entry that replicas say their digests of, so there is one such entry
//! a second while the state changes, and none while it does not.

use std::collections::BTreeMap;
use std::time::Duration;

use raft::Storage;

use super::core::{Core, proposal};
use super::{Effect, PeerMessage, Sample};
use crate::mutants::{self, Mutant};
use crate::types::{LogIndex, Monotonic, NodeId};

/// How often, in ticks, a digest is said again that may have been lost.
const REPEAT_TICKS: u64 = 10;
/// How long, in ticks, a leader that differs waits for one voter to take over before it asks another.
const LEAVE_TICKS: u64 = 20;
/// For so many periods a leader waits for voters that have not said theirs, where others differ without a majority.
const PATIENCE: u32 = 3;

/// What is known of this replica's state and those of the others.
#[derive(Debug)]
pub(super) struct Digests {
    /// Of this replica, and when it was taken.
    own: Option<(Sample, Monotonic)>,
    /// Of the others, each its last one.
    said: BTreeMap<NodeId, Sample>,
    /// The state changed between the last two samples, or may have.
    changed: bool,
    /// Commands that were applied since the last one.
    since: usize,
    /// When the next one was last asked for.
    asked: Option<Monotonic>,
    /// Since when this replica leads, and is told what the others have.
    listens_since: Monotonic,
    standing: Standing,
}

/// How this replica's state stands to those of the others, as far as that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is known against it.
    #[default]
    Sound,
    /// The voters differ, and none of their states is that of a majority.
    Doubtful,
    /// It is not that of the majority: nothing is applied until it is replaced by one that is.
    Diverged,
}

impl Standing {
    /// Up to where a replica may say that it holds all bytes, of those that came up to `index`. One that differs may throw
    /// bytes away, and is to get no vote. In doubt nobody throws any away; and whoever removes a member then has decided.
    #[must_use]
    pub fn holds(self, index: LogIndex) -> LogIndex {
        match self {
            Self::Doubtful if mutants::is(Mutant::HoldNothingInDoubt) => LogIndex(0),
            Self::Sound | Self::Doubtful => index,
            Self::Diverged => LogIndex(0),
        }
    }
}

impl Digests {
    /// As of a start, where nothing is known of what was applied before.
    pub(super) fn new(own: Option<Sample>) -> Self {
        Self {
            own: own.map(|sample| (sample, Monotonic::default())),
            said: BTreeMap::new(),
            changed: true,
            since: 0,
            asked: None,
            listens_since: Monotonic::default(),
            standing: Standing::Sound,
        }
    }

    /// This replica leads from now on.
    pub(super) fn listen(&mut self, now: Monotonic) {
        self.listens_since = now;
    }

    pub(super) fn is_sound(&self) -> bool {
        self.standing == Standing::Sound
    }

    pub(super) fn is_diverged(&self) -> bool {
        self.standing == Standing::Diverged
    }

    fn sampled(&mut self, sample: Sample, judged: LogIndex, now: Monotonic) {
        let before = self.own.map_or(LogIndex(0), |(before, _)| before.index);
        // The entry itself is one of them. What came before the last sample, of which it says nothing, is still to be judged.
        self.changed = self.since > 1 || (self.changed && judged < before);
        self.since = 0;
        self.asked = None;
        self.own = Some((sample, now));
    }

    /// How long the others have had time to say theirs.
    fn listened(&self, taken: Monotonic, now: Monotonic) -> Duration {
        now.since(taken.max(self.listens_since))
    }

    /// The state of another one was that of this replica, at the last entry where that was looked at.
    pub(super) fn has_agreed(&self, node: NodeId) -> bool {
        self.own.is_some_and(|(own, _)| self.said.get(&node) == Some(&own))
    }

    pub(super) fn commands_applied(&mut self, count: usize) {
        self.since += count;
    }
}

/// What the samples of the voters come to.
#[derive(Debug, PartialEq, Eq)]
enum Count {
    /// A majority has this one.
    Majority(u128),
    /// Some differ, and no majority is to be expected soon.
    Differ,
    /// Too few are known.
    Open,
}

impl<S: Storage> Core<S> {
    /// This replica's digest at an entry that asks for it, and says what most had at `judged`. Comes after what was
    /// applied up to it.
    pub(super) fn sampled(&mut self, sample: Sample, judged: LogIndex) {
        self.digests.sampled(sample, judged, self.now);
        self.say_digest();
    }

    pub(super) fn hear_digest(&mut self, from: NodeId, sample: Sample) {
        let said = self.digests.said.entry(from).or_insert(sample);
        if said.index <= sample.index {
            *said = sample;
        }
    }

    /// What is known of this replica has changed. One that differs leads nobody, and serves nothing.
    pub(super) fn stand(&mut self, standing: Standing) {
        self.digests.standing = standing;
        if standing != Standing::Sound {
            self.lease.begin(None);
        }
        self.leave_if_diverged();
    }

    pub(super) fn tick_digests(&mut self) {
        self.leave_if_diverged();
        if self.digests.is_diverged() {
            // Nothing is applied, but what is handed out counts as if it were: it is not needed here any more, and raft-rs lets
            // nobody stand for election who has a change of the membership before him. Perhaps nobody else has all of the
            // log.
            self.pass(self.handed_out);
            let durable = self.raft.raft.raft_log.persisted.min(self.handed_out.0);
            self.raft.mut_store().trim(LogIndex(durable));
        }
        if self.ticks.is_multiple_of(REPEAT_TICKS) {
            self.say_digest();
        }
        if self.is_leader() {
            self.ask_for_digests();
        }
    }

    /// Has raft-rs know that entries up to there are applied, where it does not.
    pub(super) fn pass(&mut self, index: LogIndex) {
        let log = &self.raft.raft.raft_log;
        let index = index.0.min(log.persisted).min(log.committed);
        if index > log.applied {
            self.raft.advance_apply_to(index);
        }
    }

    /// Tells the leader.
    pub(super) fn say_digest(&mut self) {
        let (leader, own) = (self.role.2, self.config.node);
        let Some((sample, _)) = self.digests.own else { return };
        let is_of_use = self.digests.standing != Standing::Diverged;
        if is_of_use && leader != NodeId(0) && leader != own {
            let message = PeerMessage::Digest(sample);
            self.effects.push_back(Effect::Send { to: leader, message });
        }
    }

    fn active_voters(&self) -> impl Iterator<Item = NodeId> {
        let progress = self.raft.raft.prs();
        let voters = progress.conf().to_conf_state().take_voters();
        voters
            .into_iter()
            .filter(|id| progress.get(*id).is_some_and(|progress| progress.recent_active))
            .map(NodeId)
    }

    fn leave_if_diverged(&mut self) {
        if self.digests.standing != Standing::Diverged || !self.is_leader() {
            return;
        }
        // One that says nothing of its state may be wrong as well: it has its turn, where nobody else can.
        let own = self.digests.own.map_or(LogIndex(0), |(own, _)| own.index);
        let says = |node: &NodeId| self.digests.said.get(node).is_some_and(|at| at.index >= own);
        let others: Vec<_> =
            self.active_voters().filter(|node| *node != self.config.node).collect();
        let speaking: Vec<_> = others.iter().copied().filter(says).collect();
        let choice = if speaking.is_empty() { others } else { speaking };
        let turn = usize::try_from(self.ticks / LEAVE_TICKS).unwrap_or_default();
        if let Some(to) = choice.get(turn % choice.len().max(1)) {
            self.transfer(Some(*to));
        }
    }

    /// Where the state has changed, or somebody is not known to have it, has the log say what most came to, and ask for
    /// the next ones.
    fn ask_for_digests(&mut self) {
        let Digests { own, asked, changed, since, standing, .. } = &self.digests;
        let (period, standing) = (self.config.digest_period, *standing);
        let has_changed = *changed || *since > 0;
        let waits = asked.is_some_and(|asked| self.now.since(asked) < self.config.retry_after);
        // What an earlier leader has had the log say is applied before this one counts.
        let knows_all = self.applied.term == self.term();
        if waits || !knows_all || standing == Standing::Diverged {
            return;
        }
        let Some((own, taken)) = *own else {
            return self.attest(LogIndex(0), None);
        };
        if self.now.since(taken) < period {
            return;
        }
        let listened = self.digests.listened(taken, self.now);
        let is_late = listened >= PATIENCE * period;
        let cannot_say = listened >= period && self.somebody_cannot_say(own.index);
        if !has_changed && !cannot_say && standing != Standing::Doubtful {
            return;
        }
        match self.count_digests(own, is_late) {
            Count::Majority(digest) => self.attest(own.index, Some(digest)),
            Count::Differ if standing == Standing::Sound => self.attest(own.index, None),
            // It never will: there is to be an entry of which it can.
            Count::Differ | Count::Open if is_late && cannot_say => {
                self.digests.changed = true;
                self.attest(LogIndex(0), None);
            }
            // More may come, or somebody who was away.
            Count::Differ | Count::Open => {}
        }
    }

    /// Whether somebody who votes, or is to vote, has applied that entry and says nothing of its state there: it does not
    /// know, because its state came from another one. Who lags is not meant; nor who differs, which applies nothing.
    fn somebody_cannot_say(&self, index: LogIndex) -> bool {
        let own = self.config.node;
        let is_asked =
            |(node, votes): &(NodeId, bool)| *node != own && (*votes || self.is_to_vote(*node));
        self.membership().filter(is_asked).any(|(node, _)| {
            let has_passed = self.heard.get(&node).is_some_and(|(applied, _)| *applied >= index);
            has_passed && self.digests.said.get(&node).is_none_or(|said| said.index < index)
        })
    }

    fn attest(&mut self, index: LogIndex, digest: Option<u128>) {
        self.digests.asked = Some(self.now);
        self.effects.push_back(Effect::Attest { index, digest });
    }

    fn count_digests(&self, own: Sample, is_late: bool) -> Count {
        let voters: Vec<_> =
            self.membership().filter(|(_, votes)| *votes).map(|(node, _)| node).collect();
        let of = |node: &NodeId| {
            let said = self.digests.said.get(node).copied();
            let sample = if *node == self.config.node { Some(own) } else { said };
            sample.filter(|sample| sample.index == own.index)
        };
        let mut by_digest: BTreeMap<u128, Vec<NodeId>> = BTreeMap::new();
        for node in &voters {
            if let Some(sample) = of(node) {
                by_digest.entry(sample.digest).or_default().push(*node);
            }
        }
        let said: usize = by_digest.values().map(Vec::len).sum();
        let differ = by_digest.len() > 1;
        for (digest, nodes) in by_digest {
            if self.is_quorum(nodes) {
                return Count::Majority(digest);
            }
        }
        if differ && (is_late || said == voters.len()) { Count::Differ } else { Count::Open }
    }

    /// The leader's answer to [`Effect::Attest`].
    pub(super) fn propose_verdict(&mut self, data: bytes::Bytes) {
        if self.is_leader() {
            // Lost at a change of leader, which then counts for itself.
            self.step(proposal(self.config.node, vec![data]));
        }
    }
}

#[cfg(test)]
#[path = "digests_tests.rs"]
mod tests;
