//! What is in logs: how commands are encoded, and what applying them does.

use std::collections::BTreeMap;

use prost::Message;
use quorumfs::fs::proto::{self, command::Op};
use quorumfs::fs::{Digest, Overlay, Position, apply, decode, genesis, query};
use quorumfs::types::{Ino, LogIndex, Term};

use super::{RAISE_LEVEL, compare, lock, some_write, time};

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
            // As builds wrote it that did not know of them.
            only_durable: false,
            durable: Vec::new(),
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
            pieces: vec![staged.clone()],
            append: false,
            kill_suid_sgid: false,
            stage: 2,
            loose: true,
            // As builds wrote it that did not know of it.
            adds_only: false,
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
        Op::Attest(proto::Attest { index: 1, digest: vec![2; 16].into() }),
        Op::Write(proto::Write {
            ino: 5,
            pieces: vec![proto::Piece { checksums: vec![7], ..staged }],
            append: false,
            kill_suid_sgid: true,
            stage: 3,
            loose: true,
            adds_only: true,
        }),
        Op::Rename(proto::Rename {
            parent: 1,
            name: "five".into(),
            new_parent: 2,
            new_name: "moved".into(),
            flags: 0,
            only_durable: true,
            durable: vec![proto::OnDisks { ino: 5, data_version: 1 }],
        }),
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
        Op::Rename(rename) if rename.only_durable => "Rename.only_durable",
        Op::Rename(_) => "Rename",
        Op::SetAttr(_) => "SetAttr",
        Op::SetXattr(_) => "SetXattr",
        Op::RemoveXattr(_) => "RemoveXattr",
        Op::Write(write) if write.adds_only => "Write.adds_only",
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
        Op::Attest(_) => "Attest",
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
            given_up: vec![8, 300],
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
const OPERATIONS: [&str; 28] = [
    "AcceptLost",
    "AddMember",
    "Allocate",
    "Attest",
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
    "Rename.only_durable",
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
    "Write.adds_only",
    "Write.staged",
];

/// What applying them does: the errno and the digest of the state after each, from an empty file system on.
#[test]
fn commands_do_what_they_ever_did() {
    let mut state = BTreeMap::new();
    let at = |index| Position { index: LogIndex(index), term: Term(1) };
    genesis(&mut state, at(1), &time(1).expect("some"), "n:1", 9);
    let (mut records, mut digest) = (BTreeMap::new(), digest_of(&state));
    let mut unused = Vec::new();
    for (number, mut op) in (2..).zip(script()) {
        let five = query::inode(&state, Ino(5)).expect("sound").unwrap_or_default();
        match &mut op {
            Op::CopyRange(copy) if copy.source == 5 => copy.source_version = five.data_version,
            Op::AcceptLost(lost) if lost.ino == 5 => {
                (lost.generation, lost.data_version) = (five.generation, five.data_version);
            }
            _ => {}
        }
        let what = format!("{number:02}.{}", name(&op));
        let is_of_cluster = matches!(
            op,
            Op::SessionOpen(_)
                | Op::SessionEnd(_)
                | Op::AddMember(_)
                | Op::RemoveMember(_)
                | Op::PromoteMember(_)
                | Op::Attest(_)
        );
        if is_of_cluster && number > 2 {
            unused.push(number);
        }
        let command = proto::Command {
            volume: 1,
            session: if is_of_cluster { 0 } else { 2 },
            seq: number,
            lowest_unanswered: u64::from(!is_of_cluster),
            time: time(100 + i64::try_from(number).expect("few")),
            clock: number << 40,
            node: 1,
            // What the cluster used is not used by the session.
            given_up: if is_of_cluster { Vec::new() } else { unused.clone() },
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

/// A session, a file 5 and a directory 2, and something of each that succeeds; then one of each as it is: what is refused is a
/// part of it.
#[allow(clippy::too_many_lines, reason = "a list")]
fn script() -> Vec<Op> {
    let make = |name: &str, ino, kind: proto::Kind| {
        let name = name.to_owned().into();
        Op::Make(proto::Make {
            parent: 1,
            name,
            ino,
            kind: kind.into(),
            mode: 0o644,
            target: if kind == proto::Kind::Symlink {
                "target".into()
            } else {
                bytes::Bytes::new()
            },
            ..Default::default()
        })
    };
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
        make("six", 6, proto::Kind::Regular),
        Op::Rename(proto::Rename {
            parent: 1,
            name: "six".into(),
            new_parent: 2,
            new_name: "moved".into(),
            flags: 0,
            ..Default::default()
        }),
        Op::Unlink(proto::Unlink { parent: 1, name: "name".into() }),
        make("gone", 7, proto::Kind::Directory),
        Op::Rmdir(proto::Rmdir { parent: 1, name: "gone".into() }),
        Op::SetAttr(proto::SetAttr {
            ino: 5,
            mode: Some(0o640),
            uid: Some(3),
            size: Some(100),
            mtime: time(-7),
            ..Default::default()
        }),
        Op::Write(proto::Write {
            ino: 5,
            pieces: vec![proto::Piece {
                offset: 50,
                length: 9,
                checksums: vec![1],
                ..Default::default()
            }],
            stage: 1,
            ..Default::default()
        }),
        Op::CopyRange(proto::CopyRange { source: 5, ino: 6, length: 70, ..Default::default() }),
        Op::AcceptLost(proto::AcceptLost {
            ino: 5,
            ranges: vec![proto::Extent { start: 90, end: 100 }],
            asked: vec![1],
            ..Default::default()
        }),
        Op::RemoveXattr(proto::RemoveXattr { ino: 5, name: "user.a".into() }),
    ];
    let is_end = |op: &Op| matches!(op, Op::SessionOpen(_) | Op::SessionEnd(_));
    script.extend(operations().into_iter().filter(|op| !is_end(op)));
    script.push(Op::SessionEnd(proto::SessionEnd { session: 2, expired: true }));
    script
}

fn digest_of(state: &BTreeMap<Vec<u8>, Vec<u8>>) -> Digest {
    let mut digest = Digest::default();
    for (key, value) in state {
        digest.add(key, value);
    }
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
