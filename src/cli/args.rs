//! The subcommands and how each is reached.

use std::future::Future;
use std::panic;
use std::path::PathBuf;
use std::process::{self, ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::cli::{
    accept_lost, cleanup, cluster, dev, export, fsck, guardian, leader, member, mount, probe,
    recover, scrub, serve, status,
};
use crate::daemon::StaysDown;

/// The exit code of a daemon that is not to be started again before a person has looked; `scripts/quorumfs.service`
/// knows it.
const STAYS_DOWN: u8 = 3;

/// A file system that replicates what programs write through Raft.
#[derive(Debug, Parser)]
#[command(name = "quorumfs", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one daemon in the foreground, logging to stderr.
    Serve(serve::Args),
    /// Makes clusters.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Shows the cluster as one daemon sees it.
    Status(status::Args),
    /// Says who leads.
    #[command(subcommand)]
    Leader(leader::Command),
    /// Says who belongs to the cluster.
    #[command(subcommand)]
    Member(member::Command),
    /// Runs a whole cluster on this machine, to try things out.
    #[command(subcommand)]
    Dev(dev::Command),
    /// Mounts the file system, or a directory of it, through this machine's daemon.
    Mount(mount::MountArgs),
    /// Unmounts it.
    Umount(mount::UmountArgs),
    /// Reads files on all replicas, compares them, and has what is rotten fetched again.
    Scrub(scrub::Args),
    /// Lists bytes that no node has any more, and makes them zeros where they are named.
    AcceptLost(accept_lost::Args),
    /// Unmounts what a dead daemon left mounted.
    Cleanup(ConfigArgs),
    /// Checks the data directory of a node that does not run.
    Fsck(fsck::Args),
    /// Takes the files out of the data directory of a node that does not run.
    Export(export::Args),
    /// Makes a new cluster of the data directory of the only node that is left.
    Recover(recover::Args),
    /// Fences the mounts of a daemon when it dies. Daemons start it.
    #[command(hide = true)]
    Guardian(guardian::Args),
    /// Says by its exit code whether a mount serves.
    #[command(hide = true)]
    Probe(probe::Args),
}

/// Where the configuration is.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArgs {
    /// The daemon's configuration file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    if mount::is_helper() {
        return mount::helper();
    }
    end_quietly_at_broken_pipe();
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(&args),
        Command::Cluster(command) => cluster::run(&command),
        Command::Status(args) => block_on(status::run(&args)),
        Command::Leader(command) => block_on(leader::run(&command)),
        Command::Member(command) => block_on(member::run(&command)),
        Command::Dev(command) => block_on(dev::run(command)),
        Command::Mount(args) => block_on(mount::mount(&args)),
        Command::Umount(args) => block_on(mount::umount(&args)),
        Command::Scrub(args) => block_on(scrub::run(&args)),
        Command::AcceptLost(args) => block_on(accept_lost::run(&args)),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::Fsck(args) => return fsck::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Recover(args) => recover::run(&args),
        Command::Guardian(args) => guardian::run(&args),
        Command::Probe(args) => return probe::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quorumfs: {}", sentence(&error));
            if error.is::<StaysDown>() { ExitCode::from(STAYS_DOWN) } else { ExitCode::FAILURE }
        }
    }
}

/// Whoever prints into a pipe that nobody reads any more ends without a word, with the status that a shell gives to
/// one that SIGPIPE has killed. The signal itself would also end who writes to a connection that has broken.
fn end_quietly_at_broken_pipe() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let said = panic.payload_as_str().unwrap_or_default();
        if said.starts_with("failed printing to stdout: Broken pipe") {
            process::exit(128 + libc::SIGPIPE);
        }
        hook(panic);
    }));
}

pub(crate) fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(command)
}

/// The chain of causes on one line, without what a cause repeats of its effect.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::{Cli, sentence};
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_error_is_one_line_without_repetitions() {
        let error = anyhow::anyhow!("no\nspace").context("cannot write: no space").context("oh");
        assert_eq!(sentence(&error), "oh: cannot write: no space");
    }
}
