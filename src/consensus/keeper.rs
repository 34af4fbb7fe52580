//! The leader's side of sessions: who is renewed, and who has not been heard for too long.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::roster::Roster;
use crate::mutants::{self, Mutant};
use crate::types::{LogIndex, Monotonic, NodeId, SessionId};

/// More guardians than this do not speak at once.
const FENCED_MAX: usize = 1024;

/// A heartbeat that waits for a ReadIndex round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat {
    pub(super) from: NodeId,
    pub(super) session: SessionId,
    pub(super) number: u64,
    pub(super) received: Monotonic,
}

/// A ReadIndex round and the heartbeats that were received before it began.
#[derive(Debug)]
struct Round {
    context: u64,
    began: Monotonic,
    beats: Vec<Beat>,
    /// Known once a quorum has confirmed the leader.
    read_index: Option<LogIndex>,
}

/// Kept by every node, used while it leads. A heartbeat is answered only after a ReadIndex round that
/// began after its receipt and after applying up to it, so neither a leader that was cut off nor a
/// race with an expiry can grant a lease too many.
#[derive(Debug)]
pub(super) struct Keeper {
    ttl: Duration,
    expiry: Duration,
    leads: bool,
    deadlines: BTreeMap<SessionId, Monotonic>,
    /// When it was last looked whose is over.
    looked: Option<Monotonic>,
    expiring: BTreeMap<SessionId, Monotonic>,
    /// Sessions under which nothing is served any more, and whose they are.
    fenced: BTreeMap<SessionId, NodeId>,
    waiting: Vec<Beat>,
    rounds: VecDeque<Round>,
    last_context: u64,
    /// Commit index over the last half TTL: when, and what it was.
    commits: VecDeque<(Monotonic, LogIndex)>,
}

impl Keeper {
    pub(super) fn new(ttl: Duration, expiry: Duration) -> Self {
        Self {
            ttl,
            expiry,
            leads: false,
            deadlines: BTreeMap::new(),
            looked: None,
            expiring: BTreeMap::new(),
            fenced: BTreeMap::new(),
            waiting: Vec::new(),
            rounds: VecDeque::new(),
            last_context: 0,
            commits: VecDeque::new(),
        }
    }

    /// Begins or ends a reign. A new leader knows nothing of what the last one granted: it waits a
    /// whole TTL before it expires anyone whom no guardian has fenced.
    pub(super) fn set_leading(&mut self, leads: bool) {
        if leads != self.leads {
            let last_context = self.last_context;
            let fenced = std::mem::take(&mut self.fenced);
            *self = Self { leads, fenced, last_context, ..Self::new(self.ttl, self.expiry) };
        }
    }

    pub(super) fn beat(&mut self, beat: Beat) {
        if self.leads {
            self.waiting.push(beat);
        }
    }

    /// Nothing is served under this session any more.
    pub(super) fn fenced(&mut self, node: NodeId, session: SessionId) {
        // Sessions that are not known here yet are few: a guardian names the last one of its daemon.
        if self.fenced.len() < FENCED_MAX {
            self.fenced.insert(session, node);
        }
    }

    /// The context of a ReadIndex round to begin now, where heartbeats wait for one.
    pub(super) fn begin_round(&mut self, now: Monotonic) -> Option<u64> {
        // A round that raft-rs dropped is never answered: forget it, its sender beats again.
        let patience = self.ttl / 4;
        self.rounds.retain(|round| round.read_index.is_some() || now.since(round.began) < patience);
        let confirming = self.rounds.iter().any(|round| round.read_index.is_none());
        if self.waiting.is_empty() || confirming {
            return None;
        }
        self.last_context += 1;
        self.rounds.push_back(Round {
            context: self.last_context,
            began: now,
            beats: std::mem::take(&mut self.waiting),
            read_index: mutants::is(Mutant::LeaseWithoutQuorum).then_some(LogIndex(0)),
        });
        Some(self.last_context)
    }

    /// A quorum confirmed that this node still led when the round `context` began.
    pub(super) fn confirmed(&mut self, context: u64, read_index: LogIndex) {
        if let Some(round) = self.rounds.iter_mut().find(|round| round.context == context) {
            round.read_index = Some(read_index);
        }
    }

    /// The heartbeats to answer now that this node has applied up to `applied`. Renews nobody who is
    /// not open, is being expired, or has not applied what was committed half a TTL ago: a node that is
    /// alive but stuck must not hold up the others for ever.
    pub(super) fn renew(
        &mut self,
        now: Monotonic,
        applied: LogIndex,
        roster: &Roster,
    ) -> Vec<Beat> {
        let must_show = self.must_show(now);
        let shown: BTreeMap<_, _> =
            roster.iter().map(|(info, shown)| (info.session, shown)).collect();
        let (done, rest): (VecDeque<_>, _) = std::mem::take(&mut self.rounds)
            .into_iter()
            .partition(|round| round.read_index.is_some_and(|index| index <= applied));
        self.rounds = rest;
        let mut renewed = Vec::new();
        for beat in done.into_iter().flat_map(|round| round.beats) {
            let keeps_up = shown.get(&beat.session).is_some_and(|shown| *shown >= must_show);
            let is_over = self.expiring.contains_key(&beat.session)
                || self.fenced.get(&beat.session) == Some(&beat.from);
            if keeps_up && !is_over {
                let deadline = self.deadlines.entry(beat.session).or_default();
                let half = if mutants::is(Mutant::ExpireEarly) { 2 } else { 1 };
                *deadline = (*deadline).max(beat.received + self.expiry / half);
                renewed.push(beat);
            }
        }
        renewed
    }

    /// Notes the commit index, for [`Self::renew`].
    pub(super) fn note_commit(&mut self, now: Monotonic, commit: LogIndex) {
        self.commits.push_back((now, commit));
        let horizon = now - self.ttl / 2;
        while self.commits.get(1).is_some_and(|(when, _)| *when <= horizon) {
            self.commits.pop_front();
        }
    }

    /// The sessions to expire now; each is named again after a TTL if it is still open then.
    pub(super) fn overdue(
        &mut self,
        now: Monotonic,
        applied: LogIndex,
        roster: &Roster,
    ) -> Vec<SessionId> {
        // What is not open and not to come has ended.
        self.fenced.retain(|session, node| {
            session.0 > applied.0 || roster.node_of(*session) == Some(*node)
        });
        if !self.leads {
            return Vec::new();
        }
        let stood_still =
            self.looked.replace(now).map_or(Duration::ZERO, |looked| now.since(looked));
        if stood_still > self.ttl / 4 {
            // It could hear and renew nobody, so that time counts for nobody.
            self.deadlines.values_mut().for_each(|deadline| *deadline = *deadline + stood_still);
        }
        let open: BTreeSet<_> = roster.iter().map(|(info, _)| info.session).collect();
        self.deadlines.retain(|session, _| open.contains(session));
        self.expiring.retain(|session, _| open.contains(session));
        let mut overdue = Vec::new();
        for session in open {
            // Nobody that this leader has only just met is overdue: what it may hold, another granted.
            let patience =
                if mutants::is(Mutant::ExpireAtOnce) { Duration::ZERO } else { self.expiry };
            let deadline = *self.deadlines.entry(session).or_insert(now + patience);
            let asked = self.expiring.get(&session).is_some_and(|at| now.since(*at) < self.ttl);
            let is_due = now > deadline || self.fenced.contains_key(&session);
            if is_due && !asked {
                self.expiring.insert(session, now);
                overdue.push(session);
            }
        }
        overdue
    }

    /// Whether this leader has decided to end the session.
    pub(super) fn is_expiring(&self, session: SessionId) -> bool {
        self.expiring.contains_key(&session)
    }

    /// What a node that keeps up has applied by now: what was committed half a TTL ago.
    pub(super) fn must_show(&self, now: Monotonic) -> LogIndex {
        self.committed_at(now - self.ttl / 2)
    }

    fn committed_at(&self, when: Monotonic) -> LogIndex {
        self.commits
            .iter()
            .take_while(|(noted, _)| *noted <= when)
            .last()
            .map_or(LogIndex(0), |(_, commit)| *commit)
    }
}

#[cfg(test)]
mod tests {
    use super::super::roster::SessionInfo;
    use super::{Duration, Keeper, LogIndex, Monotonic, NodeId, Roster, SessionId};

    const TTL: Duration = Duration::from_secs(2);
    const TICK: Duration = Duration::from_millis(50);
    const SESSION: SessionId = SessionId(7);

    /// A leader that stood still has heard nobody, which is nobody's fault; who stays silent is overdue all the same.
    #[test]
    fn the_time_for_which_a_leader_stood_still_counts_for_nobody() {
        let roster = Roster::new([SessionInfo { session: SESSION, node: NodeId(2), strong: true }]);
        let mut keeper = Keeper::new(TTL, TTL);
        keeper.set_leading(true);
        let mut now = Monotonic::default();
        let mut overdue_after = |pause: Duration| {
            now = now + pause;
            !keeper.overdue(now, LogIndex(7), &roster).is_empty()
        };
        assert!(!overdue_after(TICK), "it has only just met it");
        assert!(!overdue_after(10 * TTL), "it stood still");
        let silent = (1..100).find(|_| overdue_after(TICK)).expect("in the end");
        assert_eq!(silent, 41, "ticks of a TTL, and one more");
    }
}
