//! Extended attributes.

use super::acl;
use super::context::{Context, Step, Stop};
use crate::fs::acl::{ACCESS_ACL, DEFAULT_ACL};
use crate::fs::errno::Errno;
use crate::fs::keys;
use crate::fs::limits::{XATTR_NAME_MAX, XATTR_VALUE_MAX};
use crate::fs::proto;
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::types::Ino;

const XATTR_CREATE: u32 = 1;
const XATTR_REPLACE: u32 = 2;

pub(super) fn set<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::SetXattr,
) -> Step<proto::Outcome, V> {
    check_name(&op.name)?;
    if op.name == ACCESS_ACL || op.name == DEFAULT_ACL {
        return acl::set(context, op);
    }
    if op.value.len() > XATTR_VALUE_MAX {
        return Err(Errno::E2BIG.into());
    }
    let mut inode = context.inode(Ino(op.ino))?;
    check_presence(context, inode.ino, &op.name, op.flags)?;
    context.view.put(keys::xattr(inode.ino, &op.name), op.value.to_vec());
    context.stamp(&mut inode);
    context.save(&inode);
    Ok(proto::Outcome::default())
}

pub(super) fn remove<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::RemoveXattr,
) -> Step<proto::Outcome, V> {
    check_name(&op.name)?;
    let mut inode = context.inode(Ino(op.ino))?;
    let key = keys::xattr(inode.ino, &op.name);
    if context.view.get(&key).map_err(Stop::View)?.is_none() {
        return Err(Errno::ENODATA.into());
    }
    context.view.delete(key);
    context.stamp(&mut inode);
    context.save(&inode);
    Ok(proto::Outcome::default())
}

/// Takes the file's capabilities away, as whatever could make another program of it does
/// (capabilities(7)).
pub(super) fn drop_capabilities<V: ViewMut + Records>(context: &mut Context<'_, V>, ino: Ino) {
    context.view.delete(keys::xattr(ino, b"security.capability"));
}

/// Refuses what the flags of setxattr(2) forbid.
pub(super) fn check_presence<V: ViewMut + Records>(
    context: &Context<'_, V>,
    ino: Ino,
    name: &[u8],
    flags: u32,
) -> Step<(), V> {
    if flags & !(XATTR_CREATE | XATTR_REPLACE) != 0 {
        return Err(Errno::EINVAL.into());
    }
    if flags == 0 {
        return Ok(());
    }
    let exists = context.view.get(&keys::xattr(ino, name)).map_err(Stop::View)?.is_some();
    if exists && flags & XATTR_CREATE != 0 {
        return Err(Errno::EEXIST.into());
    }
    if !exists && flags & XATTR_REPLACE != 0 {
        return Err(Errno::ENODATA.into());
    }
    Ok(())
}

fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX {
        return Err(Errno::ERANGE);
    }
    if name.contains(&0) { Err(Errno::EINVAL) } else { Ok(()) }
}
