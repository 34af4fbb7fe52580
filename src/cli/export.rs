//! `quorumfs export`: takes the tree out of the data directory of a node that does not run.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::cli::size::size;
use crate::offline::{self, Entries, Exported, Stopped};
use crate::store::DataDir;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The data directory of a daemon that does not run. It stays as it is.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// An empty directory, or one that does not exist.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Takes all that the log holds: a change that was acknowledged may be there without this node's knowing that it was
    /// committed, and so may one that never was.
    #[arg(long)]
    uncommitted: bool,
    /// Where copies are made meanwhile (of the log, the state, and files that changed last); beside the data directory if not given.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let data = DataDir::open(&args.data)?;
    let entries = if args.uncommitted { Entries::All } else { Entries::Committed };
    let stopped = Stopped::open(&data, args.scratch.as_deref(), entries)?;
    let exported = offline::export(&stopped, &args.to)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&exported)?);
    } else {
        print(&exported);
    }
    let Exported { missing, failed, doubts, doubted, .. } = &exported;
    ensure!(
        doubts.is_empty(),
        "the tree may not be that of the cluster, for the reasons above; {} files may have wrong bytes; {} ranges of files are \
         not on this node, {} files or attributes are not as they were",
        doubted.len(),
        missing.len(),
        failed.len()
    );
    ensure!(
        missing.is_empty() && failed.is_empty(),
        "not everything could be taken out: {} ranges of files are not on this node, {} files or attributes are not as they \
         were; each is named above",
        missing.len(),
        failed.len()
    );
    Ok(())
}

fn print(exported: &Exported) {
    let Exported { index, last_index, directories, files, bytes, hard_links, others, .. } =
        exported;
    println!(
        "the tree as of log entry {index}: {directories} directories, {files} files ({})",
        size(*bytes)
    );
    println!("and {hard_links} further names of files, {others} symbolic links and special files");
    if last_index > index {
        println!(
            "the log goes on to entry {last_index}, which this node did not know to be committed: --uncommitted takes that, too"
        );
    }
    for doubt in &exported.doubts {
        println!("{doubt}");
    }
    for doubted in &exported.doubted {
        println!("{doubted}: its bytes may be wrong");
    }
    for missing in &exported.missing {
        println!(
            "{}: bytes {} to {} are not on this node: a hole",
            missing.path, missing.start, missing.end
        );
    }
    for failed in &exported.failed {
        println!("{}: {}", failed.path, failed.what);
    }
}
