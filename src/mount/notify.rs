//! Making the kernel forget.
//!
//! Dropping attributes and bumping the epoch take no kernel lock and are done where they are wanted.
//! Dropping names and pages can wait for locks that operations hold, so each has a thread of its own, so that a
//! locked page never holds up a name. So have the names of directories, which nobody need wait for.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::name_drops::{Dropping, Name, NameDrops};
use super::passthrough::Passthrough;
use super::root::Root;
use crate::types::{ByteRange, Ino};

/// `FUSE_NOTIFY_INC_EPOCH`, kernel 6.16.
const INC_EPOCH: i32 = 8;
/// For so long a truncation waits for pages of the file's alias at most.
const ALIAS_DEADLINE: Duration = Duration::from_secs(1);
/// More names than this are dropped by one epoch.
const NAMES_MAX: usize = 64;
/// More directories than this do not wait to be dropped.
const DIRECTORIES_MAX: usize = 1024;

/// The way to the kernel of one mount.
#[derive(Debug)]
pub(super) struct Kernel {
    notifier: Notifier,
    root: Root,
    passthrough: Arc<Passthrough>,
    device: File,
    epochs: bool,
    names: NameDrops,
    directories: NameDrops,
    pages: Arc<Pages>,
}

/// Pages to drop: one range for each number that the kernel knows a file by, so that no queue can grow without bound.
#[derive(Debug, Default)]
struct Pages {
    wanted: Mutex<Wanted>,
    changed: Condvar,
    /// Told after each drop.
    dropped: Notify,
}

#[derive(Debug, Default)]
struct Wanted {
    /// Each with the number of the first drop that it stands for.
    ranges: HashMap<INodeNo, (u64, ByteRange)>,
    /// Being dropped.
    current: Option<(u64, INodeNo)>,
    /// How many drops were wanted so far.
    drops: u64,
    closed: bool,
}

impl Kernel {
    /// Starts the threads, and tries whether the kernel has epochs.
    pub(super) fn start(
        notifier: Notifier,
        device: OwnedFd,
        root: Root,
        passthrough: Arc<Passthrough>,
    ) -> io::Result<Self> {
        let drops = |name, max| NameDrops::start(name, max, notifier.clone(), root);
        // Whoever finds one under way bumps the epoch.
        let names = drops("fuse-names", 1)?;
        let directories = drops("fuse-dirs", DIRECTORIES_MAX)?;
        let pages = Arc::new(Pages::default());
        let (page_notifier, wanted) = (notifier.clone(), pages.clone());
        thread::Builder::new()
            .name("fuse-pages".into())
            .spawn(move || drop_pages(&page_notifier, &wanted))?;
        let (device, epochs) = (device.into(), true);
        let mut kernel =
            Self { notifier, root, passthrough, device, epochs, names, directories, pages };
        kernel.epochs = kernel.bump_epoch();
        Ok(kernel)
    }

    /// Whether names can be given TTLs: whether there is the last resort.
    pub(super) fn has_epochs(&self) -> bool {
        self.epochs
    }

    /// Makes the kernel look every name up again. False where it has no epochs.
    pub(super) fn bump_epoch(&self) -> bool {
        if !self.epochs {
            return false;
        }
        let mut header = [0; 16];
        header[..4].copy_from_slice(&16u32.to_ne_bytes());
        header[4..8].copy_from_slice(&INC_EPOCH.to_ne_bytes());
        (&self.device).write_all(&header).is_ok()
    }

    /// Whether a notification is under way that can be waiting for a lock of an operation. Where an unmount
    /// waits for it in turn, every other notification waits for both.
    pub(super) fn is_busy(&self) -> bool {
        self.names.is_busy()
            || self.directories.is_busy()
            || self.pages.wanted.lock().current.is_some()
    }

    /// Drops the cached attributes of an inode. Takes no lock that an operation holds (negative offset: no
    /// pages).
    pub(super) fn drop_attributes(&self, ino: Ino) {
        ignore_gone(self.notifier.inval_inode(self.root.node(ino), -1, 0));
        if self.passthrough.has_alias(ino) {
            ignore_gone(self.notifier.inval_inode(Root::alias(ino), -1, 0));
        }
    }

    /// Drops names, and waits until it is done. False where that would take too long: the caller
    /// then bumps the epoch.
    pub(super) fn drop_names(&self, names: &[Name], locks_may_be_held: impl Fn() -> bool) -> bool {
        if names.len() > NAMES_MAX {
            return false;
        }
        let dropping = self.names.begin(names.to_vec());
        dropping.is_some_and(|dropping| dropping.wait(locks_may_be_held))
    }

    /// Drops names of directories, soon. What there is no room for stays: a rename of that directory may fail.
    pub(super) fn drop_directories(&self, names: Vec<Name>) -> Option<Dropping> {
        let dropping = self.directories.begin(names);
        if dropping.is_none() {
            tracing::debug!("too many directories wait to be dropped");
        }
        dropping
    }

    /// Drops pages, soon; nobody waits. Answers a number for [`Self::has_dropped_pages`].
    pub(super) fn drop_pages(&self, ino: Ino, range: ByteRange) -> u64 {
        let nodes = self.nodes(ino);
        let mut wanted = self.pages.wanted.lock();
        for node in nodes {
            wanted.add(node, range);
        }
        self.pages.changed.notify_one();
        wanted.drops
    }

    /// Whether the pages of an inode are dropped that were to be by the drop of that number.
    pub(super) fn has_dropped_pages(&self, ino: Ino, number: u64) -> bool {
        let wanted = self.pages.wanted.lock();
        let nodes = [self.root.node(ino), Root::alias(ino)];
        !nodes.iter().any(|node| wanted.is_dropping(*node, number))
    }

    /// Drops pages of a file's alias, if it has one, and waits until it is done, for a while: whoever has one locked may
    /// take longer. Not those of the file's own number: an operation on that, which waits for this, may have them locked.
    pub(super) async fn drop_pages_of_alias(&self, ino: Ino, range: ByteRange) {
        if self.passthrough.has_alias(ino) {
            self.pages.wanted.lock().add(Root::alias(ino), range);
            self.pages.changed.notify_one();
            let dropped = self.until_dropped(vec![Root::alias(ino)]);
            // They go in any case.
            let _ = tokio::time::timeout(ALIAS_DEADLINE, dropped).await;
        }
    }

    /// Waits until the pages of an inode that were to be dropped before this call are.
    pub(super) async fn until_pages_dropped(&self, ino: Ino) {
        self.until_dropped(self.nodes(ino)).await;
    }

    /// The numbers by which the kernel may have pages of a file.
    fn nodes(&self, ino: Ino) -> Vec<INodeNo> {
        let alias = self.passthrough.has_alias(ino).then(|| Root::alias(ino));
        [self.root.node(ino)].into_iter().chain(alias).collect()
    }

    async fn until_dropped(&self, nodes: Vec<INodeNo>) {
        let last = self.pages.wanted.lock().drops;
        loop {
            let mut dropped = pin!(self.pages.dropped.notified());
            // From now on nothing is missed.
            dropped.as_mut().enable();
            {
                let wanted = self.pages.wanted.lock();
                if !nodes.iter().any(|node| wanted.is_dropping(*node, last)) {
                    return;
                }
            }
            dropped.await;
        }
    }
}

impl Wanted {
    fn add(&mut self, node: INodeNo, range: ByteRange) {
        self.drops += 1;
        let (_, known) = self.ranges.entry(node).or_insert((self.drops, range));
        *known = ByteRange { start: known.start.min(range.start), end: known.end.max(range.end) };
    }

    /// Whether one of the first `last` drops is of this number and still to be done.
    fn is_dropping(&self, node: INodeNo, last: u64) -> bool {
        let current = self.current.filter(|(_, current)| *current == node);
        let current = current.map(|(number, _)| number);
        let queued = self.ranges.get(&node).map(|(number, _)| *number);
        !self.closed && current.into_iter().chain(queued).any(|number| number <= last)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.pages.wanted.lock().closed = true;
        self.pages.changed.notify_one();
    }
}

fn drop_pages(notifier: &Notifier, pages: &Pages) {
    // Also after the mount's end, until all are done.
    while let Some((node, range)) = next_pages(pages) {
        let offset = i64::try_from(range.start).unwrap_or(i64::MAX);
        // 0 means: to the end of the file.
        let len = i64::try_from(range.end - range.start).unwrap_or(0);
        ignore_gone(notifier.inval_inode(node, offset, len));
    }
}

fn next_pages(pages: &Pages) -> Option<(INodeNo, ByteRange)> {
    let mut wanted = pages.wanted.lock();
    if wanted.current.take().is_some() {
        pages.dropped.notify_waiters();
    }
    loop {
        if let Some(node) = wanted.ranges.keys().next().copied() {
            let (number, range) = wanted.ranges.remove(&node).expect("just seen");
            wanted.current = Some((number, node));
            return Some((node, range));
        }
        if wanted.closed {
            pages.dropped.notify_waiters();
            return None;
        }
        pages.changed.wait(&mut wanted);
    }
}

/// A kernel that does not know the inode has nothing to forget, nor has one that is unmounted.
pub(super) fn ignore_gone(result: io::Result<()>) {
    if let Err(error) = result {
        let gone = [Some(libc::ENOENT), Some(libc::ENODEV), Some(libc::ENOTCONN)];
        if !gone.contains(&error.raw_os_error()) {
            tracing::warn!(%error, "the kernel refused a notification");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ByteRange, INodeNo, Pages, next_pages};

    /// Ranges of one inode are united, so that the queue is as long as there are inodes.
    #[test]
    fn page_drops_are_united() {
        let pages = Pages::default();
        for range in [ByteRange::at(100, 10), ByteRange::at(0, 5)] {
            pages.wanted.lock().add(INodeNo(1), range);
        }
        assert_eq!(next_pages(&pages), Some((INodeNo(1), ByteRange { start: 0, end: 110 })));
        pages.wanted.lock().closed = true;
        assert_eq!(next_pages(&pages), None);
    }
}
