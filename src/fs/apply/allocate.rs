//! fallocate(2): space that is reserved, bytes that become zeros.

use super::context::{Context, Inode, Step, left_behind, without_suid_sgid};
use crate::fs::applied::{Change, FileEffect};
use crate::fs::errno::Errno;
use crate::fs::limits::SIZE_MAX;
use crate::fs::proto;
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::types::{ByteRange, Generation, Ino};

// `FALLOC_FL_*` of Linux: part of the format.
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const ZERO_RANGE: u32 = 16;

/// What becomes of the range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reserve,
    Punch,
    Zero,
}

pub(super) fn allocate<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::Allocate,
) -> Step<proto::Outcome, V> {
    let mut inode = context.inode(Ino(op.ino))?;
    let (kind, keeps_size) = kind_of(op.mode)?;
    let range = check_range(&inode, op)?;
    let ino = inode.ino;
    let generation = Generation(inode.record.generation);
    context.order(match kind {
        Kind::Reserve => FileEffect::Allocate { ino, generation, range },
        Kind::Punch => FileEffect::Zero { ino, generation, range, reserved: false },
        Kind::Zero => FileEffect::Zero { ino, generation, range, reserved: true },
    });
    let before = inode.record.size;
    if !keeps_size {
        inode.record.size = before.max(range.end);
    }
    let start = if kind == Kind::Reserve { range.start.max(before) } else { range.start };
    let changed = ByteRange { start, end: range.end.min(inode.record.size) };
    if changed.start < changed.end {
        inode.record.data_version = context.at.index.0;
        context.note(Change::Bytes { ino, range: changed });
    }
    if op.kill_suid_sgid {
        inode.record.mode = without_suid_sgid(&inode);
    }
    inode.record.mtime = Some(context.time);
    context.stamp(&mut inode);
    context.save(&inode);
    Ok(left_behind(inode))
}

/// What is asked for, and whether the size stays.
fn kind_of(mode: u32) -> Result<(Kind, bool), Errno> {
    let keeps_size = mode & KEEP_SIZE != 0;
    match mode & !KEEP_SIZE {
        0 => Ok((Kind::Reserve, keeps_size)),
        PUNCH_HOLE if keeps_size => Ok((Kind::Punch, true)),
        ZERO_RANGE => Ok((Kind::Zero, keeps_size)),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

fn check_range(inode: &Inode, op: &proto::Allocate) -> Result<ByteRange, Errno> {
    if inode.is_directory() {
        return Err(Errno::EISDIR);
    }
    if !inode.is_regular() {
        return Err(Errno::ENODEV);
    }
    if op.length == 0 {
        return Err(Errno::EINVAL);
    }
    let range = ByteRange::at(op.offset, op.length);
    if range.end > SIZE_MAX { Err(Errno::EFBIG) } else { Ok(range) }
}
