//! Disks that fail, fill up, or give back something else than they were given: one replica stops, stays down with a
//! reason, or heals; the cluster goes on, and nothing that was fsynced is lost or another.
#![allow(clippy::disallowed_methods, reason = "waits with deadlines, and starts programs")]

mod daemon;
mod damaged;
mod full;
mod injected;
mod loops;
mod lost;
mod starts;
#[path = "../support/mod.rs"]
mod support;

/// Bytes none of which is zero, different for each seed.
fn pattern(seed: usize, len: usize) -> Vec<u8> {
    let byte =
        |at: usize| u8::try_from((at / 512 * 31 + at + seed * 101) % 255).expect("small") + 1;
    (0..len).map(byte).collect()
}
