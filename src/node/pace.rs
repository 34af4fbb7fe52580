//! How long a transfer that somebody else may slow down is waited for.

use std::time::Duration;

/// So much has to come within each spell of patience.
const STEP_BYTES: usize = 1 << 20;

/// Patience with whoever sends something long: not for each piece of it alone, or one that trickles would be waited for for
/// ever. Only waiting counts, not what is done with what has come.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    patience: Duration,
    left: Duration,
    bytes: usize,
}

impl Pace {
    /// Waits for `patience` for each mebibyte.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self { patience, left: patience, bytes: 0 }
    }

    /// How long the next piece may take.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.left
    }

    /// A piece of so many bytes has come after such a time.
    pub fn came(&mut self, bytes: usize, took: Duration) {
        self.left = self.left.saturating_sub(took);
        self.bytes += bytes;
        if self.bytes >= STEP_BYTES {
            (self.left, self.bytes) = (self.patience, self.bytes % STEP_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, Pace, STEP_BYTES};

    /// Seconds after which it is given up; nothing where it never is.
    fn given_up(piece: usize, every: Duration) -> Option<u64> {
        let mut pace = Pace::new(Duration::from_secs(30));
        let mut passed = Duration::ZERO;
        for _ in 0..1000 {
            if pace.left() < every {
                return Some((passed + pace.left()).as_secs());
            }
            pace.came(piece, every);
            passed += every;
        }
        None
    }

    #[test]
    fn who_trickles_is_given_up() {
        assert_eq!(given_up(1, Duration::from_secs(1)), Some(30));
        assert_eq!(given_up(0, Duration::from_secs(7)), Some(30));
        assert_eq!(given_up(STEP_BYTES / 10, Duration::from_secs(10)), Some(30));
    }

    #[test]
    fn who_is_only_slow_is_not() {
        assert_eq!(given_up(STEP_BYTES / 8, Duration::from_secs(2)), None);
        assert_eq!(given_up(STEP_BYTES, Duration::from_secs(29)), None);
        assert_eq!(given_up(3 * STEP_BYTES / 2, Duration::from_secs(29)), None);
    }
}
