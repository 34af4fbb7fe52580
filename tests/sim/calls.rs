//! What the clients' calls are to the file system: queries and commands.

use quorumfs::fs::proto::{self, command::Op};
use quorumfs::fs::{Change, Unapplied, query};
use quorumfs::types::{ByteRange, Generation, Ino, LogIndex, MountId};

use crate::files::Files;
use crate::history::{Answer, Call, Name, SLOT, SLOTS, Subject};
use crate::staging::slot_bytes;
use crate::state::View;

/// The one mount of each node.
pub const MOUNT: MountId = MountId(1);
/// What a slot holds whose bytes are of more than one value: nobody may be told.
const TORN: u64 = u64::MAX;
/// Flags of fallocate(2).
const PUNCH_HOLE_KEEP_SIZE: u32 = 3;

/// Whether a change concerns what a read found.
pub fn is_touched(subject: Subject, call: Call, change: &Change) -> bool {
    match (subject, change) {
        (
            Subject::Register { file, .. } | Subject::Log { file } | Subject::Slots { file },
            Change::Attributes { ino } | Change::Removed { ino },
        ) => file == *ino,
        (
            Subject::Register { .. } | Subject::Log { .. } | Subject::Slots { .. },
            Change::SomeAttributes,
        ) => true,
        (Subject::Names { directory, round }, Change::Name { parent, name, .. }) => {
            directory == *parent
                && matches!(call, Call::Lookup(which) if spell(round, which) == *name)
        }
        _ => false,
    }
}

fn spell(round: u64, name: Name) -> Vec<u8> {
    format!("{round}.{name}").into_bytes()
}

fn spell_xattr(round: u64) -> Vec<u8> {
    format!("user.{round}").into_bytes()
}

/// What a read finds, nothing where it is bytes that are missing here; and when that was last changed.
pub fn look(
    view: &View,
    files: &Files,
    subject: Subject,
    call: Call,
) -> (Option<Answer>, LogIndex) {
    if let (Subject::Slots { file }, Call::Peek) = (subject, call) {
        return peek(view, files, file);
    }
    let (answer, changed) = look_in(view, subject, call);
    (Some(answer), changed)
}

fn peek(view: &View, files: &Files, file: Ino) -> (Option<Answer>, LogIndex) {
    let inode = query::inode(view, file).expect("nothing rots here").expect("it exists");
    let key = (file, Generation(inode.generation));
    let range = ByteRange::at(0, SLOT * SLOTS as u64);
    let len = usize::try_from(inode.size.min(range.len())).expect("small");
    let bytes = files.read(key, ByteRange::at(0, len as u64));
    let answer = bytes.map(|mut bytes| {
        bytes.resize(usize::try_from(range.len()).expect("small"), 0);
        let mut slots = [0; SLOTS];
        for (slot, bytes) in
            slots.iter_mut().zip(bytes.chunks(usize::try_from(SLOT).expect("small")))
        {
            *slot = u64::from_be_bytes(*bytes.first_chunk().expect("a slot has more"));
            if bytes != slot_bytes(*slot) {
                *slot = TORN;
            }
        }
        Answer::Filled(slots)
    });
    (answer, LogIndex(inode.mod_index))
}

fn look_in(view: &View, subject: Subject, call: Call) -> (Answer, LogIndex) {
    let inode = |ino| query::inode(view, ino).expect("nothing rots here").expect("it exists");
    match (subject, call) {
        (Subject::Register { file, round }, Call::Get) => {
            let value = query::xattr(view, file, &spell_xattr(round)).expect("nothing rots here");
            let value = value.map_or(0, |value| {
                u64::from_be_bytes(value.try_into().expect("registers have eight bytes"))
            });
            (Answer::Value(value), LogIndex(inode(file).mod_index))
        }
        (Subject::Names { directory, round }, Call::Lookup(name)) => {
            let dentry = query::lookup(view, directory, &spell(round, name));
            match dentry.expect("nothing rots here") {
                Some(dentry) => {
                    let is_directory = dentry.kind() == proto::Kind::Directory;
                    let mod_index = LogIndex(inode(Ino(dentry.ino)).mod_index);
                    (Answer::Entry(Some((dentry.ino, is_directory))), mod_index)
                }
                None => (Answer::Entry(None), LogIndex(inode(directory).mod_index)),
            }
        }
        (Subject::Log { file }, Call::Size) => {
            let inode = inode(file);
            (Answer::Offset(inode.size), LogIndex(inode.mod_index))
        }
        _ => unreachable!("no such read: {call:?} of {subject:?}"),
    }
}

/// The last entry, of those that were received when a read came, that may change what it finds.
pub fn will_change(
    unapplied: &Unapplied,
    subject: Subject,
    call: Call,
    answer: Option<Answer>,
    since: Option<LogIndex>,
) -> LogIndex {
    let since = since.expect("the read has come");
    match (subject, call) {
        (Subject::Names { directory, round }, Call::Lookup(name)) => {
            let name = unapplied.of_name(directory, &spell(round, name), since);
            match answer {
                Some(Answer::Entry(Some((ino, _)))) => {
                    name.max(unapplied.of_inode(Ino(ino), since, Some(MOUNT)))
                }
                _ => name,
            }
        }
        (Subject::Register { file, .. } | Subject::Log { file } | Subject::Slots { file }, _) => {
            // A mount commits what was appended before it says how long the file is.
            unapplied.of_inode(file, since, None)
        }
        (Subject::Names { .. }, _) => unreachable!("no such read: {call:?} of {subject:?}"),
    }
}

/// Gives a new inode its number, from what the session was granted.
pub fn with_inode(call: Call, inodes: &mut proto::InoRange) -> Call {
    match call {
        Call::Make { name, directory, .. } => {
            let ino = inodes.first;
            assert!(ino < inodes.end, "a session is granted more than a run needs");
            inodes.first += 1;
            Call::Make { name, ino, directory }
        }
        other => other,
    }
}

/// A hole, as bytes that are given up as lost: at the version that the node has.
pub fn give_up(view: &View, subject: Subject, call: Call) -> Option<Op> {
    let (Subject::Slots { file }, Call::Punch(slot)) = (subject, call) else { return None };
    let inode = query::inode(view, file).expect("nothing rots here")?;
    let start = slot as u64 * SLOT;
    let members = query::members(view).expect("as above");
    Some(Op::AcceptLost(proto::AcceptLost {
        ino: file.0,
        generation: inode.generation,
        data_version: inode.data_version,
        ranges: vec![proto::Extent { start, end: start + SLOT }],
        asked: members.iter().map(|member| member.node).collect(),
        away: Vec::new(),
    }))
}

/// The command for a mutation.
pub fn op(subject: Subject, call: Call) -> Op {
    match (subject, call) {
        (Subject::Register { file, round }, Call::Set(value)) => Op::SetXattr(proto::SetXattr {
            ino: file.0,
            name: spell_xattr(round).into(),
            value: value.to_be_bytes().to_vec().into(),
            flags: 0,
        }),
        (
            Subject::Names { directory, round },
            Call::Make { name, ino, directory: is_directory },
        ) => {
            let kind = if is_directory { proto::Kind::Directory } else { proto::Kind::Regular };
            Op::Make(proto::Make {
                parent: directory.0,
                name: spell(round, name).into(),
                ino,
                kind: kind.into(),
                mode: 0o755,
                ..proto::Make::default()
            })
        }
        (Subject::Names { directory, round }, Call::Remove { name, directory: is_directory }) => {
            let (parent, name) = (directory.0, spell(round, name).into());
            if is_directory {
                Op::Rmdir(proto::Rmdir { parent, name })
            } else {
                Op::Unlink(proto::Unlink { parent, name })
            }
        }
        (Subject::Names { directory, round }, Call::Rename { from, to, mode }) => {
            Op::Rename(proto::Rename {
                parent: directory.0,
                name: spell(round, from).into(),
                new_parent: directory.0,
                new_name: spell(round, to).into(),
                flags: mode as u32,
                ..proto::Rename::default()
            })
        }
        (Subject::Slots { file }, Call::Fill { slots, value, .. }) => {
            let piece = |slot| proto::Piece {
                offset: slot as u64 * SLOT,
                data: slot_bytes(value).into(),
                ..Default::default()
            };
            let pieces = slots.iter().map(piece).collect();
            Op::Write(proto::Write { ino: file.0, pieces, ..Default::default() })
        }
        (Subject::Slots { file }, Call::Punch(slot)) => Op::Allocate(proto::Allocate {
            ino: file.0,
            offset: slot as u64 * SLOT,
            length: SLOT,
            mode: PUNCH_HOLE_KEEP_SIZE,
            ..Default::default()
        }),
        (Subject::Slots { file }, Call::Cut) => {
            Op::SetAttr(proto::SetAttr { ino: file.0, size: Some(0), ..Default::default() })
        }
        (Subject::Log { file }, Call::Append { tag, .. }) => Op::Write(proto::Write {
            ino: file.0,
            pieces: vec![proto::Piece {
                data: tag.to_be_bytes().to_vec().into(),
                ..Default::default()
            }],
            append: true,
            ..Default::default()
        }),
        _ => unreachable!("no such mutation: {call:?} of {subject:?}"),
    }
}
