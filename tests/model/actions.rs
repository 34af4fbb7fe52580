//! What may happen: commands of two nodes, restarts and expiries of their sessions, and retries.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use quorumfs::fs::proto::command::Op;
use quorumfs::fs::{Applied, Errno, proto, query};
use quorumfs::types::Ino;

use crate::acls;
use crate::replica::Replica;
use crate::tree::{Body, Result, Tree, When};

/// One step of a run. Inodes are places in the list of those there are.
#[derive(Clone, Debug)]
pub enum Action {
    Command {
        node: usize,
        clock_skew: i64,
        op: Draft,
    },
    /// The node's daemon starts anew.
    Open {
        node: usize,
    },
    /// The node's session is expired.
    End {
        node: usize,
    },
    /// A command of the past comes again.
    Retry {
        which: usize,
    },
}

/// What a rename says of the bytes of a file.
#[derive(Clone, Copy, Debug)]
pub enum Claim {
    Nothing,
    /// That it has them all on disks, or had before its last change.
    OnDisks {
        stale: bool,
    },
}

/// An operation whose inodes are still to be chosen.
#[derive(Clone, Debug)]
pub enum Draft {
    Make {
        kind: proto::Kind,
        parent: usize,
        name: &'static str,
        mode: u32,
        umask: u32,
    },
    Link {
        ino: usize,
        parent: usize,
        name: &'static str,
    },
    Unlink {
        parent: usize,
        name: &'static str,
    },
    Rmdir {
        parent: usize,
        name: &'static str,
    },
    Rename {
        from: (usize, &'static str),
        to: (usize, &'static str),
        flags: u32,
        claims: Option<[Claim; 2]>,
    },
    SetAttr {
        ino: usize,
        attributes: proto::SetAttr,
    },
    SetXattr {
        ino: usize,
        name: &'static str,
        value: &'static str,
        flags: u32,
    },
    RemoveXattr {
        ino: usize,
        name: &'static str,
    },
    SetAcl {
        ino: usize,
        name: &'static str,
        acl: &'static [acls::Entry],
        flags: u32,
    },
    Write {
        ino: usize,
        write: proto::Write,
    },
    Allocate {
        ino: usize,
        allocate: proto::Allocate,
    },
    Copy {
        source: usize,
        ino: usize,
        copy: proto::CopyRange,
        stale: bool,
    },
    AcceptLost {
        ino: usize,
        ranges: Vec<proto::Extent>,
        stale: bool,
    },
    Touch {
        ino: usize,
        atime: i64,
        stale: bool,
    },
    Release {
        ino: usize,
    },
    Grant,
}

pub fn action() -> impl Strategy<Value = Action> {
    let command = (0..2_usize, -3..3_i64, draft())
        .prop_map(|(node, clock_skew, op)| Action::Command { node, clock_skew, op });
    prop_oneof![
        40 => command,
        1 => (0..2_usize).prop_map(|node| Action::Open { node }),
        1 => (0..2_usize).prop_map(|node| Action::End { node }),
        5 => any::<usize>().prop_map(|which| Action::Retry { which }),
    ]
}

fn name() -> impl Strategy<Value = &'static str> {
    const LONG: &str = concat!(
        "0123456789012345678901234567890123456789012345678901234567890123",
        "0123456789012345678901234567890123456789012345678901234567890123",
        "0123456789012345678901234567890123456789012345678901234567890123",
        "0123456789012345678901234567890123456789012345678901234567890123",
    );
    prop_oneof![
        30 => prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")],
        1 => prop_oneof![Just(""), Just("."), Just(".."), Just("a/b"), Just("a\0"), Just(LONG)],
    ]
}

fn draft() -> impl Strategy<Value = Draft> {
    let ino = any::<usize>;
    prop_oneof![
        8 => make(),
        2 => (ino(), ino(), name()).prop_map(|(ino, parent, name)| Draft::Link { ino, parent, name }),
        3 => (ino(), name()).prop_map(|(parent, name)| Draft::Unlink { parent, name }),
        2 => (ino(), name()).prop_map(|(parent, name)| Draft::Rmdir { parent, name }),
        7 => ((ino(), name()), (ino(), name()), prop_oneof![4 => Just(0), 1 => 1..5_u32, 3 => Just(2)], claims())
            .prop_map(|(from, to, flags, claims)| Draft::Rename { from, to, flags, claims }),
        3 => (ino(), attributes())
            .prop_map(|(ino, attributes)| Draft::SetAttr { ino, attributes }),
        2 => (ino(), prop_oneof![Just("user.a"), Just("security.capability")], prop_oneof![Just(""), Just("v")],
                0..3_u32)
            .prop_map(|(ino, name, value, flags)| Draft::SetXattr { ino, name, value, flags }),
        3 => (ino(), acls::name(), acls::entries(), prop_oneof![4 => Just(0), 1 => 1..8_u32])
            .prop_map(|(ino, name, acl, flags)| Draft::SetAcl { ino, name, acl, flags }),
        1 => (ino(), prop_oneof![Just("user.a"), Just("security.capability"), acls::name()])
            .prop_map(|(ino, name)| Draft::RemoveXattr { ino, name }),
        4 => (ino(), write()).prop_map(|(ino, write)| Draft::Write { ino, write }),
        3 => (ino(), allocate()).prop_map(|(ino, allocate)| Draft::Allocate { ino, allocate }),
        3 => (ino(), ino(), copy(), any::<u8>()).prop_map(|(source, ino, copy, stale)| {
            Draft::Copy { source, ino, copy, stale: stale < 32 }
        }),
        2 => (ino(), vec((0..20_u64, 0..12_u64), 0..3), any::<u8>()).prop_map(|(ino, ranges, stale)| {
            Draft::AcceptLost { ino, ranges: extents(&ranges), stale: stale < 32 }
        }),
        1 => (ino(), 0..200_i64, any::<u8>()).prop_map(|(ino, atime, stale)| {
            Draft::Touch { ino, atime, stale: stale < 32 }
        }),
        2 => ino().prop_map(|ino| Draft::Release { ino }),
        1 => Just(Draft::Grant),
    ]
}

fn claims() -> impl Strategy<Value = Option<[Claim; 2]>> {
    let claim = || {
        prop_oneof![
            4 => Just(Claim::OnDisks { stale: false }),
            1 => Just(Claim::OnDisks { stale: true }),
            1 => Just(Claim::Nothing),
        ]
    };
    let both = (claim(), claim()).prop_map(|(source, target)| Some([source, target]));
    prop_oneof![1 => Just(None), 1 => both]
}

fn make() -> impl Strategy<Value = Draft> {
    let kind = prop_oneof![
        4 => Just(proto::Kind::Directory),
        3 => Just(proto::Kind::Regular),
        1 => Just(proto::Kind::Symlink),
        1 => Just(proto::Kind::Fifo),
    ];
    let mode = prop_oneof![Just(0o644), Just(0o755), Just(0o2755), Just(0o6777)];
    let umask = prop_oneof![Just(0), Just(0o022), Just(0o077)];
    (kind, any::<usize>(), name(), mode, umask).prop_map(|(kind, parent, name, mode, umask)| {
        Draft::Make { kind, parent, name, mode, umask }
    })
}

fn attributes() -> impl Strategy<Value = proto::SetAttr> {
    let time = || option::of((0..200_i64).prop_map(|seconds| proto::Time { seconds, nanos: 0 }));
    let small = || option::of(0..5_u32);
    let size = option::of(prop_oneof![Just(0), 0..40_u64]);
    let mode = option::of(prop_oneof![Just(0o6755), Just(0o2644), Just(0o2775), Just(0o600)]);
    let bytes = prop_oneof![2 => Just(None), 1 => write().prop_map(Some)];
    let flags = (any::<bool>(), any::<bool>());
    ((mode, small(), small(), size), (time(), time()), (bytes, time()), flags).prop_map(
        |((mode, uid, gid, size), (atime, mtime), (write, written), flags)| proto::SetAttr {
            ino: 0,
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
            kill_suid_sgid: flags.0,
            write,
            written,
            raise_ctime: flags.1,
        },
    )
}

fn write() -> impl Strategy<Value = proto::Write> {
    let piece = (0..40_u64, vec(1..255_u8, 0..12)).prop_map(|(offset, data)| proto::Piece {
        offset,
        data: data.into(),
        ..Default::default()
    });
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (vec(piece, 0..4), flags, 0..6_u64).prop_map(
        |(pieces, (append, kill_suid_sgid, adds_only), stage)| {
            let write = proto::Write { append, kill_suid_sgid, adds_only, ..Default::default() };
            match stage {
                0..4 => proto::Write { pieces, ..write },
                _ => proto::Write { pieces: staged(&pieces), stage, loose: adds_only, ..write },
            }
        },
    )
}

/// As many pieces of a stage, none of them empty, one behind the other.
fn staged(pieces: &[proto::Piece]) -> Vec<proto::Piece> {
    let mut end = 0;
    let one = |piece: &proto::Piece| {
        let offset = end + piece.offset;
        let length = piece.data.len() as u64 + 1;
        end = offset + length;
        proto::Piece { offset, length, checksums: vec![0], ..Default::default() }
    };
    pieces.iter().map(one).collect()
}

fn allocate() -> impl Strategy<Value = proto::Allocate> {
    // Reserve, punch, zero; and what there is not.
    let mode = prop_oneof![
        8 => prop_oneof![Just(0), Just(1), Just(3), Just(16), Just(17)],
        1 => prop_oneof![Just(2), Just(8), Just(18), Just(19)],
    ];
    (0..40_u64, 0..20_u64, mode, any::<bool>()).prop_map(|(offset, length, mode, kill)| {
        proto::Allocate { ino: 0, offset, length, mode, kill_suid_sgid: kill }
    })
}

fn copy() -> impl Strategy<Value = proto::CopyRange> {
    (0..40_u64, 0..40_u64, 0..20_u64, any::<bool>()).prop_map(
        |(source_offset, offset, length, kill_suid_sgid)| proto::CopyRange {
            source_offset,
            offset,
            length,
            kill_suid_sgid,
            ..proto::CopyRange::default()
        },
    )
}

/// One behind the other: how far, and how long; those of no bytes are refused.
fn extents(ranges: &[(u64, u64)]) -> Vec<proto::Extent> {
    let mut at = 0;
    let one = |(gap, len): &(u64, u64)| {
        let start = at + gap;
        at = start + len;
        proto::Extent { start, end: at }
    };
    ranges.iter().map(one).collect()
}

/// Does it to both, and compares the outcomes.
pub fn take(replica: &mut Replica, tree: &mut Tree, index: u64, action: &Action) {
    match action {
        Action::Command { node, clock_skew, op } => {
            command(replica, tree, index, *node, *clock_skew, op);
        }
        Action::Open { node } => open(replica, tree, index, *node),
        Action::End { node } => {
            if let Some(session) = replica.proposers[*node].session {
                end(replica, tree, index, session);
            }
        }
        Action::Retry { which } => retry(replica, index, *which),
    }
}

fn cluster(replica: &mut Replica, index: u64, op: Op) -> Applied {
    replica.apply(index, &proto::Command { op: Some(op), ..proto::Command::default() })
}

fn open(replica: &mut Replica, tree: &mut Tree, index: u64, node: usize) {
    let op = proto::SessionOpen {
        node: node as u64 + 1,
        nonce: index,
        principal: String::new(),
        strong: index.is_multiple_of(2),
        applied: Some(index - 1),
    };
    let applied = cluster(replica, index, Op::SessionOpen(op));
    assert_eq!((applied.outcome.errno, applied.outcome.id), (0, index));
    if let Some(last) = replica.proposers[node].session.replace(index) {
        tree.end_session(last);
        // Nobody will be told what its commands did.
        replica.history.retain(|(command, _)| command.session != last);
    }
    tree.sessions.insert(index);
    replica.proposers[node].next_ino = applied.outcome.granted.expect("a first range").first;
    replica.proposers[node].seq = 0;
}

fn end(replica: &mut Replica, tree: &mut Tree, index: u64, session: u64) {
    let op = proto::SessionEnd { session, expired: true };
    assert_eq!(cluster(replica, index, Op::SessionEnd(op)).outcome.errno, 0);
    tree.end_session(session);
}

fn retry(replica: &mut Replica, index: u64, which: usize) {
    if replica.history.is_empty() {
        return;
    }
    let (command, outcome) = replica.history[which % replica.history.len()].clone();
    let state = replica.state.clone();
    let again = replica.apply(index, &command);
    assert_eq!(again, Applied { outcome, ..Applied::default() }, "a retry of {command:?}");
    assert_eq!(replica.state, state);
}

fn command(
    replica: &mut Replica,
    tree: &mut Tree,
    index: u64,
    node: usize,
    clock_skew: i64,
    draft: &Draft,
) {
    let proposer = &mut replica.proposers[node];
    let session = proposer.session.unwrap_or(999_999);
    let when = When { time: index.cast_signed() + clock_skew, index };
    proposer.seq += 1;
    let mut command = proto::Command {
        volume: 1,
        session,
        seq: proposer.seq,
        lowest_unanswered: 1,
        time: Some(proto::Time { seconds: when.time, nanos: 0 }),
        clock: index,
        node: node as u64 + 1,
        given_up: Vec::new(),
        op: None,
    };
    if !tree.sessions.contains(&session) {
        command.op = Some(Op::GrantInodes(proto::GrantInodes { count: 1 }));
        let outcome = replica.apply(index, &command).outcome;
        assert_eq!(outcome.errno, Errno::ESTALE.number());
        return;
    }
    let (mut op, expected) = both(tree, &mut proposer.next_ino, session, when, draft);
    if let Op::AcceptLost(lost) = &mut op {
        // Of which the model knows nothing.
        let inode = query::inode(&replica.state, Ino(lost.ino)).expect("sound");
        lost.generation = inode.map_or(0, |inode| inode.generation);
    }
    command.op = Some(op);
    let applied = replica.apply(index, &command);
    let expected_errno = expected.err().map_or(0, Errno::number);
    assert_eq!(applied.outcome.errno, expected_errno, "outcome of {command:?}");
    if expected_errno != 0 {
        assert!(applied.changes.is_empty() && applied.effects.is_empty());
    }
    replica.history.push((command, applied.outcome));
}

/// The inode at a place: mostly one that exists, sometimes not.
fn choose(tree: &Tree, place: usize) -> u64 {
    if place % 41 == 40 {
        return 77_777;
    }
    *tree.nodes.keys().nth(place / 41 % tree.nodes.len()).expect("there is the root")
}

/// Mostly a directory.
fn choose_directory(tree: &Tree, place: usize) -> u64 {
    if place.is_multiple_of(11) {
        return choose(tree, place / 11);
    }
    let is_directory = |node: &crate::tree::Node| matches!(node.body, Body::Directory { .. });
    let all: Vec<u64> =
        tree.nodes.iter().filter(|(_, node)| is_directory(node)).map(|(ino, _)| *ino).collect();
    all[place / 11 % all.len()]
}

/// The operation, and what the model makes of it.
#[allow(clippy::too_many_lines, reason = "one arm for each action")]
fn both(
    tree: &mut Tree,
    next_ino: &mut u64,
    session: u64,
    when: When,
    draft: &Draft,
) -> (Op, Result<()>) {
    let bytes = |text: &'static str| bytes::Bytes::from_static(text.as_bytes());
    match draft {
        Draft::Make { kind, parent, name, mode, umask } => {
            *next_ino += 1;
            let op = proto::Make {
                parent: choose_directory(tree, *parent),
                name: bytes(name),
                ino: *next_ino - 1,
                kind: (*kind).into(),
                mode: *mode,
                uid: 1,
                gid: 2,
                rdev: 0,
                target: bytes(if *kind == proto::Kind::Symlink { "target" } else { "" }),
                umask: *umask,
            };
            let expected = tree.make(&op, name, when);
            (Op::Make(op), expected)
        }
        Draft::Link { ino, parent, name } => {
            let (ino, parent) = (choose(tree, *ino), choose_directory(tree, *parent));
            let expected = tree.link(ino, parent, name, when);
            (Op::Link(proto::Link { ino, parent, name: bytes(name) }), expected)
        }
        Draft::Unlink { parent, name } => {
            let parent = choose_directory(tree, *parent);
            let expected = tree.unlink(parent, name, when);
            (Op::Unlink(proto::Unlink { parent, name: bytes(name) }), expected)
        }
        Draft::Rmdir { parent, name } => {
            let parent = choose_directory(tree, *parent);
            let expected = tree.rmdir(parent, name, when);
            (Op::Rmdir(proto::Rmdir { parent, name: bytes(name) }), expected)
        }
        Draft::Rename { from: (from, name), to: (to, new_name), flags, claims } => {
            let (parent, new_parent) = (choose_directory(tree, *from), choose_directory(tree, *to));
            let places = [(parent, *name), (new_parent, *new_name)];
            let mut durable = Vec::new();
            for (place, claim) in places.into_iter().zip(claims.iter().flatten()) {
                let Some(all) = tree.on_disks(place.0, place.1) else { continue };
                match claim {
                    Claim::Nothing => {}
                    Claim::OnDisks { stale } => durable.push(proto::OnDisks {
                        data_version: all.data_version - u64::from(*stale),
                        ..all
                    }),
                }
            }
            let asked = claims.map(|_| &durable[..]);
            let expected = tree.rename(places[0], places[1], *flags, asked, when);
            let (name, new_name, flags) = (bytes(name), bytes(new_name), *flags);
            let only_durable = claims.is_some();
            let op =
                proto::Rename { parent, name, new_parent, new_name, flags, only_durable, durable };
            (Op::Rename(op), expected)
        }
        Draft::SetAttr { ino, attributes } => {
            let ino = choose(tree, *ino);
            let mut op = proto::SetAttr { ino, ..attributes.clone() };
            if let Some(write) = &mut op.write {
                write.ino = ino;
            }
            let expected = tree.set_attr(&op, when);
            (Op::SetAttr(op), expected)
        }
        Draft::SetXattr { ino, name, value, flags } => {
            let (ino, flags) = (choose(tree, *ino), *flags);
            let op = proto::SetXattr { ino, name: bytes(name), value: bytes(value), flags };
            let expected = tree.set_xattr(&op, name, when);
            (Op::SetXattr(op), expected)
        }
        Draft::SetAcl { ino, name, acl, flags } => {
            let (ino, flags) = (choose(tree, *ino), *flags);
            let expected = tree.set_acl(ino, name, acl, flags, when);
            let value = acls::encode(acl).into();
            (Op::SetXattr(proto::SetXattr { ino, name: bytes(name), value, flags }), expected)
        }
        Draft::RemoveXattr { ino, name } => {
            let ino = choose(tree, *ino);
            let expected = tree.remove_xattr(ino, name, when);
            (Op::RemoveXattr(proto::RemoveXattr { ino, name: bytes(name) }), expected)
        }
        Draft::Write { ino, write } => {
            let op = proto::Write { ino: choose(tree, *ino), ..write.clone() };
            let expected = tree.write(&op, when);
            (Op::Write(op), expected)
        }
        Draft::Allocate { ino, allocate } => {
            let op = proto::Allocate { ino: choose(tree, *ino), ..*allocate };
            let expected = tree.allocate(&op, when);
            (Op::Allocate(op), expected)
        }
        Draft::Copy { source, ino, copy, stale } => {
            let (source, ino) = (choose(tree, *source), choose(tree, *ino));
            let seen = tree.nodes.get(&source).map_or(0, |node| node.data_version);
            let source_version = if *stale { seen + 1 } else { seen };
            let op = proto::CopyRange { source, ino, source_version, ..*copy };
            let expected = tree.copy(&op, when);
            (Op::CopyRange(op), expected)
        }
        Draft::AcceptLost { ino, ranges, stale } => {
            let ino = choose(tree, *ino);
            let seen = tree.nodes.get(&ino).map_or(0, |node| node.data_version);
            let data_version = seen + u64::from(*stale);
            let op = proto::AcceptLost {
                ino,
                data_version,
                ranges: ranges.clone(),
                asked: vec![1],
                ..Default::default()
            };
            let expected = tree.accept_lost(&op, when);
            (Op::AcceptLost(op), expected)
        }
        Draft::Touch { ino, atime, stale } => {
            let ino = choose(tree, *ino);
            let time = |seconds| Some(proto::Time { seconds, nanos: 0 });
            let seen = tree.nodes.get(&ino).map_or(0, |node| node.atime) - i64::from(*stale);
            tree.touch(ino, seen, *atime, when);
            let inodes = vec![proto::TouchedInode { ino, atime: time(*atime), seen: time(seen) }];
            (Op::Touch(proto::Touch { inodes }), Ok(()))
        }
        Draft::Release { ino } => {
            let ino = match tree.orphans.keys().nth(*ino % (tree.orphans.len() + 1)) {
                Some(orphan) => *orphan,
                None => choose(tree, *ino),
            };
            tree.release(ino, session);
            (Op::ReleaseOrphans(proto::ReleaseOrphans { inos: vec![ino] }), Ok(()))
        }
        Draft::Grant => (Op::GrantInodes(proto::GrantInodes { count: 3 }), Ok(())),
    }
}
