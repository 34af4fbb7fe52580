//! A replica's own digests at certain entries, and how it compares with what the log says of them.
//!
//! An `Attest` command is two things: a verdict about an earlier entry, and the next entry at which every replica
//! notes its digest. Judging takes nothing but the log and what was noted, so each replica judges itself, whenever it
//! comes there: also one that was away, and one without a vote.

use std::collections::VecDeque;

use super::digest::Digest;
use super::proto::{self, command::Op};
use crate::mutants::{self, Mutant};
use crate::types::LogIndex;

/// Digests that are remembered: leaders that follow each other may judge one entry late, but not that late.
const SAMPLES: usize = 16;

/// What an `Attest` command says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Of which entry.
    pub index: LogIndex,
    /// What a majority of the voters has there; none where no digest has one.
    pub digest: Option<Digest>,
}

/// What a verdict comes to for one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It is one of the majority.
    Equal,
    /// Its state is not that of the majority.
    Differs {
        /// Where.
        index: LogIndex,
        /// What most have.
        expected: Digest,
        /// What it has.
        found: Digest,
    },
    /// The voters differ, and nobody knows who is right.
    Doubt,
    /// Nothing: it does not know its digest there, or that entry was judged before.
    Nothing,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Oldest first.
    samples: VecDeque<(LogIndex, Digest)>,
    judged: LogIndex,
    equal: LogIndex,
    equal_digest: Digest,
    doubt: Option<LogIndex>,
}

impl Verdict {
    /// What a command says, where it is one.
    #[must_use]
    pub fn of(command: &proto::Command) -> Option<Self> {
        let Some(Op::Attest(attest)) = &command.op else { return None };
        let index = LogIndex(attest.index);
        if attest.digest.is_empty() {
            return Some(Self { index, digest: None });
        }
        // A digest of another kind says nothing of anybody, but everybody notes its own here.
        let Some(digest) = Digest::from_bytes(&attest.digest) else {
            return Some(Self { index: LogIndex(0), digest: None });
        };
        Some(Self { index, digest: Some(digest) })
    }

    /// The command's operation.
    #[must_use]
    pub fn to_op(self) -> Op {
        let digest = self.digest.map(|digest| digest.to_bytes().to_vec()).unwrap_or_default();
        Op::Attest(proto::Attest { index: self.index.0, digest: digest.into() })
    }
}

impl Ledger {
    /// Takes in a verdict. Of two about one entry the first one counts, everywhere.
    pub fn judge(&mut self, verdict: Verdict) -> Finding {
        if verdict.index <= self.judged {
            return Finding::Nothing;
        }
        self.judged = verdict.index;
        let Some(expected) = verdict.digest else {
            self.doubt = Some(verdict.index);
            return Finding::Doubt;
        };
        let index = verdict.index;
        let Some(found) = self.sample_at(index) else { return Finding::Nothing };
        if found != expected && !mutants::is(Mutant::IgnoreDigests) {
            return Finding::Differs { index, expected, found };
        }
        (self.equal, self.equal_digest, self.doubt) = (index, found, None);
        Finding::Equal
    }

    /// Notes this replica's digest at an entry, whose verdict was judged before.
    pub fn sample(&mut self, index: LogIndex, digest: Digest) {
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((index, digest));
    }

    /// What was noted at an entry, where that is remembered.
    #[must_use]
    pub fn sample_at(&self, index: LogIndex) -> Option<Digest> {
        self.samples.iter().find(|(at, _)| *at == index).map(|(_, digest)| *digest)
    }

    /// All that is remembered, oldest first.
    pub fn samples(&self) -> impl Iterator<Item = (LogIndex, Digest)> + '_ {
        self.samples.iter().copied()
    }

    /// What was noted last.
    #[must_use]
    pub fn last_sample(&self) -> Option<(LogIndex, Digest)> {
        self.samples.back().copied()
    }

    /// The last entry at which this replica was found equal to the majority.
    #[must_use]
    pub fn equal(&self) -> LogIndex {
        self.equal
    }

    /// Where the voters were found to differ, while no majority is known.
    #[must_use]
    pub fn doubt(&self) -> Option<LogIndex> {
        self.doubt
    }

    /// Whether the state at an entry, with its digest, was found to be that of the majority, there or later.
    #[must_use]
    pub fn attests(&self, index: LogIndex, digest: Digest) -> bool {
        self.doubt.is_none() && self.was_equal_at(index, digest)
    }

    /// The same, whatever was found of later states.
    #[must_use]
    pub fn was_equal_at(&self, index: LogIndex, digest: Digest) -> bool {
        let is_of_it = self.equal > LogIndex(0) && digest == self.equal_digest;
        index <= self.equal || is_of_it
    }

    /// What it was found equal in is no less so for a state that takes the place of another one, which is right up to
    /// `until`, and whose verdicts `before` holds.
    pub fn keep_equal(&mut self, before: &Self, until: LogIndex) {
        if before.equal > self.equal && before.equal <= until {
            (self.equal, self.equal_digest) = (before.equal, before.equal_digest);
        }
    }

    /// What stays of it where the state is replaced by a peer's, which counts: what was noted is of another state.
    #[must_use]
    pub fn of_replaced_state(&self) -> Self {
        Self { samples: VecDeque::new(), doubt: None, ..self.clone() }
    }

    /// As a record.
    #[must_use]
    pub fn to_record(&self) -> proto::Ledger {
        proto::Ledger {
            samples: self.samples.iter().map(|sample| digest_at(*sample)).collect(),
            judged: self.judged.0,
            equal: Some(digest_at((self.equal, self.equal_digest))),
            doubt: self.doubt.unwrap_or_default().0,
        }
    }

    /// From what [`Self::to_record`] gave.
    #[must_use]
    pub fn from_record(record: &proto::Ledger) -> Self {
        let at = |at: &proto::DigestAt| Some((LogIndex(at.index), Digest::from_bytes(&at.digest)?));
        let (equal, equal_digest) = record.equal.as_ref().and_then(at).unwrap_or_default();
        Self {
            samples: record.samples.iter().filter_map(at).collect(),
            judged: LogIndex(record.judged),
            equal,
            equal_digest,
            doubt: (record.doubt > 0).then_some(LogIndex(record.doubt)),
        }
    }
}

fn digest_at((index, digest): (LogIndex, Digest)) -> proto::DigestAt {
    proto::DigestAt { index: index.0, digest: digest.to_bytes().to_vec().into() }
}

#[cfg(test)]
mod tests {
    use super::{Digest, Finding, Ledger, LogIndex, SAMPLES, Verdict, proto};

    const OWN: Digest = Digest(7);
    const OTHER: Digest = Digest(8);

    fn verdict(index: u64, digest: Option<Digest>) -> Verdict {
        Verdict { index: LogIndex(index), digest }
    }

    fn sampled(indexes: impl IntoIterator<Item = u64>) -> Ledger {
        let mut ledger = Ledger::default();
        indexes.into_iter().for_each(|index| ledger.sample(LogIndex(index), OWN));
        ledger
    }

    #[test]
    fn a_replica_knows_whether_it_is_one_of_the_majority() {
        let mut ledger = sampled([3, 9]);
        assert_eq!(ledger.judge(verdict(3, Some(OWN))), Finding::Equal);
        assert_eq!(ledger.equal(), LogIndex(3));
        let differs = Finding::Differs { index: LogIndex(9), expected: OTHER, found: OWN };
        assert_eq!(ledger.judge(verdict(9, Some(OTHER))), differs);
        assert_eq!(ledger.equal(), LogIndex(3), "what was equal last stays");
    }

    /// A leader may judge what its predecessor has judged already.
    #[test]
    fn the_first_verdict_about_an_entry_counts() {
        let mut ledger = sampled([3]);
        assert_eq!(ledger.judge(verdict(3, Some(OWN))), Finding::Equal);
        assert_eq!(ledger.judge(verdict(3, None)), Finding::Nothing);
        assert_eq!(ledger.judge(verdict(3, Some(OTHER))), Finding::Nothing);
        assert_eq!(ledger.doubt(), None);
        assert_eq!(
            ledger.judge(verdict(0, None)),
            Finding::Nothing,
            "the first of all judges none"
        );
    }

    #[test]
    fn doubt_ends_with_a_majority_that_this_replica_is_one_of() {
        let mut ledger = sampled([3]);
        assert_eq!(ledger.judge(verdict(3, None)), Finding::Doubt);
        ledger.sample(LogIndex(5), OWN);
        assert_eq!(
            ledger.judge(verdict(4, Some(OWN))),
            Finding::Nothing,
            "it does not know itself"
        );
        assert_eq!(ledger.doubt(), Some(LogIndex(3)));
        assert!(!ledger.attests(LogIndex(2), OWN));
        assert_eq!(ledger.judge(verdict(5, Some(OWN))), Finding::Equal);
        assert_eq!(ledger.doubt(), None);
    }

    #[test]
    fn what_is_attested_was_equal_there_or_later() {
        let mut ledger = sampled([3]);
        assert!(!ledger.attests(LogIndex(3), OWN), "nothing was judged yet");
        ledger.judge(verdict(3, Some(OWN)));
        assert!(ledger.attests(LogIndex(2), OTHER));
        assert!(!ledger.attests(LogIndex(4), OTHER));
        assert!(ledger.attests(LogIndex(4), OWN), "nothing has changed since");
    }

    #[test]
    fn what_was_equal_stays_so_where_another_state_is_built() {
        let mut before = sampled([3, 9]);
        before.judge(verdict(3, Some(OWN)));
        before.judge(verdict(9, Some(OTHER)));
        let kept = |until| {
            let mut built = Ledger::default();
            built.keep_equal(&before, LogIndex(until));
            built.equal()
        };
        assert_eq!((kept(2), kept(3)), (LogIndex(0), LogIndex(3)));
        let mut later = sampled([5]);
        later.judge(verdict(5, Some(OTHER)));
        later.judge(verdict(6, None));
        assert!(!later.was_equal_at(LogIndex(5), OTHER), "it differs there");
        before.judge(verdict(10, None));
        assert!(before.was_equal_at(LogIndex(3), OTHER) && !before.attests(LogIndex(3), OTHER));
    }

    #[test]
    fn a_ledger_is_bounded_and_outlives_its_process() {
        let mut ledger = sampled(1..=100);
        assert_eq!(ledger.samples.len(), SAMPLES);
        assert_eq!(ledger.judge(verdict(1, Some(OTHER))), Finding::Nothing, "long forgotten");
        ledger.judge(verdict(98, Some(OWN)));
        ledger.judge(verdict(99, None));
        assert_eq!(Ledger::from_record(&ledger.to_record()), ledger);
        assert_eq!(Ledger::from_record(&proto::Ledger::default()), Ledger::default());
        let replaced = ledger.of_replaced_state();
        assert_eq!((replaced.doubt(), replaced.equal()), (None, LogIndex(98)));
        assert_eq!(replaced.last_sample(), None);
    }
}
