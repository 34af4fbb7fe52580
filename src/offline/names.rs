//! Where inodes are in the tree, for people.

use std::collections::HashMap;

use crate::fs::query::{self, DirEntry};
use crate::store::{State, StoreError};
use crate::types::Ino;

/// Names of a directory that are read together.
const PAGE: usize = 1000;

/// One name of each inode.
#[derive(Debug)]
pub(super) struct Names(HashMap<Ino, (Ino, Vec<u8>)>);

impl Names {
    pub(super) fn of(state: &State) -> Result<Self, StoreError> {
        let mut names = HashMap::new();
        let mut directories = vec![Ino::ROOT];
        while let Some(directory) = directories.pop() {
            let mut after = 0;
            loop {
                let page = names_after(state, directory, after)?;
                let Some(last) = page.last() else { break };
                after = last.cookie;
                for entry in page {
                    // A damaged tree may have a circle.
                    let is_new = !names.contains_key(&entry.ino);
                    if is_new && entry.kind == crate::fs::proto::Kind::Directory {
                        directories.push(entry.ino);
                    }
                    names.entry(entry.ino).or_insert((directory, entry.name));
                }
            }
        }
        Ok(Self(names))
    }

    /// The path of an inode below the root, beginning with a slash; its number where it has no name.
    pub(super) fn path(&self, ino: Ino) -> String {
        let mut parts = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT {
            let Some((parent, name)) = self.0.get(&at).filter(|_| parts.len() < self.0.len())
            else {
                return format!("inode {ino}");
            };
            parts.push(String::from_utf8_lossy(name));
            at = *parent;
        }
        parts.reverse();
        format!("/{}", parts.join("/"))
    }
}

/// Names of a directory behind a cookie; empty where there are no more.
pub(super) fn names_after(
    state: &State,
    directory: Ino,
    after: u64,
) -> Result<Vec<DirEntry>, StoreError> {
    query::readdir(&state.read(), directory, after, PAGE)
}
