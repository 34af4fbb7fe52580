//! A replica whose state is not that of the others says so, serves nothing, and heals itself.
#![allow(clippy::disallowed_methods, reason = "waits with deadlines")]

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use prost::Message;
use quorumfs::fs::{Batch, keys, proto, query};
use quorumfs::store::{AppliedPoint, DataDir, State};
use quorumfs::types::Ino;
use serde_json::Value;
use support::{Cluster, PATIENCE, quorumfs, succeed, wait_until, write_and_sync};

/// Bytes that do not fit into a command.
const LARGE: usize = 100_000;

/// Of a node whose daemon has stopped: the record of a file says that it has more bytes, and the digest does not know.
fn lengthen(cluster: &Cluster, node: u64, name: &str, by: u64) {
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
    inode.size += by;
    let mut batch = Batch::default();
    batch.writes.insert(keys::inode(ino), Some(proto::Inode::encode_to_vec(&inode)));
    let at = AppliedPoint { index: state.applied(), term: state.term(), conf_state: None };
    state.commit(batch, at).expect("commit");
    state.flush().expect("flush");
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

fn says(cluster: &Cluster, node: u64, what: &str) -> bool {
    problems(cluster, node).iter().any(|problem| problem.contains(what))
}

/// What the wrong record led to goes with it: bytes that were appended in the wrong place, too.
#[test]
fn a_replica_that_differs_says_so_and_heals() {
    let cluster = Cluster::up(3);
    let node = cluster.follower();
    let beside = (1..=3).find(|other| *other != node).expect("there are two");
    let (log, other) = (cluster.mount(beside).join("log"), cluster.mount(beside).join("other"));
    write_and_sync(&log, &vec![b'a'; LARGE]).expect("write");
    write_and_sync(&other, &vec![b'o'; LARGE]).expect("write");
    cluster.settle();
    cluster.kill(node, "TERM");
    lengthen(&cluster, node, "log", 8192);
    cluster.start(node);
    cluster.settle_mounts();
    // Until it is written again nobody knows.
    append(&log, &vec![b'b'; LARGE]).expect("append");
    wait_until(PATIENCE, "the replica to say so", || {
        says(&cluster, node, "the state of this replica differs").then_some(())
    });
    // The others go on meanwhile.
    write_and_sync(&other, b"written meanwhile").expect("write");
    let expected = [vec![b'a'; LARGE], vec![b'b'; LARGE]].concat();
    let found = wait_until(PATIENCE, "the replica to serve", || {
        fs::read(cluster.mount(node).join("log")).ok()
    });
    assert!(found == expected, "{} bytes, as the others have {}", found.len(), expected.len());
    assert_eq!(fs::read(cluster.mount(node).join("other")).expect("read"), b"written meanwhile");
    cluster.settle();
    assert_eq!(problems(&cluster, node), Vec::<String>::new());
    assert!(!cluster.dir().join(format!("n{node}/data/diverged")).exists());
    // It is one of them again.
    fs::set_permissions(cluster.mount(node).join("log"), fs::Permissions::from_mode(0o600))
        .expect("chmod");
    cluster.settle();
}

/// Of two nobody knows which one is right, so neither serves; who knows is the one that says whom to remove.
#[test]
fn of_two_that_differ_neither_serves_until_one_is_removed() {
    let cluster = Cluster::up(2);
    let wrong = cluster.follower();
    let right = 3 - wrong;
    let log = cluster.mount(right).join("log");
    write_and_sync(&log, b"before").expect("write");
    cluster.settle();
    cluster.kill(wrong, "TERM");
    lengthen(&cluster, wrong, "log", 4096);
    cluster.start(wrong);
    cluster.settle_mounts();
    append(&log, b" and after").expect("append");
    for node in [wrong, right] {
        wait_until(PATIENCE, "both to say so", || {
            says(&cluster, node, "the voters differ").then_some(())
        });
    }
    let status = cluster.status();
    assert!(status.nodes.iter().all(|node| !node.serves), "{status:?}");
    let address = cluster.address(right);
    succeed(quorumfs().args(["member", "remove", &wrong.to_string(), "--addr", &address]));
    let found = wait_until(PATIENCE, "the other one to serve", || fs::read(&log).ok());
    assert_eq!(found, b"before and after");
    assert_eq!(problems(&cluster, right), Vec::<String>::new());
}
