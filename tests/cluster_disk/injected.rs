//! System calls on one replica's files that fail: of its log, which stops just that replica; of files' bytes, which are
//! missing there until they have been fetched.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::daemon::{Failing, data, ends, files_like, pid_of, until_gone};
use super::pattern;
use super::support::{
    Cluster, PATIENCE, quorumfs, succeed, text, wait_until, write_and_close, write_and_sync,
};

/// What two nodes of three must not be held up for: an election, and a session's time-out on top.
const LONGEST: Duration = Duration::from_secs(10);

/// A program on a mount that writes and fsyncs all the time, while something is done. Answers how often it did, and how
/// long it had to wait at most.
fn while_writing(mount: &Path, name: &str, work: impl FnOnce()) -> (u64, Duration) {
    let path = mount.join(name);
    let file = File::options().create(true).truncate(false).write(true).open(path).expect("open");
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut written, mut longest) = (0_u64, Duration::ZERO);
            while !is_done.load(Ordering::Acquire) {
                let began = Instant::now();
                file.write_all_at(&written.to_le_bytes(), written * 8).expect("write");
                file.sync_data().expect("two are a quorum");
                longest = longest.max(began.elapsed());
                written += 1;
            }
            (written, longest)
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        is_done.store(true, Ordering::Release);
        let written = writer.join().expect("the writer's assertions hold");
        if let Err(panic) = worked {
            std::panic::resume_unwind(panic);
        }
        written
    })
}

/// All that a writer wrote.
fn assert_written(cluster: &Cluster, name: &str, written: u64) {
    let wanted: Vec<u8> = (0..written).flat_map(u64::to_le_bytes).collect();
    for node in 1..=3 {
        let found = fs::read(cluster.mount(node).join(name)).expect("read");
        assert!(found == wanted, "{} bytes on node {node}, not {}", found.len(), wanted.len());
    }
}

/// Calls on the log of a node fail; its daemon is to end, and to go on where it was when it is started again.
fn the_log_fails(cluster: &Cluster, node: u64, calls: &str, error: &str) {
    let other = (1..=3).find(|other| *other != node).expect("there are two");
    let name = format!("{node}-{calls}-{error}");
    let pid = pid_of(cluster, node);
    let before = ends(cluster, node).lines().count();
    let (written, longest) = while_writing(&cluster.mount(other), &name, || {
        let log = files_like(&data(cluster, node).join("log"), ".raftlog");
        let failing = Failing::inject(pid, calls, error, &log);
        until_gone(pid);
        drop(failing);
        cluster.leader_other_than(node);
    });
    println!("{name}: {written} writes, the longest took {longest:?}");
    assert!(longest < LONGEST, "{name}: it took {longest:?} to go on");
    let ends = ends(cluster, node);
    assert_eq!(ends.lines().count(), before + 1, "{ends}");
    let last = ends.lines().last().expect("one");
    assert!(last.contains("failed") && last.contains("the Raft log"), "{last}");
    cluster.start(node);
    cluster.settle();
    assert_written(cluster, &name, written);
}

#[test]
fn a_failed_fsync_of_the_log_stops_just_that_replica() {
    let cluster = Cluster::up(3);
    let follower = cluster.follower();
    the_log_fails(&cluster, follower, "fdatasync", "EIO");
    let leader = cluster.leader();
    the_log_fails(&cluster, leader, "fdatasync", "EIO");
}

#[test]
#[ignore = "long"]
fn a_log_that_cannot_be_written_stops_just_that_replica() {
    let cluster = Cluster::up(3);
    // Where one of its files has no room, raft-engine writes to another one: a full disk has a test of its own.
    for (calls, error) in [("pwrite64", "EIO"), ("fdatasync", "ENOSPC")] {
        for of_leader in [false, true] {
            let node = if of_leader { cluster.leader() } else { cluster.follower() };
            the_log_fails(&cluster, node, calls, error);
        }
        for node in 1..=3 {
            let _ = fs::remove_file(data(&cluster, node).join("ends"));
        }
    }
}

fn missing_here(cluster: &Cluster, node: u64) -> u64 {
    let address = cluster.address(node);
    let output = succeed(quorumfs().args(["status", "--json", "--addr", &address]));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    status["missing"]["bytes"].as_u64().expect("a number")
}

/// The backing file of an inode on one node, once there is one.
fn backing(cluster: &Cluster, node: u64, ino: u64) -> PathBuf {
    let own = cluster.dir().join(format!("n{node}"));
    wait_until(PATIENCE, "a backing file", || {
        cluster.backing_files(ino).into_iter().find(|file| file.starts_with(&own))
    })
}

/// A backing file that takes nothing in for a while: what was written meanwhile is missing there, read by way of the
/// others, and fetched when the disk is well again. The replica goes on.
#[test]
#[ignore = "long"]
fn bytes_that_the_disk_refuses_are_missing_and_fetched() {
    let cluster = Cluster::up(3);
    let node = cluster.follower();
    let other = (1..=3).find(|other| *other != node).expect("there are two");
    let path = cluster.mount(other).join("file");
    write_and_sync(&path, &pattern(1, 4000)).expect("write");
    let ino = fs::metadata(&path).expect("stat").ino();
    let file = backing(&cluster, node, ino).canonicalize().expect("it is there");
    cluster.settle();
    let pid = pid_of(&cluster, node);
    let wanted = pattern(2, 9000);
    let failing =
        Failing::inject(pid, "pwrite64,copy_file_range", "EIO", std::slice::from_ref(&file));
    let open = File::options().write(true).open(&path).expect("open");
    open.write_all_at(&wanted, 0).and_then(|()| open.sync_all()).expect("two are a quorum");
    wait_until(PATIENCE, "bytes to be missing", || {
        (missing_here(&cluster, node) > 0).then_some(())
    });
    assert!(fs::read(cluster.mount(node).join("file")).expect("by way of the others") == wanted);
    drop(failing);
    wait_until(PATIENCE, "all to be there", || (missing_here(&cluster, node) == 0).then_some(()));
    wait_until(PATIENCE, "its bytes", || (fs::read(&file).expect("read") == wanted).then_some(()));
    assert_eq!(pid_of(&cluster, node), pid, "it goes on");
    cluster.settle();
}

/// The bytes of a backing file that cannot be read come from the others.
#[test]
#[ignore = "long"]
fn bytes_that_the_disk_cannot_read_are_fetched() {
    let cluster = Cluster::up(3);
    let node = cluster.follower();
    let wanted = pattern(5, 300_000);
    let path = cluster.mount(node).join("file");
    write_and_sync(&path, &wanted).expect("write");
    let ino = fs::metadata(&path).expect("stat").ino();
    let file = backing(&cluster, node, ino).canonicalize().expect("it is there");
    cluster.settle();
    // So that nothing is in a cache of the mount, or is read by the kernel itself.
    let pid = pid_of(&cluster, node);
    let failing = Failing::inject(pid, "pread64,preadv2", "EIO", &[file]);
    let other = (1..=3).find(|other| *other != node).expect("there are two");
    fs::write("/proc/sys/vm/drop_caches", "1").expect("root");
    let found = fs::read(cluster.mount(node).join("file"));
    drop(failing);
    assert!(found.expect("by way of the others") == wanted);
    assert!(fs::read(cluster.mount(other).join("file")).expect("read") == wanted);
    assert_eq!(pid_of(&cluster, node), pid, "it goes on");
    wait_until(PATIENCE, "all to be there", || (missing_here(&cluster, node) == 0).then_some(()));
}

/// An fsync of files' bytes that fails stops the replica: nothing says what was lost, and the next one would succeed.
#[test]
#[ignore = "long"]
fn a_failed_sync_of_bytes_stops_just_that_replica() {
    let cluster = Cluster::up(3);
    let node = cluster.follower();
    let other = (1..=3).find(|other| *other != node).expect("there are two");
    let pid = pid_of(&cluster, node);
    let files = data(&cluster, node).join("files");
    let failing = Failing::inject(pid, "syncfs", "EIO", &[files]);
    let path = cluster.mount(other).join("file");
    let wanted = pattern(7, 3 << 20);
    fs::write(&path, &wanted).expect("write");
    until_gone(pid);
    drop(failing);
    let ends = ends(&cluster, node);
    assert!(ends.contains("failed") && ends.contains("cannot sync"), "{ends}");
    write_and_sync(&cluster.mount(other).join("after"), b"after").expect("two are a quorum");
    cluster.start(node);
    cluster.settle();
    assert!(fs::read(cluster.mount(node).join("file")).expect("read") == wanted);
    let ino = fs::metadata(&path).expect("stat").ino();
    let file = backing(&cluster, node, ino);
    wait_until(PATIENCE, "its bytes", || (fs::read(&file).ok()? == wanted).then_some(()));
    println!("{}", text(ends.as_bytes()));
}

/// The kernel says once that bytes are lost, and the next fsync succeeds. A program is not told then that they are on the
/// disks of a quorum: here two nodes are one.
#[test]
fn an_fsync_that_has_failed_is_not_asked_for_again() {
    let cluster = Cluster::up(3);
    let node = cluster.follower();
    let other = cluster.leader();
    let third = 6 - node - other;
    cluster.kill(third, "KILL");
    let path = cluster.mount(other).join("file");
    write_and_close(&path, &pattern(1, 300_000)).expect("write");
    let ino = fs::metadata(&path).expect("stat").ino();
    let file = backing(&cluster, node, ino).canonicalize().expect("it is there");
    let pid = pid_of(&cluster, node);
    let failing = Failing::inject_once(pid, "fdatasync", "EIO", &[file]);
    // It is in memory on both: bytes that are closed need no more. The backing file stays the same one.
    let wanted = pattern(2, 300_000);
    let open = File::options().write(true).open(&path).expect("open");
    open.write_all_at(&wanted, 0).expect("write");
    drop(open);
    let is_synced = AtomicBool::new(false);
    thread::scope(|scope| {
        let syncing = scope.spawn(|| {
            let synced = File::options().write(true).open(&path).and_then(|file| file.sync_all());
            is_synced.store(true, Ordering::Release);
            synced
        });
        until_gone(pid);
        let too_early = is_synced.load(Ordering::Acquire);
        drop(failing);
        cluster.start(node);
        cluster.start(third);
        syncing.join().expect("no panic").expect("there is a quorum again");
        assert!(!too_early, "fsync has returned, and one of two nodes has lost bytes");
    });
    let ends = ends(&cluster, node);
    assert!(ends.contains("failed") && ends.contains("cannot sync"), "{ends}");
    cluster.settle();
    for node in 1..=3 {
        assert!(fs::read(cluster.mount(node).join("file")).expect("read") == wanted, "{node}");
    }
}

/// What fails between the signal and the end is no clean end: the next start believes only what is durable.
#[test]
fn a_failed_sync_at_the_end_is_not_forgotten() {
    let cluster = Cluster::up(3);
    let node = cluster.follower();
    write_and_sync(&cluster.mount(node).join("file"), b"synced").expect("write");
    cluster.settle();
    let (pid, data) = (pid_of(&cluster, node), data(&cluster, node));
    let failing = Failing::inject_once(pid, "syncfs", "EIO", &[data.join("files")]);
    cluster.kill(node, "TERM");
    until_gone(pid);
    drop(failing);
    let ends = ends(&cluster, node);
    assert!(ends.contains("failed") && ends.contains("cannot sync"), "{ends}");
    assert!(!data.join("boot").exists(), "the state would be believed");
    cluster.start(node);
    cluster.settle();
    assert_eq!(fs::read(cluster.mount(node).join("file")).expect("read"), b"synced");
}
