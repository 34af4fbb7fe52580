//! Calls that wait, or that a session thread is stuck in, and one thread that looks after them: whoever is killed gets an
//! answer, and so does whoever's deadline is over while something here is stuck.
//!
//! The kernel waits for an answer once a request was read, whatever signals its process gets, and the library does not
//! pass on what it says of them: `/proc` has to be asked. The thread sleeps while nobody has waited for long.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::session_threads::SessionThreads;
use super::signals;
use crate::node::Left;

/// Whoever has waited for so long is looked at, and then again each time that this has gone by.
const LOOK: Duration = Duration::from_millis(200);

/// A call that is not answered yet.
pub(super) trait WaitingCall: Send + Sync {
    /// The thread that made it; 0 where it is not known here.
    fn thread(&self) -> u32;

    /// Whether its deadline is over, and it had time to say so itself.
    fn is_late(&self) -> bool;

    /// Answers it, unless that has happened meanwhile.
    fn answer_early(&self, why: Left);
}

/// The calls of a mount that wait.
pub(super) struct Waiting(Arc<Shared>);

#[derive(Default)]
struct Shared {
    calls: Mutex<Calls>,
    threads: Arc<SessionThreads>,
    /// The thread waits until there is something to look at. Set under the lock of `calls`.
    is_idle: AtomicBool,
    /// Told when one comes while the thread is idle, and at the end.
    came: Condvar,
}

#[derive(Default)]
struct Calls {
    /// In the order in which they came.
    waiting: BTreeMap<u64, Call>,
    last: u64,
    closed: bool,
}

/// One that is to be looked at, with its number where it has one.
type Found = (Option<u64>, Arc<dyn WaitingCall>);

struct Call {
    since: Instant,
    call: Arc<dyn WaitingCall>,
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("calls", &self.0.calls.lock().waiting.len()).finish()
    }
}

impl Waiting {
    /// None yet, and nobody looks.
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives none.
    pub(super) fn start(&self) -> io::Result<()> {
        let shared = self.0.clone();
        thread::Builder::new().name("fuse-waiting".into()).spawn(move || look_after(&shared))?;
        Ok(())
    }

    /// A session thread begins to work on one.
    pub(super) fn begin(&self, call: Arc<dyn WaitingCall>) {
        self.0.threads.begin(call);
        if self.0.is_idle.load(Ordering::SeqCst) {
            let _calls = self.0.calls.lock();
            self.0.came.notify_one();
        }
    }

    /// It is done with that. It may have to stand by from now on.
    pub(super) fn end(&self) {
        self.0.threads.end();
    }

    /// One has to wait. Answers its number, which is not 0.
    pub(super) fn enter(&self, call: Arc<dyn WaitingCall>) -> u64 {
        let mut calls = self.0.calls.lock();
        calls.last += 1;
        let number = calls.last;
        calls.waiting.insert(number, Call { since: Instant::now(), call });
        if self.0.is_idle.load(Ordering::SeqCst) {
            self.0.came.notify_one();
        }
        number
    }

    /// The one of that number does not wait any more; none has 0.
    pub(super) fn leave(&self, number: u64) {
        if number > 0 {
            let left = self.0.calls.lock().waiting.remove(&number);
            // Not under the lock: it may be the last that holds on to it.
            drop(left);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.calls.lock().closed = true;
        self.0.came.notify_one();
    }
}

fn look_after(shared: &Shared) {
    while let Some(calls) = shared.next() {
        for (number, call) in calls {
            let why = if call.is_late() {
                Some(Left::Late)
            } else {
                signals::is_dying(call.thread()).then_some(Left::Killed)
            };
            if let Some(why) = why {
                call.answer_early(why);
                let answered =
                    number.and_then(|number| shared.calls.lock().waiting.remove(&number));
                drop(answered);
            }
        }
    }
}

impl Shared {
    /// Those that have waited for long, with their numbers, and those that threads are stuck in: some time after the
    /// last look, where there may be any. Nothing at the end.
    fn next(&self) -> Option<Vec<Found>> {
        let mut calls = self.calls.lock();
        // Since the last look.
        let mut next_look = Instant::now() + LOOK;
        loop {
            if calls.closed {
                return None;
            }
            let now = Instant::now();
            if now < next_look {
                self.came.wait_until(&mut calls, next_look);
                continue;
            }
            let seen = self.threads.look();
            let long = calls.waiting.iter().take_while(|(_, call)| call.since + LOOK <= now);
            let long = long.map(|(number, call)| (Some(*number), call.call.clone()));
            let stuck = seen.stuck.into_iter().map(|call| (None, call));
            let found: Vec<_> = long.chain(stuck).collect();
            if !found.is_empty() {
                return Some(found);
            }
            if calls.waiting.is_empty() && seen.is_quiet {
                self.is_idle.store(true, Ordering::SeqCst);
                // Whoever has begun since the look may not have seen that.
                if !self.threads.is_any_busy() {
                    self.came.wait(&mut calls);
                }
                self.is_idle.store(false, Ordering::SeqCst);
            }
            next_look = Instant::now() + LOOK;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::{Arc, Duration, Left, Waiting, WaitingCall};

    struct Test {
        thread: u32,
        is_late: AtomicBool,
        answered: crossbeam_channel::Sender<Left>,
    }

    impl WaitingCall for Test {
        fn thread(&self) -> u32 {
            self.thread
        }

        fn is_late(&self) -> bool {
            self.is_late.load(Ordering::Relaxed)
        }

        fn answer_early(&self, why: Left) {
            self.answered.send(why).expect("the test listens");
        }
    }

    fn call(thread: u32) -> (Arc<Test>, crossbeam_channel::Receiver<Left>) {
        let (answered, answer) = crossbeam_channel::unbounded();
        (Arc::new(Test { thread, is_late: AtomicBool::new(false), answered }), answer)
    }

    const PATIENCE: Duration = Duration::from_secs(30);

    fn sleeper() -> Child {
        Command::new("sleep").arg("100").stdin(Stdio::null()).spawn().expect("it runs")
    }

    /// Whoever is late or dead is answered, once; the others go on waiting, and so does whoever is not known.
    #[test]
    fn only_who_has_left_is_answered() {
        let waiting = Waiting::new();
        waiting.start().expect("a thread");
        let mut killed = sleeper();
        let mut alive = sleeper();
        let (one, one_answered) = call(killed.id());
        let (two, two_answered) = call(alive.id());
        let (unknown, unknown_answered) = call(0);
        let numbers = [one.clone(), two.clone(), unknown.clone()].map(|call| waiting.enter(call));
        killed.kill().expect("it runs");
        killed.wait().expect("it ends");
        assert_eq!(one_answered.recv_timeout(PATIENCE), Ok(Left::Killed));
        unknown.is_late.store(true, Ordering::Relaxed);
        assert_eq!(unknown_answered.recv_timeout(PATIENCE), Ok(Left::Late));
        for number in numbers {
            waiting.leave(number);
        }
        drop(waiting);
        assert!(two_answered.try_recv().is_err(), "it lives, and is not late");
        assert!(one_answered.try_recv().is_err() && unknown_answered.try_recv().is_err(), "once");
        alive.kill().expect("it runs");
        alive.wait().expect("it ends");
    }

    /// The thread ends with the mount, and holds on to nobody.
    #[test]
    fn nobody_is_kept() {
        let waiting = Waiting::new();
        waiting.start().expect("a thread");
        let (call, _answered) = call(0);
        let number = waiting.enter(call.clone());
        assert_eq!(Arc::strong_count(&call), 2);
        waiting.leave(number);
        waiting.leave(0);
        assert_eq!(Arc::strong_count(&call), 1);
        let shared = Arc::downgrade(&waiting.0);
        drop(waiting);
        let deadline = std::time::Instant::now() + PATIENCE;
        while shared.upgrade().is_some() {
            assert!(std::time::Instant::now() < deadline, "the thread goes on");
            std::thread::yield_now();
        }
    }
}
