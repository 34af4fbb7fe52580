//! The subcommands of `quorumfs dev`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::cli::dev::{down, kill, report, start, up};

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
