//! CREATE, OPEN and RELEASE.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use fuser::{BackingId, FileAttr, FopenFlags};

use super::attributes::{Seen, truncate};
use super::buffer::Buffer;
use super::core::{Caller, Core};
use super::errors::OpError;
use super::names::{NewInode, Place, make};
use super::open_table::OpenMode;
use super::passthrough::{Access, Backing, LookAgain, Offer, Way};
use crate::fs::proto::{Inode, Kind};
use crate::fs::query;
use crate::node::NodeError;
use crate::types::{ByteRange, Generation, Ino, LogIndex};

/// A file of fewer bytes is read faster with the kernel's own pages, which stay from one open to the next.
const WORTH_PASSTHROUGH: u64 = 1 << 20;
/// How much of a file is read from the disk when it is opened: what the kernel would ask for first.
const FIRST_READ: u64 = 128 << 10;
/// The kernel opens a program to run it (`FMODE_EXEC`).
const EXEC: i32 = 0x20;

/// An OPEN that may be granted.
#[derive(Debug)]
pub(super) struct Opening {
    buffer: Arc<Buffer>,
    seen: Seen,
    flags: i32,
    by_alias: bool,
    how: How,
}

/// How a file is opened.
#[derive(Debug)]
enum How {
    /// That is decided.
    Way(Way),
    /// It is read, by the kernel itself where that is offered.
    Reads(Offer),
}

/// What the kernel is told of an open file.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) handle: u64,
    pub(super) flags: FopenFlags,
    /// What it is to read by itself.
    pub(super) backing: Option<Arc<Backing>>,
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
        loop {
            match self.create_once(caller, place.clone(), (mode, umask), flags).await {
                // Its number was the last session's.
                Err(error) if error.is_not_done() => {}
                created => return created,
            }
        }
    }

    async fn create_once(
        &self,
        caller: Caller,
        place: Place,
        (mode, umask): (u32, u32),
        flags: i32,
    ) -> Result<(FileAttr, Opened), OpError> {
        let ino = self.node.new_ino().await?;
        let parent = place.parent;
        let _changing = self.directories.change(&[&place]);
        let new = NewInode { kind: Kind::Regular, mode, umask, rdev: 0, target: Bytes::new() };
        let buffer = self.open.hold(ino);
        // Nobody has it open, nor can until it is made.
        let way = match self.enter(ino, false, &Access::Daemon) {
            Ok((way, _)) => way,
            Err(error) => {
                self.unhold(ino);
                return Err(error);
            }
        };
        let outcome = self.mutate(&[parent], make(caller, place, ino, new)).await;
        let seen = match outcome.and_then(|outcome| Seen::of_outcome(ino, outcome)) {
            Ok(seen) => seen,
            Err(error) => {
                self.passthrough.leave(ino, way, Instant::now());
                self.unhold(ino);
                let exists = error.errno() == libc::EEXIST && flags & libc::O_EXCL == 0;
                return Err(if exists { OpError::Errno(libc::ESTALE) } else { error });
            }
        };
        let attr = seen.file_attr(0);
        Ok((attr, self.opened((buffer, seen, flags), way, None)))
    }

    /// OPEN, with `O_TRUNC` where the program asked for it.
    pub(super) async fn open_file(
        &self,
        caller: Caller,
        ino: Ino,
        by_alias: bool,
        flags: i32,
    ) -> Result<Opening, OpError> {
        if writes(flags) {
            self.writable()?;
        }
        let buffer = self.open.hold(ino);
        let mut way = None;
        let seen = async {
            // Before it changes anything: it may have to come again.
            if writes(flags) || flags & (libc::O_TRUNC | EXEC) != 0 {
                way = Some(self.enter(ino, by_alias, &Access::Daemon)?.0);
            }
            let seen = self.seen_to_open(caller, ino, flags).await?;
            let how = match way {
                Some(way) => How::Way(way),
                None if by_alias => How::Reads(Offer::Nothing),
                None => How::Reads(self.offer(&seen).await?),
            };
            Ok((seen, how))
        };
        let (seen, how) = match seen.await {
            Ok(seen) => seen,
            Err(error) => {
                if let Some(way) = way {
                    self.passthrough.leave(ino, way, Instant::now());
                }
                self.unhold(ino);
                return Err(error);
            }
        };
        let reads = flags & libc::O_ACCMODE != libc::O_WRONLY;
        if reads {
            self.touch(ino, &seen.inode, flags);
        }
        Ok(Opening { buffer, seen, flags, by_alias, how })
    }

    /// The kernel was not told that it may open a file.
    pub(super) fn unsent_opening(self: &Arc<Self>, opening: &Opening) {
        let ino = opening.buffer.ino;
        if let How::Way(way) = opening.how {
            self.passthrough.leave(ino, way, Instant::now());
        }
        self.unhold(ino);
    }

    /// The kernel was not told of a file that was created for it: it will not close it.
    pub(super) fn unsent_created(self: &Arc<Self>, (_, opened): &(FileAttr, Opened)) {
        let (core, handle) = (self.clone(), opened.handle);
        self.runtime.spawn(async move {
            if let Err(error) = core.release(handle).await {
                tracing::warn!(%error, "a file that nobody opened stays open");
            }
        });
    }

    /// What whoever opens a file may read by itself.
    async fn offer(&self, seen: &Seen) -> Result<Offer, OpError> {
        let (inode, key) = (&seen.inode, (seen.ino, Generation(seen.inode.generation)));
        let is_worth_it = inode.size >= WORTH_PASSTHROUGH && seen.buffered.is_none();
        if !is_worth_it || !self.passthrough.works() {
            return Ok(Offer::Nothing);
        }
        Offer::find(&self.passthrough, &self.node, key, inode.size).await
    }

    /// Grants it, when the reply goes out: waits for nothing. `register` makes a backing file known to the kernel.
    pub(super) fn open_now(
        &self,
        opening: Opening,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Result<Opened, OpError> {
        let Opening { buffer, seen, flags, by_alias, how } = opening;
        let entered = match how {
            How::Way(way) => Ok((way, None)),
            How::Reads(offer) => {
                let access = offer.access(&self.passthrough, register);
                self.enter(seen.ino, by_alias, &access)
            }
        };
        match entered {
            Ok((way, backing)) => Ok(self.opened((buffer, seen, flags), way, backing)),
            Err(error) => {
                self.unhold(seen.ino);
                Err(error)
            }
        }
    }

    /// Counts somebody who opens a file. ESTALE where the kernel is to come by another number of it.
    fn enter(
        &self,
        ino: Ino,
        by_alias: bool,
        access: &Access<Backing>,
    ) -> Result<(Way, Option<Arc<Backing>>), OpError> {
        let now = Instant::now();
        self.passthrough.enter(ino, by_alias, now, access).map_err(|LookAgain { is_new }| {
            if is_new {
                // What is written by the alias changes them, and the kernel would not know.
                self.attributes_changed(ino, true, now);
            }
            OpError::Errno(libc::ESTALE)
        })
    }

    fn opened(
        &self,
        (buffer, seen, flags): (Arc<Buffer>, Seen, i32),
        way: Way,
        backing: Option<Arc<Backing>>,
    ) -> Opened {
        let fopen = self.fopen_flags(&buffer, &seen.inode, flags, way);
        let direct = fopen.contains(FopenFlags::FOPEN_DIRECT_IO);
        if way == Way::Plain && !writes(flags) && !fopen.contains(FopenFlags::FOPEN_KEEP_CACHE) {
            self.begin_to_read(&seen);
        }
        let mode = OpenMode { direct, writes: writes(flags), way };
        Opened { handle: self.open.open(buffer, mode), flags: fopen, backing }
    }

    /// Whoever opens a file of which the kernel has no page will read it: the disk is asked while the program is
    /// still asking for the size.
    fn begin_to_read(&self, seen: &Seen) {
        let (ino, generation) = (seen.ino, Generation(seen.inode.generation));
        let len = seen.inode.size.min(FIRST_READ);
        if len > 0 && !self.node.files().begin_to_read(ino, generation, len) {
            let node = self.node.clone();
            self.runtime.spawn_blocking(move || {
                node.files().open_and_begin_to_read(ino, generation, len);
            });
        }
    }

    async fn seen_to_open(&self, caller: Caller, ino: Ino, flags: i32) -> Result<Seen, OpError> {
        if flags & libc::O_TRUNC == 0 {
            return self.seen(ino).await;
        }
        if let Some(buffer) = self.open.buffer(ino) {
            self.commit(&buffer).await;
        }
        let outcome = self.mutate(&[ino], truncate(caller, ino)).await;
        match outcome.and_then(|outcome| Seen::of_outcome(ino, outcome)) {
            // The inode went between the kernel's LOOKUP and this: look again.
            Err(OpError::Errno(libc::ENOENT)) => Err(OpError::Errno(libc::ESTALE)),
            result => result,
        }
    }

    /// How the kernel may treat the open file.
    fn fopen_flags(&self, buffer: &Buffer, inode: &Inode, flags: i32, way: Way) -> FopenFlags {
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
        let (version, is_alias) = (LogIndex(inode.data_version), way == Way::Alias);
        // In passthrough it uses none of its own.
        if way != Way::Passthrough && self.cache.keep_pages(buffer.ino, is_alias, version) {
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
        if let Some(errno) = file.untold_failure() {
            tracing::warn!(ino = %file.buffer.ino, errno, "lost bytes of a file that is closed");
        }
        self.passthrough.leave(file.buffer.ino, file.mode.way, Instant::now());
        self.released(file.buffer.ino, self.open.release(handle));
        Ok(())
    }

    /// FORGET: of the file's alias where `by_alias`; the kernel was told of it so often.
    pub(super) fn forgotten(&self, ino: Ino, by_alias: bool, lookups: u64) {
        if by_alias {
            self.passthrough.forget_alias(ino, lookups, Instant::now());
            self.cache.forget_pages(ino);
            return;
        }
        self.directories.forget(ino, lookups);
        if self.cache.forget_inode(ino) {
            // Without an inode there are no pages; the next OPEN then starts afresh.
            self.kernel().drop_attributes(ino);
        }
    }

    /// Whoever reads the backing file itself is to see what was written before.
    pub(super) async fn show_to_passthrough(&self, ino: Ino) -> Result<(), OpError> {
        if !self.passthrough.reads(ino) {
            return Ok(());
        }
        let inode = self.query(|state| Ok(query::inode(state, ino)?))?;
        let Some(key) = inode.map(|inode| (ino, Generation(inode.generation))) else {
            return Ok(());
        };
        self.node.until_here(key, ByteRange::from(0)).await?;
        let node = self.node.clone();
        let merging = tokio::task::spawn_blocking(move || node.files().merge_all(key));
        merging.await.map_err(|_| NodeError::Stopping)??;
        Ok(())
    }
}

fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}
