//! How fast bytes may be fetched that nobody waits for: a token bucket. Pure.

use std::time::Duration;

use crate::types::Monotonic;

/// What may be taken at once after a pause: so much time's worth.
const BURST: Duration = Duration::from_millis(250);
/// The smallest piece that is still worth a request.
const SMALLEST: u64 = 64 << 10;

/// Bytes per second; a bucket that may be overdrawn, after which one has to wait.
#[derive(Debug)]
pub(super) struct Bucket {
    /// None: unlimited.
    rate: Option<f64>,
    /// Below 0 where it is overdrawn.
    left: f64,
    at: Monotonic,
}

impl Bucket {
    /// Full. A rate of 0 is no limit.
    pub(super) fn new(rate: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
        let rate = (rate > 0).then_some(rate as f64);
        Self { rate, left: rate.map_or(0.0, burst), at: Monotonic(0) }
    }

    /// How long to wait before anything may be taken.
    pub(super) fn wait(&mut self, now: Monotonic) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let passed = now.since(self.at).as_secs_f64();
        self.at = now.max(self.at);
        self.left = (self.left + passed * rate).min(burst(rate));
        Duration::try_from_secs_f64(-self.left / rate).unwrap_or(Duration::ZERO)
    }

    /// Takes bytes, which may overdraw it.
    pub(super) fn take(&mut self, bytes: u64) {
        if self.rate.is_some() {
            #[expect(clippy::cast_precision_loss, reason = "a piece is small")]
            let bytes = bytes as f64;
            self.left -= bytes;
        }
    }

    /// The most bytes to ask for at once, so that a low rate is not one long wait after the other.
    pub(super) fn piece(&self, most: u64) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive")]
        let piece = self.rate.map_or(most, |rate| burst(rate) as u64);
        piece.clamp(SMALLEST.min(most), most)
    }
}

fn burst(rate: f64) -> f64 {
    rate * BURST.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::{Bucket, Duration, Monotonic, SMALLEST};

    const BEGIN: Monotonic = Monotonic(0);

    const MIB: u64 = 1 << 20;

    /// Takes whatever it may for some time; how many bytes those are.
    fn taken(bucket: &mut Bucket, from: Monotonic, time: Duration, piece: u64) -> u64 {
        let (mut now, mut bytes) = (from, 0);
        loop {
            now = now + bucket.wait(now);
            if now >= from + time {
                return bytes;
            }
            bucket.take(piece);
            bytes += piece;
        }
    }

    #[test]
    fn the_rate_is_kept_whatever_the_piece() {
        for piece in [4 << 10, 100_000, MIB, 5 * MIB] {
            let mut bucket = Bucket::new(2 * MIB);
            let bytes = taken(&mut bucket, BEGIN, Duration::from_secs(60), piece);
            assert!(bytes >= 120 * MIB, "{bytes} in pieces of {piece}");
            assert!(bytes <= 120 * MIB + MIB / 2 + piece, "{bytes} in pieces of {piece}");
        }
    }

    #[test]
    fn a_pause_does_not_add_up() {
        let mut bucket = Bucket::new(MIB);
        taken(&mut bucket, BEGIN, Duration::from_secs(1), 10_000);
        let hour = BEGIN + Duration::from_secs(3600);
        let bytes = taken(&mut bucket, hour, Duration::from_secs(1), 10_000);
        assert!(bytes <= MIB + MIB / 4 + 10_000, "{bytes}");
    }

    #[test]
    fn no_rate_is_no_limit() {
        let mut bucket = Bucket::new(0);
        for _ in 0..1000 {
            assert_eq!(bucket.wait(BEGIN), Duration::ZERO);
            bucket.take(u64::MAX >> 10);
        }
        assert_eq!(bucket.piece(MIB), MIB);
    }

    #[test]
    fn pieces_fit_the_rate() {
        assert_eq!(Bucket::new(1).piece(MIB), SMALLEST);
        assert_eq!(Bucket::new(MIB).piece(MIB), MIB / 4);
        assert_eq!(Bucket::new(1 << 40).piece(MIB), MIB);
        assert_eq!(Bucket::new(1).piece(100), 100);
    }
}
