//! One file of a scrub: its blocks on all replicas are compared, the majority decides, and what is rotten is waited
//! for until it is well again.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::blocks::{Block, Examined, Look};
use super::handle::NodeError;
use super::scrub::{Found, Scrub};
use crate::fs::limits::CHECKSUM_BLOCK;
use crate::store::{PAGE_BLOCKS, Steady};
use crate::types::{ByteRange, NodeId};

/// Blocks that replicas are asked for at once; some of these make a page of checksums.
const AT_ONCE: u64 = 64;
/// How often a file that changes is tried before it is left out.
const ATTEMPTS: usize = 5;
/// How often a peer is asked that has another version of the file.
const ASKED: usize = 3;
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(100);

/// How far an attempt came.
enum Outcome {
    Checked,
    /// The file changes: what was found of it is not to be judged.
    Changed,
}

/// A block of a replica that was found to be rotten.
struct Rotten {
    node: NodeId,
    block: u64,
    /// What it should be.
    sum: u32,
}

impl Scrub {
    /// Examines a file. What is wrong is said where it is found.
    pub(super) async fn file(&self, file: &Found) {
        // What was counted as done of it, also by an attempt that came to nothing.
        let mut done = 0;
        let mut outcome = Ok(Outcome::Changed);
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(AGAIN).await;
            }
            outcome = self.attempt(file, &mut done).await;
            if !matches!(outcome, Ok(Outcome::Changed)) {
                break;
            }
        }
        match outcome {
            Ok(Outcome::Checked) => {}
            Ok(Outcome::Changed) => self.report.lock().skipped += 1,
            Err(error) => self.failed(file, 0, format!("cannot be examined: {error}")).await,
        }
        let mut report = self.report.lock();
        report.files += 1;
        report.bytes += file.size.saturating_sub(done);
    }

    async fn attempt(&self, found: &Found, done: &mut u64) -> Result<Outcome, NodeError> {
        let file = match self.handle.look_at(found.ino)? {
            Look::Nothing => return Ok(Outcome::Checked),
            Look::Changing => return Ok(Outcome::Changed),
            Look::Steady(file) => file,
        };
        for page in 0..file.blocks().div_ceil(PAGE_BLOCKS) {
            let mut sums = Some(Vec::new());
            let mut blocks = file.page(page);
            while !blocks.is_empty() {
                let count = AT_ONCE.min(blocks.end - blocks.start);
                let asked = examined(&file, blocks.start, count);
                let range = ByteRange {
                    start: file.block(blocks.start).start,
                    end: file.block(blocks.start + count - 1).end,
                };
                blocks.start += count;
                if !self.until_here(&file, range).await {
                    let what = "bytes are missing on this node, and no peer gives them".to_owned();
                    self.failed(found, range.start, what).await;
                    return Ok(Outcome::Checked);
                }
                self.take_turn(count * CHECKSUM_BLOCK).await;
                let Some(agreed) = self.compare(found, &file, asked).await? else {
                    return Ok(Outcome::Changed);
                };
                match (agreed, &mut sums) {
                    (Some(agreed), Some(sums)) => sums.extend(agreed),
                    (Some(_) | None, _) => sums = None,
                }
                let now = (blocks.start * CHECKSUM_BLOCK).min(file.size).min(found.size);
                self.report.lock().bytes += now.saturating_sub(*done);
                *done = now.max(*done);
            }
            if let Some(sums) = sums {
                self.keep(&file, page, sums).await?;
            }
        }
        Ok(Outcome::Checked)
    }

    /// Waits until a range of a file has been fetched, for as long as something comes.
    async fn until_here(&self, file: &Steady, range: ByteRange) -> bool {
        let missing = || {
            let missing = self.handle.files().missing(file.key, range);
            missing.into_iter().map(|(range, _)| range.len()).sum::<u64>()
        };
        loop {
            let before = missing();
            if before == 0 || self.handle.until_here(file.key, range).await.is_ok() {
                return true;
            }
            if missing() >= before {
                return false;
            }
        }
    }

    /// What all replicas agree that a page is.
    async fn keep(&self, file: &Steady, page: u64, sums: Vec<u32>) -> Result<(), NodeError> {
        let (handle, file) = (self.handle.clone(), *file);
        let kept = tokio::task::spawn_blocking(move || {
            if handle.files().checksums_of(&file, page).as_ref() == Some(&sums) {
                return Ok(());
            }
            handle.files().keep_checksums(&file, page, &sums)
        });
        Ok(kept.await.map_err(|_| NodeError::Stopping)??)
    }

    /// Compares blocks. Answers what they should be, where all of them are that now; nothing at all where the file
    /// has changed.
    async fn compare(
        &self,
        found: &Found,
        file: &Steady,
        asked: Examined,
    ) -> Result<Option<Option<Vec<u32>>>, NodeError> {
        let Some(answers) = self.answers(file, asked).await? else { return Ok(None) };
        let mut agreed = Some(Vec::new());
        let mut rotten = Vec::new();
        for at in 0..usize::try_from(asked.count).expect("a few blocks") {
            let block = asked.first + at as u64;
            let of_block = || answers.iter().map(|(node, blocks)| (*node, blocks[at]));
            let votes: Vec<_> = of_block().filter_map(|(_, block)| block.sum).collect();
            let Some(sum) = majority(&votes) else {
                self.failed(found, file.block(block).start, undecided(of_block())).await;
                agreed = None;
                continue;
            };
            for (node, has) in of_block() {
                let is_rotten = if has.sum.is_some_and(|has| has != sum) {
                    self.outvote(node, examined(file, block, 1), sum).await?
                } else {
                    has.rotten
                };
                if is_rotten {
                    rotten.push(Rotten { node, block, sum });
                }
            }
            if let Some(sums) = &mut agreed {
                sums.push(sum);
            }
        }
        self.report.lock().found += rotten.len() as u64;
        for block in &rotten {
            if !self.until_well(found, file, block).await? {
                agreed = None;
            }
        }
        Ok(Some(agreed))
    }

    /// What the replicas have, this one first; nothing where the file has changed here.
    async fn answers(
        &self,
        file: &Steady,
        asked: Examined,
    ) -> Result<Option<Vec<(NodeId, Vec<Block>)>>, NodeError> {
        let own = self.handle.node();
        let members = self.handle.members();
        let peers = members.list.iter().map(|member| NodeId(member.node));
        let (peers, unreached): (Vec<_>, Vec<_>) =
            peers.filter(|node| *node != own).partition(|node| self.handle.is_connected(*node));
        self.report.lock().unasked.extend(unreached);
        let mut answers = Vec::new();
        let mut silent: Vec<_> = std::iter::once(own).chain(peers).collect();
        for attempt in 0..ASKED {
            if attempt > 0 {
                tokio::time::sleep(AGAIN).await;
            }
            let asking = silent.iter().map(|node| self.examine(*node, asked));
            let given = join_all(asking).await.into_iter().collect::<Result<Vec<_>, _>>()?;
            let mut still = Vec::new();
            for (node, answer) in silent.into_iter().zip(given) {
                match answer {
                    Some(blocks) => answers.push((node, blocks)),
                    None => still.push(node),
                }
            }
            silent = still;
            let is_here = |blocks: &[Block]| blocks.iter().all(|block| block.whole || block.rotten);
            if !answers.iter().any(|(node, blocks)| *node == own && is_here(blocks)) {
                return Ok(None);
            }
            if silent.is_empty() {
                break;
            }
        }
        if !silent.is_empty() && !self.handle.files().is_still(file) {
            // They have a later version by now, as this node has.
            return Ok(None);
        }
        self.report.lock().unasked.extend(silent);
        Ok(Some(answers))
    }

    /// What a node has, which may be this one.
    async fn examine(
        &self,
        node: NodeId,
        asked: Examined,
    ) -> Result<Option<Vec<Block>>, NodeError> {
        let blocks = if node == self.handle.node() {
            self.handle.examine(asked).await?
        } else {
            let answer = self.handle.0.transport.examine(node, asked);
            tokio::time::timeout(self.handle.op_timeout(), answer).await.ok().flatten()
        };
        Ok(blocks.filter(|blocks| blocks.len() as u64 == asked.count))
    }

    /// Tells a node, which may be this one, that the others have another block; whether it does not have that.
    async fn outvote(&self, node: NodeId, asked: Examined, sum: u32) -> Result<bool, NodeError> {
        if node == self.handle.node() {
            return self.handle.outvoted(asked, sum).await;
        }
        let answer = self.handle.0.transport.outvote(node, asked, sum);
        let answer = tokio::time::timeout(self.handle.op_timeout(), answer).await;
        // One that does not answer any more has it still.
        Ok(answer.ok().flatten().unwrap_or(true))
    }

    /// Waits until a rotten block is what it should be, and says whether it is.
    async fn until_well(
        &self,
        found: &Found,
        file: &Steady,
        rotten: &Rotten,
    ) -> Result<bool, NodeError> {
        let Rotten { node, block, sum } = *rotten;
        let range = file.block(block);
        let deadline = Instant::now() + self.handle.op_timeout();
        loop {
            if node == self.handle.node() {
                // Somebody waits for it. If it does not come, that is said below.
                let _ = self.handle.until_here(file.key, range).await;
            }
            let now = self.examine(node, examined(file, block, 1)).await?;
            let is_well = |blocks: Vec<Block>| blocks[0].whole && blocks[0].sum == Some(sum);
            // A file that has changed since has other bytes, which are nobody's rot.
            if now.map_or_else(|| !self.handle.files().is_still(file), is_well) {
                let what = format!("node {node} had a rotten block: fetched again from a peer");
                self.healed(found, range.start, what).await;
                return Ok(true);
            }
            if Instant::now() >= deadline {
                let what = format!(
                    "node {node} has a rotten block that could not be healed: it is missing there until a peer \
                     gives it; see that the other nodes run, and scrub again"
                );
                self.failed(found, range.start, what).await;
                return Ok(false);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

fn examined(file: &Steady, first: u64, count: u64) -> Examined {
    Examined { ino: file.key.0, generation: file.key.1, version: file.version, first, count }
}

/// Says of a block that nobody knows what it should be.
fn undecided(of_block: impl Iterator<Item = (NodeId, Block)>) -> String {
    let (known, unknown): (Vec<_>, Vec<_>) = of_block.partition(|(_, block)| block.sum.is_some());
    let names = |of: Vec<(NodeId, Block)>| {
        of.iter().map(|(node, _)| node.to_string()).collect::<Vec<_>>().join(", ")
    };
    if known.is_empty() {
        return format!(
            "no disk of the nodes that were asked ({}) can read a block: scrub again when more nodes can be reached, \
             or write the file anew",
            names(unknown)
        );
    }
    format!(
        "the replicas on nodes {} have different bytes, and there is no majority: nothing was changed; scrub again \
         when more nodes can be reached, or write the file anew",
        names(known)
    )
}

/// What more than half of those who know have.
fn majority(votes: &[u32]) -> Option<u32> {
    let of = |sum: u32| votes.iter().filter(|vote| **vote == sum).count();
    votes.iter().copied().find(|sum| 2 * of(*sum) > votes.len())
}

#[cfg(test)]
mod tests {
    use super::majority;

    #[test]
    fn more_than_half_decide() {
        assert_eq!(majority(&[]), None);
        assert_eq!(majority(&[7]), Some(7));
        assert_eq!(majority(&[7, 8]), None);
        assert_eq!(majority(&[8, 7, 7]), Some(7));
        assert_eq!(majority(&[7, 8, 9]), None);
        assert_eq!(majority(&[7, 7, 8, 8]), None);
    }
}
