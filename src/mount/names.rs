//! What is done to names: LOOKUP, MKNOD, MKDIR, SYMLINK, LINK, UNLINK, RMDIR, READLINK.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use fuser::FileAttr;

use super::attributes::{NAME_MAX, Seen};
use super::core::{Caller, Core};
use super::errors::OpError;
use super::kernel_names::{NameGrant, Removing};
use super::root::Root;
use crate::fs::proto::command::Op;
use crate::fs::proto::{self, Kind};
use crate::fs::query;
use crate::node::Look;
use crate::types::{Ino, LogIndex};

/// What the kernel is told of a name, with leave to cache it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) attr: FileAttr,
    /// Which one it is.
    pub(super) place: Place,
    pub(super) grant: NameGrant,
    /// It is the alias of a file.
    pub(super) is_alias: bool,
}

/// A name in a directory.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) parent: Ino,
    pub(super) name: Bytes,
}

/// What a new inode is to be.
#[derive(Clone, Debug)]
pub(super) struct NewInode {
    pub(super) kind: Kind,
    /// Permission bits as they were asked for.
    pub(super) mode: u32,
    pub(super) umask: u32,
    pub(super) rdev: u32,
    /// Of a symlink.
    pub(super) target: Bytes,
}

impl Place {
    /// Checked: ENAMETOOLONG.
    pub(super) fn new(parent: Ino, name: &[u8]) -> Result<Self, OpError> {
        if name.len() > NAME_MAX as usize {
            return Err(OpError::Errno(libc::ENAMETOOLONG));
        }
        Ok(Self { parent, name: Bytes::copy_from_slice(name) })
    }

    pub(super) fn key(&self) -> (Ino, &[u8]) {
        (self.parent, &self.name)
    }
}

impl Core {
    /// LOOKUP, by a thread.
    pub(super) async fn lookup(&self, thread: u32, place: Place) -> Result<Entry, OpError> {
        let grant = self.give_name(&place, thread);
        let found = self.read_stable(|look| self.find(look, &place)).await?;
        let mut seen = found.ok_or(OpError::Errno(libc::ENOENT))?;
        if self.settle_appends(seen.ino).await {
            seen = self.seen(seen.ino).await?;
        }
        self.until_pages_fit(seen.ino).await?;
        // Nobody reads blocks from here: the kernel asks for attributes again.
        let mut attr = seen.file_attr(seen.inode.size.div_ceil(512));
        if seen.inode.kind() == Kind::Directory && self.directories.finds_again(seen.ino, thread) {
            self.free_directory(seen.ino).await?;
        }
        let is_alias = self.passthrough.give_alias(seen.ino, Instant::now());
        if is_alias {
            attr.ino = Root::alias(seen.ino);
        }
        Ok(Entry { attr, place, grant, is_alias })
    }

    /// The kernel was not told of a name.
    pub(super) fn unsent_entry(self: &Arc<Self>, entry: &Entry) {
        if entry.is_alias {
            self.forgotten(self.root.ino(entry.attr.ino), true, 1);
        }
    }

    /// What a name means, and when that last changed: a name comes and goes with a change of its
    /// directory.
    pub(super) fn find(
        &self,
        look: &Look<'_>,
        place: &Place,
    ) -> Result<(Option<Seen>, LogIndex), OpError> {
        let Place { parent, name } = place;
        let Some(directory) = query::inode(&look.state, *parent)? else {
            return Ok((None, LogIndex(0)));
        };
        let changed = look.name_changed(*parent, name, directory.mod_index);
        let Some(dentry) = query::lookup(&look.state, *parent, name)? else {
            return Ok((None, changed));
        };
        let seen = self.see(&look.state, Ino(dentry.ino))?.ok_or(OpError::Errno(libc::EIO))?;
        let changed = changed.max(seen.changed(look));
        Ok((Some(seen), changed))
    }

    /// MKNOD, MKDIR and SYMLINK.
    pub(super) async fn make(
        &self,
        caller: Caller,
        place: Place,
        new: NewInode,
    ) -> Result<Entry, OpError> {
        loop {
            let ino = self.node.new_ino().await?;
            let grant = self.give_name(&place, caller.pid);
            let _changing = self.directories.change(&[&place]);
            let parent = place.parent;
            let making = make(caller, place.clone(), ino, new.clone());
            match self.mutate(&[parent], making).await {
                // Its number was the last session's.
                Err(error) if error.is_not_done() => {}
                Err(error) => return Err(error),
                Ok(outcome) => {
                    let attr = self.file_attr(&Seen::of_outcome(ino, outcome)?)?;
                    return Ok(Entry { attr, place, grant, is_alias: false });
                }
            }
        }
    }

    /// LINK, by a thread.
    pub(super) async fn link(&self, thread: u32, ino: Ino, place: Place) -> Result<Entry, OpError> {
        let grant = self.give_name(&place, thread);
        let _changing = self.directories.change(&[&place]);
        let Place { parent, name } = place.clone();
        let op = Op::Link(proto::Link { ino: ino.0, parent: parent.0, name });
        self.mutate(&[parent, ino], op).await?;
        // Bytes may be buffered, so the outcome's attributes would be too old.
        self.settle_appends(ino).await;
        let seen = self.seen(ino).await?;
        self.until_pages_fit(ino).await?;
        Ok(Entry { attr: self.file_attr(&seen)?, place, grant, is_alias: false })
    }

    /// UNLINK, by a thread.
    pub(super) async fn unlink(&self, thread: u32, place: Place) -> Result<Removing, OpError> {
        let (removing, changing) = self.begin_removal(&[&place], thread).await?;
        let Place { parent, name } = place;
        let op = Op::Unlink(proto::Unlink { parent: parent.0, name });
        self.mutate(&[parent], op).await?;
        changing.removed();
        Ok(removing)
    }

    /// RMDIR, by a thread.
    pub(super) async fn rmdir(&self, thread: u32, place: Place) -> Result<Removing, OpError> {
        let (removing, changing) = self.begin_removal(&[&place], thread).await?;
        let Place { parent, name } = place;
        let op = Op::Rmdir(proto::Rmdir { parent: parent.0, name });
        self.mutate(&[parent], op).await?;
        changing.removed();
        Ok(removing)
    }

    /// READLINK. The kernel asks once, and keeps the target for as long as it keeps the inode.
    pub(super) async fn readlink(&self, ino: Ino) -> Result<Bytes, OpError> {
        let seen = self.seen(ino).await?;
        match seen.inode.kind() {
            Kind::Symlink => {
                self.touch(ino, &seen.inode, 0);
                Ok(seen.inode.target)
            }
            _ => Err(OpError::Errno(libc::EINVAL)),
        }
    }
}

/// The command that makes an inode.
pub(super) fn make(caller: Caller, place: Place, ino: Ino, new: NewInode) -> Op {
    Op::Make(proto::Make {
        parent: place.parent.0,
        name: place.name,
        ino: ino.0,
        kind: new.kind.into(),
        mode: new.mode & 0o7777,
        uid: caller.uid,
        gid: caller.gid,
        rdev: new.rdev,
        target: new.target,
        umask: new.umask,
    })
}

/// The kind that mknod(2) asks for.
pub(super) fn kind_of_mode(mode: u32) -> Result<Kind, OpError> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Ok(Kind::Regular),
        libc::S_IFIFO => Ok(Kind::Fifo),
        libc::S_IFSOCK => Ok(Kind::Socket),
        libc::S_IFCHR => Ok(Kind::CharDevice),
        libc::S_IFBLK => Ok(Kind::BlockDevice),
        _ => Err(OpError::Errno(libc::EINVAL)),
    }
}
