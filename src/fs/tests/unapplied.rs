//! What received commands may change.

use super::{
    Change, Ino, LogIndex, MountId, Op, ROOT, Unapplied, World, link, proto, rename, unlink, write,
};

const READER: Option<MountId> = Some(MountId(9));

fn receive(world: &mut World, unapplied: &mut Unapplied, index: u64, op: Op) -> Vec<Change> {
    let command = world.command(op);
    unapplied.receive(&world.state, LogIndex(index), &command, None).expect("a map can be read")
}

/// A read waits for the last entry that was there when it began, and for nothing else.
#[test]
fn marks() {
    let mut world = World::new();
    let [file, other] = ["file", "other"].map(|name| world.file(ROOT, name));
    let mut unapplied = Unapplied::default();
    receive(&mut world, &mut unapplied, 50, write(file, 0, "x"));
    receive(&mut world, &mut unapplied, 52, write(file, 0, "y"));
    let of =
        |unapplied: &Unapplied, ino, since| unapplied.of_inode(Ino(ino), LogIndex(since), READER).0;
    assert_eq!(of(&unapplied, file, 49), 0, "it began before");
    assert_eq!(of(&unapplied, file, 51), 50);
    assert_eq!(of(&unapplied, file, 60), 52);
    assert_eq!(of(&unapplied, other, 60), 0);
    unapplied.applied(LogIndex(50));
    assert_eq!(of(&unapplied, file, 51), 0);
    unapplied.replace(LogIndex(52));
    assert_eq!(of(&unapplied, file, 60), 0, "it will not be");
}

/// What a name means may depend on entries that are not applied either.
#[test]
fn names_through_unapplied_entries() {
    let mut world = World::new();
    let [one, two] = ["one", "two"].map(|name| world.file(ROOT, name));
    let mut unapplied = Unapplied::default();
    let changes = receive(&mut world, &mut unapplied, 50, rename((ROOT, "one"), (ROOT, "two"), 0));
    for name in ["one", "two"] {
        assert_eq!(unapplied.of_name(Ino(ROOT), name.as_bytes(), LogIndex(50)), LogIndex(50));
        let name = name.as_bytes().to_vec();
        assert!(changes.contains(&Change::Name { parent: Ino(ROOT), name, existed: true }));
    }
    for ino in [one, two, ROOT] {
        assert!(changes.contains(&Change::Attributes { ino: Ino(ino) }));
    }
    receive(&mut world, &mut unapplied, 51, unlink(ROOT, "two"));
    assert_eq!(
        unapplied.of_inode(Ino(one), LogIndex(60), READER),
        LogIndex(51),
        "renamed there before"
    );
    let make = world.make_op(proto::Kind::Regular, ROOT, "new");
    let new = make.ino;
    receive(&mut world, &mut unapplied, 52, Op::Make(make));
    receive(&mut world, &mut unapplied, 53, link(new, ROOT, "again"));
    receive(&mut world, &mut unapplied, 54, unlink(ROOT, "again"));
    assert_eq!(unapplied.of_inode(Ino(new), LogIndex(60), READER), LogIndex(54));
}

/// What a copy reads stays as it is.
#[test]
fn space_of_the_file_that_changes() {
    let mut world = World::new();
    let [file, source] = ["file", "source"].map(|name| world.file(ROOT, name));
    let allocate = proto::Allocate { ino: file, length: 9, ..proto::Allocate::default() };
    let copy = proto::CopyRange { source, ino: file, length: 9, ..proto::CopyRange::default() };
    let lost = proto::AcceptLost { ino: file, ..proto::AcceptLost::default() };
    let ops = [Op::Allocate(allocate), Op::CopyRange(copy), Op::AcceptLost(lost)];
    for (index, op) in (50..).zip(ops) {
        let mut unapplied = Unapplied::default();
        let command = world.command(op);
        // Also where the mount itself asks for it: it shows it only when it is applied.
        let own = Some(MountId(1));
        let changes = unapplied.receive(&world.state, LogIndex(index), &command, own);
        assert_eq!(changes.expect("a map can be read"), [Change::Attributes { ino: Ino(file) }]);
        assert_eq!(unapplied.of_inode(Ino(file), LogIndex(60), own), LogIndex(index));
        assert_eq!(unapplied.of_inode(Ino(source), LogIndex(60), own), LogIndex(0));
    }
}

/// A mount shows the bytes that it writes before they are committed; its other changes it does not, and
/// other mounts show neither.
#[test]
fn own_writes_do_not_wait_for_themselves() {
    let mut world = World::new();
    let file = world.file(ROOT, "file");
    let (writer, other) = (Some(MountId(1)), Some(MountId(2)));
    for (op, shown) in [(write(file, 0, "x"), 0), (super::resize(file, 9), 50)] {
        let mut unapplied = Unapplied::default();
        let command = world.command(op);
        let received = unapplied.receive(&world.state, LogIndex(50), &command, writer);
        let changes = received.expect("a map can be read");
        assert_eq!(changes, [Change::Attributes { ino: Ino(file) }]);
        let of = |reader| unapplied.of_inode(Ino(file), LogIndex(50), reader);
        assert_eq!(of(writer), LogIndex(shown));
        assert_eq!([of(other), of(None)], [LogIndex(50); 2]);
    }
}

/// A program that replaces a file again and again, while this node is behind.
#[test]
fn many_renames_to_one_name_cost_no_more_than_they_are() {
    let mut world = World::new();
    let other = world.file(ROOT, "other");
    let mut unapplied = Unapplied::default();
    let mut made = Vec::new();
    for round in 0..2000 {
        let make = world.make_op(proto::Kind::Regular, ROOT, "new");
        made.push(make.ino);
        receive(&mut world, &mut unapplied, 50 + 2 * round, Op::Make(make));
        let replace = rename((ROOT, "new"), (ROOT, "name"), 0);
        let changes = receive(&mut world, &mut unapplied, 51 + 2 * round, replace);
        assert!(changes.len() <= 64, "{} changes in round {round}", changes.len());
    }
    let of =
        |unapplied: &Unapplied, ino, since| unapplied.of_inode(Ino(ino), LogIndex(since), READER).0;
    assert_eq!(of(&unapplied, made[0], 51), 51);
    assert_eq!(of(&unapplied, made[1999], 10_000), 50 + 3999);
    assert_eq!(of(&unapplied, other, 10_000), 50 + 3999, "it may be anything");
    unapplied.applied(LogIndex(50 + 3999));
    assert_eq!(of(&unapplied, other, 10_000), 0);
    assert_eq!(of(&unapplied, made[5], 10_000), 0);
}
