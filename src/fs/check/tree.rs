//! Inodes, names, attributes and orphans.

use std::collections::{BTreeMap, BTreeSet};

use super::problem::Problem;
use crate::fs::acl::Acl;
use crate::fs::limits::{
    DIRECTORY_SIZE, NAME_MAX, SIZE_MAX, TARGET_MAX, XATTR_NAME_MAX, XATTR_VALUE_MAX,
};
use crate::fs::proto::{self, Kind};
use crate::types::Ino;

/// What was seen of the tree. The names are seen before the inodes that they mean (tables come in the
/// order of their tags), so everything is counted first and judged at the end.
#[derive(Default)]
pub(super) struct Tree {
    inodes: BTreeMap<Ino, Seen>,
    named: BTreeMap<Ino, Named>,
    /// Names of each directory: whether it has some, and one of them.
    parents: BTreeMap<Ino, Vec<u8>>,
    orphans: BTreeSet<Ino>,
    attributed: BTreeMap<Ino, Vec<u8>>,
    problems: Vec<Problem>,
}

/// What matters of an inode.
struct Seen {
    kind: Kind,
    mode: u32,
    nlink: u32,
    parent: Ino,
}

/// What names say of an inode, and of the directories in it.
#[derive(Default)]
struct Named {
    names: u32,
    /// The last name that was seen: its directory, itself, the kind that it gives.
    last: Option<(Ino, Vec<u8>, i32)>,
    subdirectories: u32,
}

impl Tree {
    pub(super) fn see_inode(&mut self, ino: Ino, inode: &proto::Inode) {
        let kind = inode.kind();
        self.check_fields(ino, inode);
        let (mode, nlink) = (inode.mode, inode.nlink);
        let seen = Seen { kind, mode, nlink, parent: Ino(inode.parent) };
        self.inodes.insert(ino, seen);
    }

    pub(super) fn see_dentry(&mut self, parent: Ino, name: &[u8], dentry: proto::Dentry) {
        let bad = matches!(name, b"" | b"." | b"..") || name.iter().any(|b| matches!(b, 0 | b'/'));
        if bad || name.len() > NAME_MAX {
            self.problems.push(Problem::BadName { parent, name: name.to_vec() });
        }
        let ino = Ino(dentry.ino);
        let kind = dentry.kind;
        self.parents.entry(parent).or_insert_with(|| name.to_vec());
        if dentry.kind() == Kind::Directory {
            self.named.entry(parent).or_default().subdirectories += 1;
        }
        let named = self.named.entry(ino).or_default();
        named.names += 1;
        let before = named.last.replace((parent, name.to_vec(), kind));
        // All names agree about the kind, or one of them is wrong.
        if let Some((parent, name, other)) = before
            && other != kind
        {
            self.problems.push(Problem::KindOfName { parent, name, ino });
        }
    }

    pub(super) fn see_xattr(&mut self, ino: Ino, name: &[u8], value_len: usize) {
        if !(1..=XATTR_NAME_MAX).contains(&name.len()) || value_len > XATTR_VALUE_MAX {
            self.problems.push(Problem::XattrTooLarge { ino, name: name.to_vec() });
        }
        self.attributed.entry(ino).or_insert_with(|| name.to_vec());
    }

    /// Attributes come after the inodes.
    pub(super) fn see_acl(&mut self, ino: Ino, is_access: bool, acl: &Acl) {
        let Some(&Seen { kind, mode, .. }) = self.inodes.get(&ino) else { return };
        let allowed = if is_access { kind != Kind::Symlink } else { kind == Kind::Directory };
        if !allowed || is_access && acl.is_minimal() {
            self.problems.push(Problem::ForeignAcl { ino });
        }
        if is_access && acl.mode() != mode & 0o777 {
            self.problems.push(Problem::ModeOfAcl { ino, mode });
        }
    }

    pub(super) fn see_orphan(&mut self, ino: Ino) {
        self.orphans.insert(ino);
    }

    pub(super) fn exists(&self, ino: Ino) -> bool {
        self.inodes.contains_key(&ino)
    }

    pub(super) fn finish(mut self, next: Ino) -> Vec<Problem> {
        self.check_root();
        if let Some((&ino, _)) = self.inodes.range(next..).next() {
            self.problems.push(Problem::NotAllocated { ino, next });
        }
        self.check_links();
        self.check_names();
        self.check_directories_of_names();
        self.check_orphans();
        self.check_reachable();
        self.problems
    }

    fn check_fields(&mut self, ino: Ino, inode: &proto::Inode) {
        let kind = inode.kind();
        let size = inode.size;
        let target_len = inode.target.len();
        let right_size = match kind {
            Kind::Regular => size <= SIZE_MAX,
            Kind::Directory => size == DIRECTORY_SIZE,
            Kind::Symlink => size == target_len as u64 && (1..=TARGET_MAX).contains(&target_len),
            Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => size == 0,
            Kind::Unspecified => {
                self.problems.push(Problem::UnknownKind { ino });
                true
            }
        };
        if !right_size {
            self.problems.push(Problem::Size { ino, size });
        }
        let foreign = [
            (kind != Kind::Symlink && target_len > 0),
            (kind != Kind::Directory && inode.parent != 0),
            (kind != Kind::Regular && inode.generation != 0),
            (!matches!(kind, Kind::CharDevice | Kind::BlockDevice) && inode.rdev != 0),
        ];
        if foreign.contains(&true) {
            self.problems.push(Problem::ForeignField { ino });
        }
        let (data_version, mod_index) = (inode.data_version, inode.mod_index);
        if data_version > mod_index || inode.generation > data_version {
            self.problems.push(Problem::VersionOrder { ino, data_version, mod_index });
        }
    }

    fn check_root(&mut self) {
        let root = self.inodes.get(&Ino::ROOT);
        if !root.is_some_and(|root| root.kind == Kind::Directory && root.parent == Ino::ROOT) {
            self.problems.push(Problem::NoRoot);
        }
    }

    /// Link counts, and how often a directory is named.
    fn check_links(&mut self) {
        let none = Named::default();
        for (&ino, seen) in &self.inodes {
            let named = self.named.get(&ino).unwrap_or(&none);
            let is_directory = seen.kind == Kind::Directory;
            let expected_names = u32::from(ino != Ino::ROOT && seen.nlink > 0);
            if is_directory && named.names != expected_names {
                self.problems.push(Problem::DirectoryNames { ino, names: named.names });
            }
            let counted = match (is_directory, self.orphans.contains(&ino)) {
                (true, false) => 2 + named.subdirectories,
                (true, true) => 0,
                (false, _) => named.names,
            };
            if seen.nlink != counted {
                let recorded = seen.nlink;
                self.problems.push(Problem::LinkCount { ino, recorded, counted });
            }
        }
    }

    /// What names mean.
    fn check_names(&mut self) {
        for (&ino, named) in &self.named {
            let Some((parent, name, kind)) = named.last.clone() else { continue };
            match self.inodes.get(&ino) {
                None => self.problems.push(Problem::NameWithoutInode { parent, name, ino }),
                Some(seen) if i32::from(seen.kind) != kind => {
                    self.problems.push(Problem::KindOfName { parent, name, ino });
                }
                Some(seen) if seen.kind == Kind::Directory && seen.parent != parent => {
                    let recorded = seen.parent;
                    self.problems.push(Problem::Parent { ino, recorded, found: parent });
                }
                Some(_) => {}
            }
        }
    }

    /// Where names are.
    fn check_directories_of_names(&mut self) {
        for (&parent, name) in &self.parents {
            let name = name.clone();
            match self.inodes.get(&parent) {
                Some(seen) if seen.kind == Kind::Directory && seen.nlink == 0 => {
                    self.problems.push(Problem::NameInRemovedDirectory { parent, name });
                }
                Some(seen) if seen.kind == Kind::Directory => {}
                Some(_) | None => {
                    self.problems.push(Problem::NameWithoutDirectory { parent, name });
                }
            }
        }
        for (&ino, name) in &self.attributed {
            if !self.inodes.contains_key(&ino) {
                self.problems.push(Problem::XattrWithoutInode { ino, name: name.clone() });
            }
        }
    }

    fn check_orphans(&mut self) {
        for &ino in &self.orphans {
            match self.inodes.get(&ino) {
                None => self.problems.push(Problem::OrphanWithoutInode { ino }),
                Some(seen) if seen.nlink > 0 => {
                    let nlink = seen.nlink;
                    self.problems.push(Problem::OrphanWithLinks { ino, nlink });
                }
                Some(_) => {}
            }
        }
        for (&ino, seen) in &self.inodes {
            if seen.nlink == 0 && !self.orphans.contains(&ino) {
                self.problems.push(Problem::NotOrphaned { ino });
            }
        }
    }

    /// Every directory's way up must end at the root. (A file is reachable when its directories are.)
    fn check_reachable(&mut self) {
        let mut reachable = BTreeSet::from([Ino::ROOT]);
        for (&ino, seen) in &self.inodes {
            if seen.kind != Kind::Directory || seen.nlink == 0 {
                continue;
            }
            let mut way = BTreeSet::new();
            let mut at = ino;
            while !reachable.contains(&at) {
                match self.inodes.get(&at) {
                    Some(seen) if way.insert(at) => at = seen.parent,
                    Some(_) | None => break,
                }
            }
            if reachable.contains(&at) {
                reachable.extend(way);
            } else {
                self.problems.push(Problem::Unreachable { ino });
            }
        }
    }
}
