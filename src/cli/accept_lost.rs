//! `quorumfs accept-lost`: lists bytes that no node has any more, and makes them zeros where they are named.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail, ensure};
use serde::Serialize;

use crate::cli::client::Admin;
use crate::cli::scrub::locate;
use crate::cli::size::size;
use crate::rpc::admin::{AcceptLostRequest, LostRange, LostReport};

/// Bytes that no node has read as an error (EIO) until they come back or are accepted as lost. Then they are a hole: zeros
/// on every node, also on one that comes back with the bytes. Nothing is accepted that a node has, or that a node may
/// have that does not answer.
///
/// Without --range and --all it only lists what is lost.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file or a directory in a mount of this machine's daemon.
    path: PathBuf,
    /// Accepts these bytes of a file as lost: from START up to, and without, END.
    #[arg(long, value_name = "START..END", value_parser = parse_range, conflicts_with = "all")]
    range: Option<Named>,
    /// Accepts everything as lost that is listed.
    #[arg(long)]
    all: bool,
    /// A node that need not answer: what it may have is given up as well. Once for each.
    #[arg(long, value_name = "NODE", value_parser = clap::value_parser!(u64).range(1..))]
    even_if_away: Vec<u64>,
    /// Accepts also what a node has bytes for that may be right, from a time when its state was wrong (they are listed).
    #[arg(long)]
    even_if_doubted: bool,
    /// Takes the bytes that this machine's node has from such a time for right, where nobody has others, instead of accepting
    /// any as lost. With --range or --all.
    #[arg(long, conflicts_with = "even_if_doubted")]
    take_doubted: bool,
    /// Prints JSON, one line for each file, or several where very many of its ranges are missing.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug)]
struct Named {
    start: u64,
    end: u64,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report {
    path: String,
    ino: u64,
    lost: Vec<Lost>,
    accepted: Vec<Lost>,
    taken: Vec<Lost>,
    doubted: Vec<Doubted>,
    held_bytes: u64,
    holders: Vec<u64>,
    away: Vec<u64>,
    refusal: Option<String>,
}

/// What a node has in the place of lost bytes.
#[derive(Debug, Serialize)]
struct Doubted {
    node: u64,
    ranges: Vec<Lost>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Lost {
    start: u64,
    end: u64,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let (address, path) = locate(&args.path).await?;
    let is_named = args.all || args.range.is_some();
    ensure!(
        is_named || !(args.take_doubted || args.even_if_doubted),
        "say which bytes: --range START..END, or --all"
    );
    if args.range.is_some() && Path::new(&args.path).is_dir() {
        bail!("{} is a directory: --range is for one file", args.path.display());
    }
    let within = args.range.map(|Named { start, end }| LostRange { start, end });
    let away = args.even_if_away.clone();
    let mut admin = Admin::connect(&address).await?;
    let request = AcceptLostRequest {
        path: path.into(),
        within,
        accept: is_named && !args.take_doubted,
        away,
        even_if_doubted: args.even_if_doubted,
        take_doubted: args.take_doubted,
    };
    let mut reports = admin.accept_lost(request).await?;
    let mut total = Total::default();
    loop {
        let report = reports.message().await;
        let Some(report) = report.map_err(|status| anyhow!("{}", status.message()))? else { break };
        let report = Report::from(report);
        total.add(&report);
        if args.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print(&report);
        }
    }
    if !args.json {
        conclude(&total, is_named, args.take_doubted);
    }
    let (refused, done) = (total.refused, if args.take_doubted { "taken" } else { "accepted" });
    ensure!(refused == 0, "not all was {done} of {refused} files; why is said for each above");
    Ok(())
}

/// What the reports come to.
#[derive(Debug, Default)]
struct Total {
    /// The file of the last report.
    ino: u64,
    files: u64,
    lost: u64,
    accepted: u64,
    taken: u64,
    /// Files of which something was not accepted.
    refused: u64,
}

impl Total {
    fn add(&mut self, report: &Report) {
        let len = |ranges: &[Lost]| ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        let [lost, accepted, taken] =
            [&report.lost, &report.accepted, &report.taken].map(|ranges| len(ranges));
        let is_next = report.ino != self.ino && lost + accepted + taken > 0;
        if is_next {
            (self.ino, self.files) = (report.ino, self.files + 1);
        }
        self.lost += lost;
        self.accepted += accepted;
        self.taken += taken;
        // The last report of a file says so.
        self.refused += u64::from(report.refusal.is_some());
    }
}

fn print(report: &Report) {
    let lost = report.lost.iter().map(|range| (range, "lost"));
    let accepted = report.accepted.iter().map(|range| (range, "accepted as lost"));
    let taken = report.taken.iter().map(|range| (range, "taken for right"));
    for (Lost { start, end }, what) in accepted.chain(taken).chain(lost) {
        println!("/{}: bytes {start}..{end} {what}", report.path);
    }
    for Doubted { node, ranges } in &report.doubted {
        for Lost { start, end } in ranges {
            println!(
                "/{}: node {node} has bytes {start}..{end} from a time when its state was wrong; they may be right",
                report.path
            );
        }
    }
    if report.held_bytes > 0 {
        println!(
            "/{}: {} are missing here and come from nodes {}",
            report.path,
            size(report.held_bytes),
            list(&report.holders)
        );
    }
    match &report.refusal {
        Some(refusal) => println!("/{}: {refusal}", report.path),
        None if report.accepted.is_empty() && !report.away.is_empty() => {
            println!(
                "/{}: nodes {} do not answer, and may have them",
                report.path,
                list(&report.away)
            );
        }
        None => {}
    }
}

fn conclude(total: &Total, is_named: bool, takes: bool) {
    let Total { files, lost, accepted, taken, .. } = total;
    if *files == 0 {
        println!("nothing is lost there");
    } else if takes {
        println!("{} were taken for right, {} are still lost", size(*taken), size(*lost));
    } else if is_named {
        println!("{} were accepted as lost, {} were not", size(*accepted), size(*lost));
    } else {
        println!(
            "{} of {files} files are lost. They read as an error until a node comes back that has them, or until they are \
             named: --range START..END, or --all for everything above",
            size(*lost)
        );
    }
}

fn list(nodes: &[u64]) -> String {
    nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

fn parse_range(text: &str) -> Result<Named, String> {
    let parsed = text.split_once("..").and_then(|(start, end)| {
        let named = Named { start: start.parse().ok()?, end: end.parse().ok()? };
        (named.start < named.end).then_some(named)
    });
    parsed.ok_or_else(|| "a range is START..END, in bytes, such as 0..131072".to_owned())
}

impl From<LostReport> for Report {
    fn from(report: LostReport) -> Self {
        let ranges = |ranges: Vec<LostRange>| -> Vec<Lost> {
            ranges.into_iter().map(|LostRange { start, end }| Lost { start, end }).collect()
        };
        let doubted = report.doubted.into_iter();
        let doubted = doubted.map(|of| Doubted { node: of.node, ranges: ranges(of.ranges) });
        Self {
            path: String::from_utf8_lossy(&report.path).into_owned(),
            ino: report.ino,
            lost: ranges(report.lost),
            accepted: ranges(report.accepted),
            taken: ranges(report.taken),
            doubted: doubted.collect(),
            held_bytes: report.held_bytes,
            holders: report.holders,
            away: report.away,
            refusal: (!report.refusal.is_empty()).then_some(report.refusal),
        }
    }
}
