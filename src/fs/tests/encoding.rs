//! Encodings are part of the format: replicas of different builds must have the same bytes.

use prost::Message;

use super::{Ino, World, proto, time, write};
use crate::fs::keys;
use crate::types::{NodeId, Seq, SessionId};

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

#[test]
fn keys_are_stable() {
    let golden = [
        (keys::inode(Ino(1)), "690000000000000001"),
        (keys::dentry(Ino(2), b"name"), "6400000000000000022a7f7f699f14d7046e616d65"),
        (keys::xattr(Ino(3), b"user.a"), "780000000000000003757365722e61"),
        (keys::session(SessionId(4)), "730000000000000004"),
        (keys::outcome(SessionId(4), Seq(5)), "7200000000000000040000000000000005"),
        (keys::orphan(Ino(6)), "6f0000000000000006"),
        (keys::member(NodeId(7)), "6e0000000000000007"),
        (keys::tombstone(NodeId(7), SessionId(8)), "7400000000000000070000000000000008"),
        (keys::counter(keys::Counter::NextIno), "636e6578745f696e6f"),
        (keys::counter(keys::Counter::NextNode), "636e6578745f6e6f6465"),
    ];
    for (key, expected) in golden {
        assert_eq!(hex(&key), expected);
        assert!(keys::parse(&key).is_some(), "{expected}");
        assert!(keys::is_replicated(&key));
    }
    assert!(!keys::is_replicated(&keys::meta("applied")));
    for key in [&b""[..], b"i", b"i12345678x", b"r12345678", b"cwhat", b"\xff12345678"] {
        assert_eq!(keys::parse(key), None, "{key:?}");
    }
}

#[test]
fn records_are_stable() {
    let inode = proto::Inode {
        kind: proto::Kind::Regular.into(),
        mode: 0o644,
        uid: 1000,
        gid: 100,
        nlink: 1,
        size: 4096,
        atime: Some(proto::Time { seconds: -1, nanos: 1 }),
        mtime: Some(proto::Time::default()),
        ctime: Some(time(3)),
        btime: Some(time(4)),
        generation: 9,
        version: 2,
        mod_index: 11,
        data_version: 10,
        clock: 1 << 40,
        writer: 3,
        ..proto::Inode::default()
    };
    let session = proto::Session {
        node: 1,
        nonce: 2,
        principal: "p".to_owned(),
        granted: vec![proto::InoRange { first: 2, end: 4098 }],
        lowest: 1,
        strong: true,
    };
    let orphan = proto::Orphan { holders: vec![3, 300] };
    let outcome = proto::Outcome { errno: 17, ..proto::Outcome::default() };
    assert_eq!(
        hex(&inode.encode_to_vec()),
        "080110a40318e807206428013080203a0d08ffffffffffffffffff01100142004a040803100552040804100568097002\
         780b80010a8801808080808020900103"
    );
    assert_eq!(hex(&session.encode_to_vec()), "080110021a01702205080210822028013001");
    assert_eq!(hex(&orphan.encode_to_vec()), "0a0303ac02");
    assert_eq!(hex(&outcome.encode_to_vec()), "0811");
    assert_eq!(hex(&4098_u64.encode_to_vec()), "088220");
    assert_eq!(hex(&proto::Dentry { ino: 5, kind: 2 }.encode_to_vec()), "08051002");
}

#[test]
fn the_first_state_is_stable() {
    assert_eq!(World::new().digest.to_string(), "b13e6995dda11524a7d5ebdc6d94f65b");
}

#[test]
fn a_command_survives_the_log() {
    let mut world = World::new();
    let command = world.command(write(2, 7, "bytes"));
    assert_eq!(crate::fs::decode(command.encode_to_vec().into()), Ok(command));
}
