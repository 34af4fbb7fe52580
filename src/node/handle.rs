//! What a mount can ask of its node.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::fs::{Change, proto};
use crate::store::{Files, StateRead, StoreError};
use crate::types::{Ino, LogIndex, NodeId, SessionId};

/// Why the node could not answer. None of these says that a mutation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No answer within `op_timeout`.
    #[error("no quorum answered within the deadline")]
    Deadline,
    /// The session ended while the operation waited, so its outcome is unknown.
    #[error("this mount's session ended while the operation waited")]
    SessionLost,
    /// This replica cannot read or write its own disk.
    #[error("this replica's own state cannot be used")]
    Store(#[from] StoreError),
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

/// A mutation on its way. Resolves once it may be acknowledged: committed, applied here, and applied
/// by every node of the roster. Dropping it does not take the mutation back.
#[derive(Debug)]
pub struct Pending(());

impl Future for Pending {
    type Output = Result<proto::Outcome, NodeError>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        unimplemented!()
    }
}

/// What a mount is told before this node tells others that it has applied something.
pub trait Observer: Send + Sync {
    /// These changes were applied at `index` (`own` where this mount's session proposed them). Must
    /// return only once this mount's kernel serves nothing older than them, and must not wait for a
    /// kernel lock that an operation can hold: every writer of the cluster waits for this call.
    fn applied(&self, index: LogIndex, own: bool, changes: &[Change]);

    /// The lease lapsed: drop whatever the kernel may serve by itself.
    fn lease_lost(&self);

    /// The mount's session is another now (the first one, or after the last was expired).
    fn session_changed(&self, session: SessionId);

    /// Whether this mount has the inode open. Asked when its last name is gone.
    fn holds(&self, ino: Ino) -> bool;
}

/// The face of a running node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle(Arc<()>);

impl Handle {
    /// This node's id.
    pub fn node(&self) -> NodeId {
        unimplemented!()
    }

    /// The mount's present session.
    pub fn session(&self) -> SessionId {
        unimplemented!()
    }

    /// Names the mount that is to be told of changes. Called once, before the mount serves.
    pub fn observe(&self, _observer: Arc<dyn Observer>) {
        unimplemented!()
    }

    /// Proposes a mutation. Never blocks; order among mutations in flight at once is not kept.
    pub fn mutate(&self, _op: proto::command::Op) -> Pending {
        unimplemented!()
    }

    /// The same, without waiting for the roster: resolves once committed and applied here. For bytes
    /// that nobody has been promised yet. `time` becomes the command's: bytes are committed later
    /// than they were written, and `mtime` must not move when that happens.
    pub fn mutate_here(&self, _op: proto::command::Op, _time: proto::Time) -> Pending {
        unimplemented!()
    }

    /// Waits until what was applied here at `index` may be acknowledged: until every node of the
    /// roster has applied it. What [`Self::mutate_here`] left out.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] after `op_timeout`.
    pub async fn until_acknowledged(&self, _index: LogIndex) -> Result<(), NodeError> {
        unimplemented!()
    }

    /// A new inode number, from a range that the session was granted.
    ///
    /// # Errors
    /// When no quorum grants a new range in time.
    pub async fn new_ino(&self) -> Result<Ino, NodeError> {
        unimplemented!()
    }

    /// The whole state at one applied index. Hold it for one query only: applies wait for it.
    pub fn state(&self) -> StateRead<'_> {
        unimplemented!()
    }

    /// Whether what was last changed at `mod_index` may be served now: the lease is live and the
    /// index is stable. Costs two atomic loads.
    pub fn may_serve(&self, _mod_index: LogIndex) -> bool {
        unimplemented!()
    }

    /// Waits until [`Self::may_serve`] may hold: for the lease, for stability, or for the deadline.
    /// The caller queries again afterwards.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] after `op_timeout`.
    pub async fn until_servable(&self, _mod_index: LogIndex) -> Result<(), NodeError> {
        unimplemented!()
    }

    /// What is left of the lease, less a margin: the longest TTL to give to the kernel. Zero where
    /// nothing may be cached.
    pub fn lease_left(&self) -> Duration {
        unimplemented!()
    }

    /// The backing files.
    pub fn files(&self) -> &Files {
        unimplemented!()
    }

    /// The mount no longer holds an inode whose last name is gone. Batched; nobody waits.
    pub fn release_orphan(&self, _ino: Ino) {
        unimplemented!()
    }

    /// relatime's touch: replicated in batches that nobody waits for.
    pub fn touch(&self, _ino: Ino, _atime: proto::Time) {
        unimplemented!()
    }

    /// `op_timeout` of the configuration.
    pub fn op_timeout(&self) -> Duration {
        unimplemented!()
    }
}
