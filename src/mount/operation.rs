//! Running operations: each is polled once on the session thread and goes to the runtime only if it
//! has to wait, so that what memory can answer costs no thread hop.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::node;

/// What becomes of an operation.
pub(super) trait Ending<T>: Send + Sync + Sized + 'static {
    /// It was polled once, and has to wait. It does not go on before this returns.
    fn waits(operation: &Arc<Operation<Self, T>>);

    /// It has ended, perhaps at its first poll.
    fn ended(&self, result: T);
}

/// An operation that was polled once and waits. Its answer goes on where it comes; any other wake-up gives
/// it to the runtime, and not before, which would be one more.
pub(super) struct Operation<E, T> {
    runtime: Handle,
    work: Mutex<Option<Work<T>>>,
    pub(super) ending: E,
}

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Polls once here; what is not ready goes on in the runtime when it is woken.
pub(super) fn start<E, T, F>(
    runtime: &Handle,
    ending: E,
    work: impl FnOnce(&Arc<Operation<E, T>>) -> F,
) where
    E: Ending<T>,
    T: 'static,
    F: Future<Output = T> + Send + 'static,
{
    let operation =
        Arc::new(Operation { runtime: runtime.clone(), work: Mutex::new(None), ending });
    let waker = Waker::from(operation.clone());
    // Held until the work is back in its place: who is woken meanwhile waits for it here.
    let mut place = operation.work.lock();
    let mut work = Box::pin(work(&operation));
    // Timers and blocking tasks want to know their runtime already in the first poll.
    let _entered = runtime.enter();
    match work.as_mut().poll(&mut Context::from_waker(&waker)) {
        Poll::Ready(result) => {
            drop(place);
            operation.ending.ended(result);
        }
        Poll::Pending => {
            E::waits(&operation);
            *place = Some(work);
        }
    }
}

impl<E: Ending<T>, T: 'static> Operation<E, T> {
    /// Goes on here as far as it gets without waiting.
    fn poll_here(self: &Arc<Self>) {
        let waker = Waker::from(self.clone());
        let mut place = self.work.lock();
        let Some(mut work) = place.take() else { return };
        let _entered = self.runtime.enter();
        match work.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => {
                drop(place);
                self.ending.ended(result);
            }
            Poll::Pending => *place = Some(work),
        }
    }
}

impl<E: Ending<T>, T: 'static> Wake for Operation<E, T> {
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
                let result = work.await;
                self.ending.ended(result);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{self, ThreadId};

    use super::{Arc, Ending, Future, Operation, start};

    /// Says on which thread the operation ended.
    struct Ended(crossbeam_channel::Sender<ThreadId>);

    impl Ending<()> for Ended {
        fn waits(_operation: &Arc<Operation<Self, ()>>) {}

        fn ended(&self, (): ()) {
            self.0.send(thread::current().id()).expect("the test waits");
        }
    }

    fn thread_of(work: impl Future<Output = ()> + Send + 'static) -> ThreadId {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .expect("a runtime");
        let (send, receive) = crossbeam_channel::bounded(1);
        start(runtime.handle(), Ended(send), |_| work);
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
