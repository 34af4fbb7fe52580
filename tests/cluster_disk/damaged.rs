//! Files of a stopped node that are damaged, cut or gone: when it is started again it heals, or stays down and says why.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::daemon::{Daemon, Ended, STAYS_DOWN, data, files_like};
use super::pattern;
use super::support::{
    Cluster, PATIENCE, quorumfs, succeed, text, wait_until, write_and_close, write_and_sync,
};

/// The node whose files are damaged.
const NODE: u64 = 3;
const JOIN: &str = "join the cluster as a new node";

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Bit,
    Cut,
    Gone,
}

/// A cluster with some files, of which one node is stopped, and a copy of that node's data.
struct Stopped {
    cluster: Cluster,
    files: Vec<(String, Vec<u8>)>,
    copy: PathBuf,
    random: StdRng,
}

impl Stopped {
    fn new(seed: u64) -> Self {
        println!("seed {seed}");
        let cluster = Cluster::up_with(3, &["snapshot_min_log = \"1MiB\""]);
        let mut files = Vec::new();
        let mut write = |cluster: &Cluster, len: usize| {
            let number = files.len();
            let (name, bytes) = (format!("f{number}"), pattern(number, len));
            let mount = cluster.mount(1 + number as u64 % 3);
            write_and_sync(&mount.join(&name), &bytes).expect("write");
            files.push((name, bytes));
        };
        // So much goes into the log that a snapshot is taken.
        (0..50).for_each(|number| write(&cluster, 50_000 + number));
        (0..3).for_each(|_| write(&cluster, 500_000));
        let snapshots = data(&cluster, NODE).join("snapshots");
        wait_until(PATIENCE, "a snapshot", || (snapshot_in(&snapshots)?.0 > 1).then_some(()));
        (0..10).for_each(|number| write(&cluster, 3_000 + number));
        cluster.settle();
        cluster.leader_beside(NODE);
        let stopped = Self {
            copy: cluster.dir().join("copy"),
            cluster,
            files,
            random: StdRng::seed_from_u64(seed),
        };
        stopped.stop();
        stopped.keep();
        stopped
    }

    fn data(&self) -> PathBuf {
        data(&self.cluster, NODE)
    }

    /// Keeps a copy of what it has now.
    fn keep(&self) {
        // There is none at first.
        let _ = fs::remove_dir_all(&self.copy);
        copy(&self.data(), &self.copy);
    }

    /// Cleanly, so that all of it is on the disk.
    fn stop(&self) {
        let pid = super::daemon::pid_of(&self.cluster, NODE);
        self.cluster.kill(NODE, "TERM");
        super::daemon::until_gone(pid);
    }

    /// As it was when it was stopped last: nothing that it has acknowledged is newer than that.
    fn restore(&self) {
        let data = self.data();
        for entry in fs::read_dir(&data).expect("readdir").flatten() {
            let path = entry.path();
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.expect("remove");
        }
        copy(&self.copy, &data);
    }

    fn damage(&mut self, path: &Path, damage: Damage) -> String {
        let mut bytes =
            fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // Most of some files is zeros that nobody looks at.
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        let at = self.random.random_range(0..used.max(1));
        match damage {
            // One that is empty has no bits.
            Damage::Bit => {
                let bit = self.random.random_range(0..8);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << bit);
            }
            Damage::Cut => bytes.truncate(at),
            Damage::Gone => fs::remove_file(path).expect("remove"),
        }
        if damage != Damage::Gone {
            fs::write(path, bytes).expect("write");
        }
        format!("{} {damage:?} at {at}", path.strip_prefix(self.data()).expect("in it").display())
    }

    /// As after a power loss.
    fn forget_boot(&self) {
        fs::remove_file(self.data().join("boot")).expect("remove");
    }

    /// It starts, and shows what was fsynced; then it is stopped again.
    fn heals(&self, what: &str) -> String {
        let mut daemon = Daemon::start(&self.cluster, NODE, &[], &[]);
        daemon.until_it_says("serving");
        self.assert_all(what);
        let ended = daemon.stop();
        assert_eq!(ended.code, Some(0), "{what}: {}", ended.said);
        self.assert_whole(what);
        self.keep();
        println!("{what}: healed");
        ended.said
    }

    fn assert_all(&self, what: &str) {
        for node in 1..=3 {
            for (name, bytes) in &self.files {
                let path = self.cluster.mount(node).join(name);
                let found = wait_until(PATIENCE, "a file", || fs::read(&path).ok());
                assert!(found == *bytes, "{what}: {name} on node {node} has {} bytes", found.len());
            }
        }
    }

    /// `fsck` finds nothing but what a healed node may lack.
    fn assert_whole(&self, what: &str) {
        let output = quorumfs().arg("fsck").arg("--data").arg(self.data()).output().expect("runs");
        let said = text(&output.stdout);
        assert!(output.status.success(), "{what}: {said}{}", text(&output.stderr));
    }

    fn stays_down(&self, what: &str) -> String {
        let Ended { code, said } = Daemon::start(&self.cluster, NODE, &[], &[]).until_ended();
        assert_eq!(code, Some(STAYS_DOWN), "{what}: {said}");
        println!("{what}: {}", said.lines().last().unwrap_or_default());
        self.restore();
        said
    }

    /// Either, and whatever it says names the file or its directory, and what to do.
    fn heals_or_stays_down(&self, what: &str, name: &str, advice: &str) {
        let daemon = Daemon::start(&self.cluster, NODE, &[], &[]);
        let serves = wait_until(PATIENCE, "it to serve or to end", || {
            let said = daemon.said();
            if said.contains("serving") {
                return Some(true);
            }
            (!Path::new(&format!("/proc/{}/exe", daemon.pid())).exists()).then_some(false)
        });
        if serves {
            self.assert_all(what);
            assert_eq!(daemon.stop().code, Some(0), "{what}");
            self.keep();
            println!("{what}: healed");
            return;
        }
        let Ended { code, said } = daemon.until_ended();
        assert_eq!(code, Some(STAYS_DOWN), "{what}: {said}");
        assert!(said.contains(name) && said.contains(advice), "{what}: {said}");
        println!("{what}: {}", said.lines().last().unwrap_or_default());
        self.restore();
    }

    fn one_of(&self, dir: &str, end: &str) -> PathBuf {
        let found = files_like(&self.data().join(dir), end);
        found.into_iter().next().unwrap_or_else(|| panic!("no {end} in {dir}"))
    }

    fn snapshot(&self) -> PathBuf {
        snapshot_in(&self.data().join("snapshots")).expect("a snapshot").1
    }

    fn log(&self) -> PathBuf {
        self.one_of("log", ".raftlog")
    }

    fn sled(&self) -> PathBuf {
        let state = fs::read_to_string(self.data().join("current")).expect("its name");
        self.data().join(state.trim()).join("db")
    }

    fn backing(&self, name: &str) -> PathBuf {
        let ino = fs::metadata(self.cluster.mount(1).join(name)).expect("stat").ino();
        let found = self.cluster.backing_files(ino);
        let own = self.cluster.dir().join(format!("n{NODE}"));
        found.into_iter().find(|file| file.starts_with(&own)).expect("a backing file")
    }
}

/// The newest that is in force, and its index: one that is being written, or compared, has another ending.
fn snapshot_in(dir: &Path) -> Option<(u64, PathBuf)> {
    let index = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("snap-")?.parse().ok();
    let found = files_like(dir, "").into_iter().filter_map(|path| Some((index(&path)?, path)));
    found.max()
}

fn copy(from: &Path, to: &Path) {
    succeed(Command::new("cp").args(["-a", "--sparse=always", "-T"]).arg(from).arg(to));
}

fn seed() -> u64 {
    let asked = std::env::var("QUORUMFS_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    asked.unwrap_or_else(|| rand::rng().random_range(0..1_000_000))
}

/// One of each kind: a snapshot file, with and without a state; sled; the log.
#[test]
fn a_damaged_node_heals_or_stays_down_with_a_reason() {
    let mut node = Stopped::new(seed());
    let snapshot = node.snapshot();
    let what = node.damage(&snapshot, Damage::Bit);
    let said = node.heals(&what);
    assert!(said.contains("is damaged") && said.contains("written anew from the state"), "{said}");
    let snapshot = node.snapshot();
    let what = node.damage(&snapshot, Damage::Cut);
    node.forget_boot();
    let said = node.heals(&format!("{what}, after a power loss"));
    assert!(said.contains("a peer's snapshot is in the place"), "{said}");
    let sled = node.sled();
    let what = node.damage(&sled, Damage::Gone);
    node.heals(&what);
    fs::write(node.data().join("mounts"), b"5\0/mnt\0").expect("write");
    let said = node.heals("a bit of the format");
    assert!(said.contains("mounts of an earlier run may be left"), "{said}");
    fs::remove_dir_all(node.data().join("log")).expect("remove");
    let said = node.stays_down("the log is gone");
    assert!(said.contains("data/log is damaged") && said.contains(JOIN), "{said}");
    let identity = node.data().join("identity");
    let text = fs::read_to_string(&identity).expect("read").replace("node = 3", "node = 2");
    fs::write(&identity, text).expect("write");
    let said = node.stays_down("the identity of another node");
    assert!(said.contains("identity is damaged"), "{said}");
    node.cluster.start(NODE);
    node.cluster.settle();
}

/// All of them, at random places.
#[test]
#[ignore = "long"]
fn damaged_nodes_heal_or_stay_down_with_a_reason() {
    let mut node = Stopped::new(seed());
    for round in 0..6 {
        let damage = [Damage::Bit, Damage::Cut, Damage::Gone, Damage::Bit][round % 4];
        let is_power_loss = round % 2 == 1;
        let heals: [fn(&Stopped) -> PathBuf; 9] = [
            Stopped::snapshot,
            Stopped::sled,
            |node| node.data().join("current"),
            |node| node.data().join("genesis"),
            |node| node.data().join("stages/image"),
            |node| node.data().join("stages/carried"),
            |node| node.one_of("stages", "pins"),
            |node| node.data().join("mounts"),
            |node| node.data().join("peers"),
        ];
        for path in heals {
            let path = path(&node);
            // Nobody makes that one again.
            if path.ends_with("genesis") && !path.exists() {
                continue;
            }
            if path.ends_with("carried") && damage == Damage::Gone && !is_power_loss {
                continue;
            }
            let what = node.damage(&path, damage);
            if is_power_loss {
                node.forget_boot();
            }
            node.heals(&format!("{what}, power loss: {is_power_loss}"));
        }
        let log = node.log();
        let what = node.damage(&log, damage);
        node.heals_or_stays_down(&what, "data/log", JOIN);
        let identity = node.data().join("identity");
        if damage == Damage::Bit {
            let what = node.damage(&identity, damage);
            node.heals_or_stays_down(&what, "identity", "as a new node");
        }
    }
    node.cluster.start(NODE);
    node.cluster.settle();
}

/// A backing file that is gone is fetched when it is read; one that has other bytes, or is shorter, when it is scrubbed.
#[test]
#[ignore = "long"]
fn damaged_files_are_fetched() {
    let mut node = Stopped::new(seed());
    let gone = node.backing("f51");
    let whole = fs::read(&gone).expect("read");
    node.damage(&gone, Damage::Gone);
    node.heals("a backing file is gone");
    wait_until(PATIENCE, "it to be there", || (fs::read(&gone).ok()? == whole).then_some(()));
    for damage in [Damage::Bit, Damage::Cut] {
        let rotten = node.backing("f52");
        let what = node.damage(&rotten, damage);
        node.cluster.start(NODE);
        let address = node.cluster.address(NODE);
        let scrubbed = quorumfs().args(["scrub", "--addr", &address]).output().expect("runs");
        assert!(scrubbed.status.success(), "{what}: {}", text(&scrubbed.stderr));
        node.assert_all(&what);
        wait_until(PATIENCE, "its bytes", || {
            (fs::read(&rotten).ok()? == node.files[52].1).then_some(())
        });
        node.stop();
    }
    node.cluster.start(NODE);
    write_and_close(&node.cluster.mount(NODE).join("after"), b"after").expect("write");
    node.cluster.settle();
}
