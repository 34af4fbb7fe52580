//! fsck finds what is wrong.

use prost::Message;

use super::{Ino, ROOT, World, check, proto, query, unlink};
use crate::fs::Problem;
use crate::fs::keys;
use crate::types::{NodeId, Seq, SessionId};

/// A small tree: the root, `d`, `d/e`, `d/f` and a removed file.
struct Sound {
    world: World,
    d: u64,
    e: u64,
    f: u64,
    orphan: u64,
}

fn sound() -> Sound {
    let mut world = World::new();
    let d = world.directory(ROOT, "d");
    let (e, f) = (world.directory(d, "e"), world.file(d, "f"));
    let orphan = world.file(ROOT, "o");
    world.ok(unlink(ROOT, "o"));
    Sound { world, d, e, f, orphan }
}

fn problems(world: &World) -> Vec<Problem> {
    let problems = check(&world.state).expect("a map can be read");
    assert!(problems.iter().all(|problem| !problem.to_string().is_empty()));
    problems
}

#[track_caller]
fn finds(world: &World, problem: &Problem) {
    let found = problems(world);
    assert!(found.contains(problem), "{found:?} lacks {problem:?}");
}

#[test]
fn link_counts() {
    let Sound { mut world, d, f, .. } = sound();
    world.tamper(f, |inode| inode.nlink = 2);
    world.tamper(d, |inode| inode.nlink = 2);
    finds(&world, &Problem::LinkCount { ino: Ino(f), recorded: 2, counted: 1 });
    finds(&world, &Problem::LinkCount { ino: Ino(d), recorded: 2, counted: 3 });
}

#[test]
fn names() {
    let Sound { mut world, d, e, f, orphan } = sound();
    let mut put = |parent: u64, name: &str, ino: u64, kind: proto::Kind| {
        let dentry = proto::Dentry { ino, kind: kind.into() };
        world.state.insert(keys::dentry(Ino(parent), name.as_bytes()), dentry.encode_to_vec());
    };
    put(d, "x", 999, proto::Kind::Regular);
    put(f, "y", f, proto::Kind::Regular);
    put(998, "z", f, proto::Kind::Fifo);
    put(ROOT, "e", e, proto::Kind::Directory);
    put(ROOT, "..", orphan, proto::Kind::Regular);
    let (parent, name) = (Ino(d), b"x".to_vec());
    finds(&world, &Problem::NameWithoutInode { parent, name, ino: Ino(999) });
    finds(&world, &Problem::NameWithoutDirectory { parent: Ino(f), name: b"y".to_vec() });
    finds(&world, &Problem::NameWithoutDirectory { parent: Ino(998), name: b"z".to_vec() });
    finds(&world, &Problem::DirectoryNames { ino: Ino(e), names: 2 });
    finds(&world, &Problem::BadName { parent: Ino(ROOT), name: b"..".to_vec() });
    let (parent, name) = (Ino(998), b"z".to_vec());
    finds(&world, &Problem::KindOfName { parent, name, ino: Ino(f) });
    finds(&world, &Problem::LinkCount { ino: Ino(orphan), recorded: 0, counted: 1 });
}

#[test]
fn the_way_to_the_root() {
    let Sound { mut world, d, e, .. } = sound();
    world.tamper(d, |inode| inode.parent = e);
    finds(&world, &Problem::Unreachable { ino: Ino(d) });
    finds(&world, &Problem::Unreachable { ino: Ino(e) });
    finds(&world, &Problem::Parent { ino: Ino(d), recorded: Ino(e), found: Ino(ROOT) });
    world.state.remove(&keys::inode(Ino(ROOT)));
    finds(&world, &Problem::NoRoot);
}

#[test]
fn orphans() {
    let Sound { mut world, f, orphan, .. } = sound();
    let record = |holders: &[u64]| proto::Orphan { holders: holders.to_vec() }.encode_to_vec();
    world.state.insert(keys::orphan(Ino(999)), record(&[]));
    world.state.insert(keys::orphan(Ino(f)), record(&[9, 8]));
    world.state.remove(&keys::orphan(Ino(orphan)));
    finds(&world, &Problem::OrphanWithoutInode { ino: Ino(999) });
    finds(&world, &Problem::OrphanNotHeld { ino: Ino(999) });
    finds(&world, &Problem::OrphanWithLinks { ino: Ino(f), nlink: 1 });
    finds(&world, &Problem::HoldersOutOfOrder { ino: Ino(f) });
    finds(&world, &Problem::HolderNotLive { ino: Ino(f), session: SessionId(9) });
    finds(&world, &Problem::NotOrphaned { ino: Ino(orphan) });
}

#[test]
fn fields_of_inodes() {
    let Sound { mut world, d, e, f, .. } = sound();
    world.tamper(d, |inode| inode.size = 1);
    world.tamper(e, |inode| inode.kind = 0);
    world.tamper(f, |inode| (inode.parent, inode.data_version) = (1, 1 << 50));
    finds(&world, &Problem::Size { ino: Ino(d), size: 1 });
    finds(&world, &Problem::UnknownKind { ino: Ino(e) });
    finds(&world, &Problem::ForeignField { ino: Ino(f) });
    let mod_index = world.inode(f).mod_index;
    finds(&world, &Problem::VersionOrder { ino: Ino(f), data_version: 1 << 50, mod_index });
    let key = keys::xattr(Ino(999), b"a");
    world.state.insert(key, vec![]);
    finds(&world, &Problem::XattrWithoutInode { ino: Ino(999), name: b"a".to_vec() });
    world.state.insert(keys::inode(Ino(f)), vec![0xff]);
    assert!(problems(&world).iter().any(|problem| matches!(problem, Problem::Corrupt(_))));
}

#[test]
fn numbers_and_sessions() {
    let Sound { mut world, .. } = sound();
    let id = SessionId(world.session);
    let mut session = query::session(&world.state, id).expect("sound").expect("live");
    session.granted.push(proto::InoRange { first: 9, end: 1 << 40 });
    world.state.insert(keys::session(id), session.encode_to_vec());
    world.state.insert(keys::session(SessionId(77)), session.encode_to_vec());
    world.state.insert(keys::tombstone(NodeId(1), id), session.encode_to_vec());
    world.state.insert(keys::outcome(SessionId(66), Seq(1)), vec![]);
    world.state.insert(keys::outcome(id, Seq(5000)), vec![]);
    world.state.insert(keys::member(NodeId(9)), proto::Member::default().encode_to_vec());
    world.state.insert(keys::counter(keys::Counter::NextIno), 3_u64.encode_to_vec());
    let (end, next) = (Ino(1 << 40), Ino(3));
    finds(&world, &Problem::RangesOverlap { session: id, other: SessionId(77) });
    finds(&world, &Problem::RangeNotAllocated { session: id, end, next });
    finds(&world, &Problem::NotAllocated { ino: Ino(3), next });
    finds(&world, &Problem::LiveAndEnded { session: id });
    finds(&world, &Problem::GrantsOfEnded { session: id });
    finds(&world, &Problem::SeveralSessions { node: NodeId(1) });
    finds(&world, &Problem::OutcomeWithoutSession { session: SessionId(66), seq: Seq(1) });
    finds(&world, &Problem::OutcomeOutsideWindow { session: id, seq: Seq(5000) });
    finds(&world, &Problem::MemberKey { key: NodeId(9), recorded: NodeId(0) });
    finds(&world, &Problem::MemberNotAllocated { node: NodeId(9), next: NodeId(2) });
}
