//! The ceiling of FUSE: a directory's files with nothing in between, small ones from memory, large ones in passthrough.
//!
//! `bare_fuse FROM MOUNT_POINT` answers each request at once, lets the kernel keep names, attributes and pages
//! for an hour, and asks for no FLUSH. What it takes per operation is the kernel's, the library's and the
//! scheduler's; what quorumfs takes beyond that is its own. `scripts/bench` shows it beside the others.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use fuser::{
    BackingId, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, Request, SessionACL,
};

const TTL: Duration = Duration::from_secs(3600);

/// From this size on the kernel reads the file itself.
const LARGE: u64 = 1 << 20;

enum Node {
    File(Vec<u8>),
    /// How large, and what the kernel has of it since it was first opened.
    Large(File, u64, Mutex<Option<BackingId>>),
    Directory(HashMap<OsString, u64>),
}

/// Numbered from 1, the root, in the order in which they were found.
struct Memory(Vec<Node>);

impl Memory {
    fn load(&mut self, from: &Path) -> io::Result<u64> {
        self.0.push(Node::Directory(HashMap::new()));
        let number = self.0.len();
        let mut entries = HashMap::new();
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let child = if entry.file_type()?.is_dir() {
                self.load(&entry.path())?
            } else {
                let len = entry.metadata()?.len();
                self.0.push(if len < LARGE {
                    Node::File(fs::read(entry.path())?)
                } else {
                    Node::Large(File::open(entry.path())?, len, Mutex::default())
                });
                self.0.len() as u64
            };
            entries.insert(entry.file_name(), child);
        }
        self.0[number - 1] = Node::Directory(entries);
        Ok(number as u64)
    }

    fn node(&self, ino: INodeNo) -> Option<&Node> {
        self.0.get(usize::try_from(ino.0).ok()?.checked_sub(1)?)
    }

    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match self.node(ino)? {
            Node::File(bytes) => (FileType::RegularFile, 0o644, bytes.len() as u64),
            Node::Large(_, len, _) => (FileType::RegularFile, 0o644, *len),
            Node::Directory(_) => (FileType::Directory, 0o755, 0),
        };
        let then = SystemTime::UNIX_EPOCH;
        Some(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: then,
            mtime: then,
            ctime: then,
            crtime: then,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Memory {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let unknown = |_| io::Error::other("this kernel has no FUSE passthrough");
        config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).map_err(unknown)?;
        config.set_max_stack_depth(1).map_err(|_| io::Error::other("no stacking"))?;
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = match self.node(parent) {
            Some(Node::Directory(entries)) => entries.get(name),
            _ => None,
        };
        match found.and_then(|&ino| self.attr(INodeNo(ino))) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if let Some(Node::Large(file, _, known)) = self.node(ino) {
            let mut known = known.lock().expect("nobody panics with it");
            let backing = match known.take().map_or_else(|| reply.open_backing(file), Ok) {
                Ok(backing) => known.insert(backing),
                Err(error) => return reply.error(error.into()),
            };
            return reply.opened_passthrough(FileHandle(0), FopenFlags::FOPEN_NOFLUSH, backing);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(Node::File(bytes)) = self.node(ino) else { return reply.error(Errno::EISDIR) };
        let start = usize::try_from(offset).map_or(bytes.len(), |start| start.min(bytes.len()));
        let end = bytes.len().min(start + size as usize);
        reply.data(&bytes[start..end]);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(Node::Directory(entries)) = self.node(ino) else {
            return reply.error(Errno::ENOTDIR);
        };
        let seen = usize::try_from(offset).unwrap_or(usize::MAX);
        for ((name, &child), next) in entries.iter().zip(1..).skip(seen) {
            let kind = match self.node(INodeNo(child)) {
                Some(Node::Directory(_)) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            if reply.add(INodeNo(child), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(from), Some(point)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: bare_fuse FROM MOUNT_POINT (then: umount MOUNT_POINT)");
    };
    let mut memory = Memory(Vec::new());
    memory.load(&from)?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("bare_fuse".into()),
        MountOption::RO,
        MountOption::DefaultPermissions,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(2);
    fuser::mount(memory, point, &config)?;
    Ok(())
}
