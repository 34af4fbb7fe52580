//! The replica that is killed: a daemon that the test starts itself, so that strace can.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::{Cluster, PATIENCE, quorumfs, succeed, text, wait_until};

/// One more node of a cluster.
#[derive(Debug)]
pub struct Victim {
    dir: PathBuf,
    address: String,
    /// Of the daemon, or of strace in front of it.
    process: Option<Child>,
}

impl Victim {
    /// Beside those of the cluster; nothing is started.
    pub fn beside(cluster: &Cluster, settings: &[&str]) -> Self {
        let dir = cluster.dir().join("victim");
        for name in ["data", "mnt"] {
            fs::create_dir_all(dir.join(name)).expect("mkdir");
        }
        let peer = cluster.address(1);
        let (host, port) = peer.rsplit_once(':').expect("HOST:PORT");
        // The ports of a cluster are in blocks of 32.
        let address = format!("{host}:{}", port.parse::<u16>().expect("a port") + 31);
        let id = status(&peer).expect("it runs")["cluster"].as_str().expect("an id").to_owned();
        let config = format!(
            "data = \"data\"\nmount = \"mnt\"\nlisten = \"{address}\"\ncluster = \"{id}\"\npeers = [\"{peer}\"]\n{}\n",
            settings.join("\n")
        );
        fs::write(dir.join("quorumfs.toml"), config).expect("write");
        Self { dir, address, process: None }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn mount(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// Starts it, behind strace with these options where there are some.
    pub fn start(&mut self, strace: &[String]) {
        assert!(self.process.is_none(), "it runs");
        let daemon = quorumfs();
        let mut command = if strace.is_empty() {
            daemon
        } else {
            let mut command = Command::new("strace");
            command.args(strace).arg(daemon.get_program());
            command
        };
        let log = File::options().create(true).append(true).open(self.log()).expect("a log");
        command.args(["serve", "--config"]).arg(self.dir.join("quorumfs.toml"));
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.process = Some(process.expect("it is there"));
    }

    /// The daemon's own process.
    pub fn pid(&self) -> Option<u32> {
        let answer = status(&self.address)?;
        u32::try_from(answer["pid"].as_u64()?).ok()
    }

    /// Whether it has a vote, is mounted and is served by a quorum.
    fn is_ready(&self) -> bool {
        let Some(status) = status(&self.address) else { return false };
        let is_own = |member: &&Value| member["node"] == status["node"];
        let own = status["members"].as_array().and_then(|all| all.iter().find(is_own));
        own.is_some_and(|member| member["kind"] == "voter")
            && status["mounted"] == true
            && status["has_quorum"] == true
    }

    /// Waits until it is a working member; false where it dies before.
    pub fn until_ready(&mut self) -> bool {
        wait_until(PATIENCE, "the replica to serve", || {
            if self.is_dead() { Some(false) } else { self.is_ready().then_some(true) }
        })
    }

    pub fn is_dead(&mut self) -> bool {
        let Some(process) = &mut self.process else { return true };
        process.try_wait().expect("it is ours").is_some()
    }

    /// Whether it dies within some time, which is then noted.
    pub fn dies_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if self.is_dead() {
                self.process = None;
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// Ends the daemon by a signal; strace ends with it.
    pub fn end(&mut self, signal: &str) -> Option<ExitStatus> {
        let mut process = self.process.take()?;
        if let Some(pid) = self.pid() {
            let _ = Command::new("kill").args(["-s", signal, &pid.to_string()]).output();
        } else {
            let _ = process.kill();
        }
        Some(process.wait().expect("it is ours"))
    }

    /// Checks its data directory; it does not run.
    pub fn check(&self) {
        let output = quorumfs().arg("fsck").arg("--data").arg(self.data()).output();
        let output = output.expect("the binary runs");
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    }

    fn log(&self) -> PathBuf {
        self.dir.join("quorumfs.log")
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.end("KILL");
        let _ = Command::new("umount").arg("-l").arg(self.mount()).output();
        if std::thread::panicking() {
            let log = text(&fs::read(self.log()).unwrap_or_default());
            let lines: Vec<_> = log.lines().collect();
            eprintln!("the end of {}:", self.log().display());
            lines[lines.len().saturating_sub(60)..].iter().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// What a daemon says of itself, if it answers.
pub fn status(address: &str) -> Option<Value> {
    let output = quorumfs().args(["status", "--json", "--addr", address]).output();
    let output = output.expect("the binary runs");
    output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// Takes away a member that is no more.
pub fn remove_member(address: &str, node: u64) {
    succeed(quorumfs().args(["member", "remove", &node.to_string(), "--addr", address]));
}

/// Empties a directory.
pub fn empty(dir: &Path) {
    fs::remove_dir_all(dir).and_then(|()| fs::create_dir(dir)).expect("an empty directory");
}
