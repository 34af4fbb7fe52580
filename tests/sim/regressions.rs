//! Seeds that found something once. They lose their meaning when the simulation itself draws otherwise;
//! keep them as long as they are cheap.

use crate::replayed_seed;
use crate::run;
use crate::trace::Trace;

fn pinned(seeds: &[u64]) {
    if replayed_seed().is_none() {
        for seed in seeds {
            run(*seed, Trace::silent());
        }
    }
}

/// A leader cut its log by what members said that they had applied, beyond what it knew them to hold.
#[test]
fn the_log_is_kept_that_a_leader_may_send_again() {
    pinned(&[45, 48]);
}

/// A stale refusal took raft-rs back behind what a peer had acknowledged, and behind the cut.
#[test]
fn a_stale_refusal_does_not_ask_for_entries_that_were_cut() {
    pinned(&[46]);
}
