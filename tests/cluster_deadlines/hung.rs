//! A node's own disk hangs: what its mount is asked ends in time, or can be ended, and so does its daemon; the others go on.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::support::disk::{Frozen, SmallDisk};
use super::support::program::Program;
use super::support::{Cluster, succeed, wait_until, write_and_sync};
use super::{
    FAILING_SOON, SHORT_OP_TIMEOUT, SLACK, all_calls, do_all, nodes, status_of, until_alone,
};

const MIB: usize = 1 << 20;
/// Large enough to be read in passthrough.
const SIZE: usize = 2 * MIB;
/// More of them than there are threads that take requests in.
const READERS: usize = 20;
const KILLED: usize = 4;
/// What a process that is killed may take until it is gone.
const DEATH: Duration = Duration::from_secs(1);
/// What people may take who look at it, or take a mount away.
const LOOK: Duration = Duration::from_secs(2);
const END: Duration = Duration::from_secs(10);

fn readers(number: usize) -> Vec<Program> {
    (0..number).map(|_| Program::start()).collect()
}

fn opens(program: &mut Program, mount: &Path, number: usize) {
    program.tell(&format!("open-read-only f {}/large-{number}", mount.display()));
}

/// Whether a process has ended, but for threads that the kernel lets wait for the disk.
fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

#[test]
fn a_hung_disk_of_its_own_holds_nobody() {
    let mut disk = None;
    let cluster = Cluster::up_in_with(3, &FAILING_SOON, |dir| {
        disk = Some(SmallDisk::mount(&dir.join("n1/data"), 768 * MIB as u64));
    });
    let disk = disk.expect("mounted");
    let (node, [follower, _]) = nodes(&cluster);
    let (here, there) = (cluster.mount(node), cluster.mount(follower));
    for number in 0..READERS + KILLED {
        write_and_sync(&there.join(format!("large-{number}")), &vec![7; SIZE]).expect("written");
    }
    let mut calls = all_calls(&here);
    cluster.settle();
    // One that was lent before, and is at present.
    let lent = File::open(here.join("large-0")).expect("open");
    let [mut blocked, mut killed] = [READERS, KILLED].map(readers);
    // A stage is begun, and not closed.
    let mut staged = Program::with(&here.join("staged"));
    assert_eq!(staged.ask(&format!("write f 0 {}", "x".repeat(3 * MIB))), "ok");
    let address = cluster.address(node);
    let pid = i32::try_from(status_of(&address)["pid"].as_i64().expect("a number")).expect("a pid");

    let frozen = Frozen::freeze(&disk);
    let began = Instant::now();
    for (number, program) in blocked.iter_mut().enumerate() {
        opens(program, &here, number);
    }
    for (number, program) in killed.iter_mut().enumerate() {
        opens(program, &here, READERS + number);
        program.begin_to_kill();
    }
    let dead = Instant::now() + DEATH;
    let stuck = killed.iter_mut().filter_map(|it| (!it.is_gone_by(dead)).then(|| it.pid()));
    let stuck: Vec<u32> = stuck.collect();
    assert!(stuck.is_empty(), "killed, and not gone: {stuck:?}");
    let limit = (SHORT_OP_TIMEOUT + SLACK).as_secs_f64();
    for round in 0..2 {
        let late: Vec<_> =
            do_all(&mut calls).into_iter().filter(|(_, _, took)| *took > limit).collect();
        assert!(late.is_empty(), "in round {round}: {late:?}");
    }
    let left = (SHORT_OP_TIMEOUT + SLACK).saturating_sub(began.elapsed());
    for program in &mut blocked {
        program.answer_within(left).expect("it has ended");
    }
    write_and_sync(&there.join("meanwhile"), b"goes on").expect("two are a quorum");
    until_alone(&address);

    let looking = Instant::now();
    let problems = status_of(&address)["problems"].to_string();
    assert!(problems.contains("the disk of this node"), "{problems}");
    drop(lent);
    succeed(Command::new("umount").arg("--lazy").arg(&here));
    assert!(looking.elapsed() < LOOK, "it took {:?}", looking.elapsed());
    let told = Instant::now();
    cluster.kill(node, "TERM");
    wait_until(END, "the daemon to end", || has_ended(pid).then_some(()));
    println!("the daemon ended {:?} after it was told to", told.elapsed());
    write_and_sync(&there.join("afterwards"), b"goes on").expect("two are a quorum");
    // First: where fusectl is not mounted, the connection of the mount lives for as long as the kernel keeps the daemon, and
    // whoever has a file of it open waits.
    drop(frozen);
    drop(staged);
    cluster.down();
    drop(disk);
}
