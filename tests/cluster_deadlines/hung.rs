//! A node's own disk hangs: what its mount is asked ends in time, or can be ended, and so does its daemon; the others go on.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::support::disk::{Frozen, SmallDisk};
use super::support::program::Program;
use super::support::{Cluster, succeed, wait_until, write_and_sync};
use super::{
    Call, FAILING_SOON, SHORT_OP_TIMEOUT, SLACK, all_calls, calls, do_all, nodes, status_of,
    until_alone,
};

const MIB: usize = 1 << 20;
/// Large enough to be read in passthrough.
const SIZE: usize = 2 * MIB;
/// More of them than there are threads that take requests in.
const READERS: usize = 20;
const KILLED: usize = 4;
/// Each of another kind, as far as the disk goes.
const SOME: [&str; 12] = [
    "lookup",
    "getattr",
    "readdir",
    "getxattr",
    "statfs",
    "open",
    "read",
    "create",
    "rename",
    "write-synced",
    "fsync",
    "close",
];
/// What a process that is killed may take until it is gone.
const DEATH: Duration = Duration::from_secs(1);
/// What people may take who look at it, or take a mount away.
const LOOK: Duration = Duration::from_secs(2);
const END: Duration = Duration::from_secs(20);

fn up() -> (Cluster, SmallDisk) {
    let mut disk = None;
    let cluster = Cluster::up_in_with(3, &FAILING_SOON, |dir| {
        disk = Some(SmallDisk::mount(&dir.join("n1/data"), 768 * MIB as u64));
    });
    (cluster, disk.expect("mounted"))
}

/// All that somebody does on the mount of the node whose disk is going to hang.
struct Users {
    calls: Vec<Call>,
    killed: Vec<Program>,
    /// Has a stage that is begun, and not closed.
    _staged: Program,
    /// Was lent before, and is at present.
    lent: Option<File>,
}

impl Users {
    fn begin(
        cluster: &Cluster,
        (node, follower): (u64, u64),
        calls: impl FnOnce(&Path) -> Vec<Call>,
    ) -> Self {
        let (here, there) = (cluster.mount(node), cluster.mount(follower));
        for number in 0..READERS + KILLED {
            fs::write(there.join(format!("large-{number}")), vec![7; SIZE]).expect("written");
        }
        let calls = calls(&here);
        cluster.settle();
        let lent = File::open(here.join("large-0")).expect("open");
        let killed = (0..KILLED).map(|_| Program::start()).collect();
        let mut staged = Program::with(&here.join("staged"));
        assert_eq!(staged.ask(&format!("write f 0 {}", "x".repeat(3 * MIB))), "ok");
        Self { calls, killed, _staged: staged, lent: Some(lent) }
    }

    /// The disk hangs now: whoever is killed goes at once, and what is called ends in time, each time.
    fn meet_a_hung_disk(&mut self, here: &Path, rounds: usize) {
        let began = Instant::now();
        let blocked: Vec<_> =
            (0..READERS).map(|number| opens(here.join(format!("large-{number}")))).collect();
        for (number, program) in self.killed.iter_mut().enumerate() {
            let number = READERS + number;
            program.tell(&format!("open-read-only f {}/large-{number}", here.display()));
            program.begin_to_kill();
        }
        let dead = Instant::now() + DEATH;
        let stuck =
            self.killed.iter_mut().filter_map(|it| (!it.is_gone_by(dead)).then(|| it.pid()));
        let stuck: Vec<u32> = stuck.collect();
        assert!(stuck.is_empty(), "killed, and not gone: {stuck:?}");
        let limit = (SHORT_OP_TIMEOUT + SLACK).as_secs_f64();
        for round in 0..rounds {
            let late: Vec<_> =
                do_all(&mut self.calls).into_iter().filter(|(_, _, took)| *took > limit).collect();
            assert!(late.is_empty(), "in round {round}: {late:?}");
        }
        for open in blocked {
            let left = (SHORT_OP_TIMEOUT + SLACK).saturating_sub(began.elapsed());
            open.recv_timeout(left).expect("it has ended");
        }
        self.lent = None;
    }
}

/// Opens a file, and closes it again. Says so when it is done.
fn opens(path: PathBuf) -> Receiver<()> {
    let (done, ended) = channel();
    std::thread::spawn(move || {
        drop(File::open(path));
        done.send(())
    });
    ended
}

/// The others go on, and people are told what is wrong, and get rid of the mount.
fn meanwhile(cluster: &Cluster, node: u64, follower: u64) {
    let address = cluster.address(node);
    write_and_sync(&cluster.mount(follower).join("meanwhile"), b"goes on").expect("by two");
    until_alone(&address);
    let looking = Instant::now();
    let problems = status_of(&address)["problems"].to_string();
    let said = format!("the disk of this node, node {node}, has not done a write");
    assert!(problems.contains(&said), "{problems}");
    succeed(Command::new("umount").arg("--lazy").arg(cluster.mount(node)));
    assert!(looking.elapsed() < LOOK, "it took {:?}", looking.elapsed());
}

/// Whether a process has ended, but for threads that the kernel lets wait for the disk.
fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

#[test]
fn a_hung_disk_of_its_own_holds_nobody() {
    let (cluster, disk) = up();
    let (node, [follower, _]) = nodes(&cluster);
    let mut users = Users::begin(&cluster, (node, follower), |mount| calls(mount, SOME));
    let frozen = Frozen::freeze(&disk);
    users.meet_a_hung_disk(&cluster.mount(node), 1);
    meanwhile(&cluster, node, follower);
    drop(frozen);
    drop(users);
    cluster.down();
    drop(disk);
}

/// Every call, also once the lease is over; and the end of the daemon.
#[test]
#[ignore = "long"]
fn a_hung_disk_of_its_own_holds_no_call_and_no_daemon() {
    let (cluster, disk) = up();
    let (node, [follower, _]) = nodes(&cluster);
    let mut users = Users::begin(&cluster, (node, follower), all_calls);
    let pid = status_of(&cluster.address(node))["pid"].as_i64().expect("a number");
    let pid = i32::try_from(pid).expect("a pid");
    let frozen = Frozen::freeze(&disk);
    users.meet_a_hung_disk(&cluster.mount(node), 2);
    meanwhile(&cluster, node, follower);
    let told = Instant::now();
    cluster.kill(node, "TERM");
    wait_until(END, "the daemon to end", || has_ended(pid).then_some(()));
    println!("the daemon ended {:?} after it was told to", told.elapsed());
    write_and_sync(&cluster.mount(follower).join("afterwards"), b"goes on").expect("by two");
    // First: where fusectl is not mounted, the connection of the mount lives for as long as the kernel keeps the daemon, and
    // whoever has a file of it open waits.
    drop(frozen);
    drop(users);
    cluster.down();
    drop(disk);
}
