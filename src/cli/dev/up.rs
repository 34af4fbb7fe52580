//! `quorumfs dev up`: starts the cluster of a directory, and makes it first where there is none.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::dev::layout::{self, Layout, NodeDir};
use crate::cli::dev::process::{self, Daemon};
use crate::cli::dev::wait::{self, FailingNode};
use crate::config::Config;
use crate::daemon;

const DEFAULT_NODES: u16 = 3;
const TAIL_LINES: usize = 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the cluster; it is made where it does not exist.
    #[arg(long)]
    dir: PathBuf,
    /// How many nodes a new cluster has [default: 3].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=32))]
    nodes: Option<u16>,
    /// The port of a new cluster's first node; the others follow [default: some free ones].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    base_port: Option<u16>,
    /// A line for the configuration of every new node, such as 'op_timeout = "10s"'; as often as wanted.
    #[arg(long = "set", value_name = "LINE")]
    settings: Vec<String>,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    layout::check_settings(&args.dir, &args.settings)?;
    fs::create_dir_all(&args.dir)
        .with_context(|| format!("cannot create {}", args.dir.display()))?;
    let _lock = layout::lock(&args.dir).await?;
    let mut layout = find_or_create(args)?;
    let mut started = Vec::new();
    let result = tokio::select! {
        result = bring_up(&mut layout, &args.settings, &mut started) => result,
        result = interruption() => result,
    };
    if let Err(error) = result {
        if let Some(FailingNode(node)) = error.downcast_ref() {
            print_tail(&layout.node(*node)?.log());
        }
        process::stop(&started).await.context("cannot clean up after a failed start")?;
        return Err(error);
    }
    for node in layout.all() {
        println!("node {} at {} serves {}", node.node, node.address, node.mount().display());
    }
    Ok(())
}

fn find_or_create(args: &Args) -> Result<Layout> {
    let Some(layout) = Layout::find(&args.dir)? else {
        return Layout::create(&args.dir, args.nodes.unwrap_or(DEFAULT_NODES), args.base_port);
    };
    let same_nodes = args.nodes.is_none_or(|nodes| nodes == layout.nodes);
    let same_port = args.base_port.is_none_or(|port| port == layout.base_port);
    ensure!(
        same_nodes && same_port,
        "the cluster in {} has {} nodes from port {} on: leave --nodes and --base-port out, or use \
         another directory",
        args.dir.display(),
        layout.nodes,
        layout.base_port
    );
    Ok(layout)
}

/// Old nodes start together, since it takes a quorum of them to lead. New ones join one by one, so
/// that their ids are their numbers.
async fn bring_up(
    layout: &mut Layout,
    settings: &[String],
    started: &mut Vec<NodeDir>,
) -> Result<()> {
    for node in layout.all() {
        node.create()?;
    }
    let founder = layout.node(1)?;
    let mut newcomers = Vec::new();
    for node in &layout.all()[1..] {
        if node.is_new()? {
            newcomers.push(node.clone());
        }
    }
    found(layout, &founder, settings)?;
    let veterans: Vec<_> = layout
        .all()
        .into_iter()
        .filter(|node| newcomers.iter().all(|new| new.node != node.node))
        .collect();
    for node in &veterans {
        start(node, started)?;
    }
    if let Some(first) = newcomers.first() {
        // Without it there may be no quorum to wait for; and what is known then may be old.
        refuse_lost(layout, &founder, first).await?;
        for node in &veterans {
            wait::until_serving(node).await?;
        }
        refuse_lost(layout, &founder, first).await?;
    }
    for node in &newcomers {
        start(node, started)?;
        wait::until_serving(node).await?;
    }
    wait::until_complete(layout).await
}

/// One that has been a member would join as another node.
async fn refuse_lost(layout: &Layout, founder: &NodeDir, node: &NodeDir) -> Result<()> {
    let members = wait::until_answering(founder).await?.members;
    // Ids are given in order.
    ensure!(
        members.iter().all(|member| member.node < u64::from(node.node)),
        "node {} of the cluster in {} has lost its data: use another directory",
        node.node,
        layout.dir.display()
    );
    Ok(())
}

/// Makes the cluster's first node unless there is one, and everybody's configuration.
fn found(layout: &mut Layout, founder: &NodeDir, settings: &[String]) -> Result<()> {
    founder.configure(None, &[], settings)?;
    if founder.is_new()? {
        ensure!(
            layout.cluster.is_none(),
            "node 1 of the cluster in {} has lost its data: use another directory",
            layout.dir.display()
        );
        let report = daemon::init(&Config::load(&founder.config())?).context(FailingNode(1))?;
        layout.cluster = Some(report.cluster.to_string());
        layout.save()?;
    }
    let Some(cluster) = layout.cluster.clone() else {
        bail!(
            "the cluster in {} was made only in part: use another directory",
            layout.dir.display()
        )
    };
    let nodes = layout.all();
    for node in &nodes[1..] {
        let others = nodes.iter().filter(|other| other.node != node.node);
        let peers: Vec<_> = others.map(|other| other.address.clone()).collect();
        node.configure(Some(&cluster), &peers, settings)?;
    }
    Ok(())
}

/// One that runs already is left alone, also if this command fails later.
fn start(node: &NodeDir, started: &mut Vec<NodeDir>) -> Result<()> {
    if Daemon::of(node)?.is_none() {
        started.push(node.clone());
        Daemon::start(node).context(FailingNode(node.node))?;
    }
    Ok(())
}

async fn interruption() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    bail!("interrupted; everything that was started is stopped again")
}

/// The end of a log, for people. Nothing where it cannot be read: there is an error already.
pub(crate) fn print_tail(path: &Path) {
    const TAIL_BYTES: u64 = 16 << 10;
    let tail = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let Ok(bytes) = tail() else { return };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    eprintln!("the end of {}:", path.display());
    for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
        eprintln!("  {line}");
    }
}
