//! Real daemons, real mounts: what one mount did is what the others see, whoever dies.
#![allow(clippy::disallowed_methods, reason = "writers are threads")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use support::{Cluster, PATIENCE, wait_until, write_and_close, write_and_sync};

#[test]
fn what_one_mount_writes_the_others_read() {
    let cluster = Cluster::up(3);
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    fs::create_dir(cluster.mount(1).join("dir")).expect("mkdir");
    write_and_close(&cluster.mount(1).join("dir/file"), &bytes).expect("write");
    for node in [2, 3] {
        let path = cluster.mount(node).join("dir/file");
        assert_eq!(fs::read(&path).expect("read"), bytes, "mount {node}");
    }
    fs::rename(cluster.mount(2).join("dir/file"), cluster.mount(2).join("moved")).expect("rename");
    fs::remove_dir(cluster.mount(3).join("dir")).expect("rmdir");
    assert_eq!(names(&cluster.mount(1)), ["moved"]);
}

#[test]
fn a_cluster_that_went_down_comes_up_with_its_data() {
    let cluster = Cluster::up(3);
    write_and_close(&cluster.mount(2).join("kept"), b"kept").expect("write");
    cluster.down();
    assert_eq!(names(&cluster.mount(2)), Vec::<String>::new(), "still mounted");
    cluster.down();
    cluster.up_again();
    for node in 1..=3 {
        assert_eq!(fs::read(cluster.mount(node).join("kept")).expect("read"), b"kept");
    }
}

#[test]
fn the_others_go_on_when_the_leader_dies_and_it_catches_up() {
    let cluster = Cluster::up(3);
    let writer = cluster.follower();
    let dead = cluster.leader();
    cluster.kill(dead, "KILL");
    for number in 0..50 {
        let path = cluster.mount(writer).join(format!("f{number}"));
        write_and_close(&path, b"x").expect("the mount goes on by itself");
    }
    cluster.start(dead);
    cluster.settle();
    assert_eq!(names(&cluster.mount(dead)).len(), 50);
}

/// Must-show 2: a strong read misses nothing that was acknowledged on another mount.
#[test]
fn reads_elsewhere_see_what_was_acknowledged() {
    coherence(200);
}

#[test]
#[ignore = "long"]
fn reads_elsewhere_see_what_was_acknowledged_long() {
    coherence(2_000);
}

fn coherence(rounds: usize) {
    let cluster = Cluster::up(3);
    for round in 0..rounds {
        let here = cluster.mount(1 + round as u64 % 3);
        let there = cluster.mount(1 + (round as u64 + 1) % 3);
        let (old, new) = (format!("old{}", round % 7), format!("new{}", round % 7));

        let first = format!("created in round {round}");
        write_and_close(&here.join(&old), first.as_bytes()).expect("create");
        assert_reads(&there.join(&old), &first, round);

        let second = format!("and overwritten in round {round} with something longer");
        write_and_close(&here.join(&old), second.as_bytes()).expect("overwrite");
        assert_reads(&there.join(&old), &second, round);

        fs::rename(here.join(&old), here.join(&new)).expect("rename");
        assert_absent(&there.join(&old), round);
        assert_reads(&there.join(&new), &second, round);

        fs::remove_file(here.join(&new)).expect("unlink");
        assert_absent(&there.join(&new), round);
    }
}

fn assert_reads(path: &Path, wanted: &str, round: usize) {
    let size = fs::metadata(path).unwrap_or_else(|error| panic!("round {round}: stat: {error}"));
    assert_eq!(size.len(), wanted.len() as u64, "round {round}: size");
    assert_eq!(fs::read_to_string(path).expect("read"), wanted, "round {round}: bytes");
}

fn assert_absent(path: &Path, round: usize) {
    let error = fs::symlink_metadata(path).expect_err("the name is gone");
    assert_eq!(error.kind(), io::ErrorKind::NotFound, "round {round}");
}

/// A reader that saw something on one mount, then a reader that starts later on another.
#[test]
fn what_a_reader_saw_later_readers_see() {
    let cluster = Cluster::up(3);
    let (writer, first, second) =
        (cluster.mount(1).join("n"), cluster.mount(2).join("n"), cluster.mount(3).join("n"));
    write_and_close(&writer, b"").expect("create");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let appends = scope.spawn(|| {
            // Sizes are attributes: linearizable, so they never go back.
            let result = (1..=300).try_for_each(|size| {
                fs::OpenOptions::new().write(true).open(&writer)?.set_len(size)
            });
            done.store(true, Ordering::Release);
            result
        });
        while !done.load(Ordering::Acquire) {
            let seen = fs::metadata(&first).expect("stat").len();
            let later = fs::metadata(&second).expect("stat").len();
            assert!(later >= seen, "{seen} bytes were seen, then {later}");
        }
        appends.join().expect("no panic").expect("truncate");
    });
}

/// Each mount's kernel holds the directory while it waits for the other: nobody may need that lock.
#[test]
fn two_mounts_create_in_one_directory_without_deadlock_or_loss() {
    create_together(1_000);
}

#[test]
#[ignore = "long"]
fn two_mounts_create_in_one_directory_without_deadlock_or_loss_long() {
    create_together(10_000);
}

fn create_together(files: usize) {
    let cluster = Cluster::up(3);
    fs::create_dir(cluster.mount(3).join("dir")).expect("mkdir");
    thread::scope(|scope| {
        for node in [1, 2] {
            let dir = cluster.mount(node).join("dir");
            scope.spawn(move || {
                for number in 0..files {
                    write_and_close(&dir.join(format!("n{node}-{number}")), b"").expect("create");
                }
            });
        }
    });
    let wanted: BTreeSet<_> =
        [1, 2].iter().flat_map(|node| (0..files).map(move |i| format!("n{node}-{i}"))).collect();
    for node in 1..=3 {
        let found: BTreeSet<_> = names(&cluster.mount(node).join("dir")).into_iter().collect();
        assert!(found == wanted, "mount {node} lists {} of {}", found.len(), wanted.len());
    }
}

/// Must-show 3: what was fsynced is there after every daemon was killed at once.
#[test]
fn what_was_synced_survives_the_death_of_all() {
    kill_everybody(3);
}

#[test]
#[ignore = "long"]
fn what_was_synced_survives_the_death_of_all_long() {
    kill_everybody(50);
}

fn kill_everybody(rounds: usize) {
    let cluster = Cluster::up(3);
    let mut synced: Vec<(String, Vec<u8>)> = Vec::new();
    for round in 0..rounds {
        let progress = std::sync::Mutex::new(Vec::new());
        thread::scope(|scope| {
            for node in 1..=3 {
                let (cluster, progress) = (&cluster, &progress);
                scope.spawn(move || write_until_it_fails(cluster, round, node, progress));
            }
            wait_until(PATIENCE, "some writes", || {
                (progress.lock().expect("no panic").len() >= 60).then_some(())
            });
            for node in 1..=3 {
                cluster.kill(node, "KILL");
            }
        });
        synced.extend(progress.into_inner().expect("no panic"));
        cluster.up_again();
        for node in 1..=3 {
            for (name, bytes) in &synced {
                let found = fs::read(cluster.mount(node).join(name));
                let found = found.unwrap_or_else(|error| panic!("round {round}: {name}: {error}"));
                assert!(found == *bytes, "round {round}: {name} differs on mount {node}");
            }
        }
    }
}

/// Notes each file once its fsync has returned; ends when its daemon is dead.
fn write_until_it_fails(
    cluster: &Cluster,
    round: usize,
    node: u64,
    progress: &std::sync::Mutex<Vec<(String, Vec<u8>)>>,
) {
    for number in 0.. {
        let name = format!("r{round}-n{node}-{number}");
        let bytes = name.repeat(1 + number % 97).into_bytes();
        if write_and_sync(&cluster.mount(node).join(&name), &bytes).is_err() {
            return;
        }
        progress.lock().expect("no panic").push((name, bytes));
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("readdir").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}
