//! What must be true of the machine before a daemon opens its data: checked first, so that a node
//! which cannot start changes nothing.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cli::{cleanup, mountpoint};
use crate::config::Config;
use crate::store;

/// For so long a port may be in use by a daemon that is ending.
const PORT_PATIENCE: Duration = Duration::from_secs(2);

/// Checks the machine for what `config` asks of it, and removes the dead mounts of an earlier run.
pub(crate) fn check(config: &Config) -> Result<()> {
    check_fuse()?;
    // It may be damaged. Whether a newer version wrote the data directory other files say.
    let recorded = store::recorded_mounts(&config.data).unwrap_or_else(|error| {
        tracing::warn!(%error, "mounts of an earlier run may be left: `umount -l` takes one away");
        Vec::new()
    });
    for mount in cleanup::remove_dead(recorded, config.mount.as_deref())? {
        tracing::info!(mount = %mount.display(), "removed the dead mount of an earlier run");
    }
    if let Some(mount) = &config.mount {
        check_mount_point(mount)?;
    }
    check_port(config)
}

fn check_fuse() -> Result<()> {
    let device = Path::new("/dev/fuse");
    let file = match fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no /dev/fuse: load the kernel's module with `modprobe fuse`")
        }
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
            bail!("nothing serves /dev/fuse: load the kernel's module with `modprobe fuse`")
        }
        Err(error) => {
            return Err(error).context(
                "cannot open /dev/fuse: let this user read and write it, or run the daemon as root",
            );
        }
    };
    let kind = file.metadata().context("cannot look at /dev/fuse")?.file_type();
    ensure!(
        kind.is_char_device(),
        "/dev/fuse is not a device: remove it, then load the kernel's module with `modprobe fuse`"
    );
    Ok(())
}

/// An empty place to mount on. A mount whose daemon is gone was ours to remove; a live one is not.
fn check_mount_point(mount: &Path) -> Result<()> {
    let mount = &mountpoint::resolve(mount)?;
    ensure!(
        !mountpoint::is_mounted(mount)?,
        "something is mounted on {} already: unmount it or choose another mount point",
        mount.display()
    );
    match fs::metadata(mount) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => bail!("the mount point {} is not a directory", mount.display()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("the mount point {} does not exist: create the directory", mount.display())
        }
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", mount.display())),
    }
}

fn check_port(config: &Config) -> Result<()> {
    let begun = Instant::now();
    let mut bound = TcpListener::bind(config.listen);
    // A daemon that was killed a moment ago may have threads in the kernel still, which have it open.
    while bound.as_ref().is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
        && begun.elapsed() < PORT_PATIENCE
    {
        std::thread::sleep(Duration::from_millis(50));
        bound = TcpListener::bind(config.listen);
    }
    match bound {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!("{} is in use by another program: set listen to a free port", config.listen)
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen on {}", config.listen)),
    }
}
