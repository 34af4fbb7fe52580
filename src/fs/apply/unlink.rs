//! unlink and rmdir: a name goes.

use super::context::{Context, Inode, Slot, Step, Stop, check_name};
use super::orphans;
use crate::fs::errno::Errno;
use crate::fs::keys;
use crate::fs::proto::{self, Kind};
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::types::Ino;

pub(super) fn unlink<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::Unlink,
) -> Step<proto::Outcome, V> {
    let (mut parent, slot, dentry) = named(context, op.parent, &op.name)?;
    if dentry.kind() == Kind::Directory {
        return Err(Errno::EISDIR.into());
    }
    let inode = context.referenced_inode(Ino(dentry.ino))?;
    context.set_slot(slot, None);
    orphans::drop_name(context, inode)?;
    context.stamp_names(&mut parent);
    context.save(&parent);
    Ok(proto::Outcome::default())
}

pub(super) fn rmdir<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::Rmdir,
) -> Step<proto::Outcome, V> {
    let (mut parent, slot, dentry) = named(context, op.parent, &op.name)?;
    if dentry.kind() != Kind::Directory {
        return Err(Errno::ENOTDIR.into());
    }
    check_empty(context, Ino(dentry.ino))?;
    let inode = context.referenced_inode(Ino(dentry.ino))?;
    context.set_slot(slot, None);
    orphans::drop_name(context, inode)?;
    parent.record.nlink -= 1;
    context.stamp_names(&mut parent);
    context.save(&parent);
    Ok(proto::Outcome::default())
}

/// Refuses a directory that holds names.
pub(super) fn check_empty<V: ViewMut + Records>(
    context: &Context<'_, V>,
    directory: Ino,
) -> Step<(), V> {
    let names = keys::dentries(directory, 0);
    let first = context.view.scan(&names.from, &names.to, 1).map_err(Stop::View)?;
    if first.is_empty() { Ok(()) } else { Err(Errno::ENOTEMPTY.into()) }
}

fn named<V: ViewMut + Records>(
    context: &Context<'_, V>,
    parent: u64,
    name: &[u8],
) -> Step<(Inode, Slot, proto::Dentry), V> {
    check_name(name)?;
    let parent = context.directory(Ino(parent))?;
    let slot = context.slot(&parent, name)?;
    let dentry = slot.dentry.ok_or(Errno::ENOENT)?;
    Ok((parent, slot, dentry))
}
