//! A replica whose state is not that of the others says so, serves nothing, and heals itself.
#![allow(clippy::disallowed_methods, reason = "waits with deadlines")]

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use prost::Message;
use quorumfs::fs::{Batch, keys, proto, query};
use quorumfs::store::{AppliedPoint, DataDir, State, write_snapshot};
use quorumfs::types::Ino;
use serde_json::Value;
use support::{Cluster, PATIENCE, quorumfs, succeed, wait_until, write_and_sync};

/// Bytes that do not fit into a command.
const LARGE: usize = 100_000;

/// How the state of a node becomes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// The digest does not know.
    Rotten,
    /// The digest does, and so does the snapshot file: as where a version does something else than the others.
    Misapplied,
}

/// Of a node whose daemon has stopped: the record of a file says that it has more bytes.
fn lengthen(cluster: &Cluster, node: u64, name: &str, by: u64, wrong: Wrong) {
    let path = cluster.dir().join(format!("n{node}/data"));
    let dir = wait_until(PATIENCE, "the data directory", || DataDir::open(&path).ok());
    let state = State::open(&dir.current_state().expect("readable").expect("there is one"));
    let state = state.expect("a state");
    let (ino, mut inode) = {
        let read = state.read();
        let dentry = query::lookup(&read, Ino::ROOT, name.as_bytes()).expect("readable");
        let ino = Ino(dentry.expect("the file").ino);
        (ino, query::inode(&read, ino).expect("readable").expect("the inode"))
    };
    let key = keys::inode(ino);
    let before = proto::Inode::encode_to_vec(&inode);
    inode.size += by;
    let after = proto::Inode::encode_to_vec(&inode);
    let mut batch = Batch::default();
    if wrong == Wrong::Misapplied {
        batch.digest.remove(&key, &before);
        batch.digest.add(&key, &after);
    }
    batch.writes.insert(key, Some(after));
    let at = AppliedPoint { index: state.applied(), term: state.term(), conf_state: None };
    state.commit(batch, at).expect("commit");
    state.flush().expect("flush");
    if wrong == Wrong::Misapplied {
        let export = state.export();
        let header = export.header(dir.identity().cluster);
        write_snapshot(&dir.snapshots_dir(), &header, export).expect("a snapshot");
    }
}

fn append(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// What a daemon says is wrong.
fn problems(cluster: &Cluster, node: u64) -> Vec<String> {
    let address = cluster.address(node);
    let output = succeed(quorumfs().args(["status", "--json", "--addr", &address]));
    let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let problems = status["problems"].as_array().expect("a list");
    problems.iter().map(|problem| problem.as_str().expect("a sentence").to_owned()).collect()
}

/// What a daemon has logged so far.
fn log_of(cluster: &Cluster, node: u64) -> String {
    fs::read_to_string(cluster.dir().join(format!("n{node}/log/quorumfs.log"))).expect("a log")
}

fn has_logged(cluster: &Cluster, node: u64, what: &str) {
    wait_until(PATIENCE, what, || log_of(cluster, node).contains(what).then_some(()));
}

fn is_marked(cluster: &Cluster, node: u64) -> bool {
    cluster.dir().join(format!("n{node}/data/diverged")).exists()
}

/// A cluster with two files, of which a node's state says wrong things; and the directory of another mount, or the same.
fn spoilt(nodes: u16, node: u64, settings: &[&str]) -> Cluster {
    let cluster = Cluster::up_with(nodes, settings);
    let mount = cluster.mount(node);
    write_and_sync(&mount.join("log"), &vec![b'a'; LARGE]).expect("write");
    write_and_sync(&mount.join("other"), &vec![b'o'; LARGE]).expect("write");
    cluster.settle();
    cluster.kill(node, "TERM");
    lengthen(&cluster, node, "log", 8192, Wrong::Rotten);
    cluster.start(node);
    cluster.settle_mounts();
    cluster
}

/// What the wrong record led to goes with it: bytes that were appended in the wrong place, too.
#[test]
fn a_replica_that_differs_says_so_and_heals() {
    let node = 3;
    let cluster = spoilt(3, node, &[]);
    let (log, other) = (cluster.mount(1).join("log"), cluster.mount(1).join("other"));
    // Until it is written again nobody knows.
    append(&log, &vec![b'b'; LARGE]).expect("append");
    has_logged(&cluster, node, "this replica serves nothing: at entry");
    // The others go on meanwhile.
    write_and_sync(&other, b"written meanwhile").expect("write");
    has_logged(&cluster, node, "this replica has another state, and serves again");
    let expected = [vec![b'a'; LARGE], vec![b'b'; LARGE]].concat();
    let found = wait_until(PATIENCE, "the replica to serve", || {
        fs::read(cluster.mount(node).join("log")).ok()
    });
    assert!(found == expected, "{} bytes, as the others have {}", found.len(), expected.len());
    assert_eq!(fs::read(cluster.mount(node).join("other")).expect("read"), b"written meanwhile");
    cluster.settle();
    assert_eq!(problems(&cluster, node), Vec::<String>::new());
    assert!(!is_marked(&cluster, node));
    // It is one of them again.
    fs::set_permissions(cluster.mount(node).join("log"), fs::Permissions::from_mode(0o600))
        .expect("chmod");
    cluster.settle();
}

/// Of two nobody else says which one is right: the one whose own log leads to another state is not.
#[test]
fn of_two_that_differ_the_wrong_one_finds_out_and_heals() {
    let wrong = 2;
    let cluster = spoilt(2, wrong, &[]);
    let log = cluster.mount(1).join("log");
    // It may be that it is not acknowledged: both doubt themselves at once.
    let _ = append(&log, &vec![b'b'; LARGE]);
    has_logged(&cluster, wrong, "the voters differ");
    has_logged(&cluster, wrong, "but its snapshot and log lead to");
    wait_until(PATIENCE, "both to serve", || {
        (1..=2).all(|node| problems(&cluster, node).is_empty()).then_some(())
    });
    cluster.settle();
    let read = |node| fs::read(cluster.mount(node).join("log")).expect("read");
    let (one, other) = (read(1), read(2));
    assert!(one == other && one.starts_with(&vec![b'a'; LARGE]), "{} bytes", one.len());
    assert!(one[LARGE..].iter().all(|byte| *byte == b'b'), "nothing else was appended");
    assert!(!is_marked(&cluster, wrong));
}

/// Where both look at themselves and find nothing, a person finds out who is wrong, and removes that one. Then the other
/// one goes on.
#[test]
fn of_two_that_differ_for_good_the_wrong_one_can_be_removed() {
    let (right, wrong) = (1, 2);
    let cluster = Cluster::up(2);
    let log = cluster.mount(right).join("log");
    write_and_sync(&log, &vec![b'a'; LARGE]).expect("write");
    cluster.settle();
    cluster.kill(wrong, "TERM");
    lengthen(&cluster, wrong, "log", 8192, Wrong::Misapplied);
    cluster.start(wrong);
    for node in [right, wrong] {
        has_logged(&cluster, node, "the voters differ");
        has_logged(&cluster, node, "the state is built a second time");
    }
    assert!(problems(&cluster, right).iter().any(|problem| problem.contains("the voters differ")));
    let address = cluster.address(right);
    succeed(quorumfs().args(["member", "remove", &wrong.to_string(), "--addr", &address]));
    has_logged(&cluster, right, "this replica is one of the majority, and serves again");
    let found = wait_until(PATIENCE, "the right one to serve", || fs::read(&log).ok());
    assert!(found == vec![b'a'; LARGE], "{} bytes", found.len());
    append(&log, b"more").expect("append");
    assert!(!is_marked(&cluster, right));
}

/// Nobody could give it a state, nor bytes: what was in no doubt it has.
#[test]
fn a_lone_replica_whose_records_rot_heals() {
    let cluster = spoilt(1, 1, &["snapshot_min_log = \"1MiB\""]);
    let mount = cluster.mount(1);
    // It looks at all records when it writes a snapshot.
    for number in 0..30 {
        // Those that are under way when it finds out fail.
        let _ = write_and_sync(&mount.join(format!("f{number}")), &vec![b'f'; 60_000]);
    }
    has_logged(&cluster, 1, "its records add up to");
    has_logged(&cluster, 1, "this replica has another state, and serves again");
    wait_until(PATIENCE, "it to serve", || problems(&cluster, 1).is_empty().then_some(()));
    assert!(!is_marked(&cluster, 1));
    let other = wait_until(PATIENCE, "its files", || fs::read(mount.join("other")).ok());
    assert!(other == vec![b'o'; LARGE], "{} bytes", other.len());
    assert_eq!(fs::metadata(mount.join("log")).expect("stat").len(), LARGE as u64);
}

fn accept_lost(path: &Path, more: &[&str]) -> (bool, Value) {
    let mut command = quorumfs();
    let output = command.arg("accept-lost").arg(path).args(more).arg("--json").output();
    let output = output.expect("the binary runs");
    let reports: Vec<Value> = serde_json::Deserializer::from_slice(&output.stdout)
        .into_iter()
        .collect::<Result<_, _>>()
        .expect("JSON");
    assert_eq!(reports.len(), 1, "{output:?}");
    (output.status.success(), reports[0].clone())
}

/// What was written under a wrong record nobody else has either: who gives it up has to know that it is there.
#[test]
fn bytes_in_doubt_are_named_before_they_are_given_up() {
    let cluster = spoilt(1, 1, &["snapshot_min_log = \"1MiB\""]);
    let mount = cluster.mount(1);
    let log = mount.join("log");
    // The record has it that they belong behind a gap.
    append(&log, &vec![b'b'; LARGE]).expect("append");
    for number in 0..30 {
        // Those that are under way when it finds out fail.
        let _ = write_and_sync(&mount.join(format!("f{number}")), &vec![b'f'; 60_000]);
    }
    has_logged(&cluster, 1, "this replica has another state, and serves again");
    wait_until(PATIENCE, "it to serve", || fs::metadata(&log).is_ok().then_some(()));

    let named = |start: usize, end: usize| serde_json::json!([{ "start": start, "end": end }]);
    let nothing = serde_json::json!([]);
    let all = named(0, 2 * LARGE);
    let (_, listed) = accept_lost(&log, &[]);
    assert_eq!((&listed["lost"], &listed["doubted"][0]["node"]), (&all, &Value::from(1)));
    assert_eq!(listed["doubted"][0]["ranges"], all);
    let (is_done, refused) = accept_lost(&log, &["--all"]);
    assert!(!is_done, "{refused}");
    assert_eq!((&refused["lost"], &refused["accepted"]), (&all, &nothing));
    let refusal = refused["refusal"].as_str().expect("a sentence");
    assert!(refusal.contains("nodes 1 have") && refusal.contains("--even-if-doubted"), "{refusal}");

    let (is_done, taken) = accept_lost(&log, &["--range", "0..100000", "--take-doubted"]);
    assert!(is_done, "{taken}");
    assert_eq!((&taken["taken"], &taken["lost"]), (&named(0, LARGE), &nothing));
    let (is_done, given_up) = accept_lost(&log, &["--all", "--even-if-doubted"]);
    assert!(is_done, "{given_up}");
    assert_eq!(given_up["accepted"], named(LARGE, 2 * LARGE));
    assert_eq!(given_up["doubted"][0]["ranges"], named(LARGE, 2 * LARGE));
    let found = fs::read(&log).expect("read");
    assert!(found == [vec![b'a'; LARGE], vec![0; LARGE]].concat(), "{} bytes", found.len());
}
