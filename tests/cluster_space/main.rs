//! Space: holes, reservations, copies within the file system, and what happens when there is none left.

#![allow(clippy::disallowed_methods, reason = "reads where tools are and how long to run")]

mod disks;
#[path = "../support/mod.rs"]
mod support;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;

use support::{Cluster, succeed, write_and_close};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Bytes that tell their place and file.
fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let byte = |at: u64| u8::try_from((at / 512 * 31 + at + seed * 101) % 255).expect("a byte") + 1;
    (0..len).map(byte).collect()
}

fn blocks(path: &Path) -> u64 {
    fs::metadata(path).expect("stat").blocks()
}

/// Where data begins and ends.
fn segments(file: &File) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        match seek(file, SeekFrom::Data(at)) {
            Ok(data) => {
                at = seek(file, SeekFrom::Hole(data)).expect("a hole at the end");
                found.push((data, at));
            }
            Err(Errno::NXIO) => return found,
            Err(error) => panic!("SEEK_DATA at {at}: {error}"),
        }
    }
}

/// The backing file of a path's inode on each node.
fn backing_files(cluster: &Cluster, path: &Path) -> Vec<PathBuf> {
    cluster.backing_files(fs::metadata(path).expect("stat").ino())
}

/// What is applied on a node.
fn applied(cluster: &Cluster, node: u64) -> u64 {
    let nodes = cluster.status().nodes;
    nodes.iter().find(|other| other.id == node).expect("it is a member").applied
}

#[test]
fn fallocate_on_one_mount_is_seen_on_the_other() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1).join("f"), cluster.mount(2).join("f"));
    let mut wanted = pattern(1, 256 * KIB);
    let file = open(&here);
    let other = open(&there);
    let check = |wanted: &[u8], what: &str| {
        assert!(fs::read(&here).expect("read") == wanted, "{what}, here");
        assert!(fs::read(&there).expect("read") == wanted, "{what}, there");
        let (one, two) = (file.metadata().expect("fstat"), other.metadata().expect("fstat"));
        assert_eq!((one.len(), two.len()), (wanted.len() as u64, wanted.len() as u64), "{what}");
    };
    // What is still buffered comes first.
    file.write_all_at(&wanted, 0).expect("write");
    fallocate(&file, PUNCH, 64 * KIB, 64 * KIB).expect("punch");
    wanted[64 << 10..128 << 10].fill(0);
    check(&wanted, "punched");
    // One mount after the other, without anything in between.
    fallocate(&other, PUNCH, 10, 20).expect("punch");
    wanted[10..30].fill(0);
    check(&wanted, "punched there");
    fallocate(&file, FallocateFlags::ZERO_RANGE, 250 * KIB, 100 * KIB).expect("zero");
    wanted[250 << 10..].fill(0);
    wanted.resize(350 << 10, 0);
    check(&wanted, "zeroed beyond the end");
    fallocate(&other, FallocateFlags::empty(), 0, 400 * KIB).expect("reserve");
    wanted.resize(400 << 10, 0);
    check(&wanted, "reserved");
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 4 * MIB).expect("reserve");
    check(&wanted, "reserved beyond the end");
    // A replica that nobody asks applies a moment later.
    cluster.settle();
    for backing in backing_files(&cluster, &here) {
        assert!(blocks(&backing) * 512 >= 4 * MIB - 64 * KIB, "{}", backing.display());
    }
    let collapse = fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4 * KIB);
    assert_eq!(collapse, Err(Errno::OPNOTSUPP));
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 1 << 50), Err(Errno::FBIG));
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 1 << 43), Err(Errno::NOSPC));
    check(&wanted, "refused");
    file.write_all_at(b"x", 100 * KIB).expect("write");
    drop(file);
    wanted[100 << 10] = b'x';
    assert!(fs::read(&there).expect("read") == wanted, "written into the hole");
}

#[test]
fn data_and_holes_are_where_a_local_file_has_them() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1).join("f"), cluster.mount(2).join("f"));
    let local = cluster.dir().join("local");
    let change = |path: &Path| {
        let file = open(path);
        file.write_all_at(&pattern(1, 64 * KIB), 64 * KIB).expect("write");
        file.write_all_at(&pattern(2, 192 * KIB), 1024 * KIB).expect("write");
        fallocate(&file, PUNCH, 1088 * KIB, 64 * KIB).expect("punch");
        file.set_len(4 * MIB).expect("truncate");
        // Not flushed by anybody.
        file.write_all_at(&pattern(3, 64 * KIB), 2048 * KIB).expect("write");
        file
    };
    let (file, reference) = (change(&here), change(&local));
    assert_eq!(segments(&file), segments(&reference), "on the mount that writes");
    assert_eq!(segments(&file).len(), 4);
    drop(file);
    let other = open(&there);
    assert_eq!(segments(&other), segments(&reference), "on another mount");
    for at in [0, 65 * KIB, 1100 * KIB, 3 * MIB, 4 * MIB - 1] {
        assert_eq!(seek(&other, SeekFrom::Hole(at)), seek(&reference, SeekFrom::Hole(at)));
    }
    for file in [&other, &reference] {
        assert_eq!(seek(file, SeekFrom::Data(3 * MIB)), Err(Errno::NXIO));
        assert_eq!(seek(file, SeekFrom::Hole(4 * MIB)), Err(Errno::NXIO));
    }
    other.set_len(100 * KIB).expect("truncate");
    reference.set_len(100 * KIB).expect("truncate");
    assert_eq!(segments(&other), segments(&reference), "cut");
}

#[test]
fn sparse_files_stay_sparse_on_every_replica() {
    let cluster = Cluster::up(3);
    let here = cluster.mount(1).join("f");
    let file = open(&here);
    file.set_len(1 << 40).expect("truncate");
    file.write_all_at(&pattern(1, 64 * KIB), 1 << 39).expect("write");
    file.write_all_at(b"end", (1 << 40) - 3).expect("write");
    file.sync_all().expect("fsync");
    let copied = cluster.mount(1).join("copy");
    let copy = open(&copied);
    let (mut from, mut to) = ((1 << 39) - MIB, 0);
    while to < 3 * MIB {
        let left = usize::try_from(3 * MIB - to).expect("small");
        copy_file_range(&file, Some(&mut from), &copy, Some(&mut to), left).expect("copy");
    }
    drop(copy);
    cluster.settle();
    for path in [&here, &copied] {
        let backing = backing_files(&cluster, path);
        assert_eq!(backing.len(), 3);
        for backing in backing {
            assert!(blocks(&backing) * 512 <= 128 * KIB, "{}", backing.display());
        }
        assert!(blocks(path) * 512 <= 128 * KIB, "as stat says it");
    }
    assert_eq!(segments(&open(&copied)), [(MIB, MIB + 64 * KIB)]);
    let mut end = [0; 3];
    open(&cluster.mount(3).join("f")).read_exact_at(&mut end, (1 << 40) - 3).expect("read");
    assert_eq!(&end, b"end");
}

/// As `cp --reflink=auto` does: the bytes go from file to file on each replica.
#[test]
fn a_copy_moves_no_bytes_and_survives_that_all_are_killed() {
    const SIZE: u64 = 24 * MIB;
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    let bytes = pattern(1, SIZE);
    write_and_close(&there.join("source"), &bytes).expect("write");
    let source = open(&here.join("source"));
    let copy = open(&here.join("copy"));
    // Buffered bytes of both come first.
    source.write_all_at(b"last", SIZE).expect("write");
    copy.write_all_at(b"overwritten", 0).expect("write");
    source.sync_all().expect("fsync");
    copy.sync_all().expect("fsync");
    let before = applied(&cluster, 1);
    let (mut from, mut to) = (0, 0);
    let mut calls = 0;
    loop {
        let copied = copy_file_range(&source, Some(&mut from), &copy, Some(&mut to), 1 << 30);
        calls += 1;
        if copied.expect("copy") == 0 {
            break;
        }
    }
    let entries = applied(&cluster, 1) - before;
    assert_eq!((from, to), (SIZE + 4, SIZE + 4));
    assert!(calls <= 3, "{calls} calls");
    // Sessions keep house, too. As bytes in the log it would be hundreds.
    assert!(entries < 40, "{entries} entries for {SIZE} bytes");
    let mut wanted = bytes;
    wanted.extend_from_slice(b"last");
    assert!(fs::read(there.join("copy")).expect("read") == wanted, "there");
    assert!(fs::read(here.join("copy")).expect("read") == wanted, "here");

    // The source changes, goes, and everybody dies: a replay has to copy what was there.
    source.write_all_at(&pattern(2, MIB), 8 * MIB).expect("write");
    source.sync_all().expect("fsync");
    fs::remove_file(here.join("source")).expect("unlink");
    drop((source, copy));
    for node in 1..=3 {
        cluster.kill(node, "KILL");
    }
    cluster.up_again();
    cluster.settle();
    for node in 1..=3 {
        let path = cluster.mount(node).join("copy");
        assert!(fs::read(path).expect("read") == wanted, "node {node} after the crash");
    }
}

#[test]
fn a_copy_within_a_file_and_beyond_its_end() {
    let cluster = Cluster::up(1);
    let path = cluster.mount(1).join("f");
    let file = open(&path);
    let bytes = pattern(1, 100 * KIB);
    file.write_all_at(&bytes, 0).expect("write");
    let copy = |from: u64, to: u64, len: usize| {
        let (mut from, mut to) = (from, to);
        copy_file_range(&file, Some(&mut from), &file, Some(&mut to), len)
    };
    assert_eq!(copy(0, 50, 100), Err(Errno::INVAL), "overlapping");
    assert_eq!(copy(200 * KIB, 0, 100), Ok(0), "behind the end");
    assert_eq!(copy(90 * KIB, 300 * KIB, 1 << 20), Ok(10 << 10), "up to the end");
    let mut wanted = bytes.clone();
    wanted.resize(300 << 10, 0);
    wanted.extend_from_slice(&bytes[90 << 10..]);
    assert!(fs::read(&path).expect("read") == wanted);
    succeed(Command::new("cp").arg(&path).arg(path.with_file_name("g")));
    assert!(fs::read(path.with_file_name("g")).expect("read") == wanted);
}

/// Sizes that a replica's own file system could not hold are refused where they are asked for.
#[test]
fn files_have_a_largest_size() {
    let cluster = Cluster::up(1);
    let file = open(&cluster.mount(1).join("f"));
    let errno = |result: io::Result<()>| result.expect_err("too large").raw_os_error();
    assert_eq!(errno(file.set_len(1 << 44)), Some(libc::EFBIG));
    assert_eq!(errno(file.write_all_at(b"x", (1 << 44) - 4096)), Some(libc::EFBIG));
    file.set_len((1 << 44) - 4096).expect("the largest");
    file.write_all_at(b"x", (1 << 44) - 4097).expect("its last byte");
    file.sync_all().expect("fsync");
    file.set_len(0).expect("truncate");
}

/// The program fsx of the crate of that name.
fn fsx() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo/bin"));
    let tools = std::env::var_os("QUORUMFS_TOOLS").map(PathBuf::from);
    let named = tools.into_iter().flat_map(|tools| [tools.join("bin"), tools]);
    let mut dirs = named.chain(std::env::split_paths(&path)).chain(home);
    dirs.find_map(|dir| Some(dir.join("fsx")).filter(|fsx| fsx.is_file())).expect(
        "fsx is neither in $QUORUMFS_TOOLS nor in PATH nor in ~/.cargo/bin: run `cargo install fsx`",
    )
}

/// Reads, writes, mappings, truncations, holes, reservations and copies in random order, each read
/// checked: `cargo install fsx`, then `scripts/test --long fsx`. `QUORUMFS_FSX_OPS` is how many.
#[test]
#[ignore = "needs the program fsx, and many minutes"]
fn fsx_finds_nothing() {
    let config = "flen = 262144\n[weights]\nclose_open = 1\ninvalidate = 1\nmapread = 1\n\
        mapwrite = 1\nread = 1\nwrite = 1\ntruncate = 1\nfsync = 1\nfdatasync = 1\n\
        posix_fallocate = 1\npunch_hole = 1\nsendfile = 1\nposix_fadvise = 1\ncopy_file_range = 1\n";
    let cluster = Cluster::up(3);
    let file = cluster.dir().join("fsx.toml");
    fs::write(&file, config).expect("write");
    let operations = std::env::var("QUORUMFS_FSX_OPS").unwrap_or_else(|_| "200000".to_owned());
    let mut fsx = Command::new(fsx());
    fsx.arg("-f").arg(&file).args(["-N", &operations, "-S", "20261124", "-P"]);
    let output = fsx.arg(cluster.dir()).arg(cluster.mount(1).join("f")).output().expect("fsx");
    let said = support::text(&output.stderr) + &support::text(&output.stdout);
    assert!(output.status.success(), "{said}");
    cluster.settle();
    let bytes = fs::read(cluster.mount(1).join("f")).expect("read");
    assert!(fs::read(cluster.mount(2).join("f")).expect("read") == bytes, "elsewhere");
}

/// A change of a file of at most 256 KiB.
#[derive(Clone, Copy, Debug)]
enum Change {
    Write(u64, u64, u64),
    Truncate(u64),
    Allocate(FallocateFlags, u64, u64),
    Copy(u64, u64, u64),
}

impl Change {
    /// Drawn from a sequence (Knuth, MMIX).
    fn draw(state: &mut u64) -> Self {
        const END: u64 = 256 * KIB;
        let mut below = |limit: u64| {
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (*state >> 33) % limit
        };
        let (at, len) = (below(END), 1 + below(64 * KIB));
        let len = len.min(END - at);
        match below(8) {
            0..=2 => Self::Write(at, len, below(200)),
            3 => Self::Truncate(at),
            4 => Self::Allocate(PUNCH, at, len),
            5 => Self::Allocate(FallocateFlags::ZERO_RANGE, at, len),
            6 => Self::Allocate(FallocateFlags::empty(), at, len),
            _ => Self::Copy(at, below(END - len + 1), len),
        }
    }

    /// Makes it; answers what the calls said.
    fn make(self, file: &File) -> Result<u64, Errno> {
        match self {
            Self::Write(at, len, seed) => {
                file.write_all_at(&pattern(seed, len), at).expect("write");
                Ok(0)
            }
            Self::Truncate(size) => {
                file.set_len(size).expect("truncate");
                Ok(0)
            }
            Self::Allocate(mode, at, len) => fallocate(file, mode, at, len).map(|()| 0),
            Self::Copy(mut from, mut to, len) => {
                let len = usize::try_from(len).expect("small");
                // As whoever copies does: the kernel stops at the size that it knows, and an OPEN says none.
                file.metadata().expect("fstat");
                let copied = copy_file_range(file, Some(&mut from), file, Some(&mut to), len);
                copied.map(|copied| copied as u64)
            }
        }
    }
}

/// Changes a file on one mount or the other, closes it, and looks at it on any.
fn take_turns(changes: u32, seed: u64) {
    let cluster = Cluster::up(3);
    let local = cluster.dir().join("local");
    let mut state = seed;
    for number in 0..changes {
        let change = Change::draw(&mut state);
        let path = cluster.mount(1 + (state >> 40) % 2).join("f");
        let done = change.make(&open(&path));
        assert_eq!(done, change.make(&open(&local)), "{number}: {change:?}");
        let seen = cluster.mount(1 + (state >> 50) % 3).join("f");
        let (found, wanted) = (fs::read(&seen).expect("read"), fs::read(&local).expect("read"));
        let differs = found.iter().zip(&wanted).position(|(one, other)| one != other);
        assert!(
            found == wanted,
            "change {number} of seed {seed}, {change:?}: {} bytes instead of {}, first other at {differs:?}",
            found.len(),
            wanted.len()
        );
    }
}

#[test]
fn mounts_that_take_turns_are_like_one_local_file() {
    take_turns(500, 1);
}

#[test]
#[ignore = "takes minutes"]
fn mounts_that_take_many_turns_are_like_one_local_file() {
    take_turns(20_000, 2);
}
