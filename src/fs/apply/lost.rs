//! Bytes that no replica has any more are given up: they are zeros from then on.

use super::context::{Context, Inode, Step, Stop, left_behind};
use crate::fs::applied::{Change, FileEffect};
use crate::fs::errno::Errno;
use crate::fs::limits::{LOST_MAX, SIZE_MAX};
use crate::fs::proto;
use crate::fs::query;
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::types::{ByteRange, Generation, Ino};

/// The new data_version is what keeps old bytes away: whoever lacks some of it wants no others, and whoever comes back
/// with others makes a hole of them when it applies this.
pub(super) fn accept<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::AcceptLost,
) -> Step<proto::Outcome, V> {
    let mut inode = context.inode(Ino(op.ino))?;
    let ranges = check(&inode, op)?;
    let members = query::members(context.view).map_err(Stop::View)?;
    let is_known = |node: &u64| op.asked.contains(node) || op.away.contains(node);
    // Whoever asked may not have known of it; it may have the last copy.
    if members.iter().any(|member| query::suffrage(member).is_some() && !is_known(&member.node)) {
        return Err(Errno::ECANCELED.into());
    }
    let ino = inode.ino;
    let generation = Generation(inode.record.generation);
    let size = inode.record.size;
    let is_end = size > 0 && ranges.last().is_some_and(|last| last.end >= size);
    for range in ranges {
        context.order(FileEffect::Zero { ino, generation, range, reserved: false });
        context.note(Change::Bytes { ino, range });
    }
    if is_end {
        // Where the end of the file was missing, the backing file ends before it.
        context.order(FileEffect::Truncate { ino, generation, size });
    }
    inode.record.data_version = context.at.index.0;
    inode.record.mtime = Some(context.time);
    context.stamp(&mut inode);
    context.save(&inode);
    Ok(left_behind(inode))
}

fn check(inode: &Inode, op: &proto::AcceptLost) -> Result<Vec<ByteRange>, Errno> {
    if !inode.is_regular() || op.ranges.is_empty() {
        return Err(Errno::EINVAL);
    }
    if op.ranges.len() > LOST_MAX {
        return Err(Errno::E2BIG);
    }
    let mut end = 0;
    for range in &op.ranges {
        if range.start < end || range.end <= range.start || range.end > SIZE_MAX {
            return Err(Errno::EINVAL);
        }
        end = range.end;
    }
    let record = &inode.record;
    if (record.generation, record.data_version) != (op.generation, op.data_version) {
        return Err(Errno::ECANCELED);
    }
    let range = |range: &proto::Extent| ByteRange { start: range.start, end: range.end };
    Ok(op.ranges.iter().map(range).collect())
}
