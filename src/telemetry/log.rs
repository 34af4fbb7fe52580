//! Log lines: to stderr, and to a file where one is configured.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt};

/// The environment variable that selects what is logged, as `tracing`'s directives.
const FILTER_VARIABLE: &str = "QUORUMFS_LOG";

/// Sends everything that is logged from now on to stderr and, where `directory` is given, to
/// `quorumfs.log` in it. A second call changes nothing.
///
/// # Errors
/// When the directory or the file in it cannot be made.
pub fn start_logging(directory: Option<&Path>) -> io::Result<()> {
    let writer = match directory {
        None => BoxMakeWriter::new(io::stderr),
        Some(directory) => BoxMakeWriter::new(io::stderr.and(Mutex::new(open(directory)?))),
    };
    let filter =
        EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    // It fails only where a subscriber is set already, which then stays.
    let _ = subscriber.try_init();
    Ok(())
}

fn open(directory: &Path) -> io::Result<File> {
    fs::create_dir_all(directory)?;
    OpenOptions::new().create(true).append(true).open(directory.join("quorumfs.log"))
}
