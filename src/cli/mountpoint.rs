//! Mount points as the kernel lists them. Nothing here looks at a mounted directory itself, which
//! could hang.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cli::sys;
use crate::mountinfo::{self, MountLine};

/// All mounts of this process's namespace, in the order in which they were made.
pub(crate) fn mounts() -> Result<Vec<MountLine>> {
    mountinfo::all().context("cannot read the list of mounts")
}

/// Whether anything is mounted on `path`, as [`resolve`] gives it.
pub(crate) fn is_mounted(path: &Path) -> Result<bool> {
    Ok(mounts()?.iter().any(|mount| mount.point == path))
}

/// Whether the uppermost mount on `path` is one of FUSE.
pub(crate) fn is_fuse(path: &Path) -> Result<bool> {
    let mounts = mounts()?;
    let top = mounts.iter().rfind(|mount| mount.point == path);
    Ok(top.is_some_and(|mount| mount.fs_type == "fuse" || mount.fs_type.starts_with("fuse.")))
}

/// The path as the kernel lists it: its parent without symbolic links, itself not looked at.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(path.to_owned());
    };
    match fs::canonicalize(parent) {
        Ok(parent) => Ok(parent.join(name)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(path.to_owned()),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", parent.display())),
    }
}

/// Takes away every mount on `path`, in use or not.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    // Mounts can lie on top of each other; nobody stacks them this high.
    for _ in 0..16 {
        if !is_mounted(path)? {
            return Ok(());
        }
        if let Err(error) = sys::unmount_lazily(path) {
            // The guardian of a daemon that has just died takes its mounts away, too.
            let is_gone = || matches!(is_mounted(path), Ok(false));
            ensure!(
                error.raw_os_error() == Some(libc::EPERM) && unmount_as_user(path) || is_gone(),
                "cannot unmount {}: {error}",
                path.display()
            );
        }
    }
    ensure!(!is_mounted(path)?, "cannot unmount {}: it is mounted again", path.display());
    Ok(())
}

fn unmount_as_user(path: &Path) -> bool {
    Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
