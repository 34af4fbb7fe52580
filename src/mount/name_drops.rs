//! A thread that has the kernel drop names. Each drop takes the lock of a directory, which an operation may hold.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use fuser::Notifier;

use super::notify::ignore_gone;
use super::root::Root;
use crate::node::run_promptly;
use crate::types::Ino;

/// Every writer of the cluster waits for names to be dropped: no longer than this where an operation may hold
/// the lock that it takes, and wait in turn.
const DEADLINE: Duration = Duration::from_millis(5);
/// Otherwise the thread only has no core.
const DEADLINE_WITHOUT_LOCKS: Duration = Duration::from_secs(1);

/// A name in a directory.
pub(super) type Name = (Ino, Vec<u8>);

/// Names to drop, in order.
#[derive(Debug)]
pub(super) struct NameDrops {
    jobs: Sender<Job>,
    /// How many are not done yet: for long only where the thread waits for a lock.
    pending: Arc<AtomicUsize>,
    /// No more than this wait or are under way.
    max: usize,
}

#[derive(Debug)]
struct Job {
    names: Vec<Name>,
    done: Sender<()>,
}

/// Names that are being dropped.
#[derive(Debug)]
pub(super) struct Dropping(Receiver<()>);

impl NameDrops {
    /// Starts the thread, which ends when this is dropped and the names are.
    pub(super) fn start(
        thread: &str,
        max: usize,
        notifier: Notifier,
        root: Root,
    ) -> io::Result<Self> {
        let (jobs, wanted) = bounded(max);
        let pending = Arc::new(AtomicUsize::new(0));
        let left = pending.clone();
        thread::Builder::new()
            .name(thread.into())
            .spawn(move || drop_names(&notifier, root, &wanted, &left))?;
        Ok(Self { jobs, pending, max })
    }

    /// Whether a drop is under way, which may wait for a lock, or is about to be.
    pub(super) fn is_busy(&self) -> bool {
        self.pending.load(Ordering::Acquire) > 0
    }

    /// Has names dropped. `None` where as many drops as may are not done yet.
    pub(super) fn begin(&self, names: Vec<Name>) -> Option<Dropping> {
        let (done, finished) = bounded(1);
        if self.pending.fetch_add(1, Ordering::AcqRel) >= self.max
            || self.jobs.try_send(Job { names, done }).is_err()
        {
            self.pending.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Dropping(finished))
    }
}

impl Dropping {
    /// Waits for the kernel to have dropped the names. False where that would take too long.
    pub(super) fn wait(&self, locks_may_be_held: impl Fn() -> bool) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < DEADLINE_WITHOUT_LOCKS {
            match self.0.recv_timeout(DEADLINE) {
                Ok(()) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) if locks_may_be_held() => return false,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        false
    }

    /// Waits for a while, whoever holds locks.
    pub(super) async fn wait_within(self, limit: Duration) {
        // They go in any case.
        let _ = tokio::task::spawn_blocking(move || self.0.recv_timeout(limit)).await;
    }
}

fn drop_names(notifier: &Notifier, root: Root, jobs: &Receiver<Job>, pending: &AtomicUsize) {
    run_promptly();
    for Job { names, done } in jobs {
        for (parent, name) in names {
            ignore_gone(notifier.inval_entry(root.node(parent), &OsString::from_vec(name)));
        }
        pending.fetch_sub(1, Ordering::AcqRel);
        // Nobody may listen, any more or at all.
        let _ = done.try_send(());
    }
}
