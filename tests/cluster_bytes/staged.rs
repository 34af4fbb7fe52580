//! Many bytes at once, which travel beside the log: in stages.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::support::python::Python;
use super::support::{Cluster, PATIENCE, succeed, wait_until};
use super::{assert_bytes, content, open, pattern};

const MIB: usize = 1 << 20;

/// Bytes that the log of a node holds.
fn log_bytes(cluster: &Cluster, node: u64) -> u64 {
    let dir = cluster.dir().join(format!("n{node}/data/log"));
    let entries = fs::read_dir(dir).expect("the log");
    entries.map(|entry| entry.expect("readdir").metadata().expect("stat").blocks() * 512).sum()
}

/// All backing files of an inode come to these bytes.
pub(super) fn assert_backing(cluster: &Cluster, path: &Path, wanted: &[u8]) {
    let ino = fs::metadata(path).expect("stat").ino();
    wait_until(PATIENCE, "all replicas to have the bytes", || {
        let files = cluster.backing_files(ino);
        let have = |file: &Path| fs::read(file).is_ok_and(|bytes| bytes == wanted);
        (files.len() == 3 && files.iter().all(|file| have(file))).then_some(())
    });
}

/// Read on the mount that writes them, while it does; and on the others once the file is closed.
#[test]
fn large_files_are_whole_everywhere() {
    let cluster = Cluster::up(3);
    let before = log_bytes(&cluster, 1);
    let [here, there, yonder] = [1, 2, 3].map(|node| cluster.mount(node).join("large"));
    let wanted = pattern(1, 40 * MIB + 12_345);
    let mut file = open(&here, 0);
    for (round, part) in wanted.chunks(MIB + 4321).enumerate() {
        file.write_all(part).expect("write");
        if round % 7 == 0 {
            let end = file.metadata().expect("fstat").len();
            let mut last = vec![0; part.len()];
            file.read_exact_at(&mut last, end - part.len() as u64).expect("read");
            assert_bytes(&last, part, "before it is closed");
        }
    }
    assert_bytes(&content(&file), &wanted, "before it is closed");
    drop(file);
    for mount in [&there, &yonder, &here] {
        assert_bytes(&fs::read(mount).expect("read"), &wanted, "after it was closed");
    }
    assert_backing(&cluster, &here, &wanted);
    let grown = log_bytes(&cluster, 1) - before;
    assert!(grown < 4 << 20, "{grown} bytes went through the log");
}

/// Programs that look for holes find bytes that were just closed, wherever they are: cp copies all of them.
#[test]
fn what_was_just_closed_has_no_holes() {
    let cluster = Cluster::up(3);
    for round in 0..6 {
        let name = format!("f{round}");
        let wanted = pattern(round, 12 * MIB + round);
        fs::write(cluster.mount(round as u64 % 3 + 1).join(&name), &wanted).expect("write");
        let dir = cluster.mount((round as u64 + 1) % 3 + 1);
        let metadata = fs::metadata(dir.join(&name)).expect("stat");
        assert!(metadata.blocks() * 512 >= wanted.len() as u64, "{} blocks", metadata.blocks());
        let copy = dir.join(format!("copy{round}"));
        succeed(Command::new("cp").arg("--reflink=never").arg(dir.join(&name)).arg(&copy));
        assert_bytes(&fs::read(&copy).expect("read"), &wanted, &format!("round {round}"));
    }
}

/// Large and small writes over each other, on three mounts in turn: the last one counts, everywhere.
#[test]
fn staged_and_inline_writes_overlap() {
    let cluster = Cluster::up(3);
    let mut wanted = vec![0; 6 * MIB];
    fs::write(cluster.mount(1).join("f"), &wanted).expect("write");
    for round in 0..60_usize {
        let path = cluster.mount(round as u64 % 3 + 1).join("f");
        let file = open(&path, 0);
        for part in 0..3 {
            let seed = round * 3 + part;
            let len = [100, 5000, 300_000, 2 * MIB][seed * 7 % 4] + seed;
            let at = seed * 1_234_567 % (wanted.len() - len);
            let bytes = pattern(seed, len);
            file.write_all_at(&bytes, at as u64).expect("write");
            wanted[at..at + len].copy_from_slice(&bytes);
        }
        if round % 5 == 0 {
            file.sync_all().expect("fsync");
        }
        if round % 11 == 10 {
            let size = wanted.len() - 200_000;
            file.set_len(size as u64).expect("truncate");
            wanted[size..].fill(0);
            file.set_len(wanted.len() as u64).expect("truncate");
        }
        drop(file);
        let other = cluster.mount((round as u64 + 1) % 3 + 1).join("f");
        assert_bytes(&fs::read(other).expect("read"), &wanted, &format!("round {round}"));
    }
    assert_backing(&cluster, &cluster.mount(1).join("f"), &wanted);
}

/// A node that was down gets what it lacks, at once what somebody reads there.
#[test]
fn a_node_that_was_down_fetches_what_it_lacks() {
    let cluster = Cluster::up(3);
    cluster.leader_beside(3);
    cluster.kill(3, "KILL");
    let files = [(1, 30 * MIB), (2, 200_000), (3, 5 * MIB + 1)];
    for (seed, len) in files {
        let path = cluster.mount(1).join(format!("file{seed}"));
        let mut file = File::create(&path).expect("create");
        file.write_all(&pattern(seed, len)).expect("write");
        file.sync_all().expect("fsync");
    }
    cluster.start(3);
    cluster.settle();
    for (seed, len) in files {
        let path = cluster.mount(3).join(format!("file{seed}"));
        assert_bytes(
            &fs::read(&path).expect("read"),
            &pattern(seed, len),
            "on the node that was down",
        );
        assert_backing(&cluster, &path, &pattern(seed, len));
    }
}

/// What was fsynced, and what was closed, is there after all daemons were killed, also where a program had only
/// begun to write.
#[test]
fn staged_bytes_survive_the_death_of_all_daemons() {
    let cluster = Cluster::up(3);
    let wanted = pattern(7, 9 * MIB);
    let mut synced = File::create(cluster.mount(1).join("synced")).expect("create");
    synced.write_all(&wanted).expect("write");
    synced.sync_all().expect("fsync");
    synced.write_all_at(&pattern(8, MIB), 3 << 20).expect("write");
    synced.sync_all().expect("fsync");
    fs::write(cluster.mount(2).join("closed"), &wanted).expect("write");
    // In a process of its own: starting another one here would flush the file.
    let mut python = Python::start("python3", &cluster.mount(3));
    python.does("f = open('begun', 'wb', buffering=0); f.write(bytes(9 << 20))");
    for node in 1..=3 {
        cluster.kill(node, "KILL");
    }
    drop((synced, python));
    cluster.up_again();
    cluster.settle();
    let mut overwritten = wanted.clone();
    overwritten[3 * MIB..4 * MIB].copy_from_slice(&pattern(8, MIB));
    for node in 1..=3 {
        let mount = cluster.mount(node);
        assert_bytes(&fs::read(mount.join("synced")).expect("read"), &overwritten, "synced");
        assert_bytes(&fs::read(mount.join("closed")).expect("read"), &wanted, "closed");
        assert_eq!(fs::metadata(mount.join("begun")).expect("stat").len(), 0);
    }
    assert_backing(&cluster, &cluster.mount(1).join("synced"), &overwritten);
    // What the killed sessions had staged goes with them.
    for node in 1..=3 {
        let fresh = cluster.dir().join(format!("n{node}/data/stages/new"));
        wait_until(PATIENCE + Duration::from_secs(10), "no stage without a session", || {
            (fs::read_dir(&fresh).expect("stages").count() == 0).then_some(())
        });
    }
}
