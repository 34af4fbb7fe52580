//! fuser's trait: decodes each request, runs the operation, sends its reply. Decides nothing.
//!
//! Not here, on purpose: ACCESS (the kernel checks permissions itself, `default_permissions`),
//! READDIRPLUS (its late replies plant names that nothing catches).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::attributes::{AttributeChange, NAME_MAX};
use super::buffer::NewBytes;
use super::core::Core;
use super::directories::Filling;
use super::dispatch::{Call, Refuse, run};
use super::errors::OpError;
use super::names::{NewInode, Place, kind_of_mode};
use super::requests::{
    asker, bytes_of, caller, send_created, send_entry, send_ok, send_opened, send_removed,
    wanted_lock,
};
use super::root::Root;
use super::space::{BLOCK, Room};
use super::times;
use crate::fs::proto::{Kind, LockMode};
use crate::types::{ByteRange, Ino};

/// The most bytes of one request: an appending write(2) up to this is atomic.
const MAX_WRITE: u32 = 1 << 20;
/// Reads that wait for a peer must not use up the slots of read-ahead and RELEASE.
const MAX_BACKGROUND: u16 = 512;

/// What is asked of the kernel, each where it has it. `CACHE_SYMLINKS` is safe because the target of
/// an inode never changes and inode numbers are never used again.
/// `DONT_MASK` because umask counts only where the parent has no default ACL.
const WANTED: [InitFlags; 11] = [
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_PASSTHROUGH,
];

/// The mount as fuser drives it.
#[derive(Debug)]
pub(super) struct QuorumFs(pub(super) Arc<Core>);

impl QuorumFs {
    fn ino(&self, node: INodeNo) -> Ino {
        self.0.root.ino(node)
    }

    fn run<R: Refuse, T: Send + 'static>(
        &self,
        req: &Request,
        reply: R,
        work: impl Future<Output = Result<T, OpError>> + Send + 'static,
        answer: impl FnOnce(&Core, R, T) + Send + 'static,
    ) {
        run(&self.0, Call::of(req), reply, work, answer);
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
        let work = async move { core.make(caller, place?, new?).await };
        self.run(req, reply, work, send_entry);
    }

    /// GETXATTR, LISTXATTR.
    fn xattr(
        &self,
        req: &Request,
        size: u32,
        reply: ReplyXattr,
        work: impl Future<Output = Result<Vec<u8>, OpError>> + Send + 'static,
    ) {
        self.run(req, reply, work, move |_, reply, value| {
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
            let is_there = config.add_capabilities(flag).is_ok();
            if !is_there {
                tracing::info!(?flag, "the kernel lacks a FUSE capability");
            }
            if flag == InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP {
                self.0.maps_direct.store(is_there, Ordering::Relaxed);
            }
        }
        // Each answers with the nearest value that it can do; both are within every kernel's range.
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(MAX_BACKGROUND);
        // Backing files on a disk's own file system, and others may be stacked on this one.
        let _ = config.set_max_stack_depth(1);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (core, thread, place) = (self.0.clone(), req.pid(), self.place(parent, name));
        let call = Call::of(req).unsent(Core::unsent_entry);
        run(&self.0, call, reply, async move { core.lookup(thread, place?).await }, send_entry);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.0.forgotten(self.ino(ino), Root::is_alias(ino), nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (core, ino) = (self.0.clone(), self.ino(ino));
        core.directories.found(ino, req.pid());
        let work = async move { core.getattr(ino).await };
        self.run(req, reply, work, move |core, reply, (attr, grant)| {
            let ttl = core.attribute_ttl(&grant);
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
        fh: Option<FileHandle>,
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
        let (core, caller) = (self.0.clone(), caller(req));
        let by = (self.ino(ino), Root::is_alias(ino));
        let handle = fh.map(|fh| fh.0);
        let work = async move { core.setattr(caller, handle, by, change).await };
        self.run(req, reply, work, |_, reply, attr: FileAttr| {
            reply.attr(&Duration::ZERO, &attr);
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let (core, ino) = (self.0.clone(), self.ino(ino));
        let work = async move { core.readlink(ino).await };
        self.run(req, reply, work, |_, reply, target| reply.data(&target));
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
            mode,
            umask,
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
        let new = NewInode { kind: Kind::Directory, mode, umask, rdev: 0, target: Bytes::new() };
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
        let new = NewInode { kind: Kind::Symlink, mode: 0o777, umask: 0, rdev: 0, target };
        self.make(req, self.place(parent, name), Ok(new), reply);
    }

    fn link(&self, req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (core, thread) = (self.0.clone(), req.pid());
        let (ino, place) = (self.ino(ino), self.place(parent, name));
        let work = async move { core.link(thread, ino, place?).await };
        self.run(req, reply, work, send_entry);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (core, thread, place) = (self.0.clone(), req.pid(), self.place(parent, name));
        self.run(req, reply, async move { core.unlink(thread, place?).await }, send_removed);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (core, thread, place) = (self.0.clone(), req.pid(), self.place(parent, name));
        self.run(req, reply, async move { core.rmdir(thread, place?).await }, send_removed);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (self.place(parent, name), self.place(new_parent, new_name));
        let (core, thread) = (self.0.clone(), req.pid());
        let work = async move { core.rename(thread, from?, to?, flags.bits()).await };
        self.run(req, reply, work, send_removed);
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
        let work = async move { core.create(caller, place?, (mode, umask), flags).await };
        let call = Call::of(req).unsent(Core::unsent_created);
        run(&self.0, call, reply, work, send_created);
    }

    fn open(&self, req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (core, caller, ino) = (self.0.clone(), caller(req), self.ino(node));
        let by_alias = Root::is_alias(node);
        let work = async move { core.open_file(caller, ino, by_alias, flags.0).await };
        run(&self.0, Call::of(req).unsent(Core::unsent_opening), reply, work, send_opened);
    }

    fn read(
        &self,
        req: &Request,
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
        self.run(req, reply, work, |_, reply, bytes| reply.data(&bytes));
    }

    fn write(
        &self,
        req: &Request,
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
            only_in: None,
        };
        let core = self.0.clone();
        let work = async move {
            if is_mapped {
                return core.write_pages(fh.0, new).await;
            }
            core.write(fh.0, new, flags.0).await
        };
        self.run(req, reply, work, |_, reply, written| reply.written(written));
    }

    fn flush(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let core = self.0.clone();
        let work = async move { core.flush(fh.0, lock_owner.0).await };
        self.run(req, reply, work, send_ok);
    }

    fn fsync(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let core = self.0.clone();
        self.run(req, reply, async move { core.fsync(fh.0).await }, send_ok);
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
        run(&self.0, Call::of_nobody(), reply, async move { core.release(fh.0).await }, send_ok);
    }

    fn opendir(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (core, ino) = (self.0.clone(), self.ino(ino));
        core.directories.found(ino, req.pid());
        let work = async move { core.opendir(ino, flags.0).await };
        self.run(req, reply, work, |_, reply, ()| {
            reply.opened(FileHandle(0), fuser::FopenFlags::empty());
        });
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let (core, ino) = (self.0.clone(), self.ino(ino));
        core.cache.names.listed(ino, Instant::now());
        let filling = Filling::new(reply);
        let filled = filling.clone();
        let work = async move { core.readdir(ino, offset, &filling).await };
        self.run(req, filled, work, |_, filled, ()| filled.finish());
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

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let core = self.0.clone();
        let work = async move { core.statfs() };
        self.run(req, reply, work, |_, reply, Room { blocks, free, inos, free_inos }| {
            reply.statfs(blocks, free, free, inos, free_inos, BLOCK, NAME_MAX, BLOCK);
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (core, caller, ino) = (self.0.clone(), caller(req), self.ino(ino));
        let (name, value) = (bytes_of(name), Bytes::copy_from_slice(value));
        let flags = u32::try_from(flags).unwrap_or(0);
        let work = async move { core.setxattr(caller, ino, name, value, flags).await };
        self.run(req, reply, work, send_ok);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (core, ino, name) = (self.0.clone(), self.ino(ino), bytes_of(name));
        self.xattr(req, size, reply, async move { core.getxattr(ino, name).await });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (core, caller, ino) = (self.0.clone(), caller(req), self.ino(ino));
        self.xattr(req, size, reply, async move { core.listxattr(caller, ino).await });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (core, ino, name) = (self.0.clone(), self.ino(ino), bytes_of(name));
        let work = async move { core.removexattr(ino, name).await };
        self.run(req, reply, work, send_ok);
    }

    fn getlk(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let (core, asker) = (self.0.clone(), asker(req, fh, lock_owner));
        let wanted = wanted_lock(lock_owner, (start, end), typ, pid);
        let work = async move { core.test_lock(asker, wanted).await };
        self.run(req, reply, work, move |_, reply, conflict| match conflict {
            Some(lock) => {
                let typ = if lock.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
                reply.locked(lock.start, lock.end.min(i64::MAX.cast_unsigned()), typ, lock.pid);
            }
            None => reply.locked(start, end, libc::F_UNLCK, 0),
        });
    }

    fn setlk(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let (core, asker) = (self.0.clone(), asker(req, fh, lock_owner));
        let wanted = wanted_lock(lock_owner, (start, end), typ, pid);
        let mode = if sleep { LockMode::Wait } else { LockMode::Try };
        let work = async move {
            match typ {
                libc::F_UNLCK => core.unlock(asker, wanted.start, wanted.end).await.map(|()| None),
                _ => core.lock(asker, wanted, mode).await.map(Some),
            }
        };
        let call = Call::of(req).long(sleep).unsent(|core, granted: &Option<_>| {
            if let Some(granted) = granted {
                core.unsent_lock(granted);
            }
        });
        run(&self.0, call, reply, work, |_, reply, _| reply.ok());
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let core = self.0.clone();
        let work = async move { core.lseek(fh.0, offset, whence).await };
        self.run(req, reply, work, |_, reply, offset| reply.offset(offset));
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (core, caller) = (self.0.clone(), caller(req));
        let work = async move {
            core.fallocate(caller, fh.0, ByteRange::at(offset, length), mode.cast_unsigned()).await
        };
        self.run(req, reply, work, send_ok);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (core, caller) = (self.0.clone(), caller(req));
        let (from, to) = ((fh_in.0, offset_in), (fh_out.0, offset_out));
        let work = async move { core.copy_file_range(caller, from, to, len).await };
        self.run(req, reply, work, |_, reply, copied| reply.written(copied));
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
        // There are none: the kernel makes it ENOTTY.
        reply.error(Errno::ENOSYS);
    }
}
