//! A further name for a file.

use super::context::{Context, Step, check_name, left_behind};
use crate::fs::errno::Errno;
use crate::fs::limits::LINK_MAX;
use crate::fs::proto;
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::types::Ino;

pub(super) fn link<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::Link,
) -> Step<proto::Outcome, V> {
    check_name(&op.name)?;
    let mut inode = context.inode(Ino(op.ino))?;
    let mut parent = context.directory(Ino(op.parent))?;
    let slot = context.slot(&parent, &op.name)?;
    if slot.dentry.is_some() {
        return Err(Errno::EEXIST.into());
    }
    if inode.is_directory() {
        return Err(Errno::EPERM.into());
    }
    match inode.record.nlink {
        // An orphan has no way back.
        0 => return Err(Errno::ENOENT.into()),
        LINK_MAX.. => return Err(Errno::EMLINK.into()),
        1..LINK_MAX => inode.record.nlink += 1,
    }
    context.stamp(&mut inode);
    context.stamp_names(&mut parent);
    context.set_slot(slot, Some(inode.dentry()));
    context.save(&inode);
    context.save(&parent);
    Ok(left_behind(inode))
}
