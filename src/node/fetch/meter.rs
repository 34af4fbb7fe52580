//! How fast bytes have come lately. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::Monotonic;

/// What counts as lately.
const LATELY: Duration = Duration::from_secs(5);
/// Between two marks.
const MARK: Duration = Duration::from_millis(250);

/// Counts bytes.
#[derive(Debug, Default)]
pub(super) struct Meter {
    total: u64,
    /// When there were how many, oldest first.
    marks: VecDeque<(Monotonic, u64)>,
}

impl Meter {
    /// So many more have come.
    pub(super) fn add(&mut self, now: Monotonic, bytes: u64) {
        self.forget(now);
        if self.marks.back().is_none_or(|(at, _)| now.since(*at) >= MARK) {
            self.marks.push_back((now, self.total));
        }
        self.total += bytes;
    }

    /// Bytes per second.
    pub(super) fn rate(&mut self, now: Monotonic) -> u64 {
        self.forget(now);
        let Some((since, before)) = self.marks.front() else { return 0 };
        let passed = now.since(*since).max(MARK).as_millis();
        let rate = u128::from(self.total - before) * 1000 / passed;
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    fn forget(&mut self, now: Monotonic) {
        while self.marks.front().is_some_and(|(at, _)| now.since(*at) > LATELY) {
            self.marks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, LATELY, MARK, Meter, Monotonic};

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut meter = Meter::default();
        let at = |step: u32| Monotonic(0) + step * Duration::from_millis(10);
        assert_eq!(meter.rate(at(0)), 0);
        (0..1000).for_each(|step| meter.add(at(step), 10));
        assert!((950..=1050).contains(&meter.rate(at(1000))));
        (1000..2000).for_each(|step| meter.add(at(step), 100));
        assert!((9500..=10500).contains(&meter.rate(at(2000))));
        assert!(meter.marks.len() <= (LATELY.as_millis() / MARK.as_millis() + 1) as usize);
        assert_eq!(meter.rate(at(2000) + 2 * LATELY), 0);
    }

    #[test]
    fn the_first_bytes_make_no_endless_rate() {
        let mut meter = Meter::default();
        meter.add(Monotonic(0), 1 << 20);
        assert_eq!(meter.rate(Monotonic(0)), 4 << 20);
    }
}
