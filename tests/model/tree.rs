//! A plain POSIX tree. It knows nothing of keys, records, sessions' windows or generations.

use std::collections::{BTreeMap, BTreeSet};

use quorumfs::fs::{Errno, proto};
use quorumfs::types::ByteRange;

use crate::acls::{ACCESS, Acl, DEFAULT, Entry};
use crate::replica::staged_bytes;

/// What a program may do beyond what its user may.
const CAPABILITY: &str = "security.capability";

pub type Result<T> = std::result::Result<T, Errno>;

/// When something happens: the time on the proposer's clock, and the log index.
#[derive(Clone, Copy)]
pub struct When {
    pub time: i64,
    pub index: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    File(Vec<u8>),
    Directory { names: BTreeMap<String, u64>, parent: u64 },
    Symlink(String),
    Fifo,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub body: Body,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub atime: i64,
    pub mtime: i64,
    pub ctime: i64,
    pub version: u64,
    pub mod_index: u64,
    pub data_version: u64,
    pub xattrs: BTreeMap<String, String>,
    /// By the names of their attributes.
    pub acls: BTreeMap<String, Acl>,
}

pub struct Tree {
    pub nodes: BTreeMap<u64, Node>,
    /// Who may hold what has no name any more.
    pub orphans: BTreeMap<u64, BTreeSet<u64>>,
    pub sessions: BTreeSet<u64>,
}

impl Node {
    fn new(body: Body, mode: u32, when: When) -> Self {
        let nlink = if matches!(body, Body::Directory { .. }) { 2 } else { 1 };
        let mut node = Self {
            body,
            mode,
            uid: 0,
            gid: 0,
            nlink,
            atime: when.time,
            mtime: when.time,
            ctime: 0,
            version: 0,
            mod_index: 0,
            data_version: when.index,
            xattrs: BTreeMap::new(),
            acls: BTreeMap::new(),
        };
        node.changed(when);
        node
    }

    fn changed(&mut self, when: When) {
        self.version += 1;
        self.mod_index = when.index;
        self.ctime = when.time;
    }

    fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory { .. })
    }

    fn bytes(&mut self) -> Result<&mut Vec<u8>> {
        match &mut self.body {
            Body::File(bytes) => Ok(bytes),
            Body::Directory { .. } => Err(Errno::EISDIR),
            Body::Symlink(_) | Body::Fifo => Err(Errno::EINVAL),
        }
    }

    /// Writes at `time`, and says whether there was anything to write.
    fn write(&mut self, op: &proto::Write, time: i64, index: u64) -> Result<bool> {
        let bytes = self.bytes()?;
        let size = bytes.len() as u64;
        let has_bytes = |piece: &&proto::Piece| piece.length + piece.data.len() as u64 > 0;
        let mut given = op.pieces.iter().filter(has_bytes);
        if op.adds_only && !op.append && given.any(|piece| piece.offset < size) {
            return Err(Errno::ECANCELED);
        }
        let mut wrote = false;
        for piece in &op.pieces {
            let data = match op.stage {
                0 => piece.data.to_vec(),
                stage => staged_bytes(stage, ByteRange::at(piece.offset, piece.length)),
            };
            let at = if op.append { bytes.len() } else { usize::try_from(piece.offset).unwrap() };
            let end = at + data.len();
            if !data.is_empty() {
                bytes.resize(bytes.len().max(end), 0);
                bytes[at..end].copy_from_slice(&data);
                wrote = true;
            }
        }
        if wrote {
            self.ctime = self.ctime.max(time);
            self.mtime = self.mtime.max(time);
            self.data_version = index;
            self.xattrs.remove(CAPABILITY);
            if op.kill_suid_sgid {
                self.kill_suid_sgid();
            }
        }
        Ok(wrote)
    }

    /// What umask and the parent's default ACL make of a new node.
    fn inherit(&mut self, parent: &Self, umask: u32) {
        let Some(default) = parent.acls.get(DEFAULT) else {
            self.mode &= !umask;
            return;
        };
        let mut access = default.clone();
        access.allow(access.mode() & self.mode);
        self.mode = self.mode & 0o7000 | access.mode();
        if access.says_more_than_a_mode() {
            self.acls.insert(ACCESS.to_owned(), access);
        }
        if self.is_directory() {
            self.acls.insert(DEFAULT.to_owned(), default.clone());
        }
    }

    fn kill_suid_sgid(&mut self) {
        if let Body::File(_) = self.body {
            self.mode &= if self.mode & 0o10 == 0 { !0o4000 } else { !0o6000 };
        }
    }
}

fn valid(name: &str) -> Result<()> {
    match name {
        _ if name.len() > 255 => Err(Errno::ENAMETOOLONG),
        "" | "." | ".." => Err(Errno::EINVAL),
        _ if name.contains(['/', '\0']) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

impl Tree {
    pub fn new() -> Self {
        let body = Body::Directory { names: BTreeMap::new(), parent: 1 };
        let root = Node::new(body, 0o755, When { time: 0, index: 0 });
        Self {
            nodes: BTreeMap::from([(1, root)]),
            orphans: BTreeMap::new(),
            sessions: BTreeSet::new(),
        }
    }

    fn node(&mut self, ino: u64) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Errno::ENOENT)
    }

    /// The names of a directory that is still there.
    fn names(&mut self, ino: u64) -> Result<&mut BTreeMap<String, u64>> {
        let node = self.node(ino)?;
        let nlink = node.nlink;
        match &mut node.body {
            Body::Directory { names, .. } if nlink > 0 => Ok(names),
            Body::Directory { .. } => Err(Errno::ENOENT),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn named(&mut self, parent: u64, name: &str) -> Result<u64> {
        valid(name)?;
        self.names(parent)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// What is said of a file with this name that is all on disks.
    pub fn on_disks(&mut self, parent: u64, name: &str) -> Option<proto::OnDisks> {
        let ino = self.named(parent, name).ok()?;
        Some(proto::OnDisks { ino, data_version: self.nodes[&ino].data_version })
    }

    fn names_changed(&mut self, ino: u64, when: When) {
        let node = self.nodes.get_mut(&ino).expect("was looked up");
        node.mtime = when.time;
        node.changed(when);
    }

    /// Counts directories anew instead of keeping count.
    fn recount(&mut self, ino: u64) {
        let Body::Directory { names, .. } = &self.nodes[&ino].body else { return };
        let below = names.values().filter(|child| self.nodes[child].is_directory()).count();
        self.nodes.get_mut(&ino).expect("exists").nlink = 2 + u32::try_from(below).expect("few");
    }

    fn lost_name(&mut self, ino: u64, when: When) {
        let node = self.nodes.get_mut(&ino).expect("was named");
        node.nlink = if node.is_directory() { 0 } else { node.nlink - 1 };
        node.changed(when);
        if node.nlink == 0 {
            self.orphans.insert(ino, self.sessions.clone());
        }
    }

    pub fn make(&mut self, op: &proto::Make, name: &str, when: When) -> Result<()> {
        valid(name)?;
        if self.names(op.parent)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let parent = self.node(op.parent)?.clone();
        let body = match op.kind() {
            proto::Kind::Directory => Body::Directory { names: BTreeMap::new(), parent: op.parent },
            proto::Kind::Symlink => Body::Symlink(String::from_utf8_lossy(&op.target).into()),
            proto::Kind::Fifo => Body::Fifo,
            _ => Body::File(Vec::new()),
        };
        let mode = if matches!(body, Body::Symlink(_)) { 0o777 } else { op.mode };
        let mut node = Node::new(body, mode, when);
        (node.uid, node.gid) = (op.uid, op.gid);
        if parent.mode & 0o2000 != 0 {
            node.gid = parent.gid;
            node.mode |= if node.is_directory() { 0o2000 } else { 0 };
        }
        if !matches!(node.body, Body::Symlink(_)) {
            node.inherit(&parent, op.umask);
        }
        self.nodes.insert(op.ino, node);
        self.names(op.parent)?.insert(name.to_owned(), op.ino);
        self.recount(op.parent);
        self.names_changed(op.parent, when);
        Ok(())
    }

    pub fn link(&mut self, ino: u64, parent: u64, name: &str, when: When) -> Result<()> {
        valid(name)?;
        self.node(ino)?;
        if self.names(parent)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let node = self.node(ino)?;
        if node.is_directory() {
            return Err(Errno::EPERM);
        }
        if node.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        node.nlink += 1;
        node.changed(when);
        self.names(parent)?.insert(name.to_owned(), ino);
        self.names_changed(parent, when);
        Ok(())
    }

    pub fn unlink(&mut self, parent: u64, name: &str, when: When) -> Result<()> {
        let ino = self.named(parent, name)?;
        if self.node(ino)?.is_directory() {
            return Err(Errno::EISDIR);
        }
        self.names(parent)?.remove(name);
        self.lost_name(ino, when);
        self.names_changed(parent, when);
        Ok(())
    }

    pub fn rmdir(&mut self, parent: u64, name: &str, when: When) -> Result<()> {
        let ino = self.named(parent, name)?;
        if !self.names(ino)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.names(parent)?.remove(name);
        self.lost_name(ino, when);
        self.recount(parent);
        self.names_changed(parent, when);
        Ok(())
    }

    /// Whether `ino` is in the tree below (or is) `top`, by looking at names from the top down.
    fn contains(&self, top: u64, ino: u64) -> bool {
        let Body::Directory { names, .. } = &self.nodes[&top].body else { return false };
        top == ino || names.values().any(|&child| self.contains(child, ino))
    }

    pub fn rename(
        &mut self,
        (from, name): (u64, &str),
        (to, new_name): (u64, &str),
        flags: u32,
        durable: Option<&[proto::OnDisks]>,
        when: When,
    ) -> Result<()> {
        if flags > 2 {
            return Err(Errno::EINVAL);
        }
        valid(name)?;
        valid(new_name)?;
        self.names(from)?;
        self.names(to)?;
        let source = self.named(from, name)?;
        let target = self.names(to)?.get(new_name).copied();
        match (flags, target) {
            (1, Some(_)) => return Err(Errno::EEXIST),
            (2, None) => return Err(Errno::ENOENT),
            (_, Some(target)) if target == source => return Ok(()),
            _ => {}
        }
        let above = |tree: &Self, moved: u64, into: u64| tree.contains(moved, into);
        if above(self, source, to) || flags == 2 && above(self, target.unwrap_or(0), from) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = target.filter(|_| flags != 2) {
            match (&self.nodes[&source].body, &self.nodes[&target].body) {
                (Body::Directory { .. }, Body::Directory { names, .. }) if names.is_empty() => {}
                (Body::Directory { .. }, Body::Directory { .. }) => return Err(Errno::ENOTEMPTY),
                (Body::Directory { .. }, _) => return Err(Errno::ENOTDIR),
                (_, Body::Directory { .. }) => return Err(Errno::EISDIR),
                _ => {}
            }
        }
        if let (Some(durable), Some(target)) = (durable, target) {
            let is_durable = |ino: u64| {
                let node = &self.nodes[&ino];
                let mut claims = durable.iter().filter(|claim| claim.ino == ino);
                !matches!(node.body, Body::File(_))
                    || claims.any(|claim| claim.data_version >= node.data_version)
            };
            if !is_durable(source) || flags == 2 && !is_durable(target) {
                return Err(Errno::ECANCELED);
            }
        }
        self.names(from)?.remove(name);
        self.names(to)?.insert(new_name.to_owned(), source);
        self.moved(source, to, when);
        match target {
            Some(target) if flags == 2 => {
                self.names(from)?.insert(name.to_owned(), target);
                self.moved(target, from, when);
            }
            Some(target) => self.lost_name(target, when),
            None => {}
        }
        for parent in BTreeSet::from([from, to]) {
            self.recount(parent);
            self.names_changed(parent, when);
        }
        Ok(())
    }

    fn moved(&mut self, ino: u64, to: u64, when: When) {
        let node = self.nodes.get_mut(&ino).expect("was named");
        node.changed(when);
        if let Body::Directory { parent, .. } = &mut node.body {
            *parent = to;
        }
    }

    pub fn set_attr(&mut self, op: &proto::SetAttr, when: When) -> Result<()> {
        let node = self.node(op.ino)?;
        if let Some(write) = &op.write {
            node.write(write, op.written.map_or(when.time, |time| time.seconds), when.index)?;
        }
        if let Some(size) = op.size {
            let bytes = node.bytes()?;
            let size = usize::try_from(size).expect("small files");
            let resized = size != bytes.len();
            bytes.resize(size, 0);
            if resized {
                node.data_version = when.index;
            }
            node.mtime = when.time;
        }
        if op.kill_suid_sgid {
            node.kill_suid_sgid();
        }
        if op.size.is_some() || op.uid.is_some() || op.gid.is_some() || op.kill_suid_sgid {
            node.xattrs.remove(CAPABILITY);
        }
        if let Some(mode) = op.mode {
            node.mode = mode;
            if let Some(acl) = node.acls.get_mut(ACCESS) {
                acl.allow(mode);
            }
        }
        node.uid = op.uid.unwrap_or(node.uid);
        node.gid = op.gid.unwrap_or(node.gid);
        node.atime = op.atime.map_or(node.atime, |time| time.seconds);
        node.mtime = op.mtime.map_or(node.mtime, |time| time.seconds);
        let ctime = node.ctime.max(when.time);
        node.changed(when);
        if op.raise_ctime {
            node.ctime = ctime;
        }
        Ok(())
    }

    pub fn touch(&mut self, ino: u64, seen: i64, atime: i64, when: When) {
        if let Some(node) = self.nodes.get_mut(&ino)
            && node.atime == seen
            && node.atime < atime
        {
            node.atime = atime;
            node.mod_index = when.index;
        }
    }

    pub fn write(&mut self, op: &proto::Write, when: When) -> Result<()> {
        let node = self.node(op.ino)?;
        if node.write(op, when.time, when.index)? {
            let ctime = node.ctime;
            node.changed(when);
            node.ctime = ctime;
        }
        Ok(())
    }

    pub fn allocate(&mut self, op: &proto::Allocate, when: When) -> Result<()> {
        let node = self.node(op.ino)?;
        // As in fallocate(2): reserve, punch a hole (which keeps the size), zero.
        let (zeros, keeps_size) = match op.mode {
            0 => (false, false),
            1 => (false, true),
            3 | 17 => (true, true),
            16 => (true, false),
            _ => return Err(Errno::EOPNOTSUPP),
        };
        let bytes = node
            .bytes()
            .map_err(|errno| if errno == Errno::EINVAL { Errno::ENODEV } else { errno })?;
        if op.length == 0 {
            return Err(Errno::EINVAL);
        }
        let [start, end] =
            [op.offset, op.offset + op.length].map(|at| usize::try_from(at).expect("small files"));
        let size = bytes.len();
        if !keeps_size {
            bytes.resize(size.max(end), 0);
        }
        let mut changed = bytes.len() > size;
        if zeros && start < bytes.len() {
            let end = end.min(bytes.len());
            bytes[start..end].fill(0);
            changed = true;
        }
        if changed {
            node.data_version = when.index;
        }
        if op.kill_suid_sgid {
            node.kill_suid_sgid();
        }
        node.mtime = when.time;
        node.changed(when);
        Ok(())
    }

    pub fn accept_lost(&mut self, op: &proto::AcceptLost, when: When) -> Result<()> {
        let node = self.node(op.ino)?;
        let version = node.data_version;
        let Body::File(bytes) = &mut node.body else { return Err(Errno::EINVAL) };
        if op.ranges.is_empty() || op.ranges.iter().any(|range| range.start == range.end) {
            return Err(Errno::EINVAL);
        }
        if version != op.data_version {
            return Err(Errno::ECANCELED);
        }
        for range in &op.ranges {
            let at = |at: u64| usize::try_from(at).expect("small files").min(bytes.len());
            let range = at(range.start)..at(range.end);
            bytes[range].fill(0);
        }
        node.data_version = when.index;
        node.mtime = when.time;
        node.changed(when);
        Ok(())
    }

    pub fn copy(&mut self, op: &proto::CopyRange, when: When) -> Result<()> {
        let source = self.node(op.source)?.clone();
        let node = self.node(op.ino)?;
        if source.is_directory() || node.is_directory() {
            return Err(Errno::EISDIR);
        }
        let from = source.clone().bytes()?.clone();
        let bytes = node.bytes()?;
        if op.source_version != 0 && op.source_version != source.data_version {
            return Err(Errno::ECANCELED);
        }
        let [start, offset, length] = [op.source_offset, op.offset, op.length]
            .map(|number| usize::try_from(number).expect("small files"));
        let end = (start + length).min(from.len());
        if start >= end {
            return Ok(());
        }
        let copied = &from[start..end];
        let overlaps = start < offset + copied.len() && offset < end;
        if op.source == op.ino && overlaps {
            return Err(Errno::EINVAL);
        }
        bytes.resize(bytes.len().max(offset + copied.len()), 0);
        bytes[offset..offset + copied.len()].copy_from_slice(copied);
        node.data_version = when.index;
        if op.kill_suid_sgid {
            node.kill_suid_sgid();
        }
        node.mtime = when.time;
        node.changed(when);
        Ok(())
    }

    pub fn set_xattr(&mut self, op: &proto::SetXattr, name: &str, when: When) -> Result<()> {
        let node = self.node(op.ino)?;
        match (op.flags, node.xattrs.contains_key(name)) {
            (1, true) => return Err(Errno::EEXIST),
            (2, false) => return Err(Errno::ENODATA),
            _ => {}
        }
        node.xattrs.insert(name.to_owned(), String::from_utf8_lossy(&op.value).into());
        node.changed(when);
        Ok(())
    }

    pub fn set_acl(
        &mut self,
        ino: u64,
        name: &str,
        entries: &[Entry],
        flags: u32,
        when: When,
    ) -> Result<()> {
        let acl = Acl::of(entries).ok_or(Errno::EINVAL)?;
        let node = self.node(ino)?;
        let is_access = name == ACCESS;
        match &node.body {
            Body::Symlink(_) => return Err(Errno::EOPNOTSUPP),
            Body::Directory { .. } => {}
            _ if is_access => {}
            _ => return Err(Errno::EACCES),
        }
        match (flags & 3, node.acls.contains_key(name)) {
            _ if !is_access && flags > 3 => return Err(Errno::EINVAL),
            (1 | 3, true) => return Err(Errno::EEXIST),
            (2 | 3, false) => return Err(Errno::ENODATA),
            _ => {}
        }
        if is_access {
            node.mode = node.mode & 0o7000 | acl.mode();
            node.mode &= if flags > 3 { !0o2000 } else { !0 };
        }
        node.acls.remove(name);
        if !is_access || acl.says_more_than_a_mode() {
            node.acls.insert(name.to_owned(), acl);
        }
        node.changed(when);
        Ok(())
    }

    pub fn remove_xattr(&mut self, ino: u64, name: &str, when: When) -> Result<()> {
        let node = self.node(ino)?;
        let removed = node.xattrs.remove(name).is_some() || node.acls.remove(name).is_some();
        if !removed {
            return Err(Errno::ENODATA);
        }
        node.changed(when);
        Ok(())
    }

    pub fn release(&mut self, ino: u64, session: u64) {
        if let Some(holders) = self.orphans.get_mut(&ino) {
            holders.remove(&session);
            if holders.is_empty() {
                self.orphans.remove(&ino);
                self.nodes.remove(&ino);
            }
        }
    }

    pub fn end_session(&mut self, session: u64) {
        self.sessions.remove(&session);
        let orphans: Vec<u64> = self.orphans.keys().copied().collect();
        for ino in orphans {
            self.release(ino, session);
        }
    }
}
