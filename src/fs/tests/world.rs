//! A state with a session, and short words for its commands.

use std::collections::BTreeMap;

use crate::fs::proto::command::Op;
use crate::fs::{Applied, Digest, Errno, Overlay, Position, apply, check, genesis, proto, query};
use crate::types::{Ino, LogIndex, Term};

pub(super) const ROOT: u64 = 1;

/// A state with a root directory and one session, where commands are applied as a replica does: each
/// is followed by a check of all invariants and of the digest.
pub(super) struct World {
    pub(super) state: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) digest: Digest,
    pub(super) index: u64,
    pub(super) session: u64,
    pub(super) seq: u64,
    pub(super) next_ino: u64,
}

impl World {
    pub(super) fn new() -> Self {
        let mut world = Self {
            state: BTreeMap::new(),
            digest: Digest::default(),
            index: 0,
            session: 0,
            seq: 0,
            next_ino: 0,
        };
        genesis(&mut world.state, at(0), &time(0), "a:1", 0xa);
        world.digest = digest_of(&world.state);
        world.session = world.open(1, 100);
        world
    }

    /// Opens a session with the node and nonce given, and gives its id.
    pub(super) fn open(&mut self, node: u64, nonce: u64) -> u64 {
        let applied = self.cluster(session_open(node, nonce));
        assert_eq!(applied.outcome.errno, 0);
        self.next_ino = applied.outcome.granted.expect("a first range").first;
        self.seq = 0;
        applied.outcome.id
    }

    /// Applies an operation of the cluster.
    pub(super) fn cluster(&mut self, op: Op) -> Applied {
        let command = proto::Command { op: Some(op), ..proto::Command::default() };
        self.apply(&command)
    }

    /// The session's next command, answered at once.
    pub(super) fn command(&mut self, op: Op) -> proto::Command {
        self.seq += 1;
        proto::Command {
            volume: 1,
            session: self.session,
            seq: self.seq,
            lowest_unanswered: self.seq,
            time: None,
            clock: self.index << 16,
            node: 1,
            given_up: Vec::new(),
            op: Some(op),
        }
    }

    pub(super) fn run(&mut self, op: Op) -> Applied {
        let command = self.command(op);
        self.apply(&command)
    }

    /// Runs what must succeed.
    pub(super) fn ok(&mut self, op: Op) -> Applied {
        let shown = format!("{op:?}");
        let applied = self.run(op);
        assert_eq!(applied.outcome.errno, 0, "{shown}");
        applied
    }

    /// Runs what must be refused, changing nothing.
    pub(super) fn refused(&mut self, errno: Errno, op: Op) {
        let shown = format!("{op:?}");
        let applied = self.run(op);
        assert_eq!(applied.outcome.errno, errno.number(), "{shown} wants {errno}");
        assert!(applied.changes.is_empty() && applied.effects.is_empty(), "{shown}");
    }

    pub(super) fn apply(&mut self, command: &proto::Command) -> Applied {
        self.index += 1;
        let mut command = command.clone();
        command.time.get_or_insert(time(self.index));
        let mut overlay = Overlay::new(&self.state);
        let applied = apply(&mut overlay, at(self.index), &command).expect("sound records");
        let batch = overlay.finish().expect("a map can be read");
        self.digest.merge(batch.digest);
        batch.write_to(&mut self.state);
        assert_eq!(check(&self.state), Ok(vec![]), "after {command:?}");
        assert_eq!(self.digest, digest_of(&self.state), "after {command:?}");
        applied
    }

    pub(super) fn make(&mut self, kind: proto::Kind, parent: u64, name: &str) -> u64 {
        let op = self.make_op(kind, parent, name);
        self.ok(Op::Make(op)).outcome.id
    }

    pub(super) fn make_op(&mut self, kind: proto::Kind, parent: u64, name: &str) -> proto::Make {
        self.next_ino += 1;
        proto::Make {
            parent,
            name: bytes(name),
            ino: self.next_ino - 1,
            kind: kind.into(),
            mode: 0o640,
            uid: 10,
            gid: 20,
            rdev: 7,
            target: bytes(if kind == proto::Kind::Symlink { "target" } else { "" }),
            umask: 0,
        }
    }

    pub(super) fn file(&mut self, parent: u64, name: &str) -> u64 {
        self.make(proto::Kind::Regular, parent, name)
    }

    pub(super) fn directory(&mut self, parent: u64, name: &str) -> u64 {
        self.make(proto::Kind::Directory, parent, name)
    }

    pub(super) fn inode(&self, ino: u64) -> proto::Inode {
        self.find(ino).unwrap_or_else(|| panic!("no inode {ino}"))
    }

    pub(super) fn find(&self, ino: u64) -> Option<proto::Inode> {
        query::inode(&self.state, Ino(ino)).expect("sound records")
    }

    pub(super) fn lookup(&self, parent: u64, name: &str) -> Option<u64> {
        let dentry = query::lookup(&self.state, Ino(parent), name.as_bytes());
        dentry.expect("sound records").map(|dentry| dentry.ino)
    }

    /// Overwrites a field of an inode behind the commands' back.
    pub(super) fn tamper(&mut self, ino: u64, change: impl FnOnce(&mut proto::Inode)) {
        use prost::Message;
        let mut inode = self.inode(ino);
        change(&mut inode);
        self.state.insert(crate::fs::keys::inode(Ino(ino)), inode.encode_to_vec());
        self.digest = digest_of(&self.state);
    }
}

pub(super) fn at(index: u64) -> Position {
    Position { index: LogIndex(index), term: Term(1) }
}

pub(super) fn time(seconds: u64) -> proto::Time {
    proto::Time { seconds: seconds.cast_signed(), nanos: 5 }
}

pub(super) fn bytes(text: &str) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(text.as_bytes())
}

pub(super) fn digest_of(state: &BTreeMap<Vec<u8>, Vec<u8>>) -> Digest {
    let mut digest = Digest::default();
    for (key, value) in state {
        digest.add(key, value);
    }
    digest
}

pub(super) fn unlink(parent: u64, name: &str) -> Op {
    Op::Unlink(proto::Unlink { parent, name: bytes(name) })
}

pub(super) fn rmdir(parent: u64, name: &str) -> Op {
    Op::Rmdir(proto::Rmdir { parent, name: bytes(name) })
}

pub(super) fn link(ino: u64, parent: u64, name: &str) -> Op {
    Op::Link(proto::Link { ino, parent, name: bytes(name) })
}

pub(super) fn rename(from: (u64, &str), to: (u64, &str), flags: u32) -> Op {
    Op::Rename(proto::Rename {
        parent: from.0,
        name: bytes(from.1),
        new_parent: to.0,
        new_name: bytes(to.1),
        flags,
        ..proto::Rename::default()
    })
}

pub(super) fn write(ino: u64, offset: u64, data: &str) -> Op {
    let pieces = vec![proto::Piece { offset, data: bytes(data), ..Default::default() }];
    Op::Write(proto::Write { ino, pieces, ..Default::default() })
}

pub(super) fn resize(ino: u64, size: u64) -> Op {
    Op::SetAttr(proto::SetAttr { ino, size: Some(size), ..proto::SetAttr::default() })
}

pub(super) fn session_open(node: u64, nonce: u64) -> Op {
    let principal = "someone".to_owned();
    Op::SessionOpen(proto::SessionOpen { node, nonce, principal, strong: true, applied: None })
}

pub(super) fn session_end(session: u64) -> Op {
    Op::SessionEnd(proto::SessionEnd { session, expired: true })
}

pub(super) fn release(ino: u64) -> Op {
    Op::ReleaseOrphans(proto::ReleaseOrphans { inos: vec![ino] })
}
