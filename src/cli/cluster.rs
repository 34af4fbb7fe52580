//! `quorumfs cluster init`: makes a new cluster's first node.

use anyhow::{Result, ensure};
use clap::Subcommand;

use crate::cli::args::ConfigArgs;
use crate::config::Config;
use crate::daemon;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a new cluster whose first node is this one, and prints what the others need to join.
    Init(ConfigArgs),
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Init(args) => init(args),
    }
}

fn init(args: &ConfigArgs) -> Result<()> {
    let config = Config::load(&args.config)?;
    ensure!(
        config.cluster.is_none() && config.peers.is_empty(),
        "{} names a cluster to join: remove cluster and peers from it to make a new cluster, \
         or run `quorumfs serve` to join",
        args.config.display()
    );
    let insecure = config.insecure;
    let report = daemon::init(&config)?;
    println!("# Node {} of a new cluster is ready: start it with `quorumfs serve`.", report.node);
    println!("# The other nodes join with these lines in their configuration:");
    println!("cluster = \"{}\"", report.cluster);
    println!("peers = [\"{}\"]", report.address);
    if insecure {
        println!("insecure = true");
    }
    Ok(())
}
