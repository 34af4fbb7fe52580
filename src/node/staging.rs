//! Bytes that this node's mounts send to all replicas beside the log, and what the others send here.
//!
//! An [`OpenStage`] takes bytes in while a program writes; [`OpenStage::hold`] waits until a quorum has all of
//! them, in memory or on disk, and then one small command can write them. A peer whose connection broke in
//! between lacks some: it is sent the whole stage again, from this node's own copy, where a quorum cannot be had
//! otherwise. A peer that is slow holds the writer back, by the budget; one that does not move at all loses its
//! stream, and with it its place in the budget, as long as the others are a quorum.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use rangemap::RangeSet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::deadline::Deadline;
use super::durability::voters;
use super::encoding::{Encoded, Encoder};
use super::handle::{Handle, NodeError};
use super::transport::ToStage;
use crate::fs::limits::CHECKSUM_BLOCK;
use crate::fs::{proto, query};
use crate::store::{StoreError, checksum_blocks};
use crate::types::{ByteRange, NodeId, SessionId, StageId};

/// Bytes on their way to peers at most, of all stages of this node.
const BUDGET: usize = 256 << 20;
/// Stages of this node that are open: each has a descriptor, here and at each peer.
const STAGES: usize = 1024;
/// A stage that is sent again goes in pieces of so many bytes.
const PIECE: u64 = 1 << 20;
/// Between two attempts to find a quorum.
const AGAIN: Duration = Duration::from_millis(50);

/// What is under way.
#[derive(Debug)]
pub(super) struct Staging {
    budget: Arc<Semaphore>,
    places: Arc<Semaphore>,
    stages: AtomicU64,
    marks: AtomicU64,
    /// Marks that peers are to answer.
    waiting: Mutex<HashMap<(NodeId, u64), oneshot::Sender<bool>>>,
}

/// Bytes that count against the budget until every peer was sent them.
#[derive(Clone, Debug)]
pub struct Weighed {
    /// The bytes, as they travel.
    pub encoded: Encoded,
    /// The CRC-32C of the bytes themselves.
    pub checksum: u32,
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Staging {
    pub(super) fn new() -> Self {
        Self {
            budget: Arc::new(Semaphore::new(BUDGET)),
            places: Arc::new(Semaphore::new(STAGES)),
            stages: AtomicU64::new(0),
            marks: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }

    fn has_place(&self) -> bool {
        self.places.available_permits() > 0
    }

    pub(super) fn marked(&self, from: NodeId, mark: u64, holds: bool) {
        if let Some(waiter) = self.waiting.lock().remove(&(from, mark)) {
            // Whoever waited may have its quorum already.
            let _ = waiter.send(holds);
        }
    }

    /// What a peer has not answered it never will.
    pub(super) fn lane_lost(&self, node: NodeId) {
        self.waiting.lock().retain(|(peer, _), _| *peer != node);
    }
}

/// A stage of this node's session, to which bytes may still be added. Dropped before it is
/// [`written`](Self::written), it is abandoned everywhere.
#[derive(Debug)]
pub struct OpenStage {
    handle: Handle,
    id: StageId,
    /// The connections by which peers have been sent all of it so far.
    lanes: BTreeMap<NodeId, u64>,
    ranges: RangeSet<u64>,
    sums: Checksums,
    /// What this node's own disk did not take, in the order in which it came.
    homeless: Vec<(u64, Bytes)>,
    encoder: Encoder,
    is_written: bool,
    _place: Option<OwnedSemaphorePermit>,
}

impl Handle {
    /// Whether there may be another stage. Otherwise bytes go through the log.
    #[must_use]
    pub fn may_begin_stage(&self) -> bool {
        self.0.staging.has_place()
    }

    /// A new stage of this node's session.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] where there is no session in time.
    pub async fn begin_stage(&self) -> Result<OpenStage, NodeError> {
        let session = self.until_session().await?;
        let number = self.0.staging.stages.fetch_add(1, Ordering::Relaxed) + 1;
        let mut lanes = BTreeMap::new();
        for node in self.0.others() {
            if let Some(lane) = self.0.transport.stage_lane(node) {
                lanes.insert(node, lane);
            }
        }
        let id = StageId { session, number };
        Ok(OpenStage {
            handle: self.clone(),
            id,
            lanes,
            ranges: RangeSet::new(),
            sums: Checksums::default(),
            homeless: Vec::new(),
            encoder: Encoder::new(self.0.config.compression),
            is_written: false,
            // One or two more, where several begin at the same moment.
            _place: self.0.staging.places.clone().try_acquire_owned().ok(),
        })
    }

    /// A peer has said whether it holds what it was asked for.
    pub fn stage_marked(&self, from: NodeId, mark: u64, holds: bool) {
        self.0.staging.marked(from, mark, holds);
    }

    /// Whether this node and these others are a quorum of the voters.
    #[must_use]
    pub fn makes_quorum_with(&self, others: &[NodeId]) -> bool {
        let nodes: Vec<_> = others.iter().copied().chain([self.node()]).collect();
        is_quorum(&nodes, &voters(&self.0))
    }

    /// There is a connection for bulk data to a peer.
    pub fn stage_lane_opened(&self, node: NodeId) {
        self.0.fetching.lane_opened(node);
    }

    /// The connection for stages to a peer is lost.
    pub fn stage_lane_lost(&self, node: NodeId) {
        self.0.staging.lane_lost(node);
        self.0.fetching.lane_lost(node);
    }

    /// Bytes of a peer's stage have come. Waits for the disk: not for a thread that must not.
    ///
    /// # Errors
    /// When the session is over, or the disk refuses: this replica then lacks them.
    pub fn stage_received(&self, id: StageId, offset: u64, data: &[u8]) -> Result<(), StageError> {
        let is_known = {
            let state = self.state();
            let applied = state.applied();
            // One that was opened just now may not be applied here yet.
            id.session.0 > applied.0 || query::session(&state, id.session)?.is_some()
        };
        if !is_known {
            return Err(StageError::Over(id.session));
        }
        Ok(self.files().stage(id, offset, data)?)
    }

    /// Makes all that has come of a stage durable; false where it is not here, or not any more. Waits for the disk.
    ///
    /// # Errors
    /// When the disk refuses: this replica stops. What was to be written is lost, and the next fsync would not say so.
    pub fn sync_stage(&self, id: StageId) -> Result<bool, StoreError> {
        self.files().sync_stage(id).inspect_err(|error| self.0.fail(error))
    }
}

/// Why bytes of a stage were not taken in.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// Nobody will write them.
    #[error("session {0} has ended")]
    Over(SessionId),
    /// This replica's own trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OpenStage {
    /// What names it in the command that writes it.
    #[must_use]
    pub fn id(&self) -> StageId {
        self.id
    }

    /// What has been added to it.
    #[must_use]
    pub fn ranges(&self) -> &RangeSet<u64> {
        &self.ranges
    }

    /// Adds bytes at the offset that they have in the file, where none have been added. Waits while too many are on
    /// their way to peers.
    ///
    /// # Errors
    /// When this node's own disk refuses; [`NodeError::Deadline`] where a peer that takes nothing has held the whole
    /// budget for too long.
    pub async fn add(&mut self, offset: u64, data: Bytes) -> Result<(), NodeError> {
        let range = ByteRange::at(offset, data.len() as u64);
        if range.is_empty() {
            return Ok(());
        }
        debug_assert!(
            !self.ranges.overlaps(&(range.start..range.end)),
            "{} has bytes at {range:?} already",
            self.id
        );
        let weighed = self.weigh(data.clone()).await?;
        let sent = self.lanes.iter().map(|(node, lane)| (*node, *lane)).collect::<Vec<_>>();
        for (node, lane) in sent {
            self.send_data(node, lane, offset, &weighed);
        }
        drop(weighed);
        let (handle, id) = (self.handle.clone(), self.id);
        self.sums.add(offset, &data);
        let kept = data.clone();
        let stored = tokio::task::spawn_blocking(move || handle.files().stage(id, offset, &data));
        match stored.await.map_err(|_| NodeError::Stopping)? {
            Err(error) if error.is_refused() => self.homeless.push((offset, kept)),
            stored => stored?,
        }
        self.ranges.insert(range.start..range.end);
        Ok(())
    }

    /// Whether this node's own disk has all of it. Where it has not, the rest takes memory until it is written:
    /// soon.
    #[must_use]
    pub fn is_kept_here(&self) -> bool {
        self.homeless.is_empty()
    }

    /// Waits until a quorum of the voters has everything that was added: on disk, where it is to be durable.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] where that takes too long.
    pub async fn hold(&mut self, durable: bool) -> Result<(), NodeError> {
        let deadline = Deadline::current();
        loop {
            if self.ask(durable, &deadline).await? {
                return Ok(());
            }
            self.handle.check(&deadline)?;
            tokio::time::sleep(AGAIN).await;
            self.send_again().await?;
        }
    }

    /// All that was added, as the pieces of the command that writes it.
    ///
    /// # Errors
    /// When this node's own disk refuses.
    pub async fn pieces(&self) -> Result<Vec<proto::Piece>, NodeError> {
        let mut pieces = Vec::new();
        for range in self.ranges.iter() {
            let range = ByteRange { start: range.start, end: range.end };
            let mut checksums = Vec::new();
            for block in checksum_blocks(range) {
                checksums.push(match self.sums.of(block) {
                    Some(sum) => sum,
                    None => crc32c::crc32c(&self.read(block).await?),
                });
            }
            let (offset, length) = (range.start, range.len());
            pieces.push(proto::Piece { offset, length, checksums, ..proto::Piece::default() });
        }
        Ok(pieces)
    }

    /// Reads what was added.
    async fn read(&self, range: ByteRange) -> Result<Vec<u8>, NodeError> {
        let len = usize::try_from(range.len()).expect("one block or piece");
        let (handle, id, is_kept) = (self.handle.clone(), self.id, self.is_kept_here());
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; len];
            let is_there = handle.files().read_stage(id, range.start, &mut bytes)?;
            // What it has not is laid over it; otherwise its session has ended.
            if is_there || !is_kept { Ok(bytes) } else { Err(NodeError::SessionLost) }
        });
        let mut bytes = read.await.map_err(|_| NodeError::Stopping)??;
        for (offset, data) in &self.homeless {
            let over = ByteRange::at(*offset, data.len() as u64);
            let (start, end) = (range.start.max(over.start), range.end.min(over.end));
            if start < end {
                let at = |at: u64, from: u64| usize::try_from(at - from).expect("in memory");
                bytes[at(start, range.start)..at(end, range.start)]
                    .copy_from_slice(&data[at(start, *offset)..at(end, *offset)]);
            }
        }
        Ok(bytes)
    }

    /// The command that writes it is on its way: it belongs to the file from now on, unless it is [`refused`](Self::refused).
    pub fn written(&mut self) {
        self.is_written = true;
        if !self.is_kept_here() {
            // What this disk had no room for does not come by itself.
            self.handle.files().give_up_stage(self.id);
        }
    }

    /// The command was answered, and has written nothing: another one may.
    pub fn refused(&mut self) {
        self.is_written = false;
    }

    /// Asks everybody who has been sent all of it; whether a quorum holds it.
    async fn ask(&self, durable: bool, deadline: &Deadline) -> Result<bool, NodeError> {
        let shared = &self.handle.0;
        let own = shared.node;
        let voters = voters(shared);
        let quorum = voters.len() / 2 + 1;
        let mut holders = Vec::new();
        let mut answers = FuturesUnordered::new();
        for node in voters.iter().copied().filter(|node| *node != own) {
            let Some(lane) = self.lanes.get(&node).copied() else { continue };
            if shared.transport.stage_lane(node) != Some(lane) {
                continue;
            }
            let mark = shared.staging.marks.fetch_add(1, Ordering::Relaxed) + 1;
            let (answer, answered) = oneshot::channel();
            shared.staging.waiting.lock().insert((node, mark), answer);
            let sent = ToStage::Mark { id: self.id, mark, durable };
            shared.transport.stage(node, lane, sent);
            if shared.transport.stage_lane(node) != Some(lane) {
                // Nobody answers, and who is told of the loss may have been so already.
                shared.staging.waiting.lock().remove(&(node, mark));
            }
            answers.push(async move { (node, answered.await) });
        }
        if voters.contains(&own) && self.is_kept_here() {
            // Meanwhile the others do the same.
            if durable {
                let (handle, id) = (self.handle.clone(), self.id);
                let synced = tokio::task::spawn_blocking(move || handle.sync_stage(id));
                match synced.await.map_err(|_| NodeError::Stopping)? {
                    Ok(true) => holders.push(own),
                    Ok(false) => return Err(NodeError::SessionLost),
                    // This replica stops. The others may be a quorum.
                    Err(_) => {}
                }
            } else {
                holders.push(own);
            }
        }
        while holders.len() < quorum {
            match self.handle.within_deadline(deadline, answers.next()).await? {
                Some((node, Ok(true))) => holders.push(node),
                // It does not hold all, or its connection is lost.
                Some((_, Ok(false) | Err(_))) => {}
                None => return Ok(false),
            }
        }
        // Others may vote by now.
        Ok(is_quorum(&holders, &self::voters(shared)))
    }

    /// Sends everything to whoever has a new connection.
    async fn send_again(&mut self) -> Result<(), NodeError> {
        for node in self.handle.0.others() {
            let Some(lane) = self.handle.0.transport.stage_lane(node) else { continue };
            if self.lanes.get(&node) == Some(&lane) {
                continue;
            }
            for range in self.ranges.clone() {
                let mut at = range.start;
                while at < range.end {
                    let piece = ByteRange { start: at, end: range.end.min(at + PIECE) };
                    let data = Bytes::from(self.read(piece).await?);
                    let weighed = self.weigh(data).await?;
                    self.send_data(node, lane, at, &weighed);
                    at = piece.end;
                }
            }
            self.lanes.insert(node, lane);
        }
        Ok(())
    }

    /// Once for all peers.
    async fn weigh(&mut self, data: Bytes) -> Result<Weighed, NodeError> {
        let weight = u32::try_from(data.len().min(BUDGET)).expect("the budget is below 4 GiB");
        let permit = self.handle.0.staging.budget.clone().acquire_many_owned(weight);
        let permit = self.handle.within(permit).await?;
        let permit = Arc::new(permit.expect("the budget is never closed"));
        let checksum = crc32c::crc32c(&data);
        if !self.encoder.is_on() {
            return Ok(Weighed { encoded: Encoded::plain(data), checksum, _permit: permit });
        }
        let mut encoder = self.encoder.clone();
        let encoding = tokio::task::spawn_blocking(move || (encoder.encode(data), encoder));
        let (encoded, encoder) = encoding.await.map_err(|_| NodeError::Stopping)?;
        self.encoder = encoder;
        Ok(Weighed { encoded, checksum, _permit: permit })
    }

    fn send_data(&self, node: NodeId, lane: u64, offset: u64, weighed: &Weighed) {
        self.handle.0.traffic.sent(&weighed.encoded);
        let data = ToStage::Data { id: self.id, offset, bytes: weighed.clone() };
        self.handle.0.transport.stage(node, lane, data);
    }
}

impl Drop for OpenStage {
    fn drop(&mut self) {
        if self.is_written {
            return;
        }
        // Also by another connection than the one by which it was sent.
        for node in self.lanes.keys() {
            if let Some(lane) = self.handle.0.transport.stage_lane(*node) {
                self.handle.0.transport.stage(*node, lane, ToStage::Abandon { id: self.id });
            }
        }
        // Whoever drops it may be a thread that must not wait for the disk.
        let (handle, id) = (self.handle.clone(), self.id);
        self.handle.0.runtime.spawn_blocking(move || {
            if let Err(error) = handle.files().abandon_stage(id) {
                tracing::warn!(%error, "a stage that nobody needs stays until the next start");
            }
        });
    }
}

fn is_quorum(nodes: &[NodeId], voters: &[NodeId]) -> bool {
    2 * voters.iter().filter(|voter| nodes.contains(voter)).count() > voters.len()
}

/// Checksums of blocks, summed up while bytes come in order.
#[derive(Debug, Default)]
struct Checksums(BTreeMap<u64, Sum>);

/// Of one block.
#[derive(Clone, Copy, Debug)]
struct Sum {
    range: ByteRange,
    /// None where bytes came in another order.
    crc: Option<u32>,
}

impl Checksums {
    fn add(&mut self, offset: u64, data: &[u8]) {
        for part in checksum_blocks(ByteRange::at(offset, data.len() as u64)) {
            let at = |at: u64| usize::try_from(at - offset).expect("in memory");
            let bytes = &data[at(part.start)..at(part.end)];
            let sum = self.0.entry(part.start / CHECKSUM_BLOCK);
            let sum = sum.or_insert(Sum { range: ByteRange::at(part.start, 0), crc: Some(0) });
            let follows = sum.range.end == part.start;
            sum.crc = sum.crc.filter(|_| follows).map(|crc| crc32c::crc32c_append(crc, bytes));
            sum.range.end = sum.range.end.max(part.end);
        }
    }

    /// Of the part of a block, where it is known.
    fn of(&self, part: ByteRange) -> Option<u32> {
        let sum = self.0.get(&(part.start / CHECKSUM_BLOCK))?;
        sum.crc.filter(|_| sum.range == part)
    }
}

#[cfg(test)]
mod tests {
    use super::{ByteRange, CHECKSUM_BLOCK, Checksums, STAGES, Staging};

    #[test]
    fn so_many_stages_are_open_and_no_more() {
        let staging = Staging::new();
        let taken = (0..STAGES).filter_map(|_| staging.places.clone().try_acquire_owned().ok());
        let mut taken: Vec<_> = taken.collect();
        assert_eq!((taken.len(), staging.has_place()), (STAGES, false));
        taken.pop();
        assert!(staging.has_place(), "one is written");
    }

    #[test]
    fn checksums_of_what_came_in_order_are_known() {
        let data: Vec<u8> = (0..300_000_u32).map(|at| at.to_le_bytes()[0] ^ 5).collect();
        let mut sums = Checksums::default();
        for start in (0..data.len()).step_by(7_000) {
            let end = data.len().min(start + 7_000);
            sums.add(start as u64, &data[start..end]);
        }
        let block = usize::try_from(CHECKSUM_BLOCK).unwrap();
        for (number, bytes) in data.chunks(block).enumerate() {
            let range = ByteRange::at(number as u64 * CHECKSUM_BLOCK, bytes.len() as u64);
            assert_eq!(sums.of(range), Some(crc32c::crc32c(bytes)));
            assert_eq!(sums.of(ByteRange { start: range.start + 1, ..range }), None);
        }
        sums.add(10, b"over");
        assert_eq!(sums.of(ByteRange::at(0, CHECKSUM_BLOCK)), None, "written over");
        let mut sums = Checksums::default();
        sums.add(500, b"behind");
        sums.add(0, b"before");
        assert_eq!(sums.of(ByteRange::at(0, 6)), None);
        assert_eq!(sums.of(ByteRange::at(500, 6)), None);
    }
}
