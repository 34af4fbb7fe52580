//! What this mount has open, by inode and by file handle.
//!
//! An inode is *held* from before the operation that opens or creates it until its last RELEASE. The
//! table answers whether it is held when its last name is gone, and remembers having said yes, so
//! that the last RELEASE can take it back; both under one lock, so that neither order of the two can
//! leak or free an inode.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::buffer::Buffer;
use crate::types::Ino;

/// One open file of the kernel.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) buffer: Arc<Buffer>,
    /// Opened with direct I/O: the kernel's pages know nothing of what is written through it.
    pub(super) direct: bool,
    /// How many failures of the buffer this handle need not report (any more).
    reported: AtomicU64,
}

impl OpenFile {
    /// The errno of a failure that this handle has not reported yet; it counts as reported then.
    pub(super) fn unreported_failure(&self) -> Option<i32> {
        let (failures, errno) = self.buffer.lock().failures();
        (self.reported.swap(failures, Ordering::Relaxed) < failures).then_some(errno)
    }
}

/// The open files of a mount.
#[derive(Debug, Default)]
pub(super) struct OpenTable {
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    inodes: HashMap<Ino, HeldInode>,
    files: HashMap<u64, Arc<OpenFile>>,
    last_handle: u64,
}

#[derive(Debug)]
struct HeldInode {
    holds: usize,
    /// The cluster was told that this mount holds the inode although it has no name any more.
    promised: bool,
    buffer: Arc<Buffer>,
}

/// What the end of a hold means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Released {
    /// Others of this mount still hold it, or it has a name.
    Nothing,
    /// The cluster waits to hear that it is no longer held.
    Orphan,
}

impl OpenTable {
    /// Holds an inode: by one file to come, or for as long as an operation lasts.
    pub(super) fn hold(&self, ino: Ino) -> Arc<Buffer> {
        let mut tables = self.tables.lock();
        let inode = tables.inodes.entry(ino).or_insert_with(|| HeldInode {
            holds: 0,
            promised: false,
            buffer: Arc::new(Buffer::new(ino)),
        });
        inode.holds += 1;
        inode.buffer.clone()
    }

    /// Ends a hold that did not become an open file.
    pub(super) fn unhold(&self, ino: Ino) -> Released {
        self.tables.lock().unhold(ino)
    }

    /// Makes a hold an open file and names it. It reports failures of the buffer from now on.
    pub(super) fn open(&self, buffer: Arc<Buffer>, direct: bool) -> u64 {
        let reported = AtomicU64::new(buffer.lock().failures().0);
        let mut tables = self.tables.lock();
        tables.last_handle += 1;
        let handle = tables.last_handle;
        tables.files.insert(handle, Arc::new(OpenFile { buffer, direct, reported }));
        handle
    }

    /// The open file of that name.
    pub(super) fn file(&self, handle: u64) -> Option<Arc<OpenFile>> {
        self.tables.lock().files.get(&handle).cloned()
    }

    /// The buffer of an inode, where it is held.
    pub(super) fn buffer(&self, ino: Ino) -> Option<Arc<Buffer>> {
        self.tables.lock().inodes.get(&ino).map(|inode| inode.buffer.clone())
    }

    /// All buffers.
    pub(super) fn buffers(&self) -> Vec<Arc<Buffer>> {
        self.tables.lock().inodes.values().map(|inode| inode.buffer.clone()).collect()
    }

    /// Ends an open file. Its buffer must be settled where this was the last.
    pub(super) fn release(&self, handle: u64) -> Released {
        let mut tables = self.tables.lock();
        match tables.files.remove(&handle) {
            Some(file) => tables.unhold(file.buffer.ino),
            None => Released::Nothing,
        }
    }

    /// Whether the inode is held; asked when its last name is gone, and remembered.
    pub(super) fn promise(&self, ino: Ino) -> bool {
        let mut tables = self.tables.lock();
        let inode = tables.inodes.get_mut(&ino);
        inode.is_some_and(|inode| {
            inode.promised = true;
            true
        })
    }

    /// Whether the inode is held.
    pub(super) fn is_held(&self, ino: Ino) -> bool {
        self.tables.lock().inodes.contains_key(&ino)
    }
}

impl Tables {
    fn unhold(&mut self, ino: Ino) -> Released {
        let Some(inode) = self.inodes.get_mut(&ino) else { return Released::Nothing };
        inode.holds -= 1;
        if inode.holds > 0 {
            return Released::Nothing;
        }
        let promised = inode.promised;
        self.inodes.remove(&ino);
        if promised { Released::Orphan } else { Released::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, Ino, OpenTable, Released};

    /// Whichever comes first, the last release or the question, the cluster hears exactly once that
    /// an orphan is not held.
    #[test]
    fn orphans_are_answered_once() {
        let table = OpenTable::default();
        let first = table.open(table.hold(Ino(9)), false);
        let second = table.open(table.hold(Ino(9)), false);
        assert!(table.promise(Ino(9)));
        assert_eq!(table.release(first), Released::Nothing);
        assert_eq!(table.release(second), Released::Orphan);
        assert_eq!(table.release(second), Released::Nothing);
        assert!(!table.promise(Ino(9)), "not held any more: the answer is no");

        let only = table.open(table.hold(Ino(9)), false);
        assert_eq!(table.release(only), Released::Nothing);
        assert!(!table.promise(Ino(9)));
    }

    /// A create holds its inode before it is proposed, and lets go when it fails.
    #[test]
    fn failed_create_lets_go() {
        let table = OpenTable::default();
        table.hold(Ino(3));
        assert!(table.promise(Ino(3)));
        assert_eq!(table.unhold(Ino(3)), Released::Orphan);
        assert!(!table.is_held(Ino(3)));
    }

    /// All handles of an inode share its buffer; each reports a failure once, and only those that
    /// were open when it happened.
    #[test]
    fn failures_are_reported_once_per_handle() {
        let table = OpenTable::default();
        let early = table.open(table.hold(Ino(1)), false);
        let early = table.file(early).expect("open");
        {
            let mut state = early.buffer.lock();
            let new = crate::mount::buffer::NewBytes {
                offset: Some(0),
                data: vec![1].into(),
                kill_suid_sgid: false,
                time: crate::fs::proto::Time::default(),
            };
            state.accept(&new, std::time::Instant::now());
            state.take(Ino(1), 1 << 16);
            state.settle(Err(libc::EIO));
        }
        let late = table.open(table.hold(Ino(1)), false);
        let late = table.file(late).expect("open");
        assert!(Arc::ptr_eq(&early.buffer, &late.buffer));
        assert_eq!(late.unreported_failure(), None);
        assert_eq!(early.unreported_failure(), Some(libc::EIO));
        assert_eq!(early.unreported_failure(), None);
    }
}
