//! `quorumfs fsck`: checks the data directory of a node that does not run. Its exit code says what came of it: 0 where
//! nothing is wrong, 1 where something is, 2 where that could not be found out.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::cli::args::sentence;
use crate::cli::size::size;
use crate::offline::{self, Checks, Report};
use crate::store::DataDir;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The data directory of a daemon that does not run.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Removes files and stages that nothing needs; nothing else is changed.
    #[arg(long)]
    repair: bool,
    /// Compares bytes with their checksums, where there are some.
    #[arg(long)]
    bytes: bool,
    /// Where copies are made meanwhile (of the log and the state); beside the data directory if not given.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    match check(args) {
        Ok(report) if report.findings.iter().all(|finding| finding.repaired) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("quorumfs: {}", sentence(&error));
            ExitCode::from(2)
        }
    }
}

fn check(args: &Args) -> Result<Report> {
    let data = DataDir::open(&args.data)?;
    let scratch = args.scratch.as_deref();
    let checks = Checks { bytes: args.bytes, repair: args.repair, scratch };
    let report = offline::fsck(&data, checks)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report, args.bytes);
    }
    Ok(report)
}

fn print(report: &Report, bytes: bool) {
    for finding in &report.findings {
        let repaired = if finding.repaired { " (removed)" } else { "" };
        println!("{}{repaired}", finding.what);
        if let Some(advice) = finding.advice {
            println!("    {advice}");
        }
    }
    if report.index > 0 {
        println!(
            "checked as of log entry {} (the log ends at {}): {} files, {}",
            report.index,
            report.last_index,
            report.files,
            size(report.bytes)
        );
    }
    if report.missing_files > 0 {
        let (files, missing) = (report.missing_files, size(report.missing_bytes));
        println!("{files} files lack {missing} here, which is no fault: the daemon fetches them");
    }
    if report.staged_files > 0 {
        println!("{} files have bytes in stages, which the daemon merges", report.staged_files);
    }
    if bytes {
        println!("{} blocks were compared with their checksums", report.verified_blocks);
    }
    match report.findings.len() {
        0 => println!("nothing is wrong"),
        1 => println!("1 problem was found"),
        count => println!("{count} problems were found"),
    }
}
