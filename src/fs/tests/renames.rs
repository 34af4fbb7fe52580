//! rename(2) and the flags of renameat2(2).

use super::proto::Kind;
use super::{Errno, Ino, ROOT, World, link, rename, time};
use crate::fs::Change;

const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;

#[test]
fn a_moved_directory_knows_its_new_parent() {
    let mut world = World::new();
    let (a, b) = (world.directory(ROOT, "a"), world.directory(ROOT, "b"));
    let moved = world.directory(a, "d");
    let applied = world.ok(rename((a, "d"), (b, "e"), 0));
    assert_eq!((world.lookup(a, "d"), world.lookup(b, "e")), (None, Some(moved)));
    assert_eq!(world.inode(moved).parent, b);
    assert_eq!((world.inode(a).nlink, world.inode(b).nlink), (2, 3));
    for ino in [a, b, moved] {
        assert_eq!(world.inode(ino).ctime, Some(time(world.index)));
        assert_eq!(world.inode(ino).mod_index, world.index);
    }
    for (parent, name, existed) in [(a, "d", true), (b, "e", false)] {
        let name = name.as_bytes().to_vec();
        assert!(applied.changes.contains(&Change::Name { parent: Ino(parent), name, existed }));
    }
}

#[test]
fn the_same_inode_stays_where_it_is() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.ok(link(file, ROOT, "g"));
    let before = world.inode(ROOT);
    for (to, flags) in [("g", 0), ("f", 0), ("g", EXCHANGE), ("f", EXCHANGE)] {
        assert!(world.ok(rename((ROOT, "f"), (ROOT, to), flags)).changes.is_empty());
    }
    assert_eq!(world.inode(ROOT), before);
    world.refused(Errno::EEXIST, rename((ROOT, "f"), (ROOT, "g"), NOREPLACE));
}

#[test]
fn what_is_replaced_loses_a_name() {
    let mut world = World::new();
    let (file, other) = (world.file(ROOT, "f"), world.file(ROOT, "g"));
    let applied = world.ok(rename((ROOT, "f"), (ROOT, "g"), 0));
    assert!(applied.changes.contains(&Change::Orphaned { ino: Ino(other) }));
    assert_eq!((world.lookup(ROOT, "f"), world.lookup(ROOT, "g")), (None, Some(file)));
    assert_eq!(world.inode(other).nlink, 0);
    let (directory, empty) = (world.directory(ROOT, "d"), world.directory(ROOT, "e"));
    world.ok(rename((ROOT, "d"), (ROOT, "e"), 0));
    assert_eq!(world.lookup(ROOT, "e"), Some(directory));
    assert_eq!((world.inode(ROOT).nlink, world.inode(empty).nlink), (3, 0));
}

#[test]
fn kinds_must_fit() {
    let mut world = World::new();
    let directory = world.directory(ROOT, "d");
    world.directory(ROOT, "e");
    world.file(ROOT, "f");
    world.make(Kind::Symlink, directory, "l");
    world.refused(Errno::EISDIR, rename((ROOT, "f"), (ROOT, "e"), 0));
    world.refused(Errno::ENOTDIR, rename((ROOT, "e"), (ROOT, "f"), 0));
    world.refused(Errno::ENOTEMPTY, rename((ROOT, "e"), (ROOT, "d"), 0));
    world.refused(Errno::ENOENT, rename((ROOT, "x"), (ROOT, "y"), 0));
    world.refused(Errno::ENOENT, rename((ROOT, "f"), (ROOT, "y"), EXCHANGE));
    world.refused(Errno::EEXIST, rename((ROOT, "f"), (ROOT, "e"), NOREPLACE));
    for flags in [3, 4, 1 << 31] {
        world.refused(Errno::EINVAL, rename((ROOT, "f"), (ROOT, "y"), flags));
    }
    world.ok(rename((ROOT, "f"), (ROOT, "y"), NOREPLACE));
}

#[test]
fn no_directory_moves_below_itself() {
    let mut world = World::new();
    let a = world.directory(ROOT, "a");
    let b = world.directory(a, "b");
    let c = world.directory(b, "c");
    world.file(c, "f");
    world.refused(Errno::EINVAL, rename((ROOT, "a"), (a, "x"), 0));
    world.refused(Errno::EINVAL, rename((ROOT, "a"), (c, "x"), 0));
    world.refused(Errno::EINVAL, rename((ROOT, "a"), (c, "f"), EXCHANGE));
    world.refused(Errno::EINVAL, rename((c, "f"), (ROOT, "a"), EXCHANGE));
    world.refused(Errno::ENOTEMPTY, rename((b, "c"), (ROOT, "a"), 0));
    world.ok(rename((b, "c"), (ROOT, "c"), 0));
    world.ok(rename((ROOT, "a"), (c, "a"), 0));
}

#[test]
fn an_exchange_swaps_names_parents_and_counts() {
    let mut world = World::new();
    let (a, b) = (world.directory(ROOT, "a"), world.directory(ROOT, "b"));
    let (moved, file) = (world.directory(a, "d"), world.file(b, "f"));
    let applied = world.ok(rename((a, "d"), (b, "f"), EXCHANGE));
    assert_eq!((world.lookup(a, "d"), world.lookup(b, "f")), (Some(file), Some(moved)));
    assert_eq!((world.inode(a).nlink, world.inode(b).nlink), (2, 3));
    assert_eq!(world.inode(moved).parent, b);
    let existed = |change: &&Change| matches!(change, Change::Name { existed: true, .. });
    assert_eq!(applied.changes.iter().filter(existed).count(), 2);
    world.ok(rename((ROOT, "a"), (ROOT, "b"), EXCHANGE));
    assert_eq!((world.lookup(ROOT, "a"), world.lookup(ROOT, "b")), (Some(b), Some(a)));
    assert_eq!(world.inode(ROOT).nlink, 4);
}
