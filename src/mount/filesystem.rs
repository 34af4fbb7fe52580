//! fuser's trait: decodes each request, runs the operation, sends its reply. Decides nothing.
//!
//! Not here, on purpose: ACCESS (the kernel checks permissions itself, `default_permissions`), locks
//! (the kernel does them locally while we do not ask for them), LSEEK (answered ENOSYS, the kernel
//! then finds data and holes by the size), FALLOCATE (EOPNOTSUPP, so that `posix_fallocate(3)` writes),
//! READDIRPLUS (its late replies plant names that nothing catches).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::attributes::{AttributeChange, NAME_MAX};
use super::buffer::NewBytes;
use super::core::{Caller, Core};
use super::dispatch::{poll_first, run};
use super::errors::OpError;
use super::names::{Entry, NewInode, Place, kind_of_mode};
use super::times;
use crate::fs::proto::Kind;
use crate::types::Ino;

/// Inode numbers are never used again, so the kernel's generation says nothing.
const GENERATION: Generation = Generation(0);
/// The most bytes of one request: an appending write(2) up to this is atomic.
const MAX_WRITE: u32 = 1 << 20;
/// Reads that wait for a peer must not use up the slots of read-ahead and RELEASE.
const MAX_BACKGROUND: u16 = 512;

/// What is asked of the kernel, each where it has it. `CACHE_SYMLINKS` is safe because the target of
/// an inode never changes and inode numbers are never used again.
const WANTED: [InitFlags; 6] = [
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// The mount as fuser drives it.
#[derive(Debug)]
pub(super) struct QuorumFs(pub(super) Arc<Core>);

impl QuorumFs {
    fn ino(&self, node: INodeNo) -> Ino {
        self.0.root.ino(node)
    }

    fn place(&self, parent: INodeNo, name: &OsStr) -> Result<Place, OpError> {
        Place::new(self.ino(parent), name.as_bytes())
    }

    /// MKNOD, MKDIR, SYMLINK.
    fn make(
        &self,
        req: &Request,
        place: Result<Place, OpError>,
        new: Result<NewInode, OpError>,
        reply: ReplyEntry,
    ) {
        let (core, caller) = (self.0.clone(), caller(req));
        let directories = parents(&[&place]);
        let work = async move { core.make(caller, place?, new?).await };
        run(&self.0, &directories, reply, work, send_entry);
    }

    /// GETXATTR, LISTXATTR.
    fn xattr(
        &self,
        size: u32,
        reply: ReplyXattr,
        work: impl Future<Output = Result<Vec<u8>, OpError>> + Send + 'static,
    ) {
        run(&self.0, &[], reply, work, move |_, reply, value| {
            let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
            match size {
                0 => reply.size(len),
                size if size < len => reply.error(Errno::ERANGE),
                _ => reply.data(&value),
            }
        });
    }
}

impl Filesystem for QuorumFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED {
            if config.add_capabilities(flag).is_err() {
                tracing::info!(?flag, "the kernel lacks a FUSE capability");
            }
        }
        // Each answers with the nearest value that it can do; both are within every kernel's range.
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (core, place) = (self.0.clone(), self.place(parent, name));
        let directories = parents(&[&place]);
        run(&self.0, &directories, reply, async move { core.lookup(place?).await }, send_entry);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        // Without an inode there are no pages; the next OPEN then starts afresh.
        self.0.cache.forget_pages(self.ino(ino));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (core, ino) = (self.0.clone(), self.ino(ino));
        let work = async move { core.getattr(ino).await };
        run(&self.0, &[], reply, work, move |core, reply, (attr, grant)| {
            let ttl = core.ttl(grant);
            reply.attr(&ttl, &attr);
            core.gave_attributes(ino, ttl);
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let time = |time: TimeOrNow| match time {
            TimeOrNow::SpecificTime(time) => times::from_fuser(time),
            TimeOrNow::Now => times::now(),
        };
        let (atime, mtime) = (atime.map(time), mtime.map(time));
        let change = AttributeChange { mode, uid, gid, size, atime, mtime };
        let (core, caller, ino) = (self.0.clone(), caller(req), self.ino(ino));
        let work = async move { core.setattr(caller, ino, change).await };
        run(&self.0, &[ino], reply, work, |_, reply, attr: FileAttr| {
            reply.attr(&Duration::ZERO, &attr);
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let (core, ino) = (self.0.clone(), self.ino(ino));
        let work = async move { core.readlink(ino).await };
        run(&self.0, &[], reply, work, |_, reply, target| reply.data(&target));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let new = kind_of_mode(mode).map(|kind| NewInode {
            kind,
            mode: mode & !umask,
            rdev,
            target: Bytes::new(),
        });
        self.make(req, self.place(parent, name), new, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let (kind, mode) = (Kind::Directory, mode & !umask);
        let new = NewInode { kind, mode, rdev: 0, target: Bytes::new() };
        self.make(req, self.place(parent, name), Ok(new), reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = Bytes::copy_from_slice(target.as_os_str().as_bytes());
        let new = NewInode { kind: Kind::Symlink, mode: 0o777, rdev: 0, target };
        self.make(req, self.place(parent, name), Ok(new), reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (core, ino, place) = (self.0.clone(), self.ino(ino), self.place(parent, name));
        let directories = parents(&[&place]);
        let work = async move { core.link(ino, place?).await };
        run(&self.0, &directories, reply, work, send_entry);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (core, place) = (self.0.clone(), self.place(parent, name));
        let directories = parents(&[&place]);
        run(&self.0, &directories, reply, async move { core.unlink(place?).await }, send_ok);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (core, place) = (self.0.clone(), self.place(parent, name));
        let directories = parents(&[&place]);
        run(&self.0, &directories, reply, async move { core.rmdir(place?).await }, send_ok);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (self.place(parent, name), self.place(new_parent, new_name));
        let (core, directories) = (self.0.clone(), parents(&[&from, &to]));
        let work = async move { core.rename(from?, to?, flags.bits()).await };
        run(&self.0, &directories, reply, work, send_ok);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (core, caller, place) = (self.0.clone(), caller(req), self.place(parent, name));
        let directories = parents(&[&place]);
        let work = async move { core.create(caller, place?, mode & !umask, flags).await };
        run(&self.0, &directories, reply, work, |_, reply, (attr, opened)| {
            // fuser has one TTL for name and attributes here, and attributes must have none.
            let handle = FileHandle(opened.handle);
            reply.created(&Duration::ZERO, &attr, GENERATION, handle, opened.flags);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (core, caller, ino) = (self.0.clone(), caller(req), self.ino(ino));
        let work = async move { core.open_file(caller, ino, flags.0).await };
        run(&self.0, &[], reply, work, |_, reply, opened| {
            reply.opened(FileHandle(opened.handle), opened.flags);
        });
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let core = self.0.clone();
        let work = async move { core.read(fh.0, offset, size).await };
        run(&self.0, &[], reply, work, |_, reply, bytes| reply.data(&bytes));
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Mapped pages have an offset whatever the flags of the file say.
        let is_mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let appends = flags.0 & libc::O_APPEND != 0 && !is_mapped;
        let new = NewBytes {
            offset: (!appends).then_some(offset),
            data: Bytes::copy_from_slice(data),
            kill_suid_sgid: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            time: times::now(),
        };
        let core = self.0.clone();
        let work = async move { core.write(fh.0, new, flags.0).await };
        run(&self.0, &[], reply, work, |_, reply, written| reply.written(written));
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let core = self.0.clone();
        run(&self.0, &[], reply, async move { core.flush(fh.0).await }, send_ok);
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let core = self.0.clone();
        run(&self.0, &[], reply, async move { core.fsync(fh.0).await }, send_ok);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let core = self.0.clone();
        run(&self.0, &[], reply, async move { core.release(fh.0).await }, send_ok);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (core, ino) = (self.0.clone(), self.ino(ino));
        let work = async move { core.opendir(ino, flags.0).await };
        run(&self.0, &[], reply, work, |_, reply, ()| {
            reply.opened(FileHandle(0), fuser::FopenFlags::empty());
        });
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let (core, ino) = (self.0.clone(), self.ino(ino));
        core.cache.enter(&[ino]);
        poll_first(&self.0.runtime, async move {
            match core.readdir(ino, offset, reply).await {
                Ok(reply) => reply.ok(),
                Err((reply, error)) => reply.error((&error).into()),
            }
            core.cache.leave(&[ino]);
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    /// Names are durable on a quorum before their operations return.
    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.0.statfs() {
            Ok(space) => reply.statfs(
                space.f_blocks,
                space.f_bfree,
                space.f_bavail,
                space.f_files,
                space.f_ffree,
                u32::try_from(space.f_bsize).unwrap_or(u32::MAX),
                NAME_MAX,
                u32::try_from(space.f_frsize).unwrap_or(u32::MAX),
            ),
            Err(error) => reply.error((&error).into()),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (core, ino) = (self.0.clone(), self.ino(ino));
        let (name, value) = (bytes_of(name), Bytes::copy_from_slice(value));
        let flags = u32::try_from(flags).unwrap_or(0);
        let work = async move { core.setxattr(ino, name, value, flags).await };
        run(&self.0, &[ino], reply, work, send_ok);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (core, ino, name) = (self.0.clone(), self.ino(ino), bytes_of(name));
        self.xattr(size, reply, async move { core.getxattr(ino, name).await });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (core, caller, ino) = (self.0.clone(), caller(req), self.ino(ino));
        self.xattr(size, reply, async move { core.listxattr(caller, ino).await });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (core, ino, name) = (self.0.clone(), self.ino(ino), bytes_of(name));
        let work = async move { core.removexattr(ino, name).await };
        run(&self.0, &[ino], reply, work, send_ok);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid() }
}

/// The directories that the kernel may hold the locks of.
fn parents(places: &[&Result<Place, OpError>]) -> Vec<Ino> {
    places.iter().filter_map(|place| place.as_ref().ok().map(|place| place.parent)).collect()
}

fn bytes_of(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

/// Entry replies carry no attribute TTL: `inval_inode` finds nothing to drop while one is under way.
fn send_entry(core: &Core, reply: ReplyEntry, entry: Entry) {
    let ttl = core.ttl(entry.grant);
    reply.entry_with_ttls(&Duration::ZERO, &ttl, &entry.attr, GENERATION);
    core.gave_name(ttl);
}

fn send_ok(_core: &Core, reply: ReplyEmpty, (): ()) {
    reply.ok();
}
