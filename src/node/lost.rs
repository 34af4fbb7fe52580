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
use crate::fs::{Errno, proto, query};
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

/// A file that lacks bytes here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostFile {
    /// Below the root of the file system.
    pub path: Vec<u8>,
    /// Its inode.
    pub ino: Ino,
    /// What none of those has that answered.
    pub lost: Vec<ByteRange>,
    /// It is given up.
    pub accepted: bool,
    /// Bytes that are missing here, and that others have.
    pub held_bytes: u64,
    /// Who has some of these.
    pub holders: BTreeSet<NodeId>,
    /// Who did not answer, and may have some.
    pub away: BTreeSet<NodeId>,
    /// Why nothing was given up.
    pub refusal: Option<String>,
}

/// What is known of a file's missing bytes.
struct Survey {
    file: Steady,
    lost: RangeSet<u64>,
    held: RangeSet<u64>,
    holders: BTreeSet<NodeId>,
    away: BTreeSet<NodeId>,
    /// What lies behind was not looked at.
    end: u64,
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
        let mut ranges: Vec<_> = missing.filter(stays).map(|(part, _)| part).collect();
        let end = ranges.get(NAMED).map_or(range.end, |next| next.start);
        ranges.truncate(NAMED);
        Lacked { ranges, end }
    }

    /// Finds lost bytes, and gives them up where that is wanted: a report for each file that lacks bytes here. It stops
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
        reports: &mpsc::Sender<Result<LostFile, NodeError>>,
    ) -> Result<(), NodeError> {
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
                if let Some(report) = self.lost_of(found, options).await?
                    && reports.send(Ok(report)).await.is_err()
                {
                    return Ok(());
                }
            }
        }
    }

    /// One file; nothing where it lacks nothing.
    async fn lost_of(
        &self,
        found: Found,
        options: &LostOptions,
    ) -> Result<Option<LostFile>, NodeError> {
        let Found { ino, path, .. } = found;
        let mut report = LostFile { path, ino, ..LostFile::default() };
        let within = options.within.unwrap_or(ByteRange::from(0));
        let mut from = within.start;
        let mut attempts = 0;
        while from < within.end {
            if attempts == ATTEMPTS {
                report.refusal =
                    Some("it changes all the time: ask again when nobody writes it".to_owned());
                break;
            }
            let Some(survey) = self.survey(ino, ByteRange { start: from, ..within }).await? else {
                attempts += 1;
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            let Some(survey) = survey else { break };
            let lost: Vec<_> = ranges(&survey.lost).take(LOST_MAX).collect();
            if options.accept && !lost.is_empty() {
                report.refusal = refusal(&survey, options);
                if report.refusal.is_none() {
                    if !self.give_up(&survey.file, &lost).await? {
                        attempts += 1;
                        continue;
                    }
                    report.accepted = true;
                }
            }
            from = match lost.last() {
                Some(last) if lost.len() < survey.lost.len() => last.end,
                Some(_) | None => survey.end,
            };
            report.lost.extend(lost);
            let held = ranges(&survey.held).take_while(|held| held.start < from);
            report.held_bytes += held.map(|held| held.end.min(from) - held.start).sum::<u64>();
            report.holders.extend(survey.holders);
            report.away.extend(survey.away);
            if report.refusal.is_some() {
                break;
            }
        }
        let is_whole = report.lost.is_empty() && report.held_bytes == 0;
        Ok((!is_whole || report.refusal.is_some()).then_some(report))
    }

    /// What is missing of a file here and elsewhere: `Some(None)` where nothing is missing here, nothing at all where it
    /// changes meanwhile.
    async fn survey(
        &self,
        ino: Ino,
        range: ByteRange,
    ) -> Result<Option<Option<Survey>>, NodeError> {
        let file = match self.look_at(ino)? {
            Look::Nothing => return Ok(Some(None)),
            Look::Changing => return Ok(None),
            Look::Steady(file) => file,
        };
        let Lacked { ranges: own, end } = self.lacked(&file, range);
        let (Some(first), Some(last)) = (own.first(), own.last()) else { return Ok(Some(None)) };
        let own: RangeSet<u64> = own.iter().map(|range| range.start..range.end).collect();
        let (ino, generation) = file.key;
        let range = ByteRange { start: first.start, end: last.end.min(end) };
        let asked = Lacking { ino, generation, version: file.version, range };
        let mut survey = Survey {
            file,
            lost: own.clone(),
            held: RangeSet::new(),
            holders: BTreeSet::new(),
            away: BTreeSet::new(),
            end,
        };
        let members = query::members(&self.state())?.into_iter();
        // One that has not joined has nothing.
        let members = members.filter(|member| query::suffrage(member).is_some());
        let peers = members.map(|member| NodeId(member.node)).filter(|node| *node != self.node());
        let asking =
            peers.map(|node| async move { (node, self.ask_what_lacks(node, asked).await) });
        for (node, answer) in join_all(asking).await {
            match answer {
                Some(lacked) if lacked.end > range.start => survey.hear(node, &lacked, range),
                Some(_) | None => drop(survey.away.insert(node)),
            }
        }
        Ok(self.files().is_still(&file).then_some(Some(survey)))
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

    /// False where the file has changed since.
    async fn give_up(&self, file: &Steady, lost: &[ByteRange]) -> Result<bool, NodeError> {
        let ranges = lost.iter().map(|range| proto::Extent { start: range.start, end: range.end });
        let op = proto::AcceptLost {
            ino: file.key.0.0,
            generation: file.key.1.0,
            data_version: file.version.0,
            ranges: ranges.collect(),
        };
        let outcome = self.mutate_in(None, Op::AcceptLost(op)).await?;
        let changed = [Errno::ECANCELED, Errno::ENOENT].map(Errno::number);
        Ok(!changed.contains(&outcome.errno))
    }
}

impl Survey {
    /// What another member lacks, of the range that it was asked about.
    fn hear(&mut self, node: NodeId, lacked: &Lacked, asked: ByteRange) {
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
}

/// Why lost bytes are not given up.
fn refusal(survey: &Survey, options: &LostOptions) -> Option<String> {
    let names =
        |nodes: &[NodeId]| nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ");
    let away: Vec<_> = survey.away.difference(&options.away).copied().collect();
    if !away.is_empty() {
        return Some(format!(
            "nodes {} do not answer, or have not caught up, and may have these bytes: bring them back, remove them from \
             the cluster, or say --even-if-away for each of them",
            names(&away)
        ));
    }
    let is_named = options.within.is_some();
    if is_named && !survey.held.is_empty() {
        let holders: Vec<_> = survey.holders.iter().copied().collect();
        return Some(format!(
            "nodes {} have some of these bytes, which come by themselves: name only what is lost",
            names(&holders)
        ));
    }
    None
}

fn ranges(set: &RangeSet<u64>) -> impl Iterator<Item = ByteRange> + '_ {
    set.iter().map(|range| ByteRange { start: range.start, end: range.end })
}

/// Says in the log of this replica what was given up, by whose command.
pub(super) fn note(index: LogIndex, command: &proto::Command, lost: &proto::AcceptLost) {
    let ranges: Vec<_> = lost.ranges.iter().map(|r| format!("{}..{}", r.start, r.end)).collect();
    tracing::warn!(
        index = index.0,
        proposer = command.node,
        ino = lost.ino,
        ranges = ranges.join(" "),
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
