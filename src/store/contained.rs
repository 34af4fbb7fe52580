//! Panics of the engines below this store that are errors: raft-engine's way of reporting a failed fsync, sled's of
//! reporting damage. Every other panic ends the daemon.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Calls that are contained on whatever thread.
static EVERYWHERE: AtomicU32 = AtomicU32::new(0);

/// A panic that was caught.
#[derive(Debug)]
pub(super) struct Panicked;

/// Runs a call of an engine that may panic on this thread.
pub(super) fn contain<T>(call: impl FnOnce() -> T) -> Result<T, Panicked> {
    DEPTH.set(DEPTH.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(call));
    DEPTH.set(DEPTH.get() - 1);
    result.map_err(|_| Panicked)
}

/// While this is held, panics of all threads are contained: for a call that works on threads of its own, which hand their
/// panics on.
pub(super) fn contain_everywhere() -> impl Drop {
    struct Everywhere;
    impl Drop for Everywhere {
        fn drop(&mut self) {
            EVERYWHERE.fetch_sub(1, Ordering::SeqCst);
        }
    }
    EVERYWHERE.fetch_add(1, Ordering::SeqCst);
    Everywhere
}

/// Whether a panic on this thread is caught, and becomes an error.
#[must_use]
pub fn is_contained() -> bool {
    DEPTH.get() > 0 || EVERYWHERE.load(Ordering::SeqCst) > 0
}

#[cfg(test)]
mod tests {
    use super::{contain, contain_everywhere, is_contained};

    #[test]
    fn threads_of_an_engine_are_contained_too() {
        let held = contain_everywhere();
        assert!(std::thread::spawn(is_contained).join().expect("no panic"));
        drop(held);
    }

    #[test]
    fn only_what_is_within_is_contained() {
        assert!(!is_contained());
        assert!(contain(|| contain(is_contained).expect("no panic")).expect("no panic"));
        assert!(contain(|| panic!("as an engine does")).is_err());
        assert!(!is_contained());
    }
}
