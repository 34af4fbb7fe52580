//! Five machines work on the same files while one fault follows the other, first alone, then two at once.

use std::thread;
use std::time::{Duration, Instant};

use super::faults::{Fault, OF_MACHINES, OF_NETWORK};
use super::history::{Outcome, violations};
use super::machines::Machines;
use super::report::{Episode, longest, publish, table};
use super::workload::Workload;

/// A run that is shorter goes on to several at once.
const WORTH_EACH_ALONE: Duration = Duration::from_secs(240);

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

/// The check itself must be able to say no: here mounts are told to read what they have, and one has nothing new.
#[test]
fn what_is_not_linearizable_is_found() {
    let machines = Machines::up_configured(3, "read = \"eventual\"\n");
    let workload = Workload::new(&machines);
    let (mut records, _) =
        workload.run(&machines, || episode(&machines, &workload, &[Fault::FollowerCutOff]));
    machines.settle();
    let logs = workload.read_all(&machines, &mut records);
    let found = violations(&records, &logs);
    assert!(found.iter().any(|what| what.contains("Reordered")), "{found:#?}");
}

/// Two faults that leave no quorum for a while, or those that `QUORUMFS_FAULTS_ONLY` names, with commas, to look into
/// a row of the table.
#[test]
#[ignore = "long"]
fn some_faults_again_and_again_long() {
    let wanted = std::env::var("QUORUMFS_FAULTS_ONLY");
    let wanted = wanted.as_deref().unwrap_or("MinorityCutOff,FollowerPausedForLong");
    let all = || OF_NETWORK.into_iter().chain(OF_MACHINES);
    let named = |name: &str| all().find(|kind| format!("{kind:?}") == name).expect("a fault");
    let kinds: Vec<_> = wanted.split(',').map(named).collect();
    let machines = Machines::up_with_special(5);
    let workload = Workload::new(&machines);
    let again = || (0..4).map(|_| episode(&machines, &workload, &kinds)).collect::<Vec<_>>();
    let (mut records, episodes) = workload.run(&machines, again);
    for (episode, longest) in episodes.iter().zip(longest(&records, &episodes)) {
        println!("from {} to {}, on {:?}:", episode.from, episode.to, episode.victims);
        for record in longest.iter().take(10) {
            println!("  {:?} {record:?}", record.took());
        }
    }
    machines.settle();
    let logs = workload.read_all(&machines, &mut records);
    assert_eq!(violations(&records, &logs), Vec::<String>::new());
}

/// The faults are those of `long`; making the cluster and judging what it did come on top.
fn torment(long: Duration) {
    let machines = Machines::up_with_special(5);
    let workload = Workload::new(&machines);
    let (mut records, episodes) = workload.run(&machines, || {
        let end = Instant::now() + long;
        let mut episodes = Vec::new();
        if long >= WORTH_EACH_ALONE {
            each_alone(&machines, &workload, long / 2, &mut episodes);
        }
        two_at_once(&machines, &workload, end, &mut episodes);
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

/// Every kind, for an equal part of `long`.
fn each_alone(
    machines: &Machines,
    workload: &Workload,
    long: Duration,
    episodes: &mut Vec<Episode>,
) {
    let kinds = || OF_NETWORK.into_iter().chain(OF_MACHINES).filter(|kind| kind.is_possible());
    let part = long / u32::try_from(kinds().count()).expect("few");
    for kind in kinds() {
        let end = Instant::now() + part;
        while {
            episodes.push(episode(machines, workload, &[kind]));
            Instant::now() + kind.least() < end
        } {}
    }
}

/// One of the network beside one of a machine: in the end every one beside every other one.
fn two_at_once(
    machines: &Machines,
    workload: &Workload,
    end: Instant,
    episodes: &mut Vec<Episode>,
) {
    let short = end - Instant::now() < WORTH_EACH_ALONE / 2;
    let fits =
        |kind: &Fault| kind.is_possible() && !(short && *kind == Fault::FollowerPausedForLong);
    let of_machines: Vec<_> = OF_MACHINES.into_iter().filter(fits).collect();
    for round in 0.. {
        let one = round % OF_NETWORK.len();
        let other = one + round / OF_NETWORK.len();
        let kinds = [OF_NETWORK[one], of_machines[other % of_machines.len()]];
        episodes.push(episode(machines, workload, &kinds));
        if Instant::now() >= end {
            return;
        }
    }
}

/// All of these at once, until everybody has recovered from them.
fn episode(machines: &Machines, workload: &Workload, kinds: &[Fault]) -> Episode {
    let from = workload.now();
    let hit: Vec<_> = kinds.iter().map(|kind| (*kind, kind.victims(machines))).collect();
    thread::scope(|scope| {
        for (kind, victims) in &hit {
            scope.spawn(move || kind.happen(machines, victims, kind.least()));
        }
    });
    let over = workload.now();
    until_recovered(machines);
    let victims: Vec<_> = hit.into_iter().flat_map(|(_, victims)| victims).collect();
    let seconds = |from: u64, to: u64| Duration::from_nanos(to - from).as_secs_f64();
    println!(
        "{kinds:?} on {victims:?}: {:.1} s, and {:.1} s to recover",
        seconds(from, over),
        seconds(over, workload.now())
    );
    Episode { kinds: kinds.to_vec(), victims, from, to: workload.now() }
}

fn until_recovered(machines: &Machines) {
    for node in machines.all() {
        machines.until_serving(node);
    }
}
