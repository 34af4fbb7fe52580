//! Open but unlinked: an inode without a name lives until nobody holds it.

use super::{
    Ino, Op, ROOT, World, bytes, proto, query, release, rmdir, session_end, unlink, write,
};
use crate::fs::{Change, FileEffect};
use crate::types::{Generation, SessionId};

#[test]
fn an_orphan_goes_when_all_have_let_go() {
    let mut world = World::new();
    let (first, seq) = (world.session, world.seq);
    let file = world.file(ROOT, "f");
    let (numbers, seq) = (world.next_ino, seq + 1);
    let second = world.open(2, 1);
    let set = proto::SetXattr { ino: file, name: bytes("user.a"), ..Default::default() };
    (world.session, world.seq, world.next_ino) = (first, seq, numbers);
    world.ok(Op::SetXattr(set));
    let generation = Generation(world.inode(file).generation);
    let applied = world.ok(unlink(ROOT, "f"));
    let ino = Ino(file);
    assert!(applied.changes.contains(&Change::Orphaned { ino }));
    let holders = query::orphan(&world.state, ino).expect("sound").map(|orphan| orphan.holders);
    assert_eq!(holders, Some(vec![first, second]));

    // Who holds it still reads, writes and changes it. Later sessions cannot hold it.
    world.ok(write(file, 0, "still here"));
    assert!(world.ok(release(file)).changes.is_empty());
    assert!(world.ok(release(file)).changes.is_empty());
    (world.session, world.seq) = (second, 0);
    let applied = world.ok(release(file));
    assert_eq!(applied.changes, [Change::Removed { ino }]);
    assert_eq!(applied.effects, [FileEffect::Remove { ino, generation }]);
    assert_eq!(world.find(file), None);
    assert_eq!(query::xattr_names(&world.state, ino), Ok(vec![]));
    assert_eq!(query::orphans(&world.state, Ino(0), 9), Ok(vec![]));
    assert!(world.ok(release(file)).changes.is_empty());
}

#[test]
fn a_session_that_ends_lets_go() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.file(ROOT, name);
        world.ok(unlink(ROOT, name));
    }
    world.directory(ROOT, "d");
    world.ok(rmdir(ROOT, "d"));
    assert_eq!(query::orphans(&world.state, Ino(0), 9).expect("sound").len(), 4);
    let second = query::orphans(&world.state, Ino(0), 2).expect("sound")[1].0;
    assert_eq!(query::orphans(&world.state, second, 9).expect("sound").len(), 2);
    let applied = world.cluster(session_end(world.session));
    let (ended, removed) = applied.effects.split_last().expect("some");
    assert_eq!(*ended, FileEffect::EndStages { session: SessionId(world.session) });
    assert!(removed.iter().all(|effect| matches!(effect, FileEffect::Remove { .. })));
    assert_eq!(removed.len(), 3);
    assert_eq!(query::orphans(&world.state, Ino(0), 9), Ok(vec![]));
}

#[test]
fn a_removed_directory_stays_for_those_who_are_in_it() {
    let mut world = World::new();
    let directory = world.directory(ROOT, "d");
    world.ok(rmdir(ROOT, "d"));
    assert_eq!(world.inode(directory).nlink, 0);
    let applied = world.ok(release(directory));
    assert_eq!(applied.changes, [Change::Removed { ino: Ino(directory) }]);
    assert!(applied.effects.is_empty());
}
