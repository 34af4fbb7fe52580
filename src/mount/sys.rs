//! The kernel's own calls for mounting.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags as Flags, UnmountFlags};

use super::mount_point::FS_TYPE;
use super::options::MountFlags;

/// Whether this process is root.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Mounts with mount(2), and answers the descriptor through which the kernel asks. EPERM where this
/// process may not.
pub(super) fn mount(point: &Path, source: &str, flags: MountFlags) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let options = format!(
        "fd={},rootmode={:o},user_id={},group_id={},default_permissions,allow_other",
        device.as_raw_fd(),
        fs::metadata(point)?.mode() & libc::S_IFMT,
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount(source, point, FS_TYPE, of_kernel(flags), options.as_c_str())?;
    Ok(device.into())
}

/// Changes the flags of a mount and, for reading only, of all of its file system: EBUSY where files are
/// open for writing.
pub(super) fn remount(point: &Path, flags: MountFlags) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(point, of_kernel(flags), c"")?)
}

/// Takes a mount away: EBUSY where programs use it.
pub(super) fn unmount(point: &Path) -> io::Result<()> {
    unmount_with(point, UnmountFlags::NOFOLLOW)
}

/// Takes a mount out of the tree at once, whoever uses it; with `abort`, fails what is under way.
pub(super) fn detach(point: &Path, abort: bool) -> io::Result<()> {
    let abort = if abort { UnmountFlags::FORCE } else { UnmountFlags::empty() };
    unmount_with(point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH | abort)
}

fn unmount_with(point: &Path, flags: UnmountFlags) -> io::Result<()> {
    let Err(error) = rustix::mount::unmount(point, flags) else { return Ok(()) };
    let lazy = flags.contains(UnmountFlags::DETACH);
    if error == rustix::io::Errno::PERM && unmount_as_user(point, lazy) {
        return Ok(());
    }
    Err(error.into())
}

/// Whoever may not unmount may unmount what they mounted, through fusermount3.
fn unmount_as_user(point: &Path, lazy: bool) -> bool {
    let how = if lazy { "-uz" } else { "-u" };
    let mut fusermount = Command::new("fusermount3");
    fusermount.args([how, "--"]).arg(point).stdout(Stdio::null()).stderr(Stdio::null());
    fusermount.status().is_ok_and(|status| status.success())
}

fn of_kernel(flags: MountFlags) -> Flags {
    let MountFlags { read_only, no_atime, no_suid, no_dev, no_exec, read: _ } = flags;
    let wanted = [
        (read_only, Flags::RDONLY),
        (no_atime, Flags::NOATIME),
        (no_suid, Flags::NOSUID),
        (no_dev, Flags::NODEV),
        (no_exec, Flags::NOEXEC),
    ];
    wanted.into_iter().filter(|(is_on, _)| *is_on).map(|(_, flag)| flag).collect()
}
