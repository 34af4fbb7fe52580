//! That the simulation finds mistakes: each of these it must catch, within so many seeds. With the feature `mutants`
//! alone: `cargo nextest run --features mutants --test sim mutants`.

use std::panic::{self, AssertUnwindSafe, catch_unwind};

use quorumfs::mutants::{self, Mutant};

use crate::run;
use crate::trace::Trace;

const SEEDS: u64 = 300;

/// The first seed that shows it.
fn caught(mutant: Option<Mutant>, seeds: u64) -> Option<u64> {
    mutants::choose(mutant);
    let found = (0..seeds)
        .find(|seed| catch_unwind(AssertUnwindSafe(|| run(*seed, Trace::silent()))).is_err());
    mutants::choose(None);
    found
}

fn must_catch(all: &[Mutant]) {
    // What they say is of no interest; that they say something is.
    panic::set_hook(Box::new(|_| {}));
    let found: Vec<_> = all.iter().map(|mutant| (*mutant, caught(Some(*mutant), SEEDS))).collect();
    let _ = panic::take_hook();
    for (mutant, seed) in &found {
        println!(
            "{mutant:?}: {}",
            seed.map_or("not caught".to_owned(), |seed| format!("seed {seed}"))
        );
    }
    let missed: Vec<_> = found.iter().filter(|(_, seed)| seed.is_none()).collect();
    assert!(missed.is_empty(), "not caught within {SEEDS} seeds: {missed:?}");
}

/// Otherwise anything would be caught.
#[test]
fn mutants_without_a_mistake_nothing_is_caught() {
    assert_eq!(caught(None, 3), None);
}

#[test]
fn mutants_of_leases_are_caught() {
    must_catch(&[
        Mutant::ReadWithoutLease,
        Mutant::LeaseFromReceipt,
        Mutant::LeaseWithoutQuorum,
        Mutant::ExpireAtOnce,
        Mutant::ExpireEarly,
    ]);
}

#[test]
fn mutants_of_the_log_are_caught() {
    must_catch(&[
        Mutant::AcknowledgeBeforeFsync,
        Mutant::StableWithoutOne,
        Mutant::ClaimOfAnotherTerm,
        Mutant::ServeReceivedNames,
    ]);
}

#[test]
fn mutants_of_divergence_are_caught() {
    must_catch(&[
        Mutant::IgnoreDigests,
        Mutant::BelieveAllFiles,
        Mutant::HealFromAny,
        Mutant::TakeNotNowForLacking,
        Mutant::HoldNothingInDoubt,
    ]);
}

#[test]
fn mutants_of_the_state_are_caught() {
    must_catch(&[
        Mutant::SkipDedup,
        Mutant::OutliveSession,
        Mutant::OutliveProposer,
        Mutant::GrantAnyLock,
        Mutant::FillWithOlder,
        Mutant::FillAnother,
    ]);
}
