//! A daemon that ends by itself again and again stays down; one that is killed does not.

use std::fs;

use super::daemon::{Daemon, STAYS_DOWN, ends};
use super::support::{Cluster, PATIENCE, wait_until, write_and_sync};

const LOOP: usize = 5;

fn panics(cluster: &Cluster, thread: &str) {
    let daemon = Daemon::start(cluster, 1, &[], &[("QUORUMFS_TEST_PANIC", thread)]);
    let ended = daemon.until_ended();
    assert_eq!(ended.code, None, "a signal ends it: {}", ended.said);
    let ends = ends(cluster, 1);
    let last = ends.lines().last().expect("it has recorded its end");
    assert!(last.contains(&format!("its thread {thread} panicked")), "{last}");
    assert!(last.contains("a test has asked for it"), "{last}");
}

/// Whichever thread panics, the whole daemon ends, and says why.
#[test]
fn a_crash_loop_stays_down_with_a_reason() {
    let cluster = Cluster::up(1);
    write_and_sync(&cluster.mount(1).join("f"), b"synced").expect("write");
    cluster.kill(1, "KILL");
    for thread in ["log", "apply", "merge", "snapshot", "checksums"] {
        panics(&cluster, thread);
    }
    let ended = Daemon::start(&cluster, 1, &[], &[]).until_ended();
    assert_eq!(ended.code, Some(STAYS_DOWN), "{}", ended.said);
    for part in ["stays down", "5 times", "its thread checksums panicked", "--after-crash-loop"] {
        assert!(ended.said.contains(part), "{part}: {}", ended.said);
    }
    assert_eq!(ends(&cluster, 1).lines().count(), LOOP, "staying down is no end");
    let mut daemon = Daemon::start(&cluster, 1, &["--after-crash-loop"], &[]);
    daemon.until_it_says("serving");
    assert_eq!(fs::read(cluster.mount(1).join("f")).expect("read"), b"synced");
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(ends(&cluster, 1), "");
    cluster.start(1);
}

/// That is the operator's doing.
#[test]
#[ignore = "long"]
fn killed_daemons_are_no_loop() {
    let cluster = Cluster::up(1);
    for round in 0..2 * LOOP {
        cluster.kill(1, "KILL");
        if round % 2 == 0 {
            // Before it serves, too.
            let mut daemon = Daemon::start(&cluster, 1, &[], &[]);
            daemon.until_it_says("starting");
            drop(daemon);
        }
        cluster.start(1);
    }
    assert_eq!(ends(&cluster, 1), "");
    let serves = || cluster.status().nodes[0].serves.then_some(());
    wait_until(PATIENCE, "it to serve", serves);
}
