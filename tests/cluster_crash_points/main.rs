//! A replica is killed at each write, sync and rename of a scripted run, and recovers each time.
//!
//! strace(1) kills it: it counts the calls of each thread, so a point is a scene, a kind of call and its number, and while
//! the replica works a thread as well. A first run of each scene says which there are.
#![allow(clippy::disallowed_methods, reason = "waits with deadlines")]

#[path = "../support/mod.rs"]
mod support;

mod points;
mod record;
mod scene;
mod script;
mod strace;
mod victim;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use points::Scene;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use record::{Outcome, Record};
use scene::Stage;

/// How long some points are tried in CI.
const SAMPLE: Duration = Duration::from_secs(6);

/// A sample of them. `QUORUMFS_CRASH_SEED` chooses the same ones again.
#[test]
fn a_replica_recovers_wherever_it_is_killed() {
    let chosen = std::env::var("QUORUMFS_CRASH_SEED");
    let seed = chosen.map_or_else(|_| by_the_clock(), |seed| seed.parse().expect("a number"));
    println!("QUORUMFS_CRASH_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::up();
    let mut points = stage.count(Scene::Works);
    points.shuffle(&mut random);
    let (began, mut record) = (Instant::now(), Record::default());
    for point in points {
        if began.elapsed() > SAMPLE {
            break;
        }
        println!("{point}");
        record.add(&point, stage.kill_at(&point));
    }
    println!("{record}");
    assert!(record.count(Outcome::Recovered) > 0, "nothing was killed");
}

/// All of them. Those that `QUORUMFS_CRASH_STATE` names as done, by this very daemon, are left out, and it is told of each one
/// more; `QUORUMFS_CRASH_SCENE` names the only scene to be played.
#[test]
#[ignore = "long"]
fn a_replica_recovers_wherever_it_is_killed_long() {
    let only = std::env::var("QUORUMFS_CRASH_SCENE").ok();
    let mut record = Record::resume();
    let mut stage = Stage::up();
    let mut points = Vec::new();
    for scene in Scene::ALL {
        if only.as_ref().is_none_or(|only| *only == scene.to_string()) {
            let of_it = stage.count(scene);
            println!("{scene}: {} points", of_it.len());
            points.extend(of_it);
        }
    }
    // So that there is something of everything if it is stopped before the end.
    points.shuffle(&mut StdRng::seed_from_u64(0));
    for point in points {
        if !record.has(&point) {
            record.add(&point, stage.kill_at(&point));
        }
    }
    println!("{record}");
    assert!(record.count(Outcome::Recovered) > 0, "nothing was killed");
}

fn by_the_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::from(since.subsec_nanos()))
}
