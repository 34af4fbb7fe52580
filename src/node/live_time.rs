//! For how long a quorum has answered this node: the time that counts for calls that are to wait without one.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;

use crate::types::Monotonic;

/// Breaks that are remembered. A call that has outlived more of them waits longer than it has to.
const SPELLS_MAX: usize = 4096;

/// When the lease was live.
#[derive(Debug)]
pub(super) struct LiveTime {
    /// More than this need not be told.
    kept: Duration,
    spells: Mutex<VecDeque<Spell>>,
}

/// A time without a break. The last one may reach into the future: as far as the lease does.
#[derive(Clone, Copy, Debug)]
struct Spell {
    from: Monotonic,
    until: Monotonic,
}

impl Spell {
    fn len(self) -> Duration {
        self.until.since(self.from)
    }
}

impl LiveTime {
    /// None so far. Of what is longer ago than `kept`, breaks left out, nothing is remembered.
    pub(super) fn new(kept: Duration) -> Self {
        Self { kept, spells: Mutex::default() }
    }

    /// The lease ends at `until`, as is known from `now` on; where that is over, there is none.
    pub(super) fn lease(&self, now: Monotonic, until: Monotonic) {
        let mut spells = self.spells.lock();
        match spells.back_mut().filter(|spell| now < spell.until) {
            Some(spell) => spell.until = until.max(now),
            None if now < until => {
                spells.push_back(Spell { from: now, until });
                self.forget(&mut spells);
            }
            None => {}
        }
    }

    fn forget(&self, spells: &mut VecDeque<Spell>) {
        // The last one has only begun.
        let ended = spells.len() - 1;
        let mut later: Duration = spells.iter().take(ended).map(|spell| spell.len()).sum();
        while let Some(first) = spells.front().filter(|_| spells.len() > 1) {
            later = later.saturating_sub(first.len());
            if later < self.kept && spells.len() <= SPELLS_MAX {
                break;
            }
            spells.pop_front();
        }
    }

    /// How much of the time between the two it was live; as much as is kept, where that is less.
    pub(super) fn between(&self, began: Monotonic, now: Monotonic) -> Duration {
        let spells = self.spells.lock();
        let since = spells.iter().rev().take_while(|spell| spell.until > began);
        since.map(|spell| spell.until.min(now).since(spell.from.max(began))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, LiveTime, Monotonic, SPELLS_MAX};

    const KEPT: Duration = Duration::from_secs(10);
    const START: Monotonic = Monotonic(1_000_000_000_000);

    fn at(milliseconds: u64) -> Monotonic {
        START + Duration::from_millis(milliseconds)
    }

    fn between(live: &LiveTime, began: u64, now: u64) -> u128 {
        live.between(at(began), at(now)).as_millis()
    }

    /// Renewed again and again, it is one time without a break.
    #[test]
    fn what_is_renewed_in_time_has_no_break() {
        let live = LiveTime::new(KEPT);
        assert_eq!(between(&live, 0, 100), 0);
        for now in (100..1000).step_by(100) {
            live.lease(at(now), at(now + 200));
        }
        assert_eq!(between(&live, 0, 950), 850);
        assert_eq!(between(&live, 500, 950), 450);
        assert_eq!(between(&live, 0, 5000), 1000, "no longer than the lease");
    }

    /// A short break takes away what it lasts, and not what was before.
    #[test]
    fn breaks_do_not_begin_it_anew() {
        let live = LiveTime::new(KEPT);
        for round in 0..5 {
            live.lease(at(1000 * round), at(1000 * round + 900));
        }
        assert_eq!(between(&live, 0, 4900), 4500);
        assert_eq!(between(&live, 450, 1450), 900);
        live.lease(at(4500), Monotonic(0));
        assert_eq!(between(&live, 0, 10_000), 4 * 900 + 500, "the session has ended");
    }

    /// However many breaks there are, calls end, and what is remembered is bounded.
    #[test]
    fn as_much_is_remembered_as_is_asked_for() {
        let live = LiveTime::new(KEPT);
        for round in 0..100 {
            live.lease(at(1000 * round), at(1000 * round + 900));
        }
        assert!(live.spells.lock().len() < 15);
        assert!(live.between(START, at(100_000)) >= KEPT);
        let restless = LiveTime::new(KEPT);
        for round in 0..20_000 {
            restless.lease(at(2 * round), at(2 * round + 1));
        }
        assert!(restless.spells.lock().len() <= SPELLS_MAX + 1);
    }
}
