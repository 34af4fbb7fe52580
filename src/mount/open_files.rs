//! CREATE, OPEN and RELEASE.

use bytes::Bytes;
use fuser::{FileAttr, FopenFlags};

use super::attributes::{Seen, truncate};
use super::buffer::Buffer;
use super::core::{Caller, Core};
use super::errors::OpError;
use super::names::{NewInode, Place, make};
use super::open_table::OpenMode;
use crate::fs::proto::{Inode, Kind};
use crate::types::{Ino, LogIndex};

/// What the kernel is told of an open file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    pub(super) handle: u64,
    pub(super) flags: FopenFlags,
}

impl Core {
    /// CREATE. The inode is held before it is proposed, so that an unlink elsewhere cannot free it.
    ///
    /// Where the name exists by now, the kernel is sent back with ESTALE: it looks the name up once
    /// more and then opens what is there, with the permission checks that a CREATE skips.
    pub(super) async fn create(
        &self,
        caller: Caller,
        place: Place,
        (mode, umask): (u32, u32),
        flags: i32,
    ) -> Result<(FileAttr, Opened), OpError> {
        let ino = self.node.new_ino().await?;
        let parent = place.parent;
        let new = NewInode { kind: Kind::Regular, mode, umask, rdev: 0, target: Bytes::new() };
        let buffer = self.open.hold(ino);
        let outcome = self.mutate(&[parent], make(caller, place, ino, new)).await;
        let seen = match outcome.and_then(|outcome| Seen::of_outcome(ino, outcome)) {
            Ok(seen) => seen,
            Err(error) => {
                self.unhold(ino);
                let exists = error.errno() == libc::EEXIST && flags & libc::O_EXCL == 0;
                return Err(if exists { OpError::Errno(libc::ESTALE) } else { error });
            }
        };
        let fopen = self.fopen_flags(&buffer, &seen.inode, flags);
        let handle = self.open.open(buffer, open_mode(flags, fopen));
        Ok((seen.file_attr(0), Opened { handle, flags: fopen }))
    }

    /// OPEN, with `O_TRUNC` where the program asked for it.
    pub(super) async fn open_file(
        &self,
        caller: Caller,
        ino: Ino,
        flags: i32,
    ) -> Result<Opened, OpError> {
        if writes(flags) {
            self.writable()?;
        }
        let buffer = self.open.hold(ino);
        let inode = match self.inode_to_open(caller, ino, flags).await {
            Ok(inode) => inode,
            Err(error) => {
                self.unhold(ino);
                return Err(error);
            }
        };
        let fopen = self.fopen_flags(&buffer, &inode, flags);
        let reads = flags & libc::O_ACCMODE != libc::O_WRONLY;
        if reads {
            self.touch(ino, &inode, flags);
        }
        let handle = self.open.open(buffer, open_mode(flags, fopen));
        Ok(Opened { handle, flags: fopen })
    }

    async fn inode_to_open(&self, caller: Caller, ino: Ino, flags: i32) -> Result<Inode, OpError> {
        if flags & libc::O_TRUNC == 0 {
            return Ok(self.seen(ino).await?.inode);
        }
        if let Some(buffer) = self.open.buffer(ino) {
            self.commit(&buffer).await;
        }
        let outcome = self.mutate(&[ino], truncate(caller, ino)).await;
        match outcome.and_then(|outcome| Seen::of_outcome(ino, outcome)) {
            // The inode went between the kernel's LOOKUP and this: look again.
            Err(OpError::Errno(libc::ENOENT)) => Err(OpError::Errno(libc::ESTALE)),
            result => Ok(result?.inode),
        }
    }

    /// How the kernel may treat the open file.
    fn fopen_flags(&self, buffer: &Buffer, inode: &Inode, flags: i32) -> FopenFlags {
        let mut fopen = FopenFlags::empty();
        let writes = writes(flags);
        if writes && flags & libc::O_APPEND != 0 {
            // The kernel does not know where the bytes will stand, so it cannot cache them.
            fopen |= FopenFlags::FOPEN_DIRECT_IO;
        }
        // Whoever closes a locked file has to be known, also where there is nothing to commit.
        if !writes && !buffer.lockers.any() {
            fopen |= FopenFlags::FOPEN_NOFLUSH;
        }
        if self.cache.keep_pages(buffer.ino, LogIndex(inode.data_version)) {
            fopen |= FopenFlags::FOPEN_KEEP_CACHE;
        }
        fopen
    }

    /// RELEASE: mapped pages arrive after the last FLUSH, so it commits, too.
    pub(super) async fn release(&self, handle: u64) -> Result<(), OpError> {
        let file = self.open_file_of(handle)?;
        self.open.stop_writing(&file);
        self.commit(&file.buffer).await;
        self.handle_gone(&file.buffer, handle).await;
        if let Some(errno) = file.unreported_failure() {
            tracing::warn!(ino = %file.buffer.ino, errno, "lost bytes of a file that is closed");
        }
        self.released(file.buffer.ino, self.open.release(handle));
        Ok(())
    }
}

fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

fn open_mode(flags: i32, fopen: FopenFlags) -> OpenMode {
    OpenMode { direct: fopen.contains(FopenFlags::FOPEN_DIRECT_IO), writes: writes(flags) }
}
