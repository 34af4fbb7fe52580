//! Whether a replica holds what the model holds.

use std::collections::{BTreeMap, BTreeSet};

use quorumfs::fs::keys::Parsed;
use quorumfs::fs::{keys, proto, query};
use quorumfs::types::Ino;

use crate::acls::Acl;
use crate::replica::Replica;
use crate::tree::{Body, Node, Tree};

impl Tree {
    /// Compares everything that the model knows, and that nothing else exists.
    pub fn assert_like(&self, replica: &Replica) {
        let inos = replica.state.keys().filter_map(|key| match keys::parse(key) {
            Some(Parsed::Inode { ino }) => Some(ino.0),
            _ => None,
        });
        let found: BTreeMap<u64, Node> =
            inos.map(|ino| (ino, seen(replica, ino, &inode(replica, ino)))).collect();
        assert_eq!(found, self.nodes);
        for &(ino, generation) in replica.files.keys() {
            let current = inode(replica, ino).generation;
            assert_eq!(current, generation, "a backing file of {ino} was left behind");
        }
        let orphans = query::orphans(&replica.state, Ino(0), usize::MAX).expect("sound");
        let orphans: BTreeMap<u64, BTreeSet<u64>> = orphans
            .into_iter()
            .map(|(ino, orphan)| (ino.0, orphan.holders.into_iter().collect()))
            .collect();
        assert_eq!(orphans, self.orphans);
    }
}

fn inode(replica: &Replica, ino: u64) -> proto::Inode {
    query::inode(&replica.state, Ino(ino)).expect("sound").expect("exists")
}

/// An inode of the replica as the model would have it.
fn seen(replica: &Replica, ino: u64, inode: &proto::Inode) -> Node {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let body = match inode.kind() {
        proto::Kind::Directory => {
            Body::Directory { names: list(replica, ino), parent: inode.parent }
        }
        proto::Kind::Symlink => Body::Symlink(text(&inode.target)),
        proto::Kind::Fifo => Body::Fifo,
        _ => Body::File(replica.read(ino, inode)),
    };
    let names = query::xattr_names(&replica.state, Ino(ino)).expect("sound");
    let (acls, xattrs): (Vec<_>, Vec<_>) =
        names.into_iter().map(|name| text(&name)).partition(|name| name.starts_with("system."));
    let value = |name: &str| {
        let value = query::xattr(&replica.state, Ino(ino), name.as_bytes()).expect("sound");
        value.expect("was listed")
    };
    let seconds = |time: Option<proto::Time>| time.expect("always there").seconds;
    Node {
        body,
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        nlink: inode.nlink,
        atime: seconds(inode.atime),
        mtime: seconds(inode.mtime),
        ctime: seconds(inode.ctime),
        version: inode.version,
        mod_index: inode.mod_index,
        data_version: inode.data_version,
        xattrs: xattrs.into_iter().map(|name| (name.clone(), text(&value(&name)))).collect(),
        acls: acls.into_iter().map(|name| (name.clone(), Acl::stored(&value(&name)))).collect(),
    }
}

/// A directory's names, a few at a time.
fn list(replica: &Replica, directory: u64) -> BTreeMap<String, u64> {
    let mut names = BTreeMap::new();
    let mut after = 0;
    loop {
        let page = query::readdir(&replica.state, Ino(directory), after, 2).expect("sound");
        let Some(last) = page.last() else { return names };
        after = last.cookie;
        for entry in page {
            let name = String::from_utf8(entry.name).expect("text");
            let found = query::lookup(&replica.state, Ino(directory), name.as_bytes());
            assert_eq!(found.expect("sound").map(|dentry| dentry.ino), Some(entry.ino.0));
            assert_eq!(names.insert(name, entry.ino.0), None, "listed twice");
        }
    }
}
