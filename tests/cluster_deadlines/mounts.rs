//! Mounting, unmounting, starting and stopping while there is no quorum.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::support::program::Program;
use super::support::python::Python;
use super::support::{Cluster, PATIENCE, quorumfs, succeed, wait_until};
use super::{SHORT_OP_TIMEOUT, WAITING, nodes, status_of, until_alone};

/// What needs nothing of a quorum.
const SOON: Duration = Duration::from_secs(5);
/// A daemon that stops waits for a quorum to take what was written; then for others, some seconds in all.
const STOPPED: Duration = Duration::from_secs(2 + 8);
/// Long enough for an answer that must not come.
const A_WHILE: Duration = Duration::from_millis(700);

/// A command that must succeed within a time.
fn within(limit: Duration, command: &mut Command) {
    let mut child = command.spawn().expect("it runs");
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().expect("it is ours") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("{command:?} took longer than {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success(), "{command:?}: {status}");
}

fn mount(cluster: &Cluster, address: &str, name: &str) -> PathBuf {
    let point = cluster.dir().join(name);
    fs::create_dir_all(&point).expect("mkdir");
    within(SOON, quorumfs().arg("mount").arg(address).arg(&point));
    point
}

fn is_mounted(point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the table of mounts");
    table.lines().any(|line| line.split(' ').nth(4) == point.to_str())
}

/// A program that waits for the quorum to make a directory.
fn blocked(dir: &Path) -> Python {
    let mut program = Python::start("python3", dir);
    program.does("import os");
    program
}

/// A daemon that nobody waits for; stopped when dropped.
struct Daemon(Child);

impl Daemon {
    fn start(cluster: &Cluster, node: u64) -> Self {
        let dir = cluster.dir().join(format!("n{node}"));
        let mut serve = quorumfs();
        serve.arg("serve").arg("--config").arg(dir.join("quorumfs.toml")).stderr(Stdio::null());
        Self(serve.spawn().expect("it runs"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let stopped = Command::new("kill").arg(self.0.id().to_string()).status();
        assert!(stopped.is_ok() && self.0.wait().is_ok() || std::thread::panicking());
    }
}

/// Although calls wait for a quorum that is not there.
#[test]
fn mounts_come_and_go_without_a_quorum() {
    let cluster = Cluster::up_with(3, &WAITING);
    let (node, others) = nodes(&cluster);
    let (address, first) = (cluster.address(node), cluster.mount(node));
    let [used, unused] = ["used", "unused"].map(|name| mount(&cluster, &address, name));
    let [mut waits, mut waits_until_the_end] = [&used, &first].map(|mount| blocked(mount));
    let mut writer = Program::with(&first.join("file"));
    // Before the first write the kernel asks for the file's capabilities.
    assert_eq!(writer.ask("write f 0 first"), "ok");
    for other in others {
        cluster.kill(other, "KILL");
    }
    until_alone(&address);
    assert_eq!(writer.ask("write f 0 bytes"), "ok", "taken in");
    waits.begins("os.mkdir('new')");
    waits_until_the_end.begins("os.mkdir('new')");
    assert!(!waits.is_done_within(A_WHILE) && !waits_until_the_end.is_done_within(A_WHILE));

    within(SOON, Command::new("umount").arg("-l").arg(&used));
    within(SHORT_OP_TIMEOUT + SOON, quorumfs().arg("umount").arg(&unused));
    assert!(!is_mounted(&used) && !is_mounted(&unused));
    waits.kill();
    let another = mount(&cluster, &address, "another");
    within(SOON, Command::new("umount").arg("-l").arg(&another));

    cluster.kill(node, "TERM");
    wait_until(STOPPED, "the daemon to end", || {
        let nodes = cluster.status().nodes;
        nodes.iter().any(|known| known.id == node && known.pid == 0).then_some(())
    });
    assert!(!is_mounted(&first));
    drop((waits_until_the_end, writer));
    starts_without_a_quorum(&cluster, node, others);
}

/// The mount is there at once and does what the configuration says; what waits goes on when there is a quorum.
fn starts_without_a_quorum(cluster: &Cluster, node: u64, others: [u64; 2]) {
    let (address, point) = (cluster.address(node), cluster.mount(node));
    let daemon = Daemon::start(cluster, node);
    wait_until(PATIENCE, "the mount", || is_mounted(&point).then_some(()));
    let status = status_of(&address);
    assert_eq!((&status["mounted"], &status["has_quorum"]), (&true.into(), &false.into()));
    let problems = status["problems"].to_string();
    assert!(problems.contains("no quorum"), "{problems}");
    let [mut killed, mut patient] = [(); 2].map(|()| blocked(cluster.dir()));
    for program in [&mut killed, &mut patient] {
        program.begins(&format!("os.mkdir('{}/' + str(os.getpid()))", point.display()));
        assert!(!program.is_done_within(A_WHILE), "it waits");
    }
    killed.kill();
    cluster.start(others[0]);
    patient.is_done();
    wait_until(PATIENCE, "the node to serve", || {
        (status_of(&address)["has_quorum"] == true).then_some(())
    });
    succeed(Command::new("mountpoint").arg(&point));
    drop(daemon);
    assert!(!is_mounted(&point));
}
