//! AcceptLost.

use super::proto::{AcceptLost, Extent};
use super::{Errno, Ino, Op, ROOT, World, proto, resize, write};
use crate::fs::limits::{LOST_MAX, SIZE_MAX};
use crate::fs::{Change, FileEffect};
use crate::types::{ByteRange, Generation};

fn accept(world: &World, file: u64, ranges: &[(u64, u64)]) -> AcceptLost {
    let inode = world.inode(file);
    let (generation, data_version) = (inode.generation, inode.data_version);
    let ranges = ranges.iter().map(|(start, end)| Extent { start: *start, end: *end }).collect();
    AcceptLost { ino: file, generation, data_version, ranges, asked: vec![1], away: vec![] }
}

#[test]
fn what_is_lost_becomes_a_hole_of_a_new_version() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.ok(write(file, 0, "0123456789"));
    let (ino, generation) = (Ino(file), Generation(world.inode(file).generation));
    let before = world.inode(file);
    let applied = world.ok(Op::AcceptLost(accept(&world, file, &[(2, 4), (6, 10)])));
    let ranges = [(2, 4), (6, 10)].map(|(start, end)| ByteRange { start, end });
    let hole = |range| FileEffect::Zero { ino, generation, range, reserved: false };
    // The end of the file may have been what was missing.
    let whole = FileEffect::Truncate { ino, generation, size: 10 };
    assert_eq!(applied.effects, [hole(ranges[0]), hole(ranges[1]), whole]);
    for range in ranges {
        assert!(applied.changes.contains(&Change::Bytes { ino, range }), "{:?}", applied.changes);
    }
    let after = world.inode(file);
    assert_eq!((after.size, after.generation), (10, before.generation));
    assert_eq!((after.data_version, after.mod_index), (world.index, world.index));
    assert_eq!(after.version, before.version + 1);
    assert_eq!((after.mtime, after.ctime), (applied.outcome.inode.unwrap().mtime, after.mtime));
    assert_ne!(after.mtime, before.mtime);
}

/// Who was asked may not be all there are; who has not joined has nothing.
#[test]
fn a_member_that_nobody_asked_is_in_the_way() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.ok(write(file, 0, "0123456789"));
    let add = |nonce| proto::AddMember { nonce, address: format!("a:{nonce}"), learner: true };
    world.cluster(Op::AddMember(add(0)));
    world.ok(Op::AcceptLost(accept(&world, file, &[(2, 4)])));
    let joined = world.cluster(Op::AddMember(add(7))).outcome.id;
    let mut lost = accept(&world, file, &[(2, 4)]);
    world.refused(Errno::ECANCELED, Op::AcceptLost(lost.clone()));
    lost.asked.push(joined);
    world.ok(Op::AcceptLost(lost));
    let mut lost = AcceptLost { away: vec![joined], ..accept(&world, file, &[(4, 5)]) };
    lost.asked.clear();
    world.refused(Errno::ECANCELED, Op::AcceptLost(lost.clone()));
    lost.away.push(1);
    let applied = world.ok(Op::AcceptLost(lost));
    assert_eq!(applied.effects.len(), 1, "the end is not lost");
}

/// Once is enough; and whatever was written since is nobody's to throw away.
#[test]
fn another_version_is_left_alone() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.ok(write(file, 0, "0123456789"));
    let lost = accept(&world, file, &[(2, 4)]);
    world.ok(Op::AcceptLost(lost.clone()));
    world.refused(Errno::ECANCELED, Op::AcceptLost(lost));
    let lost = accept(&world, file, &[(2, 4)]);
    world.ok(write(file, 3, "x"));
    world.refused(Errno::ECANCELED, Op::AcceptLost(lost));
    let lost = accept(&world, file, &[(2, 4)]);
    world.ok(resize(file, 0));
    world.refused(Errno::ECANCELED, Op::AcceptLost(lost));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.ok(write(file, 0, "0123456789"));
    let wrong: [&[(u64, u64)]; 5] =
        [&[], &[(3, 3)], &[(4, 3)], &[(0, 4), (3, 5)], &[(0, SIZE_MAX + 1)]];
    for ranges in wrong {
        world.refused(Errno::EINVAL, Op::AcceptLost(accept(&world, file, ranges)));
    }
    let many: Vec<_> = (0..=LOST_MAX as u64).map(|at| (2 * at, 2 * at + 1)).collect();
    world.refused(Errno::E2BIG, Op::AcceptLost(accept(&world, file, &many)));
    world.ok(Op::AcceptLost(accept(&world, file, &many[1..])));
    world.refused(Errno::EINVAL, Op::AcceptLost(accept(&world, ROOT, &[(0, 1)])));
    let gone = AcceptLost { ino: 99, ..accept(&world, file, &[(0, 1)]) };
    world.refused(Errno::ENOENT, Op::AcceptLost(gone));
}
