//! Members come, go, move and lose their disks, while the others work; and whoever was away for too long takes a
//! snapshot.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde::Deserialize;
use support::{
    Cluster, PATIENCE, names, quorumfs, succeed, text, wait_until, write_and_close, write_and_sync,
};

#[derive(Debug, Deserialize)]
struct Member {
    node: u64,
    address: String,
    kind: String,
}

/// As the daemon at an address sees them.
fn members(address: &str) -> Vec<Member> {
    let output = succeed(quorumfs().args(["member", "list", "--json", "--addr", address]));
    serde_json::from_slice(&output.stdout).expect("the documented JSON")
}

fn until_is(address: &str, node: u64, kind: &str) {
    wait_until(PATIENCE, kind, || {
        members(address)
            .iter()
            .any(|member| member.node == node && member.kind == kind)
            .then_some(())
    });
}

fn member(address: &str, arguments: &[&str]) {
    succeed(quorumfs().arg("member").args(arguments).args(["--addr", address]));
}

fn refusal(command: &mut Command) -> String {
    let output = command.output().expect("the binary runs");
    assert!(!output.status.success(), "{command:?} went well");
    text(&output.stderr)
}

fn cluster_id(address: &str) -> String {
    let output = succeed(quorumfs().args(["status", "--json", "--addr", address]));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    status["cluster"].as_str().expect("its id").to_owned()
}

/// A field of `quorumfs status --json`.
fn field(address: &str, name: &str) -> u64 {
    let output = succeed(quorumfs().args(["status", "--json", "--addr", address]));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    status[name].as_u64().unwrap_or_else(|| panic!("no {name} in {status}"))
}

/// A daemon that `dev` knows nothing of.
struct Daemon {
    dir: PathBuf,
    address: String,
    process: Option<Child>,
}

impl Daemon {
    /// In a directory beside those of the cluster's nodes, as one more of them.
    fn beside(cluster: &Cluster, name: &str, port: u16) -> Self {
        let dir = cluster.dir().join(name);
        fs::create_dir_all(dir.join("mnt")).expect("mkdir");
        fs::create_dir_all(dir.join("data")).expect("mkdir");
        let daemon = Self { dir, address: format!("127.0.0.1:{port}"), process: None };
        daemon.configure(&cluster.address(1), &cluster_id(&cluster.address(1)));
        daemon
    }

    fn configure(&self, peer: &str, cluster: &str) {
        let config = format!(
            "data = \"data\"\nmount = \"mnt\"\nlisten = \"{}\"\ncluster = \"{cluster}\"\npeers = [\"{peer}\"]\n",
            self.address
        );
        fs::write(self.dir.join("quorumfs.toml"), config).expect("write");
    }

    fn command(&self) -> Command {
        let mut serve = quorumfs();
        serve.args(["serve", "--config"]).arg(self.dir.join("quorumfs.toml"));
        serve
    }

    fn start(&mut self) {
        let log = File::create(self.dir.join("quorumfs.log")).expect("create");
        let process = self.command().stderr(log).stdout(Stdio::null()).spawn();
        self.process = Some(process.expect("the binary runs"));
    }

    fn mount(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    fn until_mounted(&self) {
        let is_mounted = || {
            let mounts = fs::read_to_string("/proc/mounts").expect("read");
            mounts.lines().any(|line| line.split(' ').nth(1) == self.mount().to_str())
        };
        wait_until(PATIENCE, "a mount", || is_mounted().then_some(()));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = Command::new("kill").arg(process.id().to_string()).output();
            let _ = process.wait();
        }
        let _ = Command::new("umount").arg("-l").arg(self.mount()).output();
        if thread::panicking() {
            let log = fs::read(self.dir.join("quorumfs.log")).unwrap_or_default();
            eprintln!("{}:\n{}", self.dir.display(), text(&log));
        }
    }
}

/// A port that no node of the cluster has.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// A cluster whose log is cut after a mebibyte, whoever needs it.
fn with_short_logs(nodes: u16) -> Cluster {
    Cluster::up_with(nodes, &["snapshot_min_log = \"1MiB\"", "max_log = \"1MiB\""])
}

/// Writes through a mount until no other node's log has what a node lacks that knows it up to `known`.
fn outgrow(cluster: &Cluster, writer: u64, away: u64, known: u64) {
    let others = (1..=3).filter(|node| *node != away);
    let addresses: Vec<_> = others.map(|node| cluster.address(node)).collect();
    let mount = cluster.mount(writer);
    for round in 0.. {
        for number in 0..100 {
            let bytes = vec![u8::try_from(number).expect("below 100"); 16 << 10];
            let name = mount.join(format!("d/f{number}"));
            write_and_sync(&name, &bytes).expect("the others go on");
        }
        if addresses.iter().all(|address| field(address, "first_index") > known + 1) {
            return;
        }
        assert!(round < 100, "the log is not cut");
    }
}

fn content(mount: &Path) -> Vec<(String, Vec<u8>)> {
    let dir = mount.join("d");
    let read = |name: String| {
        let bytes = fs::read(dir.join(&name)).expect("read");
        (name, bytes)
    };
    names(&dir).into_iter().map(read).collect()
}

/// Whether the daemon died or only stood still: it comes back by a snapshot, with all bytes, and nothing of what is gone.
#[test]
fn a_node_that_was_away_for_too_long_takes_a_snapshot() {
    let cluster = with_short_logs(3);
    let away = cluster.follower();
    let writer = (1..=3).find(|node| *node != away).expect("there are two");
    fs::create_dir(cluster.mount(writer).join("d")).expect("mkdir");
    for signal in ["KILL", "STOP"] {
        for name in ["stays", "changes", "goes"] {
            write_and_sync(&cluster.mount(writer).join("d").join(name), &vec![7; 300_000])
                .expect("write");
        }
        cluster.settle();
        let open = File::open(cluster.mount(away).join("d/changes")).expect("open");
        // The kernel of one that stands still takes the next connection at once: it counts that there was a break.
        let breaks = || {
            let log = fs::read_to_string(cluster.dir().join(format!("n{writer}/log/quorumfs.log")));
            log.expect("a log").matches(&format!("peer went away peer={away} ")).count()
        };
        let before = breaks();
        cluster.kill(away, signal);
        // What was sent before is in its kernel's buffers.
        wait_until(PATIENCE, "the others to miss it", || (breaks() > before).then_some(()));
        let known = field(&cluster.address(writer), "last_index");
        fs::remove_file(cluster.mount(writer).join("d/goes")).expect("unlink");
        write_and_sync(&cluster.mount(writer).join("d/changes"), signal.as_bytes()).expect("write");
        outgrow(&cluster, writer, away, known);
        if signal == "KILL" {
            drop(open);
            cluster.start(away);
        } else {
            cluster.kill(away, "CONT");
            // What is open goes on: the daemon has not been started again.
            wait_until(PATIENCE, "what was open to follow", || {
                let mut bytes = [0; 8];
                let read = open.read_at(&mut bytes, 0).ok()?;
                (&bytes[..read] == signal.as_bytes()).then_some(())
            });
        }
        cluster.settle();
        assert_eq!(content(&cluster.mount(away)), content(&cluster.mount(writer)), "{signal}");
        assert!(!cluster.mount(away).join("d/goes").exists());
        let log = fs::read_to_string(cluster.dir().join(format!("n{away}/log/quorumfs.log")));
        let installed = log.expect("a log").matches("a peer's snapshot is installed").count();
        assert_eq!(installed, if signal == "KILL" { 1 } else { 2 });
    }
    write_and_close(&cluster.mount(away).join("d/own"), b"own").expect("it serves");
}

/// The log is kept for a member that is away, but no more of it than `max_log`: then it is cut behind the last snapshot,
/// without another one.
#[test]
fn the_log_is_bounded_beside_a_member_that_is_away() {
    const MIB: u64 = 1 << 20;
    let settings = ["snapshot_min_log = \"3MiB\"", "max_log = \"4MiB\""];
    let cluster = Cluster::up_with(3, &settings);
    let away = cluster.follower();
    let others: Vec<_> = (1..=3).filter(|node| *node != away).collect();
    let lengths = || -> Vec<u64> {
        let addresses = others.iter().map(|node| cluster.address(*node));
        addresses.map(|address| field(&address, "log_bytes")).collect()
    };
    let dir = cluster.mount(others[0]).join("d");
    fs::create_dir(&dir).expect("mkdir");
    cluster.settle();
    cluster.kill(away, "KILL");
    let mut written = 0..;
    let mut write = |files: usize| {
        for number in written.by_ref().take(files) {
            let bytes = vec![number; 60 << 10];
            write_and_sync(&dir.join(format!("f{number}")), &bytes).expect("two are a quorum");
        }
    };
    write(53);
    let snapshots = |node: &u64| {
        let log = fs::read_to_string(cluster.dir().join(format!("n{node}/log/quorumfs.log")));
        log.expect("a log").matches("quorumfs::node::snapshots: snapshot ").count()
    };
    let has_one = |node: &u64| snapshots(node) > 0;
    wait_until(PATIENCE, "snapshots", || others.iter().all(has_one).then_some(()));
    assert!(lengths().iter().all(|bytes| *bytes > 3 * MIB), "{:?}: it is kept", lengths());
    // Less than the next snapshot needs.
    write(25);
    wait_until(PATIENCE, "the log to be cut", || {
        lengths().iter().all(|bytes| *bytes < 2 * MIB).then_some(())
    });
    // What the first one covers does not bring another one nearer.
    assert_eq!(others.iter().map(snapshots).collect::<Vec<_>>(), [1, 1]);
    cluster.start(away);
    cluster.settle();
    assert!(content(&cluster.mount(away)) == content(&cluster.mount(others[0])));
}

/// A daemon that never lives for long enough to write by itself what a snapshot takes.
#[test]
fn the_log_is_bounded_where_the_daemon_dies_again_and_again() {
    const MIB: u64 = 1 << 20;
    let cluster = Cluster::up_with(1, &["snapshot_min_log = \"1MiB\""]);
    for life in 0..6 {
        for number in 0..8 {
            let name = cluster.mount(1).join(format!("f{number}"));
            write_and_sync(&name, &vec![life; 60 << 10]).expect("write");
        }
        cluster.kill(1, "KILL");
        cluster.start(1);
        cluster.settle();
    }
    // This one writes next to nothing, but lives for long enough to compare its state.
    wait_until(PATIENCE, "the log to be cut", || {
        write_and_sync(&cluster.mount(1).join("f"), b"little").expect("write");
        (field(&cluster.address(1), "log_bytes") < MIB).then_some(())
    });
}

/// While a program writes: a node joins, the leader is removed, and says so.
#[test]
fn members_come_and_go_under_load() {
    let cluster = Cluster::up(3);
    let leader = cluster.leader();
    let writer = (1..=3).find(|node| *node != leader).expect("there are two");
    let address = cluster.address(writer);
    let mut fourth = Daemon::beside(&cluster, "n4", free_port());
    let done = AtomicBool::new(false);
    let written = thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut written = 0;
            while !done.load(Ordering::Relaxed) {
                let file = cluster.mount(writer).join(format!("f{written}"));
                write_and_sync(&file, b"under load").expect("nobody is held up for good");
                written += 1;
            }
            written
        });
        fourth.start();
        until_is(&address, 4, "voter");
        fourth.until_mounted();
        let removed = quorumfs()
            .args(["member", "remove", &leader.to_string(), "--addr", &address])
            .output()
            .expect("the binary runs");
        done.store(true, Ordering::Relaxed);
        assert!(removed.status.success(), "{}", text(&removed.stderr));
        writing.join().expect("it goes on")
    });
    let left: Vec<_> = members(&address).into_iter().map(|m| (m.node, m.kind)).collect();
    let expected = (1..=4).filter(|node| *node != leader).map(|node| (node, "voter".to_owned()));
    assert_eq!(left, expected.collect::<Vec<_>>());
    assert_eq!(names(&fourth.mount()).len(), written);
    // The one that was removed has said so, and does not come back.
    let config = cluster.dir().join(format!("n{leader}/quorumfs.toml"));
    let again = refusal(quorumfs().args(["serve", "--config"]).arg(config));
    assert!(again.contains("was removed from the cluster"), "{again}");
    write_and_sync(&cluster.mount(writer).join("after"), b"x").expect("the others go on");
    assert_eq!(fs::read(fourth.mount().join("after")).expect("read"), b"x");
}

/// How `serve` ends: its exit code, and what it says.
fn end_of(serve: Child) -> (Option<i32>, String) {
    let output = serve.wait_with_output().expect("it ends");
    (output.status.code(), text(&output.stderr))
}

fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/mounts").expect("read");
    mounts.lines().any(|line| line.split(' ').nth(1) == point.to_str())
}

/// It cannot know from its own state. One of the others may be wrong; both are not.
#[test]
fn a_node_that_was_removed_while_it_was_down_stays_down() {
    const STAYS_DOWN: Option<i32> = Some(3);
    let cluster = Cluster::up(3);
    let away = cluster.follower();
    let others: Vec<_> = (1..=3).filter(|node| *node != away).collect();
    let own = cluster.address(away);
    let addresses: Vec<_> = others.iter().map(|node| cluster.address(*node)).collect();
    cluster.kill(away, "KILL");
    member(&addresses[0], &["remove", &away.to_string()]);
    wait_until(PATIENCE, "both to know", || {
        let knows = |at: &String| members(at).iter().all(|member| member.node != away);
        addresses.iter().all(knows).then_some(())
    });
    cluster.kill(others[1], "KILL");
    let dir = cluster.dir().join(format!("n{away}"));
    let start = || {
        let mut serve = quorumfs();
        serve.args(["serve", "--config"]).arg(dir.join("quorumfs.toml")).current_dir(&dir);
        serve.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs")
    };
    let mut serve = start();
    let said = format!("was removed from the cluster, by the word of {}", others[0]);
    wait_until(PATIENCE, "it to say what it was told", || {
        assert_eq!(serve.try_wait().expect("a child"), None, "the word of one ends nobody");
        let asked = quorumfs().args(["status", "--addr", &own]).output().expect("the binary runs");
        text(&asked.stdout).contains(&said).then_some(())
    });
    cluster.start(others[1]);
    let (code, said) = end_of(serve);
    assert_eq!(code, STAYS_DOWN, "{said}");
    let sentence = format!("node {away} was removed from the cluster: it serves nothing any more");
    let is_last = |said: &str| said.lines().last().is_some_and(|line| line.contains(&sentence));
    assert!(is_last(&said) && said.contains(" mounted path="), "{said}");
    let gone = || (!is_mounted(&cluster.mount(away))).then_some(());
    wait_until(PATIENCE, "its mount to be gone", gone);
    assert!(!dir.join("data/ends").exists(), "that is no failure");
    // It remembers, whoever is in reach.
    for node in others {
        cluster.kill(node, "KILL");
    }
    let (code, said) = end_of(start());
    assert_eq!(code, STAYS_DOWN, "{said}");
    assert!(is_last(&said) && !said.contains(" mounted path="), "{said}");
}

#[test]
fn a_learner_votes_once_it_is_promoted() {
    let cluster = Cluster::up(1);
    let address = cluster.address(1);
    let mut daemon = Daemon::beside(&cluster, "n2", free_port());
    for (at, why) in [("127.0.0.1:0", "is not HOST:PORT"), (&*address, "node 1 is a member at")] {
        let refused = refusal(quorumfs().args(["member", "add", at, "--addr", &address]));
        assert!(refused.contains(why), "{refused}");
    }
    member(&address, &["add", &daemon.address, "--learner"]);
    assert_eq!(members(&address)[1].kind, "announced");
    write_and_sync(&cluster.mount(1).join("file"), &vec![1; 1 << 20]).expect("write");
    daemon.start();
    daemon.until_mounted();
    until_is(&address, 2, "learner");
    assert_eq!(fs::read(daemon.mount().join("file")).expect("read").len(), 1 << 20);
    let refused = refusal(quorumfs().args(["member", "remove", "1", "--addr", &address]));
    assert!(refused.contains("nobody else votes yet"), "{refused}");
    let transfer = |at: &str, to: &[&str]| {
        let mut transfer = quorumfs();
        transfer.args(["leader", "transfer", "--addr", at]).args(to);
        transfer
    };
    for (to, why) in [("2", "it cannot lead"), ("9", "is no member")] {
        let refused = refusal(&mut transfer(&address, &[to]));
        assert!(refused.contains(why), "{refused}");
    }
    member(&address, &["promote", "2"]);
    until_is(&address, 2, "voter");
    let refused = refusal(quorumfs().args(["member", "add", &daemon.address, "--addr", &address]));
    assert!(refused.contains("node 2 is a member at"), "{refused}");
    let again = quorumfs().args(["member", "promote", "2", "--addr", &address]).output();
    let again = text(&again.expect("the binary runs").stdout);
    assert_eq!(again, "node 2 has a vote already\n");
    // Whichever daemon is asked: one that follows passes it on.
    for (at, to, leads) in
        [(&daemon.address, &["2"][..], 2), (&address, &[], 1), (&address, &["2"], 2)]
    {
        let said = text(&succeed(&mut transfer(at, to)).stdout);
        assert_eq!(said, format!("node {leads} leads\n"), "{to:?} at {at}");
    }
    let refused = refusal(quorumfs().args(["member", "remove", "9", "--addr", &address]));
    assert!(refused.contains("no such member"), "{refused}");
    // Nothing but a new cluster removes one of two that is gone for good.
    drop(daemon);
    wait_until(PATIENCE, "the other to be out of reach", || {
        let status = succeed(quorumfs().args(["status", "--addr", &address]));
        text(&status.stdout).contains("node 2 is out of reach").then_some(())
    });
    let refused = refusal(quorumfs().args(["member", "remove", "2", "--addr", &address]));
    assert!(refused.contains("1 of 2 voters") && refused.contains("quorumfs recover"), "{refused}");
    assert!(!refused.contains("--force"), "{refused}");
}

/// The same machine with an empty disk is another member; the old one is removed.
#[test]
fn a_lost_disk_is_replaced_by_a_new_member() {
    let cluster = Cluster::up(3);
    let lost = cluster.follower();
    let other = (1..=3).find(|node| *node != lost).expect("there are two");
    write_and_sync(&cluster.mount(other).join("file"), &vec![3; 500_000]).expect("write");
    let at = cluster.address(lost);
    cluster.kill(lost, "KILL");
    let data = cluster.dir().join(format!("n{lost}/data"));
    fs::remove_dir_all(&data).expect("the disk is lost");
    fs::create_dir(&data).expect("mkdir");
    let mut new =
        Daemon { dir: cluster.dir().join(format!("n{lost}")), address: at, process: None };
    new.start();
    let address = cluster.address(other);
    until_is(&address, 4, "voter");
    new.until_mounted();
    // It refuses who means the old one, ten times a second.
    let log = cluster.dir().join(format!("n{other}/log/quorumfs.log"));
    let refused = || {
        let log = fs::read_to_string(&log).expect("read");
        let of_lost = log.lines().filter(|line| line.contains(&format!("peer={lost} ")));
        let since = of_lost.skip_while(|line| !line.contains("peer refuses us"));
        since.map(str::to_owned).collect::<Vec<_>>()
    };
    wait_until(PATIENCE, "a refusal", || (!refused().is_empty()).then_some(()));
    member(&address, &["remove", &lost.to_string()]);
    assert!(members(&address).iter().all(|member| member.node != lost));
    assert!(refused().len() == 1, "{:#?}", refused());
    assert_eq!(fs::read(new.mount().join("file")).expect("read"), vec![3; 500_000]);
    // The new one counts.
    let third = (1..=3).find(|node| *node != lost && *node != other).expect("there is one");
    cluster.kill(third, "KILL");
    write_and_sync(&new.mount().join("more"), b"more").expect("two of three");
}

/// A node moves to another address; a copy of its data does not.
#[test]
fn a_node_moves_and_a_copy_of_it_is_refused() {
    let cluster = Cluster::up(3);
    let moving = cluster.follower();
    let other = (1..=3).find(|node| *node != moving).expect("there are two");
    let from = cluster.dir().join(format!("n{moving}"));
    let mut copy = Daemon::beside(&cluster, "copy", free_port());
    let copied =
        Command::new("cp").arg("-aT").arg(from.join("data")).arg(copy.dir.join("data")).status();
    assert!(copied.expect("cp runs").success());
    fs::remove_file(copy.dir.join("data/LOCK")).expect("only a copy of a lock");
    let refused = refusal(&mut copy.command());
    assert!(refused.contains("stop it there before it is started elsewhere"), "{refused}");
    // What was a copy is a move once the first one is stopped.
    cluster.kill(moving, "TERM");
    fs::remove_dir_all(copy.dir.join("data")).expect("rm");
    fs::rename(from.join("data"), copy.dir.join("data")).expect("mv");
    wait_until(PATIENCE, "the move", || {
        if copy.process.as_mut().is_none_or(|process| process.try_wait().expect("wait").is_some()) {
            copy.start();
        }
        let known = members(&cluster.address(other));
        known.iter().any(|m| m.node == moving && m.address == copy.address).then_some(())
    });
    copy.until_mounted();
    write_and_sync(&copy.mount().join("file"), b"moved").expect("it serves");
    assert_eq!(fs::read(cluster.mount(other).join("file")).expect("read"), b"moved");
}

/// Two members become one, whichever goes, and a member that is not yet ready is not left alone.
#[test]
fn the_last_but_one_goes() {
    for leaves_leader in [false, true] {
        let cluster = Cluster::up(2);
        let leader = cluster.leader();
        let leaves = if leaves_leader { leader } else { 3 - leader };
        let stays = 3 - leaves;
        let address = cluster.address(stays);
        write_and_sync(&cluster.mount(leaves).join("file"), b"before").expect("write");
        member(&address, &["remove", &leaves.to_string()]);
        write_and_sync(&cluster.mount(stays).join("file"), b"after").expect("it is a quorum");
        assert_eq!(members(&address).len(), 1);
        wait_until(PATIENCE, "the daemon to end", || {
            let node = cluster.status().nodes.into_iter().find(|node| node.id == leaves)?;
            (node.role == "down").then_some(())
        });
    }
}
