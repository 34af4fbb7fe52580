//! `quorumfs cleanup`: unmounts what a daemon that died left mounted, so that nobody who looks at
//! the mount point gets "transport endpoint is not connected". The service runs it after each stop.

use anyhow::Result;

use crate::cli::args::ConfigArgs;
use crate::cli::{mountpoint, probe};
use crate::config::Config;

pub(crate) fn run(args: &ConfigArgs) -> Result<()> {
    let config = Config::load(&args.config)?;
    let mount = mountpoint::resolve(&config.mount)?;
    if mountpoint::is_fuse(&mount)? && probe::probe_blocking(&mount)? == probe::Finding::Dead {
        mountpoint::unmount(&mount)?;
        println!("unmounted {}, whose daemon is gone", mount.display());
    }
    Ok(())
}
