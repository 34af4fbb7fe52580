//! rename(2) and the flags of renameat2(2).

use std::collections::BTreeMap;

use super::proto::{self, Kind, OnDisks};
use super::{Errno, Ino, Op, ROOT, World, link, rename, time, write};
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

/// A rename that says what it knows to be on disks: of these files, and up to which version.
fn durable(from: &str, to: &str, flags: u32, known: &[(u64, u64)]) -> Op {
    let Op::Rename(op) = rename((ROOT, from), (ROOT, to), flags) else { unreachable!("a rename") };
    let known =
        known.iter().map(|(ino, data_version)| OnDisks { ino: *ino, data_version: *data_version });
    Op::Rename(proto::Rename { only_durable: true, durable: known.collect(), ..op })
}

/// What a power loss may take takes the place of nothing. Logs of earlier builds have renames that do not ask.
#[test]
fn what_may_be_in_memory_only_replaces_nothing() {
    let mut world = World::new();
    let (new, old) = (world.file(ROOT, "new"), world.file(ROOT, "old"));
    world.ok(write(new, 0, "bytes"));
    let version = world.inode(new).data_version;
    let before = (world.inode(ROOT), world.inode(new), world.inode(old));
    let others = world.inode(old).data_version;
    for known in [&[][..], &[(old, others)], &[(new, version - 1)], &[(old, version)]] {
        world.refused(Errno::ECANCELED, durable("new", "old", 0, known));
        world.refused(Errno::ECANCELED, durable("new", "old", EXCHANGE, known));
    }
    // Both are put in the place of another.
    world.refused(Errno::ECANCELED, durable("new", "old", EXCHANGE, &[(new, version)]));
    world.refused(Errno::ECANCELED, durable("old", "new", EXCHANGE, &[(new, version)]));
    assert_eq!(before, (world.inode(ROOT), world.inode(new), world.inode(old)));

    // Other errors come first, and what replaces nothing needs no disk.
    world.refused(Errno::EEXIST, durable("new", "old", NOREPLACE, &[]));
    let empty = world.directory(ROOT, "empty");
    world.refused(Errno::EISDIR, durable("new", "empty", 0, &[]));
    world.ok(durable("new", "free", 0, &[]));
    world.ok(durable("free", "new", NOREPLACE, &[]));
    world.ok(durable("new", "new", 0, &[]));
    world.directory(ROOT, "directory");
    world.ok(durable("directory", "empty", 0, &[]));
    assert_eq!(world.inode(empty).nlink, 0);
    world.ok(durable("new", "empty", EXCHANGE, &[(new, version)]));
    world.ok(durable("new", "empty", EXCHANGE, &[(new, version)]));

    world.ok(durable("new", "old", EXCHANGE, &[(old, others), (new, version)]));
    world.ok(durable("old", "new", 0, &[(7, 7), (new, version)]));
    assert_eq!(world.lookup(ROOT, "new"), Some(new));
    let next = world.file(ROOT, "next");
    world.ok(write(next, 0, "bytes"));
    world.ok(rename((ROOT, "next"), (ROOT, "new"), 0));
}

/// A file as a mount knows it.
#[derive(Clone, Copy)]
struct Seen {
    ino: u64,
    version: u64,
    is_loose: bool,
}

const NAMES: [&str; 4] = ["a", "b", "x", "y"];

/// Files that some mounts write, rename and exchange, and what of them a power loss would take.
struct Volume {
    world: World,
    /// The last entry by which bytes came that are in memory only.
    loose: BTreeMap<u64, u64>,
    /// What each mount knows: all, or what there was some time ago.
    known: [BTreeMap<&'static str, Seen>; 2],
}

impl Volume {
    fn look(&self) -> BTreeMap<&'static str, Seen> {
        let seen = |name: &'static str| {
            let ino = self.world.lookup(ROOT, name)?;
            let version = self.world.inode(ino).data_version;
            Some((name, Seen { ino, version, is_loose: self.loose.contains_key(&ino) }))
        };
        NAMES.into_iter().filter_map(seen).collect()
    }

    /// As mounts do it. How often it was refused.
    fn rename(&mut self, mount: usize, from: &'static str, to: &'static str, flags: u32) -> usize {
        for refused in 0.. {
            let known = &self.known[mount];
            let (source, target) = (known.get(from).copied(), known.get(to).copied());
            let met = target.filter(|_| flags == EXCHANGE);
            let mut claims = Vec::new();
            for moved in [source, met].into_iter().flatten() {
                if moved.is_loose && target.is_some() {
                    // Disks have what this mount knows of.
                    let is_synced = |up_to: &u64| *up_to <= moved.version;
                    if self.loose.get(&moved.ino).is_some_and(is_synced) {
                        self.loose.remove(&moved.ino);
                    }
                }
                if !moved.is_loose || target.is_some() {
                    claims.push((moved.ino, moved.version));
                }
            }
            let before = self.look();
            let errno = self.world.run(durable(from, to, flags, &claims)).outcome.errno;
            self.known[mount] = self.look();
            if errno == Errno::ECANCELED.number() {
                assert_eq!(refused, 0, "it knows all by now");
                continue;
            }
            let (source, target) = (before.get(from), before.get(to));
            if let (0, Some(source), Some(target)) = (errno, source, target)
                && source.ino != target.ino
            {
                let met = Some(target).filter(|_| flags == EXCHANGE);
                let mut moved = [Some(source), met].into_iter().flatten();
                assert!(moved.all(|seen| !seen.is_loose), "a power loss leaves neither");
            }
            return refused;
        }
        unreachable!("it ends")
    }
}

/// Two mounts, each of which may be behind, put files in the place of others: only what is on disks gets there.
#[test]
fn no_loose_bytes_get_the_name_of_another_file() {
    let mut seed = 1_u64;
    let mut below = |end: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).expect("31 bits") % end
    };
    let mut refused = 0;
    for _ in 0..200 {
        let (world, loose, known) = (World::new(), BTreeMap::new(), Default::default());
        let mut volume = Volume { world, loose, known };
        for _ in 0..40 {
            let (mount, name) = (below(2), NAMES[below(NAMES.len())]);
            let ino = volume.world.lookup(ROOT, name);
            match (below(10), ino) {
                // An fsync; somebody hears of what the others did.
                (0, Some(ino)) => drop(volume.loose.remove(&ino)),
                (0..4, _) => volume.known[mount] = volume.look(),
                (4..7, None) => drop(volume.world.file(ROOT, name)),
                // Bytes in the log; bytes that are in memory for a while.
                (4, Some(ino)) => drop(volume.world.ok(write(ino, 0, "bytes"))),
                (5..7, Some(ino)) => {
                    volume.world.ok(write(ino, 0, "bytes"));
                    volume.loose.insert(ino, volume.world.index);
                }
                (at, _) => {
                    let flags = if at == 9 { EXCHANGE } else { 0 };
                    refused += volume.rename(mount, name, NAMES[below(NAMES.len())], flags);
                }
            }
        }
    }
    assert!(refused > 100, "{refused}");
}
