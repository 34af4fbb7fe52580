//! create, mkdir, mknod and symlink.

use bytes::Bytes;

use super::acl;
use super::context::{Context, Inode, Step, Stop, check_name, left_behind};
use crate::fs::errno::Errno;
use crate::fs::keys;
use crate::fs::limits::{DIRECTORY_SIZE, LINK_MAX, TARGET_MAX};
use crate::fs::proto::{self, Kind};
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::types::Ino;

const S_ISGID: u32 = 0o2000;

pub(super) fn make<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::Make,
) -> Step<proto::Outcome, V> {
    check_name(&op.name)?;
    check_kind(op)?;
    let mut parent = context.directory(Ino(op.parent))?;
    let slot = context.slot(&parent, &op.name)?;
    if slot.dentry.is_some() {
        return Err(Errno::EEXIST.into());
    }
    let is_directory = op.kind() == Kind::Directory;
    if is_directory && parent.record.nlink >= LINK_MAX {
        return Err(Errno::EMLINK.into());
    }
    check_ino(context, Ino(op.ino))?;

    let mut record = record(context, op, &parent);
    let inherited = acl::inherit(context, &parent, op, &mut record.mode)?;
    let mut inode = Inode { ino: Ino(op.ino), record };
    context.stamp(&mut inode);
    context.stamp_names(&mut parent);
    if is_directory {
        parent.record.nlink += 1;
    }
    context.set_slot(slot, Some(inode.dentry()));
    context.save(&inode);
    inherited.put(context, inode.ino);
    context.save(&parent);
    Ok(left_behind(inode))
}

fn check_kind(op: &proto::Make) -> Result<(), Errno> {
    // `kind()` also gives Unspecified for numbers that are no kind.
    match op.kind() {
        Kind::Unspecified => Err(Errno::EINVAL),
        Kind::Symlink if op.target.is_empty() => Err(Errno::ENOENT),
        Kind::Symlink if op.target.len() > TARGET_MAX => Err(Errno::ENAMETOOLONG),
        Kind::Symlink if op.target.contains(&0) => Err(Errno::EINVAL),
        Kind::Symlink
        | Kind::Regular
        | Kind::Directory
        | Kind::Fifo
        | Kind::Socket
        | Kind::CharDevice
        | Kind::BlockDevice => Ok(()),
    }
}

/// Refuses a number that the session was not granted, or that is in use.
fn check_ino<V: ViewMut + Records>(context: &Context<'_, V>, ino: Ino) -> Step<(), V> {
    let granted = &context.session_record.granted;
    if !granted.iter().any(|range| (range.first..range.end).contains(&ino.0)) {
        return Err(Errno::EINVAL.into());
    }
    if context.view.get(&keys::inode(ino)).map_err(Stop::View)?.is_some() {
        return Err(Errno::EINVAL.into());
    }
    Ok(())
}

/// The new inode, but for who changed it last, and for what umask and ACLs make of its mode.
fn record<V>(context: &Context<'_, V>, op: &proto::Make, parent: &Inode) -> proto::Inode {
    let kind = op.kind();
    let inherits_group = parent.record.mode & S_ISGID != 0;
    let mode = match kind {
        Kind::Symlink => 0o777,
        Kind::Directory if inherits_group => op.mode & 0o7777 | S_ISGID,
        _ => op.mode & 0o7777,
    };
    let is_symlink = kind == Kind::Symlink;
    let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
    let size = match kind {
        Kind::Directory => DIRECTORY_SIZE,
        Kind::Symlink => op.target.len() as u64,
        _ => 0,
    };
    let index = context.at.index.0;
    proto::Inode {
        kind: op.kind,
        mode,
        uid: op.uid,
        gid: if inherits_group { parent.record.gid } else { op.gid },
        nlink: if kind == Kind::Directory { 2 } else { 1 },
        size,
        atime: Some(context.time),
        mtime: Some(context.time),
        btime: Some(context.time),
        rdev: if is_device { op.rdev } else { 0 },
        target: if is_symlink { op.target.clone() } else { Bytes::new() },
        generation: if kind == Kind::Regular { index } else { 0 },
        data_version: index,
        parent: if kind == Kind::Directory { parent.ino.0 } else { 0 },
        ..proto::Inode::default()
    }
}
