//! Bytes that no node has any more: an error where they are read, listed, and given up where somebody says so.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::scrub::{Scrubbed, assert_well, backing, flip, scrub_path};
use super::staged::assert_backing;
use super::support::{Cluster, PATIENCE, quorumfs, succeed, text, wait_until};
use super::{assert_bytes, pattern};

const BLOCK: usize = 128 << 10;
/// Below the root of the file system.
const NAME: &str = "dir/model";
const EIO: Option<i32> = Some(5);

fn accept_lost(path: &Path, more: &[&str]) -> Output {
    let mut command = quorumfs();
    command.arg("accept-lost").arg(path).args(more).arg("--json");
    command.output().expect("the binary runs")
}

/// Its reports, one for each file.
fn reports(output: &Output) -> Vec<Value> {
    let printed = text(&output.stdout);
    printed.lines().map(|line| serde_json::from_str(line).expect("a report")).collect()
}

fn status(cluster: &Cluster, node: u64) -> Value {
    let address = cluster.address(node);
    let output = succeed(quorumfs().args(["status", "--json", "--addr", &address]));
    serde_json::from_slice(&output.stdout).expect("the documented JSON")
}

/// One block of a file on all nodes, which are asked at once.
fn read_block(cluster: &Cluster, block: usize) -> Vec<std::io::Result<Vec<u8>>> {
    std::thread::scope(|scope| {
        let read = |node| {
            let path = cluster.mount(node).join(NAME);
            scope.spawn(move || {
                let mut bytes = vec![0; BLOCK];
                File::open(path)?.read_exact_at(&mut bytes, (block * BLOCK) as u64)?;
                Ok(bytes)
            })
        };
        let readers: Vec<_> = (1..=3).map(read).collect();
        readers.into_iter().map(|reader| reader.join().expect("a reader")).collect()
    })
}

fn assert_shown(cluster: &Cluster, wanted: &[u8]) {
    for node in 1..=3 {
        let shown = fs::read(cluster.mount(node).join(NAME)).expect("read");
        assert_bytes(&shown, wanted, &format!("on node {node}"));
    }
    assert_backing(cluster, &cluster.mount(1).join(NAME), wanted);
}

/// Gives each node the checksums by which it finds out what is rotten.
fn scrub_on_all(cluster: &Cluster) {
    for node in 1..=3 {
        assert_well(&scrub_path(&cluster.mount(node).join(NAME)), 0);
    }
}

fn flip_block(cluster: &Cluster, nodes: &[PathBuf], block: usize) {
    assert!(!nodes.is_empty() && nodes.iter().all(|file| file.starts_with(cluster.dir())));
    for file in nodes {
        flip(file, (block * BLOCK + 17) as u64, 0x40);
    }
}

/// Waits until all nodes that run have found out what is rotten, and there is nobody to heal it. (A scrub finds it at
/// once, and waits then for it to be healed.)
fn until_lost(path: &Path) -> Vec<Value> {
    let directory = path.parent().expect("it has one");
    wait_until(PATIENCE, "everybody to find out", || {
        let mut scrub = quorumfs();
        scrub.arg("scrub").arg(path).stdout(Stdio::null()).stderr(Stdio::null());
        let mut scrub = scrub.spawn().expect("the binary runs");
        let mut lost = None;
        while lost.is_none() && scrub.try_wait().expect("a child").is_none() {
            let listed = reports(&accept_lost(directory, &[]));
            let is_lost = !listed.is_empty() && listed[0]["held_bytes"] == 0;
            lost = is_lost.then_some(listed);
        }
        // It may have ended.
        let _ = scrub.kill();
        scrub.wait().expect("a child");
        lost
    })
}

/// Blocks, as a report names them.
fn named(blocks: Range<usize>) -> Value {
    serde_json::json!([{ "start": blocks.start * BLOCK, "end": blocks.end * BLOCK }])
}

/// On all three nodes; then on two, while the third one is away with the bytes, and comes back with them.
#[test]
fn what_nobody_has_is_an_error_until_it_is_accepted_as_lost() {
    let cluster = Cluster::up_with(3, &["op_timeout = \"4s\""]);
    let path = cluster.mount(1).join(NAME);
    fs::create_dir(path.parent().expect("it has one")).expect("mkdir");
    let mut wanted = pattern(1, 8 * BLOCK);
    fs::write(&path, &wanted).expect("write");
    assert_backing(&cluster, &path, &wanted);
    scrub_on_all(&cluster);
    let files: Vec<_> = (1..=3).map(|node| backing(&cluster, node, &path)).collect();
    let nothing = accept_lost(&cluster.mount(1), &[]);
    assert!(nothing.status.success() && reports(&nothing).is_empty(), "{nothing:?}");

    lose_a_block(&cluster, &path, &files, &wanted);
    accept_a_block(&cluster, &path, &mut wanted);
    accept_while_one_is_away(&cluster, &path, &files, &mut wanted);
}

/// Block 2 is rotten everywhere, and on node 3 all others are as well.
fn lose_a_block(cluster: &Cluster, path: &Path, files: &[PathBuf], wanted: &[u8]) {
    let ino = fs::metadata(path).expect("stat").ino();
    cluster.down();
    flip_block(cluster, files, 2);
    for block in (0..8).filter(|block| *block != 2) {
        flip_block(cluster, &files[2..], block);
    }
    cluster.up_again();
    cluster.settle();
    let listed = until_lost(path);
    // The others refuse all of what node 3 asks for first, and have seven eighths of it.
    wait_until(PATIENCE, "what is not lost to be healed", || {
        let lacks = status(cluster, 3)["missing"]["bytes"] == BLOCK;
        let mut found = fs::read(&files[2]).expect("read");
        found[2 * BLOCK..3 * BLOCK].copy_from_slice(&wanted[2 * BLOCK..3 * BLOCK]);
        (lacks && found == wanted).then_some(())
    });
    for read in read_block(cluster, 2) {
        assert_eq!(read.expect_err("it is lost").raw_os_error(), EIO);
    }
    assert_eq!((listed.len(), &listed[0]["path"]), (1, &NAME.into()), "{listed:?}");
    assert_eq!((&listed[0]["ino"], &listed[0]["lost"]), (&ino.into(), &named(2..3)));
    assert_eq!(listed[0]["accepted"], serde_json::json!([]));
    wait_until(PATIENCE, "it to be listed", || {
        let problems = status(cluster, 2)["problems"].to_string();
        problems.contains("quorumfs accept-lost").then_some(())
    });
}

fn accept_a_block(cluster: &Cluster, path: &Path, wanted: &mut [u8]) {
    // Whatever is named beside it stays as it is.
    let before = fs::metadata(path).expect("stat").mtime_nsec();
    let accepted = accept_lost(path, &["--range", "262144..524288"]);
    assert!(accepted.status.success(), "{accepted:?}");
    let report = &reports(&accepted)[0];
    assert_eq!((&report["accepted"], &report["lost"]), (&named(2..3), &serde_json::json!([])));
    wanted[2 * BLOCK..3 * BLOCK].fill(0);
    assert_shown(cluster, wanted);
    assert_ne!(fs::metadata(path).expect("stat").mtime_nsec(), before);
    for node in 1..=3 {
        wait_until(PATIENCE, "nothing to be wrong", || {
            let status = status(cluster, node);
            let is_clean = status["problems"] == serde_json::json!([]);
            (is_clean && status["missing"]["files"] == 0).then_some(())
        });
        let log = fs::read_to_string(cluster.dir().join(format!("n{node}/log/quorumfs.log")));
        assert!(log.expect("a log").contains("accepted as lost"), "node {node}");
    }
    let again = accept_lost(path, &["--range", "262144..524288"]);
    assert!(again.status.success() && reports(&again).is_empty(), "{again:?}");
}

/// Two blocks are rotten on nodes 1 and 2.
fn accept_while_one_is_away(cluster: &Cluster, path: &Path, files: &[PathBuf], wanted: &mut [u8]) {
    scrub_on_all(cluster);
    cluster.leader_beside(3);
    cluster.kill(3, "KILL");
    flip_block(cluster, &files[..2], 6);
    flip_block(cluster, &files[..2], 7);
    wait_until(PATIENCE, "both to be found out", || {
        (until_lost(path)[0]["lost"] == named(6..8)).then_some(())
    });
    let refused = accept_lost(path, &["--all"]);
    assert!(!refused.status.success(), "{refused:?}");
    let report = &reports(&refused)[0];
    let refusal = report["refusal"].as_str().expect("a sentence");
    assert!(refusal.contains("nodes 3 do not answer"), "{refusal}");
    assert_eq!((&report["accepted"], &report["lost"]), (&serde_json::json!([]), &named(6..8)));
    // Node 3 may have both, and would throw away the one that is not named, too, where the log has been cut.
    let refused = accept_lost(path, &["--range", "917504..1048576", "--even-if-away", "3"]);
    assert!(!refused.status.success(), "{refused:?}");
    let refusal = reports(&refused)[0]["refusal"].as_str().expect("a sentence").to_owned();
    assert!(refusal.contains("786432..917504") && refusal.contains("--all"), "{refusal}");
    let accepted = accept_lost(path, &["--all", "--even-if-away", "3"]);
    assert!(accepted.status.success(), "{accepted:?}");
    assert_eq!(reports(&accepted)[0]["accepted"], named(6..8));
    wanted[6 * BLOCK..].fill(0);
    cluster.start(3);
    cluster.settle();
    assert_shown(cluster, wanted);
}

/// Whoever scrubs before giving bytes up is to find all that can be saved: also behind what is lost, and in the time of one
/// wait and not of one for each block.
#[test]
fn what_is_lost_hides_no_rot_behind_it() {
    let cluster = Cluster::up_with(3, &["op_timeout = \"4s\""]);
    let path = &cluster.mount(1).join(NAME);
    fs::create_dir(path.parent().expect("it has one")).expect("mkdir");
    // More than replicas are asked for at once.
    let mut wanted = pattern(17, 70 * BLOCK);
    fs::write(path, &wanted).expect("write");
    assert_backing(&cluster, path, &wanted);
    scrub_on_all(&cluster);
    let files = [1, 2, 3].map(|node| backing(&cluster, node, path));
    for block in [0, 1, 2, 3, 4, 5, 9] {
        flip_block(&cluster, &files, block);
    }
    let begun = Instant::now();
    let scrubbed = scrub_path(path);
    let took = begun.elapsed();
    let places = |scrubbed: &Scrubbed| {
        scrubbed.findings.iter().map(|found| (found.offset, found.healed)).collect::<Vec<_>>()
    };
    let lost = [(0, false), (9 * BLOCK as u64, false)];
    assert_eq!(places(&scrubbed), lost, "{scrubbed:?}");
    assert_eq!((scrubbed.last.found, scrubbed.last.unhealed), (21, 7), "{scrubbed:?}");
    assert!(scrubbed.findings[0].what.starts_with("6 blocks: no node"), "{scrubbed:?}");
    assert!(took < Duration::from_secs(12), "7 blocks of three nodes took {took:?}");

    // Those are known to be missing by now. What lies behind them is healed all the same.
    for block in [7, 68] {
        flip_block(&cluster, &files[..2], block);
    }
    let scrubbed = scrub_path(path);
    assert_eq!((scrubbed.last.found, scrubbed.last.healed), (4, 4), "{scrubbed:?}");
    let lasting = places(&scrubbed).into_iter().filter(|(_, healed)| !healed);
    assert_eq!(lasting.collect::<Vec<_>>(), lost, "{scrubbed:?}");
    assert!(accept_lost(path, &["--all"]).status.success());
    wanted[..6 * BLOCK].fill(0);
    wanted[9 * BLOCK..10 * BLOCK].fill(0);
    assert_shown(&cluster, &wanted);
    assert!(scrub_path(path).success);
}
