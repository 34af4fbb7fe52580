//! `SetAttr`, `Touch` and extended attributes.

use super::proto::{Kind, SetAttr};
use super::{Errno, Ino, Op, ROOT, World, bytes, proto, query, resize, time, write};
use crate::fs::limits::SIZE_MAX;
use crate::fs::limits::{XATTR_NAME_MAX, XATTR_VALUE_MAX};
use crate::fs::{Change, FileEffect};
use crate::types::{ByteRange, Generation};

fn set(ino: u64, name: &str, value: &str, flags: u32) -> Op {
    Op::SetXattr(proto::SetXattr { ino, name: bytes(name), value: bytes(value), flags })
}

fn unset(ino: u64, name: &str) -> Op {
    Op::RemoveXattr(proto::RemoveXattr { ino, name: bytes(name) })
}

fn touch(ino: u64, seen: Option<proto::Time>, seconds: u64) -> Op {
    let inodes = vec![proto::TouchedInode { ino, atime: Some(time(seconds)), seen }];
    Op::Touch(proto::Touch { inodes })
}

#[test]
fn what_is_absent_stays() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let before = world.inode(file);
    let uid = Some(5);
    let applied = world.ok(Op::SetAttr(SetAttr { ino: file, uid, ..SetAttr::default() }));
    let after = proto::Inode {
        uid: 5,
        ctime: Some(time(world.index)),
        version: 2,
        mod_index: world.index,
        clock: (world.index - 1) << 16,
        ..before
    };
    assert_eq!(applied.outcome.inode, Some(after.clone()));
    assert_eq!(world.inode(file), after);
    assert_eq!(applied.changes, [Change::Attributes { ino: Ino(file) }]);
    world.refused(Errno::ENOENT, Op::SetAttr(SetAttr { ino: 999, uid, ..SetAttr::default() }));
}

#[test]
fn times_are_set_as_given() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let (atime, mtime) = (Some(time(1)), Some(proto::Time { seconds: -9, nanos: 1 }));
    world.ok(Op::SetAttr(SetAttr { ino: file, atime, mtime, ..SetAttr::default() }));
    let inode = world.inode(file);
    assert_eq!((inode.atime, inode.mtime, inode.ctime), (atime, mtime, Some(time(world.index))));
    let atime = Some(proto::Time { seconds: 0, nanos: 1_000_000_000 });
    world.refused(Errno::EINVAL, Op::SetAttr(SetAttr { ino: file, atime, ..SetAttr::default() }));
}

#[test]
fn suid_and_sgid_go_where_they_would_give_rights_away() {
    let mut world = World::new();
    let cases = [(0o6755, 0o755), (0o6745, 0o2745), (0o4755, 0o755), (0o1755, 0o1755)];
    for (i, (before, after)) in cases.into_iter().enumerate() {
        let ino = world.file(ROOT, &i.to_string());
        world.ok(Op::SetAttr(SetAttr { ino, mode: Some(before), ..SetAttr::default() }));
        world.ok(Op::SetAttr(SetAttr { ino, kill_suid_sgid: true, ..SetAttr::default() }));
        assert_eq!(world.inode(ino).mode, after, "from {before:o}");
    }
    let ino = world.directory(ROOT, "d");
    let mode = Some(0o2775);
    world.ok(Op::SetAttr(SetAttr { ino, mode, ..SetAttr::default() }));
    world.ok(Op::SetAttr(SetAttr { ino, kill_suid_sgid: true, ..SetAttr::default() }));
    assert_eq!(world.inode(ino).mode, 0o2775);
    let op = SetAttr { ino, mode: Some(0o106_755), kill_suid_sgid: true, ..SetAttr::default() };
    assert_eq!(world.ok(Op::SetAttr(op)).outcome.inode.map(|inode| inode.mode), Some(0o6755));
}

#[test]
fn a_truncation_cuts_extends_or_starts_anew() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let ino = Ino(file);
    let first = Generation(world.inode(file).generation);
    world.ok(write(file, 0, "hello"));

    let applied = world.ok(resize(file, 2));
    assert!(applied.effects.contains(&FileEffect::Truncate { ino, generation: first, size: 2 }));
    assert!(applied.changes.contains(&Change::Bytes { ino, range: ByteRange::from(2) }));
    let inode = world.inode(file);
    assert_eq!((inode.size, inode.data_version), (2, world.index));
    assert_eq!(inode.mtime, Some(time(world.index)));

    let applied = world.ok(resize(file, 9));
    assert!(applied.changes.contains(&Change::Bytes { ino, range: ByteRange::at(2, 7) }));
    assert_eq!(world.inode(file).generation, first.0);

    let applied = world.ok(resize(file, 0));
    assert_eq!(
        applied.effects,
        [FileEffect::Renew { ino, generation: first, next: Generation(world.index) }]
    );
    assert_eq!(world.inode(file).generation, world.index);

    let before = world.inode(file);
    let applied = world.ok(resize(file, 0));
    let after = world.inode(file);
    assert!(applied.effects.is_empty());
    assert_eq!((after.generation, after.data_version), (before.generation, before.data_version));
    assert_eq!(after.mtime, Some(time(world.index)));
}

#[test]
fn only_files_have_sizes_to_set() {
    let mut world = World::new();
    let directory = world.directory(ROOT, "d");
    let symlink = world.make(Kind::Symlink, ROOT, "l");
    let file = world.file(ROOT, "f");
    world.refused(Errno::EISDIR, resize(directory, 0));
    world.refused(Errno::EINVAL, resize(symlink, 0));
    world.refused(Errno::EFBIG, resize(file, SIZE_MAX + 1));
    world.ok(resize(file, SIZE_MAX));
}

#[test]
fn a_touch_raises_atime_and_nothing_else() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let before = world.inode(file);
    let applied = world.ok(touch(file, before.atime, 1000));
    let atime = Some(time(1000));
    let after = proto::Inode { atime, mod_index: world.index, ..before };
    assert_eq!(world.inode(file), after);
    assert_eq!(applied.changes, [Change::Attributes { ino: Ino(file) }]);
    assert!(world.ok(touch(file, atime, 999)).changes.is_empty());
    assert!(world.ok(touch(999, None, 1000)).changes.is_empty());
    // Somebody has set it since it was seen, to whatever time.
    assert!(world.ok(touch(file, Some(time(500)), 2000)).changes.is_empty());
    assert_eq!(world.inode(file), after);
}

#[test]
fn attributes_are_made_replaced_and_removed() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.refused(Errno::ENODATA, set(file, "user.a", "1", 2));
    world.ok(set(file, "user.a", "1", 1));
    world.refused(Errno::EEXIST, set(file, "user.a", "2", 1));
    world.ok(set(file, "user.a", "2", 2));
    world.ok(set(file, "user.b", "", 0));
    assert_eq!(world.inode(file).version, 4);
    let value = |world: &World, name: &str| query::xattr(&world.state, Ino(file), name.as_bytes());
    assert_eq!(value(&world, "user.a"), Ok(Some(b"2".to_vec())));
    assert_eq!(value(&world, "user.b"), Ok(Some(vec![])));
    let names = query::xattr_names(&world.state, Ino(file));
    assert_eq!(names, Ok(vec![b"user.a".to_vec(), b"user.b".to_vec()]));
    world.ok(unset(file, "user.a"));
    world.refused(Errno::ENODATA, unset(file, "user.a"));
    assert_eq!(world.inode(file).ctime, Some(time(world.index - 1)));
}

#[test]
fn capabilities_go_with_whatever_could_make_another_program_of_the_file() {
    const NAME: &str = "security.capability";
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let attr = SetAttr { ino: file, ..SetAttr::default() };
    let takes = [
        write(file, 0, "x"),
        resize(file, 0),
        Op::SetAttr(SetAttr { uid: Some(10), ..attr.clone() }),
        Op::SetAttr(SetAttr { gid: Some(20), ..attr.clone() }),
        Op::SetAttr(SetAttr { kill_suid_sgid: true, ..attr.clone() }),
    ];
    for op in takes {
        world.ok(set(file, NAME, "all", 0));
        world.ok(op);
        assert_eq!(query::xattr(&world.state, Ino(file), NAME.as_bytes()), Ok(None));
    }
    world.ok(set(file, NAME, "all", 0));
    world.ok(write(file, 0, ""));
    world.ok(Op::SetAttr(SetAttr { mode: Some(0o700), mtime: Some(time(1)), ..attr }));
    let kept = query::xattr(&world.state, Ino(file), NAME.as_bytes());
    assert_eq!(kept, Ok(Some(b"all".to_vec())));
}

#[test]
fn attributes_have_limits() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let value = "v".repeat(XATTR_VALUE_MAX);
    world.ok(set(file, &"n".repeat(XATTR_NAME_MAX), &value, 0));
    world.refused(Errno::E2BIG, set(file, "n", &(value + "v"), 0));
    world.refused(Errno::ERANGE, set(file, &"n".repeat(XATTR_NAME_MAX + 1), "", 0));
    world.refused(Errno::ERANGE, set(file, "", "", 0));
    world.refused(Errno::EINVAL, set(file, "a\0b", "", 0));
    world.refused(Errno::EINVAL, set(file, "a", "", 4));
    world.refused(Errno::ENOENT, set(999, "a", "", 0));
    world.refused(Errno::ENOENT, unset(999, "a"));
}
