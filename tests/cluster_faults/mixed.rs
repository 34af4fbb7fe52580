//! Five machines work on the same files while one fault follows the other, first alone, then two at once.

use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::faults::{Fault, OF_MACHINES, OF_NETWORK};
use super::history::{Outcome, violations};
use super::machines::Machines;
use super::report::{Episode, publish, table};
use super::workload::Workload;

#[test]
fn what_programs_see_is_linearizable_whatever_fails() {
    torment(Duration::from_secs(60));
}

/// `QUORUMFS_FAULTS_SECONDS` says for how long.
#[test]
#[ignore = "long"]
fn what_programs_see_is_linearizable_whatever_fails_long() {
    let seconds = std::env::var("QUORUMFS_FAULTS_SECONDS")
        .map_or(1_800, |text| text.parse().expect("QUORUMFS_FAULTS_SECONDS is a number"));
    torment(Duration::from_secs(seconds));
}

/// The faults are those of `long`; making the cluster and judging what it did come on top.
fn torment(long: Duration) {
    let machines = Machines::up(5);
    let workload = Workload::new(&machines);
    let (mut records, episodes) = workload.run(&machines, || {
        let end = Instant::now() + long;
        let mut episodes = each_alone(&machines, &workload, long / 2);
        episodes.extend(two_at_once(&machines, &workload, end));
        episodes
    });
    machines.settle();
    let logs = workload.read_all(&machines, &mut records);
    let violations = violations(&records, &logs);
    let title = format!("Mixed faults, {} s, five nodes", long.as_secs());
    publish(&title, &table(&records, &episodes, violations.len()));
    assert!(violations.is_empty(), "{violations:#?}");
    let done = |outcome| matches!(outcome, Outcome::Done | Outcome::Value(_));
    let done = records.iter().filter(|record| done(record.outcome)).count() as u64;
    assert!(done > 20 * long.as_secs(), "{done} operations are too few to show anything");
}

/// Every kind, for its least time or an equal part of `long`.
fn each_alone(machines: &Machines, workload: &Workload, long: Duration) -> Vec<Episode> {
    let kinds: Vec<_> =
        OF_NETWORK.into_iter().chain(OF_MACHINES).filter(|f| f.is_possible()).collect();
    let part = long / u32::try_from(kinds.len()).expect("few");
    let mut episodes = Vec::new();
    for kind in kinds {
        // A short run has no time for what takes long.
        if kind.least() > 3 * part {
            continue;
        }
        let end = Instant::now() + part;
        while episodes.last().is_none_or(|last: &Episode| last.kinds != [kind])
            || Instant::now() < end
        {
            let from = workload.now();
            let victims = kind.victims(machines);
            kind.happen(machines, &victims, kind.least());
            until_recovered(machines);
            episodes.push(Episode { kinds: vec![kind], victims, from, to: workload.now() });
        }
    }
    episodes
}

/// One of the network beside one of a machine, again and again.
fn two_at_once(machines: &Machines, workload: &Workload, end: Instant) -> Vec<Episode> {
    let mut random = StdRng::seed_from_u64(1);
    let mut episodes = Vec::new();
    while Instant::now() < end {
        let left = end - Instant::now();
        let fits =
            |kind: &Fault| kind.is_possible() && kind.least() <= left.max(Duration::from_secs(4));
        let kinds: Vec<_> = [&OF_NETWORK[..], &OF_MACHINES[..]]
            .into_iter()
            .filter_map(|of| {
                let fitting: Vec<_> = of.iter().copied().filter(fits).collect();
                fitting.choose(&mut random).copied()
            })
            .collect();
        let from = workload.now();
        let hit: Vec<_> = kinds.iter().map(|kind| (*kind, kind.victims(machines))).collect();
        thread::scope(|scope| {
            for (kind, victims) in &hit {
                let long = kind.least().mul_f64(random.random_range(0.5..1.5));
                scope.spawn(move || kind.happen(machines, victims, long));
            }
        });
        until_recovered(machines);
        let mut victims: Vec<_> = hit.into_iter().flat_map(|(_, victims)| victims).collect();
        victims.sort_unstable();
        victims.dedup();
        episodes.push(Episode { kinds, victims, from, to: workload.now() });
    }
    episodes
}

fn until_recovered(machines: &Machines) {
    for node in machines.all() {
        machines.until_serving(node);
    }
}
