//! Disks that are full, and disks that hang.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::{FallocateFlags, copy_file_range, fallocate};
use rustix::io::Errno;

use super::support::disk::{Frozen, SmallDisk};
use super::support::{self, Cluster, PATIENCE, succeed, wait_until, write_and_sync};
use super::{MIB, open, pattern};

/// Of a disk, where nobody says otherwise.
const RESERVE: u64 = 256 * MIB;

/// A cluster whose nodes have small disks and keep 48 MiB of them. A test that fails detaches the disks
/// before the daemons are stopped; one that does not stops the cluster first.
fn cluster_on_small_disks(nodes: u16, bytes: u64) -> (Cluster, Vec<SmallDisk>) {
    let mut disks = Vec::new();
    let cluster = Cluster::up_in(nodes, |dir| {
        for node in 1..=nodes {
            let node = dir.join(format!("n{node}"));
            disks.push(SmallDisk::mount(&node.join("data"), bytes));
        }
    });
    cluster.down();
    cluster.configure("reserve = \"48MiB\"\nsnapshot_min_log = \"8MiB\"\n");
    cluster.up_again();
    (cluster, disks)
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().expect("of the system")
}

/// Writes and syncs behind `from` MiB until there is no room; answers how many MiB are certainly there.
fn fill(file: &File, from: u64) -> u64 {
    for at in from..1024 {
        let mebibyte = pattern(at, MIB);
        let written = file.write_all_at(&mebibyte, at * MIB);
        if let Err(error) = written.and_then(|()| file.sync_all()) {
            assert_eq!(errno(&error), libc::ENOSPC, "{error}");
            return at;
        }
    }
    panic!("a gibibyte on a disk of less");
}

/// ENOSPC comes to whoever writes, not to the daemons; what was acknowledged is there; what was reserved
/// can be written; names go; and when there is room again, writing goes on.
#[test]
#[ignore = "long"]
fn full_disks_are_told_to_programs_and_harm_nobody() {
    const RESERVED: u64 = 8 * MIB;
    let (cluster, _disks) = cluster_on_small_disks(3, 320 * MIB);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    let reserved = open(&here.join("reserved"));
    fallocate(&reserved, FallocateFlags::empty(), 0, RESERVED).expect("there is room");
    // Also a new name needs room.
    let mapped = open(&here.join("mapped"));
    let file = open(&here.join("big"));
    let mut full = 0;
    // Room that was taken lately counts as gone for a moment, until the disks have been looked at.
    let space = wait_until(PATIENCE, "the disks to be full", || {
        let before = full;
        full = fill(&file, full);
        let space = rustix::fs::statvfs(&here).expect("statvfs");
        (full == before && space.f_bavail * 4096 <= 8 * MIB).then_some(space)
    });
    assert!(full >= 16, "{full} MiB fit");
    drop(file);

    assert_eq!((space.f_bsize, space.f_frsize), (4096, 4096));
    assert!(space.f_blocks * 4096 < 320 * MIB - 48 * MIB);
    assert!(space.f_ffree > 1 << 60, "inode numbers do not run out");

    // Others are told so too, also who asks for space in other ways.
    let other = open(&there.join("reserved"));
    let too_much = fallocate(&other, FallocateFlags::empty(), RESERVED, 64 * MIB);
    assert_eq!(too_much, Err(Errno::NOSPC));
    let mut end = RESERVED;
    let copied = copy_file_range(open(&there.join("big")), None, &other, Some(&mut end), 1 << 26);
    assert!(matches!(copied, Err(Errno::NOSPC) | Ok(..=0x80_0000)), "{copied:?}");
    // Mapped pages meet the full disks when they are written back: msync says so.
    mapped.set_len(16 * MIB).expect("a hole needs no room");
    let program = "import mmap, os, sys\n\
        memory = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0)\n\
        memory[:] = b'x' * len(memory)\n\
        try: memory.flush()\n\
        except OSError as error: print(error.errno)";
    let path = here.join("mapped");
    let said = succeed(Command::new("python3").args(["-c", program]).arg(path)).stdout;
    assert_eq!(support::text(&said).trim(), libc::ENOSPC.to_string());
    drop(mapped);
    wait_until(PATIENCE, "the pages to go that nobody else will see", || {
        let bytes = fs::read(there.join("mapped")).expect("read");
        assert!(bytes.contains(&0), "not all of it was written");
        (fs::read(here.join("mapped")).expect("read") == bytes).then_some(())
    });
    // What was reserved can be written, whoever does it.
    for at in 0..RESERVED / MIB {
        let writer = if at % 2 == 0 { &reserved } else { &other };
        writer.write_all_at(&pattern(at, MIB), at * MIB).expect("it was reserved");
        writer.sync_all().expect("it was reserved");
    }
    drop((reserved, other));
    cluster.settle();
    for node in 1..=3 {
        let mount = cluster.mount(node);
        let (big, reserved) = (open(&mount.join("big")), open(&mount.join("reserved")));
        for (file, mebibytes) in [(&big, full), (&reserved, RESERVED / MIB)] {
            for at in 0..mebibytes {
                let mut bytes = vec![0; 1 << 20];
                file.read_exact_at(&mut bytes, at * MIB).expect("read");
                assert!(bytes == pattern(at, MIB), "MiB {at} on node {node}");
            }
        }
    }

    open(&there.join("big")).set_len(0).expect("truncation needs no room");
    fs::remove_file(here.join("reserved")).expect("nor does unlink");
    wait_until(PATIENCE, "room", || write_and_sync(&here.join("after"), b"goes on").ok());
    assert_eq!(fs::read(there.join("after")).expect("read"), b"goes on");
    cluster.down();
}

/// A replica whose own disk is down to its reserve goes on without new bytes, through its own mount, too: the others
/// have them. With room they come.
#[test]
fn a_replica_without_room_lacks_new_bytes_until_there_is_some() {
    let mut disk = None;
    let cluster = Cluster::up_in(3, |dir| {
        disk = Some(SmallDisk::mount(&dir.join("n3/data"), 512 * MIB));
    });
    let (here, there) = (cluster.mount(1), cluster.mount(3));
    let before = pattern(0, MIB);
    fs::write(here.join("before"), &before).expect("write");
    let ballast = disk.as_ref().expect("mounted").path().join("something-else");
    let room = rustix::fs::statvfs(ballast.parent().expect("a directory")).expect("statvfs");
    let taken = (room.f_bavail * room.f_frsize).saturating_sub(RESERVE / 2);
    fallocate(open(&ballast), FallocateFlags::empty(), 0, taken).expect("there is room");
    let status = || {
        let output =
            support::succeed(support::quorumfs().args(["status", "--addr", &cluster.address(3)]));
        support::text(&output.stdout)
    };
    wait_until(PATIENCE, "node 3 to see it", || status().contains("its reserve").then_some(()));
    // By whom, and how much: in the log, and beside it.
    let writes = [(&here, 3000), (&there, 3000), (&here, 9 * MIB + 5), (&there, 20 * MIB + 7)];
    for (number, (mount, len)) in writes.iter().enumerate() {
        let path = mount.join(format!("f{number}"));
        let bytes = pattern(number as u64 + 1, *len);
        let mut file = File::create(&path).expect("a quorum has room");
        for part in bytes.chunks(300_000) {
            file.write_all(part).expect("a quorum has room");
        }
        assert!(fs::read(&path).expect("read") == bytes, "f{number}, while it is open");
        file.sync_all().expect("a quorum has room");
        drop(file);
        for mount in [&here, &there] {
            let found = fs::read(mount.join(format!("f{number}"))).expect("read");
            assert!(found == bytes, "f{number}, in {}", mount.display());
        }
    }
    // What has its space needs none.
    open(&there.join("before")).write_all_at(b"over", 9).expect("write");
    let room = rustix::fs::statvfs(ballast.parent().expect("a directory")).expect("statvfs");
    let left = room.f_bavail * room.f_frsize;
    assert!(left > RESERVE / 4, "the reserve is for the log and snapshots: {left} are left");

    fs::remove_file(ballast).expect("unlink");
    wait_until(PATIENCE, "node 3 to have everything", || {
        let status = status();
        (!status.contains("its reserve") && !status.contains("missing here")).then_some(())
    });
    cluster.settle();
    for (number, (_, len)) in writes.iter().enumerate() {
        let ino = fs::metadata(here.join(format!("f{number}"))).expect("stat").ino();
        let wanted = pattern(number as u64 + 1, *len);
        let files = cluster.backing_files(ino);
        assert_eq!(files.len(), 3);
        for file in files {
            assert!(fs::read(&file).expect("read") == wanted, "{}", file.display());
        }
    }
    cluster.down();
    drop(disk);
}

/// More than fits on its way to a peer is written while a follower's disk takes nothing: by a program, and by another
/// after it. The others are a quorum. When the disk is well again it gets what it lacks.
#[test]
fn a_disk_that_hangs_fails_nobody_elses_writes() {
    const FILES: u64 = 3;
    const LEN: u64 = 160 * MIB;
    let mut disk = None;
    let cluster = Cluster::up_in(3, |dir| {
        disk = Some(SmallDisk::mount(&dir.join("n3/data"), 1024 * MIB));
    });
    let disk = disk.expect("mounted");
    if cluster.leader() == 3 {
        cluster.kill(3, "KILL");
        cluster.leader_other_than(3);
        cluster.start(3);
        cluster.settle();
    }
    let mounts = [cluster.mount(1), cluster.mount(2)];
    let path = |mount: &Path, number| mount.join(format!("f{number}"));
    let content = |number| pattern(number, LEN);
    let frozen = Frozen::freeze(&disk);
    for number in 0..FILES {
        let file = path(&mounts[usize::from(number % 2 == 1)], number);
        write_and_sync(&file, &content(number)).expect("the others are a quorum");
    }
    for number in 0..FILES {
        for mount in &mounts {
            assert!(fs::read(path(mount, number)).expect("read") == content(number), "f{number}");
        }
    }
    drop(frozen);
    let all_are_there = || {
        let status = succeed(support::quorumfs().args(["status", "--addr", &cluster.address(3)]));
        (!support::text(&status.stdout).contains("missing here")).then_some(())
    };
    cluster.settle();
    wait_until(PATIENCE, "node 3 to have everything", all_are_there);
    for number in 0..FILES {
        let ino = fs::metadata(path(&mounts[0], number)).expect("stat").ino();
        let files = cluster.backing_files(ino);
        assert_eq!(files.len(), 3);
        for file in files {
            assert!(fs::read(&file).expect("read") == content(number), "{}", file.display());
        }
    }
    cluster.down();
    drop(disk);
}

/// Leadership moves off a disk that does not answer, and the others say what is wrong.
#[test]
fn a_leader_whose_disk_hangs_hands_over() {
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);
    let (cluster, disks) = cluster_on_small_disks(3, 320 * MIB);
    let stuck = cluster.leader();
    let other = (1..=3).find(|node| *node != stuck).expect("there are two");
    let address = cluster.address(other);
    let file = open(&cluster.mount(other).join("file"));
    file.write_all_at(b"before", 0).and_then(|()| file.sync_all()).expect("all is well");
    let frozen = Frozen::freeze(&disks[usize::try_from(stuck).expect("small") - 1]);
    let began = std::time::Instant::now();
    let (mut written, mut longest) = (0, std::time::Duration::ZERO);
    while began.elapsed() < LIMIT {
        let since = std::time::Instant::now();
        file.write_all_at(b"meanwhile", 0)
            .and_then(|()| file.sync_all())
            .expect("two are a quorum");
        longest = longest.max(since.elapsed());
        written += 1;
    }
    println!("{written} writes, the longest took {longest:?}");
    assert!(longest < LIMIT, "it took {longest:?} to go on");
    assert_ne!(cluster.leader_other_than(stuck), stuck);
    let status = succeed(support::quorumfs().args(["status", "--addr", &address]));
    let status = support::text(&status.stdout);
    assert!(status.contains(&format!("the disk of node {stuck} has not done a write")), "{status}");
    // It says what it knows itself, and goes on talking to the others meanwhile.
    for _ in 0..5 {
        succeed(support::quorumfs().args(["status", "--addr", &cluster.address(stuck)]));
    }
    let seen = succeed(support::quorumfs().args(["status", "--json", "--addr", &address]));
    let seen: serde_json::Value = serde_json::from_slice(&seen.stdout).expect("JSON");
    let of_stuck = |member: &&serde_json::Value| member["node"] == stuck;
    let silent = seen["members"].as_array().expect("members").iter().find(of_stuck);
    let silent = silent.expect("it is one")["silent_ms"].as_u64().expect("a number");
    assert!(silent < 1000, "node {stuck} was silent for {silent} ms");
    drop(frozen);
    cluster.settle();
    assert_eq!(fs::read(cluster.mount(stuck).join("file")).expect("read"), b"meanwhile");
    cluster.down();
    drop(disks);
}
