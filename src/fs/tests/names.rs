//! Names come and go: make, link, unlink, rmdir.

use prost::Message;

use super::proto::Kind;
use super::{
    Errno, Ino, Op, ROOT, World, apply, at, bytes, link, proto, rename, rmdir, time, unlink,
};
use crate::fs::Change;
use crate::fs::keys;
use crate::fs::limits::{LINK_MAX, NAME_MAX, TARGET_MAX};

#[test]
fn a_new_file_has_what_its_maker_gave_it() {
    let mut world = World::new();
    let op = world.make_op(Kind::Regular, ROOT, "f");
    let applied = world.ok(Op::Make(op));
    let index = world.index;
    let inode = world.inode(applied.outcome.id);
    assert_eq!(applied.outcome.inode.as_ref(), Some(&inode));
    assert_eq!((inode.mode, inode.uid, inode.gid, inode.nlink), (0o640, 10, 20, 1));
    assert_eq!((inode.version, inode.mod_index, inode.data_version), (1, index, index));
    assert_eq!((inode.generation, inode.size, inode.rdev), (index, 0, 0));
    assert_eq!(inode.btime, Some(time(index)));
    let root = world.inode(ROOT);
    assert_eq!((root.mod_index, root.version), (index, 2));
    assert_eq!((root.mtime, root.ctime, root.atime), (inode.ctime, inode.ctime, Some(time(0))));
    let name = Change::Name { parent: Ino(ROOT), name: b"f".to_vec(), existed: false };
    assert!(applied.changes.contains(&name));
    assert!(applied.changes.contains(&Change::Attributes { ino: Ino(ROOT) }));
}

#[test]
fn every_kind_can_be_made() {
    let mut world = World::new();
    let kinds = [Kind::Fifo, Kind::Socket, Kind::CharDevice, Kind::BlockDevice, Kind::Symlink];
    for kind in kinds {
        let ino = world.make(kind, ROOT, kind.as_str_name());
        let inode = world.inode(ino);
        let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        assert_eq!(inode.rdev, if is_device { 7 } else { 0 });
        assert_eq!(inode.size, if kind == Kind::Symlink { 6 } else { 0 });
    }
    for kind in [0, 99] {
        let op = proto::Make { kind, ..world.make_op(Kind::Regular, ROOT, "x") };
        world.refused(Errno::EINVAL, Op::Make(op));
    }
}

#[test]
fn a_name_must_be_one() {
    let mut world = World::new();
    let long = "n".repeat(NAME_MAX + 1);
    let names = ["", ".", "..", "a/b", "a\0b"].map(|name| (name, Errno::EINVAL));
    for (name, errno) in names.into_iter().chain([(long.as_str(), Errno::ENAMETOOLONG)]) {
        let op = world.make_op(Kind::Regular, ROOT, name);
        world.refused(errno, Op::Make(op));
        world.refused(errno, unlink(ROOT, name));
        world.refused(errno, rmdir(ROOT, name));
        world.refused(errno, link(2, ROOT, name));
        world.refused(errno, rename((ROOT, name), (ROOT, "x"), 0));
        world.refused(errno, rename((ROOT, "x"), (ROOT, name), 0));
    }
    world.file(ROOT, &"n".repeat(NAME_MAX));
}

#[test]
fn a_symlink_needs_a_target() {
    let mut world = World::new();
    let cases = [
        (String::new(), Errno::ENOENT),
        ("t".repeat(TARGET_MAX + 1), Errno::ENAMETOOLONG),
        ("t\0".to_owned(), Errno::EINVAL),
    ];
    for (target, errno) in cases {
        let target = bytes(&target);
        let op = proto::Make { target, ..world.make_op(Kind::Symlink, ROOT, "l") };
        world.refused(errno, Op::Make(op));
    }
    let target = bytes(&"t".repeat(TARGET_MAX));
    let op = proto::Make { target, ..world.make_op(Kind::Symlink, ROOT, "l") };
    let inode = world.ok(Op::Make(op)).outcome.inode.expect("what was made");
    assert_eq!((inode.mode, inode.size), (0o777, TARGET_MAX as u64));
}

#[test]
fn a_parent_must_be_a_directory_that_is_there() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let removed = world.directory(ROOT, "d");
    world.ok(rmdir(ROOT, "d"));
    for (parent, errno) in [(999, Errno::ENOENT), (removed, Errno::ENOENT), (file, Errno::ENOTDIR)]
    {
        let op = world.make_op(Kind::Regular, parent, "x");
        world.refused(errno, Op::Make(op));
        world.refused(errno, link(file, parent, "x"));
        world.refused(errno, unlink(parent, "x"));
        world.refused(errno, rmdir(parent, "x"));
        world.refused(errno, rename((parent, "x"), (ROOT, "x"), 0));
        world.refused(errno, rename((ROOT, "f"), (parent, "x"), 0));
    }
}

#[test]
fn a_name_is_made_once() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let op = world.make_op(Kind::Directory, ROOT, "f");
    world.refused(Errno::EEXIST, Op::Make(op));
    world.refused(Errno::EEXIST, link(file, ROOT, "f"));
}

#[test]
fn an_inode_number_is_granted_and_unused() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let other = world.open(2, 7);
    let foreign = world.next_ino;
    assert_ne!(other, world.session);
    world.seq = 100;
    for ino in [0, ROOT, file, foreign, 1 << 40] {
        let op = proto::Make { ino, ..world.make_op(Kind::Regular, ROOT, "x") };
        world.refused(Errno::EINVAL, Op::Make(op));
    }
}

#[test]
fn a_setgid_directory_hands_its_group_on() {
    let mut world = World::new();
    let parent = world.directory(ROOT, "d");
    let (mode, gid) = (Some(0o2755), Some(77));
    world.ok(Op::SetAttr(proto::SetAttr { ino: parent, mode, gid, ..Default::default() }));
    let file = world.file(parent, "f");
    let directory = world.directory(parent, "d");
    let (file, directory) = (world.inode(file), world.inode(directory));
    assert_eq!((file.gid, file.mode), (77, 0o640));
    assert_eq!((directory.gid, directory.mode), (77, 0o2640));
}

#[test]
fn links_have_a_limit() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let directory = world.directory(ROOT, "d");
    let full = world.directory(ROOT, "full");
    // 65,000 names would take long to make: only the counts are raised, and lowered before the check.
    let mut state = world.state.clone();
    for ino in [file, full] {
        let mut inode = world.inode(ino);
        inode.nlink = LINK_MAX;
        state.insert(keys::inode(Ino(ino)), inode.encode_to_vec());
    }
    let make = world.make_op(Kind::Directory, full, "x");
    for op in [Op::Make(make), link(file, ROOT, "x"), rename((ROOT, "d"), (full, "x"), 0)] {
        let command = world.command(op);
        let applied = apply(&mut state, at(50), &command).expect("sound records");
        assert_eq!(applied.outcome.errno, Errno::EMLINK.number());
    }
    assert_eq!(world.lookup(ROOT, "d"), Some(directory));
}

#[test]
fn a_link_is_a_further_name_of_a_file() {
    let mut world = World::new();
    let (file, directory) = (world.file(ROOT, "f"), world.directory(ROOT, "d"));
    let applied = world.ok(link(file, directory, "g"));
    assert_eq!(applied.outcome.inode.map(|inode| inode.nlink), Some(2));
    assert_eq!(world.inode(file).mod_index, world.index);
    assert_eq!(world.inode(directory).mod_index, world.index);
    world.refused(Errno::EPERM, link(directory, ROOT, "x"));
    world.refused(Errno::ENOENT, link(999, ROOT, "x"));
    world.ok(unlink(ROOT, "f"));
    assert_eq!(world.inode(file).nlink, 1);
    world.ok(unlink(directory, "g"));
    world.refused(Errno::ENOENT, link(file, ROOT, "back"));
}

#[test]
fn unlink_is_for_files_and_rmdir_for_empty_directories() {
    let mut world = World::new();
    let directory = world.directory(ROOT, "d");
    world.file(directory, "f");
    world.refused(Errno::EISDIR, unlink(ROOT, "d"));
    world.refused(Errno::ENOTEMPTY, rmdir(ROOT, "d"));
    world.refused(Errno::ENOTDIR, rmdir(directory, "f"));
    world.refused(Errno::ENOENT, unlink(ROOT, "x"));
    world.refused(Errno::ENOENT, rmdir(ROOT, "x"));
    assert_eq!(world.inode(ROOT).nlink, 3);
    world.ok(unlink(directory, "f"));
    let applied = world.ok(rmdir(ROOT, "d"));
    let name = Change::Name { parent: Ino(ROOT), name: b"d".to_vec(), existed: true };
    assert!(applied.changes.contains(&name));
    assert_eq!(world.inode(ROOT).nlink, 2);
}
