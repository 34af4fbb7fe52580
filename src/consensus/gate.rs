//! Whether a read may be served now.

use std::time::Duration;

use crate::types::{LogIndex, Monotonic};

/// The two things that a strong read needs: a live lease of this node's session, and that what it
/// reads was last changed at an index which every mount of the roster shows. Small and `Copy`, so that
/// readers decide without asking the core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadGate {
    /// The lease ends here, by this node's own clock.
    pub lease_until: Monotonic,
    /// Everything up to this index is shown by the whole roster.
    pub stable: LogIndex,
}

impl ReadGate {
    /// Whether what was last changed at `mod_index` may be served at `now`.
    #[must_use]
    pub fn may_serve(self, now: Monotonic, mod_index: LogIndex) -> bool {
        now < self.lease_until && mod_index <= self.stable
    }

    /// For how long from `now` this node's state is at most `age` old: nothing that was committed longer ago
    /// is missing. The leader renews nobody who lacks what was committed half a TTL before, and the lease
    /// runs for a TTL from when the renewal was asked for.
    #[must_use]
    pub fn fresh_left(self, now: Monotonic, session_ttl: Duration, age: Duration) -> Duration {
        if self.lease_until == Monotonic(0) {
            return Duration::ZERO;
        }
        (self.lease_until + age).since(now + session_ttl + session_ttl / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, Monotonic, ReadGate};

    /// What was asked for 500 ms ago and half a TTL is how old the state may be.
    #[test]
    fn age() {
        let (second, ttl) = (Duration::from_secs(1), Duration::from_secs(2));
        let now = Monotonic(0) + 100 * second;
        let asked = now - second / 2;
        let gate = ReadGate { lease_until: asked + ttl, ..ReadGate::default() };
        assert_eq!(gate.fresh_left(now, ttl, 3 * second / 2), Duration::ZERO);
        assert_eq!(gate.fresh_left(now, ttl, 2 * second), second / 2);
        assert_eq!(gate.fresh_left(now + 8 * second, ttl, 10 * second), second / 2);
        let never = ReadGate::default();
        assert_eq!(never.fresh_left(Monotonic(1), ttl, 1000 * second), Duration::ZERO);
    }
}
