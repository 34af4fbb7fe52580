//! Whose deadline was over a moment ago. One system call can be several requests, and the kernel makes the next one
//! although the last has failed: a chown asks for capabilities first, a page fault reads ahead. Such a request has the
//! deadline of the call that it is a part of.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::types::Monotonic;

/// What a thread asks for within this time after a failure may be the same call still. (A program that tries again
/// as fast is told no sooner than this what it does not know.)
const SAME_CALL: Duration = Duration::from_millis(100);

/// Threads whose calls have failed at their deadline just now.
#[derive(Debug, Default)]
pub(super) struct Late {
    /// Looked at by each request.
    any: AtomicBool,
    /// When their calls began, and failed.
    threads: Mutex<HashMap<u32, (Monotonic, Instant)>>,
}

impl Late {
    /// A call of a thread that began then has failed now. Nothing where that is not known (0).
    pub(super) fn failed(&self, thread: u32, began: Monotonic, now: Instant) {
        if thread == 0 {
            return;
        }
        let mut threads = self.threads.lock();
        threads.retain(|_, (_, failed)| now < *failed + SAME_CALL);
        // Further requests of it make it last no longer.
        threads.entry(thread).or_insert((began, now));
        self.any.store(true, Ordering::Relaxed);
    }

    /// When the call began of which a thread makes a request now, where it has made others before.
    pub(super) fn began(&self, thread: u32, now: impl FnOnce() -> Instant) -> Option<Monotonic> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let now = now();
        let mut threads = self.threads.lock();
        threads.retain(|_, (_, failed)| now < *failed + SAME_CALL);
        self.any.store(!threads.is_empty(), Ordering::Relaxed);
        threads.get(&thread).map(|(began, _)| *began)
    }
}

#[cfg(test)]
mod tests {
    use super::{Instant, Late, Monotonic, Ordering, SAME_CALL};

    #[test]
    fn what_follows_at_once_is_the_same_call() {
        let (late, now) = (Late::default(), Instant::now());
        assert_eq!(late.began(7, || now), None);
        late.failed(7, Monotonic(70), now);
        let soon = now + SAME_CALL / 2;
        assert_eq!(late.began(7, || soon), Some(Monotonic(70)));
        assert_eq!(late.began(8, || soon), None, "another thread");
        late.failed(7, Monotonic(70), soon);
        late.failed(8, Monotonic(80), soon);
        let later = now + SAME_CALL;
        assert_eq!(late.began(7, || later), None, "counted from the first failure");
        assert_eq!(late.began(8, || later), Some(Monotonic(80)));
        assert_eq!(late.began(8, || later + SAME_CALL), None);
        late.failed(0, Monotonic(90), later);
        assert!(!late.any.load(Ordering::Relaxed), "requests have nothing to look for");
    }
}
