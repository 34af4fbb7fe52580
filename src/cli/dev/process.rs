//! Daemons as processes: started detached, known by a pid file, never mistaken for a stranger.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cli::dev::layout::NodeDir;
use crate::cli::sys::PidFd;
use crate::cli::{cleanup, mountpoint};
use crate::store;

/// A daemon stops cleanly within seconds: it hands leadership over and writes back.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What a pid file says. Numbers of processes are used again, so the number alone names nobody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Daemon {
    pub(crate) pid: i32,
    /// In clock ticks since the boot: field 22 of `proc_pid_stat(5)`.
    start_ticks: u64,
    boot: String,
    program: PathBuf,
}

impl Daemon {
    /// The daemon of `node`, if it runs.
    pub(crate) fn of(node: &NodeDir) -> Result<Option<Self>> {
        let file = node.pid_file();
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", file.display()));
            }
        };
        // A torn pid file is as good as none: it was being written when the power went.
        let daemon: Option<Self> = serde_json::from_slice(&text).ok();
        Ok(daemon.filter(Self::runs))
    }

    /// Starts the daemon of `node` in a process group of its own, its output going to its log.
    pub(crate) fn start(node: &NodeDir) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let path = node.log();
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let mut child = Command::new(&program)
            .args(["serve", "--config"])
            .arg(node.config())
            .current_dir(&node.dir)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let daemon = Self::record(&child, program, node);
        if daemon.is_err() {
            // Nobody would find it again.
            let _ = child.kill();
        }
        daemon
    }

    fn record(child: &Child, program: PathBuf, node: &NodeDir) -> Result<Self> {
        let pid = i32::try_from(child.id()).context("the kernel's pids fit")?;
        let (start_ticks, _) = stat(pid).context("the daemon's process vanished")?;
        let daemon = Self { pid, start_ticks, boot: boot_id()?, program };
        let file = node.pid_file();
        fs::write(&file, serde_json::to_vec(&daemon)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(daemon)
    }

    /// Whether it is still this very process, and not a zombie. One whose other threads are still ending holds its locks.
    pub(crate) fn runs(&self) -> bool {
        let program = fs::read_link(format!("/proc/{}/exe", self.pid));
        let ends = || {
            let threads = fs::read_dir(format!("/proc/{}/task", self.pid));
            threads.is_ok_and(|threads| threads.count() > 1)
        };
        let Some((start, state)) = stat(self.pid) else { return false };
        // A zombie has no program any more.
        let is_it = || program.is_ok_and(|program| is_same(&program, &self.program));
        start == self.start_ticks
            && boot_id().is_ok_and(|boot| boot == self.boot)
            && if state == 'Z' { ends() } else { is_it() }
    }

    /// Sends it a signal; false where it does not run (any more).
    pub(crate) fn signal(&self, signal: i32) -> Result<bool> {
        let process = match PidFd::open(self.pid) {
            Ok(process) => process,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
            Err(error) => return Err(error).context("cannot find the daemon's process"),
        };
        // Checked after it is held on to: what is signalled is what was checked.
        if !self.runs() {
            return Ok(false);
        }
        match process.signal(signal) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(error) => Err(error).context("cannot signal the daemon"),
        }
    }

    /// Waits until it is gone; false where it still runs at the end.
    pub(crate) async fn is_gone_within(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.runs() {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        true
    }
}

/// Stops the daemons of these nodes, cleanly if they let us, and takes their mounts away.
pub(crate) async fn stop(nodes: &[NodeDir]) -> Result<()> {
    let mut running = Vec::new();
    for node in nodes {
        if let Some(daemon) = Daemon::of(node)? {
            daemon.signal(libc::SIGTERM)?;
            // One that was stopped with SIGSTOP would not notice.
            daemon.signal(libc::SIGCONT)?;
            running.push((node, daemon));
        }
    }
    let deadline = Instant::now() + STOP_TIMEOUT;
    for (_, daemon) in &running {
        let left = deadline.saturating_duration_since(Instant::now());
        if !daemon.is_gone_within(left).await {
            daemon.signal(libc::SIGKILL)?;
        }
    }
    for (node, daemon) in &running {
        if !daemon.is_gone_within(KILL_TIMEOUT).await {
            bail!("node {}: its daemon, process {}, does not die", node.node, daemon.pid);
        }
    }
    for node in nodes {
        cleanup::remove_dead(store::recorded_mounts(&node.data())?, None)?;
        mountpoint::unmount(&node.mount())?;
        match fs::remove_file(node.pid_file()) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("cannot remove a pid file"),
        }
    }
    Ok(())
}

/// Start time and state of a process. The name, in parentheses, can contain anything.
fn stat(pid: i32) -> Option<(u64, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((fields.nth(18)?.parse().ok()?, state))
}

fn boot_id() -> Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .context("cannot read the id of this boot")
}

/// The kernel marks a program whose file was replaced while it runs, as a new build does.
fn is_same(running: &Path, recorded: &Path) -> bool {
    let running = running.as_os_str().as_encoded_bytes();
    let running = running.strip_suffix(b" (deleted)").unwrap_or(running);
    running == recorded.as_os_str().as_encoded_bytes()
}
