//! A start that takes long says what it is about, and ends when it is told to.

use std::fs;
use std::process::Command;

use super::daemon::{Daemon, data};
use super::support::{Cluster, PATIENCE, quorumfs, succeed, text, wait_until};

#[test]
fn a_start_that_takes_long_can_be_asked_and_stopped() {
    let cluster = Cluster::up(1);
    let (address, logged) = (cluster.address(1), data(&cluster, 1).join("logged"));
    cluster.kill(1, "KILL");
    // Opening this waits for somebody who writes.
    let kept = logged.with_file_name("logged.kept");
    fs::rename(&logged, &kept).expect("rename");
    succeed(Command::new("mkfifo").arg(&logged));
    let daemon = Daemon::start(&cluster, 1, &[], &[]);
    wait_until(PATIENCE, "it to be asked", || {
        let asked = quorumfs().args(["status", "--addr", &address]).output().expect("it runs");
        text(&asked.stderr).contains("it has not started yet: opening the stores").then_some(())
    });
    let ended = daemon.stop();
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    fs::rename(&kept, &logged).expect("rename");
    cluster.start(1);
}
