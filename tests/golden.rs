//! Encodings of format 1, byte for byte: what is in logs and snapshot files of clusters that are in use, and what nodes
//! say to each other.
//!
//! `QUORUMFS_WRITE_GOLDEN=1` writes the golden bytes anew: see `docs/formats.md`.
#![allow(clippy::disallowed_methods, reason = "the environment says whether to write")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use prost::Message;
use protobuf::Message as _;
use quorumfs::fs::proto::{self, command::Op};
use quorumfs::fs::{Digest, Overlay, Position, apply, decode, genesis};
use quorumfs::rpc::peer::{self, envelope::Body, stage_frame};
use quorumfs::store::{SnapshotHeader, read_snapshot, write_snapshot};
use quorumfs::types::{ClusterId, LogIndex, Term, VolumeId};
use raft::eraftpb::{ConfState, Entry, HardState};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/format-1");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

/// Compares records with the golden ones: a line for each, its name and its bytes.
#[track_caller]
fn compare(file: &str, records: &BTreeMap<String, Vec<u8>>, what_to_do: &str) {
    let path = format!("{GOLDEN}/{file}");
    let line = |(name, bytes): (&String, &Vec<u8>)| format!("{name} {}\n", hex(bytes));
    if std::env::var_os("QUORUMFS_WRITE_GOLDEN").is_some() {
        fs::write(&path, records.iter().map(line).collect::<Vec<_>>().concat()).expect("write");
        panic!(
            "{path} is written: look at what has changed, and run this without QUORUMFS_WRITE_GOLDEN"
        );
    }
    let text = fs::read_to_string(&path).expect("the golden records");
    let golden: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    for (name, bytes) in records {
        let wanted = golden.get(name.as_str()).copied().unwrap_or("nothing");
        assert!(
            hex(bytes) == wanted,
            "{name} is not encoded as in {path}.\nfound:  {}\nwanted: {wanted}\n{what_to_do}",
            hex(bytes)
        );
    }
    assert_eq!(golden.len(), records.len(), "{path} has records that nothing here makes");
}

const RAISE_LEVEL: &str = "Logs and snapshot files with those bytes are in use, and replicas of another version would come to \
     another state. Take the change back; or raise FEATURE_LEVEL (src/fs/limits.rs) and rpc::FORMAT, keep these golden \
     records readable, and write those of the new level (docs/formats.md, \"Changing a format\").";
const RAISE_FORMAT: &str = "Nodes of another version would misunderstand it. Take the change back; or raise rpc::FORMAT \
     (src/rpc/mod.rs), so that they refuse each other, and write the golden records anew (docs/formats.md, \"Changing a \
     format\").";

#[allow(clippy::unnecessary_wraps, reason = "as messages have it")]
fn time(seconds: i64) -> Option<proto::Time> {
    Some(proto::Time { seconds, nanos: 999 })
}

fn some_write() -> proto::Write {
    let inline = proto::Piece { offset: 3, data: "bytes".into(), length: 0, checksums: vec![] };
    proto::Write {
        ino: 5,
        pieces: vec![inline],
        append: true,
        kill_suid_sgid: true,
        stage: 0,
        loose: false,
    }
}

fn lock() -> proto::Lock {
    proto::Lock { session: 3, owner: 4, start: 5, end: u64::MAX, exclusive: true, pid: 7 }
}

/// One of each, no field of which is as it is by default. All fields are named, so that none is added unseen.
#[allow(clippy::too_many_lines, reason = "a list")]
fn operations() -> Vec<Op> {
    let checksums = vec![1, 0xffff_ffff];
    let staged = proto::Piece { offset: 1, length: 9, checksums, data: bytes::Bytes::new() };
    let name = || bytes::Bytes::from_static(b"name");
    vec![
        Op::Make(proto::Make {
            parent: 1,
            name: name(),
            ino: 2,
            kind: proto::Kind::Symlink.into(),
            mode: 0o7777,
            uid: 4,
            gid: 5,
            rdev: 6,
            target: "target".into(),
            umask: 0o22,
        }),
        Op::Link(proto::Link { ino: 1, parent: 2, name: name() }),
        Op::Unlink(proto::Unlink { parent: 1, name: name() }),
        Op::Rmdir(proto::Rmdir { parent: 1, name: name() }),
        Op::Rename(proto::Rename {
            parent: 1,
            name: name(),
            new_parent: 2,
            new_name: "other".into(),
            flags: 2,
        }),
        Op::SetAttr(proto::SetAttr {
            ino: 1,
            mode: Some(0),
            uid: Some(3),
            gid: Some(4),
            size: Some(0),
            atime: time(6),
            mtime: time(-7),
            kill_suid_sgid: true,
            write: Some(some_write()),
            written: time(8),
            raise_ctime: true,
        }),
        Op::SetXattr(proto::SetXattr { ino: 1, name: name(), value: "value".into(), flags: 4 }),
        Op::RemoveXattr(proto::RemoveXattr { ino: 1, name: name() }),
        Op::Write(some_write()),
        Op::Write(proto::Write {
            ino: 1,
            pieces: vec![staged],
            append: false,
            kill_suid_sgid: false,
            stage: 2,
            loose: true,
        }),
        Op::ReleaseOrphans(proto::ReleaseOrphans { inos: vec![1, 300] }),
        Op::GrantInodes(proto::GrantInodes { count: 1 }),
        Op::Touch(proto::Touch {
            inodes: vec![proto::TouchedInode { ino: 1, atime: time(2), seen: time(1) }],
        }),
        Op::Allocate(proto::Allocate {
            ino: 1,
            offset: 2,
            length: 3,
            mode: 16,
            kill_suid_sgid: true,
        }),
        Op::CopyRange(proto::CopyRange {
            source: 1,
            source_offset: 2,
            source_version: 3,
            ino: 4,
            offset: 5,
            length: 6,
            kill_suid_sgid: true,
        }),
        Op::AcceptLost(proto::AcceptLost {
            ino: 1,
            generation: 2,
            data_version: 3,
            ranges: vec![proto::Extent { start: 4, end: 5 }],
            asked: vec![6, 300],
            away: vec![7],
        }),
        Op::RequestLock(proto::RequestLock {
            ino: 1,
            lock: Some(lock()),
            mode: proto::LockMode::Wait.into(),
        }),
        Op::Unlock(proto::Unlock { ino: 1, owner: 2, start: 3, end: 4 }),
        Op::CancelLock(proto::CancelLock { ino: 1, seq: 2 }),
        Op::ReturnLocks(proto::ReturnLocks { ino: 1, delegated_at: 2, held: vec![lock()] }),
        Op::SessionOpen(proto::SessionOpen {
            node: 1,
            nonce: 2,
            principal: "p".to_owned(),
            strong: true,
            applied: Some(0),
        }),
        Op::SessionEnd(proto::SessionEnd { session: 1, expired: true }),
        Op::AddMember(proto::AddMember { nonce: 1, address: "n:1".to_owned(), learner: true }),
        Op::RemoveMember(proto::RemoveMember { node: 1 }),
        Op::PromoteMember(proto::PromoteMember { node: 1 }),
    ]
}

/// What there is: an operation that is added wants a line here, one in [`OPERATIONS`] and one in [`operations`], and a
/// new feature level.
fn name(op: &Op) -> &'static str {
    match op {
        Op::Make(_) => "Make",
        Op::Link(_) => "Link",
        Op::Unlink(_) => "Unlink",
        Op::Rmdir(_) => "Rmdir",
        Op::Rename(_) => "Rename",
        Op::SetAttr(_) => "SetAttr",
        Op::SetXattr(_) => "SetXattr",
        Op::RemoveXattr(_) => "RemoveXattr",
        Op::Write(write) if write.stage != 0 => "Write.staged",
        Op::Write(_) => "Write",
        Op::ReleaseOrphans(_) => "ReleaseOrphans",
        Op::GrantInodes(_) => "GrantInodes",
        Op::Touch(_) => "Touch",
        Op::Allocate(_) => "Allocate",
        Op::CopyRange(_) => "CopyRange",
        Op::AcceptLost(_) => "AcceptLost",
        Op::RequestLock(_) => "RequestLock",
        Op::Unlock(_) => "Unlock",
        Op::CancelLock(_) => "CancelLock",
        Op::ReturnLocks(_) => "ReturnLocks",
        Op::SessionOpen(_) => "SessionOpen",
        Op::SessionEnd(_) => "SessionEnd",
        Op::AddMember(_) => "AddMember",
        Op::RemoveMember(_) => "RemoveMember",
        Op::PromoteMember(_) => "PromoteMember",
    }
}

#[test]
fn commands_are_encoded_as_ever() {
    let mut records = BTreeMap::new();
    for op in operations() {
        let name = name(&op).to_owned();
        let command = proto::Command {
            volume: 1,
            session: 2,
            seq: 3,
            lowest_unanswered: 4,
            time: time(5),
            clock: 1 << 40,
            node: 7,
            op: Some(op),
        };
        let bytes = command.encode_to_vec();
        assert_eq!(decode(bytes.clone().into()).as_ref(), Ok(&command), "{name}");
        assert!(records.insert(name.clone(), bytes).is_none(), "{name} is there twice");
    }
    let known: Vec<_> = records.keys().map(String::as_str).collect();
    assert_eq!(known, OPERATIONS, "a record of each");
    compare("commands.txt", &records, RAISE_LEVEL);
}

/// What [`name`] knows, in order.
const OPERATIONS: [&str; 25] = [
    "AcceptLost",
    "AddMember",
    "Allocate",
    "CancelLock",
    "CopyRange",
    "GrantInodes",
    "Link",
    "Make",
    "PromoteMember",
    "ReleaseOrphans",
    "RemoveMember",
    "RemoveXattr",
    "Rename",
    "RequestLock",
    "ReturnLocks",
    "Rmdir",
    "SessionEnd",
    "SessionOpen",
    "SetAttr",
    "SetXattr",
    "Touch",
    "Unlink",
    "Unlock",
    "Write",
    "Write.staged",
];

/// What applying them does: the errno and the digest of the state after each, from an empty file system on.
#[test]
fn commands_do_what_they_ever_did() {
    let mut state = BTreeMap::new();
    let at = |index| Position { index: LogIndex(index), term: Term(1) };
    genesis(&mut state, at(1), &time(1).expect("some"), "n:1", 9);
    let make = |name: &str, ino, kind: proto::Kind| {
        let name = name.to_owned().into();
        Op::Make(proto::Make {
            parent: 1,
            name,
            ino,
            kind: kind.into(),
            mode: 0o644,
            ..Default::default()
        })
    };
    // A session, a file 5 and a directory 2: most operations are about them.
    let mut script = vec![
        Op::SessionOpen(proto::SessionOpen {
            node: 1,
            nonce: 1,
            strong: true,
            ..Default::default()
        }),
        make("five", 5, proto::Kind::Regular),
        make("dir", 2, proto::Kind::Directory),
        make("name", 1000, proto::Kind::Symlink),
        Op::Write(some_write()),
        Op::Link(proto::Link { ino: 5, parent: 2, name: "linked".into() }),
        Op::SetXattr(proto::SetXattr {
            ino: 5,
            name: "user.a".into(),
            value: "b".into(),
            flags: 0,
        }),
        Op::RequestLock(proto::RequestLock {
            ino: 5,
            lock: Some(lock()),
            mode: proto::LockMode::Try.into(),
        }),
        Op::Allocate(proto::Allocate { ino: 5, offset: 2, length: 30, ..Default::default() }),
    ];
    // As they are: what is refused is a part of it.
    let is_end = |op: &Op| matches!(op, Op::SessionOpen(_) | Op::SessionEnd(_));
    script.extend(operations().into_iter().filter(|op| !is_end(op)));
    script.push(Op::SessionEnd(proto::SessionEnd { session: 2, expired: true }));
    let (mut records, mut digest) = (BTreeMap::new(), digest_of(&state));
    for (number, op) in (2..).zip(script) {
        let what = format!("{number:02}.{}", name(&op));
        let is_of_cluster = matches!(
            op,
            Op::SessionOpen(_)
                | Op::SessionEnd(_)
                | Op::AddMember(_)
                | Op::RemoveMember(_)
                | Op::PromoteMember(_)
        );
        let command = proto::Command {
            volume: 1,
            session: if is_of_cluster { 0 } else { 2 },
            seq: number,
            lowest_unanswered: if is_of_cluster { 0 } else { 1 },
            time: time(100 + i64::try_from(number).expect("few")),
            clock: number << 40,
            node: 1,
            op: Some(op),
        };
        let mut overlay = Overlay::new(&state);
        let applied = apply(&mut overlay, at(number), &command).expect("sound records");
        let batch = overlay.finish().expect("a map can be read");
        digest.merge(batch.digest);
        batch.write_to(&mut state);
        let mut record = applied.outcome.errno.to_be_bytes().to_vec();
        record.extend(digest.to_string().into_bytes());
        records.insert(what, record);
    }
    assert_eq!(digest, digest_of(&state));
    compare("applied.txt", &records, RAISE_LEVEL);
}

fn digest_of(state: &BTreeMap<Vec<u8>, Vec<u8>>) -> Digest {
    let mut digest = Digest::default();
    state.iter().for_each(|(key, value)| digest.add(key, value));
    digest
}

#[test]
fn a_command_of_a_newer_version_is_refused() {
    let command = proto::Command { volume: 1, session: 2, ..Default::default() };
    let mut bytes = command.encode_to_vec();
    // Field 999, two bytes long.
    bytes.extend([0xba, 0x3e, 2, 8, 1]);
    let refused = decode(bytes.into()).expect_err("nobody knows it").to_string();
    assert!(refused.contains("start the newer version"), "{refused}");
}

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

/// What nodes say to each other. A change of these raises the format of the protocol, which is in here, too.
#[test]
#[allow(clippy::too_many_lines, reason = "a list")]
fn messages_are_encoded_as_ever() {
    let hello = peer::Hello {
        format: quorumfs::rpc::FORMAT,
        cluster: vec![7; 16].into(),
        node: 1,
        to: 2,
        address: "n:1".to_owned(),
    };
    let bodies = [
        Body::Raft(bytes::Bytes::from_static(b"message")),
        Body::Visible(peer::Visible { session: 1, index: 2, term: 3, invalidated: 4 }),
        Body::Heartbeat(peer::Heartbeat { session: 1, number: 2, applied: 3 }),
        Body::HeartbeatAck(peer::HeartbeatAck { session: 1, number: 2 }),
        Body::LogCut(peer::LogCut { first_index: 1 }),
        Body::Ask(peer::Ask { index: 1 }),
        Body::Space(peer::Space { free_bytes: 1, total_bytes: 2, synced: 3, holds: 4, wall_ms: 5 }),
        Body::Commit(peer::Commit { term: 1, durable: 2, commit: 3 }),
        Body::Stalled(peer::Stalled { milliseconds: 1 }),
    ];
    let envelopes =
        bodies.into_iter().map(|body| peer::Envelope { volume: 1, body: Some(body) }).collect();
    let frame = peer::Frame { hello: Some(hello.clone()), envelopes };
    let data = peer::StageData {
        offset: 1,
        data: "bytes".into(),
        checksum: 2,
        encoding: peer::Encoding::Zstd.into(),
        plain_length: 3,
    };
    let stage = |body| peer::StageFrame {
        hello: Some(hello.clone()),
        volume: 1,
        session: 2,
        stage: 3,
        body: Some(body),
    };
    let mark = stage_frame::Body::Mark(peer::StageMark { number: 1, durable: true });
    let abandon = stage_frame::Body::Abandon(peer::StageAbandon {});
    let fetch = peer::FetchRequest {
        hello: Some(hello.clone()),
        volume: 1,
        ino: 2,
        generation: 3,
        offset: 4,
        length: 5,
        version: 6,
        apart: true,
    };
    let reply = peer::FetchReply {
        version: 1,
        data: "bytes".into(),
        checksum: 2,
        encoding: peer::Encoding::Lz4.into(),
        plain_length: 3,
        skipped: 4,
    };
    let join = peer::JoinRequest {
        format: quorumfs::rpc::FORMAT,
        cluster: vec![7; 16].into(),
        nonce: 1,
        address: "n:1".to_owned(),
        node: 2,
    };
    let lacking = peer::LackingRequest {
        hello: Some(hello.clone()),
        volume: 1,
        ino: 2,
        generation: 3,
        version: 4,
        start: 5,
        end: 6,
    };
    let examine = peer::ExamineRequest {
        hello: Some(hello.clone()),
        volume: 1,
        ino: 2,
        generation: 3,
        version: 4,
        first: 5,
        count: 6,
    };
    let lacked =
        peer::LackingReply { lacking: vec![peer::LackingRange { start: 1, end: 2 }], end: 3 };
    let block = peer::ExaminedBlock { checksum: Some(1), whole: true, rotten: true };
    let outvote = peer::OutvoteRequest { block: Some(examine.clone()), checksum: 1 };
    let sync = peer::SyncRequest {
        hello: Some(hello.clone()),
        volume: 1,
        ino: 2,
        generation: 3,
        index: 4,
    };
    let snapshot = peer::SnapshotRequest { hello: Some(hello.clone()), volume: 1 };
    let member = peer::MemberAddress { node: 1, address: "n:1".to_owned() };
    let joined = peer::JoinReply { node: 1, genesis: "record".into(), members: vec![member] };
    let fenced = peer::FencedRequest { hello: Some(hello.clone()), session: 1 };
    let records = [
        ("Frame", frame.encode_to_vec()),
        ("StageFrame", stage(stage_frame::Body::Data(data)).encode_to_vec()),
        ("StageFrame.mark", stage(mark).encode_to_vec()),
        ("StageFrame.abandon", stage(abandon).encode_to_vec()),
        ("StageAnswer", peer::StageAnswer { mark: 1, holds: true }.encode_to_vec()),
        ("LackingReply", lacked.encode_to_vec()),
        ("ExamineReply", peer::ExamineReply { blocks: vec![block] }.encode_to_vec()),
        ("OutvoteRequest", outvote.encode_to_vec()),
        ("OutvoteReply", peer::OutvoteReply { outvoted: true }.encode_to_vec()),
        ("SyncRequest", sync.encode_to_vec()),
        ("SyncReply", peer::SyncReply { durable: true }.encode_to_vec()),
        ("SnapshotRequest", snapshot.encode_to_vec()),
        ("SnapshotPiece", peer::SnapshotPiece { data: "bytes".into() }.encode_to_vec()),
        ("JoinReply", joined.encode_to_vec()),
        ("FetchRequest", fetch.encode_to_vec()),
        ("FetchReply", reply.encode_to_vec()),
        ("JoinRequest", join.encode_to_vec()),
        ("LackingRequest", lacking.encode_to_vec()),
        ("ExamineRequest", examine.encode_to_vec()),
        ("FencedRequest", fenced.encode_to_vec()),
    ];
    let records = records.map(|(name, bytes)| (name.to_owned(), bytes)).into();
    compare("messages.txt", &records, RAISE_FORMAT);
}
