//! Running requests of the kernel: each has one deadline, and one answer.
//!
//! The answer is not the operation's alone to give. A request that has waited for a while is looked at by
//! [`super::waiting`]; where its process is being killed, or its deadline is over and something here is stuck, it is
//! answered *early*. The operation is not dropped then, for it may be in the middle of committing what others wrote,
//! too: its waits end, by its [`Deadline`], and it ends as after any other error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use fuser::Errno;
use parking_lot::Mutex;

use super::core::Core;
use super::errors::OpError;
use super::operation::{Ending, Operation, start};
use super::waiting::WaitingCall;
use crate::node::{self, Caller, Deadline, Left};
use crate::types::Monotonic;

/// A reply that can be refused with an errno.
pub(super) trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ident),*) => {
        $(impl Refuse for fuser::$reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyEmpty,
    ReplyEntry,
    ReplyLock,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// What there is to know of a request, whatever it asks for.
pub(super) struct Call<T> {
    /// The thread that made it; 0 where it is not known here.
    thread: u32,
    /// It may wait for ever for what others have.
    is_long: bool,
    /// Takes back what it has got where nobody is told of that any more.
    unsent: fn(&Arc<Core>, &T),
}

impl<T> Call<T> {
    pub(super) fn of(request: &fuser::Request) -> Self {
        Self { thread: request.pid(), is_long: false, unsent: |_, _| {} }
    }

    /// One that nobody waits for.
    pub(super) fn of_nobody() -> Self {
        Self { thread: 0, is_long: false, unsent: |_, _| {} }
    }

    pub(super) fn long(self, is_long: bool) -> Self {
        Self { is_long, ..self }
    }

    pub(super) fn unsent(self, unsent: fn(&Arc<Core>, &T)) -> Self {
        Self { unsent, ..self }
    }
}

/// A request that may not be answered yet.
struct Request<R, T, A> {
    core: Arc<Core>,
    call: Call<T>,
    began: Monotonic,
    /// Whether it was answered early: 0, or the number of a [`Left`].
    left: AtomicU8,
    /// It was late already when it was looked at last.
    was_late: AtomicBool,
    /// Its number among those that wait; 0 where it does not.
    number: AtomicU64,
    /// Whoever takes this answers.
    unanswered: Mutex<Option<(R, A)>>,
}

const LEFT_LATE: u8 = 1;
const LEFT_KILLED: u8 = 2;

/// Runs an operation and sends its answer.
pub(super) fn run<R, T, F, A>(core: &Arc<Core>, call: Call<T>, reply: R, work: F, answer: A)
where
    R: Refuse,
    T: Send + 'static,
    F: Future<Output = Result<T, OpError>> + Send + 'static,
    A: FnOnce(&Core, R, T) + Send + 'static,
{
    // The kernel may hold locks for it until it is answered.
    core.in_flight.fetch_add(1, Ordering::AcqRel);
    let began = core.late.began(call.thread, Instant::now).unwrap_or_else(node::monotonic);
    let request = Request {
        core: core.clone(),
        call,
        began,
        left: AtomicU8::new(0),
        was_late: AtomicBool::new(false),
        number: AtomicU64::new(0),
        unanswered: Mutex::new(Some((reply, answer))),
    };
    start(&core.runtime, request, |operation| {
        // However it ends, the thread that is in it is looked after.
        operation.ending.core.waiting.begin(operation.clone());
        let caller: Arc<dyn Caller> = operation.clone();
        let deadline = if operation.ending.call.is_long {
            Deadline::of_long_call(caller)
        } else {
            Deadline::of_call(operation.ending.began, caller)
        };
        deadline.covers(work)
    });
    core.waiting.end();
}

impl<R, T, A> Request<R, T, A>
where
    R: Refuse,
    A: FnOnce(&Core, R, T) + Send,
{
    fn answer(&self, (reply, answer): (R, A), result: Result<T, OpError>) {
        match result {
            Ok(value) => answer(&self.core, reply, value),
            Err(error) => {
                if let OpError::Node(error) = &error {
                    tracing::warn!(%error, "an operation failed");
                }
                if matches!(error, OpError::Node(node::NodeError::Deadline)) {
                    self.core.late.failed(self.call.thread, self.began, Instant::now());
                }
                reply.refuse((&error).into());
            }
        }
        self.core.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<R, T, A> Ending<Result<T, OpError>> for Request<R, T, A>
where
    R: Refuse,
    T: Send + 'static,
    A: FnOnce(&Core, R, T) + Send + 'static,
{
    fn waits(operation: &Arc<Operation<Self, Result<T, OpError>>>) {
        let request = &operation.ending;
        request.number.store(request.core.waiting.enter(operation.clone()), Ordering::Release);
    }

    fn ended(&self, result: Result<T, OpError>) {
        self.core.waiting.leave(self.number.load(Ordering::Acquire));
        let unanswered = self.unanswered.lock().take();
        match (unanswered, result) {
            (Some(unanswered), result) => self.answer(unanswered, result),
            (None, Ok(value)) => (self.call.unsent)(&self.core, &value),
            (None, Err(error)) => {
                tracing::debug!(%error, "an operation failed that was answered before");
            }
        }
    }
}

impl<R, T, A> Caller for Operation<Request<R, T, A>, Result<T, OpError>>
where
    R: Refuse,
    T: Send + 'static,
    A: FnOnce(&Core, R, T) + Send + 'static,
{
    fn has_left(&self) -> Option<Left> {
        match self.ending.left.load(Ordering::Acquire) {
            LEFT_LATE => Some(Left::Late),
            LEFT_KILLED => Some(Left::Killed),
            _ => None,
        }
    }
}

impl<R, T, A> WaitingCall for Operation<Request<R, T, A>, Result<T, OpError>>
where
    R: Refuse,
    T: Send + 'static,
    A: FnOnce(&Core, R, T) + Send + 'static,
{
    fn thread(&self) -> u32 {
        self.ending.call.thread
    }

    /// The operation sees its deadline by itself, unless it is stuck: it has the time between two looks.
    fn is_late(&self) -> bool {
        let request = &self.ending;
        !request.call.is_long
            && request.core.node.is_late(request.began)
            && request.was_late.swap(true, Ordering::Relaxed)
    }

    fn answer_early(&self, why: Left) {
        let request = &self.ending;
        let (left, error) = match why {
            Left::Late => (LEFT_LATE, node::NodeError::Deadline),
            Left::Killed => (LEFT_KILLED, node::NodeError::Interrupted),
        };
        request.left.store(left, Ordering::Release);
        let unanswered = request.unanswered.lock().take();
        if let Some(unanswered) = unanswered {
            request.answer(unanswered, Err(error.into()));
        }
    }
}
