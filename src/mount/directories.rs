//! OPENDIR, READDIR: a stream that can go on after any name, at any later time. Nothing is kept
//! between two requests, so a directory of any size takes the memory of one reply.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{INodeNo, ReplyDirectory};

use super::attributes::file_type;
use super::core::Core;
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
        mut reply: ReplyDirectory,
    ) -> Result<ReplyDirectory, (ReplyDirectory, OpError)> {
        loop {
            let entries =
                match self.read_stable(|look| names_after(look, self.root, ino, cookie)).await {
                    Ok(Some(entries)) => entries,
                    Ok(None) => return Err((reply, OpError::Errno(libc::ENOENT))),
                    Err(error) => return Err((reply, error)),
                };
            let is_last = entries.is_empty();
            for DirEntry { cookie: next, name, ino, kind } in entries {
                if reply.add(INodeNo(ino.0), next, file_type(kind), OsStr::from_bytes(&name)) {
                    return Ok(reply);
                }
                cookie = next;
            }
            if is_last {
                return Ok(reply);
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
