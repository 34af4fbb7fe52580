//! A cluster in which each node is a machine of its own: a network namespace, a daemon, a mount that all of the
//! test's programs can use. Everything is gone when it is dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;

use super::network::Network;
use super::support::disk::SmallDisk;
use super::support::{PATIENCE, quorumfs, succeed, temporary_dir, text, wait_until};

const PORT: u16 = 7401;
/// What makes a program see another time of day.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// What is asked for of `status --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    pub role: String,
    pub leader: u64,
    pub term: u64,
    pub applied: u64,
    pub digest: String,
    pub mounted: bool,
    pub lease_ms: u64,
    pub members: Vec<Member>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Member {
    pub node: u64,
    pub kind: String,
}

/// All of them.
#[derive(Debug)]
pub struct Machines {
    pub network: Network,
    /// Those that were started and not ended by the test.
    daemons: Vec<Mutex<Option<Child>>>,
    /// Of the special node.
    disk: Option<SmallDisk>,
    dir: TempDir,
}

impl Machines {
    /// A new cluster that serves.
    pub fn up(nodes: u64) -> Self {
        Self::up_configured(nodes, "")
    }

    /// The same, with some lines in all configurations.
    pub fn up_configured(nodes: u64, lines: &str) -> Self {
        Self::up_with(nodes, lines, temporary_dir("faults"), None)
    }

    /// The same; its last node has a small disk of its own, and a clock that can be set.
    pub fn up_with_special(nodes: u64) -> Self {
        let dir = temporary_dir("faults");
        let disk = SmallDisk::mount(&dir.path().join(format!("n{nodes}/data")), 512 << 20);
        Self::up_with(nodes, "", dir, Some(disk))
    }

    fn up_with(nodes: u64, lines: &str, dir: TempDir, disk: Option<SmallDisk>) -> Self {
        let daemons = (0..nodes).map(|_| Mutex::new(None)).collect();
        let machines = Self { network: Network::of(nodes), daemons, disk, dir };
        for node in machines.all() {
            for part in ["data", "mnt"] {
                fs::create_dir_all(machines.at(node).join(part)).expect("mkdir");
            }
        }
        machines.set_clock(0);
        machines.configure(1, lines);
        let made = machines.quorumfs_at(1, &["cluster", "init", "--config", "quorumfs.toml"]);
        let made = text(&succeed(&mut { made }).stdout);
        let joining: String = made
            .lines()
            .filter(|line| !line.starts_with("insecure"))
            .fold(lines.to_owned(), |all, line| all + line + "\n");
        machines.start(1);
        machines.until_serving(1);
        // One by one, so that their ids are their numbers.
        for node in 2..=nodes {
            machines.configure(node, &joining);
            machines.start(node);
            machines.until_serving(node);
        }
        machines
    }

    pub fn all(&self) -> std::ops::RangeInclusive<u64> {
        1..=self.daemons.len() as u64
    }

    /// Its nodes but for these.
    pub fn others(&self, than: &[u64]) -> Vec<u64> {
        self.all().filter(|node| !than.contains(node)).collect()
    }

    /// The one with the small disk and the clock.
    pub fn special(&self) -> u64 {
        *self.all().end()
    }

    fn at(&self, node: u64) -> PathBuf {
        self.dir.path().join(format!("n{node}"))
    }

    pub fn mount(&self, node: u64) -> PathBuf {
        self.at(node).join("mnt")
    }

    /// Where the special node keeps its data.
    pub fn disk(&self) -> &Path {
        self.disk.as_ref().expect("there is a special node").path()
    }

    fn is_special(&self, node: u64) -> bool {
        self.disk.is_some() && node == self.special()
    }

    fn address(node: u64) -> String {
        format!("{}:{PORT}", Network::host(node))
    }

    fn configure(&self, node: u64, lines: &str) {
        let disk = if self.is_special(node) {
            "reserve = \"32MiB\"\nsnapshot_min_log = \"8MiB\"\nmax_log = \"64MiB\"\n"
        } else {
            ""
        };
        let config = format!(
            "data = \"data\"\nmount = \"mnt\"\nlisten = \"{}\"\ninsecure = true\n{disk}{lines}",
            Self::address(node)
        );
        fs::write(self.at(node).join("quorumfs.toml"), config).expect("write");
    }

    /// Of the program under test, in the namespace and directory of a node.
    fn quorumfs_at(&self, node: u64, arguments: &[&str]) -> Command {
        let mut command = self.network.run_at(node, quorumfs().args(arguments));
        command.current_dir(self.at(node));
        command
    }

    /// Starts a daemon that does not run.
    pub fn start(&self, node: u64) {
        let log = File::options().create(true).append(true).open(self.at(node).join("log"));
        let mut serve = self.quorumfs_at(node, &["serve", "--config", "quorumfs.toml"]);
        serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("a log"));
        if self.is_special(node) && has_clocks() {
            serve.env("LD_PRELOAD", FAKETIME).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            serve.env("FAKETIME_TIMESTAMP_FILE", self.clock()).env("FAKETIME_CACHE_DURATION", "1");
        }
        let mut daemon = self.daemon(node).lock();
        assert!(daemon.is_none(), "node {node} runs");
        *daemon = Some(serve.spawn().expect("nsenter runs"));
    }

    fn daemon(&self, node: u64) -> &Mutex<Option<Child>> {
        &self.daemons[usize::try_from(node).expect("few") - 1]
    }

    pub fn signal(&self, node: u64, signal: Signal) {
        let daemon = self.daemon(node).lock();
        let pid = daemon.as_ref().map(Child::id).expect("it runs");
        let pid = Pid::from_raw(i32::try_from(pid).expect("pids fit")).expect("not zero");
        kill_process(pid, signal).expect("it is this test's");
    }

    /// With SIGKILL; returns when it is gone.
    pub fn kill(&self, node: u64) {
        if let Some(mut daemon) = self.daemon(node).lock().take() {
            daemon.kill().expect("it is this test's");
            daemon.wait().expect("it ends");
        }
    }

    /// Stops it as its operator does.
    pub fn stop(&self, node: u64) {
        self.signal(node, Signal::TERM);
        let daemon = self.daemon(node).lock().take();
        assert!(daemon.expect("it runs").wait().expect("it ends").success(), "node {node}");
    }

    /// As a daemon says of itself; nothing where it does not.
    pub fn status(&self, node: u64) -> Option<Status> {
        let arguments = ["status", "--json", "--addr", &Self::address(node)];
        let output = self.quorumfs_at(node, &arguments).output().expect("nsenter runs");
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// Waits for a leader; the newest where there are two.
    pub fn leader(&self) -> u64 {
        wait_until(PATIENCE, "a leader", || {
            let known = self.all().filter_map(|node| Some((node, self.status(node)?)));
            let leads = known.filter(|(_, status)| status.role == "leader");
            leads.max_by_key(|(_, status)| status.term).map(|(node, _)| node)
        })
    }

    pub fn until_serving(&self, node: u64) {
        wait_until(PATIENCE, "a node to serve", || {
            let status = self.status(node)?;
            let votes = |member: &Member| member.node == node && member.kind == "voter";
            let serves = status.mounted && status.leader != 0 && status.lease_ms > 0;
            (serves && status.members.iter().any(votes)).then_some(())
        });
    }

    /// Waits until all nodes serve and have applied the same, which must have led them to the same state.
    pub fn settle(&self) {
        wait_until(2 * PATIENCE, "all nodes to agree", || {
            let all: Option<Vec<_>> = self.all().map(|node| self.status(node)).collect();
            let all = all.filter(|all| all.iter().all(|s| s.mounted && s.lease_ms > 0))?;
            let at = all[0].applied;
            if all.iter().any(|status| status.applied != at) {
                return None;
            }
            assert!(
                all.iter().all(|status| status.digest == all[0].digest),
                "at index {at}: {all:?}"
            );
            Some(())
        });
    }

    fn clock(&self) -> PathBuf {
        self.dir.path().join("clock")
    }

    /// Sets the time of day of the special node so many seconds off. Its monotonic clock goes on.
    pub fn set_clock(&self, seconds: i64) {
        let new = self.dir.path().join("clock.new");
        fs::write(&new, format!("{seconds:+}\n")).expect("write");
        fs::rename(&new, self.clock()).expect("rename");
    }
}

/// Whether clocks can be set here.
pub fn has_clocks() -> bool {
    Path::new(FAKETIME).exists()
}

impl Machines {
    /// Ends all daemons at once, whatever they are at: nobody waits for them any more.
    pub fn kill_all(&self) {
        for node in self.all() {
            self.kill(node);
        }
    }

    fn print_logs(&self) {
        for node in self.all() {
            let log = text(&fs::read(self.at(node).join("log")).unwrap_or_default());
            let lines: Vec<_> = log.lines().collect();
            eprintln!("the end of node {node}'s log:");
            for line in &lines[lines.len().saturating_sub(60)..] {
                eprintln!("  {line}");
            }
        }
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        self.kill_all();
        for node in self.all() {
            // A guardian may have been faster.
            let _ = Command::new("umount").arg("--lazy").arg(self.mount(node)).output();
        }
    }
}
