//! Locks between programs on different mounts: fcntl and flock.
#![allow(clippy::disallowed_methods, reason = "tests wait with deadlines")]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::program::Program;
use support::{Cluster, PATIENCE, succeed, wait_until};

/// Long enough for an answer that must not come.
const A_WHILE: Duration = Duration::from_millis(700);

fn programs<const N: usize>(cluster: &Cluster, name: &str, nodes: [u64; N]) -> [Program; N] {
    nodes.map(|node| Program::with(&cluster.mount(node).join(name)))
}

/// Locks hold between mounts, byte by byte, and end with unlock, close and death; what was written under
/// a lock is there for whoever gets it next.
#[test]
fn locks_hold_on_every_mount() {
    let cluster = Cluster::up(3);
    record_locks(&cluster);
    whole_file_locks(&cluster);
    ends_of_locks(&cluster);
    bytes_under_locks(&cluster);
    waiting(&cluster);
    deadlocks(&cluster);
    cluster.settle();
}

fn record_locks(cluster: &Cluster) {
    let [mut one, mut two, mut neighbour] = programs(cluster, "records", [1, 2, 1]);
    assert_eq!(one.ask("fcntl f w 10 10"), "ok");
    for other in [&mut two, &mut neighbour] {
        assert_eq!(other.ask("fcntl f w 19 1"), "EAGAIN");
        assert_eq!(other.ask("fcntl f r 0 0"), "EAGAIN");
        assert_eq!(other.ask("fcntl f w 20 5"), "ok");
        assert_eq!(other.ask("fcntl f u 20 5"), "ok");
    }
    let pid = one.pid();
    assert_eq!(neighbour.ask("get f 0 0"), format!("w 10 10 {pid}"));
    assert_eq!(
        two.ask("get f 0 0"),
        "w 10 10 0",
        "a process of another machine has no number here"
    );
    assert_eq!(two.ask("get f 20 1"), "u 20 1 0");
    assert_eq!(one.ask("fcntl f r 10 10"), "ok", "downgraded");
    assert_eq!(two.ask("fcntl f r 0 0"), "ok");
    assert_eq!(one.ask("fcntl f w 10 10"), "EAGAIN", "shared by now");
    assert_eq!(two.ask("fcntl f u 12 2"), "ok", "a hole");
    assert_eq!(one.ask("fcntl f w 12 2"), "ok");
    assert_eq!(two.ask("get f 0 0"), "r 10 2 0");
}

fn whole_file_locks(cluster: &Cluster) {
    let [mut one, mut two] = programs(cluster, "whole", [2, 3]);
    assert_eq!(one.ask("flock f s"), "ok");
    assert_eq!(two.ask("flock f s"), "ok");
    assert_eq!(two.ask("flock f x"), "EAGAIN");
    assert_eq!(one.ask("flock f u"), "ok");
    assert_eq!(two.ask("flock f x"), "ok");
    assert_eq!(one.ask("flock f s"), "EAGAIN");
    // Another open file of the same process is another owner.
    let path = cluster.mount(3).join("whole");
    assert_eq!(two.ask(&format!("open g {}", path.display())), "ok");
    assert_eq!(two.ask("flock g s"), "EAGAIN");
    assert_eq!(two.ask("close f"), "ok");
    wait_until(PATIENCE, "the lock of a closed file", || {
        (one.ask("flock f x") == "ok").then_some(())
    });
}

fn ends_of_locks(cluster: &Cluster) {
    let [mut one, mut two] = programs(cluster, "ends", [1, 3]);
    let path = cluster.mount(1).join("ends");
    assert_eq!(one.ask("fcntl f w 0 0"), "ok");
    assert_eq!(two.ask("fcntl f w 0 0"), "EAGAIN");
    // Whichever descriptor of the file a process closes, its record locks are gone.
    assert_eq!(one.ask(&format!("open-read-only g {}", path.display())), "ok");
    assert_eq!(one.ask("close g"), "ok");
    assert_eq!(two.ask("fcntl f w 0 0"), "ok");
    assert_eq!(two.ask("fcntl f u 0 0"), "ok");
    // A reader that only reads.
    let mut reader = Program::start();
    assert_eq!(reader.ask(&format!("open-read-only f {}", path.display())), "ok");
    assert_eq!(reader.ask("fcntl f r 0 0"), "ok");
    assert_eq!(two.ask("fcntl f w 0 0"), "EAGAIN");
    reader.kill();
    wait_until(PATIENCE, "the lock of a killed reader", || {
        (two.ask("fcntl f w 0 0") == "ok").then_some(())
    });
    two.kill();
    wait_until(PATIENCE, "the lock of a killed program", || {
        (one.ask("fcntl f w 0 0") == "ok").then_some(())
    });
}

fn bytes_under_locks(cluster: &Cluster) {
    let mut programs = programs(cluster, "bytes", [1, 2, 3]);
    for round in 0..30 {
        let writer = round % programs.len();
        assert_eq!(programs[writer].ask("fcntl f w 0 0 wait"), "ok");
        if round > 0 {
            assert_eq!(programs[writer].ask("read f 0 4"), format!("{:04}", round - 1));
        }
        assert_eq!(programs[writer].ask(&format!("write f 0 {round:04}")), "ok");
        assert_eq!(programs[writer].ask("fcntl f u 0 0"), "ok");
    }
}

/// Waiters are served in their order, and can be interrupted and killed.
fn waiting(cluster: &Cluster) {
    let [mut one, mut two, mut three, mut four] = programs(cluster, "waiting", [1, 2, 3, 1]);
    assert_eq!(one.ask("flock f x"), "ok");
    for waiter in [&mut two, &mut three, &mut four] {
        waiter.tell("flock f x wait");
        assert_eq!(waiter.answer_within(A_WHILE), None, "it waits");
    }
    assert_eq!(one.ask("flock f u"), "ok");
    assert_eq!(two.answer(), "ok", "the first that came");
    assert_eq!(three.answer_within(A_WHILE), None);
    assert_eq!(two.ask("flock f u"), "ok");
    assert_eq!(three.answer(), "ok");
    assert_eq!(four.answer_within(A_WHILE), None);

    assert_eq!(two.ask("on-signal"), "ok");
    two.tell("flock f x wait");
    assert_eq!(two.answer_within(A_WHILE), None);
    succeed(Command::new("kill").args(["-USR1", &two.pid().to_string()]));
    assert_eq!(two.answer(), "EINTR");
    four.kill();
    assert_eq!(three.ask("flock f u"), "ok");
    assert_eq!(two.ask("flock f x"), "ok", "neither the interrupted nor the killed one has it");
}

fn deadlocks(cluster: &Cluster) {
    let [mut one, mut two] = programs(cluster, "a", [1, 2]);
    for (program, node) in [(&mut one, 1), (&mut two, 2)] {
        let other = cluster.mount(node).join("b");
        assert_eq!(program.ask(&format!("open g {}", other.display())), "ok");
    }
    assert_eq!(one.ask("fcntl f w 0 1"), "ok");
    assert_eq!(two.ask("fcntl g w 0 1"), "ok");
    one.tell("fcntl g w 0 1 wait");
    assert_eq!(one.answer_within(A_WHILE), None);
    assert_eq!(two.ask("fcntl f w 0 1 wait"), "EDEADLK");
    assert_eq!(two.ask("fcntl g u 0 1"), "ok");
    assert_eq!(one.answer(), "ok");
}

/// The two of three that do not lead.
fn followers(cluster: &Cluster) -> (u64, u64) {
    let (leader, node) = (cluster.leader(), cluster.follower());
    (node, 6 - leader - node)
}

/// A node that is silent for too long loses its locks; its programs find out, and others go on.
#[test]
fn locks_end_with_the_session() {
    let cluster = Cluster::up(3);
    let (node, other) = followers(&cluster);
    let [mut silent, mut bystander, mut next] = programs(&cluster, "file", [node, node, other]);
    assert_eq!(silent.ask("fcntl f w 0 0"), "ok");
    assert_eq!(silent.ask("write f 0 old"), "ok");
    // What they do first when they are back differs.
    let [mut asker, mut cutter] = programs(&cluster, "asked", [node, node]);
    assert_eq!(asker.ask("fcntl f r 0 1"), "ok");
    assert_eq!(cutter.ask("fcntl f r 1 1"), "ok");
    assert_eq!(cutter.ask("write f 0 bytes"), "ok");
    cluster.kill(node, "STOP");
    assert_eq!(next.ask("fcntl f w 0 0 wait"), "ok", "once the session is expired");
    assert_eq!(next.ask("write f 0 new"), "ok");
    cluster.kill(node, "CONT");
    assert_eq!(next.ask("fcntl f u 0 0"), "ok");
    assert_eq!(asker.ask("fcntl f w 0 1"), "EIO", "others may have had it in between");
    assert_eq!(cutter.ask("truncate f 0"), "EIO");
    for operation in ["read f 0 3", "write f 0 xxx", "sync f", "fcntl f w 0 0", "fcntl f u 0 0"] {
        assert_eq!(silent.ask(operation), "EIO", "{operation}");
    }
    wait_until(PATIENCE, "the next session", || {
        (bystander.ask("fcntl f w 0 0") == "ok").then_some(())
    });
    assert_eq!(bystander.ask("read f 0 3"), "new", "what was written under a lost lock is lost");
    assert_eq!(bystander.ask("fcntl f u 0 0"), "ok");
    silent.ask("close f");
    let path = cluster.mount(node).join("file");
    assert_eq!(silent.ask(&format!("open f {}", path.display())), "ok");
    assert_eq!(silent.ask("fcntl f w 0 0"), "ok", "opened again, it can be locked again");

    cluster.kill(node, "KILL");
    assert_eq!(next.ask("fcntl f w 0 0 wait"), "ok", "a dead daemon has no locks");
    cluster.start(node);
    cluster.settle();
}

/// Of what was stored through a mapping under a lock nothing is committed once that is lost, whichever descriptor was mapped:
/// it is over for good, and said once. What was stored under no lock stays, and whoever opens the file again goes on.
#[test]
fn mapped_stores_end_with_the_session() {
    let cluster = Cluster::up(3);
    let (node, other) = followers(&cluster);
    let mut pairs: Vec<_> =
        (0..8).map(|number| Mapped::new(&cluster, number, [node, other])).collect();
    let [mut free] = programs(&cluster, "free", [node]);
    let [mut bystander] = programs(&cluster, "bystander", [node]);
    for request in ["truncate f 4096", "map f 4096", "store f 0 mine"] {
        assert_eq!(free.ask(request), "ok", "{request}");
    }
    cluster.kill(node, "STOP");
    for pair in &mut pairs {
        assert_eq!(pair.next.ask(&format!("{} wait", pair.lock.replace('g', "f"))), "ok");
        for request in ["write f 0 BBBB", "sync f"] {
            assert_eq!(pair.next.ask(request), "ok", "{request}");
        }
    }
    cluster.kill(node, "CONT");
    // Some ask at once, some when there is a new session.
    for (number, pair) in pairs.iter_mut().enumerate() {
        if number == 4 {
            wait_until(PATIENCE, "the next session", || {
                (bystander.ask("fcntl f w 0 0") == "ok").then_some(())
            });
        }
        let said =
            ["msync f", "msync f", "sync f", "sync g"].map(|request| pair.silent.ask(request));
        assert_eq!(said, ["EIO", "ok", "ok", "EIO"], "{number}");
    }
    for request in ["msync f", "sync f"] {
        assert_eq!(free.ask(request), "ok", "{request}");
    }
    for pair in &mut pairs {
        pair.assert_shown(&cluster, "BBBB");
        pair.go_on(&cluster);
    }
    assert_eq!(bytes(&cluster, "free", 0), ["mine"; 3]);
    cluster.settle();
}

/// Two programs with one file, on two mounts.
struct Mapped {
    name: String,
    node: u64,
    /// How `g` is locked.
    lock: &'static str,
    /// Has `f` mapped, and stored to it under its lock.
    silent: Program,
    next: Program,
}

impl Mapped {
    const LEN: usize = 16 << 10;
    const FAR: usize = 8 << 10;

    fn new(cluster: &Cluster, number: usize, nodes: [u64; 2]) -> Self {
        let name = format!("mapped-{number}");
        let path = cluster.mount(nodes[0]).join(&name);
        support::write_and_sync(&path, &[b'0'; Self::LEN]).expect("write");
        let lock = ["flock g x", "fcntl g w 0 0"][number % 2];
        let [silent, next] = programs(cluster, &name, nodes);
        let mut mapped = Self { name, node: nodes[0], lock, silent, next };
        mapped.store("AAAA", &path);
        mapped
    }

    fn store(&mut self, text: &str, path: &Path) {
        let stores = [0, Self::FAR].map(|start| format!("store f {start} {text}"));
        let open = format!("open g {}", path.display());
        let map = format!("map f {}", Self::LEN);
        for request in [&open, self.lock, &map, &stores[0], &stores[1]] {
            assert_eq!(self.silent.ask(request), "ok", "{request}");
        }
    }

    fn assert_shown(&self, cluster: &Cluster, first: &str) {
        assert_eq!(bytes(cluster, &self.name, 0), [first; 3], "{}", self.name);
        let far = if first == "BBBB" { "0000" } else { first };
        assert_eq!(bytes(cluster, &self.name, Self::FAR), [far; 3], "{}", self.name);
    }

    /// The one that has lost its lock takes it once more.
    fn go_on(&mut self, cluster: &Cluster) {
        assert_eq!(self.next.ask("close f"), "ok");
        let path = cluster.mount(self.node).join(&self.name);
        self.silent.ask("close g");
        self.silent.ask("unmap f");
        self.silent.ask("close f");
        assert_eq!(self.silent.ask(&format!("open f {}", path.display())), "ok");
        self.store("CCCC", &path);
        for request in ["msync f", "sync f", "sync g"] {
            assert_eq!(self.silent.ask(request), "ok", "{request}");
        }
        self.assert_shown(cluster, "CCCC");
    }
}

/// Four bytes of a file on each mount.
fn bytes(cluster: &Cluster, name: &str, start: usize) -> [String; 3] {
    [1, 2, 3].map(|node| {
        let file = std::fs::read(cluster.mount(node).join(name)).expect("read");
        support::text(&file[start..start + 4])
    })
}

/// Two programs on two mounts count in a file and in a database, and none of it is lost.
#[test]
fn counting_together() {
    let cluster = Cluster::up(3);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/counting.py");
    for mode in ["fcntl", "flock", "sqlite"] {
        let counters = [1, 2, 3].map(|node| {
            let mut counter = Command::new("python3");
            counter.arg(&script).arg(mode).arg(cluster.mount(node)).arg("60");
            counter.spawn().expect("python3 runs")
        });
        for mut counter in counters {
            assert!(counter.wait().expect("it runs").success(), "{mode}");
        }
        let total = succeed(
            Command::new("python3").arg(&script).args([mode, "--total"]).arg(cluster.mount(2)),
        );
        assert_eq!(support::text(&total.stdout).trim(), "180", "{mode}");
    }
    cluster.settle();
}
