//! Bytes that travel in the log.

use super::context::{Context, Inode, Step, later, left_behind, without_suid_sgid};
use super::xattr;
use crate::fs::applied::{Change, FileEffect};
use crate::fs::errno::Errno;
use crate::fs::limits::SIZE_MAX;
use crate::fs::proto;
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::types::{ByteRange, Generation, Ino};

pub(super) fn write<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::Write,
) -> Step<proto::Outcome, V> {
    let mut inode = context.inode(Ino(op.ino))?;
    let plan = plan(&inode, op)?;
    let appended_at = plan.appended_at;
    if !plan.placed.is_empty() {
        let time = context.time;
        put_bytes(context, &mut inode, &plan, time);
        let ctime = inode.record.ctime;
        context.stamp(&mut inode);
        inode.record.ctime = ctime;
        context.save(&inode);
    }
    Ok(proto::Outcome { offset: appended_at.unwrap_or(0), ..left_behind(inode) })
}

/// What a write is going to do: checked, nothing changed yet.
pub(super) struct Plan<'a> {
    op: &'a proto::Write,
    placed: Vec<Placed<'a>>,
    appended_at: Option<u64>,
}

/// Checks a write.
pub(super) fn plan<'a>(inode: &Inode, op: &'a proto::Write) -> Result<Plan<'a>, Errno> {
    if inode.is_directory() {
        return Err(Errno::EISDIR);
    }
    if !inode.is_regular() || op.ino != inode.ino.0 {
        return Err(Errno::EINVAL);
    }
    let appended_at = op.append.then_some(inode.record.size);
    let placed = place(&op.pieces, appended_at)?;
    Ok(Plan { op, placed, appended_at })
}

/// A piece with the range where it goes.
struct Placed<'a> {
    range: ByteRange,
    piece: &'a proto::Piece,
}

/// Where the pieces go: to their offsets, or one after the other from the end of the file. Pieces
/// without bytes change nothing.
fn place(pieces: &[proto::Piece], end: Option<u64>) -> Result<Vec<Placed<'_>>, Errno> {
    let mut append_at = end;
    let mut placed = Vec::with_capacity(pieces.len());
    for piece in pieces.iter().filter(|piece| !piece.data.is_empty()) {
        let range = ByteRange::at(append_at.unwrap_or(piece.offset), piece.data.len() as u64);
        if range.end > SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        append_at = append_at.map(|_| range.end);
        placed.push(Placed { range, piece });
    }
    Ok(placed)
}

/// Puts the bytes in place, as written at `time`. Neither marks the inode as changed nor saves it.
pub(super) fn put_bytes<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    inode: &mut Inode,
    plan: &Plan<'_>,
    time: proto::Time,
) {
    if plan.placed.is_empty() {
        return;
    }
    let ino = inode.ino;
    let generation = Generation(inode.record.generation);
    for Placed { range, piece } in &plan.placed {
        let data = piece.data.clone();
        context.order(FileEffect::Write { ino, generation, offset: range.start, data });
        context.note(Change::Bytes { ino, range: *range });
        inode.record.size = inode.record.size.max(range.end);
    }
    xattr::drop_capabilities(context, ino);
    if plan.op.kill_suid_sgid {
        inode.record.mode = without_suid_sgid(inode);
    }
    // A flush may come after a later change of the times: it only ever raises them.
    inode.record.ctime = Some(later(inode.record.ctime, time));
    inode.record.mtime = Some(later(inode.record.mtime, time));
    inode.record.data_version = context.at.index.0;
}
