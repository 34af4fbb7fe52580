//! What requests and replies of several kinds have in common, between fuser's types and ours.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use bytes::Bytes;
use fuser::{
    FileHandle, FileType, Generation, LockOwner, ReplyCreate, ReplyEmpty, ReplyEntry, ReplyOpen,
    Request,
};

use super::core::{Caller, Core};
use super::kernel_names::Removing;
use super::locks::Asker;
use super::names::Entry;
use super::open_files::{Created, Opened, Opening};
use super::root::Root;
use crate::fs::WHOLE_FILE;
use crate::fs::proto::Lock;

/// Inode numbers are never used again, so the kernel's generation says nothing.
pub(super) const GENERATION: Generation = Generation(0);

pub(super) fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

pub(super) fn asker(req: &Request, handle: FileHandle, owner: LockOwner) -> Asker {
    Asker { handle: handle.0, owner: owner.0, thread: req.pid() }
}

/// The kernel's last byte of a file that has no end is the largest offset.
pub(super) fn wanted_lock(owner: LockOwner, (start, end): (u64, u64), typ: i32, pid: u32) -> Lock {
    let end = if end >= i64::MAX.cast_unsigned() { WHOLE_FILE } else { end };
    let exclusive = typ == libc::F_WRLCK;
    Lock { session: 0, owner: owner.0, start, end, exclusive, pid }
}

pub(super) fn bytes_of(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

/// Entry replies carry no attribute TTL: `inval_inode` finds nothing to drop while one is under way.
pub(super) fn send_entry(core: &Core, reply: ReplyEntry, entry: Entry) {
    let Entry { attr, place, grant, is_alias } = entry;
    if attr.kind == FileType::Directory {
        core.give_directory(core.root.ino(attr.ino), &place);
    }
    // An alias is for as long as somebody needs it.
    let ttl = if is_alias { Duration::ZERO } else { core.name_ttl(&attr, &grant) };
    reply.entry_with_ttls(&Duration::ZERO, &ttl, &attr, GENERATION);
    core.gave_name(ttl);
}

/// Whether the kernel reads the file by itself is decided here, where it is told.
pub(super) fn send_opened(core: &Core, reply: ReplyOpen, opening: Opening) {
    match core.open_now(opening, |file| reply.open_backing(file)) {
        Ok(Opened { handle, flags, backing }) => match backing {
            Some(backing) => reply.opened_passthrough(FileHandle(handle), flags, backing.id()),
            None => reply.opened(FileHandle(handle), flags),
        },
        Err(error) => reply.error((&error).into()),
    }
}

/// fuser has one TTL for name and attributes here, and attributes must have none.
pub(super) fn send_created(core: &Core, reply: ReplyCreate, created: Created) {
    let (attr, opened) = match created {
        Created::New((attr, opened)) => (attr, Ok(opened)),
        Created::Found(entry, opening) => {
            let attr = opening.truncated(entry.attr);
            (attr, core.open_now(*opening, |file| reply.open_backing(file)))
        }
    };
    match opened {
        Ok(Opened { handle, flags, backing }) => {
            let (ttl, handle) = (Duration::ZERO, FileHandle(handle));
            match backing {
                Some(backing) => {
                    reply.created_passthrough(&ttl, &attr, GENERATION, handle, flags, backing.id());
                }
                None => reply.created(&ttl, &attr, GENERATION, handle, flags),
            }
        }
        Err(error) => {
            if Root::is_alias(attr.ino) {
                core.forgotten(core.root.ino(attr.ino), true, 1);
            }
            reply.error((&error).into());
        }
    }
}

/// Until then the kernel may not be given the name.
pub(super) fn send_removed(_core: &Core, reply: ReplyEmpty, removing: Removing) {
    reply.ok();
    drop(removing);
}

pub(super) fn send_ok(_core: &Core, reply: ReplyEmpty, (): ()) {
    reply.ok();
}
