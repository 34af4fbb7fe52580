//! Why an operation fails, and what the program is told.

use crate::node::NodeError;
use crate::store::StoreError;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpError {
    /// An outcome: the program gets exactly this.
    #[error("errno {0}")]
    Errno(i32),
    /// The node could not answer: EIO, whatever the reason, unless nobody waits for it.
    #[error(transparent)]
    Node(#[from] NodeError),
}

impl OpError {
    /// Nothing was done, and it can be asked for again.
    pub(super) fn is_not_done(&self) -> bool {
        matches!(self, Self::Node(NodeError::NotDone))
    }

    /// What the program is told.
    pub(super) fn errno(&self) -> i32 {
        match self {
            Self::Errno(errno) => *errno,
            Self::Node(NodeError::Interrupted) => libc::EINTR,
            Self::Node(_) => libc::EIO,
        }
    }
}

impl From<StoreError> for OpError {
    fn from(error: StoreError) -> Self {
        Self::Node(NodeError::Store(error))
    }
}

impl From<&OpError> for fuser::Errno {
    fn from(error: &OpError) -> Self {
        Self::from_i32(error.errno())
    }
}
