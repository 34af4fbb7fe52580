//! Simulation: replicas of the real consensus and state machine over disks, a network and clocks that
//! fail, under one seed. What is checked: reads are linearizable, replicas agree at every index,
//! nothing acknowledged is lost, everything happens once, nobody's lease outlives what it shows, and
//! after the faults everybody gets on.
//!
//! `QUORUMFS_SEED=7 cargo nextest run --test sim replay` replays a seed and prints its trace to stderr,
//! or to the file that `QUORUMFS_TRACE` names.

#![expect(clippy::disallowed_methods, reason = "which seeds to run comes from the environment")]

mod calls;
mod checks;
mod clock;
mod coverage;
mod disk;
mod divergence;
mod drive;
mod driver;
mod faults;
mod fetching;
mod files;
mod history;
mod installing;
mod lanes;
mod linearizability;
mod locks;
mod members;
mod mount;
#[cfg(feature = "mutants")]
mod mutants;
mod network;
mod node;
mod random;
mod reference;
mod regressions;
mod staging;
mod state;
mod stuck;
mod trace;
mod workload;
mod world;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::clock::SECOND;
use crate::coverage::Coverage;
use crate::trace::Trace;
use crate::world::World;

const FAULTS_MIN: u64 = 10;
const COMMANDS_MIN: usize = 2000;

/// What the runs of a test must have met, at least once.
const MUST_MEET: &[&str] = &[
    "answered by the applier",
    "bytes: asked for",
    "bytes: changed while they were read for a peer",
    "bytes: fetched",
    "bytes: fetched before their version was applied",
    "bytes: not given up, because they had changed",
    "commands",
    "commands refused because their session had ended",
    "deadlines missed",
    "divergence: healed",
    "divergence: found by itself",
    "divergence: killed before the state says so",
    "divergence: own log of no use",
    "divergence: power lost",
    "divergence: state built from the own log",
    "divergence: found by digests",
    "divergence: found by the records",
    "divergence: no majority",
    "expiries",
    "fault: clock rate changed",
    "fault: daemon stopped for a while",
    "fault: everybody's power lost",
    "fault: command misapplied",
    "fault: killed between effects",
    "fault: leader crashed",
    "fault: leader cut off",
    "fault: leadership handed over",
    "fault: messages delayed, dropped, repeated",
    "fault: member replaced",
    "fault: minority cut off",
    "fault: node cut off",
    "fault: one link cut",
    "fault: one-way partition",
    "fault: power lost",
    "fault: process killed",
    "fault: record rotten",
    "fault: slow disk",
    "fault: stuck applier",
    "fault: bytes come slowly",
    "fenced",
    "leader changes",
    "locks: cancelled in the queue",
    "locks: cancelled, outcome unknown",
    "locks: deadlocks",
    "locks: delegated",
    "locks: granted by the delegate",
    "locks: granted from the queue",
    "locks: granted in the log",
    "locks: granted without a lease",
    "locks: recalled",
    "locks: refused",
    "locks: returned",
    "members replaced",
    "members that never vote",
    "reads served by the daemon",
    "reads served by the kernel",
    "received entries replaced",
    "rebuilds",
    "repeated commands",
    "retries",
    "rounds cut by a crash",
    "sessions lost by a live daemon",
    "snapshots",
    "snapshots asked for",
    "snapshots installed",
    "snapshots: installations cut by a crash",
    "stages: abandoned",
    "stages: became files",
    "stages: connections broken",
    "stages: connections given up",
    "stages: merge steps",
    "stages: merges cut by a crash",
    "stages: no quorum at first",
    "stages: proposed",
    "stages: refused because their session had ended",
    "stages: sent again",
    "stages: written before all had come",
    "stages: written without any having come",
    "syncs cut by a crash",
    "unknown outcomes",
    "unsynced writes lost",
    "waits for a lease",
    "waits for missing bytes",
    "waits for stability",
    "waits for what was received",
];

struct Report {
    hash: u64,
    coverage: Coverage,
}

/// One run. Panics where something does not hold.
fn run(seed: u64, trace: Trace) -> Report {
    let mut world = World::new(seed, trace);
    world.begin();
    assert!(world.run_until(20 * SECOND, World::is_up), "the cluster does not come up");

    world.coverage.add("members that never vote", learners(&world));
    world.begin_faults();
    let end = world.now + 60 * SECOND;
    let is_enough = |world: &World| {
        world.now >= end && world.faults >= FAULTS_MIN && world.truth.commands() >= COMMANDS_MIN
    };
    let is_done = world.run_until(180 * SECOND, is_enough);
    assert!(is_done, "too little happens: {}", what_is_left(&world));

    world.cure_everything();
    let before: Vec<u64> = world.clients.iter().map(|client| client.answered).collect();
    let all_get_on = |world: &World| {
        world.replacing.is_none()
            && world.clients.iter().zip(&before).all(|(client, before)| client.answered > *before)
    };
    assert!(world.run_until(20 * SECOND, all_get_on), "a client does not get on after the faults");

    world.working = false;
    // A record that nobody reads is found only when a snapshot is written.
    let settled = world.run_until(40 * SECOND, has_settled);
    assert!(settled, "the replicas do not converge: {}", what_is_left(&world));
    checks::judge(&mut world);
    for node in world.nodes.iter().filter(|node| !node.is_retired) {
        let daemon = node.daemon.as_ref().expect("all run");
        world.coverage.add("retries", daemon.core.retries());
        let counts = node.files.counts();
        world.coverage.add("stages: became files", counts.placed);
        world.coverage.add("stages: written before all had come", counts.partial);
        world.coverage.add("stages: written without any having come", counts.absent);
    }
    Report { hash: world.trace.hash(), coverage: world.coverage }
}

fn learners(world: &World) -> u64 {
    world.members().filter(|node| node.is_learner).count() as u64
}

/// Whether nothing is under way and all replicas have applied the same.
fn has_settled(world: &World) -> bool {
    let applied = world.member().state.applied.index;
    world.clients.iter().all(|client| client.current.is_none())
        && world.lockers_rest()
        && world.is_membership_settled()
        && world.are_all_sound()
        && world.members().all(|node| {
            let last = node.daemon.as_ref().map(|daemon| daemon.core.last_index());
            node.state.applied.index == applied
                && last == Some(applied)
                && node.files.lacks_nothing()
                && node.files.is_in_place()
        })
}

/// For whoever wonders why a run does not settle.
fn what_is_left(world: &World) -> String {
    let clients = world.clients.iter().filter_map(|client| client.current);
    let node = |node: &node::Node| {
        let last = node.daemon.as_ref().map(|daemon| daemon.core.last_index());
        let files = (node.files.lacks_nothing(), node.files.is_in_place());
        (node.state.applied.index, last, files, node.state.wrong, node.standing())
    };
    let nodes: Vec<_> = world.members().map(node).collect();
    let clients: Vec<_> = clients.collect();
    format!(
        "nodes (applied, last, nothing missing, nothing staged, wrong, known): {nodes:?}, clients: {clients:?}"
    )
}

/// Runs seeds, says what they met, and fails if one of them does.
fn run_seeds(seeds: Range<u64>) {
    if replayed_seed().is_some() {
        return;
    }
    let mut coverage = Coverage::default();
    let mut failed = Vec::new();
    for seed in seeds.clone() {
        if let Ok(report) = catch_unwind(AssertUnwindSafe(|| run(seed, Trace::silent()))) {
            coverage.merge(&report.coverage);
        } else {
            println!("seed {seed} failed; replay it with");
            println!("  QUORUMFS_SEED={seed} cargo nextest run --test sim replay");
            failed.push(seed);
        }
    }
    println!("seeds {seeds:?} met:\n{coverage}");
    assert!(failed.is_empty(), "seeds that failed: {failed:?}");
    let missing = coverage.missing(MUST_MEET);
    assert!(missing.is_empty(), "never met, so nothing is proved about: {missing:?}");
}

fn replayed_seed() -> Option<u64> {
    let seed = std::env::var("QUORUMFS_SEED").ok()?;
    Some(seed.parse().expect("QUORUMFS_SEED is a number"))
}

#[test]
fn seeds_0_to_49() {
    run_seeds(0..50);
}

#[test]
fn seeds_50_to_99() {
    run_seeds(50..100);
}

#[test]
fn seeds_100_to_149() {
    run_seeds(100..150);
}

#[test]
fn seeds_150_to_199() {
    run_seeds(150..200);
}

#[test]
fn seeds_200_to_249() {
    run_seeds(200..250);
}

#[test]
fn seeds_250_to_299() {
    run_seeds(250..300);
}

#[test]
#[ignore = "long"]
fn seeds_300_to_649() {
    run_seeds(300..650);
}

#[test]
#[ignore = "long"]
fn seeds_650_to_999() {
    run_seeds(650..1000);
}

/// Any number of seeds, such as `QUORUMFS_SEEDS=1000..3000`, for those who have time.
#[test]
fn more_seeds() {
    if let Ok(seeds) = std::env::var("QUORUMFS_SEEDS") {
        let (first, end) = seeds.split_once("..").expect("QUORUMFS_SEEDS is like 1000..3000");
        let number = |text: &str| text.parse().expect("QUORUMFS_SEEDS is like 1000..3000");
        run_seeds(number(first)..number(end));
    }
}

/// Without this, a failing seed could not be replayed.
#[test]
fn a_seed_gives_the_same_run_twice() {
    for seed in [3, 77] {
        let [one, other] = [(); 2].map(|()| run(seed, Trace::silent()).hash);
        assert_eq!(one, other, "two runs of seed {seed} differ");
    }
}

/// Replays the seed that `QUORUMFS_SEED` names, with its trace.
#[test]
fn replay() {
    if let Some(seed) = replayed_seed() {
        let report = run(seed, Trace::printed());
        println!("seed {seed}: trace hash {:016x}\n{}", report.hash, report.coverage);
    }
}
