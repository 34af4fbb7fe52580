//! Real daemons, each in a network namespace of its own, while networks, disks, clocks and processes fail: what
//! programs saw on all mounts must be linearizable, nothing that was acknowledged may be lost, and whoever is not
//! hit must not wait for long.
#![allow(clippy::disallowed_methods, reason = "programs are threads, and what they see is timed")]

#[path = "../support/linearizability.rs"]
mod linearizability;
#[path = "../support/mod.rs"]
mod support;

mod clocks;
mod descriptors;
mod faults;
mod history;
mod machines;
mod mixed;
mod network;
mod report;
mod stalls;
mod workload;
