//! SETXATTR, GETXATTR, LISTXATTR and REMOVEXATTR. Who may use which name, the kernel has checked
//! already (xattr(7)).

use bytes::Bytes;

use super::core::{Caller, Core};
use super::errors::OpError;
use crate::fs::proto::command::Op;
use crate::fs::{proto, query};
use crate::types::Ino;

/// Names that only root is shown.
const TRUSTED: &[u8] = b"trusted.";
/// There are no ACLs here.
const SYSTEM: &[u8] = b"system.";

impl Core {
    /// SETXATTR, with the flags of setxattr(2).
    pub(super) async fn setxattr(
        &self,
        ino: Ino,
        name: Bytes,
        value: Bytes,
        flags: u32,
    ) -> Result<(), OpError> {
        is_supported(&name)?;
        let op = Op::SetXattr(proto::SetXattr { ino: ino.0, name, value, flags });
        self.mutate(&[ino], op).await.map(drop)
    }

    /// REMOVEXATTR.
    pub(super) async fn removexattr(&self, ino: Ino, name: Bytes) -> Result<(), OpError> {
        is_supported(&name)?;
        let op = Op::RemoveXattr(proto::RemoveXattr { ino: ino.0, name });
        self.mutate(&[ino], op).await.map(drop)
    }

    /// GETXATTR.
    pub(super) async fn getxattr(&self, ino: Ino, name: Bytes) -> Result<Vec<u8>, OpError> {
        is_supported(&name)?;
        let value = self.read_stable(|look| {
            let inode = query::inode(&look.state, ino)?.ok_or(OpError::Errno(libc::ESTALE))?;
            let value = query::xattr(&look.state, ino, &name)?;
            Ok((value, look.inode_changed(ino, inode.mod_index)))
        });
        value.await?.ok_or(OpError::Errno(libc::ENODATA))
    }

    /// LISTXATTR: the names, each ended by a NUL.
    pub(super) async fn listxattr(&self, caller: Caller, ino: Ino) -> Result<Vec<u8>, OpError> {
        let names = self.read_stable(|look| {
            let inode = query::inode(&look.state, ino)?.ok_or(OpError::Errno(libc::ESTALE))?;
            let names = query::xattr_names(&look.state, ino)?;
            Ok((names, look.inode_changed(ino, inode.mod_index)))
        });
        let mut list = Vec::new();
        for name in names.await? {
            if caller.uid == 0 || !name.starts_with(TRUSTED) {
                list.extend_from_slice(&name);
                list.push(0);
            }
        }
        Ok(list)
    }
}

fn is_supported(name: &[u8]) -> Result<(), OpError> {
    if name.starts_with(SYSTEM) { Err(OpError::Errno(libc::EOPNOTSUPP)) } else { Ok(()) }
}
