//! `quorumfs recover`: makes a new cluster of one node's data directory, when the others are gone for good.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use rand::Rng;
use serde::Serialize;

use crate::cli::date::date;
use crate::node;
use crate::offline::{self, Entries, Incomplete, Member, Outlook, Stopped};
use crate::store::{self, DataDir, LogOptions};
use crate::types::ClusterId;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The data directory of the node that is left. Its daemon does not run.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Does it; without this it is only said what would be done.
    #[arg(long)]
    yes: bool,
    /// Where copies are made meanwhile (of the log, the state, and files that changed last); beside the data directory if not given.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report {
    /// The new cluster; nothing where it was only said what would be done.
    cluster: Option<String>,
    node: u64,
    committed: u64,
    last_index: u64,
    last_time: Option<String>,
    sessions: u64,
    removed: Vec<Member>,
    missing: Vec<Incomplete>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut data = DataDir::open_to_refound(&args.data)?;
    // Then there is nothing left to look at.
    let outlook = if store::is_refounded(&data)? { None } else { Some(look(&data, args)?) };
    if let Some(outlook) = outlook.as_ref().filter(|_| !args.json) {
        print(outlook);
    }
    if !args.yes {
        if args.json {
            print_json(outlook, None)?;
        }
        bail!("nothing was changed: run it again with --yes to do this");
    }
    let fresh = ClusterId(rand::rng().random());
    let cluster = store::refound(&mut data, fresh, node::wall(), LogOptions::default())?;
    if args.json {
        return print_json(outlook, Some(cluster));
    }
    print_new(&args.data, data.identity().node.0, cluster);
    Ok(())
}

/// Also before it is done: what cannot be looked at is not begun.
fn look(data: &DataDir, args: &Args) -> Result<Outlook> {
    let stopped = Stopped::open(data, args.scratch.as_deref(), Entries::All)?;
    Ok(offline::outlook(&stopped)?)
}

fn print(outlook: &Outlook) {
    let Outlook { node, committed, last_index, last_time, sessions, members, missing } = outlook;
    println!(
        "node {node} becomes the only member of a new cluster, with everything that its log holds"
    );
    let time = last_time.map(|time| format!(", of {}", date(time.seconds))).unwrap_or_default();
    println!(
        "- its last entry is {last_index}{time}; it knew of {committed} that it was committed"
    );
    println!(
        "- what other nodes acknowledged after that is lost; what nobody acknowledged may be there"
    );
    println!("- {sessions} sessions end, and their locks with them");
    for member in members {
        println!(
            "- node {} at {} is removed, and can come back only with an empty data directory",
            member.node, member.address
        );
    }
    for file in missing {
        let bytes: u64 = file.ranges.iter().map(|(start, end)| end - start).sum();
        println!(
            "- {}: {bytes} bytes are not on this node; they will read as an error (EIO)",
            file.path
        );
        for (start, end) in &file.ranges {
            println!("    from byte {start} to {end}");
        }
    }
    if missing.is_empty() {
        println!("- all bytes of all files are on this node");
    }
}

fn print_new(data: &Path, node: u64, cluster: ClusterId) {
    println!(
        "{} is node {node} of a new cluster now. Before `quorumfs serve`, put into its configuration",
        data.display()
    );
    println!(
        "(in place of `cluster` there), and into that of every node that joins with an empty data directory:"
    );
    println!("cluster = \"{cluster}\"");
}

fn print_json(outlook: Option<Outlook>, cluster: Option<ClusterId>) -> Result<()> {
    let cluster = cluster.map(|cluster| cluster.to_string());
    let report = outlook.map(|outlook| Report {
        cluster: cluster.clone(),
        node: outlook.node,
        committed: outlook.committed,
        last_index: outlook.last_index,
        last_time: outlook.last_time.map(|time| date(time.seconds)),
        sessions: outlook.sessions,
        removed: outlook.members,
        missing: outlook.missing,
    });
    match report {
        Some(report) => println!("{}", serde_json::to_string_pretty(&report)?),
        None => println!(
            "{}",
            serde_json::to_string_pretty(&serde_json::json!({ "cluster": cluster }))?
        ),
    }
    Ok(())
}
