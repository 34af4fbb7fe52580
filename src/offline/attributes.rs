//! What a file is beside its bytes, given to a file outside.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat,
    utimensat,
};

use crate::fs::proto::{self, Kind};

/// An attribute that could not be given, and why.
pub(super) type Refused = (String, io::Error);

/// Makes what is neither a directory nor a regular file.
pub(super) fn make_special(path: &Path, inode: &proto::Inode) -> io::Result<()> {
    let kind = match inode.kind() {
        Kind::Symlink => return symlink(OsStr::from_bytes(&inode.target), path),
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Unspecified | Kind::Regular | Kind::Directory => {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    };
    mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, device(inode.rdev))?;
    Ok(())
}

/// Owner, extended attributes (ACLs are some), permissions and times, in an order in which none undoes another.
/// Answers those that were refused.
pub(super) fn give(
    path: &Path,
    inode: &proto::Inode,
    xattrs: &[(Vec<u8>, Vec<u8>)],
) -> Vec<Refused> {
    let mut refused = Vec::new();
    let mut note = |what: &str, given: io::Result<()>| {
        if let Err(error) = given {
            refused.push((what.to_owned(), error));
        }
    };
    note("owner", give_owner(path, inode));
    for (name, value) in xattrs {
        let given = lsetxattr(path, name.as_slice(), value, XattrFlags::empty());
        let what = format!("extended attribute {}", String::from_utf8_lossy(name));
        note(&what, given.map_err(io::Error::from));
    }
    // A symbolic link has none.
    if inode.kind() != Kind::Symlink {
        let mode = std::fs::Permissions::from_mode(inode.mode);
        note("permissions", std::fs::set_permissions(path, mode));
    }
    let times =
        Timestamps { last_access: timespec(inode.atime), last_modification: timespec(inode.mtime) };
    let given = utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
    note("times", given.map_err(io::Error::from));
    refused
}

/// Only where it is another one: who is not root gets his own files at least.
fn give_owner(path: &Path, inode: &proto::Inode) -> io::Result<()> {
    let found = std::fs::symlink_metadata(path)?;
    if (found.uid(), found.gid()) == (inode.uid, inode.gid) {
        return Ok(());
    }
    lchown(path, Some(inode.uid), Some(inode.gid))
}

fn timespec(time: Option<proto::Time>) -> Timespec {
    let time = time.unwrap_or_default();
    Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() }
}

/// From the 32 bits that the kernel gives FUSE: 12 of the major number between 8 and 12 of the minor one.
fn device(rdev: u32) -> u64 {
    makedev(rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xf_ff00)
}

#[cfg(test)]
mod tests {
    use super::device;

    #[test]
    fn device_numbers_are_what_the_kernel_means() {
        for (major, minor) in [(1, 3), (8, 17), (259, 300), (4095, (1 << 20) - 1)] {
            let rdev = minor & 0xff | major << 8 | (minor & !0xff) << 12;
            let device = device(rdev);
            assert_eq!((rustix::fs::major(device), rustix::fs::minor(device)), (major, minor));
        }
    }
}
