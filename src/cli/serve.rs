//! `quorumfs serve`: one daemon, in the foreground.

use anyhow::{Context, Result};

use crate::cli::args::ConfigArgs;
use crate::cli::preflight;
use crate::config::Config;
use crate::{daemon, telemetry};

pub(crate) fn run(args: &ConfigArgs) -> Result<()> {
    let config = Config::load(&args.config)?;
    telemetry::start_logging(config.log.as_deref()).context("cannot write the log")?;
    preflight::check(&config)?;
    daemon::run(&config)
}
