//! The state that a cluster begins with.

use prost::Message;

use super::Position;
use super::keys::{self, Counter};
use super::limits::DIRECTORY_SIZE;
use super::proto;
use super::view::ViewMut;
use crate::types::{Ino, NodeId};

/// The member that a cluster begins with.
const FIRST_NODE: NodeId = NodeId(1);

/// Makes the root directory (mode 0755, of root) and member 1, in an empty view.
pub fn genesis<V: ViewMut>(
    view: &mut V,
    at: Position,
    time: &proto::Time,
    first_member_address: &str,
    nonce: u64,
) {
    view.put(keys::inode(Ino::ROOT), root(at, *time).encode_to_vec());
    let member = proto::Member {
        node: FIRST_NODE.0,
        address: first_member_address.to_owned(),
        nonce,
        learner: false,
    };
    view.put(keys::member(FIRST_NODE), member.encode_to_vec());
    view.put(keys::counter(Counter::NextIno), (Ino::ROOT.0 + 1).encode_to_vec());
    view.put(keys::counter(Counter::NextNode), (FIRST_NODE.0 + 1).encode_to_vec());
}

fn root(at: Position, time: proto::Time) -> proto::Inode {
    proto::Inode {
        kind: proto::Kind::Directory.into(),
        mode: 0o755,
        nlink: 2,
        size: DIRECTORY_SIZE,
        atime: Some(time),
        mtime: Some(time),
        ctime: Some(time),
        btime: Some(time),
        version: 1,
        mod_index: at.index.0,
        data_version: at.index.0,
        writer: FIRST_NODE.0,
        parent: Ino::ROOT.0,
        ..proto::Inode::default()
    }
}
