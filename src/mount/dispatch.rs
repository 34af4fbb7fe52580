//! Running operations: each is polled once on the session thread and goes to the runtime only if it
//! has to wait, so that what memory can answer costs no thread hop.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Wake, Waker};

use parking_lot::Mutex;

use super::core::Core;
use super::errors::OpError;
use crate::node;

/// A reply that can be refused with an errno.
pub(super) trait Refuse: Send + 'static {
    fn refuse(self, errno: fuser::Errno);
}

macro_rules! refuse {
    ($($reply:ident),*) => {
        $(impl Refuse for fuser::$reply {
            fn refuse(self, errno: fuser::Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyEmpty,
    ReplyEntry,
    ReplyLock,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// A request that is not answered yet: the kernel may hold locks for it.
pub(super) struct InFlight(Arc<Core>);

impl InFlight {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        core.in_flight.fetch_add(1, Ordering::AcqRel);
        Self(core.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Runs an operation and sends its answer.
pub(super) fn run<R, T, F>(
    core: &Arc<Core>,
    reply: R,
    work: F,
    answer: impl FnOnce(&Core, R, T) + Send + 'static,
) where
    R: Refuse,
    T: Send + 'static,
    F: Future<Output = Result<T, OpError>> + Send + 'static,
{
    let in_flight = InFlight::new(core);
    poll_first(&core.runtime, async move {
        match work.await {
            Ok(value) => answer(&in_flight.0, reply, value),
            Err(error) => {
                if let OpError::Node(error) = &error {
                    tracing::warn!(%error, "an operation failed");
                }
                reply.refuse((&error).into());
            }
        }
        drop(in_flight);
    });
}

/// Polls once here; what is not ready goes on in the runtime when it is woken.
pub(super) fn poll_first(
    runtime: &tokio::runtime::Handle,
    work: impl Future<Output = ()> + Send + 'static,
) {
    let waiting = Arc::new(Waiting { runtime: runtime.clone(), work: Mutex::new(None) });
    let waker = Waker::from(waiting.clone());
    // Held until the work is back in its place: who is woken meanwhile waits for it here.
    let mut place = waiting.work.lock();
    let mut work = Box::pin(work);
    // Timers and blocking tasks want to know their runtime already in the first poll.
    let _entered = runtime.enter();
    if work.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        *place = Some(work);
    }
}

/// An operation that was polled once and waits. Its answer goes on where it comes; any other wake-up gives
/// it to the runtime, and not before, which would be one more.
struct Waiting {
    runtime: tokio::runtime::Handle,
    work: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
}

impl Waiting {
    /// Goes on here as far as it gets without waiting.
    fn poll_here(self: &Arc<Self>) {
        let waker = Waker::from(self.clone());
        let mut place = self.work.lock();
        let Some(mut work) = place.take() else { return };
        let _entered = self.runtime.enter();
        if work.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            *place = Some(work);
        }
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        if node::answers_here() {
            // What it wakes in turn, perhaps itself, it does not wait for.
            node::without_answering(|| self.poll_here());
            return;
        }
        let runtime = self.runtime.clone();
        runtime.spawn(async move {
            let work = self.work.lock().take();
            // Woken twice: the first one has it.
            if let Some(work) = work {
                work.await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{self, ThreadId};

    use super::{Future, poll_first};

    fn thread_of(work: impl Future<Output = ()> + Send + 'static) -> ThreadId {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .expect("a runtime");
        let (send, receive) = crossbeam_channel::bounded(1);
        poll_first(runtime.handle(), async move {
            work.await;
            send.send(thread::current().id()).expect("the test waits");
        });
        receive.recv_timeout(std::time::Duration::from_secs(30)).expect("finished")
    }

    /// What is ready is answered on the session thread; what waits does not block it.
    #[test]
    fn only_what_waits_changes_threads() {
        assert_eq!(thread_of(async {}), thread::current().id());
        let waits = tokio::task::yield_now();
        assert_ne!(thread_of(waits), thread::current().id());
        let sleeps = async { tokio::time::sleep(std::time::Duration::from_millis(1)).await };
        assert_ne!(thread_of(sleeps), thread::current().id());
    }
}
