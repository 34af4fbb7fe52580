//! What this mount has open, by inode and by file handle.
//!
//! An inode is *held* from before the operation that opens or creates it until its last RELEASE. The
//! table answers whether it is held when its last name is gone, and remembers having said yes, so
//! that the last RELEASE can take it back; both under one lock, so that neither order of the two can
//! leak or free an inode.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::buffer::{Buffer, State};
use super::passthrough::Way;
use crate::guardian::{Slot, Watched};
use crate::types::Ino;

/// One open file of the kernel.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) buffer: Arc<Buffer>,
    pub(super) mode: OpenMode,
    /// Open for writing, and a close that commits is still to come. Changed under the table's lock.
    writing: AtomicBool,
    /// How many failures of the buffer this handle need not report (any more).
    reported: AtomicU64,
}

/// How a file was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OpenMode {
    /// With direct I/O: the kernel's pages know nothing of what is written through it.
    pub(super) direct: bool,
    /// For writing.
    pub(super) writes: bool,
    /// Who reads it.
    pub(super) way: Way,
}

impl OpenFile {
    /// The errno of a failure that this handle has not reported yet; it counts as reported then. For whoever asks what
    /// became of the bytes.
    pub(super) fn unreported_failure(&self) -> Option<i32> {
        let (failures, errno) = self.buffer.lock().failures();
        // Never back: of two that look at once, the second may have seen less.
        (self.reported.fetch_max(failures, Ordering::Relaxed) < failures).then_some(errno)
    }

    /// The same, and it does not count as reported. For closes: each process that is started closes copies of all
    /// descriptors, and hears nothing.
    pub(super) fn untold_failure(&self) -> Option<i32> {
        let (failures, errno) = self.buffer.lock().failures();
        (self.reported.load(Ordering::Relaxed) < failures).then_some(errno)
    }
}

/// The open files of a mount.
#[derive(Debug)]
pub(super) struct OpenTable {
    tables: Mutex<Tables>,
    watched: Arc<Watched>,
}

#[derive(Debug, Default)]
struct Tables {
    inodes: HashMap<Ino, HeldInode>,
    files: HashMap<u64, Arc<OpenFile>>,
    last_handle: u64,
    /// The mount is gone: nothing is held by it from now on.
    closed: bool,
}

#[derive(Debug)]
struct HeldInode {
    holds: usize,
    /// How many of them are open files that are writing.
    writers: usize,
    /// The cluster was told that this mount holds the inode although it has no name any more.
    promised: bool,
    buffer: Arc<Buffer>,
    /// The kernel may have pages of it, which descriptors read.
    _slot: Slot,
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
    /// Nothing is open yet. The guardian finds in `watched` what is.
    pub(super) fn new(watched: Arc<Watched>) -> Self {
        Self { tables: Mutex::default(), watched }
    }

    /// Holds an inode: by one file to come, or for as long as an operation lasts.
    pub(super) fn hold(&self, ino: Ino) -> Arc<Buffer> {
        let mut tables = self.tables.lock();
        let inode = tables.inodes.entry(ino).or_insert_with(|| HeldInode {
            holds: 0,
            writers: 0,
            promised: false,
            buffer: Arc::new(Buffer::new(ino)),
            _slot: self.watched.watch(ino.0),
        });
        inode.holds += 1;
        inode.buffer.clone()
    }

    /// Ends a hold that did not become an open file.
    pub(super) fn unhold(&self, ino: Ino) -> Released {
        self.tables.lock().unhold(ino)
    }

    /// Makes a hold an open file and names it. It reports failures of the buffer from now on.
    pub(super) fn open(&self, buffer: Arc<Buffer>, mode: OpenMode) -> u64 {
        let reported = AtomicU64::new(buffer.lock().failures().0);
        let mut tables = self.tables.lock();
        tables.last_handle += 1;
        let handle = tables.last_handle;
        if let Some(inode) = tables.inodes.get_mut(&buffer.ino) {
            inode.writers += usize::from(mode.writes);
        }
        let writing = AtomicBool::new(mode.writes);
        tables.files.insert(handle, Arc::new(OpenFile { buffer, mode, writing, reported }));
        handle
    }

    /// Changes the buffer of an inode that is open for writing, and answers whether it is: the close
    /// that commits the change is still to come.
    pub(super) fn while_written(&self, ino: Ino, change: impl FnOnce(&mut State)) -> bool {
        let tables = self.tables.lock();
        let inode = tables.inodes.get(&ino).filter(|inode| inode.writers > 0);
        inode.is_some_and(|inode| {
            change(&mut inode.buffer.lock());
            true
        })
    }

    /// Whether a close is still to come that commits.
    pub(super) fn is_written(&self, ino: Ino) -> bool {
        self.while_written(ino, |_| {})
    }

    /// A close begins to commit, perhaps the last one: what comes after this comes too late for it.
    pub(super) fn stop_writing(&self, file: &OpenFile) {
        let mut tables = self.tables.lock();
        if file.writing.swap(false, Ordering::Relaxed)
            && let Some(inode) = tables.inodes.get_mut(&file.buffer.ino)
        {
            inode.writers -= 1;
        }
    }

    /// It was not the last one: the file is written to.
    pub(super) fn go_on_writing(&self, file: &OpenFile) {
        if !file.mode.writes || file.writing.load(Ordering::Relaxed) {
            return;
        }
        let mut tables = self.tables.lock();
        if let Some(inode) = tables.inodes.get_mut(&file.buffer.ino)
            && !file.writing.swap(true, Ordering::Relaxed)
        {
            inode.writers += 1;
        }
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

    /// Ends an open file that has stopped writing. Its buffer must be settled where this was the last.
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
        let is_open = !tables.closed;
        let inode = tables.inodes.get_mut(&ino).filter(|_| is_open);
        inode.is_some_and(|inode| {
            inode.promised = true;
            true
        })
    }

    /// Whether nothing can be opened any more: the mount has gone.
    pub(super) fn is_closed(&self) -> bool {
        self.tables.lock().closed
    }

    /// The mount is gone: answers of which inodes the cluster waits to hear that they are no longer held.
    pub(super) fn close(&self) -> Vec<Ino> {
        let mut tables = self.tables.lock();
        tables.closed = true;
        tables.files.clear();
        let held = std::mem::take(&mut tables.inodes);
        held.into_iter().filter(|(_, inode)| inode.promised).map(|(ino, _)| ino).collect()
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
    use super::{Arc, Ino, OpenMode, OpenTable, Released, Watched, Way};

    const READS: OpenMode = OpenMode { direct: false, writes: false, way: Way::Plain };
    const WRITES: OpenMode = OpenMode { writes: true, ..READS };

    fn table() -> OpenTable {
        OpenTable::new(Watched::new().expect("memory to share"))
    }

    /// Whichever comes first, the last release or the question, the cluster hears exactly once that
    /// an orphan is not held.
    #[test]
    fn orphans_are_answered_once() {
        let table = table();
        let first = table.open(table.hold(Ino(9)), READS);
        let second = table.open(table.hold(Ino(9)), WRITES);
        assert!(table.promise(Ino(9)));
        assert_eq!(table.release(first), Released::Nothing);
        assert_eq!(table.release(second), Released::Orphan);
        assert_eq!(table.release(second), Released::Nothing);
        assert!(!table.promise(Ino(9)), "not held any more: the answer is no");

        let only = table.open(table.hold(Ino(9)), READS);
        assert_eq!(table.release(only), Released::Nothing);
        assert!(!table.promise(Ino(9)));
    }

    /// What is still open when the mount goes is let go, once.
    #[test]
    fn a_mount_that_is_gone_holds_nothing() {
        let table = table();
        let handles = [Ino(5), Ino(6)].map(|ino| table.open(table.hold(ino), READS));
        assert!(table.promise(Ino(5)));
        assert_eq!(table.close(), [Ino(5)]);
        assert_eq!(handles.map(|handle| table.release(handle)), [Released::Nothing; 2]);
        table.hold(Ino(6));
        assert!(!table.promise(Ino(6)), "an operation that came too late");
    }

    /// A create holds its inode before it is proposed, and lets go when it fails.
    #[test]
    fn failed_create_lets_go() {
        let table = table();
        table.hold(Ino(3));
        assert!(table.promise(Ino(3)));
        assert_eq!(table.unhold(Ino(3)), Released::Orphan);
        assert!(!table.is_held(Ino(3)));
    }

    /// Only a close that is still to come can commit what is put off until then.
    #[test]
    fn open_for_writing() {
        let table = table();
        let is_written = || table.is_written(Ino(4));
        table.hold(Ino(4));
        assert!(!is_written(), "not open yet");
        table.open(table.hold(Ino(4)), READS);
        assert!(!is_written(), "its close commits nothing");
        let writers = [(); 2].map(|()| table.open(table.hold(Ino(4)), WRITES));
        for handle in writers {
            assert!(is_written());
            let file = table.file(handle).expect("open");
            table.stop_writing(&file);
            table.go_on_writing(&file);
            table.stop_writing(&file);
            table.stop_writing(&file);
        }
        assert!(!is_written(), "the last commit may have begun");
        for handle in writers {
            assert_eq!(table.release(handle), Released::Nothing);
        }
    }

    /// All handles of an inode share its buffer; each reports a failure once, and only those that
    /// were open when it happened.
    #[test]
    fn failures_are_reported_once_per_handle() {
        let table = table();
        let early = table.open(table.hold(Ino(1)), WRITES);
        let early = table.file(early).expect("open");
        {
            let mut state = early.buffer.lock();
            let new = crate::mount::buffer::NewBytes {
                offset: Some(0),
                data: vec![1].into(),
                kill_suid_sgid: false,
                time: crate::fs::proto::Time::default(),
                only_in: None,
            };
            state.accept(&new, std::time::Instant::now());
            state.take(Ino(1), 1 << 16);
            state.settle(Err(libc::EIO));
        }
        let late = table.open(table.hold(Ino(1)), WRITES);
        let late = table.file(late).expect("open");
        assert!(Arc::ptr_eq(&early.buffer, &late.buffer));
        assert_eq!((late.untold_failure(), late.unreported_failure()), (None, None));
        assert_eq!(early.untold_failure(), Some(libc::EIO));
        assert_eq!(
            early.untold_failure(),
            Some(libc::EIO),
            "a close of a copy takes it from nobody"
        );
        assert_eq!(early.unreported_failure(), Some(libc::EIO));
        assert_eq!((early.untold_failure(), early.unreported_failure()), (None, None));
    }
}
