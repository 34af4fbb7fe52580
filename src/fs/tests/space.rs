//! Allocate and CopyRange.

use super::proto::{Allocate, CopyRange, Kind, SetAttr};
use super::{Errno, Ino, Op, ROOT, World, resize, write};
use crate::fs::limits::{COPY_MAX, SIZE_MAX};
use crate::fs::{Change, FileEffect};
use crate::types::{ByteRange, Generation, LogIndex};

const KEEP: u32 = 1;
const PUNCH: u32 = 2 | KEEP;
const ZERO: u32 = 16;

fn allocate(ino: u64, offset: u64, length: u64, mode: u32) -> Op {
    Op::Allocate(Allocate { ino, offset, length, mode, kill_suid_sgid: false })
}

fn copy(source: u64, from: ByteRange, ino: u64, offset: u64) -> CopyRange {
    let (source_offset, length) = (from.start, from.len());
    CopyRange { source, source_offset, ino, offset, length, ..CopyRange::default() }
}

#[test]
fn reserving_changes_no_bytes_and_raises_the_size_unless_it_is_kept() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.ok(write(file, 0, "hello"));
    let (ino, generation) = (Ino(file), Generation(world.inode(file).generation));
    let data_version = world.inode(file).data_version;
    let range = ByteRange::at(2, 100);

    let applied = world.ok(allocate(file, 2, 100, KEEP));
    assert_eq!(applied.effects, [FileEffect::Allocate { ino, generation, range }]);
    assert_eq!(applied.changes, [Change::Attributes { ino }]);
    let inode = world.inode(file);
    assert_eq!((inode.size, inode.data_version, inode.mod_index), (5, data_version, world.index));
    assert_eq!(inode.mtime, inode.ctime);

    let applied = world.ok(allocate(file, 2, 100, 0));
    assert_eq!(applied.effects, [FileEffect::Allocate { ino, generation, range }]);
    let raised = Change::Bytes { ino, range: ByteRange { start: 5, end: 102 } };
    assert!(applied.changes.contains(&raised));
    assert_eq!((world.inode(file).size, world.inode(file).data_version), (102, world.index));
    let applied = world.ok(allocate(file, 0, 10, 0));
    assert_eq!((world.inode(file).size, applied.changes.len()), (102, 1));
}

#[test]
fn holes_and_zeros_change_the_bytes_that_there_are() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.ok(write(file, 0, "0123456789"));
    let (ino, generation) = (Ino(file), Generation(world.inode(file).generation));
    for (mode, reserved) in [(PUNCH, false), (ZERO | KEEP, true)] {
        let range = ByteRange::at(4, 100);
        let applied = world.ok(allocate(file, 4, 100, mode));
        assert_eq!(applied.effects, [FileEffect::Zero { ino, generation, range, reserved }]);
        let changed = Change::Bytes { ino, range: ByteRange { start: 4, end: 10 } };
        assert!(applied.changes.contains(&changed), "{:?}", applied.changes);
        assert_eq!((world.inode(file).size, world.inode(file).data_version), (10, world.index));
    }
    let applied = world.ok(allocate(file, 50, 10, PUNCH));
    assert_eq!(applied.changes, [Change::Attributes { ino }], "there are no bytes");
    world.ok(allocate(file, 4, 100, ZERO));
    assert_eq!(world.inode(file).size, 104);
}

#[test]
fn allocations_that_cannot_be() {
    let mut world = World::new();
    let (file, directory) = (world.file(ROOT, "f"), world.directory(ROOT, "d"));
    let fifo = world.make(Kind::Fifo, ROOT, "p");
    world.refused(Errno::EISDIR, allocate(directory, 0, 1, 0));
    world.refused(Errno::ENODEV, allocate(fifo, 0, 1, 0));
    world.refused(Errno::ENOENT, allocate(999, 0, 1, 0));
    world.refused(Errno::EINVAL, allocate(file, 0, 0, 0));
    world.refused(Errno::EFBIG, allocate(file, SIZE_MAX, 1, 0));
    world.refused(Errno::EFBIG, allocate(file, u64::MAX, u64::MAX, PUNCH));
    // Punching that would change the size, both at once, collapsing, inserting, unsharing.
    for mode in [2, PUNCH | ZERO, 8, 32, 64, 128] {
        world.refused(Errno::EOPNOTSUPP, allocate(file, 0, 1, mode));
    }
    world.ok(allocate(file, SIZE_MAX - 1, 1, 0));
}

#[test]
fn a_copy_takes_what_the_proposer_saw_and_no_more_than_there_is() {
    let mut world = World::new();
    let (from, to) = (world.file(ROOT, "from"), world.file(ROOT, "to"));
    world.ok(write(from, 0, "0123456789"));
    let seen = world.inode(from).data_version;
    let op = CopyRange { source_version: seen, ..copy(from, ByteRange::at(6, 100), to, 3) };
    let applied = world.ok(Op::CopyRange(op));
    assert_eq!(applied.outcome.offset, 4);
    let effect = FileEffect::Copy {
        index: LogIndex(world.index),
        source: Ino(from),
        source_generation: Generation(world.inode(from).generation),
        range: ByteRange { start: 6, end: 10 },
        ino: Ino(to),
        generation: Generation(world.inode(to).generation),
        offset: 3,
    };
    assert_eq!(applied.effects, [effect]);
    assert!(applied.changes.contains(&Change::Bytes { ino: Ino(to), range: ByteRange::at(3, 4) }));
    let inode = world.inode(to);
    assert_eq!((inode.size, inode.data_version, inode.mtime), (7, world.index, inode.ctime));
    assert_eq!(world.inode(from).data_version, seen, "the source stays as it is");

    world.ok(write(from, 0, "x"));
    world.refused(Errno::ECANCELED, Op::CopyRange(op));
    assert_eq!(world.ok(Op::CopyRange(CopyRange { source_version: 0, ..op })).outcome.offset, 4);
    for op in [copy(from, ByteRange::at(10, 5), to, 0), copy(from, ByteRange::at(0, 0), to, 99)] {
        let applied = world.ok(Op::CopyRange(op));
        assert_eq!(
            (applied.outcome.offset, applied.effects.len(), applied.changes.len()),
            (0, 0, 0)
        );
    }
}

#[test]
fn a_file_is_copied_into_itself_where_the_ranges_do_not_overlap() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.ok(write(file, 0, "0123456789"));
    world.refused(Errno::EINVAL, Op::CopyRange(copy(file, ByteRange::at(0, 5), file, 4)));
    world.refused(Errno::EINVAL, Op::CopyRange(copy(file, ByteRange::at(4, 5), file, 0)));
    world.ok(Op::CopyRange(copy(file, ByteRange::at(0, 5), file, 5)));
    world.ok(Op::CopyRange(copy(file, ByteRange::at(5, 100), file, 0)));
    // Only the bytes that there are would overlap.
    world.ok(Op::CopyRange(copy(file, ByteRange::at(5, 100), file, 10)));
    assert_eq!(world.inode(file).size, 15);
}

#[test]
fn copies_that_cannot_be() {
    let mut world = World::new();
    let (file, directory) = (world.file(ROOT, "f"), world.directory(ROOT, "d"));
    let fifo = world.make(Kind::Fifo, ROOT, "p");
    world.ok(write(file, 0, "0123456789"));
    let to = world.file(ROOT, "to");
    let some = ByteRange::at(0, 5);
    world.refused(Errno::EISDIR, Op::CopyRange(copy(directory, some, to, 0)));
    world.refused(Errno::EISDIR, Op::CopyRange(copy(file, some, directory, 0)));
    world.refused(Errno::EINVAL, Op::CopyRange(copy(fifo, some, to, 0)));
    world.refused(Errno::EINVAL, Op::CopyRange(copy(file, some, fifo, 0)));
    world.refused(Errno::ENOENT, Op::CopyRange(copy(999, some, to, 0)));
    world.refused(Errno::EINVAL, Op::CopyRange(copy(file, ByteRange::at(0, COPY_MAX + 1), to, 0)));
    world.refused(Errno::EFBIG, Op::CopyRange(copy(file, some, to, SIZE_MAX - 4)));
    world.refused(Errno::EFBIG, Op::CopyRange(copy(file, some, to, u64::MAX)));
}

#[test]
fn both_may_take_suid_away() {
    let mut world = World::new();
    let (ino, other) = (world.file(ROOT, "f"), world.file(ROOT, "g"));
    world.ok(write(other, 0, "bytes"));
    let suid = SetAttr { ino, mode: Some(0o4755), ..SetAttr::default() };
    let punch = Allocate { ino, offset: 0, length: 1, mode: PUNCH, kill_suid_sgid: true };
    let copied = CopyRange { kill_suid_sgid: true, ..copy(other, ByteRange::at(0, 5), ino, 0) };
    for op in [Op::Allocate(punch), Op::CopyRange(copied)] {
        world.ok(Op::SetAttr(suid.clone()));
        world.ok(op);
        assert_eq!(world.inode(ino).mode, 0o755);
    }
}

/// Whatever is copied elsewhere first, a truncation to nothing begins another life.
#[test]
fn a_copy_goes_to_the_life_that_the_file_has_then() {
    let mut world = World::new();
    let (from, to) = (world.file(ROOT, "from"), world.file(ROOT, "to"));
    world.ok(write(from, 0, "bytes"));
    world.ok(write(to, 0, "old"));
    world.ok(resize(to, 0));
    let applied = world.ok(Op::CopyRange(copy(from, ByteRange::at(0, 5), to, 0)));
    let FileEffect::Copy { generation, .. } = applied.effects[0] else { panic!("a copy") };
    assert_eq!(generation.0, world.inode(to).generation);
}
