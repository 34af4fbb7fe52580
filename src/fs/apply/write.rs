//! Bytes that travel in the log, or beside it in stages.

use super::context::{Context, Inode, Step, later, left_behind, without_suid_sgid};
use super::xattr;
use crate::fs::applied::{Change, FileEffect, StagedPiece};
use crate::fs::errno::Errno;
use crate::fs::limits::{CHECKSUM_BLOCK, SIZE_MAX};
use crate::fs::proto;
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::types::{ByteRange, Generation, Ino, StageId};

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
    check_pieces(op)?;
    let appended_at = op.append.then_some(inode.record.size);
    let placed = place(&op.pieces, appended_at)?;
    let replaces = placed.iter().any(|placed| placed.range.start < inode.record.size);
    if op.adds_only && replaces {
        return Err(Errno::ECANCELED);
    }
    Ok(Plan { op, placed, appended_at })
}

/// Bytes are either all here, or all in one stage, from ascending offsets that do not overlap.
fn check_pieces(op: &proto::Write) -> Result<(), Errno> {
    let mut end = 0;
    for piece in &op.pieces {
        if op.stage == 0 {
            if piece.length != 0 || !piece.checksums.is_empty() {
                return Err(Errno::EINVAL);
            }
            continue;
        }
        let range = ByteRange::at(piece.offset, piece.length);
        if range.end > SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        let blocks = range.end.div_ceil(CHECKSUM_BLOCK) - range.start / CHECKSUM_BLOCK;
        let is_whole = piece.data.is_empty() && piece.checksums.len() as u64 == blocks;
        if range.is_empty() || range.start < end || !is_whole {
            return Err(Errno::EINVAL);
        }
        end = range.end;
    }
    Ok(())
}

fn length(piece: &proto::Piece) -> u64 {
    piece.length + piece.data.len() as u64
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
    for piece in pieces.iter().filter(|piece| length(piece) > 0) {
        let range = ByteRange::at(append_at.unwrap_or(piece.offset), length(piece));
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
        if plan.op.stage == 0 {
            let data = piece.data.clone();
            context.order(FileEffect::Write { ino, generation, offset: range.start, data });
        }
        context.note(Change::Bytes { ino, range: *range });
        inode.record.size = inode.record.size.max(range.end);
    }
    if plan.op.stage != 0 {
        let pieces = plan.placed.iter().map(|Placed { range, piece }| StagedPiece {
            at: range.start,
            staged: ByteRange::at(piece.offset, piece.length),
            checksums: piece.checksums.clone(),
        });
        let index = context.at.index;
        let stage = StageId { session: context.session, number: plan.op.stage };
        context.order(FileEffect::Stage {
            index,
            ino,
            generation,
            stage,
            pieces: pieces.collect(),
        });
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
