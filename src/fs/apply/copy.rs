//! copy_file_range(2): every replica copies its own bytes, none travel.

use super::context::{Context, Inode, Step, left_behind, without_suid_sgid};
use crate::fs::applied::{Change, FileEffect};
use crate::fs::errno::Errno;
use crate::fs::limits::{COPY_MAX, SIZE_MAX};
use crate::fs::proto;
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::types::{ByteRange, Generation, Ino};

pub(super) fn copy<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::CopyRange,
) -> Step<proto::Outcome, V> {
    let source = context.inode(Ino(op.source))?;
    let mut inode = context.inode(Ino(op.ino))?;
    let range = check(&source, &inode, op)?;
    if !range.is_empty() {
        let index = context.at.index;
        let target = ByteRange::at(op.offset, range.len());
        context.order(FileEffect::Copy {
            index,
            source: source.ino,
            source_generation: Generation(source.record.generation),
            range,
            ino: inode.ino,
            generation: Generation(inode.record.generation),
            offset: op.offset,
        });
        context.note(Change::Bytes { ino: inode.ino, range: target });
        if op.kill_suid_sgid {
            inode.record.mode = without_suid_sgid(&inode);
        }
        inode.record.size = inode.record.size.max(target.end);
        inode.record.data_version = index.0;
        inode.record.mtime = Some(context.time);
        context.stamp(&mut inode);
        context.save(&inode);
    }
    Ok(proto::Outcome { offset: range.len(), ..left_behind(inode) })
}

/// The bytes that are to be copied: those that there are.
fn check(source: &Inode, inode: &Inode, op: &proto::CopyRange) -> Result<ByteRange, Errno> {
    if source.is_directory() || inode.is_directory() {
        return Err(Errno::EISDIR);
    }
    if !source.is_regular() || !inode.is_regular() || op.length > COPY_MAX {
        return Err(Errno::EINVAL);
    }
    if op.source_version != 0 && op.source_version != source.record.data_version {
        return Err(Errno::ECANCELED);
    }
    let length = op.length.min(source.record.size.saturating_sub(op.source_offset));
    let target = ByteRange::at(op.offset, length);
    if target.end > SIZE_MAX {
        return Err(Errno::EFBIG);
    }
    let range = ByteRange::at(op.source_offset, length);
    let overlaps = range.start < target.end && target.start < range.end;
    if source.ino == inode.ino && overlaps { Err(Errno::EINVAL) } else { Ok(range) }
}
