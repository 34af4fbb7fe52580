//! What is on the disks of a quorum, and what may be in its memory only: bytes that were staged for a close(2), which
//! need not wait for disks. Whoever asks for more, through whatever node, has the replicas write them.
//!
//! Each node writes everything to its disk from time to time, and tells the others up to which entry it has.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;

use super::deadline::Deadline;
use super::handle::{Handle, NodeError};
use super::shared::Shared;
use crate::fs::{proto, query};
use crate::store::StoreError;
use crate::types::{ByteRange, Generation, Ino, LogIndex, NodeId};

/// Bytes are on no disk for so long at most.
const AGE: Duration = Duration::from_secs(5);
/// The same while members come and go, which waits for it.
const MOVING_AGE: Duration = Duration::from_millis(100);
/// A leader may wait for something newer than what this node took for it, or another one may wait: it is looked at again after
/// this long.
const TAKEN: Duration = Duration::from_secs(1);
/// Between two attempts to find a quorum.
const AGAIN: Duration = Duration::from_millis(50);

/// What is known of it.
#[derive(Debug)]
pub(super) struct Durability {
    /// The last entry by which bytes of an inode came that a quorum may have in memory only.
    loose: Mutex<HashMap<Ino, LogIndex>>,
    /// Of what was applied up to here, before this daemon started or by a peer, nothing is known.
    unknown: AtomicU64,
    /// Up to which entry all is on the disks of nodes.
    synced: Mutex<BTreeMap<NodeId, LogIndex>>,
}

/// What is to be on a disk.
#[derive(Clone, Copy, Debug)]
pub struct Synced {
    /// Bytes of which inode.
    pub ino: Ino,
    /// Which life of them.
    pub generation: Generation,
    /// All that came up to this entry.
    pub index: LogIndex,
}

impl Durability {
    pub(super) fn new(applied: LogIndex) -> Self {
        let unknown = AtomicU64::new(applied.0);
        Self { loose: Mutex::default(), unknown, synced: Mutex::default() }
    }

    /// A snapshot says what was applied up to here, and nothing of where the bytes are.
    pub(super) fn skip_to(&self, index: LogIndex) {
        self.unknown.fetch_max(index.0, Ordering::AcqRel);
    }

    fn unknown(&self) -> LogIndex {
        LogIndex(self.unknown.load(Ordering::Acquire))
    }

    /// A command is applied.
    pub(super) fn applied(&self, index: LogIndex, command: &proto::Command) {
        if let Some(proto::command::Op::Write(write)) = &command.op
            && write.loose
        {
            self.loose.lock().insert(Ino(write.ino), index);
        }
    }

    /// What a node has on its disk.
    pub(super) fn heard(&self, node: NodeId, synced: LogIndex, voters: &[NodeId]) {
        let quorum = {
            let mut known = self.synced.lock();
            known.insert(node, synced);
            of_quorum(&known, voters)
        };
        self.loose.lock().retain(|_, index| *index > quorum);
    }

    /// Of other nodes nothing is kept.
    pub(super) fn retain(&self, is_known: impl Fn(NodeId) -> bool) {
        self.synced.lock().retain(|node, _| is_known(*node));
    }

    /// Up to which entry bytes of an inode, last changed at `data_version`, have to be brought to disks; nothing
    /// where they are there.
    fn loose(
        &self,
        (ino, generation): (Ino, Generation),
        data_version: LogIndex,
        voters: &[NodeId],
    ) -> Option<LogIndex> {
        let loose = self.loose.lock().get(&ino).copied();
        let known_from = self.unknown();
        let unknown = data_version.min(known_from);
        let unknown = (of_quorum(&self.synced.lock(), voters) < unknown).then_some(unknown);
        // A life that began since has nothing from before.
        loose.max(unknown.filter(|_| generation.0 <= known_from.0))
    }

    /// The last entry whose bytes may be on no disk.
    fn newest(&self) -> LogIndex {
        self.loose.lock().values().copied().max().unwrap_or(LogIndex(0)).max(self.unknown())
    }

    fn is_durable(&self, ino: Ino, up_to: LogIndex) {
        let mut loose = self.loose.lock();
        if loose.get(&ino).is_some_and(|index| *index <= up_to) {
            loose.remove(&ino);
        }
    }
}

/// Up to which entry all is on the disks of a quorum.
fn of_quorum(synced: &BTreeMap<NodeId, LogIndex>, voters: &[NodeId]) -> LogIndex {
    let known = |node| synced.get(node).copied().unwrap_or(LogIndex(0));
    let mut known: Vec<_> = voters.iter().map(known).collect();
    known.sort_unstable_by(|one, other| other.cmp(one));
    known.get(voters.len() / 2).copied().unwrap_or(LogIndex(0))
}

impl Handle {
    /// Makes sure that all bytes of an inode that are applied here are on the disks of a quorum. Answers their `data_version`,
    /// which is 0 where there is no such inode.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] where that takes too long.
    pub async fn make_durable(&self, ino: Ino) -> Result<LogIndex, NodeError> {
        let deadline = Deadline::current();
        let voters = voters(&self.0);
        let (version, loose) = self.loose_bytes(ino, &voters)?;
        let Some(wanted) = loose else { return Ok(version) };
        while !self.ask_for_disks(wanted, &voters, &deadline).await? {
            self.check(&deadline)?;
            tokio::time::sleep(AGAIN).await;
        }
        self.0.durability.is_durable(ino, wanted.index);
        Ok(version)
    }

    /// The `data_version` of an inode here, where all of its bytes are known to be on the disks of a quorum. It asks nobody.
    ///
    /// # Errors
    /// When this replica cannot read its own state.
    pub fn on_disks(&self, ino: Ino) -> Result<Option<LogIndex>, NodeError> {
        let (version, loose) = self.loose_bytes(ino, &voters(&self.0))?;
        Ok(loose.is_none().then_some(version))
    }

    /// The `data_version` of an inode, and what of it may be on no disk.
    fn loose_bytes(
        &self,
        ino: Ino,
        voters: &[NodeId],
    ) -> Result<(LogIndex, Option<Synced>), NodeError> {
        // First: whatever is loose is known to be before the state has it.
        let Some(inode) = query::inode(&self.state(), ino)? else {
            return Ok((LogIndex(0), None));
        };
        let (version, generation) = (LogIndex(inode.data_version), Generation(inode.generation));
        let loose = self.0.durability.loose((ino, generation), version, voters);
        Ok((version, loose.map(|index| Synced { ino, generation, index })))
    }

    /// Whether a quorum of these nodes has it on disk.
    async fn ask_for_disks(
        &self,
        wanted: Synced,
        voters: &[NodeId],
        deadline: &Deadline,
    ) -> Result<bool, NodeError> {
        let mut missing = voters.len() / 2 + 1;
        let mut answers = FuturesUnordered::new();
        for node in voters.iter().copied() {
            let handle = self.clone();
            let asked = async move {
                if node == handle.node() {
                    match handle.sync_bytes(wanted).await {
                        // This replica stops. The others may be a quorum.
                        Err(NodeError::Store(_)) => Ok(false),
                        synced => synced,
                    }
                } else {
                    // Who cannot be asked says nothing.
                    Ok(handle.0.transport.sync(node, wanted).await.unwrap_or(false))
                }
            };
            answers.push(asked);
        }
        // Whoever has not answered is asked no more once a quorum has.
        while missing > 0 {
            match self.within_deadline(deadline, answers.next()).await? {
                Some(holds) => missing -= usize::from(holds?),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Brings bytes to this node's disk; false where it has not all of them.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn sync_bytes(&self, wanted: Synced) -> Result<bool, NodeError> {
        let Synced { ino, generation, index } = wanted;
        if !self.until_applied(index).await || !self.is_sound() {
            return Ok(false);
        }
        let handle = self.clone();
        let syncing = tokio::task::spawn_blocking(move || {
            let key = (ino, generation);
            let inode = query::inode(&handle.state(), ino)?;
            // What is gone since needs no disk.
            if inode.is_none_or(|inode| inode.generation != generation.0) {
                return Ok(true);
            }
            // Before: what comes while it is synced is not.
            if !handle.files().missing(key, ByteRange::from(0)).is_empty() {
                return Ok(false);
            }
            // Bytes that could not be written are lost, and the next sync would not say so.
            handle.files().sync_file(key).inspect_err(|error| handle.0.fail(error))?;
            // What is in doubt may go.
            Ok::<_, StoreError>(handle.is_sound())
        });
        Ok(syncing.await.map_err(|_| NodeError::Stopping)??)
    }
}

pub(super) fn voters(shared: &Shared) -> Vec<NodeId> {
    shared.members.get().placed.voters.iter().copied().map(NodeId).collect()
}

/// Brings everything to the disk that has waited for long enough, and what changes of members wait for. Runs for ever.
pub(super) async fn write_back(handle: Handle) {
    let mut members = handle.members_changed();
    // A node that has just joined is told of no change any more: it is the change.
    members.mark_changed();
    let mut due = Instant::now() + AGE;
    // What is to be there of everything, while members come and go, and since when that is known.
    let mut target: Option<(LogIndex, Instant)> = None;
    loop {
        let next = if target.is_some() { due.min(Instant::now() + MOVING_AGE) } else { due };
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            // The sender lives as long as the node.
            _ = members.changed() => {}
        }
        let shared = handle.0.clone();
        target = handle.is_membership_moving().then(|| match target {
            Some((index, since)) if !holds(&shared, index) || since.elapsed() < TAKEN => {
                (index, since)
            }
            _ => (shared.state.applied(), Instant::now()),
        });
        let is_awaited =
            target.is_some_and(|(index, _)| !holds(&shared, index)) && has_all(&shared);
        let mut is_due = Instant::now() >= due;
        if is_due {
            due = Instant::now() + AGE;
            is_due = shared.files.needs_sync(shared.durability.newest());
            promise(&shared).await;
        }
        if !is_awaited && !is_due {
            continue;
        }
        let synced = tokio::task::spawn_blocking(move || {
            if let Err(error) = shared.files.sync() {
                shared.fail(&error);
            }
        });
        // It ends with the node.
        let _ = synced.await;
        if is_awaited {
            handle.0.space.look_again.notify_one();
        }
    }
}

/// Says outside of the log what it holds.
async fn promise(shared: &Arc<Shared>) {
    let shared = shared.clone();
    let promised = tokio::task::spawn_blocking(move || {
        if let Err(error) = shared.log.promise() {
            shared.fail(&error);
        }
    });
    // It ends with the node.
    let _ = promised.await;
}

/// Whether everything is here that is anywhere.
pub(super) fn has_all(shared: &Shared) -> bool {
    let (_, bytes) = shared.files.missing_in_all();
    bytes == 0 || bytes == shared.fetching.bytes_nowhere(&shared.files)
}

/// Whether all that came up to an entry, and is anywhere, is on this disk.
fn holds(shared: &Shared, index: LogIndex) -> bool {
    shared.files.durable() >= index || (has_all(shared) && shared.files.imaged() >= index)
}

#[cfg(test)]
mod tests {
    use super::{Durability, Generation, Ino, LogIndex, NodeId, proto};

    const VOTERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn write(ino: u64, loose: bool) -> proto::Command {
        let write = proto::Write { ino, loose, ..proto::Write::default() };
        let op = Some(proto::command::Op::Write(write));
        proto::Command { op, ..proto::Command::default() }
    }

    #[test]
    fn what_was_only_held_is_loose_until_a_quorum_has_synced_it() {
        let known = Durability::new(LogIndex(0));
        let loose =
            |ino, version| known.loose((Ino(ino), Generation(1)), LogIndex(version), &VOTERS);
        known.applied(LogIndex(10), &write(5, true));
        known.applied(LogIndex(11), &write(5, false));
        known.applied(LogIndex(12), &write(6, false));
        assert_eq!((loose(5, 11), loose(6, 12)), (Some(LogIndex(10)), None));
        known.heard(NodeId(1), LogIndex(12), &VOTERS);
        known.heard(NodeId(2), LogIndex(9), &VOTERS);
        assert_eq!(loose(5, 11), Some(LogIndex(10)));
        known.heard(NodeId(3), LogIndex(10), &VOTERS);
        assert_eq!(loose(5, 11), None);
        known.applied(LogIndex(13), &write(5, true));
        known.applied(LogIndex(14), &write(5, true));
        known.is_durable(Ino(5), LogIndex(13));
        assert_eq!(loose(5, 14), Some(LogIndex(14)), "it came later");
        known.is_durable(Ino(5), LogIndex(14));
        assert_eq!(loose(5, 14), None);
    }

    #[test]
    fn what_was_there_before_the_start_is_believed_when_a_quorum_says_so() {
        let known = Durability::new(LogIndex(100));
        let loose = |version| known.loose((Ino(5), Generation(50)), LogIndex(version), &VOTERS);
        assert_eq!(loose(60), Some(LogIndex(60)));
        assert_eq!(loose(120), Some(LogIndex(100)), "earlier bytes of it may be older");
        for node in VOTERS {
            known.heard(node, LogIndex(70), &VOTERS);
        }
        assert_eq!((loose(60), loose(71)), (None, Some(LogIndex(71))));
        let new = known.loose((Ino(5), Generation(101)), LogIndex(120), &VOTERS);
        assert_eq!(new, None, "nothing of it is older");
    }
}
