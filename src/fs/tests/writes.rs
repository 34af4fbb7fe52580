//! Write: bytes that travel in the log.

use super::proto::{Kind, Piece};
use super::{Errno, Ino, Op, ROOT, World, bytes, proto, resize, time, write};
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

/// Bytes of a stage that a quorum has in memory only, for the end of a file.
fn loose(ino: u64, ranges: &[ByteRange]) -> proto::Write {
    let piece = |range: &ByteRange| {
        let (offset, length) = (range.start, range.len());
        Piece { offset, length, checksums: vec![0], ..Default::default() }
    };
    let pieces = ranges.iter().map(piece).collect();
    proto::Write { ino, pieces, stage: 9, loose: true, adds_only: true, ..Default::default() }
}

fn staged(ino: u64, ranges: &[ByteRange], is_loose: bool) -> Op {
    Op::Write(proto::Write { loose: is_loose, adds_only: is_loose, ..loose(ino, ranges) })
}

/// What a power loss may take must not have taken the place of anything. Logs of earlier builds have loose writes that did.
#[test]
fn what_is_to_add_only_replaces_nothing() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let range = |(start, end)| ByteRange { start, end };
    world.ok(staged(file, &[(0, 10), (20, 24)].map(range), true));
    let before = world.inode(file);
    assert_eq!(before.size, 24);
    for at in [&[(0, 10)][..], &[(23, 24)], &[(10, 12)], &[(23, 32), (50, 51)]] {
        let ranges: Vec<_> = at.iter().copied().map(range).collect();
        world.refused(Errno::ECANCELED, staged(file, &ranges, true));
    }
    assert_eq!(world.inode(file), before);
    let append = proto::Write { adds_only: true, ..pieces(file, &[(0, "end")], true) };
    world.ok(Op::Write(append));
    world.ok(staged(file, &[(27, 30), (40, 41)].map(range), true));
    let old = proto::Write { adds_only: false, ..loose(file, &[range((0, 30))]) };
    world.ok(Op::Write(old));
    // What is cut off is not there any more.
    world.ok(resize(file, 5));
    world.ok(staged(file, &[range((5, 100))], true));
}

/// Two mounts, each of which may be behind, write over each other: what is on disks is replaced only by what is.
#[test]
fn no_loose_bytes_take_the_place_of_durable_ones() {
    const SLOTS: u64 = 12;
    let mut seed = 1_u64;
    let mut below = |end: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % end
    };
    let slot = |at: u64| usize::try_from(at).expect("few");
    let mut refused = 0;
    for _ in 0..200 {
        let mut world = World::new();
        let file = world.file(ROOT, "f");
        // Whether a power loss would leave each slot of the file; and the size that each mount knows of.
        let mut durable: Vec<bool> = Vec::new();
        let mut known = [0_u64; 2];
        for _ in 0..40 {
            let (mount, size) = (slot(below(2)), durable.len() as u64);
            match below(10) {
                // An fsync, a truncation; somebody hears of what the others did.
                0 => durable.fill(true),
                1 => {
                    durable.truncate(slot(below(size + 1)));
                    world.ok(resize(file, durable.len() as u64));
                }
                2..5 => known[mount] = size,
                _ => {
                    let start = below(SLOTS);
                    let range = ByteRange::at(start, 1 + below(SLOTS - start));
                    let mut loose = start >= known[mount];
                    let applied = world.run(staged(file, &[range], loose));
                    if applied.outcome.errno != 0 {
                        assert_eq!(applied.outcome.errno, Errno::ECANCELED.number());
                        assert!(loose, "what is on disks may go anywhere");
                        (refused, loose) = (refused + 1, false);
                        world.ok(staged(file, &[range], loose));
                    }
                    let is_lost = |old: u64| loose && old < size && durable[slot(old)];
                    let lost = (range.start..range.end).find(|old| is_lost(*old));
                    assert_eq!(lost, None, "durable bytes of {size} are replaced by loose ones");
                    // A hole needs no disk.
                    durable.resize(slot(size.max(range.end)), true);
                    durable[slot(range.start)..slot(range.end)].fill(!loose);
                }
            }
        }
    }
    assert!(refused > 100, "{refused}");
}
