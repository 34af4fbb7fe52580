//! The threads that take requests in.
//!
//! Few of them work, or they would only get in each other's way; the others stand by, and one of them takes the place of
//! each that is stuck. Nothing on such a thread is to wait for a disk. What does all the same (a record of the state, or an
//! inode of the local file system, that is not in memory) holds up one thread then, and not the mount.
//!
//! A thread stands by at the end of a request, when it is answered. All of them take one in before that, at the
//! beginning: the library knows no other way to stop a thread.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

use super::waiting::WaitingCall;

/// Two work: that is best on two cores, and more gain nothing.
const WORKING: usize = 2;
/// How many there are altogether. From when a disk hangs until the lease is over, which then has every read wait before
/// it asks the disk, no more of them get stuck: each takes the place of another after a look of 200 ms.
pub(super) const ALL: usize = 16;

thread_local! {
    /// Of the mount that this thread takes requests in for.
    static OWN: RefCell<Option<Own>> = const { RefCell::new(None) };
}

/// The session threads of a mount.
#[derive(Debug, Default)]
pub(super) struct SessionThreads {
    places: Mutex<Vec<Arc<Place>>>,
    /// Those that neither stand by nor are stuck. Changed under the lock of `by`.
    working: AtomicUsize,
    by: Mutex<By>,
    /// Told when one is called, and at the end.
    called: Condvar,
}

/// Those that stand by.
#[derive(Debug, Default)]
struct By {
    standing: usize,
    /// How many of them are called to work.
    called: usize,
    /// The mount is gone.
    closed: bool,
}

/// What one thread is at.
#[derive(Default)]
struct Place {
    /// Odd while it works on a request, another number for each.
    turn: AtomicU64,
    call: Mutex<Option<Arc<dyn WaitingCall>>>,
    /// The turn at the last look.
    seen: AtomicU64,
    /// Another one works in its place.
    is_stuck: AtomicBool,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("turn", &self.turn).finish_non_exhaustive()
    }
}

/// A thread's own place. Threads end with their mount.
struct Own {
    threads: Arc<SessionThreads>,
    place: Arc<Place>,
}

impl Drop for Own {
    fn drop(&mut self) {
        self.threads.by.lock().closed = true;
        self.threads.called.notify_all();
    }
}

/// What was seen at a look.
#[derive(Default)]
pub(super) struct Seen {
    /// What threads are stuck in since the last look.
    pub(super) stuck: Vec<Arc<dyn WaitingCall>>,
    /// No thread has worked since then.
    pub(super) is_quiet: bool,
}

impl SessionThreads {
    /// This thread begins to work on a request.
    pub(super) fn begin(self: &Arc<Self>, call: Arc<dyn WaitingCall>) {
        OWN.with_borrow_mut(|own| {
            let own = own.get_or_insert_with(|| self.join());
            *own.place.call.lock() = Some(call);
            own.place.turn.fetch_add(1, Ordering::SeqCst);
        });
    }

    /// It is done with that.
    pub(super) fn end(self: &Arc<Self>) {
        OWN.with_borrow(|own| {
            let Some(Own { place, .. }) = own else { return };
            place.turn.fetch_add(1, Ordering::SeqCst);
            let call = place.call.lock().take();
            drop(call);
            if place.is_stuck.load(Ordering::SeqCst) {
                let _by = self.by.lock();
                place.is_stuck.store(false, Ordering::SeqCst);
                self.working.fetch_add(1, Ordering::Relaxed);
            }
        });
        if self.working.load(Ordering::Relaxed) > WORKING {
            self.stand_by();
        }
    }

    fn join(self: &Arc<Self>) -> Own {
        let place = Arc::<Place>::default();
        self.places.lock().push(place.clone());
        let _by = self.by.lock();
        self.working.fetch_add(1, Ordering::Relaxed);
        Own { threads: self.clone(), place }
    }

    fn stand_by(&self) {
        let mut by = self.by.lock();
        if self.working.load(Ordering::Relaxed) <= WORKING || by.closed {
            return;
        }
        self.working.fetch_sub(1, Ordering::Relaxed);
        by.standing += 1;
        while by.called == 0 && !by.closed {
            self.called.wait(&mut by);
        }
        by.called = by.called.saturating_sub(1);
        by.standing -= 1;
    }

    /// Whether any thread is at work.
    pub(super) fn is_any_busy(&self) -> bool {
        self.places.lock().iter().any(|place| is_busy(place.turn.load(Ordering::SeqCst)))
    }

    /// Looks at all of them; calls another one for each that is stuck.
    pub(super) fn look(&self) -> Seen {
        let mut seen = Seen { is_quiet: true, ..Seen::default() };
        for place in &*self.places.lock() {
            let turn = place.turn.load(Ordering::SeqCst);
            let before = place.seen.swap(turn, Ordering::Relaxed);
            seen.is_quiet &= turn == before && !is_busy(turn);
            if turn == before && is_busy(turn) {
                seen.stuck.extend(place.call.lock().clone());
                self.replace(place, turn);
            }
        }
        seen
    }

    fn replace(&self, place: &Place, turn: u64) {
        let mut by = self.by.lock();
        if place.turn.load(Ordering::SeqCst) != turn || place.is_stuck.swap(true, Ordering::SeqCst)
        {
            return;
        }
        self.working.fetch_sub(1, Ordering::Relaxed);
        if by.standing > by.called {
            by.called += 1;
            self.working.fetch_add(1, Ordering::Relaxed);
            self.called.notify_one();
        }
    }
}

fn is_busy(turn: u64) -> bool {
    turn % 2 == 1
}

#[cfg(test)]
mod tests {
    use std::thread::JoinHandle;
    use std::time::{Duration, Instant};

    use crossbeam_channel::{Sender, bounded};

    use super::{Arc, Ordering, SessionThreads, WORKING, WaitingCall};
    use crate::node::Left;

    struct Call;

    impl WaitingCall for Call {
        fn thread(&self) -> u32 {
            0
        }

        fn is_late(&self) -> bool {
            false
        }

        fn answer_early(&self, _why: Left) {}
    }

    /// A thread that works on each request until it is told that that is done.
    fn thread(
        threads: &Arc<SessionThreads>,
        requests: &crossbeam_channel::Receiver<crossbeam_channel::Receiver<()>>,
    ) -> JoinHandle<()> {
        let (threads, requests) = (threads.clone(), requests.clone());
        std::thread::spawn(move || {
            for request in requests {
                threads.begin(Arc::new(Call));
                let _ = request.recv();
                threads.end();
            }
        })
    }

    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline, "waited for {what}");
            std::thread::yield_now();
        }
    }

    /// However many get stuck, others go on, for as long as there are any; who comes back stands by; and the end of one
    /// is the end of all.
    #[test]
    fn others_take_the_place_of_those_that_are_stuck() {
        let threads = Arc::<SessionThreads>::default();
        let (send, requests) = bounded(64);
        let all: Vec<_> = (0..5).map(|_| thread(&threads, &requests)).collect();
        let ask = || -> Sender<()> {
            let (done, request) = bounded(1);
            send.send(request).expect("they listen");
            done
        };
        let standing = || threads.by.lock().standing;
        let first: Vec<_> = (0..5).map(|_| ask()).collect();
        wait_until("each to take one in", || requests.is_empty());
        drop(first);
        wait_until("those that are too many to stand by", || standing() == 5 - WORKING);
        wait_until("each to be done with it, or one would count as stuck in that", || {
            threads.places.lock().iter().all(|place| place.turn.load(Ordering::SeqCst) == 2)
        });
        let mut stuck: Vec<_> = (0..4).map(|_| ask()).collect();
        wait_until("all but one to be stuck", || {
            threads.look();
            let places = threads.places.lock();
            places.iter().filter(|place| place.is_stuck.load(Ordering::SeqCst)).count() == 4
        });
        assert_eq!(threads.look().stuck.len(), 4);
        drop(ask());
        wait_until("the last one to answer", || requests.is_empty());
        stuck.clear();
        wait_until("too many to stand by again", || {
            drop(ask());
            standing() == 5 - WORKING
        });
        drop(send);
        for thread in all {
            thread.join().expect("it ends");
        }
    }
}
