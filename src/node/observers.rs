//! The mounts of a node, which are told of changes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::fs::Change;
use crate::types::{ByteRange, Ino, LogIndex, MountId, SessionId};

/// What a mount is told before this node tells others that it has received or applied something. Both calls
/// must return only once this mount's kernel serves nothing older, and must not wait for a kernel lock that
/// an operation can hold: every writer of the cluster waits for them.
pub trait Observer: Send + Sync {
    /// Attributes and names may change so (`own` where this mount proposed it, or somebody has only read). Reads of them wait from
    /// now on until it is applied. Unless it `may_wait`, it forgets more rather than wait for the kernel.
    fn received(&self, own: bool, changes: &[Change], may_wait: bool);

    /// Whether [`Self::received`] would have to wait for the kernel, or forget more.
    fn would_wait(&self, changes: &[Change]) -> bool;

    /// These changes were applied at `index`.
    fn applied(&self, index: LogIndex, own: bool, changes: &[Change]);

    /// These bytes of a file turned out to be wrong here: what the kernel may have of them is dropped. It reads what
    /// is fetched in their place.
    fn condemned(&self, ino: Ino, range: ByteRange);

    /// The whole state was replaced by another: nothing that the kernel remembers is to be believed.
    fn state_replaced(&self);

    /// The lease lapsed: what the kernel may still serve by itself is dropped.
    fn lease_lost(&self);

    /// The mount's session is another now (the first one, or after the last was expired).
    fn session_changed(&self, session: SessionId);

    /// Whether this mount has the inode open. Asked when its last name is gone.
    fn holds(&self, ino: Ino) -> bool;

    /// Commits what was written to an inode, and waits until others may see it: its locks are about to be
    /// another's. What cannot be committed is for those who wrote it to report.
    fn flush(self: Arc<Self>, ino: Ino) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

type List = Arc<Vec<(MountId, Arc<dyn Observer>)>>;

/// Those of a node. Nobody is told anything under the lock.
#[derive(Default)]
pub(super) struct Observers {
    list: Mutex<List>,
    last: AtomicU64,
}

impl Observers {
    pub(super) fn new_mount(&self) -> MountId {
        MountId(self.last.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// From now on. A mount that serves only after this is told of everything that its reads do not find
    /// marked or applied, if [`Self::all`] is asked for after that was done.
    pub(super) fn add(&self, mount: MountId, observer: Arc<dyn Observer>) {
        Arc::make_mut(&mut self.list.lock()).push((mount, observer));
    }

    pub(super) fn remove(&self, mount: MountId) {
        Arc::make_mut(&mut self.list.lock()).retain(|(other, _)| *other != mount);
    }

    /// All that there are at this moment.
    pub(super) fn all(&self) -> List {
        self.list.lock().clone()
    }

    /// Whether any mount has the inode open. Each is asked, and remembers its answer.
    pub(super) fn hold(&self, ino: Ino) -> bool {
        self.all().iter().fold(false, |held, (_, observer)| observer.holds(ino) || held)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::{ByteRange, Change, Future, Ino, LogIndex, Observer, Observers, Pin, SessionId};

    #[derive(Default)]
    struct Holder {
        holds: bool,
        asked: AtomicBool,
    }

    impl Observer for Holder {
        fn received(&self, _own: bool, _changes: &[Change], _may_wait: bool) {}
        fn would_wait(&self, _changes: &[Change]) -> bool {
            false
        }

        fn applied(&self, _index: LogIndex, _own: bool, _changes: &[Change]) {}
        fn condemned(&self, _ino: Ino, _range: ByteRange) {}
        fn state_replaced(&self) {}
        fn lease_lost(&self) {}
        fn session_changed(&self, _session: SessionId) {}

        fn holds(&self, _ino: Ino) -> bool {
            self.asked.store(true, Ordering::Relaxed);
            self.holds
        }

        fn flush(self: Arc<Self>, _ino: Ino) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            Box::pin(async {})
        }
    }

    /// A mount that was not asked would not say when it lets go, whatever the others answer.
    #[test]
    fn every_mount_is_asked_what_it_holds() {
        let observers = Observers::default();
        assert!(!observers.hold(Ino(2)), "nobody is there");
        let mounts = [false, true, false].map(|holds| {
            let holder = Arc::new(Holder { holds, ..Holder::default() });
            let mount = observers.new_mount();
            observers.add(mount, holder.clone());
            (mount, holder)
        });
        assert!(observers.hold(Ino(2)));
        assert!(mounts.iter().all(|(_, holder)| holder.asked.load(Ordering::Relaxed)));
        observers.remove(mounts[1].0);
        assert!(!observers.hold(Ino(2)));
    }
}
