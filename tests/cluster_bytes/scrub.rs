//! Disks that give back other bytes than they were given: what is found, and healed from the other replicas.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde::Deserialize;

use super::staged::assert_backing;
use super::support::{Cluster, PATIENCE, quorumfs, succeed, text, wait_until};
use super::{assert_bytes, open, pattern};

const MIB: usize = 1 << 20;
const BLOCK: u64 = 128 << 10;

/// A line of `scrub --json`.
#[derive(Debug, Deserialize)]
pub(super) struct Report {
    files: u64,
    files_total: u64,
    bytes: u64,
    bytes_total: u64,
    counted: bool,
    pub(super) found: u64,
    pub(super) healed: u64,
    pub(super) unhealed: u64,
    skipped: u64,
    unasked: Vec<u64>,
    finding: Option<Finding>,
    done: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct Finding {
    path: String,
    pub(super) offset: u64,
    pub(super) what: String,
    pub(super) healed: bool,
}

/// What a scrub came to.
#[derive(Debug)]
pub(super) struct Scrubbed {
    pub(super) success: bool,
    error: String,
    pub(super) findings: Vec<Finding>,
    pub(super) last: Report,
}

fn scrub(command: &mut Command) -> Scrubbed {
    let output = command.arg("--json").output().expect("the binary runs");
    let (printed, error) = (text(&output.stdout), text(&output.stderr));
    let lines = printed.lines().map(|line| serde_json::from_str(line).expect("a report"));
    let mut reports: Vec<Report> = lines.collect();
    let last = reports.pop().unwrap_or_else(|| panic!("no report: {error}"));
    assert!(last.done, "the last report says so: {last:?}, {error}");
    let findings = reports.into_iter().filter_map(|report| report.finding).collect();
    Scrubbed { success: output.status.success(), error, findings, last }
}

pub(super) fn scrub_path(path: &Path) -> Scrubbed {
    scrub(quorumfs().arg("scrub").arg(path))
}

fn scrub_all(cluster: &Cluster, node: u64) -> Scrubbed {
    scrub(quorumfs().args(["scrub", "--addr", &cluster.address(node)]))
}

#[track_caller]
pub(super) fn assert_well(scrubbed: &Scrubbed, rotten: u64) {
    let last = &scrubbed.last;
    assert!(scrubbed.success, "{scrubbed:?}");
    assert_eq!((last.found, last.healed, last.unhealed), (rotten, rotten, 0), "{scrubbed:?}");
    let healed = scrubbed.findings.iter().filter(|finding| finding.healed);
    assert_eq!(healed.count() as u64, rotten, "{scrubbed:?}");
}

/// The backing file of an inode on one node, once there is one.
pub(super) fn backing(cluster: &Cluster, node: u64, path: &Path) -> PathBuf {
    let ino = fs::metadata(path).expect("stat").ino();
    let own = cluster.dir().join(format!("n{node}"));
    wait_until(PATIENCE, "a backing file", || {
        cluster.backing_files(ino).into_iter().find(|file| file.starts_with(&own))
    })
}

/// Changes a byte behind the daemon's back.
pub(super) fn flip(file: &Path, at: u64, bits: u8) {
    let file = File::options().read(true).write(true).open(file).expect("the backing file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ bits], at).expect("write");
}

/// A file that all replicas have.
fn write(cluster: &Cluster, name: &str, bytes: &[u8]) -> PathBuf {
    let path = cluster.mount(1).join(name);
    fs::write(&path, bytes).expect("write");
    assert_backing(cluster, &path, bytes);
    path
}

/// On the node that is asked and on another one, before there are checksums and after; in a directory, in a
/// file by itself, and in everything.
#[test]
fn flipped_bits_are_healed() {
    let cluster = Cluster::up(3);
    fs::create_dir(cluster.mount(1).join("dir")).expect("mkdir");
    let wanted = pattern(1, MIB + 12_345);
    let path = write(&cluster, "dir/large", &wanted);
    let small = write(&cluster, "small", b"a few bytes");
    assert_well(&scrub_path(&cluster.mount(2).join("small")), 0);

    // Nobody knows anything of this file yet: the others decide. The last block is not whole.
    flip(&backing(&cluster, 2, &path), 3 * BLOCK + 77, 0x20);
    flip(&backing(&cluster, 2, &path), 8 * BLOCK + 1, 1);
    let scrubbed = scrub_path(&cluster.mount(2).join("dir"));
    assert_well(&scrubbed, 2);
    let mut places: Vec<_> =
        scrubbed.findings.iter().map(|f| (f.path.as_str(), f.offset)).collect();
    places.sort_unstable();
    assert_eq!(places, [("dir/large", 3 * BLOCK), ("dir/large", 8 * BLOCK)]);
    assert!(scrubbed.findings[0].what.contains("node 2"), "{scrubbed:?}");
    assert_backing(&cluster, &path, &wanted);
    let shown = fs::read(cluster.mount(2).join("dir/large")).expect("read");
    assert_bytes(&shown, &wanted, "after it was healed");

    // Now node 2 has checksums of it; node 3, which is not asked, has none.
    flip(&backing(&cluster, 2, &path), 5, 0x80);
    flip(&backing(&cluster, 3, &path), 4 * BLOCK, 0x80);
    flip(&backing(&cluster, 3, &small), 0, 1);
    let scrubbed = scrub_all(&cluster, 2);
    assert_well(&scrubbed, 3);
    let Report { files, files_total, bytes, bytes_total, counted, unasked, .. } = scrubbed.last;
    assert_eq!((files, bytes), (2, wanted.len() as u64 + 11));
    assert_eq!((files_total, bytes_total, counted, unasked), (files, bytes, true, vec![]));
    assert_backing(&cluster, &path, &wanted);
    assert_backing(&cluster, &small, b"a few bytes");
    assert_well(&scrub_all(&cluster, 1), 0);

    let outside = quorumfs().arg("scrub").arg(cluster.dir()).output().expect("the binary runs");
    assert!(!outside.status.success());
    let error = text(&outside.stderr);
    assert!(error.contains("is not in a quorumfs mount"), "{error}");
}

/// Three different contents: that is said, and all of them stay as they are.
#[test]
fn without_a_majority_nothing_is_changed() {
    let cluster = Cluster::up(3);
    let wanted = pattern(3, 300_000);
    let path = write(&cluster, "f", &wanted);
    let [two, three] = [2, 3].map(|node| backing(&cluster, node, &path));
    flip(&two, BLOCK + 9, 1);
    flip(&three, BLOCK + 9, 2);
    let before = [&two, &three].map(|file| fs::read(file).expect("read"));
    let scrubbed = scrub_path(&path);
    assert!(!scrubbed.success);
    assert!(scrubbed.error.contains("could not be healed"), "{scrubbed:?}");
    assert_eq!((scrubbed.last.found, scrubbed.last.unhealed), (0, 1), "{scrubbed:?}");
    assert!(scrubbed.findings[0].what.contains("there is no majority"), "{scrubbed:?}");
    assert_eq!(scrubbed.findings[0].offset, BLOCK);
    assert_eq!([&two, &three].map(|file| fs::read(file).expect("read")), before);
}

/// A node that was down is not given what has rotten at a peer, which heals itself.
#[test]
fn rot_is_not_given_to_a_peer() {
    let cluster = Cluster::up(3);
    cluster.leader_beside(3);
    cluster.kill(3, "KILL");
    let wanted = pattern(4, 16 * MIB);
    let path = cluster.mount(1).join("f");
    fs::write(&path, &wanted).expect("write");
    let two = backing(&cluster, 2, &path);
    wait_until(PATIENCE, "node 2 to have the bytes", || {
        fs::read(&two).is_ok_and(|bytes| bytes == wanted).then_some(())
    });
    let scrubbed = scrub_path(&cluster.mount(2).join("f"));
    assert_well(&scrubbed, 0);
    assert_eq!(scrubbed.last.unasked, [3]);
    for piece in 0..16 {
        flip(&two, piece * MIB as u64 + 4321, 8);
    }
    // There is nobody else to ask.
    cluster.kill(1, "KILL");
    cluster.start(3);
    wait_until(PATIENCE, "node 2 to find what has rotten", || {
        let log = fs::read_to_string(cluster.dir().join("n2/log/quorumfs.log")).expect("a log");
        log.contains("a block is not what its checksum says").then_some(())
    });
    cluster.start(1);
    cluster.settle();
    assert_bytes(&fs::read(cluster.mount(3).join("f")).expect("read"), &wanted, "on node 3");
    // And what it was not asked for.
    assert!(scrub_path(&cluster.mount(2).join("f")).success);
    assert_backing(&cluster, &path, &wanted);
}

/// An overwritten block is not rot.
#[test]
fn what_programs_overwrite_is_not_condemned() {
    let cluster = Cluster::up(3);
    let mut files: Vec<_> = (0..3).map(|file| pattern(file, 2 * MIB)).collect();
    for (number, bytes) in files.iter().enumerate() {
        write(&cluster, &format!("f{number}"), bytes);
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (cluster, stop) = (&cluster, &stop);
        let writers = files.iter_mut().enumerate().map(|(number, bytes)| {
            let path = cluster.mount(number as u64 + 1).join(format!("f{number}"));
            scope.spawn(move || {
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) || round < 20 {
                    round += 1;
                    let file = open(&path, 0);
                    let len = [3000, 100_000, MIB][round % 3];
                    let at = round * 7_654_321 % (bytes.len() - len);
                    bytes[at..at + len].copy_from_slice(&pattern(round, len));
                    file.write_all_at(&bytes[at..at + len], at as u64).expect("write");
                    if round % 7 == 0 {
                        file.sync_all().expect("fsync");
                    }
                    drop(file);
                    // Programs compute, too: some files are to be compared between two changes.
                    thread::sleep(Duration::from_millis(round as u64 % 5 * 20));
                }
            })
        });
        let writers: Vec<_> = writers.collect();
        let mut compared = 0;
        for round in 0..12 {
            let scrubbed = scrub_all(cluster, round % 3 + 1);
            assert_well(&scrubbed, 0);
            compared += scrubbed.last.files - scrubbed.last.skipped;
        }
        assert!(compared > 0, "no file was ever left alone for long enough");
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().expect("a writer");
        }
    });
    for (number, bytes) in files.iter().enumerate() {
        assert_backing(&cluster, &cluster.mount(1).join(format!("f{number}")), bytes);
    }
    for node in 1..=3 {
        let log = fs::read_to_string(cluster.dir().join(format!("n{node}/log/quorumfs.log")));
        assert!(!log.expect("a log").contains("fetching it from a peer"), "node {node}");
    }
}

/// Checksums come by themselves when a file is quiet, find rot where nobody else can, and go with the file.
#[test]
fn quiet_files_get_checksums() {
    let cluster = Cluster::up(3);
    let wanted = pattern(5, 200_000);
    let path = write(&cluster, "f", &wanted);
    let (two, three) = (backing(&cluster, 2, &path), backing(&cluster, 3, &path));
    let checksums = |backing: &Path| {
        let name = backing.file_name().expect("a name");
        let dir = backing.parent().expect("a directory");
        let files = dir.parent().expect("the backing files");
        files.with_file_name("checksums").join(dir.file_name().expect("a name")).join(name)
    };
    let (of_two, of_three) = (checksums(&two), checksums(&three));
    wait_until(PATIENCE, "checksums", || (of_two.exists() && of_three.exists()).then_some(()));
    // Two against one, but both know that they are wrong.
    flip(&two, 9, 1);
    flip(&three, 9, 1);
    assert_well(&scrub_path(&path), 2);
    assert_backing(&cluster, &path, &wanted);
    fs::remove_file(&path).expect("unlink");
    wait_until(PATIENCE, "them to go", || (!of_two.exists() && !of_three.exists()).then_some(()));
}

/// What the disk cannot read at all is fetched, too: a read does not fail for ever. (The memory of a process,
/// as a file, answers as a bad sector does; but it takes no bytes either, until it is replaced.)
#[test]
fn what_cannot_be_read_is_fetched() {
    let cluster = Cluster::up(3);
    let wanted = pattern(6, 100_000);
    let path = write(&cluster, "f", &wanted);
    cluster.leader_beside(3);
    cluster.kill(3, "KILL");
    let three = backing(&cluster, 3, &path);
    fs::remove_file(&three).expect("unlink");
    std::os::unix::fs::symlink("/proc/self/mem", &three).expect("symlink");
    cluster.start(3);
    cluster.settle();
    let mut reading = Command::new("cat");
    reading.arg(cluster.mount(3).join("f")).stdout(Stdio::null()).stderr(Stdio::null());
    let mut reading = reading.spawn().expect("cat");
    let log = cluster.dir().join("n3/log/quorumfs.log");
    wait_until(PATIENCE, "the read to meet it", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("cannot read a block")).then_some(())
    });
    cluster.kill(3, "KILL");
    reading.wait().expect("cat ends");
    fs::remove_file(&three).expect("unlink");
    cluster.start(3);
    cluster.settle();
    assert_bytes(&fs::read(cluster.mount(3).join("f")).expect("read"), &wanted, "on node 3");
    assert_backing(&cluster, &path, &wanted);
}

/// One that takes long, and has begun.
fn slow_scrub(path: &Path) -> Child {
    let mut slow = quorumfs();
    slow.args(["scrub", "--json", "--rate", "1"]).arg(path).stdout(Stdio::piped());
    let mut slow = slow.stderr(Stdio::null()).spawn().expect("the binary runs");
    let mut lines = BufReader::new(slow.stdout.take().expect("piped")).lines();
    let has_begun = |line: std::io::Result<String>| {
        let report: Report = serde_json::from_str(&line.expect("UTF-8")).expect("a report");
        report.bytes > 0
    };
    assert!(lines.any(has_begun), "it ended before it had begun");
    // Nobody reads on, and it goes on all the same.
    thread::spawn(move || lines.count());
    slow
}

/// A daemon that stands still holds nobody who has asked it for something that takes long.
#[test]
#[ignore = "long"]
fn a_scrub_notices_that_its_daemon_stands_still() {
    let cluster = Cluster::up(3);
    let path = write(&cluster, "f", &pattern(8, 80 * MIB));
    let mut slow = slow_scrub(&path);
    cluster.kill(1, "STOP");
    let ended = wait_until(PATIENCE, "the command to end", || slow.try_wait().expect("wait"));
    cluster.kill(1, "CONT");
    assert!(!ended.success(), "it was not done");
    cluster.settle();
    cluster.down();
}

/// Ctrl-C ends a scrub, and does no harm.
#[test]
fn a_scrub_can_be_interrupted() {
    let cluster = Cluster::up(3);
    let wanted = pattern(7, 40 * MIB);
    let path = write(&cluster, "f", &wanted);
    let mut slow = slow_scrub(&path);
    let log = cluster.dir().join("n1/log/quorumfs.log");
    succeed(Command::new("kill").args(["-INT", &slow.id().to_string()]));
    assert!(!slow.wait().expect("it ends").success(), "it was not done");
    wait_until(PATIENCE, "the daemon to stop, too", || {
        fs::read_to_string(&log)
            .is_ok_and(|log| log.contains("a scrub was interrupted"))
            .then_some(())
    });
    assert_well(&scrub_path(&path), 0);
    assert_bytes(&fs::read(&path).expect("read"), &wanted, "afterwards");
}
