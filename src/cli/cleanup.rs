//! `quorumfs cleanup`: unmounts what a daemon that died left mounted, so that nobody who looks at
//! a mount point gets "transport endpoint is not connected". The service runs it after each stop.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cli::args::ConfigArgs;
use crate::cli::{mountpoint, probe};
use crate::config::Config;
use crate::store;

pub(crate) fn run(args: &ConfigArgs) -> Result<()> {
    let config = Config::load(&args.config)?;
    for mount in remove_dead(store::recorded_mounts(&config.data)?, config.mount.as_deref())? {
        println!("unmounted {}, whose daemon is gone", mount.display());
    }
    Ok(())
}

/// Removes what is dead of a daemon's mounts: the one of its configuration, and those that it recorded in its
/// data directory. Answers which.
pub(crate) fn remove_dead(
    recorded: Vec<PathBuf>,
    configured: Option<&Path>,
) -> Result<Vec<PathBuf>> {
    let mut mounts: BTreeSet<_> = recorded.into_iter().collect();
    if let Some(mount) = configured {
        mounts.insert(mountpoint::resolve(mount)?);
    }
    let mut removed = Vec::new();
    // The longest first: what is mounted inside of a mount.
    for mount in mounts.into_iter().rev() {
        if mountpoint::is_fuse(&mount)? && probe::probe_blocking(&mount)? == probe::Finding::Dead {
            mountpoint::unmount(&mount)?;
            removed.push(mount);
        }
    }
    Ok(removed)
}
