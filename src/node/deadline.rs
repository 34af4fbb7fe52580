//! Until when somebody waits.
//!
//! A call on a mount has one [`Deadline`], from its arrival to its answer, however many waits there are in it: it
//! travels with the call (as a value of its task), and every wait of the node asks for it. Waits have no timers of
//! their own: they look at it at each tick (decision 0003), or in [`Handle::within`].

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::clock;
use super::handle::{Handle, NodeError};
use super::shared::Shared;
use crate::config::OnQuorumLoss;
use crate::types::Monotonic;

/// How often [`Handle::within`] looks.
const LOOK: Duration = Duration::from_millis(50);

tokio::task_local! {
    /// Of the call that is being worked on.
    static CURRENT: Deadline;
}

/// Why a call is not waited for any more: it was answered before its work has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Its deadline is over.
    Late,
    /// Its process is ending.
    Killed,
}

/// Whoever has made a call.
pub trait Caller: Send + Sync {
    /// Whether the call was answered already, and why.
    fn has_left(&self) -> Option<Left>;
}

/// Until when somebody waits.
#[derive(Clone)]
pub struct Deadline {
    began: Monotonic,
    whose: Whose,
}

#[derive(Clone)]
enum Whose {
    /// The node's own: what fails is tried again.
    Node,
    /// Bytes that were taken in: they outlive the call that brought them.
    Bytes,
    Call(Arc<dyn Caller>),
    /// A call that may take for ever, of which each wait has a deadline.
    LongCall(Arc<dyn Caller>),
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = match self.whose {
            Whose::Node => "node",
            Whose::Bytes => "bytes",
            Whose::Call(_) => "call",
            Whose::LongCall(_) => "long call",
        };
        f.debug_struct("Deadline").field("began", &self.began).field("whose", &whose).finish()
    }
}

impl Deadline {
    fn new(whose: Whose) -> Self {
        Self { began: clock::monotonic(), whose }
    }

    /// Of a call that arrived at that moment.
    #[must_use]
    pub fn of_call(began: Monotonic, caller: Arc<dyn Caller>) -> Self {
        Self { began, whose: Whose::Call(caller) }
    }

    /// Of work of the node itself that begins now: `op_timeout`, whatever is configured for calls.
    #[must_use]
    pub fn of_node() -> Self {
        Self::new(Whose::Node)
    }

    /// Of bytes that begin to be committed now. They are lost when it is over.
    #[must_use]
    pub fn of_bytes() -> Self {
        Self::new(Whose::Bytes)
    }

    /// Of a call that may wait for ever for what others have; not for a quorum.
    #[must_use]
    pub fn of_long_call(caller: Arc<dyn Caller>) -> Self {
        Self::new(Whose::LongCall(caller))
    }

    /// The one of the work that this is called in; the node's own where there is none.
    #[must_use]
    pub fn current() -> Self {
        let current = CURRENT.try_with(Self::clone).unwrap_or_else(|_| Self::of_node());
        match current.whose {
            Whose::LongCall(_) => Self::new(current.whose),
            Whose::Node | Whose::Bytes | Whose::Call(_) => current,
        }
    }

    /// Has it be the current one of some work.
    pub fn covers<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, work)
    }

    /// Whether whoever waits was answered already, and why.
    #[must_use]
    pub fn has_left(&self) -> Option<Left> {
        match &self.whose {
            Whose::Node | Whose::Bytes => None,
            Whose::Call(caller) | Whose::LongCall(caller) => caller.has_left(),
        }
    }

    /// Whether it is over. `counted` says how much of the time since a moment counts that is spent waiting.
    fn check(
        &self,
        now: Monotonic,
        timeout: Duration,
        counted: impl Fn(Monotonic) -> Duration,
    ) -> Result<(), NodeError> {
        match self.has_left() {
            Some(Left::Killed) => return Err(NodeError::Interrupted),
            Some(Left::Late) => return Err(NodeError::Deadline),
            None => {}
        }
        let spent = match self.whose {
            Whose::Node => now.since(self.began),
            Whose::Bytes | Whose::Call(_) | Whose::LongCall(_) => counted(self.began),
        };
        if spent >= timeout { Err(NodeError::Deadline) } else { Ok(()) }
    }
}

impl Shared {
    /// Whether a deadline is over: [`NodeError::Deadline`], or [`NodeError::Interrupted`].
    pub(super) fn check(&self, deadline: &Deadline) -> Result<(), NodeError> {
        let now = clock::monotonic();
        deadline.check(now, self.config.op_timeout, |began| self.counted(began, now))
    }

    /// How much of the time between the two counts that calls spend waiting.
    fn counted(&self, began: Monotonic, now: Monotonic) -> Duration {
        match self.config.on_quorum_loss {
            OnQuorumLoss::Block if !self.is_stopping() => self.gate.live.between(began, now),
            OnQuorumLoss::Block | OnQuorumLoss::Error => now.since(began),
        }
    }
}

impl Handle {
    /// Whether a deadline is over.
    ///
    /// # Errors
    /// [`NodeError::Deadline`] where it is, [`NodeError::Interrupted`] where the caller's process is ending.
    pub fn check(&self, deadline: &Deadline) -> Result<(), NodeError> {
        self.0.check(deadline)
    }

    /// Whether the deadline of a call that arrived at this moment is over.
    #[must_use]
    pub fn is_late(&self, began: Monotonic) -> bool {
        let now = clock::monotonic();
        self.0.counted(began, now) >= self.op_timeout()
    }

    /// Waits for something, no longer than until the current deadline.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, NodeError> {
        let mut work = pin!(work);
        // What is ready costs no timer.
        let first = poll_fn(|context| Poll::Ready(work.as_mut().poll(context)));
        match first.await {
            Poll::Ready(done) => Ok(done),
            Poll::Pending => self.within_deadline(&Deadline::current(), work).await,
        }
    }

    /// The same for a deadline that several waits share.
    pub(super) async fn within_deadline<T>(
        &self,
        deadline: &Deadline,
        work: impl Future<Output = T>,
    ) -> Result<T, NodeError> {
        let mut work = pin!(work);
        loop {
            if let Ok(done) = tokio::time::timeout(LOOK, &mut work).await {
                return Ok(done);
            }
            self.check(deadline)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU8, Ordering};
    use std::task::{Context, Poll, Waker};

    use super::{Caller, Deadline, Duration, Left, Monotonic, NodeError, Whose};

    const SECOND: Duration = Duration::from_secs(1);
    const TIMEOUT: Duration = Duration::from_secs(10);
    const BEGAN: Monotonic = Monotonic(1_000_000_000_000);

    #[derive(Default)]
    struct Program(AtomicU8);

    impl Caller for Program {
        fn has_left(&self) -> Option<Left> {
            [None, Some(Left::Late), Some(Left::Killed)]
                [usize::from(self.0.load(Ordering::Relaxed))]
        }
    }

    fn call() -> (Arc<Program>, Deadline) {
        let program = Arc::new(Program::default());
        (program.clone(), Deadline { began: BEGAN, whose: Whose::Call(program) })
    }

    /// Whether it is over some time after it began, of which so much counts.
    fn is_over(deadline: &Deadline, after: Duration, counted: Duration) -> bool {
        match deadline.check(BEGAN + after, TIMEOUT, |_| counted) {
            Ok(()) => false,
            Err(NodeError::Deadline) => true,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_call_has_one_deadline_from_its_arrival() {
        let (_, deadline) = call();
        assert!(!is_over(&deadline, 9 * SECOND, 9 * SECOND));
        assert!(is_over(&deadline, TIMEOUT, TIMEOUT));
    }

    /// Time without a quorum does not count for calls and their bytes that are to block; what the node does for
    /// itself fails all the same.
    #[test]
    fn without_a_quorum_the_clock_stands_still() {
        let (_, deadline) = call();
        let bytes = Deadline { began: BEGAN, whose: Whose::Bytes };
        let node = Deadline { began: BEGAN, whose: Whose::Node };
        for waits in [&deadline, &bytes] {
            assert!(!is_over(waits, 100 * TIMEOUT, Duration::ZERO));
            assert!(!is_over(waits, 100 * TIMEOUT, 9 * SECOND));
            assert!(is_over(waits, 100 * TIMEOUT, TIMEOUT));
        }
        assert!(is_over(&node, TIMEOUT, Duration::ZERO));
    }

    #[test]
    fn who_has_left_waits_no_longer() {
        let (program, deadline) = call();
        let check = || deadline.check(BEGAN, TIMEOUT, |_| Duration::ZERO);
        assert!(check().is_ok());
        program.0.store(1, Ordering::Relaxed);
        assert!(matches!(check(), Err(NodeError::Deadline)));
        program.0.store(2, Ordering::Relaxed);
        assert!(matches!(check(), Err(NodeError::Interrupted)));
    }

    #[test]
    fn it_travels_with_the_work() {
        let mut context = Context::from_waker(Waker::noop());
        let mut began = |of: Deadline| {
            let work = of.covers(async { Deadline::current().began });
            match pin!(work).poll(&mut context) {
                Poll::Ready(began) => began,
                Poll::Pending => panic!("it waits for nothing"),
            }
        };
        let (_, deadline) = call();
        assert_eq!(began(deadline), BEGAN);
        let long = Deadline { began: BEGAN, whose: Whose::LongCall(Arc::new(Program::default())) };
        assert_ne!(began(long), BEGAN, "each wait has its own");
        assert_ne!(Deadline::current().began, BEGAN);
    }
}
