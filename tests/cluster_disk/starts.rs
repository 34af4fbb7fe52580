//! A start that takes long says what it is about, and ends when it is told to.

use std::fs;
use std::process::{Child, Command, Stdio};

use super::support::{Cluster, PATIENCE, quorumfs, text, wait_until};

/// A daemon behind strace; both are gone when this is dropped.
struct Traced(Child);

impl Traced {
    fn signal(&self, signal: rustix::process::Signal) -> rustix::io::Result<()> {
        let strace = self.0.id();
        let children = fs::read_to_string(format!("/proc/{strace}/task/{strace}/children"));
        let daemon = children.unwrap_or_default().trim().parse().ok();
        let pid = daemon.and_then(rustix::process::Pid::from_raw).ok_or(rustix::io::Errno::SRCH);
        rustix::process::kill_process(pid?, signal)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.signal(rustix::process::Signal::KILL);
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The first sync of a start is in the middle of it.
#[test]
fn a_start_that_takes_long_can_be_asked_and_stopped() {
    /// Longer than the test has patience for.
    const SYNC_US: u64 = 2 * 60_000_000;
    let cluster = Cluster::up(1);
    let address = cluster.address(1);
    cluster.kill(1, "KILL");
    let dir = cluster.dir().join("n1");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e"]);
    strace.arg(format!("inject=fsync,fdatasync:delay_enter={SYNC_US}:when=1"));
    strace.arg("--").arg(quorumfs().get_program()).args(["serve", "--config"]);
    strace.arg(dir.join("quorumfs.toml")).current_dir(&dir).stdin(Stdio::null());
    let strace = strace.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace runs");
    let mut started = Traced(strace);
    wait_until(PATIENCE, "it to be asked", || {
        let asked = quorumfs().args(["status", "--addr", &address]).output().expect("it runs");
        text(&asked.stderr).contains("it has not started yet: opening the stores").then_some(())
    });
    started.signal(rustix::process::Signal::TERM).expect("it runs");
    let ended = || started.0.try_wait().expect("a child");
    assert_eq!(wait_until(PATIENCE, "it to end", ended).code(), Some(0));
    cluster.start(1);
}
