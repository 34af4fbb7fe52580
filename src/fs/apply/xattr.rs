//! Extended attributes.

use super::context::{Context, Step, Stop};
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
    if op.flags & !(XATTR_CREATE | XATTR_REPLACE) != 0 {
        return Err(Errno::EINVAL.into());
    }
    check_name(&op.name)?;
    if op.value.len() > XATTR_VALUE_MAX {
        return Err(Errno::E2BIG.into());
    }
    let mut inode = context.inode(Ino(op.ino))?;
    let key = keys::xattr(inode.ino, &op.name);
    if op.flags != 0 {
        let exists = context.view.get(&key).map_err(Stop::View)?.is_some();
        if exists && op.flags & XATTR_CREATE != 0 {
            return Err(Errno::EEXIST.into());
        }
        if !exists && op.flags & XATTR_REPLACE != 0 {
            return Err(Errno::ENODATA.into());
        }
    }
    context.view.put(key, op.value.to_vec());
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

fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX {
        return Err(Errno::ERANGE);
    }
    if name.contains(&0) { Err(Errno::EINVAL) } else { Ok(()) }
}
