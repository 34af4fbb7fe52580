//! What a replica cannot go on with.

use crate::consensus::CoreError;
use crate::store::StoreError;
use crate::types::NodeId;

/// Why a replica has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fatal {
    /// A sentence.
    pub reason: String,
    /// What follows from it.
    pub kind: FatalKind,
}

/// What the next start has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FatalKind {
    /// Something failed, and may do so again.
    Failed,
    /// The disk has no room: a quota and a lack of inodes, too, which nothing tells later.
    Full,
    /// The node is no member any more, and never will be.
    Removed,
}

impl Fatal {
    /// A node is no member any more.
    #[must_use]
    pub fn removed(node: NodeId) -> Self {
        let reason = format!(
            "node {node} was removed from the cluster: it serves nothing any more; to use this machine again, empty the \
             data directory and let it join as a new member"
        );
        Self { reason, kind: FatalKind::Removed }
    }

    /// Something failed; where `is_full`, for want of room.
    #[must_use]
    pub fn failed(reason: String, is_full: bool) -> Self {
        let kind = if is_full { FatalKind::Full } else { FatalKind::Failed };
        Self { reason, kind }
    }
}

impl From<&StoreError> for Fatal {
    fn from(error: &StoreError) -> Self {
        Self::failed(error.to_string(), error.is_full())
    }
}

impl From<&CoreError> for Fatal {
    /// The core writes nothing.
    fn from(error: &CoreError) -> Self {
        error.to_string().into()
    }
}

impl From<String> for Fatal {
    fn from(reason: String) -> Self {
        Self::failed(reason, false)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{Fatal, FatalKind};
    use crate::store::StoreError;

    fn of(errno: i32) -> Fatal {
        let error = io::Error::from_raw_os_error(errno);
        Fatal::from(&StoreError::Io { action: "write", path: "image".into(), source: error })
    }

    /// Whatever becomes of the disk afterwards.
    #[test]
    fn it_says_that_there_was_no_room() {
        for errno in [libc::ENOSPC, libc::EDQUOT] {
            assert_eq!(of(errno).kind, FatalKind::Full);
        }
        for errno in [libc::EIO, libc::EMFILE, libc::EROFS] {
            assert_eq!(of(errno).kind, FatalKind::Failed);
        }
        assert_eq!(of(libc::EDQUOT).reason.matches("cannot write image").count(), 1);
        assert_eq!(Fatal::from("a thread is gone".to_owned()).kind, FatalKind::Failed);
    }
}
