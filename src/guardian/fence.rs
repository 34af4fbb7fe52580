//! Fencing the mounts of a daemon that is dead: from then on the kernel serves nothing of them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
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

/// A mount that is being watched.
#[derive(Debug)]
pub(super) struct Watching {
    place: Place,
    /// The daemon's own, so that the kernel aborts nothing before we have let go of it.
    fuse: File,
    watched: Seen,
}

impl Watching {
    /// With the descriptors that came along.
    pub(super) fn new(place: Place, descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let [fuse, memory] =
            <[OwnedFd; 2]>::try_from(descriptors).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Self { place, fuse: fuse.into(), watched: Seen::new(memory)? })
    }

    pub(super) fn point(&self) -> &Path {
        Path::new(&self.place.point)
    }

    /// Aborts the connection where fusectl is mounted, without looking at any path: from then on nobody waits for the dead.
    pub(super) fn abort(&self) {
        // As long as the connection lives its number is not given to another one.
        if !self.is_aborted()
            && let Some((_, minor)) = self.place.device.split_once(':')
        {
            // Refused to whoever is not root: detaching or the last descriptor does it.
            let _ = fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
        }
    }

    /// Has the kernel forget what it was told. Whether this is known to have worked: then nothing is served any more. Only
    /// where the connection is aborted: before, it could wait for ever for pages that requests have locked.
    pub(super) fn forget(&self) -> bool {
        if !self.is_aborted() {
            return false;
        }
        // Refused where there are no epochs.
        let _ = self.notify(INC_EPOCH, &[]);
        // In mounts of subtrees the root has a number that the table does not have.
        let mut nodes = self.watched.nodes().chain([ROOT]);
        nodes.all(|node| self.forget_inode(node)) && self.watched.is_complete()
    }

    /// Whether this very connection answers nothing any more: the kernel says so on its own descriptor.
    fn is_aborted(&self) -> bool {
        let mut asked = [PollFd::new(&self.fuse, PollFlags::IN)];
        // It does not wait, so it is not interrupted.
        let _ = rustix::event::poll(&mut asked, Some(&Timespec::default()));
        asked[0].revents().contains(PollFlags::ERR)
    }

    /// Attributes, ACLs and pages.
    fn forget_inode(&self, node: u64) -> bool {
        let mut body = [0; INVAL_INODE_LEN as usize];
        body[..8].copy_from_slice(&node.to_ne_bytes());
        match self.notify(INVAL_INODE, &body) {
            Ok(()) => true,
            // The kernel does not know the inode any more, or the whole mount is gone.
            Err(error) => {
                let gone = [Some(libc::ENOENT), Some(libc::ENOTCONN), Some(libc::ENODEV)];
                gone.contains(&error.raw_os_error())
            }
        }
    }

    pub(super) fn place(&self) -> Place {
        self.place.clone()
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

/// Takes mounts out of the tree, those that are still in it, and aborts their connections. Blocks where another
/// file system on the way to one of them answers nothing.
pub(super) fn detach(places: &[Place]) {
    for place in places {
        let point = Path::new(&place.point);
        let is_there = mountinfo::top(point).ok().flatten().is_some_and(|line| place.is(&line));
        if !is_there {
            continue;
        }
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        match rustix::mount::unmount(point, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::PERM) => detach_as_user(point),
            Err(error) => {
                tracing::warn!(point = %point.display(), %error, "cannot detach a dead mount");
            }
        }
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
