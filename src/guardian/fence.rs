//! Fencing one mount of a daemon that is dead: from then on its kernel serves nothing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;

use super::protocol::Place;
use super::watched::Seen;
use crate::mountinfo;

/// `FUSE_NOTIFY_INVAL_INODE`.
const INVAL_INODE: i32 = 2;
/// `FUSE_NOTIFY_INC_EPOCH`, kernel 6.16. Where it is unknown no name was given a TTL.
const INC_EPOCH: i32 = 8;
/// Of a notification without anything in it (`struct fuse_out_header`).
const HEADER_LEN: u32 = 16;
/// Of `struct fuse_notify_inval_inode_out` behind it.
const INVAL_INODE_LEN: u32 = 24;
/// How every kernel calls the root of a mount.
const ROOT: u64 = 1;
/// From this offset on: attributes and ACLs only, which takes no lock that a request could hold.
const NO_PAGES: i64 = -1;

/// A mount that is being watched.
#[derive(Debug)]
pub(super) struct Watching {
    place: Place,
    alias: u64,
    /// The daemon's own, so that the kernel aborts nothing before we have let go of it.
    fuse: File,
    watched: Seen,
}

impl Watching {
    /// With the descriptors that came along.
    pub(super) fn new(place: Place, alias: u64, descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let [fuse, memory] =
            <[OwnedFd; 2]>::try_from(descriptors).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Self { place, alias, fuse: fuse.into(), watched: Seen::new(memory)? })
    }

    pub(super) fn point(&self) -> PathBuf {
        self.place.point.clone().into()
    }

    /// Has the kernel forget what it was told, aborts the connection and takes the mount away. Whether this is known to have
    /// worked: then nothing is served any more.
    pub(super) fn fence(self) -> bool {
        let nodes = || {
            let known = self.watched.nodes().flat_map(|node| [node, node | self.alias]);
            // In mounts of subtrees the root has a number that the table does not have.
            known.chain([ROOT])
        };
        let forgotten = nodes().all(|node| self.forget(node, NO_PAGES));
        // Refused where there are no epochs.
        let _ = self.notify(INC_EPOCH, &[]);
        let is_aborted = self.detach() || self.abort();
        // Requests that had pages locked have failed; before, this could have waited for them for ever.
        let dropped = is_aborted && nodes().all(|node| self.forget(node, 0));
        // Closing the last descriptor aborts a connection that could not be aborted otherwise.
        forgotten && dropped && self.watched.is_complete()
    }

    /// Takes the mount out of the tree, if it is still there, and aborts its connection; whether it did.
    fn detach(&self) -> bool {
        let point = Path::new(&self.place.point);
        // The path is not walked before: another mount of ours may be on the way, which answers nothing any more. It is
        // older and has been detached, together with this one.
        let is_there = mountinfo::top(point).ok().flatten().is_some_and(|line| {
            (line.id, line.device.as_str()) == (self.place.id, self.place.device.as_str())
        });
        if !is_there {
            return false;
        }
        // In one step: as long as the connection lives, nobody can have taken the mount for dead and mounted anew.
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        match rustix::mount::unmount(point, flags) {
            Ok(()) => true,
            Err(rustix::io::Errno::PERM) => {
                detach_as_user(point);
                false
            }
            Err(error) => {
                tracing::warn!(point = %point.display(), %error, "cannot detach a dead mount");
                false
            }
        }
    }

    /// The same for a connection whose mount is not in the tree (any more). Only where fusectl is mounted.
    fn abort(&self) -> bool {
        let Some((_, minor)) = self.place.device.split_once(':') else { return false };
        fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1").is_ok()
    }

    fn forget(&self, node: u64, offset: i64) -> bool {
        let mut body = [0; INVAL_INODE_LEN as usize];
        body[..8].copy_from_slice(&node.to_ne_bytes());
        body[8..16].copy_from_slice(&offset.to_ne_bytes());
        match self.notify(INVAL_INODE, &body) {
            Ok(()) => true,
            // The kernel does not know the inode any more, or the whole mount is gone.
            Err(error) => {
                let gone = [Some(libc::ENOENT), Some(libc::ENOTCONN), Some(libc::ENODEV)];
                gone.contains(&error.raw_os_error())
            }
        }
    }

    fn notify(&self, code: i32, body: &[u8]) -> io::Result<()> {
        let len = HEADER_LEN + u32::try_from(body.len()).expect("a small structure");
        let mut message = Vec::with_capacity(len as usize);
        message.extend(len.to_ne_bytes());
        message.extend(code.to_ne_bytes());
        // Not the answer to any request.
        message.extend(0_u64.to_ne_bytes());
        message.extend(body);
        (&self.fuse).write_all(&message)
    }
}

/// Whoever may not unmount may unmount what they mounted, through fusermount3. It aborts nothing.
fn detach_as_user(point: &Path) {
    let mut fusermount = Command::new("fusermount3");
    fusermount.args(["-uz", "--"]).arg(point).stdin(Stdio::null()).stdout(Stdio::null());
    if !fusermount.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        tracing::warn!(point = %point.display(), "cannot detach a dead mount: run quorumfs cleanup");
    }
}
