//! Access control lists: they and permission bits change together.

use bytes::Bytes;

use super::proto::{Kind, SetAttr, SetXattr};
use super::{Errno, Ino, Op, ROOT, World, at, check, proto, query};
use crate::fs::limits::ACL_MAX;
use crate::fs::{ACCESS_ACL, DEFAULT_ACL, Overlay, Problem, apply, keys};

/// Tag, permissions, id.
type Entry = (u16, u16, u32);

const OWNER: Entry = (0x01, 6, u32::MAX);
const USER_5: Entry = (0x02, 7, 5);
const GROUP: Entry = (0x04, 4, u32::MAX);
const GROUP_6: Entry = (0x08, 2, 6);
const MASK: Entry = (0x10, 7, u32::MAX);
const OTHER: Entry = (0x20, 0, u32::MAX);
const EXTENDED: [Entry; 6] = [OWNER, USER_5, GROUP, GROUP_6, MASK, OTHER];

fn value(entries: &[Entry]) -> Bytes {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value.into()
}

fn set(ino: u64, name: &'static [u8], entries: &[Entry], flags: u32) -> Op {
    let name = Bytes::from_static(name);
    Op::SetXattr(SetXattr { ino, name, value: value(entries), flags })
}

fn chmod(ino: u64, mode: u32) -> Op {
    Op::SetAttr(SetAttr { ino, mode: Some(mode), ..SetAttr::default() })
}

fn acl(world: &World, ino: u64, name: &[u8]) -> Option<Bytes> {
    query::xattr(&world.state, Ino(ino), name).expect("sound").map(Bytes::from)
}

fn with(entries: &[Entry], tag: u16, permissions: u16) -> Vec<Entry> {
    let change = |entry: &Entry| if entry.0 == tag { (tag, permissions, entry.2) } else { *entry };
    entries.iter().map(change).collect()
}

#[test]
fn an_access_acl_sets_the_mode_and_chmod_the_acl() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.ok(chmod(file, 0o6640));
    world.ok(set(file, ACCESS_ACL, &EXTENDED, 0));
    assert_eq!(world.inode(file).mode, 0o6670, "the mask stands for the group");
    assert_eq!(acl(&world, file, ACCESS_ACL), Some(value(&EXTENDED)));
    let stamped = world.inode(file);
    assert_eq!((stamped.version, stamped.mod_index), (3, world.index));

    world.ok(chmod(file, 0o701));
    let changed = with(&with(&with(&EXTENDED, 0x01, 7), 0x10, 0), 0x20, 1);
    assert_eq!(acl(&world, file, ACCESS_ACL), Some(value(&changed)));

    let minimal = [OWNER, GROUP, OTHER];
    world.ok(set(file, ACCESS_ACL, &minimal, 0));
    assert_eq!((world.inode(file).mode, acl(&world, file, ACCESS_ACL)), (0o640, None));
    world.ok(set(file, ACCESS_ACL, &minimal, 0));

    // A mask without anybody named says something.
    world.ok(set(file, ACCESS_ACL, &[OWNER, GROUP, MASK, OTHER], 1));
    assert_eq!(world.inode(file).mode, 0o670);
    world.refused(Errno::EEXIST, set(file, ACCESS_ACL, &EXTENDED, 1));
    let name = Bytes::from_static(ACCESS_ACL);
    world.ok(Op::RemoveXattr(proto::RemoveXattr { ino: file, name }));
    assert_eq!(world.inode(file).mode, 0o670, "the mode stays");
    world.refused(Errno::ENODATA, set(file, ACCESS_ACL, &EXTENDED, 2));
}

#[test]
fn sgid_goes_where_the_proposer_says() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.ok(chmod(file, 0o6755));
    world.ok(set(file, ACCESS_ACL, &EXTENDED, 4));
    assert_eq!(world.inode(file).mode, 0o4670);
    let directory = world.directory(ROOT, "d");
    world.refused(Errno::EINVAL, set(directory, DEFAULT_ACL, &EXTENDED, 4));
    world.refused(Errno::EINVAL, set(file, ACCESS_ACL, &EXTENDED, 8));
}

#[test]
fn what_is_made_inherits_the_default_acl() {
    let mut world = World::new();
    let directory = world.directory(ROOT, "d");
    let default = with(&EXTENDED, 0x20, 5);
    world.ok(set(directory, DEFAULT_ACL, &default, 0));
    assert_eq!(world.inode(directory).mode, 0o640, "its own mode stays");

    let mut make = |kind, name, mode| {
        let op = proto::Make { mode, umask: 0o077, ..world.make_op(kind, directory, name) };
        world.ok(Op::Make(op)).outcome.id
    };
    let (file, below) = (make(Kind::Regular, "f", 0o4646), make(Kind::Directory, "d", 0o777));
    let symlink = make(Kind::Symlink, "l", 0o777);
    let masked = with(&with(&default, 0x10, 4), 0x20, 4);
    assert_eq!(acl(&world, file, ACCESS_ACL), Some(value(&masked)));
    assert_eq!(world.inode(file).mode, 0o4644, "umask does not count");
    assert_eq!(acl(&world, file, DEFAULT_ACL), None);
    assert_eq!(acl(&world, below, ACCESS_ACL), Some(value(&default)));
    assert_eq!(acl(&world, below, DEFAULT_ACL), Some(value(&default)));
    assert_eq!(world.inode(below).mode, 0o675);
    let names = query::xattr_names(&world.state, Ino(symlink));
    assert_eq!((names, world.inode(symlink).mode), (Ok(vec![]), 0o777));

    // A default ACL that permission bits can say leaves nothing but those.
    world.ok(set(directory, DEFAULT_ACL, &[OWNER, GROUP, OTHER], 0));
    let plain = world.file(directory, "plain");
    assert_eq!((world.inode(plain).mode, acl(&world, plain, ACCESS_ACL)), (0o640, None));
}

#[test]
fn umask_counts_where_there_is_no_default_acl() {
    let mut world = World::new();
    let op = proto::Make { mode: 0o6777, umask: 0o027, ..world.make_op(Kind::Regular, ROOT, "f") };
    let file = world.ok(Op::Make(op)).outcome.id;
    assert_eq!(world.inode(file).mode, 0o6750);
}

#[test]
fn acls_are_checked() {
    let mut world = World::new();
    let (file, directory) = (world.file(ROOT, "f"), world.directory(ROOT, "d"));
    let symlink = world.make(Kind::Symlink, ROOT, "l");
    let invalid: [&[Entry]; 9] = [
        &[],
        &[OWNER, GROUP],
        &[GROUP, OWNER, OTHER],
        &[OWNER, GROUP, OTHER, OTHER],
        &[OWNER, USER_5, GROUP, OTHER],
        &[OWNER, GROUP, USER_5, MASK, OTHER],
        &[OWNER, (0x02, 7, u32::MAX), GROUP, MASK, OTHER],
        &[OWNER, GROUP, (0x20, 8, 0)],
        &[OWNER, GROUP, (0x40, 0, 0), OTHER],
    ];
    for entries in invalid {
        world.refused(Errno::EINVAL, set(directory, ACCESS_ACL, entries, 0));
        world.refused(Errno::EINVAL, set(directory, DEFAULT_ACL, entries, 0));
    }
    let raw = |value: Vec<u8>| {
        let name = Bytes::from_static(ACCESS_ACL);
        Op::SetXattr(SetXattr { ino: file, name, value: value.into(), flags: 0 })
    };
    let good = value(&EXTENDED).to_vec();
    world.refused(Errno::EINVAL, raw(vec![]));
    world.refused(Errno::EINVAL, raw(good[..good.len() - 1].to_vec()));
    world.refused(Errno::EINVAL, raw([&[1], &good[1..]].concat()));
    world.refused(Errno::E2BIG, raw(vec![0; ACL_MAX + 1]));
    let many: Vec<_> = (0..).take(ACL_MAX / 8 - 5).map(|id| (0x02, 7, id)).collect();
    let many = [&[OWNER], &many[..], &[GROUP, MASK, OTHER]].concat();
    assert_eq!(value(&many).len(), ACL_MAX - 4);
    world.ok(set(file, ACCESS_ACL, &many, 0));
    world.refused(Errno::EACCES, set(file, DEFAULT_ACL, &EXTENDED, 0));
    world.refused(Errno::EOPNOTSUPP, set(symlink, ACCESS_ACL, &EXTENDED, 0));
    world.refused(Errno::ENOENT, set(999, ACCESS_ACL, &EXTENDED, 0));
}

#[test]
fn wrong_acls_are_found_and_stop_what_needs_them() {
    let mut world = World::new();
    let (file, directory) = (world.file(ROOT, "f"), world.directory(ROOT, "d"));
    world.ok(set(file, ACCESS_ACL, &EXTENDED, 0));
    let key = keys::xattr(Ino(file), ACCESS_ACL);

    world.tamper(file, |inode| inode.mode = 0o644);
    let (ino, mode) = (Ino(file), 0o644);
    assert_eq!(check(&world.state), Ok(vec![Problem::ModeOfAcl { ino, mode }]));
    world.tamper(file, |inode| inode.mode = 0o640);
    world.state.insert(key.clone(), value(&[OWNER, GROUP, OTHER]).to_vec());
    assert_eq!(check(&world.state), Ok(vec![Problem::ForeignAcl { ino }]));

    world.state.insert(key.clone(), vec![1]);
    let Ok(problems) = check(&world.state) else { panic!("a map can be read") };
    assert!(matches!(&problems[..], [Problem::Corrupt(corrupt)] if corrupt.key == key));
    let command = world.command(chmod(file, 0o600));
    let refused = apply(&mut Overlay::new(&world.state), at(world.index + 1), &command);
    assert_eq!(refused.expect_err("never an outcome").key, key);

    world.state.remove(&key);
    world.state.insert(keys::xattr(Ino(file), DEFAULT_ACL), value(&EXTENDED).to_vec());
    assert_eq!(check(&world.state), Ok(vec![Problem::ForeignAcl { ino }]));
    world.state.remove(&keys::xattr(Ino(file), DEFAULT_ACL));
    world.state.insert(keys::xattr(Ino(directory), DEFAULT_ACL), value(&EXTENDED).to_vec());
    assert_eq!(check(&world.state), Ok(vec![]));
}
