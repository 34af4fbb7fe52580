//! Bytes that no member has any more: finding them, and giving them up.
//!
//! A range is *lost* where this node lacks it, and every other member has said that it lacks it, too, at exactly this
//! version of the file. Giving it up is a command ([`AcceptLost`](proto::AcceptLost)) that counts for that version
//! only: whatever has been written since is left alone, and all replicas have zeros there from then on, also one that
//! comes back with the bytes.

use std::collections::{BTreeMap, BTreeSet};

use rangemap::RangeSet;
use tokio::sync::mpsc;

use super::handle::{Handle, NodeError};
use super::scrub::{Found, Walk};
use super::survey::{AGAIN, ATTEMPTS, Survey, Surveyed, ranges};
use crate::fs::limits::LOST_MAX;
use crate::fs::proto::command::Op;
use crate::fs::{Errno, proto};
use crate::store::StoreError;
use crate::types::{ByteRange, Ino, LogIndex, NodeId};

/// Why nothing can be said of a file.
const CHANGES: &str = "it changes all the time: ask again when nobody writes it";
/// Reports that nobody has taken yet.
const REPORTS: usize = 16;

/// What is to become of lost bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// They are only listed.
    #[default]
    Listed,
    /// They are zeros from now on.
    GivenUp {
        /// Also where a node has bytes in their place that may be right.
        even_if_doubted: bool,
    },
    /// The bytes that this node has in their place, from a time when its state was wrong, are the right ones from now on.
    Taken,
}

/// What is to be looked for, and what is to become of it.
#[derive(Clone, Debug, Default)]
pub struct LostOptions {
    /// A file or a directory, by its path below the root of the file system; empty for everything.
    pub path: Vec<u8>,
    /// Only these bytes of a file.
    pub within: Option<ByteRange>,
    /// What is to become of what is found.
    pub fate: Fate,
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
    /// What of it is taken from this node's backing file.
    pub taken: Vec<ByteRange>,
    /// What of all these somebody has bytes for that are in doubt.
    pub doubted: BTreeMap<NodeId, Vec<ByteRange>>,
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

/// What became of bytes that were to be given up.
enum Answer {
    Accepted,
    /// The file, or who is a member, has changed since.
    Changed,
    Refused(u32),
}

impl Handle {
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
            let named = [&report.lost, &report.accepted, &report.taken];
            let lacks = report.held_bytes > 0 || named.iter().any(|ranges| !ranges.is_empty());
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
        if options.fate != Fate::Listed && !survey.lost.is_empty() {
            // Who lacked it may have fetched it meanwhile from another, which lost it then. It is lost where nobody has it
            // twice.
            match self.survey(report.ino, range).await? {
                Surveyed::Lacks(again) if again.file == survey.file => survey.confirm(again),
                Surveyed::Lacks(_) | Surveyed::Whole | Surveyed::Changing => return Ok(None),
            }
        }
        let lost: Vec<_> = ranges(&survey.lost).take(LOST_MAX).collect();
        let end = match lost.last() {
            Some(last) if lost.len() < survey.lost.len() => last.end,
            Some(_) | None => survey.end,
        };
        (report.doubted, report.lost) = (survey.doubted_of(&lost), lost);
        match options.fate {
            Fate::GivenUp { .. } if !report.lost.is_empty() => {
                let page = ByteRange { end, ..range };
                if !self.give_up_page(&survey, (page, range), options, report).await? {
                    return Ok(None);
                }
            }
            Fate::Taken if !report.lost.is_empty() => {
                report.refusal = refusal(&survey, options);
                if report.refusal.is_none() {
                    self.take_page(&survey, report).await?;
                }
            }
            Fate::Listed | Fate::GivenUp { .. } | Fate::Taken => {}
        }
        let held = ranges(&survey.held).take_while(|held| held.start < end);
        report.held_bytes = held.map(|held| held.end.min(end) - held.start).sum();
        (report.holders, report.away) = (survey.holders, survey.away);
        Ok(Some(end))
    }

    /// Gives up what is lost of a page of what was asked for; false where the file changes meanwhile.
    async fn give_up_page(
        &self,
        survey: &Survey,
        (page, range): (ByteRange, ByteRange),
        options: &LostOptions,
        report: &mut LostFile,
    ) -> Result<bool, NodeError> {
        report.refusal = self.refusal(survey, options).await?;
        let is_first = range.start == options.within.map_or(0, |within| within.start);
        if is_first && report.refusal.is_none() {
            // The first command gives the file another version, and whoever is away throws away what it has of this one.
            let rest = ByteRange { start: page.end, ..range };
            let refused = self.first_of(report.ino, rest, |survey| match survey {
                Some(survey) if survey.lost.is_empty() => None,
                Some(survey) => refusal(survey, options),
                None => Some(CHANGES.to_owned()),
            });
            report.refusal = refused.await?;
        }
        if report.refusal.is_none() {
            match self.give_up(survey, &report.lost).await? {
                Answer::Accepted => report.accepted = std::mem::take(&mut report.lost),
                Answer::Changed => return Ok(false),
                Answer::Refused(errno) => {
                    report.refusal =
                        Some(format!("the cluster refused it (errno {errno}): ask again"));
                }
            }
        }
        Ok(true)
    }

    /// Takes what this node has in doubt of what is lost. Who asks it for that finds it from now on.
    async fn take_page(&self, survey: &Survey, report: &mut LostFile) -> Result<(), NodeError> {
        let (handle, key, lost) = (self.clone(), survey.file.key, report.lost.clone());
        let taking = tokio::task::spawn_blocking(move || {
            let mut taken = Vec::new();
            for range in &lost {
                taken.extend(handle.files().take_doubted(key, *range)?);
            }
            Ok::<_, StoreError>(taken)
        });
        report.taken = taking.await.map_err(|_| NodeError::Stopping)??;
        let mut lost: RangeSet<u64> = report.lost.iter().map(|lost| lost.start..lost.end).collect();
        for ByteRange { start, end } in &report.taken {
            tracing::warn!(
                ino = report.ino.0,
                start,
                end,
                "these bytes came while this replica's state was wrong, and were taken for right"
            );
            lost.remove(*start..*end);
        }
        report.lost = ranges(&lost).collect();
        self.0.fetching.changed.notify_waiters();
        Ok(())
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
    let lost: Vec<_> = ranges(&survey.lost).collect();
    let doubting: BTreeSet<_> = survey.doubted_of(&lost).into_keys().collect();
    if options.fate == (Fate::GivenUp { even_if_doubted: false }) && !doubting.is_empty() {
        return Some(format!(
            "nodes {} have bytes in their place, from a time when their state was wrong, which may be right: take them there \
             (--take-doubted, on that machine), or say --even-if-doubted to give them up with the others",
            names(&doubting)
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
    use super::super::survey::tests::{lacked, ranges_of, survey};
    use super::{ByteRange, Fate, LostOptions, NodeId, refusal};

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

    /// Whoever gives up bytes that somebody has in doubt has to know of them.
    #[test]
    fn what_is_in_doubt_is_given_up_only_by_name() {
        let given_up = |even_if_doubted| LostOptions {
            fate: Fate::GivenUp { even_if_doubted },
            ..LostOptions::default()
        };
        let mut one = survey(&[(0, 100)]);
        let mut elsewhere = lacked(&[(0, 200)], 200);
        elsewhere.doubted = ranges_of(&[(100, 200)]);
        one.hear(NodeId(2), &elsewhere, ByteRange { start: 0, end: 200 });
        assert_eq!(refusal(&one, &given_up(false)), None, "it is not lost");
        elsewhere.doubted = ranges_of(&[(50, 200)]);
        one.hear(NodeId(2), &elsewhere, ByteRange { start: 0, end: 200 });
        let refused = refusal(&one, &given_up(false)).expect("somebody has some");
        assert!(refused.contains("nodes 2 have") && refused.contains("--even-if-doubted"));
        assert_eq!(refusal(&one, &given_up(true)), None);
        let take = LostOptions { fate: Fate::Taken, ..LostOptions::default() };
        assert_eq!(refusal(&one, &take), None);
        one.away = [NodeId(3)].into();
        assert!(refusal(&one, &take).is_some_and(|said| said.contains("nodes 3 do not")));
    }
}
