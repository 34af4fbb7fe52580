//! Asks whether a mount serves, without ever hanging.
//!
//! A thread that waits in a mount whose daemon is stopped cannot even be killed, and the process
//! cannot exit before it. So another process asks (the hidden `quorumfs probe DIR`), and is left
//! behind where it gets no answer in time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const TIMEOUT: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
const SERVES: u8 = 0;
const DEAD: u8 = 3;

/// What was found at a mount point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The directory answers.
    Serves,
    /// The daemon of the mount is gone.
    Dead,
    /// No answer in time, or an error: the daemon lives but does not serve.
    Silent,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The mount point.
    dir: PathBuf,
}

/// The process that asks.
pub(crate) fn run(args: &Args) -> ExitCode {
    match fs::metadata(&args.dir).and_then(|_| fs::read_dir(&args.dir)) {
        Ok(_) => ExitCode::from(SERVES),
        // Aborted just now, or before.
        Err(error) => match error.raw_os_error() {
            Some(libc::ECONNABORTED | libc::ENOTCONN) => ExitCode::from(DEAD),
            _ => ExitCode::FAILURE,
        },
    }
}

/// Asks the mount on `mount`; takes at most some seconds.
pub(crate) async fn probe(mount: &Path) -> Result<Finding> {
    let mut child = start(mount)?;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match answer(&mut child)? {
            Some(finding) => return Ok(finding),
            None if Instant::now() > deadline => return Ok(give_up(child)),
            None => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

/// [`probe`] for where there is no runtime.
pub(crate) fn probe_blocking(mount: &Path) -> Result<Finding> {
    let mut child = start(mount)?;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match answer(&mut child)? {
            Some(finding) => return Ok(finding),
            None if Instant::now() > deadline => return Ok(give_up(child)),
            None => std::thread::sleep(POLL_INTERVAL),
        }
    }
}

/// Without our stdio, which it would keep open for as long as it hangs.
fn start(mount: &Path) -> Result<Child> {
    let program = std::env::current_exe().context("cannot find this program")?;
    Command::new(program)
        .arg("probe")
        .arg(mount)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start a process that looks at the mount")
}

fn answer(child: &mut Child) -> Result<Option<Finding>> {
    let status = child.try_wait().context("cannot wait for the process that looks at the mount")?;
    Ok(status.map(|status| match status.code() {
        Some(code) if code == i32::from(SERVES) => Finding::Serves,
        Some(code) if code == i32::from(DEAD) => Finding::Dead,
        Some(_) | None => Finding::Silent,
    }))
}

fn give_up(mut child: Child) -> Finding {
    // It may have just ended; and if it waits in the kernel it dies when that lets go of it.
    let _ = child.kill();
    Finding::Silent
}
