//! What can be wrong with a mount point, and what the kernel's table of mounts says about it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::mount_error::MountError;
use super::sys;
use crate::mountinfo::{self, MountLine};

/// What kind of FUSE mount ours are.
pub(super) const SUBTYPE: &str = "quorumfs";
/// The type of our mounts in the kernel's table.
pub(super) const FS_TYPE: &str = "fuse.quorumfs";
/// A mount that answers nothing for so long is alive and stuck.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// Cuts read requests fourfold against the default of 128.
const READ_AHEAD_KIB: &str = "1024";

/// Makes sure that something can be mounted at `path`, and answers its absolute form. What an
/// earlier daemon left there, dead, is removed.
pub(super) fn prepare(path: &Path) -> Result<PathBuf, MountError> {
    let missing = |source| MountError::MissingMountPoint { path: path.into(), source };
    let point = absolute(path).map_err(missing)?;
    while let Some(mounted) = find(&point) {
        if mounted.fs_type != FS_TYPE || !is_dead(&point) {
            // Its guardian may have taken it away meanwhile.
            if find(&point).as_ref() != Some(&mounted) {
                continue;
            }
            let fs_type = mounted.fs_type;
            return Err(MountError::AlreadyMounted { path: point, fs_type });
        }
        tracing::info!(path = %point.display(), "removing a dead quorumfs mount");
        if let Err(source) = sys::detach(&point, false)
            // Its guardian may have been quicker.
            && find(&point).as_ref() == Some(&mounted)
        {
            return Err(MountError::DeadMount { path: point, source });
        }
    }
    let metadata = fs::metadata(&point).map_err(missing)?;
    if !metadata.is_dir() {
        return Err(MountError::NotADirectory { path: point });
    }
    if fs::read_dir(&point).is_ok_and(|mut names| names.next().is_some()) {
        tracing::warn!(
            path = %point.display(),
            "the mount point is not empty: the mount hides what is in it, which programs may have written while nothing \
             was mounted; `chattr +i` keeps them from it"
        );
    }
    if let Err(source) = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        return Err(MountError::NoFuseDevice { source });
    }
    Ok(point)
}

/// What the kernel calls the uppermost mount at `point`.
pub(super) fn device(point: &Path) -> Option<String> {
    find(point).map(|mounted| mounted.device)
}

/// Whether the uppermost mount at `point` is that one.
pub(super) fn is_there(point: &Path, device: &str) -> bool {
    find(point).is_some_and(|mounted| mounted.device == device)
}

/// Breaks the connection of a mount: whatever waits for it fails. Only where fusectl is mounted.
pub(super) fn abort(device: &str) {
    let Some((_, minor)) = device.split_once(':') else { return };
    let setting = format!("/sys/fs/fuse/connections/{minor}/abort");
    if let Err(error) = fs::write(&setting, "1") {
        tracing::debug!(%setting, %error, "the connection lives until its last file is closed");
    }
}

/// Lets the kernel read further ahead; where it may not, everything works, slower.
pub(super) fn raise_read_ahead(device: &str) {
    let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = fs::write(&setting, READ_AHEAD_KIB) {
        tracing::info!(%setting, %error, "read-ahead stays small");
    }
}

/// The absolute path of a mount point, without asking what is mounted there: a dead mount answers nothing.
///
/// # Errors
/// When its parent cannot be found.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    // Its attributes would be those of what is mounted there.
    let is_link = fs::read_link(path).is_ok();
    match (path.file_name(), path.parent()) {
        (Some(name), Some(parent)) if !is_link => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(parent.canonicalize()?.join(name))
        }
        _ => path.canonicalize(),
    }
}

/// Whether the daemon behind a mount is gone. Asked on a thread of its own: one that is alive may be
/// stuck, and then never answers.
fn is_dead(point: &Path) -> bool {
    let (answer, answered) = crossbeam_channel::bounded(1);
    let point = point.to_owned();
    std::thread::spawn(move || {
        let error = fs::metadata(point).err().and_then(|error| error.raw_os_error());
        // Nobody listens after the deadline.
        let _ = answer.send(matches!(error, Some(libc::ECONNABORTED | libc::ENOTCONN)));
    });
    answered.recv_timeout(PROBE_DEADLINE).unwrap_or(false)
}

fn find(point: &Path) -> Option<MountLine> {
    mountinfo::top(point).ok()?
}

#[cfg(test)]
mod tests {
    use super::{MountError, Path, fs, prepare};

    /// Each thing that is wrong with a mount point has its own sentence.
    #[test]
    fn what_is_wrong() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = prepare(&dir.path().join("missing")).expect_err("missing");
        assert!(matches!(missing, MountError::MissingMountPoint { .. }), "{missing}");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("written");
        let not_a_directory = prepare(&file).expect_err("a file");
        assert!(matches!(not_a_directory, MountError::NotADirectory { .. }));
        let mounted = prepare(Path::new("/proc")).expect_err("procfs is there");
        assert!(
            matches!(&mounted, MountError::AlreadyMounted { fs_type, .. } if fs_type == "proc")
        );
    }
}
