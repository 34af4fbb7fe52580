//! ACLs: set by themselves, by chmod and at birth. Permission bits and access ACL always agree.

use super::context::{Context, Inode, Step, Stop, corrupt, left_behind};
use super::xattr::check_presence;
use crate::fs::acl::{ACCESS_ACL, Acl, DEFAULT_ACL};
use crate::fs::errno::Errno;
use crate::fs::keys;
use crate::fs::proto::{self, Kind};
use crate::fs::record::{self, Records};
use crate::fs::view::ViewMut;
use crate::types::Ino;

/// With [`ACCESS_ACL`]: clear sgid.
const ACL_KILL_SGID: u32 = 4;
const PERMISSIONS: u32 = 0o777;
const S_ISGID: u32 = 0o2000;

/// SetXattr of one of the two names.
pub(super) fn set<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::SetXattr,
) -> Step<proto::Outcome, V> {
    let acl = Acl::decode(&op.value)?;
    let mut inode = context.inode(Ino(op.ino))?;
    let is_access = op.name == ACCESS_ACL;
    if inode.record.kind() == Kind::Symlink {
        return Err(Errno::EOPNOTSUPP.into());
    }
    if !is_access && !inode.is_directory() {
        return Err(Errno::EACCES.into());
    }
    let flags = if is_access { op.flags & !ACL_KILL_SGID } else { op.flags };
    check_presence(context, inode.ino, &op.name, flags)?;
    if is_access {
        let mode = &mut inode.record.mode;
        *mode = *mode & !PERMISSIONS | acl.mode();
        if op.flags & ACL_KILL_SGID != 0 {
            *mode &= !S_ISGID;
        }
    }
    let key = keys::xattr(inode.ino, &op.name);
    if is_access && acl.is_minimal() {
        context.view.delete(key);
    } else {
        context.view.put(key, acl.encode());
    }
    context.stamp(&mut inode);
    context.save(&inode);
    Ok(left_behind(inode))
}

/// The ACLs of a new inode.
#[derive(Default)]
pub(super) struct Inherited {
    access: Option<Acl>,
    default: Option<Acl>,
}

/// What a new inode with this mode inherits; the mode becomes what it is to have.
pub(super) fn inherit<V: ViewMut + Records>(
    context: &Context<'_, V>,
    parent: &Inode,
    op: &proto::Make,
    mode: &mut u32,
) -> Step<Inherited, V> {
    if op.kind() == Kind::Symlink {
        return Ok(Inherited::default());
    }
    let Some(default) = stored(context, parent.ino, DEFAULT_ACL)? else {
        *mode &= !(op.umask & PERMISSIONS);
        return Ok(Inherited::default());
    };
    let mut access = default.clone();
    access.restrict(*mode);
    *mode = *mode & !PERMISSIONS | access.mode();
    Ok(Inherited {
        access: (!access.is_minimal()).then_some(access),
        default: (op.kind() == Kind::Directory).then_some(default),
    })
}

impl Inherited {
    pub(super) fn put<V: ViewMut + Records>(self, context: &mut Context<'_, V>, ino: Ino) {
        for (name, acl) in [(ACCESS_ACL, self.access), (DEFAULT_ACL, self.default)] {
            if let Some(acl) = acl {
                context.view.put(keys::xattr(ino, name), acl.encode());
            }
        }
    }
}

/// The access ACL of an inode whose permission bits are set to `mode`: to be put in the place of the one
/// that it has.
pub(super) fn with_mode<V: ViewMut + Records>(
    context: &Context<'_, V>,
    ino: Ino,
    mode: u32,
) -> Step<Option<Acl>, V> {
    let acl = stored(context, ino, ACCESS_ACL)?;
    Ok(acl.map(|mut acl| {
        acl.set_mode(mode);
        acl
    }))
}

pub(super) fn put_access<V: ViewMut + Records>(context: &mut Context<'_, V>, ino: Ino, acl: &Acl) {
    context.view.put(keys::xattr(ino, ACCESS_ACL), acl.encode());
}

fn stored<V: ViewMut + Records>(
    context: &Context<'_, V>,
    ino: Ino,
    name: &[u8],
) -> Step<Option<Acl>, V> {
    let key = keys::xattr(ino, name);
    let Some(value) = context.view.get(&key).map_err(Stop::View)? else { return Ok(None) };
    match Acl::decode(&value) {
        Ok(acl) => Ok(Some(acl)),
        Err(_) => Err(corrupt::<V>(record::not_an_acl(key))),
    }
}
