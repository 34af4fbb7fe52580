//! SETXATTR, GETXATTR, LISTXATTR and REMOVEXATTR. Who may use which name, the kernel has checked
//! already (xattr(7)).

use bytes::Bytes;

use super::core::{Caller, Core};
use super::errors::OpError;
use crate::fs::proto::command::Op;
use crate::fs::{ACCESS_ACL, DEFAULT_ACL, proto, query};
use crate::types::Ino;

/// Names that only root is shown.
const TRUSTED: &[u8] = b"trusted.";
/// What names may begin with. (Of `system.` there are only ACLs.)
const NAMESPACES: [&[u8]; 3] = [b"user.", TRUSTED, b"security."];
/// Flag of a `SetXattr` of an access ACL: clear sgid.
const ACL_KILL_SGID: u32 = 4;
const S_ISGID: u32 = 0o2000;

/// Goes with every write (capabilities(7)).
const CAPABILITY: &[u8] = b"security.capability";

impl Core {
    /// SETXATTR, with the flags of setxattr(2).
    pub(super) async fn setxattr(
        &self,
        caller: Caller,
        ino: Ino,
        name: Bytes,
        value: Bytes,
        mut flags: u32,
    ) -> Result<(), OpError> {
        is_supported(&name)?;
        if name == ACCESS_ACL {
            let inode = self.seen(ino).await?.inode;
            let has_sgid = inode.mode & S_ISGID != 0;
            if has_sgid && !caller.may_leave_sgid(inode.gid) {
                flags |= ACL_KILL_SGID;
            }
        }
        if name == CAPABILITY
            && let Some(buffer) = self.open.buffer(ino)
        {
            // Bytes that were written before would take it away when they are applied.
            self.commit(&buffer).await;
        }
        let op = Op::SetXattr(proto::SetXattr { ino: ino.0, name, value, flags });
        self.mutate(&[ino], op).await.map(drop)
    }

    /// REMOVEXATTR. Where there is no ACL, none is to be removed: the kernel passes on what we say, and
    /// every other file system says that it is done.
    pub(super) async fn removexattr(&self, ino: Ino, name: Bytes) -> Result<(), OpError> {
        is_supported(&name)?;
        let is_acl = is_acl(&name);
        let op = Op::RemoveXattr(proto::RemoveXattr { ino: ino.0, name });
        match self.mutate(&[ino], op).await {
            Err(OpError::Errno(libc::ENODATA)) if is_acl => Ok(()),
            result => result.map(drop),
        }
    }

    /// GETXATTR.
    pub(super) async fn getxattr(&self, ino: Ino, name: Bytes) -> Result<Vec<u8>, OpError> {
        is_supported(&name)?;
        if is_acl(&name) {
            self.cache.give_acl(ino);
        }
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

fn is_acl(name: &[u8]) -> bool {
    name == ACCESS_ACL || name == DEFAULT_ACL
}

/// As the kernel judges names for file systems that tell it their namespaces.
fn is_supported(name: &[u8]) -> Result<(), OpError> {
    let supported = NAMESPACES.iter().any(|namespace| name.starts_with(namespace));
    if NAMESPACES.contains(&name) {
        Err(OpError::Errno(libc::EINVAL))
    } else if is_acl(name) || supported {
        Ok(())
    } else {
        Err(OpError::Errno(libc::EOPNOTSUPP))
    }
}
