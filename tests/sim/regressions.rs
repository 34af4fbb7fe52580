//! Seeds that found something once.

use crate::replayed_seed;
use crate::run;
use crate::trace::Trace;

fn pinned(seed: u64) {
    if replayed_seed().is_none() {
        run(seed, Trace::silent());
    }
}
