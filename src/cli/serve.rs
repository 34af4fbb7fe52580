//! `quorumfs serve`: one daemon, in the foreground.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cli::preflight;
use crate::config::Config;
use crate::{daemon, telemetry};

/// Which daemon.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The daemon's configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Starts also where earlier daemons have ended by themselves again and again, and forgets that they have.
    #[arg(long)]
    after_crash_loop: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let config = Config::load(&args.config)?;
    telemetry::start_logging(config.log.as_deref()).context("cannot write the log")?;
    preflight::check(&config)?;
    daemon::run(&config, args.after_crash_loop)
}
