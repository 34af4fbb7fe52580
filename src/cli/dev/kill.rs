//! `quorumfs dev kill`: sends a signal to one node's daemon.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::cli::dev::layout::Layout;
use crate::cli::dev::process::Daemon;

/// SIGKILL takes effect at once, but for what the kernel still has to write.
const GONE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The number of the node.
    node: u16,
    /// The signal: KILL, TERM, STOP, CONT and so on.
    #[arg(long, default_value = "KILL", value_parser = parse_signal)]
    signal: i32,
    /// The directory of the cluster.
    #[arg(long)]
    dir: PathBuf,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let node = Layout::open(&args.dir)?.node(args.node)?;
    let Some(daemon) = Daemon::of(&node)? else { bail!("node {} does not run", node.node) };
    ensure!(daemon.signal(args.signal)?, "node {} does not run any more", node.node);
    ensure!(
        args.signal != libc::SIGKILL || daemon.is_gone_within(GONE_TIMEOUT).await,
        "node {}: its daemon, process {}, does not die",
        node.node,
        daemon.pid
    );
    Ok(())
}

fn parse_signal(text: &str) -> Result<i32, String> {
    const NAMES: [(&str, i32); 11] = [
        ("KILL", libc::SIGKILL),
        ("TERM", libc::SIGTERM),
        ("STOP", libc::SIGSTOP),
        ("CONT", libc::SIGCONT),
        ("INT", libc::SIGINT),
        ("HUP", libc::SIGHUP),
        ("QUIT", libc::SIGQUIT),
        ("ABRT", libc::SIGABRT),
        ("SEGV", libc::SIGSEGV),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
    ];
    let name = text.strip_prefix("SIG").unwrap_or(text);
    NAMES
        .iter()
        .find(|(known, number)| *known == name || number.to_string() == name)
        .map(|(_, number)| *number)
        .ok_or_else(|| format!("use one of {}", NAMES.map(|(name, _)| name).join(", ")))
}
