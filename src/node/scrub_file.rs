//! One file of a scrub: its blocks on all replicas are compared, the majority decides, and what is rotten is waited
//! for until it is well again.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::blocks::{Block, Examined, Look};
use super::handle::NodeError;
use super::scrub::{Found, Scrub};
use crate::fs::limits::CHECKSUM_BLOCK;
use crate::store::{PAGE_BLOCKS, Steady};
use crate::types::NodeId;

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

/// A block of a replica that is not what it should be.
struct Ailing {
    node: NodeId,
    block: u64,
    /// What it should be.
    sum: u32,
    /// Whether that was found just now; else it was missing before.
    is_rotten: bool,
    /// Whether some node that was asked has it.
    is_held: bool,
}

impl Ailing {
    /// Why it is not well yet, and what to do.
    fn problem(&self) -> String {
        let node = self.node;
        match (self.is_held, self.is_rotten) {
            (false, _) => "no node that was asked has these bytes: scrub again when more nodes can be reached, write \
                           them anew, or accept them as lost (`quorumfs accept-lost`)"
                .to_owned(),
            (true, true) => format!(
                "node {node} has a rotten block that could not be healed: it is missing there until a peer \
                 gives it; see that the other nodes run, and scrub again"
            ),
            (true, false) => format!(
                "bytes are missing on node {node}, and no peer gives them: see that the other nodes run, and scrub again"
            ),
        }
    }
}

/// How long is still waited for blocks of a file while none becomes well: once, and not for each block.
struct Patience {
    /// For what some node has.
    held: Duration,
    /// For what no single node has: several may have it between them.
    lost: Duration,
}

impl Patience {
    fn of(&mut self, ailing: &Ailing) -> &mut Duration {
        if ailing.is_held { &mut self.held } else { &mut self.lost }
    }
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
        let op_timeout = self.handle.op_timeout();
        let mut patience = Patience { held: op_timeout, lost: op_timeout };
        for page in 0..file.blocks().div_ceil(PAGE_BLOCKS) {
            let mut sums = Some(Vec::new());
            let mut blocks = file.page(page);
            while !blocks.is_empty() {
                let count = AT_ONCE.min(blocks.end - blocks.start);
                let asked = examined(&file, blocks.start, count);
                blocks.start += count;
                self.take_turn(count * CHECKSUM_BLOCK).await;
                let compared = self.compare(found, &file, asked, &mut patience).await?;
                let Some(agreed) = compared else { return Ok(Outcome::Changed) };
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
        patience: &mut Patience,
    ) -> Result<Option<Option<Vec<u32>>>, NodeError> {
        let Some(answers) = self.answers(file, asked).await? else { return Ok(None) };
        let mut sums = Vec::new();
        let mut all_ailing = Vec::new();
        let mut problems = Vec::new();
        for at in 0..usize::try_from(asked.count).expect("a few blocks") {
            let block = asked.first + at as u64;
            let of_block = || answers.iter().map(|(node, blocks)| (*node, blocks[at]));
            let votes: Vec<_> = of_block().filter_map(|(_, block)| block.sum).collect();
            let Some(sum) = majority(&votes) else {
                problems.push((block, undecided(of_block())));
                continue;
            };
            sums.push(sum);
            let is_held = of_block().any(|(_, has)| has.whole && has.sum == Some(sum));
            let first = all_ailing.len();
            for (node, has) in of_block() {
                let is_rotten = if has.sum.is_some_and(|has| has != sum) {
                    self.outvote(node, examined(file, block, 1), sum).await?
                } else {
                    has.rotten
                };
                self.report.lock().found += u64::from(is_rotten);
                // What was missing on others before comes to them by itself.
                if is_rotten || (!has.whole && node == self.handle.node()) {
                    all_ailing.push(Ailing { node, block, sum, is_rotten, is_held });
                }
            }
            if !is_held {
                // It comes to one of them first.
                all_ailing.truncate(first + 1);
            }
        }
        for ailing in &all_ailing {
            if !self.until_well(found, file, ailing, patience).await? {
                problems.push((ailing.block, ailing.problem()));
            }
        }
        let agreed = problems.is_empty().then_some(sums);
        self.failed_blocks(found, file, problems).await;
        Ok(Some(agreed))
    }

    /// Says what is wrong with blocks: once for those that lie side by side.
    async fn failed_blocks(&self, found: &Found, file: &Steady, mut problems: Vec<(u64, String)>) {
        problems.sort_by(|(one, what), (other, what_else)| (what, one).cmp(&(what_else, other)));
        let follows = |(one, what): &(u64, String), (next, of_next): &(u64, String)| {
            what == of_next && one + 1 == *next
        };
        for run in problems.chunk_by(follows) {
            let ((first, what), count) = (&run[0], run.len());
            let what = if count == 1 { what.clone() } else { format!("{count} blocks: {what}") };
            self.report.lock().unhealed += count as u64 - 1;
            self.failed(found, file.block(*first).start, what).await;
        }
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
            let is_missing =
                |block| !self.handle.files().missing(file.key, file.block(block)).is_empty();
            // What is staged is on its way to where it can be judged.
            let is_settled = |blocks: &[Block]| {
                let mut blocks = blocks.iter().zip(asked.first..);
                blocks.all(|(has, block)| has.whole || has.rotten || is_missing(block))
            };
            if !answers.iter().any(|(node, blocks)| *node == own && is_settled(blocks)) {
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

    /// Waits until a block is what it should be, and says whether it is. One that was rotten is reported then.
    async fn until_well(
        &self,
        found: &Found,
        file: &Steady,
        ailing: &Ailing,
        patience: &mut Patience,
    ) -> Result<bool, NodeError> {
        let Ailing { node, block, sum, is_rotten, .. } = *ailing;
        let range = file.block(block);
        let left = patience.of(ailing);
        let deadline = Instant::now() + *left;
        loop {
            if node == self.handle.node() && !left.is_zero() {
                // Somebody waits for it. If it does not come, that is said below.
                let _ = tokio::time::timeout(*left, self.handle.until_here(file.key, range)).await;
            }
            let now = self.examine(node, examined(file, block, 1)).await?;
            let is_well = |blocks: Vec<Block>| blocks[0].whole && blocks[0].sum == Some(sum);
            // A file that has changed since has other bytes, which are nobody's rot.
            if now.map_or_else(|| !self.handle.files().is_still(file), is_well) {
                *left = self.handle.op_timeout();
                if is_rotten {
                    let what = format!("node {node} had a rotten block: fetched again from a peer");
                    self.healed(found, range.start, what).await;
                }
                return Ok(true);
            }
            *left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            tokio::time::sleep(AGAIN.min(*left)).await;
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
