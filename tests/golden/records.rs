//! What is in snapshot files, and in what raft-rs keeps in the log.

use std::fs;

use prost::Message;
use protobuf::Message as _;
use quorumfs::fs::{Digest, proto};
use quorumfs::store::{SnapshotHeader, read_snapshot, write_snapshot};
use quorumfs::types::{ClusterId, LogIndex, Term, VolumeId};
use raft::eraftpb::{ConfState, Entry, HardState};

use super::{RAISE_LEVEL, compare, lock, time};

fn inode() -> proto::Inode {
    proto::Inode {
        kind: proto::Kind::Regular.into(),
        mode: 0o4755,
        uid: 1,
        gid: 2,
        nlink: 3,
        size: 4,
        atime: time(5),
        mtime: time(6),
        ctime: time(7),
        btime: time(8),
        rdev: 9,
        target: "target".into(),
        generation: 10,
        version: 11,
        mod_index: 12,
        data_version: 13,
        clock: 14,
        writer: 15,
        parent: 16,
    }
}

#[test]
fn records_are_encoded_as_ever() {
    let range = proto::InoRange { first: 1, end: 2 };
    let waiting =
        proto::WaitingLock { lock: Some(lock()), mode: proto::LockMode::Wait.into(), seq: 1 };
    let session = proto::Session {
        node: 1,
        nonce: 2,
        principal: "p".to_owned(),
        granted: vec![range],
        lowest: 3,
        strong: true,
    };
    let locks = proto::Locks {
        held: vec![lock()],
        waiting: vec![waiting],
        delegate: 1,
        delegated_at: 2,
        recalled: true,
    };
    let outcome = proto::Outcome {
        errno: 1,
        id: 2,
        inode: Some(inode()),
        offset: 3,
        granted: Some(range),
        lock: proto::LockAnswer::Cancelled.into(),
        conflict: Some(lock()),
    };
    let member = proto::Member { node: 1, address: "n:1".to_owned(), nonce: 2, learner: true };
    let dentry = proto::Dentry { ino: 1, kind: proto::Kind::Directory.into() };
    let mut entry = Entry { index: 1, term: 2, ..Entry::default() };
    entry.data = bytes::Bytes::from_static(b"command");
    let hard_state = HardState { term: 1, vote: 2, commit: 3, ..HardState::default() };
    let raft = |bytes: protobuf::ProtobufResult<Vec<u8>>| bytes.expect("memory takes it");
    let records = [
        ("Inode", inode().encode_to_vec()),
        ("Dentry", dentry.encode_to_vec()),
        ("Session", session.encode_to_vec()),
        ("Orphan", proto::Orphan { holders: vec![1, 300] }.encode_to_vec()),
        ("Member", member.encode_to_vec()),
        ("Locks", locks.encode_to_vec()),
        ("LockWait", proto::LockWait { ino: 1 }.encode_to_vec()),
        ("Outcome", outcome.encode_to_vec()),
        ("raft.Entry", raft(entry.write_to_bytes())),
        ("raft.HardState", raft(hard_state.write_to_bytes())),
    ];
    let records = records.map(|(name, bytes)| (name.to_owned(), bytes)).into();
    compare("records.txt", &records, RAISE_LEVEL);
}

/// All of a small one: preface, header, pairs, trailer.
#[test]
fn a_snapshot_file_is_written_as_ever() {
    let pairs: Vec<_> = (1..=3_u8).map(|n| (vec![b'i', n], vec![n; usize::from(n)])).collect();
    let mut digest = Digest::default();
    for (key, value) in &pairs {
        digest.add(key, value);
    }
    let header = SnapshotHeader {
        cluster: ClusterId([7; 16]),
        volume: VolumeId::FIRST,
        index: LogIndex(300),
        term: Term(2),
        conf_state: ConfState::from((vec![1, 2], vec![3])),
        digest,
        feature_level: 1,
    };
    let dir = tempfile::tempdir().expect("a directory");
    let written =
        write_snapshot(dir.path(), &header, pairs.iter().cloned().map(Ok)).expect("written");
    let records = [("snapshot".to_owned(), fs::read(&written).expect("read"))].into();
    compare("snapshot.txt", &records, RAISE_LEVEL);
    let (found, _) = read_snapshot(&written).expect("it is whole");
    assert_eq!(found, header);
}
