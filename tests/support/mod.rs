//! Clusters of real daemons for tests: brought up by the built binary, gone when dropped.
#![allow(dead_code, reason = "each test binary uses some of it")]
#![allow(clippy::disallowed_methods, reason = "tests wait with deadlines and read where to work")]

pub mod disk;
pub mod program;
pub mod promises;
pub mod python;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Deserialize;
use tempfile::TempDir;

/// How long a daemon may take for what is not measured.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster on this machine.
#[derive(Debug)]
pub struct Cluster {
    dir: TempDir,
}

/// What `dev` writes down of a daemon.
#[derive(Debug, Deserialize)]
struct Recorded {
    pid: i32,
}

/// What `dev status --json` prints.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    pub leader: u64,
    pub nodes: Vec<Node>,
}

/// One node in it.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    pub id: u64,
    pub pid: i32,
    pub role: String,
    pub mounted: bool,
    pub term: u64,
    pub applied: u64,
    pub stable: u64,
    pub digest: String,
    pub address: String,
    pub serves: bool,
}

impl Cluster {
    /// A new cluster that serves.
    pub fn up(nodes: u16) -> Self {
        Self::up_in(nodes, |_| {})
    }

    /// The same, in a directory that is prepared first.
    pub fn up_in(nodes: u16, prepare: impl FnOnce(&Path)) -> Self {
        Self::up_in_with(nodes, &[], prepare)
    }

    /// A new cluster that serves, with these lines in the configuration of each node.
    pub fn up_with(nodes: u16, settings: &[&str]) -> Self {
        Self::up_in_with(nodes, settings, |_| {})
    }

    /// Both.
    pub fn up_in_with(nodes: u16, settings: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let cluster = Self { dir: temporary_dir("cluster") };
        prepare(cluster.dir());
        let mut up = cluster.dev("up");
        up.args(["--nodes", &nodes.to_string(), "--base-port", &base_port(nodes).to_string()]);
        for line in settings {
            up.args(["--set", line]);
        }
        succeed(&mut up);
        cluster
    }

    /// Adds lines to the configurations of all nodes, which are down.
    pub fn configure(&self, lines: &str) {
        for node in fs::read_dir(self.dir()).expect("readdir").flatten() {
            let config = node.path().join("quorumfs.toml");
            if let Ok(text) = fs::read_to_string(&config) {
                fs::write(&config, format!("{text}{lines}")).expect("write");
            }
        }
    }

    /// Starts whatever of it does not run.
    pub fn up_again(&self) {
        succeed(&mut self.dev("up"));
    }

    pub fn down(&self) {
        succeed(&mut self.dev("down"));
    }

    /// `quorumfs dev COMMAND` on this cluster, to be added to.
    pub fn dev(&self, command: &str) -> Command {
        let mut dev = quorumfs();
        dev.args(["dev", command, "--dir"]).arg(self.dir.path());
        dev
    }

    /// Where everything of it lies.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The mount of a node; the path is the same before and after it is mounted.
    pub fn mount(&self, node: u64) -> PathBuf {
        self.dir.path().join(format!("n{node}")).join("mnt")
    }

    pub fn status(&self) -> Status {
        let output = succeed(self.dev("status").arg("--json"));
        serde_json::from_slice(&output.stdout).expect("the documented JSON")
    }

    /// Waits for a leader.
    pub fn leader(&self) -> u64 {
        wait_until(PATIENCE, "a leader", || {
            let leader = self.status().leader;
            (leader != 0).then_some(leader)
        })
    }

    /// Waits until another node than this one leads.
    pub fn leader_other_than(&self, old: u64) -> u64 {
        wait_until(PATIENCE, "another leader", || {
            let leader = self.status().leader;
            (leader != 0 && leader != old).then_some(leader)
        })
    }

    /// The leader, which is not this node: it hands over if it is.
    pub fn leader_beside(&self, own: u64) -> u64 {
        if self.leader() == own {
            succeed(quorumfs().args(["leader", "transfer", "--addr", &self.address(own)]));
        }
        self.leader_other_than(own)
    }

    /// Where a node's daemon listens.
    pub fn address(&self, node: u64) -> String {
        let nodes = self.status().nodes;
        let node = nodes.into_iter().find(|known| known.id == node).expect("a node of the cluster");
        node.address
    }

    /// Some node that does not lead.
    pub fn follower(&self) -> u64 {
        if self.leader() == 1 { 2 } else { 1 }
    }

    pub fn kill(&self, node: u64, signal: &str) {
        succeed(self.dev("kill").args([&node.to_string(), "--signal", signal]));
    }

    /// SIGKILL for every daemon at once, without starting a program: whoever starts one closes what this process has open on
    /// the mounts in it, and so waits for a quorum that may not be there any more.
    pub fn kill_everybody(&self, nodes: u64) {
        let open = |node| {
            let recorded = fs::read(self.dir().join(format!("n{node}/pid"))).expect("a pid file");
            let recorded: Recorded = serde_json::from_slice(&recorded).expect("its format");
            let pid = Pid::from_raw(recorded.pid).expect("not zero");
            pidfd_open(pid, PidfdFlags::empty()).expect("it runs")
        };
        let daemons: Vec<_> = (1..=nodes).map(open).collect();
        for daemon in &daemons {
            pidfd_send_signal(daemon, Signal::KILL).expect("it is this test's");
        }
        for daemon in &daemons {
            // Readable once all of its threads are gone.
            let mut ended = [PollFd::new(daemon, PollFlags::IN)];
            let patience = PATIENCE.try_into().expect("fits");
            assert_eq!(poll(&mut ended, Some(&patience)), Ok(1), "it does not die");
        }
    }

    pub fn start(&self, node: u64) {
        succeed(self.dev("start").arg(node.to_string()));
    }

    /// The backing files of an inode on all nodes.
    pub fn backing_files(&self, ino: u64) -> Vec<PathBuf> {
        let name = format!("{ino}.");
        let mut found = Vec::new();
        for node in self.status().nodes {
            let files = self.dir().join(format!("n{}", node.id)).join("data/files");
            for directory in fs::read_dir(files).expect("the backing files") {
                let directory = directory.expect("readdir").path();
                found.extend(fs::read_dir(directory).expect("readdir").filter_map(|entry| {
                    let path = entry.expect("readdir").path();
                    let file = path.file_name()?.to_str()?.to_owned();
                    file.starts_with(&name).then_some(path)
                }));
            }
        }
        found
    }

    /// Waits until all nodes serve.
    pub fn settle_mounts(&self) {
        wait_until(PATIENCE, "all nodes to serve", || {
            self.status().nodes.iter().all(|node| node.serves).then_some(())
        });
    }

    /// Waits until all nodes serve and have applied the same; fails at once where two of them have
    /// come to different states.
    pub fn settle(&self) {
        wait_until(PATIENCE, "all nodes to agree", || {
            let nodes = self.status().nodes;
            if !nodes.iter().all(|node| node.serves) {
                return None;
            }
            for (one, other) in nodes.iter().zip(&nodes[1..]) {
                if one.applied != other.applied {
                    return None;
                }
                assert_eq!(one.digest, other.digest, "at index {}: {nodes:?}", one.applied);
            }
            Some(())
        });
    }
}

/// Nobody listens on so many ports from this one on, nor is a test that runs beside this one about to: each looks elsewhere.
fn base_port(nodes: u16) -> u16 {
    const FIRST: u16 = 17_400;
    const SLOTS: u16 = 8;
    /// Blocks of ports for each slot.
    const BLOCKS: u16 = 56;
    const BLOCK: u16 = 32;
    assert!(nodes <= BLOCK, "a block of ports has room");
    let slot =
        std::env::var("NEXTEST_TEST_GLOBAL_SLOT").map_or(0, |slot| slot.parse().expect("a number"));
    let first = FIRST + slot % SLOTS * BLOCKS * BLOCK;
    let start = rand::random_range(0..BLOCKS);
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (0..BLOCKS)
        .map(|block| first + (start + block) % BLOCKS * BLOCK)
        .find(|base| (*base..base + nodes).all(is_free))
        .expect("free ports")
}

impl Drop for Cluster {
    /// Daemons that stop wait for a quorum to close their sessions; the last of them do so in vain, for two seconds. Nobody needs
    /// these sessions any more, so the daemons are killed, and `down` finds what they leave behind. How they stop by themselves has
    /// tests that call [`Self::down`].
    fn drop(&mut self) {
        for entry in fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            if let Some(node) = entry.file_name().to_str().and_then(|name| name.strip_prefix('n')) {
                // It may be gone already.
                let _ = self.dev("kill").arg(node).output();
            }
        }
        let output = self.dev("down").output().expect("the binary runs");
        if std::thread::panicking() {
            self.print_logs();
        } else {
            assert!(output.status.success(), "down failed: {}", text(&output.stderr));
        }
    }
}

impl Cluster {
    fn print_logs(&self) {
        for entry in fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            let log = entry.path().join("log").join("quorumfs.log");
            let Ok(bytes) = fs::read(&log) else { continue };
            let log_text = text(&bytes);
            let lines: Vec<_> = log_text.lines().collect();
            eprintln!("the end of {}:", log.display());
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("  {line}");
            }
        }
    }
}

/// The built binary, or the one that `QUORUMFS_TEST_BINARY` names (long tests want a release build).
pub fn quorumfs() -> Command {
    let built = || env!("CARGO_BIN_EXE_quorumfs").into();
    Command::new(std::env::var_os("QUORUMFS_TEST_BINARY").unwrap_or_else(built))
}

/// The last commit that changed what the daemon is made of: later ones, of documents or tests, are
/// no reason to measure anew. That of the sources, also where `QUORUMFS_TEST_BINARY` names a daemon: build it of them.
pub fn commit_of_the_daemon() -> String {
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        let output = git.args(arguments).args(["--", "src", "proto", "Cargo.toml", "Cargo.lock"]);
        text(&output.output().expect("git runs").stdout).trim().to_owned()
    };
    let commit = git(&["log", "-1", "--format=%h"]);
    let is_dirty = !git(&["status", "--porcelain"]).is_empty();
    if is_dirty { format!("{commit}-dirty") } else { commit }
}

/// A program that tests need and this repository does not have: in `$QUORUMFS_TOOLS`, in `PATH` or where
/// cargo installs programs.
pub fn tool(name: &str, how_to_install: &str) -> PathBuf {
    let mut dirs: Vec<_> =
        std::env::var_os("QUORUMFS_TOOLS").map(PathBuf::from).into_iter().collect();
    dirs.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    dirs.extend(std::env::home_dir().map(|home| home.join(".cargo/bin")));
    let found = dirs.into_iter().map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: run '{how_to_install}'"))
}

/// Runs what must succeed.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{command:?} failed: {}", text(&output.stderr));
    output
}

/// A directory that `scripts/test` cleans up after, whatever happens to the test.
pub fn temporary_dir(name: &str) -> TempDir {
    let base = std::env::var_os("QUORUMFS_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::Builder::new().prefix(&format!("{name}.")).tempdir_in(base).expect("a directory")
}

/// Waits for a condition; panics where it does not come.
pub fn wait_until<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(result) = condition() {
            return result;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Creates or overwrites a file, and closes it.
///
/// # Errors
/// Of open and write.
pub fn write_and_close(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    File::create(path)?.write_all(bytes)
}

/// Creates a file whose bytes and name are on disk on a quorum when it returns.
///
/// # Errors
/// Of open, write and fsync.
pub fn write_and_sync(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Every file below a directory with its bytes, but the lock, which names whoever tried last; empty where there is none.
pub fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for entry in entries {
        let path = entry.expect("readdir").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if !path.ends_with("LOCK") {
            found.insert(path.clone(), fs::read(&path).expect("read"));
        }
    }
    found
}

/// The names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("readdir").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

/// What a program printed.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
