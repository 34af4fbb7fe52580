//! Mounts that do not read strongly: what they show, when they wait, and that nobody waits for them.
#![allow(clippy::disallowed_methods, reason = "reads that wait have threads of their own")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use support::{Cluster, PATIENCE, quorumfs, succeed, text, wait_until, write_and_close};

/// Longer than `session_ttl`, which a bound cannot be below.
const BOUND: Duration = Duration::from_secs(3);

fn mount(cluster: &Cluster, node: u64, read: &str) -> PathBuf {
    let point = cluster.dir().join(read);
    fs::create_dir_all(&point).expect("mkdir");
    let options = format!("read={read}");
    let spec = cluster.address(node);
    succeed(quorumfs().arg("mount").arg(spec).arg(&point).args(["-o", &options]));
    point
}

/// Reads on a thread of its own, which may wait.
fn read_elsewhere(path: &Path) -> thread::JoinHandle<std::io::Result<Vec<u8>>> {
    let path = path.to_owned();
    thread::spawn(move || fs::read(path))
}

/// The quorum is stopped: an eventual mount goes on with what it has, a bounded one until its state may be
/// too old, a strong one no longer than its lease. Afterwards all show what is new.
#[test]
#[ignore = "long"]
fn mounts_without_a_quorum_show_what_they_have_promised() {
    let cluster = Cluster::up(3);
    let strong = cluster.mount(1);
    let bounded = mount(&cluster, 1, &format!("bounded={}", BOUND.as_secs()));
    let eventual = mount(&cluster, 1, "eventual");
    write_and_close(&strong.join("file"), b"old").expect("write");
    for mount in [&strong, &bounded, &eventual] {
        assert_eq!(fs::read(mount.join("file")).expect("read"), b"old");
    }

    cluster.kill(2, "STOP");
    cluster.kill(3, "STOP");
    // From now on nothing that the bounded mount has heard is young enough.
    thread::sleep(BOUND);
    let waiting = [&strong, &bounded].map(|mount| read_elsewhere(&mount.join("file")));
    for _ in 0..5 {
        assert_eq!(fs::read(eventual.join("file")).expect("it asks nobody"), b"old");
        assert_eq!(fs::metadata(eventual.join("file")).expect("stat").len(), 3);
        thread::sleep(Duration::from_millis(100));
    }
    assert!(waiting.iter().all(|reader| !reader.is_finished()), "they have promised more");
    cluster.kill(2, "CONT");
    cluster.kill(3, "CONT");
    for reader in waiting {
        assert_eq!(reader.join().expect("it ends").expect("read"), b"old");
    }

    write_and_close(&cluster.mount(2).join("file"), b"newer").expect("write");
    assert_eq!(fs::read(strong.join("file")).expect("read"), b"newer");
    for mount in [&bounded, &eventual] {
        let shows_new = || (fs::read(mount.join("file")).ok()? == b"newer").then_some(());
        wait_until(PATIENCE, "the new bytes", shows_new);
    }
    // What a mount changes itself it sees at once.
    write_and_close(&eventual.join("own"), b"own").expect("write");
    assert_eq!(fs::read(eventual.join("own")).expect("read"), b"own");
    assert_eq!(fs::read(cluster.mount(3).join("own")).expect("read"), b"own");
}

/// A daemon that is configured so is in nobody's way, and promises nothing that it cannot keep.
#[test]
fn nobody_waits_for_a_daemon_that_reads_weakly() {
    let cluster = Cluster::up(3);
    cluster.down();
    let config = cluster.dir().join("n3").join("quorumfs.toml");
    let before = fs::read_to_string(&config).expect("a configuration");
    fs::write(&config, format!("read = \"eventual\"\n{before}")).expect("write");
    cluster.up_again();
    let address = cluster.address(1);
    let in_roster = || {
        let output = succeed(quorumfs().args(["status", "--json", "--addr", &address]));
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let sessions = status["sessions"].as_array().expect("a list").clone();
        let strong = |session: &&serde_json::Value| session["strong"] == true;
        sessions.iter().filter(strong).filter_map(|session| session["node"].as_u64()).collect()
    };
    let nodes: Vec<u64> = in_roster();
    assert!(!nodes.contains(&3) && nodes.contains(&1) && nodes.contains(&2), "{nodes:?}");

    write_and_close(&cluster.mount(1).join("file"), b"bytes").expect("write");
    let shows = || (fs::read(cluster.mount(3).join("file")).ok()? == b"bytes").then_some(());
    wait_until(PATIENCE, "node 3 to show it", shows);
    write_and_close(&cluster.mount(3).join("back"), b"back").expect("write");
    assert_eq!(fs::read(cluster.mount(1).join("back")).expect("read"), b"back");

    let refused =
        [("strong", "read=strong cannot be had"), ("bounded=0.1", "at least session_ttl")];
    for (read, sentence) in refused {
        let point = cluster.dir().join("refused");
        fs::create_dir_all(&point).expect("mkdir");
        let mut mount = quorumfs();
        mount.arg("mount").arg(cluster.address(3)).arg(&point).arg("-o");
        let output = mount.arg(format!("read={read}")).output().expect("it runs");
        assert!(text(&output.stderr).contains(sentence), "{}", text(&output.stderr));
    }
    let bounded = mount(&cluster, 3, "bounded=5");
    assert_eq!(fs::read(bounded.join("back")).expect("read"), b"back");
}
