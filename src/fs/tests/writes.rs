//! Write: bytes that travel in the log.

use super::proto::{Kind, Piece};
use super::{Errno, Ino, Op, ROOT, World, bytes, proto, time, write};
use crate::fs::limits::SIZE_MAX;
use crate::fs::{Change, FileEffect};
use crate::types::{ByteRange, Generation};

fn pieces(ino: u64, pieces: &[(u64, &str)], append: bool) -> proto::Write {
    let pieces = pieces
        .iter()
        .map(|&(offset, data)| Piece { offset, data: bytes(data), ..Default::default() })
        .collect();
    proto::Write { ino, pieces, append, ..Default::default() }
}

#[test]
fn several_pieces_go_to_their_offsets() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let ino = Ino(file);
    let generation = Generation(world.inode(file).generation);
    let applied = world.ok(Op::Write(pieces(file, &[(10, "abc"), (2, "x"), (5, "")], false)));
    let effect = |offset, data| FileEffect::Write { ino, generation, offset, data: bytes(data) };
    assert_eq!(applied.effects, [effect(10, "abc"), effect(2, "x")]);
    assert!(applied.changes.contains(&Change::Bytes { ino, range: ByteRange::at(10, 3) }));
    assert!(applied.changes.contains(&Change::Attributes { ino }));
    let inode = world.inode(file);
    assert_eq!((inode.size, inode.version, inode.data_version), (13, 2, world.index));
    assert_eq!(applied.outcome.inode, Some(inode));
    world.ok(write(file, 0, "0"));
    assert_eq!(world.inode(file).size, 13);
}

#[test]
fn an_append_goes_to_the_end_as_it_is_then() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.ok(write(file, 0, "hello"));
    let applied = world.ok(Op::Write(pieces(file, &[(99, "ab"), (0, "c")], true)));
    assert_eq!(applied.outcome.offset, 5);
    let offsets: Vec<u64> = applied
        .effects
        .iter()
        .map(|effect| match effect {
            FileEffect::Write { offset, .. } => *offset,
            other => panic!("an append orders {other:?}"),
        })
        .collect();
    assert_eq!(offsets, [5, 7]);
    assert_eq!(world.inode(file).size, 8);
}

#[test]
fn a_flush_only_raises_times() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let mtime = Some(time(5000));
    world.ok(Op::SetAttr(proto::SetAttr { ino: file, mtime, ..Default::default() }));
    let ctime = world.inode(file).ctime;
    let mut late = world.command(write(file, 0, "late"));
    late.time = Some(time(1));
    world.apply(&late);
    assert_eq!((world.inode(file).mtime, world.inode(file).ctime), (mtime, ctime));
    world.ok(write(file, 0, "x"));
    assert_eq!(
        (world.inode(file).mtime, world.inode(file).ctime),
        (mtime, Some(time(world.index)))
    );
}

#[test]
fn nothing_written_changes_nothing() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let before = world.inode(file);
    for op in [pieces(file, &[], false), pieces(file, &[(7, "")], true)] {
        let applied = world.ok(Op::Write(op));
        assert!(applied.changes.is_empty() && applied.effects.is_empty());
    }
    assert_eq!(world.inode(file), before);
}

#[test]
fn a_write_may_take_suid_away() {
    let mut world = World::new();
    let ino = world.file(ROOT, "f");
    let mode = Some(0o4755);
    world.ok(Op::SetAttr(proto::SetAttr { ino, mode, ..Default::default() }));
    let op = proto::Write { kill_suid_sgid: true, ..pieces(ino, &[(0, "x")], false) };
    world.ok(Op::Write(op));
    assert_eq!(world.inode(ino).mode, 0o755);
}

#[test]
fn bytes_belong_in_files_of_possible_sizes() {
    let mut world = World::new();
    let directory = world.directory(ROOT, "d");
    let fifo = world.make(Kind::Fifo, ROOT, "p");
    let file = world.file(ROOT, "f");
    world.refused(Errno::EISDIR, write(directory, 0, "x"));
    world.refused(Errno::EINVAL, write(fifo, 0, "x"));
    world.refused(Errno::ENOENT, write(999, 0, "x"));
    let max = SIZE_MAX;
    world.refused(Errno::EFBIG, Op::Write(pieces(file, &[(0, "x"), (max, "x")], false)));
    world.refused(Errno::EFBIG, write(file, u64::MAX, "x"));
    world.ok(write(file, max - 1, "x"));
    world.refused(Errno::EFBIG, Op::Write(pieces(file, &[(0, "x")], true)));
}
