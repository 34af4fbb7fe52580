//! `quorumfs guardian`: the process that fences a daemon's mounts when the daemon dies. Started by daemons only.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::guardian::{self, Report};
use crate::rpc::{self, Fenced};
use crate::types::{ClusterId, NodeId, SessionId};
use crate::{node, telemetry};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The daemon's process, for people who look at the list of processes.
    #[arg(long)]
    of: u32,
    /// The directory of the daemon's log.
    #[arg(long)]
    log: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    guardian::close_inherited().context("cannot close what the daemon has open")?;
    // Without a file it does its work, too.
    let log = args.log.as_deref();
    telemetry::start_logging(log).or_else(|_| telemetry::start_logging(None))?;
    node::run_promptly();
    guardian::run(tell).with_context(|| format!("cannot guard the daemon, process {}", args.of))
}

fn tell(report: &Report) {
    let Report { cluster, node, address, session, peers } = report.clone();
    let (cluster, node, session) = (ClusterId(cluster), NodeId(node), SessionId(session));
    let fenced = Fenced { cluster, node, address, session };
    let peers: Vec<_> = peers.into_iter().map(|(peer, at)| (NodeId(peer), at)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(rpc::tell_fenced(&fenced, &peers)),
        Err(error) => tracing::warn!(%error, "the others wait for the session to expire"),
    }
}
