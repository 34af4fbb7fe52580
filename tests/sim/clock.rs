//! Virtual time, and each node's own idea of it.

use std::time::Duration;

use quorumfs::types::Monotonic;

use crate::random::Random;

/// Nanoseconds since the run began: the one true time, which no node knows.
pub type Nanos = u64;

pub const MICRO: Nanos = 1_000;
pub const MILLI: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000_000_000;

const MILLION: u64 = 1_000_000;
/// The core allows for rates that differ by 5%: the fastest clock is 4.9% faster than the slowest.
const SLOWEST_PPM: u64 = 976_500;
const FASTEST_PPM: u64 = 1_024_000;

/// A `CLOCK_BOOTTIME` with an offset and a rate of its own.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    since: Nanos,
    local_then: u64,
    rate_ppm: u64,
}

impl Clock {
    pub fn new(random: &mut Random, now: Nanos) -> Self {
        let mut clock = Self { since: now, local_then: 0, rate_ppm: MILLION };
        clock.reboot(random, now);
        clock
    }

    pub fn local(&self, now: Nanos) -> Monotonic {
        Monotonic(self.local_then + scale(now - self.since, self.rate_ppm, MILLION))
    }

    /// How long `local` takes by true time.
    pub fn true_length(&self, local: Duration) -> Nanos {
        let nanos = u64::try_from(local.as_nanos()).expect("a run is short");
        scale(nanos, MILLION, self.rate_ppm) + 1
    }

    /// From now on it runs at another rate.
    pub fn change_rate(&mut self, random: &mut Random, now: Nanos) {
        self.local_then = self.local(now).0;
        self.since = now;
        self.rate_ppm = match random.below(4) {
            0 => SLOWEST_PPM,
            1 => FASTEST_PPM,
            _ => random.within(SLOWEST_PPM, FASTEST_PPM),
        };
    }

    /// The machine was switched off and on: the clock starts again near zero.
    pub fn reboot(&mut self, random: &mut Random, now: Nanos) {
        self.change_rate(random, now);
        self.local_then = random.within(SECOND, 1000 * SECOND);
    }
}

fn scale(nanos: u64, numerator: u64, denominator: u64) -> u64 {
    let scaled = u128::from(nanos) * u128::from(numerator) / u128::from(denominator);
    u64::try_from(scaled).expect("a run is short")
}
