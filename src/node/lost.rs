//! Bytes that no member has any more: finding them, and giving them up.
//!
//! A range is *lost* where this node lacks it, and every other member has said that it lacks it, too, at exactly this
//! version of the file. Giving it up is a command ([`AcceptLost`](proto::AcceptLost)) that counts for that version
//! only: whatever has been written since is left alone, and all replicas have zeros there from then on, also one that
//! comes back with the bytes.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use rangemap::RangeSet;
use tokio::sync::mpsc;

use super::blocks::Look;
use super::handle::{Handle, NodeError};
use super::scrub::{Found, Walk};
use crate::fs::limits::LOST_MAX;
use crate::fs::proto::command::Op;
use crate::fs::{Errno, proto};
use crate::store::{Steady, StoreError};
use crate::types::{ByteRange, Generation, Ino, LogIndex, NodeId};

/// Ranges that a peer names in one answer at most.
const NAMED: usize = 4096;
/// How often a file that changes, or a peer that is behind, is looked at again.
const ATTEMPTS: usize = 5;
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(100);
/// How long a peer may be behind who asks it.
const BEHIND: Duration = Duration::from_secs(1);
/// Why nothing can be said of a file.
const CHANGES: &str = "it changes all the time: ask again when nobody writes it";
/// Reports that nobody has taken yet.
const REPORTS: usize = 16;

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
    /// What lies behind was not looked at.
    pub end: u64,
}

/// What is to be looked for, and what is to become of it.
#[derive(Clone, Debug, Default)]
pub struct LostOptions {
    /// A file or a directory, by its path below the root of the file system; empty for everything.
    pub path: Vec<u8>,
    /// Only these bytes of a file.
    pub within: Option<ByteRange>,
    /// Give it up; it is only listed otherwise.
    pub accept: bool,
    /// Members that need not answer: their bytes are given up with the others.
    pub away: BTreeSet<NodeId>,
}

/// What a file lacks here; one of several where it lacks very many ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostFile {
    /// Below the root of the file system.
    pub path: Vec<u8>,
    /// Its inode.
    pub ino: Ino,
    /// What none of those has that answered.
    pub lost: Vec<ByteRange>,
    /// What of that is given up.
    pub accepted: Vec<ByteRange>,
    /// Bytes that are missing here, and that others have.
    pub held_bytes: u64,
    /// Who has some of these.
    pub holders: BTreeSet<NodeId>,
    /// Who did not answer, and may have some.
    pub away: BTreeSet<NodeId>,
    /// Why the lost bytes that are named here were not given up.
    pub refusal: Option<String>,
}

type Reports = mpsc::Sender<Result<LostFile, NodeError>>;

/// What is known of a file's missing bytes.
#[derive(Debug)]
struct Survey {
    file: Steady,
    lost: RangeSet<u64>,
    held: RangeSet<u64>,
    holders: BTreeSet<NodeId>,
    /// Who answered, this node among them.
    asked: BTreeSet<NodeId>,
    away: BTreeSet<NodeId>,
    /// What lies behind was not looked at.
    end: u64,
}

/// What a survey comes to.
enum Surveyed {
    /// Nothing is missing here.
    Whole,
    /// The file changes at this moment.
    Changing,
    Lacks(Survey),
}

/// What became of bytes that were to be given up.
enum Answer {
    Accepted,
    /// The file, or who is a member, has changed since.
    Changed,
    Refused(u32),
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
        Lacked { ranges, end }
    }

    /// Finds lost bytes, and gives them up where that is wanted: a report for each file that lacks bytes here, or several. It stops
    /// where the reports are no longer wanted. Nothing where there is no such file.
    ///
    /// # Errors
    /// When this replica cannot read its own state.
    pub fn lost(
        &self,
        options: LostOptions,
    ) -> Result<Option<mpsc::Receiver<Result<LostFile, NodeError>>>, StoreError> {
        let Some(walk) = Walk::from(self, &options.path)? else { return Ok(None) };
        let (reports, received) = mpsc::channel(REPORTS);
        let handle = self.clone();
        self.0.runtime.spawn(async move {
            tokio::select! {
                walked = handle.lost_in(walk, &options, &reports) => if let Err(error) = walked {
                    // Nobody listens where the caller has gone.
                    let _ = reports.send(Err(error)).await;
                },
                () = reports.closed() => {}
            }
        });
        Ok(Some(received))
    }

    async fn lost_in(
        &self,
        mut walk: Walk,
        options: &LostOptions,
        reports: &Reports,
    ) -> Result<(), NodeError> {
        if !self.has_replayed() {
            self.until_session().await?;
        }
        loop {
            let handle = self.clone();
            let walked = tokio::task::spawn_blocking(move || {
                let page = walk.next(&handle);
                (page, walk)
            });
            let (page, rest) = walked.await.map_err(|_| NodeError::Stopping)?;
            let Some(page) = page? else { return Ok(()) };
            walk = rest;
            for found in page {
                self.lost_of(found, options, reports).await?;
            }
        }
    }

    /// One file: a report for each page of what it lacks.
    async fn lost_of(
        &self,
        found: Found,
        options: &LostOptions,
        reports: &Reports,
    ) -> Result<(), NodeError> {
        let Found { ino, path, .. } = found;
        let within = options.within.unwrap_or(ByteRange::from(0));
        let (mut from, mut attempts) = (within.start, 0);
        while from < within.end {
            let mut report = LostFile { path: path.clone(), ino, ..LostFile::default() };
            if attempts < ATTEMPTS {
                let page = ByteRange { start: from, ..within };
                let Some(end) = self.lost_page(page, options, &mut report).await? else {
                    attempts += 1;
                    tokio::time::sleep(AGAIN).await;
                    continue;
                };
                (from, attempts) = (end, 0);
            } else {
                report.refusal = Some(CHANGES.to_owned());
            }
            let is_over = report.refusal.is_some();
            let lacks =
                report.held_bytes > 0 || !report.lost.is_empty() || !report.accepted.is_empty();
            if lacks || is_over {
                // Whoever asked may have gone: then this ends with it.
                let _ = reports.send(Ok(report)).await;
            }
            if is_over {
                break;
            }
        }
        Ok(())
    }

    /// The beginning of what a file lacks in a range, and up to where that was; nothing where the file changes meanwhile.
    async fn lost_page(
        &self,
        range: ByteRange,
        options: &LostOptions,
        report: &mut LostFile,
    ) -> Result<Option<u64>, NodeError> {
        let mut survey = match self.survey(report.ino, range).await? {
            Surveyed::Whole => return Ok(Some(range.end)),
            Surveyed::Changing => return Ok(None),
            Surveyed::Lacks(survey) => survey,
        };
        if options.accept && !survey.lost.is_empty() {
            // Who lacked it may have fetched it meanwhile from another, which lost it then. It is lost where nobody has it
            // twice.
            match self.survey(report.ino, range).await? {
                Surveyed::Lacks(again) if again.file == survey.file => survey.confirm(again),
                Surveyed::Lacks(_) | Surveyed::Whole | Surveyed::Changing => return Ok(None),
            }
        }
        let mut lost: Vec<_> = ranges(&survey.lost).take(LOST_MAX).collect();
        let end = match lost.last() {
            Some(last) if lost.len() < survey.lost.len() => last.end,
            Some(_) | None => survey.end,
        };
        if options.accept && !lost.is_empty() {
            report.refusal = self.refusal(&survey, options).await?;
            let is_first = range.start == options.within.map_or(0, |within| within.start);
            if is_first && report.refusal.is_none() {
                // The first command gives the file another version, and whoever is away throws away what it has of this one.
                let rest = ByteRange { start: end, ..range };
                let refused = self.first_of(report.ino, rest, |survey| match survey {
                    Some(survey) if survey.lost.is_empty() => None,
                    Some(survey) => refusal(survey, options),
                    None => Some(CHANGES.to_owned()),
                });
                report.refusal = refused.await?;
            }
            if report.refusal.is_none() {
                match self.give_up(&survey, &lost).await? {
                    Answer::Accepted => report.accepted = std::mem::take(&mut lost),
                    Answer::Changed => return Ok(None),
                    Answer::Refused(errno) => {
                        report.refusal =
                            Some(format!("the cluster refused it (errno {errno}): ask again"));
                    }
                }
            }
        }
        let held = ranges(&survey.held).take_while(|held| held.start < end);
        report.held_bytes = held.map(|held| held.end.min(end) - held.start).sum();
        (report.lost, report.holders, report.away) = (lost, survey.holders, survey.away);
        Ok(Some(end))
    }

    /// What is missing of a file here and elsewhere.
    async fn survey(&self, ino: Ino, range: ByteRange) -> Result<Surveyed, NodeError> {
        let handle = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let look = handle.look_at(ino)?;
            let lacked = match look {
                Look::Steady(file) => Some(handle.lacked(&file, range)),
                Look::Nothing | Look::Changing => None,
            };
            Ok::<_, StoreError>((look, lacked))
        });
        let (file, Lacked { ranges: own, end }) =
            match looked.await.map_err(|_| NodeError::Stopping)?? {
                (Look::Steady(file), Some(lacked)) => (file, lacked),
                (Look::Changing, _) => return Ok(Surveyed::Changing),
                (Look::Nothing | Look::Steady(_), _) => return Ok(Surveyed::Whole),
            };
        let (Some(first), Some(last)) = (own.first(), own.last()) else {
            return Ok(Surveyed::Whole);
        };
        let lost: RangeSet<u64> = own.iter().map(|range| range.start..range.end).collect();
        let (ino, generation) = file.key;
        let range = ByteRange { start: first.start, end: last.end.min(end) };
        let asked = Lacking { ino, generation, version: file.version, range };
        let mut survey = Survey {
            file,
            lost,
            held: RangeSet::new(),
            holders: BTreeSet::new(),
            asked: [self.node()].into(),
            away: BTreeSet::new(),
            end,
        };
        // Also whoever leaves: it may be the only one that has something.
        let asking = self.0.others()?.into_iter();
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

    async fn give_up(&self, survey: &Survey, lost: &[ByteRange]) -> Result<Answer, NodeError> {
        let ranges = lost.iter().map(|range| proto::Extent { start: range.start, end: range.end });
        let nodes = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|node| node.0).collect();
        let op = proto::AcceptLost {
            ino: survey.file.key.0.0,
            generation: survey.file.key.1.0,
            data_version: survey.file.version.0,
            ranges: ranges.collect(),
            asked: nodes(&survey.asked),
            away: nodes(&survey.away),
        };
        let outcome = self.mutate_in(None, Op::AcceptLost(op)).await?;
        let changed = [Errno::ECANCELED, Errno::ENOENT].map(Errno::number);
        Ok(match outcome.errno {
            0 => Answer::Accepted,
            errno if changed.contains(&errno) => Answer::Changed,
            errno => Answer::Refused(errno),
        })
    }

    /// Why lost bytes are not given up.
    async fn refusal(
        &self,
        survey: &Survey,
        options: &LostOptions,
    ) -> Result<Option<String>, NodeError> {
        let refusal = refusal(survey, options);
        let Some(within) = options.within.filter(|_| refusal.is_none() && !survey.away.is_empty())
        else {
            return Ok(refusal);
        };
        let beside = self.lost_beside(survey.file.key.0, within).await?;
        Ok(beside.map(|beside| {
            let ByteRange { start, end } = beside;
            format!(
                "bytes {start}..{end} of it are lost, too, and nodes {} may have them, but would throw them away with these: \
                 give up all of it (--all), or wait for them",
                names(&survey.away)
            )
        }))
    }

    /// Bytes of a file that are lost outside of a range. Whoever is away and returns when the log of the time is gone throws
    /// away all that it has of a file that has changed since.
    async fn lost_beside(
        &self,
        ino: Ino,
        within: ByteRange,
    ) -> Result<Option<ByteRange>, NodeError> {
        let before = ByteRange { start: 0, end: within.start };
        for rest in [before, ByteRange::from(within.end)] {
            let lost = self.first_of(ino, rest, |survey| match survey {
                Some(survey) => ranges(&survey.lost).next(),
                None => Some(rest),
            });
            if let Some(lost) = lost.await? {
                return Ok(Some(lost));
            }
        }
        Ok(None)
    }

    /// What is found first in what a file lacks of a range, survey by survey; there is none where the file changes all the time.
    async fn first_of<T>(
        &self,
        ino: Ino,
        mut rest: ByteRange,
        find: impl Fn(Option<&Survey>) -> Option<T>,
    ) -> Result<Option<T>, NodeError> {
        let mut attempts = 0;
        while rest.start < rest.end {
            match self.survey(ino, rest).await? {
                Surveyed::Whole => break,
                Surveyed::Changing if attempts < ATTEMPTS => {
                    attempts += 1;
                    tokio::time::sleep(AGAIN).await;
                }
                Surveyed::Changing => return Ok(find(None)),
                Surveyed::Lacks(survey) => {
                    let found = find(Some(&survey));
                    if found.is_some() {
                        return Ok(found);
                    }
                    rest.start = survey.end;
                }
            }
        }
        Ok(None)
    }
}

impl Survey {
    /// What another member lacks, of the range that it was asked about.
    fn hear(&mut self, node: NodeId, lacked: &Lacked, asked: ByteRange) {
        self.asked.insert(node);
        let lacks: RangeSet<u64> =
            lacked.ranges.iter().map(|range| range.start..range.end).collect();
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
    fn confirm(&mut self, again: Survey) {
        self.lost = self.lost.intersection(&again.lost).collect();
        self.held.extend(again.held);
        self.holders.extend(again.holders);
        self.asked.retain(|node| again.asked.contains(node));
        self.away.extend(again.away);
        self.end = self.end.min(again.end);
    }
}

/// Why lost bytes are not given up.
fn refusal(survey: &Survey, options: &LostOptions) -> Option<String> {
    let away: BTreeSet<_> = survey.away.difference(&options.away).copied().collect();
    if !away.is_empty() {
        return Some(format!(
            "nodes {} do not answer, or have not caught up, and may have these bytes: bring them back, remove them from \
             the cluster, or say --even-if-away for each of them",
            names(&away)
        ));
    }
    let is_named = options.within.is_some();
    if is_named && !survey.held.is_empty() {
        return Some(format!(
            "nodes {} have some of these bytes, which come by themselves: name only what is lost",
            names(&survey.holders)
        ));
    }
    None
}

fn names(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

fn ranges(set: &RangeSet<u64>) -> impl Iterator<Item = ByteRange> + '_ {
    set.iter().map(|range| ByteRange { start: range.start, end: range.end })
}

/// Says in the log of this replica what was given up, by whose command, and who was not asked.
pub(super) fn note(index: LogIndex, command: &proto::Command, lost: &proto::AcceptLost) {
    let ranges: Vec<_> = lost.ranges.iter().map(|r| format!("{}..{}", r.start, r.end)).collect();
    tracing::warn!(
        index = index.0,
        proposer = command.node,
        ino = lost.ino,
        ranges = ranges.join(" "),
        away = ?lost.away,
        "bytes that no node had were accepted as lost: they are zeros from now on"
    );
}

#[cfg(test)]
mod tests {
    use super::{
        BTreeSet, ByteRange, Lacked, LostOptions, NodeId, RangeSet, Survey, ranges, refusal,
    };
    use crate::store::Steady;
    use crate::types::{Generation, Ino, LogIndex};

    fn survey(own: &[(u64, u64)]) -> Survey {
        Survey {
            file: Steady::of((Ino(2), Generation(2)), LogIndex(9), 1000),
            lost: own.iter().map(|(start, end)| *start..*end).collect(),
            held: RangeSet::new(),
            holders: BTreeSet::new(),
            asked: [NodeId(1)].into(),
            away: BTreeSet::new(),
            end: u64::MAX,
        }
    }

    fn lacked(of: &[(u64, u64)], end: u64) -> Lacked {
        Lacked {
            ranges: of.iter().map(|(start, end)| ByteRange { start: *start, end: *end }).collect(),
            end,
        }
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

    /// A node that does not answer may have them; one that is named need not answer. Who names a range means all of it.
    #[test]
    fn nothing_is_given_up_that_somebody_may_have() {
        let mut one = survey(&[(0, 100)]);
        one.away = [NodeId(2), NodeId(3)].into();
        let mut options = LostOptions { away: [NodeId(2)].into(), ..LostOptions::default() };
        assert!(refusal(&one, &options).is_some_and(|said| said.contains("nodes 3 do not")));
        options.away.insert(NodeId(3));
        assert_eq!(refusal(&one, &options), None);

        one.hear(NodeId(4), &lacked(&[(10, 100)], 100), ByteRange { start: 0, end: 100 });
        assert_eq!(refusal(&one, &options), None, "the rest may go");
        options.within = Some(ByteRange { start: 0, end: 100 });
        assert!(refusal(&one, &options).is_some_and(|said| said.contains("nodes 4 have some")));
    }
}
