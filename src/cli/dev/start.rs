//! `quorumfs dev start`: starts one node's daemon again.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use crate::cli::dev::layout::{self, Layout};
use crate::cli::dev::process::{self, Daemon};
use crate::cli::dev::{up, wait};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The number of the node.
    node: u16,
    /// The directory of the cluster.
    #[arg(long)]
    dir: PathBuf,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let layout = Layout::open(&args.dir)?;
    let node = layout.node(args.node)?;
    let _lock = layout::lock(&layout.dir).await?;
    if let Some(daemon) = Daemon::of(&node)? {
        bail!("node {} runs already, as process {}", node.node, daemon.pid);
    }
    // It would join as another node.
    ensure!(
        !node.is_new()?,
        "node {} of the cluster in {} has no data: it was lost, or `quorumfs dev up` has never started the node; a node \
         that has lost its data cannot come back in a dev cluster: use another directory",
        node.node,
        layout.dir.display()
    );
    Daemon::start(&node)?;
    if let Err(error) = wait::until_serving(&node).await {
        up::print_tail(&node.log());
        process::stop(&[node]).await?;
        return Err(error);
    }
    Ok(())
}
