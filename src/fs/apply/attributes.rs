//! chmod, chown, truncate, utimens, with the bytes that came before them; and relatime's touch.

use super::acl;
use super::context::{
    Context, Inode, Step, Stop, check_time, later, left_behind, without_suid_sgid,
};
use super::{write, xattr};
use crate::fs::applied::{Change, FileEffect};
use crate::fs::errno::Errno;
use crate::fs::limits::SIZE_MAX;
use crate::fs::proto;
use crate::fs::query;
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::types::{ByteRange, Generation, Ino};

pub(super) fn set_attr<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::SetAttr,
) -> Step<proto::Outcome, V> {
    check_time(op.atime)?;
    check_time(op.mtime)?;
    check_time(op.written)?;
    let mut inode = context.inode(Ino(op.ino))?;
    let plan = op.write.as_ref().map(|write| write::plan(&inode, write)).transpose()?;
    if let Some(size) = op.size {
        check_size(&inode, size)?;
    }
    let acl = match op.mode {
        Some(mode) => acl::with_mode(context, inode.ino, mode)?,
        None => None,
    };
    if let Some(plan) = plan {
        let time = op.written.unwrap_or(context.time);
        write::put_bytes(context, &mut inode, &plan, time);
    }
    if let Some(size) = op.size {
        set_size(context, &mut inode, size);
    }
    if op.kill_suid_sgid {
        inode.record.mode = without_suid_sgid(&inode);
    }
    if op.size.is_some() || op.uid.is_some() || op.gid.is_some() || op.kill_suid_sgid {
        xattr::drop_capabilities(context, inode.ino);
    }
    if let Some(acl) = acl {
        acl::put_access(context, inode.ino, &acl);
    }
    let record = &mut inode.record;
    record.mode = op.mode.map_or(record.mode, |mode| mode & 0o7777);
    record.uid = op.uid.unwrap_or(record.uid);
    record.gid = op.gid.unwrap_or(record.gid);
    record.atime = op.atime.or(record.atime);
    record.mtime = op.mtime.or(record.mtime);
    let ctime = later(record.ctime, context.time);
    context.stamp(&mut inode);
    if op.raise_ctime {
        inode.record.ctime = Some(ctime);
    }
    context.save(&inode);
    Ok(left_behind(inode))
}

fn check_size(inode: &Inode, size: u64) -> Result<(), Errno> {
    if inode.is_directory() {
        return Err(Errno::EISDIR);
    }
    if !inode.is_regular() {
        return Err(Errno::EINVAL);
    }
    if size > SIZE_MAX { Err(Errno::EFBIG) } else { Ok(()) }
}

fn set_size<V: ViewMut + Records>(context: &mut Context<'_, V>, inode: &mut Inode, size: u64) {
    let before = inode.record.size;
    // As ftruncate(2): also where the size stays.
    inode.record.mtime = Some(context.time);
    if size == before {
        return;
    }
    let index = context.at.index.0;
    let ino = inode.ino;
    let generation = Generation(inode.record.generation);
    if size == 0 {
        inode.record.generation = index;
        context.order(FileEffect::Renew { ino, generation, next: Generation(index) });
    } else {
        context.order(FileEffect::Truncate { ino, generation, size });
    }
    inode.record.size = size;
    inode.record.data_version = index;
    let range =
        if size < before { ByteRange::from(size) } else { ByteRange { start: before, end: size } };
    context.note(Change::Bytes { ino, range });
}

pub(super) fn touch<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::Touch,
) -> Step<proto::Outcome, V> {
    for touched in &op.inodes {
        check_time(touched.atime)?;
    }
    for touched in &op.inodes {
        let (ino, atime) = (Ino(touched.ino), touched.atime.unwrap_or_default());
        // The file may be gone by now, or somebody has set its time, and nobody waits to hear of it.
        if let Some(record) = query::inode(context.view, ino).map_err(Stop::View)?
            && record.atime == touched.seen
        {
            raise_atime(context, Inode { ino, record }, atime);
        }
    }
    Ok(proto::Outcome::default())
}

fn raise_atime<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    mut inode: Inode,
    atime: proto::Time,
) {
    let raised = Some(later(inode.record.atime, atime));
    if raised == inode.record.atime {
        return;
    }
    inode.record.atime = raised;
    inode.record.mod_index = context.at.index.0;
    context.save(&inode);
}
