//! `quorumfs scrub`: has files read on all replicas, compared and healed, and says how far it is.

use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::cli::client::Admin;
use crate::cli::mountpoint;
use crate::cli::size::size;
use crate::cli::{mount, probe};
use crate::mountinfo::MountLine;
use crate::rpc::admin::{ScrubFinding, ScrubProgress, ScrubRequest};

const MIB: u64 = 1 << 20;
/// Where nothing else says where the daemon is.
const ADDRESS: &str = "127.0.0.1:7401";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file or a directory in a mount of this machine's daemon; everything where none is named.
    path: Option<PathBuf>,
    /// This machine's daemon; that of the mount of PATH, or 127.0.0.1:7401, where none is named.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "path")]
    addr: Option<String>,
    /// Reads no more than so many MiB of files in a second.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..1 << 40))]
    rate: Option<u64>,
    /// Prints JSON, one line for each report.
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report {
    files: u64,
    files_total: u64,
    bytes: u64,
    bytes_total: u64,
    /// Whether the totals are all there is.
    counted: bool,
    found: u64,
    healed: u64,
    unhealed: u64,
    skipped: u64,
    unasked: Vec<u64>,
    bytes_per_second: u64,
    eta_seconds: Option<u64>,
    finding: Option<Finding>,
    done: bool,
}

#[derive(Debug, Serialize)]
struct Finding {
    path: String,
    ino: u64,
    offset: u64,
    what: String,
    healed: bool,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let (address, path) = match &args.path {
        Some(path) => locate(path).await?,
        None => (args.addr.clone().unwrap_or_else(|| ADDRESS.to_owned()), Vec::new()),
    };
    let rate = args.rate.unwrap_or(0) * MIB;
    let mut admin = Admin::connect(&address).await?;
    let mut reports = admin.scrub(ScrubRequest { path: path.into(), rate }).await?;
    let mut screen = Screen::new(args.json);
    let last = loop {
        let report = reports.message().await;
        let report = report.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
        let Some(report) = report else {
            bail!(
                "the daemon at {address} stopped before everything was examined: start it, and scrub again"
            );
        };
        let done = report.done;
        let report = screen.show(report)?;
        if done {
            break report;
        }
    };
    screen.conclude(&last)?;
    ensure!(
        last.unhealed == 0,
        "{} of the problems found could not be healed; each is named above with what can be done",
        last.unhealed
    );
    Ok(())
}

/// The daemon that shows a path, and the path below the root of the file system.
pub(super) async fn locate(path: &Path) -> Result<(String, Vec<u8>)> {
    let absolute = std::path::absolute(path)?;
    // A mount whose daemon hangs must not be looked into.
    if let Some(mount) = mount_of(&absolute)? {
        let serves = probe::probe(&mount.point).await? == probe::Finding::Serves;
        ensure!(
            serves,
            "the mount {} does not serve: see `quorumfs status`",
            mount.point.display()
        );
    }
    let found = std::fs::canonicalize(&absolute);
    let found = found.with_context(|| format!("cannot look at {}", path.display()))?;
    let mount = mount_of(&found)?.with_context(|| {
        format!("{} is not in a quorumfs mount: name a file or a directory in one", path.display())
    })?;
    let (address, subtree) = mount::parse_spec(&mount.source)?;
    let below = found.strip_prefix(&mount.point).expect("it is in the mount");
    let whole = Path::new(subtree.trim_start_matches('/')).join(below);
    Ok((address, whole.as_os_str().as_bytes().to_vec()))
}

/// The mount that a path is in, where it is one of ours.
fn mount_of(path: &Path) -> Result<Option<MountLine>> {
    let around = mountpoint::mounts()?.into_iter().filter(|mount| path.starts_with(&mount.point));
    let nearest = around.max_by_key(|mount| mount.point.components().count());
    Ok(nearest.filter(|mount| mount.fs_type == "fuse.quorumfs"))
}

/// Where it is shown.
struct Screen {
    json: bool,
    /// Whether a line is rewritten all the time.
    live: bool,
    begun: Instant,
}

impl Screen {
    fn new(json: bool) -> Self {
        Self { json, live: !json && std::io::stderr().is_terminal(), begun: Instant::now() }
    }

    fn show(&mut self, progress: ScrubProgress) -> Result<Report> {
        let report = report(progress, self.begun.elapsed());
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
            return Ok(report);
        }
        if let Some(finding) = &report.finding {
            self.clear()?;
            println!("/{} at byte {}: {}", finding.path, finding.offset, finding.what);
        }
        if self.live {
            self.clear()?;
            eprint!("{}", line(&report));
            std::io::stderr().flush()?;
        }
        Ok(report)
    }

    fn clear(&self) -> Result<()> {
        if self.live {
            eprint!("\r\x1b[K");
            std::io::stderr().flush()?;
        }
        Ok(())
    }

    fn conclude(&self, report: &Report) -> Result<()> {
        if self.json {
            return Ok(());
        }
        self.clear()?;
        println!(
            "{} files, {}: {} rotten blocks found, {} healed",
            report.files,
            size(report.bytes),
            report.found,
            report.healed
        );
        if report.skipped > 0 {
            println!("{} files changed all the time and were left out", report.skipped);
        }
        if !report.unasked.is_empty() {
            let nodes: Vec<_> = report.unasked.iter().map(u64::to_string).collect();
            println!(
                "not compared with all files of nodes {}: they did not answer",
                nodes.join(", ")
            );
        }
        Ok(())
    }
}

fn report(progress: ScrubProgress, elapsed: Duration) -> Report {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let bytes_per_second = progress.bytes.saturating_mul(1000) / millis;
    let left = progress.bytes_total.saturating_sub(progress.bytes);
    let finding = progress.finding.map(|finding| {
        let ScrubFinding { path, ino, offset, what, healed } = finding;
        Finding { path: String::from_utf8_lossy(&path).into_owned(), ino, offset, what, healed }
    });
    Report {
        files: progress.files,
        files_total: progress.files_total,
        bytes: progress.bytes,
        bytes_total: progress.bytes_total,
        counted: progress.counted,
        found: progress.found,
        healed: progress.healed,
        unhealed: progress.unhealed,
        skipped: progress.skipped,
        unasked: progress.unasked,
        bytes_per_second,
        eta_seconds: left.checked_div(bytes_per_second).filter(|_| progress.counted),
        finding,
        done: progress.done,
    }
}

fn line(report: &Report) -> String {
    let more = if report.counted { "" } else { "+" };
    let eta = report.eta_seconds.map(|eta| format!(", {eta} s left")).unwrap_or_default();
    format!(
        "{} of {}{more}, {} of {}{more} files, {} rotten blocks found, {} healed, {}/s{eta}",
        size(report.bytes),
        size(report.bytes_total),
        report.files,
        report.files_total,
        report.found,
        report.healed,
        size(report.bytes_per_second)
    )
}
