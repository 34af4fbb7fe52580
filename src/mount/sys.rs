//! The system calls that `std` does not have.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether this process is root.
pub(super) fn is_root() -> bool {
    // SAFETY: geteuid(2) has no arguments and always succeeds.
    unsafe { libc::geteuid() == 0 }
}

/// Takes a mount out of the tree at once, whoever uses it; with `abort`, fails what is under way.
pub(super) fn detach(mount_point: &Path, abort: bool) -> io::Result<()> {
    let path = CString::new(mount_point.as_os_str().as_bytes())?;
    let flags = libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW | if abort { libc::MNT_FORCE } else { 0 };
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    if unsafe { libc::umount2(path.as_ptr(), flags) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
