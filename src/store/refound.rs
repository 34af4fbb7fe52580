//! Makes a new cluster out of one replica of an old one, whose other members are gone for good.
//!
//! The rest of the log is applied, committed or not: what was acknowledged may be in it. Then entries are added that end
//! all sessions and remove all other members, and they count as committed, since nobody is left to ask. The log is cut
//! behind them: newcomers begin with the snapshot. The new cluster has an id of its own: old members that come back
//! cannot talk to it.
//!
//! At every step the process may die. The file `recovering` is written first, and holds the new id: until it is gone no
//! daemon starts, and doing it again goes on. The snapshot file of the new cluster is what decides: once it is in
//! place only names are left to be changed.

use std::collections::BTreeSet;

use prost::Message;
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType,
    HardState,
};

use super::datadir::DataDir;
use super::genesis::change_genesis;
use super::identity::Identity;
use super::log::{LogOptions, RaftLog};
use super::point::AppliedPoint;
use super::recover::{Recovered, recover};
use super::snapshot::{latest_snapshot, read_snapshot, write_snapshot};
use super::state::State;
use crate::fs::proto::{self, command::Op};
use crate::fs::{Batch, query};
use crate::store::StoreError;
use crate::store::error::REJOIN;
use crate::types::{ClusterId, LogIndex, NodeId, SessionId, Term, Timestamp, VolumeId};

/// Entries that are read at a time.
const PAGE_BYTES: u64 = 16 << 20;

/// Who goes when one node becomes a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// All sessions.
    pub sessions: Vec<SessionId>,
    /// All other members, with their addresses.
    pub members: Vec<(NodeId, String)>,
}

impl Leaving {
    /// As a state has them, seen from one of its members.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn of(state: &State, own: NodeId) -> Result<Self, StoreError> {
        let read = state.read();
        let sessions = query::session_ids(&read)?;
        let others = query::members(&read)?.into_iter().filter(|member| member.node != own.0);
        let members = others.map(|member| (NodeId(member.node), member.address)).collect();
        Ok(Self { sessions, members })
    }
}

/// Whether the snapshot file of the new cluster is in place, so that nothing but names is left to be changed.
///
/// # Errors
/// When the data directory cannot be read.
pub fn is_refounded(dir: &DataDir) -> Result<bool, StoreError> {
    let Some(cluster) = dir.refounding()? else { return Ok(false) };
    let Some(snapshot) = latest_snapshot(&dir.snapshots_dir())? else { return Ok(false) };
    Ok(read_snapshot(&snapshot)?.0.cluster == cluster)
}

/// Makes the replica the only member of a new cluster, `cluster`, or of the one that was begun before. Answers its id.
/// Durable on return.
///
/// # Errors
/// As for [`recover`], and when the disk refuses. It can be done again then.
pub fn refound(
    dir: &mut DataDir,
    cluster: ClusterId,
    now: Timestamp,
    options: LogOptions,
) -> Result<ClusterId, StoreError> {
    let cluster = dir.begin_refounding(cluster)?;
    if !is_refounded(dir)?
        && let Err(error) = change_cluster(dir, cluster, now, options)
    {
        // A sync may have failed, and the next one would not say so.
        dir.distrust_state()?;
        return Err(error);
    }
    let identity = Identity { cluster, ..dir.identity().clone() };
    change_genesis(dir.path(), &identity)?;
    dir.set_identity(identity)?;
    dir.end_removed()?;
    dir.end_refounding()?;
    Ok(cluster)
}

fn change_cluster(
    dir: &DataDir,
    cluster: ClusterId,
    now: Timestamp,
    options: LogOptions,
) -> Result<(), StoreError> {
    if dir.diverged()?.is_some() {
        // Whatever the others had: what the snapshot and the log lead to is what counts now.
        dir.forget_state()?;
        dir.end_diverged()?;
    }
    let recovered = recover(dir, options)?;
    close(&recovered, dir.identity().node, now)?;
    snapshot(&recovered, dir, cluster)
}

/// Applies everything that the log holds, then what ends the old cluster.
fn close(recovered: &Recovered, own: NodeId, now: Timestamp) -> Result<(), StoreError> {
    let Recovered { log, state, .. } = recovered;
    recovered.replay(log.last_index())?;
    let group = Group::of(recovered)?;
    let hard_state = log.hard_state();
    let last_term = log.term(log.last_index()).unwrap_or_default();
    let mut closing = Closing {
        entries: Vec::new(),
        next: log.last_index().next(),
        term: Term(hard_state.term.max(last_term.0) + 1),
    };
    // As every leader begins: so there is at least one entry, and the new snapshot is another file than the last.
    closing.add(EntryType::EntryNormal, Vec::new());
    closing.keep_only(own, &group);
    closing.end(&Leaving::of(state, own)?, own, now);
    let last = LogIndex(closing.next.0 - 1);
    let hard_state =
        HardState { term: closing.term.0, vote: 0, commit: last.0, ..HardState::default() };
    log.append(&closing.entries, Some(&hard_state), true)?;
    recovered.replay(last)?;
    let alone = ConfState::from((vec![own.0], vec![]));
    let (index, term) = (state.applied(), state.term());
    state.commit(Batch::default(), AppliedPoint { index, term, conf_state: Some(&alone) })
}

/// The new cluster's first snapshot file takes the place of the old one's last.
fn snapshot(recovered: &Recovered, dir: &DataDir, cluster: ClusterId) -> Result<(), StoreError> {
    let Recovered { log, state, files, .. } = recovered;
    let export = state.export();
    files.sync()?;
    let header = export.header(cluster);
    let index = header.index;
    write_snapshot(&dir.snapshots_dir(), &header, export)?;
    files.forget(index)?;
    state.flush()?;
    // Newcomers begin with the snapshot: what the old members did is nothing to them.
    log.compact_to(index)
}

/// The Raft group as it is at the end of the log.
struct Group {
    /// Everybody who has a place in it, or had one since the snapshot.
    nodes: BTreeSet<u64>,
    /// Whether a change is half done.
    joint: bool,
}

impl Group {
    fn of(recovered: &Recovered) -> Result<Self, StoreError> {
        let Recovered { log, snapshot, .. } = recovered;
        let (mut next, conf) = match snapshot {
            Some(snapshot) => (snapshot.index.next(), snapshot.conf_state.clone()),
            None => (log.first_index(), ConfState::default()),
        };
        let parts = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
        let nodes = parts.into_iter().flatten().copied().collect();
        let mut group = Self { nodes, joint: !conf.voters_outgoing.is_empty() };
        while next <= log.last_index() {
            for entry in log.entries(next, log.last_index().next(), Some(PAGE_BYTES))? {
                next = LogIndex(entry.index).next();
                group.note(&entry).map_err(|source| undecodable(log, &entry, &source))?;
            }
        }
        Ok(group)
    }

    fn note(&mut self, entry: &Entry) -> protobuf::ProtobufResult<()> {
        match entry.get_entry_type() {
            EntryType::EntryNormal => {}
            EntryType::EntryConfChange => {
                let change = ConfChange::parse_from_bytes(&entry.data)?;
                self.nodes.insert(change.node_id);
            }
            EntryType::EntryConfChangeV2 => {
                let change = ConfChangeV2::parse_from_bytes(&entry.data)?;
                self.nodes.extend(change.get_changes().iter().map(|change| change.node_id));
                self.joint =
                    change.enter_joint().is_some() || (self.joint && !change.leave_joint());
            }
        }
        Ok(())
    }
}

fn undecodable(log: &RaftLog, entry: &Entry, source: &protobuf::ProtobufError) -> StoreError {
    StoreError::Corrupt {
        path: log.dir().to_owned(),
        offset: None,
        what: format!(
            "entry {} holds a change of members that cannot be decoded ({source})",
            entry.index
        ),
        advice: REJOIN,
    }
}

/// Entries that end an old cluster.
struct Closing {
    entries: Vec<Entry>,
    next: LogIndex,
    term: Term,
}

impl Closing {
    fn add(&mut self, kind: EntryType, data: Vec<u8>) {
        let mut entry = Entry { index: self.next.0, term: self.term.0, ..Entry::default() };
        entry.set_entry_type(kind);
        entry.data = data.into();
        self.entries.push(entry);
        self.next = self.next.next();
    }

    /// One change at a time, each of which is a simple one: who has no place keeps none.
    fn keep_only(&mut self, own: NodeId, group: &Group) {
        if group.joint {
            self.change(&ConfChangeV2::default());
        }
        let others = group.nodes.iter().filter(|node| **node != own.0);
        let removals = others.map(|node| (ConfChangeType::RemoveNode, *node));
        for (kind, node) in std::iter::once((ConfChangeType::AddNode, own.0)).chain(removals) {
            let mut single = ConfChangeSingle::default();
            single.set_change_type(kind);
            single.node_id = node;
            let mut change = ConfChangeV2::default();
            change.set_changes(vec![single].into());
            self.change(&change);
        }
    }

    fn change(&mut self, change: &ConfChangeV2) {
        let data = change.write_to_bytes().expect("encoding into memory cannot fail");
        self.add(EntryType::EntryConfChangeV2, data);
    }

    fn end(&mut self, leaving: &Leaving, own: NodeId, now: Timestamp) {
        let sessions = leaving
            .sessions
            .iter()
            .map(|session| Op::SessionEnd(proto::SessionEnd { session: session.0, expired: true }));
        // Nobody goes as long as nobody else has a vote.
        let promotion = Op::PromoteMember(proto::PromoteMember { node: own.0 });
        let remove =
            |(node, _): &(NodeId, String)| Op::RemoveMember(proto::RemoveMember { node: node.0 });
        let members = leaving.members.iter().map(remove);
        for (seq, op) in (1..).zip(sessions.chain([promotion]).chain(members)) {
            let command = proto::Command {
                volume: VolumeId::FIRST.0,
                session: SessionId::CLUSTER.0,
                seq,
                time: Some(proto::Time { seconds: now.seconds, nanos: now.nanos }),
                node: own.0,
                op: Some(op),
                ..proto::Command::default()
            };
            self.add(EntryType::EntryNormal, command.encode_to_vec());
        }
    }
}

#[cfg(test)]
#[path = "refound_tests.rs"]
mod tests;
