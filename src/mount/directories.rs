//! OPENDIR, READDIR: a stream that can go on after any name, at any later time. Nothing is kept
//! between two requests, so a directory of any size takes the memory of one reply.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{Errno, INodeNo, ReplyDirectory};
use parking_lot::Mutex;

use super::attributes::file_type;
use super::core::Core;
use super::dispatch::Refuse;
use super::errors::OpError;
use super::root::Root;
use crate::fs::proto::Kind;
use crate::fs::query::{self, DirEntry};
use crate::node::Look;
use crate::types::{Ino, LogIndex};

/// So many names are asked for at once; about what fits into a reply of 4 KiB.
const BATCH: usize = 128;
/// Cookies of the two names that no dentry stands for.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// A reply that is being filled; whoever takes it answers.
#[derive(Clone)]
pub(super) struct Filling(Arc<Mutex<Option<ReplyDirectory>>>);

impl Filling {
    pub(super) fn new(reply: ReplyDirectory) -> Self {
        Self(Arc::new(Mutex::new(Some(reply))))
    }

    /// Adds an entry; true where there is no room for it, or the reply was sent.
    fn add(&self, entry: &DirEntry) -> bool {
        let name = OsStr::from_bytes(&entry.name);
        let (ino, kind) = (INodeNo(entry.ino.0), file_type(entry.kind));
        self.0.lock().as_mut().is_none_or(|reply| reply.add(ino, entry.cookie, kind, name))
    }

    pub(super) fn finish(self) {
        if let Some(reply) = self.0.lock().take() {
            reply.ok();
        }
    }
}

impl Refuse for Filling {
    fn refuse(self, errno: Errno) {
        if let Some(reply) = self.0.lock().take() {
            reply.error(errno);
        }
    }
}

impl Core {
    /// OPENDIR.
    pub(super) async fn opendir(&self, ino: Ino, flags: i32) -> Result<(), OpError> {
        let seen = self.seen(ino).await?;
        if seen.inode.kind() != Kind::Directory {
            return Err(OpError::Errno(libc::ENOTDIR));
        }
        self.touch(ino, &seen.inode, flags);
        Ok(())
    }

    /// READDIR: fills a reply with the names after a cookie.
    pub(super) async fn readdir(
        &self,
        ino: Ino,
        mut cookie: u64,
        filling: &Filling,
    ) -> Result<(), OpError> {
        loop {
            let entries =
                self.read_stable(|look| names_after(look, self.root, ino, cookie)).await?;
            let entries = entries.ok_or(OpError::Errno(libc::ENOENT))?;
            let is_last = entries.is_empty();
            for entry in &entries {
                if filling.add(entry) {
                    return Ok(());
                }
                cookie = entry.cookie;
            }
            if is_last {
                return Ok(());
            }
        }
    }
}

/// Some names after a cookie, and when the directory last changed; `None` where it is gone.
fn names_after(
    look: &Look<'_>,
    root: Root,
    ino: Ino,
    cookie: u64,
) -> Result<(Option<Vec<DirEntry>>, LogIndex), OpError> {
    let state = &look.state;
    let Some(directory) = query::inode(state, ino)? else { return Ok((None, LogIndex(0))) };
    let dots = [(DOT, &b"."[..], ino), (DOT_DOT, b"..", parent_of(root, ino, directory.parent))];
    let mut entries: Vec<DirEntry> = dots
        .into_iter()
        .filter(|(dot, ..)| *dot > cookie)
        .map(|(cookie, name, ino)| DirEntry {
            cookie,
            name: name.to_vec(),
            ino,
            kind: Kind::Directory,
        })
        .collect();
    entries.extend(query::readdir(state, ino, cookie.max(DOT_DOT), BATCH)?);
    Ok((Some(entries), look.inode_changed(ino, directory.mod_index)))
}

fn parent_of(root: Root, ino: Ino, parent: u64) -> Ino {
    if ino == root.0 || parent == 0 { ino } else { Ino(parent) }
}
