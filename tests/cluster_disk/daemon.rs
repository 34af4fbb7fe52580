//! Single daemons of a cluster: started by hand, watched until they end, their system calls made to fail.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::support::{Cluster, PATIENCE, quorumfs, wait_until};

/// What a daemon exits with that must not be started again by itself.
pub const STAYS_DOWN: i32 = 3;

/// How a daemon ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// All that it said.
    pub said: String,
}

/// A daemon of a cluster that was started by hand. Killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    output: PathBuf,
}

impl Daemon {
    /// `quorumfs serve` for a node, with more arguments and environment.
    pub fn start(
        cluster: &Cluster,
        node: u64,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let dir = cluster.dir().join(format!("n{node}"));
        let output = dir.join("serve.out");
        let file = File::create(&output).expect("a file");
        let mut serve = quorumfs();
        serve.args(["serve", "--config"]).arg(dir.join("quorumfs.toml")).args(more);
        serve.envs(environment.iter().copied()).current_dir(&dir).stdin(Stdio::null());
        serve.stdout(file.try_clone().expect("a descriptor")).stderr(file);
        Self { child: serve.spawn().expect("the binary runs"), output }
    }

    /// Waits for its end.
    pub fn until_ended(mut self) -> Ended {
        let status =
            wait_until(PATIENCE, "the daemon to end", || self.child.try_wait().expect("a child"));
        Ended { code: status.code(), said: self.said() }
    }

    /// Waits until it has said something; panics with what it has said where it ends instead.
    pub fn until_it_says(&mut self, what: &str) {
        wait_until(PATIENCE, what, || {
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none(), "{ended:?} instead of {what}: {}", self.said());
            self.said().contains(what).then_some(())
        });
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it cleanly.
    pub fn stop(self) -> Ended {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a process"), rustix::process::Signal::TERM)
            .expect("it runs");
        self.until_ended()
    }

    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).expect("its output")).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a node keeps its data, as the kernel names it.
pub fn data(cluster: &Cluster, node: u64) -> PathBuf {
    cluster.dir().join(format!("n{node}/data")).canonicalize().expect("it is there")
}

/// What the daemons of a node have recorded of their ends.
pub fn ends(cluster: &Cluster, node: u64) -> String {
    fs::read_to_string(data(cluster, node).join("ends")).unwrap_or_default()
}

pub fn pid_of(cluster: &Cluster, node: u64) -> i32 {
    cluster.status().nodes.into_iter().find(|known| known.id == node).expect("it is known").pid
}

/// System calls of a daemon that fail, until this is dropped.
#[derive(Debug)]
pub struct Failing(Child);

impl Failing {
    /// `calls` on these files fail with `error`. An `strace` that a test leaves behind ends with the daemon.
    pub fn inject(pid: i32, calls: &str, error: &str, files: &[PathBuf]) -> Self {
        Self::inject_when(pid, calls, error, files, "1+")
    }

    /// Only the first such call of each thread fails: the next one succeeds, as where a disk has lost something.
    pub fn inject_once(pid: i32, calls: &str, error: &str, files: &[PathBuf]) -> Self {
        Self::inject_when(pid, calls, error, files, "1")
    }

    fn inject_when(pid: i32, calls: &str, error: &str, files: &[PathBuf], when: &str) -> Self {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-p", &pid.to_string()]);
        for file in files {
            strace.arg("-P").arg(file);
        }
        strace.args(["-e", &format!("trace={calls}")]);
        strace.args(["-e", &format!("inject={calls}:error={error}:when={when}")]);
        strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let failing = Self(strace.spawn().expect("strace runs"));
        wait_until(PATIENCE, "strace to be attached", || is_traced(pid).then_some(()));
        failing
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        // It ends with what it traces, too. At TERM it would wait for the daemon, and one that is just ending waits for it to
        // be told of the end of each thread.
        let _ =
            rustix::process::kill_process(pid.expect("a process"), rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

/// Whether all threads of a process are traced; or it has met its fault already, and is gone.
fn is_traced(pid: i32) -> bool {
    if !Path::new(&format!("/proc/{pid}/exe")).exists() {
        return true;
    }
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    })
}

/// The files of a directory whose names end so.
pub fn files_like(dir: &Path, end: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .expect("a directory")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with(end))
        .collect();
    found.sort();
    found
}

/// Waits until a process is gone. One without a program whose other threads are still ending holds its files, and its
/// locks.
pub fn until_gone(pid: i32) {
    let gone = || {
        let has_program = Path::new(&format!("/proc/{pid}/exe")).exists();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        (!has_program && threads <= 1).then_some(())
    };
    wait_until(PATIENCE.min(Duration::from_secs(30)), "the daemon to end", gone);
}
