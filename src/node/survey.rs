//! What a file lacks here, and what every other member has said to lack of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use rangemap::RangeSet;

use super::blocks::Look;
use super::handle::{Handle, NodeError};
use crate::store::{Steady, StoreError};
use crate::types::{ByteRange, Generation, Ino, LogIndex, NodeId};

/// Ranges that a peer names in one answer at most.
const NAMED: usize = 4096;
/// How often a file that changes, or a peer that is behind, is looked at again.
pub(super) const ATTEMPTS: usize = 5;
/// Between two looks.
pub(super) const AGAIN: Duration = Duration::from_millis(100);
/// How long a peer may be behind who asks it.
const BEHIND: Duration = Duration::from_secs(1);

/// What a peer is asked about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// Which inode.
    pub ino: Ino,
    /// Which life of its bytes.
    pub generation: Generation,
    /// Exactly this data_version.
    pub version: LogIndex,
    /// Which bytes.
    pub range: ByteRange,
}

/// What a replica lacks of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacked {
    /// Ascending.
    pub ranges: Vec<ByteRange>,
    /// What of that it has bytes for that are in doubt, because its state was wrong when they came.
    pub doubted: Vec<ByteRange>,
    /// What lies behind was not looked at.
    pub end: u64,
}

/// What is known of a file's missing bytes.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) file: Steady,
    pub(super) lost: RangeSet<u64>,
    pub(super) held: RangeSet<u64>,
    pub(super) holders: BTreeSet<NodeId>,
    /// Who has bytes in the place of missing ones that may be right: its state was wrong when they came.
    pub(super) doubted: BTreeMap<NodeId, RangeSet<u64>>,
    /// Who answered, this node among them.
    pub(super) asked: BTreeSet<NodeId>,
    pub(super) away: BTreeSet<NodeId>,
    /// What lies behind was not looked at.
    pub(super) end: u64,
}

/// What a survey comes to.
pub(super) enum Surveyed {
    /// Nothing is missing here.
    Whole,
    /// The file changes at this moment.
    Changing,
    Lacks(Survey),
}

impl Handle {
    /// Which bytes of a file are missing here and do not come by themselves; nothing where this replica does not have
    /// that version.
    ///
    /// # Errors
    /// When the local file system has trouble.
    pub async fn lacking(&self, asked: Lacking) -> Result<Option<Lacked>, NodeError> {
        // A peer may have applied what this node is about to.
        if !tokio::time::timeout(BEHIND, self.until_applied(asked.version)).await.unwrap_or(false) {
            return Ok(None);
        }
        let handle = self.clone();
        let found = tokio::task::spawn_blocking(move || {
            let Look::Steady(file) = handle.look_at(asked.ino)? else { return Ok(None) };
            if (file.key.1, file.version) != (asked.generation, asked.version) {
                return Ok(None);
            }
            let lacked = handle.lacked(&file, asked.range);
            Ok::<_, StoreError>(handle.files().is_still(&file).then_some(lacked))
        });
        Ok(found.await.map_err(|_| NodeError::Stopping)??)
    }

    fn lacked(&self, file: &Steady, range: ByteRange) -> Lacked {
        let missing = self.files().missing(file.key, range).into_iter();
        // What its writer is still sending is not lost.
        let stays = |(_, version): &(_, LogIndex)| !self.files().is_arriving(file.key, *version);
        let ranges: Vec<_> = missing.filter(stays).map(|(part, _)| part).collect();
        // A stage may have ended in between, and what was asked about first is here now.
        let still = ranges.into_iter().flat_map(|part| self.files().missing(file.key, part));
        let mut ranges: Vec<_> = still.map(|(part, _)| part).collect();
        let end = ranges.get(NAMED).map_or(range.end, |next| next.start);
        ranges.truncate(NAMED);
        let doubted = ranges.iter().flat_map(|part| self.files().doubted(file.key, *part));
        Lacked { doubted: doubted.collect(), ranges, end }
    }

    /// What is missing of a file here and elsewhere.
    pub(super) async fn survey(&self, ino: Ino, range: ByteRange) -> Result<Surveyed, NodeError> {
        let handle = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let look = handle.look_at(ino)?;
            let lacked = match look {
                Look::Steady(file) => Some(handle.lacked(&file, range)),
                Look::Nothing | Look::Changing => None,
            };
            Ok::<_, StoreError>((look, lacked))
        });
        let (file, Lacked { ranges: own, doubted, end }) =
            match looked.await.map_err(|_| NodeError::Stopping)?? {
                (Look::Steady(file), Some(lacked)) => (file, lacked),
                (Look::Changing, _) => return Ok(Surveyed::Changing),
                (Look::Nothing | Look::Steady(_), _) => return Ok(Surveyed::Whole),
            };
        let (Some(first), Some(last)) = (own.first(), own.last()) else {
            return Ok(Surveyed::Whole);
        };
        let lost = set_of(&own);
        let (ino, generation) = file.key;
        let range = ByteRange { start: first.start, end: last.end.min(end) };
        let asked = Lacking { ino, generation, version: file.version, range };
        let mut survey = Survey {
            file,
            lost,
            held: RangeSet::new(),
            holders: BTreeSet::new(),
            doubted: [(self.node(), set_of(&doubted))].into(),
            asked: [self.node()].into(),
            away: BTreeSet::new(),
            end,
        };
        // Also whoever leaves: it may be the only one that has something.
        let asking = self.0.others().into_iter();
        let asking =
            asking.map(|node| async move { (node, self.ask_what_lacks(node, asked).await) });
        for (node, answer) in join_all(asking).await {
            match answer {
                Some(lacked) if lacked.end > range.start => survey.hear(node, &lacked, range),
                Some(_) | None => drop(survey.away.insert(node)),
            }
        }
        let is_still = self.files().is_still(&file);
        Ok(if is_still { Surveyed::Lacks(survey) } else { Surveyed::Changing })
    }

    async fn ask_what_lacks(&self, node: NodeId, asked: Lacking) -> Option<Lacked> {
        for _ in 0..ATTEMPTS {
            let answer = self.0.transport.lacking(node, asked);
            let answer = tokio::time::timeout(self.op_timeout(), answer).await.ok().flatten();
            if answer.is_some() || self.0.transport.stage_lane(node).is_none() {
                return answer;
            }
            tokio::time::sleep(AGAIN).await;
        }
        None
    }
}

impl Survey {
    /// What another member lacks, of the range that it was asked about.
    pub(super) fn hear(&mut self, node: NodeId, lacked: &Lacked, asked: ByteRange) {
        self.asked.insert(node);
        let lacks = set_of(&lacked.ranges);
        self.doubted.insert(node, set_of(&lacked.doubted));
        if lacked.end < asked.end {
            // What it has not looked at is looked at the next time.
            self.end = self.end.min(lacked.end);
            self.lost.remove(lacked.end..u64::MAX);
        }
        let mut has = self.lost.clone();
        for range in lacks.iter() {
            has.remove(range.clone());
        }
        for range in has.iter() {
            self.holders.insert(node);
            self.lost.remove(range.clone());
            self.held.insert(range.clone());
        }
    }

    /// The same was asked again: lost is what is so both times, and who was away once was away.
    pub(super) fn confirm(&mut self, again: Survey) {
        self.lost = self.lost.intersection(&again.lost).collect();
        self.held.extend(again.held);
        self.holders.extend(again.holders);
        for (node, ranges) in again.doubted {
            self.doubted.entry(node).or_default().extend(ranges);
        }
        self.asked.retain(|node| again.asked.contains(node));
        self.away.extend(again.away);
        self.end = self.end.min(again.end);
    }

    /// What of these bytes somebody has in doubt, and who.
    pub(super) fn doubted_of(&self, lost: &[ByteRange]) -> BTreeMap<NodeId, Vec<ByteRange>> {
        let lost = set_of(lost);
        let of = |ranges: &RangeSet<u64>| -> RangeSet<u64> { ranges.intersection(&lost).collect() };
        let all = self.doubted.iter().map(|(node, found)| (*node, ranges(&of(found)).collect()));
        all.filter(|(_, found): &(_, Vec<_>)| !found.is_empty()).collect()
    }
}

pub(super) fn ranges(set: &RangeSet<u64>) -> impl Iterator<Item = ByteRange> + '_ {
    set.iter().map(|range| ByteRange { start: range.start, end: range.end })
}

fn set_of(ranges: &[ByteRange]) -> RangeSet<u64> {
    ranges.iter().map(|range| range.start..range.end).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::{BTreeMap, BTreeSet, ByteRange, Lacked, NodeId, RangeSet, Survey, ranges};
    use crate::store::Steady;
    use crate::types::{Generation, Ino, LogIndex};

    pub(in crate::node) fn survey(own: &[(u64, u64)]) -> Survey {
        Survey {
            file: Steady::of((Ino(2), Generation(2)), LogIndex(9), 1000),
            lost: own.iter().map(|(start, end)| *start..*end).collect(),
            held: RangeSet::new(),
            holders: BTreeSet::new(),
            doubted: BTreeMap::new(),
            asked: [NodeId(1)].into(),
            away: BTreeSet::new(),
            end: u64::MAX,
        }
    }

    pub(in crate::node) fn ranges_of(of: &[(u64, u64)]) -> Vec<ByteRange> {
        of.iter().map(|(start, end)| ByteRange { start: *start, end: *end }).collect()
    }

    pub(in crate::node) fn lacked(of: &[(u64, u64)], end: u64) -> Lacked {
        Lacked { ranges: ranges_of(of), doubted: Vec::new(), end }
    }

    fn listed(set: &RangeSet<u64>) -> Vec<(u64, u64)> {
        ranges(set).map(|range| (range.start, range.end)).collect()
    }

    /// Only what everybody lacks is lost; what was not looked at is neither lost nor held.
    #[test]
    fn what_somebody_has_is_not_lost() {
        let mut survey = survey(&[(0, 100), (200, 300), (500, 600)]);
        let asked = ByteRange { start: 0, end: 600 };
        survey.hear(NodeId(2), &lacked(&[(0, 50), (150, 250)], 550), asked);
        assert_eq!(survey.end, 550);
        assert_eq!(listed(&survey.lost), [(0, 50), (200, 250)]);
        assert_eq!(listed(&survey.held), [(50, 100), (250, 300), (500, 550)]);
        survey.hear(NodeId(3), &lacked(&[(0, 1000)], 600), asked);
        assert_eq!(listed(&survey.lost), [(0, 50), (200, 250)]);
        assert_eq!(survey.holders, [NodeId(2)].into());
        assert_eq!(survey.asked, [NodeId(1), NodeId(2), NodeId(3)].into());
    }

    /// Bytes that wander from one node to another while they are asked.
    #[test]
    fn lost_is_what_is_lost_twice() {
        let mut once = survey(&[(0, 100), (200, 300)]);
        let mut again = survey(&[(50, 100), (200, 250)]);
        once.asked.insert(NodeId(2));
        (again.away, again.end) = ([NodeId(2)].into(), 1000);
        once.confirm(again);
        assert_eq!(listed(&once.lost), [(50, 100), (200, 250)]);
        assert_eq!((once.asked, once.away), ([NodeId(1)].into(), [NodeId(2)].into()));
        assert_eq!(once.end, 1000);
    }

    /// Who has something in the place of what is lost is known, and for which of these bytes.
    #[test]
    fn who_has_bytes_in_doubt_is_named() {
        let mut once = survey(&[(0, 100), (200, 300)]);
        let asked = ByteRange { start: 0, end: 300 };
        let doubts =
            |of: &[(u64, u64)]| Lacked { doubted: ranges_of(of), ..lacked(&[(0, 300)], 300) };
        once.hear(NodeId(2), &doubts(&[(50, 250)]), asked);
        once.hear(NodeId(3), &doubts(&[(100, 200)]), asked);
        let named = |survey: &Survey, of| survey.doubted_of(&ranges_of(of));
        let of_two = ranges_of(&[(50, 100), (200, 250)]);
        assert_eq!(named(&once, &[(0, 100), (200, 300)]), [(NodeId(2), of_two)].into());
        assert_eq!(named(&once, &[(0, 50)]), BTreeMap::new());
        let mut again = survey(&[(0, 100)]);
        again.hear(NodeId(3), &doubts(&[(0, 10)]), asked);
        once.confirm(again);
        let both = [(NodeId(2), ranges_of(&[(50, 100)])), (NodeId(3), ranges_of(&[(0, 10)]))];
        assert_eq!(named(&once, &[(0, 100)]), both.into());
    }
}
