//! A replica with a few entries in its log, for tests of what is done with one that does not run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prost::Message;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType, HardState};
use tempfile::TempDir;

use super::log::LogOptions;
use super::recover::{Recovered, recover};
use super::snapshot::write_snapshot;
use super::{BootIdentity, DataDir, Identity, checksum_blocks, found_cluster};
use crate::fs::proto::{self, Kind, command::Op};
use crate::types::{ByteRange, ClusterId, Ino, LogIndex, NodeId, SessionId, StageId, Timestamp};

pub(crate) const OPTIONS: LogOptions =
    LogOptions { file_bytes: 1 << 20, purge_bytes: 1 << 20, prefill: false };
pub(crate) const CLUSTER: ClusterId = ClusterId([1; 16]);
pub(crate) const TIME: proto::Time = proto::Time { seconds: 1_000_000, nanos: 5 };

/// Writes entries, as the only leader that there ever was.
pub(crate) struct Author {
    pub(crate) dir: TempDir,
    next: u64,
    seq: u64,
    session: u64,
    ino: u64,
}

impl Author {
    /// Of a new cluster, in which nothing has happened.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity =
            Identity { cluster: CLUSTER, node: NodeId(1), nonce: 1, address: "a:1".to_owned() };
        let created = Timestamp { seconds: 999_999, nanos: 0 };
        let data = dir.path().join("data");
        drop(found_cluster(&data, identity, created).unwrap());
        Self { dir, next: 2, seq: 1, session: 0, ino: 2 }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn open(&self, boot: &str) -> DataDir {
        DataDir::open_under(&self.data(), BootIdentity::named(boot)).unwrap()
    }

    pub(crate) fn start(&self, boot: &str) -> Recovered {
        recover(&self.open(boot), OPTIONS).unwrap()
    }

    /// Of the cluster.
    pub(crate) fn cluster(&mut self, op: Op) -> Entry {
        self.command(0, 1, op)
    }

    /// The session of node 1.
    pub(crate) fn session(&mut self) -> Entry {
        self.session = self.next;
        let (node, nonce) = (1, self.next);
        let op = proto::SessionOpen { node, nonce, ..proto::SessionOpen::default() };
        self.cluster(Op::SessionOpen(op))
    }

    pub(crate) fn of_session(&mut self, op: Op) -> Entry {
        self.seq += 1;
        self.command(self.session, self.seq - 1, op)
    }

    /// A new file of the root.
    pub(crate) fn make(&mut self, name: &str) -> (Ino, Entry) {
        let ino = self.ino;
        self.ino += 1;
        let make = proto::Make {
            parent: 1,
            name: name.to_owned().into(),
            ino,
            kind: Kind::Regular.into(),
            mode: 0o640,
            ..proto::Make::default()
        };
        (Ino(ino), self.of_session(Op::Make(make)))
    }

    pub(crate) fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) -> Entry {
        let data = data.to_vec().into();
        let pieces = vec![proto::Piece { offset, data, ..proto::Piece::default() }];
        let write = proto::Write { ino: ino.0, pieces, ..proto::Write::default() };
        self.of_session(Op::Write(write))
    }

    /// Writes bytes of a stage of the session to the same place of a file.
    pub(crate) fn write_stage(&mut self, ino: Ino, number: u64, offset: u64, data: &[u8]) -> Entry {
        let range = ByteRange::at(offset, data.len() as u64);
        let checksum = |block: ByteRange| {
            let at = |at: u64| usize::try_from(at - offset).unwrap();
            crc32c::crc32c(&data[at(block.start)..at(block.end)])
        };
        let checksums = checksum_blocks(range).map(checksum).collect();
        let length = range.len();
        let pieces = vec![proto::Piece { offset, length, checksums, ..proto::Piece::default() }];
        let stage = number;
        let write = proto::Write { ino: ino.0, pieces, stage, ..proto::Write::default() };
        self.of_session(Op::Write(write))
    }

    pub(crate) fn stage(&self, number: u64) -> StageId {
        StageId { session: SessionId(self.session), number }
    }

    pub(crate) fn unlink(&mut self, name: &str) -> Entry {
        self.of_session(Op::Unlink(proto::Unlink { parent: 1, name: name.to_owned().into() }))
    }

    pub(crate) fn membership(&mut self, kind: ConfChangeType, node: u64) -> Entry {
        let mut single = ConfChangeSingle::default();
        single.set_change_type(kind);
        single.node_id = node;
        let mut change = ConfChangeV2::default();
        change.set_changes(vec![single].into());
        let mut entry = self.entry(change.write_to_bytes().unwrap());
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry
    }

    fn command(&mut self, session: u64, seq: u64, op: Op) -> Entry {
        let op = Some(op);
        let time = Some(TIME);
        let lowest_unanswered = 1;
        let command =
            proto::Command { session, seq, op, time, lowest_unanswered, ..Default::default() };
        self.entry(command.encode_to_vec())
    }

    fn entry(&mut self, data: Vec<u8>) -> Entry {
        let mut entry = Entry { index: self.next, term: 1, ..Entry::default() };
        entry.data = data.into();
        self.next += 1;
        entry
    }
}

/// Adds entries to the log, of which some are known to be committed.
pub(crate) fn append(recovered: &Recovered, entries: &[Entry], commit: u64) {
    let hard_state = HardState { term: 1, vote: 1, commit, ..HardState::default() };
    recovered.log.append(entries, Some(&hard_state), true).unwrap();
}

/// Writes the snapshot file of a replica in `dir`.
pub(crate) fn snapshot(dir: &Path, recovered: &Recovered) {
    let state = &recovered.state;
    let export = state.export();
    write_snapshot(&dir.join("snapshots"), &export.header(CLUSTER), export).unwrap();
}

/// What the files of the root hold, by name; what is missing is not there.
pub(crate) fn tree(recovered: &Recovered) -> BTreeMap<String, Vec<u8>> {
    let read = recovered.state.read();
    let entries = crate::fs::query::readdir(&read, Ino::ROOT, 0, 1000).unwrap();
    let content = |ino: Ino| {
        let inode = crate::fs::query::inode(&read, ino).unwrap().unwrap();
        let mut bytes = vec![0xee; usize::try_from(inode.size).unwrap()];
        let generation = inode.generation.into();
        let is_here = recovered.files.read(ino, generation, 0, &mut bytes).unwrap();
        is_here.then_some(bytes)
    };
    let named = entries.into_iter().filter_map(|entry| Some((entry.name, content(entry.ino)?)));
    named.map(|(name, bytes)| (String::from_utf8(name).unwrap(), bytes)).collect()
}

/// Every file below a directory with its bytes, but the lock.
pub(crate) fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if !path.ends_with("LOCK") {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

pub(crate) fn last(entries: &[Entry]) -> LogIndex {
    LogIndex(entries.last().unwrap().index)
}
