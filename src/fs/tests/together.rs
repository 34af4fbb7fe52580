//! A `SetAttr` that brings the bytes which were written before it.

use super::proto::{Kind, Piece, SetAttr, Time, Write};
use super::{Errno, Ino, Op, ROOT, World, bytes, time};
use crate::fs::{Change, FileEffect};
use crate::types::{ByteRange, Generation};

fn bytes_of(ino: u64, offset: u64, data: &str) -> Write {
    let pieces = vec![Piece { offset, data: bytes(data), ..Default::default() }];
    Write { ino, pieces, ..Default::default() }
}

/// "hello", written to a file at `seconds`, and what comes with it.
fn hello(ino: u64, seconds: u64, mut set: SetAttr) -> SetAttr {
    set.ino = ino;
    set.write = Some(bytes_of(ino, 0, "hello"));
    set.written = Some(time(seconds));
    set
}

#[test]
fn one_change_of_bytes_and_attributes() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let ino = Ino(file);
    let generation = Generation(world.inode(file).generation);
    let set = SetAttr { mode: Some(0o600), uid: Some(5), ..SetAttr::default() };
    let applied = world.ok(Op::SetAttr(hello(file, 1000, set)));
    let data = bytes("hello");
    assert_eq!(applied.effects, [FileEffect::Write { ino, generation, offset: 0, data }]);
    let range = ByteRange::at(0, 5);
    assert_eq!(applied.changes, [Change::Bytes { ino, range }, Change::Attributes { ino }]);
    let inode = world.inode(file);
    assert_eq!((inode.size, inode.mode, inode.uid), (5, 0o600, 5));
    assert_eq!((inode.version, inode.data_version), (2, world.index));
    assert_eq!(inode.mtime, Some(time(1000)), "when the program wrote");
    assert_eq!(inode.ctime, Some(time(world.index)), "when the attributes were set");
    assert_eq!(applied.outcome.inode, Some(inode));
}

#[test]
fn bytes_do_not_move_the_times_that_are_set() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let (atime, mtime) = (Some(time(7)), Some(time(8)));
    let set = SetAttr { atime, mtime, ..SetAttr::default() };
    world.ok(Op::SetAttr(hello(file, 1000, set)));
    let inode = world.inode(file);
    assert_eq!((inode.atime, inode.mtime, inode.ctime), (atime, mtime, Some(time(world.index))));
    // Nor do they lower a time that a later change has left.
    world.ok(Op::SetAttr(hello(file, 3, SetAttr::default())));
    assert_eq!(world.inode(file).mtime, mtime);
}

#[test]
fn a_truncation_cuts_the_bytes_that_came_before_it() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let ino = Ino(file);
    let generation = Generation(world.inode(file).generation);
    let cut = SetAttr { size: Some(2), ..SetAttr::default() };
    let applied = world.ok(Op::SetAttr(hello(file, 1000, cut)));
    let data = bytes("hello");
    let write = FileEffect::Write { ino, generation, offset: 0, data };
    let truncate = FileEffect::Truncate { ino, generation, size: 2 };
    assert_eq!(applied.effects, [write.clone(), truncate]);
    let inode = world.inode(file);
    assert_eq!((inode.size, inode.mtime), (2, Some(time(world.index))));

    let applied =
        world.ok(Op::SetAttr(hello(file, 1000, SetAttr { size: Some(0), ..SetAttr::default() })));
    let next = Generation(world.index);
    assert_eq!(applied.effects, [write, FileEffect::Renew { ino, generation, next }]);
    let inode = world.inode(file);
    assert_eq!((inode.size, inode.generation), (0, world.index));
}

#[test]
fn suid_goes_with_the_bytes_and_comes_with_the_mode() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let mode = Some(0o4755);
    world.ok(Op::SetAttr(SetAttr { ino: file, mode, ..SetAttr::default() }));
    let by_a_user = |set| {
        let set = hello(file, 1, set);
        let write = set.write.clone().map(|write| Write { kill_suid_sgid: true, ..write });
        Op::SetAttr(SetAttr { write, ..set })
    };
    world.ok(by_a_user(SetAttr { gid: Some(1), ..SetAttr::default() }));
    assert_eq!(world.inode(file).mode, 0o755);
    world.ok(by_a_user(SetAttr { mode, ..SetAttr::default() }));
    assert_eq!(world.inode(file).mode, 0o4755);
}

#[test]
fn a_refusal_leaves_neither_bytes_nor_attributes() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let (directory, fifo) = (world.directory(ROOT, "d"), world.make(Kind::Fifo, ROOT, "p"));
    let before = world.inode(file);
    let mode = Some(0o600);
    let too_long = SetAttr { size: Some(1 << 63), mode, ..SetAttr::default() };
    world.refused(Errno::EFBIG, Op::SetAttr(hello(file, 1, too_long)));
    let too_far = Some(bytes_of(file, u64::MAX, "x"));
    let too_far = SetAttr { ino: file, mode, size: Some(0), write: too_far, ..SetAttr::default() };
    world.refused(Errno::EFBIG, Op::SetAttr(too_far));
    let no_time = Some(Time { seconds: 0, nanos: 1_000_000_000 });
    let no_time = SetAttr { written: no_time, ..hello(file, 1, SetAttr::default()) };
    world.refused(Errno::EINVAL, Op::SetAttr(no_time));
    let another = SetAttr { ino: file, ..hello(directory, 1, SetAttr::default()) };
    world.refused(Errno::EINVAL, Op::SetAttr(another));
    world.refused(Errno::EISDIR, Op::SetAttr(hello(directory, 1, SetAttr::default())));
    world.refused(Errno::EINVAL, Op::SetAttr(hello(fifo, 1, SetAttr::default())));
    world.refused(Errno::ENOENT, Op::SetAttr(hello(999, 1, SetAttr::default())));
    assert_eq!(world.inode(file), before);
}

#[test]
fn a_retry_writes_nothing_again() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let command = world.command(Op::SetAttr(hello(file, 1, SetAttr::default())));
    let first = world.apply(&command);
    let cut = SetAttr { ino: file, size: Some(0), ..SetAttr::default() };
    world.ok(Op::SetAttr(cut));
    let again = world.apply(&command);
    assert_eq!((again.outcome, again.changes, again.effects), (first.outcome, vec![], vec![]));
    assert_eq!(world.inode(file).size, 0);
}

#[test]
fn a_late_change_of_ctime_only_raises_it() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let late = |set| Op::SetAttr(SetAttr { ino: file, raise_ctime: true, ..set });
    let before = world.inode(file);
    let mut command = world.command(late(SetAttr::default()));
    command.time = Some(time(1));
    world.apply(&command);
    assert_eq!(world.inode(file).ctime, before.ctime);
    world.ok(late(SetAttr::default()));
    let inode = world.inode(file);
    assert_eq!((inode.ctime, inode.mtime), (Some(time(world.index)), before.mtime));
    // Bytes that come along and were written later raise it as they always do.
    let mut command = world.command(late(hello(file, 1000, SetAttr::default())));
    command.time = Some(time(900));
    world.apply(&command);
    assert_eq!(world.inode(file).ctime, Some(time(1000)));
}
