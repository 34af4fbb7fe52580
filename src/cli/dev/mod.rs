//! `quorumfs dev`: a whole cluster on this machine, each node a daemon of its own on loopback.
//!
//! Everything lies in one directory: `dev.json` says what the cluster is, `nK/` holds node K's
//! configuration, pid file, data, log and mount. Daemons outlive the command that starts them.

mod down;
mod kill;
mod layout;
mod process;
mod report;
mod start;
mod up;
mod wait;

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Starts the cluster of a directory, and makes it first where there is none.
    Up(up::Args),
    /// Shows every node.
    Status(report::Args),
    /// Sends a signal to one node's daemon.
    Kill(kill::Args),
    /// Starts one node's daemon again, and waits until its mount serves.
    Start(start::Args),
    /// Stops all daemons and takes their mounts away. The data stays.
    Down(DirArgs),
}

/// Which cluster.
#[derive(Debug, clap::Args)]
pub(crate) struct DirArgs {
    /// The directory of the cluster.
    #[arg(long)]
    dir: PathBuf,
}

pub(crate) async fn run(command: Command) -> Result<()> {
    match command {
        Command::Up(args) => up::run(&args).await,
        Command::Status(args) => report::run(&args).await,
        Command::Kill(args) => kill::run(&args).await,
        Command::Start(args) => start::run(&args).await,
        Command::Down(args) => down::run(&args.dir).await,
    }
}
