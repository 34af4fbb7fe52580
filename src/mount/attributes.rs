//! GETATTR, SETATTR and STATFS; what this mount sees of an inode: its record and what is buffered.

use fuser::{FileAttr, FileType, INodeNo};

use super::buffer::{BufferedAttributes, SetTimes};
use super::core::{Caller, Core};
use super::errors::OpError;
use super::kernel_cache::AttributeGrant;
use super::times;
use crate::fs::proto::command::Op;
use crate::fs::proto::{self, Inode, Kind};
use crate::fs::query;
use crate::node::Look;
use crate::store::StateRead;
use crate::types::{ByteRange, Generation, Ino, LogIndex};

/// Names are at most this long.
pub(super) const NAME_MAX: u32 = 255;
const BLOCK_BYTES: u64 = 512;
const SUID: u32 = 0o4000;
const SGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;

/// An inode as this mount sees it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) ino: Ino,
    pub(super) inode: Inode,
    pub(super) buffered: Option<BufferedAttributes>,
}

/// What SETATTR asks for; absent fields stay.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AttributeChange {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) atime: Option<proto::Time>,
    pub(super) mtime: Option<proto::Time>,
}

impl Core {
    /// GETATTR. Answers with leave to cache it.
    pub(super) async fn getattr(&self, ino: Ino) -> Result<(FileAttr, AttributeGrant), OpError> {
        let grant = self.give_attributes(ino);
        self.settle_appends(ino).await;
        let seen = self.seen(ino).await?;
        self.until_pages_fit(ino).await?;
        Ok((self.file_attr(&seen)?, grant))
    }

    /// SETATTR. Its reply carries no TTL: our own change invalidates what it would give, and kernels
    /// before 6.16 believe a late reply.
    pub(super) async fn setattr(
        &self,
        caller: Caller,
        handle: Option<u64>,
        (ino, by_alias): (Ino, bool),
        change: AttributeChange,
    ) -> Result<FileAttr, OpError> {
        self.writable()?;
        let only_in =
            handle.map(|handle| self.fenced(handle)).transpose()?.and_then(|(_, only)| only);
        if change.atime.is_some() {
            self.node.forget_touch(ino).await;
        }
        if let Some(seen) = self.put_off(ino, change).await? {
            return self.file_attr(&seen);
        }
        let is_directory = self.query(|state| {
            Ok(query::inode(state, ino)?.is_some_and(|inode| inode.kind() == Kind::Directory))
        })?;
        let set = set_attr(caller, ino, change, is_directory);
        // Bytes that were written before must neither move the times that are set now nor come back
        // after a truncation.
        let outcome = match self.open.buffer(ino) {
            Some(buffer) => self.set_attr_after_bytes(&buffer, set, only_in).await?,
            None => self.mutate(&[ino], Op::SetAttr(set)).await?,
        };
        // The kernel cuts the pages of that number only by which it knows the file.
        if let Some(size) = change.size
            && !by_alias
        {
            self.kernel().drop_pages_of_alias(ino, ByteRange::from(size)).await;
        }
        self.file_attr(&Seen::of_outcome(ino, outcome)?)
    }

    /// Puts a change off until the next commit of what is written here, where it changes nothing but
    /// ctime, or sets times of a file whose bytes are not committed either: what the inode is by then, or
    /// `None` where it has to be proposed.
    async fn put_off(&self, ino: Ino, change: AttributeChange) -> Result<Option<Seen>, OpError> {
        if change.size.is_some() || !self.open.is_written(ino) {
            return Ok(None);
        }
        let seen = self.seen(ino).await?;
        let times = SetTimes { atime: change.atime, mtime: change.mtime };
        if !change.is_in(&seen.inode) || !self.buffer_times(ino, times) {
            return Ok(None);
        }
        self.seen(ino).await.map(Some)
    }

    /// What may be served of an inode that the kernel knows. ESTALE where it is gone: the kernel then
    /// looks the path up again.
    pub(super) async fn seen(&self, ino: Ino) -> Result<Seen, OpError> {
        let seen = self.read_stable(|look| {
            let seen = self.see(&look.state, ino)?;
            let mod_index = seen.as_ref().map_or(0, |seen| seen.inode.mod_index);
            let changed = match &seen {
                Some(seen) if !self.cache.is_doubtful(ino) => seen.changed(look),
                Some(_) => look.doubtful_inode_changed(ino, mod_index),
                None => LogIndex(0),
            };
            Ok((seen, changed))
        });
        seen.await?.ok_or(OpError::Errno(libc::ESTALE))
    }

    /// An inode in one state. Nothing is applied while that is held, so bytes are in the buffer or in
    /// the record (or in both).
    pub(super) fn see(&self, state: &StateRead<'_>, ino: Ino) -> Result<Option<Seen>, OpError> {
        let buffered = self.open.buffer(ino).and_then(|buffer| buffer.lock().attributes());
        let mut inode = query::inode(state, ino)?;
        if let Some(inode) = &mut inode {
            inode.atime = self.node.touched(ino, inode.atime);
        }
        Ok(inode.map(|inode| Seen { ino, inode, buffered }))
    }

    /// Commits appended bytes, of which nobody knows where they will stand. Answers whether there
    /// were any.
    pub(super) async fn settle_appends(&self, ino: Ino) -> bool {
        let Some(buffer) = self.open.buffer(ino) else { return false };
        let appends = buffer.lock().has_appends();
        if appends {
            self.commit(&buffer).await;
        }
        appends
    }

    /// To be called between reading a size and telling the kernel of it: where a page ended at a smaller
    /// size, the kernel would show zeros instead of what another mount has written behind that.
    pub(super) async fn until_pages_fit(&self, ino: Ino) -> Result<(), OpError> {
        Ok(self.node.within(self.kernel().until_pages_dropped(ino)).await?)
    }

    /// The attributes of an inode, with the blocks that it takes here.
    pub(super) fn file_attr(&self, seen: &Seen) -> Result<FileAttr, OpError> {
        let generation = Generation(seen.inode.generation);
        let blocks = match seen.inode.kind() {
            Kind::Regular if seen.inode.size > 0 => {
                self.node.files().blocks(seen.ino, generation)?
            }
            _ => 0,
        };
        Ok(seen.file_attr(blocks))
    }
}

impl AttributeChange {
    /// Whether mode, uid and gid are this already. A mode with suid or sgid is not: changing the owner
    /// clears them, also to the same one.
    fn is_in(&self, inode: &Inode) -> bool {
        inode.kind() == Kind::Regular
            && inode.mode & (SUID | SGID) == 0
            && self.mode.is_none_or(|mode| mode & 0o7777 == inode.mode)
            && self.uid.is_none_or(|uid| uid == inode.uid)
            && self.gid.is_none_or(|gid| gid == inode.gid)
    }
}

impl Seen {
    /// What a mutation left behind. Nothing is buffered: it was committed first, or is new.
    pub(super) fn of_outcome(ino: Ino, outcome: proto::Outcome) -> Result<Self, OpError> {
        let inode = outcome.inode.ok_or(OpError::Errno(libc::EIO))?;
        Ok(Self { ino, inode, buffered: None })
    }

    /// When it last changed, or will have changed.
    pub(super) fn changed(&self, look: &Look<'_>) -> LogIndex {
        look.inode_changed(self.ino, self.inode.mod_index)
    }

    /// The file's size.
    pub(super) fn size(&self) -> u64 {
        self.inode.size.max(self.buffered.map_or(0, |buffered| buffered.end))
    }

    /// As fuser wants it; `blocks` is what the backing file has. Buffered bytes count as blocks: to
    /// tar a file without blocks is a hole.
    pub(super) fn file_attr(&self, blocks: u64) -> FileAttr {
        let Self { ino, inode, buffered } = self;
        let time = |time: Option<proto::Time>| time.unwrap_or_default();
        let raised = |recorded: Option<proto::Time>, by: Option<proto::Time>| {
            let recorded = time(recorded);
            by.map_or(recorded, |by| times::later(recorded, by))
        };
        let set = buffered.map_or(SetTimes::default(), |buffered| buffered.set);
        let written = buffered.and_then(|buffered| buffered.written);
        let changed = buffered.map(|buffered| buffered.changed);
        let kill = buffered.is_some_and(|buffered| buffered.kill_suid_sgid);
        let mode = if kill { without_suid_sgid(inode.mode) } else { inode.mode };
        let buffered_blocks =
            buffered.map_or(0, |buffered| (buffered.bytes as u64).div_ceil(BLOCK_BYTES));
        FileAttr {
            ino: INodeNo(ino.0),
            size: self.size(),
            blocks: blocks + buffered_blocks,
            atime: times::to_system(time(set.atime.or(inode.atime))),
            mtime: times::to_system(raised(set.mtime.or(inode.mtime), written)),
            ctime: times::to_system(raised(inode.ctime, changed)),
            crtime: times::to_system(time(inode.btime)),
            kind: file_type(inode.kind()),
            perm: u16::try_from(mode & 0o7777).expect("twelve bits"),
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// The kind as fuser names it.
pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Regular | Kind::Unspecified => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// What a write by somebody without privileges leaves of a mode (inode(7)).
fn without_suid_sgid(mode: u32) -> u32 {
    let sgid = if mode & GROUP_EXECUTE == 0 { 0 } else { SGID };
    mode & !(SUID | sgid)
}

/// The command of a SETATTR. fuser hides the kernel's own flag for suid and sgid, so: chown clears
/// them always, truncation unless root does it. A SETATTR without any field is a chown to nobody.
fn set_attr(
    caller: Caller,
    ino: Ino,
    change: AttributeChange,
    is_directory: bool,
) -> proto::SetAttr {
    let AttributeChange { mode, uid, gid, size, atime, mtime } = change;
    let is_chown = uid.is_some() || gid.is_some();
    let is_truncation = size.is_some();
    let is_empty = mode.is_none() && atime.is_none() && mtime.is_none();
    let chown_kills = is_chown || (is_empty && !is_truncation);
    let kill = chown_kills || (is_truncation && caller.uid != 0);
    proto::SetAttr {
        ino: ino.0,
        mode: mode.map(|mode| mode & 0o7777),
        uid,
        gid,
        size,
        atime,
        mtime: mtime.or_else(|| is_truncation.then(times::now)),
        kill_suid_sgid: kill && !is_directory,
        ..<_>::default()
    }
}

/// The command that an OPEN with `O_TRUNC` stands for.
pub(super) fn truncate(caller: Caller, ino: Ino) -> Op {
    let change = AttributeChange { size: Some(0), ..AttributeChange::default() };
    Op::SetAttr(set_attr(caller, ino, change, false))
}

#[cfg(test)]
mod tests {
    use super::{
        AttributeChange, BufferedAttributes, Caller, Ino, Inode, Kind, Seen, SetTimes, proto,
        set_attr, times, without_suid_sgid,
    };

    const USER: Caller = Caller { uid: 1000, gid: 1000, pid: 0 };
    const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

    fn kills(caller: Caller, change: AttributeChange, is_directory: bool) -> bool {
        set_attr(caller, Ino(5), change, is_directory).kill_suid_sgid
    }

    /// chown clears suid and sgid whoever calls it, truncate unless root does, chmod and utimes
    /// never; directories keep theirs.
    #[test]
    fn suid_and_sgid() {
        let chown = AttributeChange { uid: Some(1), ..AttributeChange::default() };
        let resize = AttributeChange { size: Some(1), ..AttributeChange::default() };
        let chmod = AttributeChange { mode: Some(0o4755), ..AttributeChange::default() };
        assert!(kills(ROOT, chown, false) && kills(USER, chown, false));
        assert!(!kills(ROOT, resize, false) && kills(USER, resize, false));
        assert!(!kills(USER, chmod, false));
        assert!(!kills(USER, chown, true));
        assert!(kills(USER, AttributeChange::default(), false), "chown(path, -1, -1)");
        assert_eq!(without_suid_sgid(0o6755), 0o755);
        assert_eq!(without_suid_sgid(0o6745), 0o2745, "mandatory locking, not sgid");
    }

    /// Buffered bytes raise size and times, and never lower them.
    #[test]
    fn buffered_bytes_show() {
        let at = |seconds| Some(proto::Time { seconds, nanos: 0 });
        let inode =
            Inode { size: 100, mtime: at(50), ctime: at(70), mode: 0o4755, ..<_>::default() };
        let buffered = BufferedAttributes {
            end: 10,
            bytes: 10,
            set: SetTimes::default(),
            written: at(60),
            changed: at(65).expect("a time"),
            kill_suid_sgid: true,
        };
        let seen = Seen { ino: Ino(2), inode, buffered: Some(buffered) };
        let attr = seen.file_attr(8);
        assert_eq!((attr.size, attr.blocks, attr.perm), (100, 9, 0o755));
        assert_eq!(attr.mtime, times::to_system(at(60).expect("a time")));
        assert_eq!(attr.ctime, times::to_system(at(70).expect("a time")));
        let changed = at(80).expect("a time");
        let only_ctime = BufferedAttributes { written: None, bytes: 0, changed, ..buffered };
        let attr = Seen { buffered: Some(only_ctime), ..seen.clone() }.file_attr(8);
        assert_eq!(attr.mtime, times::to_system(at(50).expect("a time")));
        assert_eq!((attr.ctime, attr.blocks), (times::to_system(changed), 8));
        let set = SetTimes { atime: at(20), mtime: at(30) };
        let set = BufferedAttributes { written: None, set, ..buffered };
        let attr = Seen { buffered: Some(set), ..seen }.file_attr(8);
        assert_eq!(attr.atime, times::to_system(at(20).expect("a time")));
        assert_eq!(attr.mtime, times::to_system(at(30).expect("a time")), "set back");
    }

    /// What an inode has already changes nothing but ctime; whatever could take suid or sgid does.
    #[test]
    fn changes_of_nothing() {
        let inode =
            Inode { kind: Kind::Regular.into(), mode: 0o640, uid: 1, gid: 2, ..Inode::default() };
        let nobody = AttributeChange::default();
        let owner = AttributeChange { uid: Some(1), gid: Some(2), ..nobody };
        let mode = AttributeChange { mode: Some(0o100_640), ..nobody };
        for change in [nobody, owner, mode] {
            assert!(change.is_in(&inode), "{change:?}");
            let sgid = Inode { mode: 0o2640, ..inode.clone() };
            assert!(!change.is_in(&sgid), "{change:?}");
        }
        let others = [
            AttributeChange { uid: Some(2), ..owner },
            AttributeChange { gid: Some(1), ..owner },
            AttributeChange { mode: Some(0o644), ..nobody },
            AttributeChange { mode: Some(0o4640), ..nobody },
        ];
        for change in others {
            assert!(!change.is_in(&inode), "{change:?}");
        }
        let directory = Inode { kind: Kind::Directory.into(), ..inode };
        assert!(!owner.is_in(&directory));
    }
}
