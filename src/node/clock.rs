//! This machine's clocks.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::types::{Monotonic, Timestamp};

/// `CLOCK_BOOTTIME`: goes on while the machine sleeps, so that a lease cannot outlive a suspend.
pub fn monotonic() -> Monotonic {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    Monotonic(tv_sec.unsigned_abs() * 1_000_000_000 + tv_nsec.unsigned_abs())
}

/// Wall-clock time.
pub fn wall() -> Timestamp {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Realtime);
    Timestamp {
        seconds: tv_sec,
        nanos: u32::try_from(tv_nsec).expect("the kernel keeps nanoseconds below 10^9"),
    }
}

/// A hybrid logical clock: milliseconds in the upper 48 bits, a counter below. Never repeats, never
/// goes back, and follows the wall clock as far as that allows.
#[derive(Debug, Default)]
pub struct HybridClock(AtomicU64);

impl HybridClock {
    /// The next reading.
    pub fn next(&self) -> u64 {
        let now = wall();
        let millis = now.seconds.unsigned_abs() * 1000 + u64::from(now.nanos / 1_000_000);
        let wall = millis << 16;
        let before = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(wall.max(last + 1)))
            .expect("the update always gives a value");
        wall.max(before + 1)
    }

    /// Takes note of another node's reading, so that what follows it here reads later.
    pub fn observe(&self, reading: u64) {
        self.0.fetch_max(reading, Ordering::Relaxed);
    }
}
