//! An hour of churn over files whose number and size stay the same: so must what the daemons use.
#![allow(clippy::disallowed_methods, reason = "waits with deadlines")]

#[path = "../support/mod.rs"]
mod support;

mod churn;
mod report;
mod sample;

use std::thread;
use std::time::{Duration, Instant};

use churn::Churn;
use report::Report;
use sample::Sample;
use support::{Cluster, quorumfs};

const EVERY: Duration = Duration::from_secs(10);
/// In samples, between two leaders, and between two deaths of the third daemon.
const LEADERS: usize = 4;
const DEATHS: usize = 9;
/// Until threads for what blocks have ended that have nothing to do.
const REST: Duration = Duration::from_secs(20);

/// `QUORUMFS_SOAK_MINUTES` is how long, 60 if it is not given. What was measured is appended to the file that
/// `QUORUMFS_SOAK_MD` names, and all samples to `QUORUMFS_SOAK_SAMPLES`.
#[test]
#[ignore = "long"]
fn nothing_grows_while_the_files_stay_as_many_and_as_large() {
    let minutes =
        std::env::var("QUORUMFS_SOAK_MINUTES").map_or(60, |n| n.parse().expect("a number"));
    let length = Duration::from_secs(60 * minutes);
    // So that there are many snapshots.
    let cluster = Cluster::up_with(3, &["snapshot_min_log = \"8MiB\""]);
    let churn = Churn::prepare([1, 2, 3].map(|node| cluster.mount(node)));
    let rested = at_rest(&cluster);
    let mut samples = Vec::new();
    thread::scope(|scope| {
        churn.spawn_in(scope);
        let _over = churn.until_dropped();
        let began = Instant::now();
        for number in 1.. {
            let due = began + EVERY * number;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            samples.extend(Sample::of_all(&cluster, began.elapsed()));
            if due - began >= length {
                return;
            }
            disturb(&cluster, &churn, usize::try_from(number).expect("few"));
        }
    });
    cluster.settle();
    let report = Report::of(samples, length, churn.operations(), [rested, at_rest(&cluster)]);
    report.publish(&format!("{minutes} minutes"));
    churn.assert_right();
    report.assert_steady();
}

/// What each daemon uses when nobody has asked anything of it for a while.
fn at_rest(cluster: &Cluster) -> Vec<Sample> {
    thread::sleep(REST);
    Sample::of_all(cluster, Duration::ZERO)
}

/// Now and then somebody else leads, or the third daemon dies.
fn disturb(cluster: &Cluster, churn: &Churn, number: usize) {
    if number.is_multiple_of(DEATHS) {
        churn.is_away(true);
        cluster.kill(3, "KILL");
        cluster.start(3);
        cluster.settle_mounts();
        churn.is_away(false);
    } else if number.is_multiple_of(LEADERS) {
        let leader = cluster.address(cluster.leader());
        // It may have lost its place meanwhile.
        let _ = quorumfs().args(["leader", "transfer", "--addr", &leader]).output();
    }
}
