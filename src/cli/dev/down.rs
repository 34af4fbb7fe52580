//! `quorumfs dev down`: stops all daemons and takes their mounts away.

use std::path::Path;

use anyhow::Result;

use crate::cli::dev::layout::{self, Layout};
use crate::cli::dev::process;

pub(crate) async fn run(dir: &Path) -> Result<()> {
    // Where there is no cluster, nothing of it runs.
    let Some(layout) = Layout::find(dir)? else { return Ok(()) };
    let _lock = layout::lock(&layout.dir).await?;
    process::stop(&layout.all()).await
}
