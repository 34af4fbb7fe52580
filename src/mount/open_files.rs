//! CREATE, OPEN and RELEASE.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use fuser::{BackingId, FileAttr, FileType, FopenFlags};

use super::attributes::{Seen, truncate};
use super::buffer::Buffer;
use super::core::{Caller, Core};
use super::errors::OpError;
use super::names::{Entry, NewInode, Place, make};
use super::open_table::OpenMode;
use super::passthrough::{Access, Backing, LookAgain, Offer, Way};
use crate::fs::proto::{Inode, Kind};
use crate::fs::query;
use crate::node::{Deadline, NodeError};
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

/// What became of a CREATE.
#[derive(Debug)]
pub(super) enum Created {
    New((FileAttr, Opened)),
    /// Somebody else has made it.
    Found(Entry, Box<Opening>),
}

/// What the kernel is told of an open file.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) handle: u64,
    pub(super) flags: FopenFlags,
    /// What it is to read by itself.
    pub(super) backing: Option<Arc<Backing>>,
}

impl Opening {
    /// What is now true of a file that was truncated as it was opened.
    pub(super) fn truncated(&self, attr: FileAttr) -> FileAttr {
        if self.flags & libc::O_TRUNC == 0 {
            return attr;
        }
        FileAttr { ino: attr.ino, ..self.seen.file_attr(0) }
    }
}

impl Core {
    /// CREATE. The inode is held before it is proposed, so that an unlink elsewhere cannot free it.
    ///
    /// Where the name exists by now, the file is opened that has it. The kernel does not check permissions then: it
    /// believes that it was made.
    pub(super) async fn create(
        self: &Arc<Self>,
        caller: Caller,
        place: Place,
        (mode, umask): (u32, u32),
        flags: i32,
    ) -> Result<Created, OpError> {
        let deadline = Deadline::current();
        loop {
            match self.create_once(caller, place.clone(), (mode, umask), flags).await {
                // Its number was the last session's.
                Err(error) if error.is_not_done() => {}
                Err(OpError::Errno(libc::EEXIST)) if flags & libc::O_EXCL == 0 => {
                    if let Some(found) = self.open_found(caller, place.clone(), flags).await? {
                        return Ok(found);
                    }
                }
                created => return created.map(Created::New),
            }
            self.node.check(&deadline)?;
        }
    }

    /// Opens the file that was to be made. `None` where it has gone by now, or has to be come to by another number. Who
    /// may open it is not decided here where that takes more than to look at the owner: ESTALE, with which the kernel
    /// looks the name up once more and opens what is there, if it may.
    async fn open_found(
        self: &Arc<Self>,
        caller: Caller,
        place: Place,
        flags: i32,
    ) -> Result<Option<Created>, OpError> {
        let entry = match self.lookup(caller.pid, place).await {
            Err(OpError::Errno(libc::ENOENT)) => return Ok(None),
            looked_up => looked_up?,
        };
        let opened = if owner_may_open(caller, &entry.attr, flags) {
            self.open_file(caller, self.root.ino(entry.attr.ino), entry.is_alias, flags).await
        } else {
            self.unsent_entry(&entry);
            return Err(OpError::Errno(libc::ESTALE));
        };
        match opened {
            Ok(opening) => Ok(Some(Created::Found(entry, Box::new(opening)))),
            Err(error) => {
                self.unsent_entry(&entry);
                let is_to_look_again = matches!(error, OpError::Errno(libc::ESTALE));
                if is_to_look_again { Ok(None) } else { Err(error) }
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
                return Err(error);
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
    pub(super) fn unsent_created(self: &Arc<Self>, created: &Created) {
        let opened = match created {
            Created::New((_, opened)) => opened,
            Created::Found(entry, opening) => {
                self.unsent_opening(opening);
                self.unsent_entry(entry);
                return;
            }
        };
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
        let past_pages = if writes {
            // The kernel does not know where appended bytes will stand, so it cannot cache them.
            flags & libc::O_APPEND != 0
        } else {
            way != Way::Passthrough && self.reads_past_pages(buffer.ino)
        };
        if past_pages {
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

    /// Whether others change the file, and it can be mapped all the same.
    fn reads_past_pages(&self, ino: Ino) -> bool {
        self.maps_direct.load(Ordering::Relaxed) && self.cache.is_shared(ino, Instant::now())
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

/// Whether the kernel would let the caller open a file: only where the caller owns it, so that neither groups, ACLs nor
/// capabilities count, nor in whose directory it is (`fs.protected_regular`).
fn owner_may_open(caller: Caller, attr: &FileAttr, flags: i32) -> bool {
    let reads = flags & libc::O_ACCMODE != libc::O_WRONLY;
    let changes = writes(flags) || flags & libc::O_TRUNC != 0;
    let wanted = if reads { 0o400 } else { 0 } | if changes { 0o200 } else { 0 };
    attr.kind == FileType::RegularFile && attr.uid == caller.uid && attr.perm & wanted == wanted
}

fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

#[cfg(test)]
mod tests {
    use super::{Caller, FileAttr, FileType, owner_may_open};
    use fuser::INodeNo;
    use std::time::UNIX_EPOCH;

    fn file(kind: FileType, perm: u16) -> FileAttr {
        FileAttr {
            ino: INodeNo(5),
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 1000,
            gid: 1000,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// The kernel checks nothing where a CREATE opens what is there: only what it would grant for sure is opened.
    #[test]
    fn only_owners_open_what_they_did_not_make() {
        let caller = |uid| Caller { uid, gid: 1000, pid: 0 };
        let may = |uid, perm, flags| {
            owner_may_open(caller(uid), &file(FileType::RegularFile, perm), flags)
        };
        let [reads, writes, both] = [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR];
        assert!(may(1000, 0o600, both) && may(1000, 0o400, reads) && may(1000, 0o200, writes));
        assert!(!may(1000, 0o466, both) && !may(1000, 0o066, reads) && !may(1000, 0o466, writes));
        assert!(!may(1000, 0o400, reads | libc::O_TRUNC), "that writes");
        assert!(!may(1001, 0o666, reads) && !may(0, 0o600, reads), "the kernel decides");
        let link = file(FileType::Symlink, 0o777);
        assert!(!owner_may_open(caller(1000), &link, reads), "the kernel follows it");
    }
}
