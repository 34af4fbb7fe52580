//! `quorumfs dev status`: what every node of a dev cluster says of itself.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::cli::client;
use crate::cli::dev::layout::{Layout, NodeDir};
use crate::cli::dev::process::Daemon;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of the cluster.
    #[arg(long)]
    dir: PathBuf,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Scripts read this: fields are only ever added, at the end.
#[derive(Debug, Serialize)]
struct Report {
    /// The id of the node that leads; 0 where nobody does.
    leader: u64,
    nodes: Vec<Node>,
}

#[derive(Debug, Default, Serialize)]
struct Node {
    id: u64,
    /// 0 where no daemon runs.
    pid: i32,
    /// `down` also for a daemon that runs and does not answer.
    role: &'static str,
    mounted: bool,
    term: u64,
    applied: u64,
    stable: u64,
    commit: u64,
    digest: String,
    address: String,
    mount: PathBuf,
    problems: Vec<String>,
    /// It is mounted, and a quorum answers it.
    serves: bool,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let report = collect(&Layout::open(&args.dir)?).await?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

async fn collect(layout: &Layout) -> Result<Report> {
    let mut asked = JoinSet::new();
    for node in layout.all() {
        asked.spawn(ask(node));
    }
    let mut nodes = Vec::new();
    while let Some(node) = asked.join_next().await {
        nodes.push(node??);
    }
    nodes.sort_by_key(|node| node.id);
    // An old leader may not know yet that there is a new one.
    let leader = nodes.iter().filter(|node| node.role == "leader").max_by_key(|node| node.term);
    Ok(Report { leader: leader.map_or(0, |node| node.id), nodes })
}

async fn ask(node: NodeDir) -> Result<Node> {
    let mut report = Node {
        id: u64::from(node.node),
        role: "down",
        mount: node.mount(),
        address: node.address.clone(),
        ..Node::default()
    };
    let Some(daemon) = Daemon::of(&node)? else { return Ok(report) };
    report.pid = daemon.pid;
    let Ok(status) = client::status_of(&report.address).await else { return Ok(report) };
    report.role = match status.role.as_str() {
        "leader" => "leader",
        "learner" => "learner",
        // A candidate is a follower that has heard of no leader.
        _ => "follower",
    };
    report.mounted = status.mounted;
    report.term = status.term;
    report.applied = status.applied;
    report.stable = status.stable;
    report.commit = status.commit;
    report.digest = status.digest;
    report.problems = status.problems;
    report.serves = status.mounted && status.has_quorum;
    Ok(report)
}

fn print(report: &Report) {
    match report.leader {
        0 => println!("nobody leads"),
        leader => println!("node {leader} leads"),
    }
    for node in &report.nodes {
        println!(
            "node {} {} (pid {}) at {}: term {}, applied {}, stable {}, {} {}",
            node.id,
            node.role,
            node.pid,
            node.address,
            node.term,
            node.applied,
            node.stable,
            if node.serves { "serves" } else { "does not serve" },
            node.mount.display()
        );
        for problem in &node.problems {
            println!("  problem: {problem}");
        }
    }
}
