//! `quorumfs serve`: one daemon, in the foreground.

use anyhow::{Context, Result, ensure};

use crate::cli::args::ConfigArgs;
use crate::cli::preflight;
use crate::config::{Config, ReadMode};
use crate::{daemon, telemetry};

pub(crate) fn run(args: &ConfigArgs) -> Result<()> {
    let config = Config::load(&args.config)?;
    ensure!(
        config.read == ReadMode::Strong,
        "read = \"{}\" is not served by this version: set read = \"strong\"",
        config.read
    );
    telemetry::start_logging(config.log.as_deref()).context("cannot write the log")?;
    preflight::check(&config)?;
    daemon::run(&config)
}
