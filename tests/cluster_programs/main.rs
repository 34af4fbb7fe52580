//! Real programs on clusters of three nodes, from several mounts where sharing matters. All of them are
//! long tests: `scripts/test --long 'binary(cluster_programs)'`. `scripts/setup --long` installs the programs.
#![allow(clippy::disallowed_methods, reason = "tests wait with deadlines and read what to do")]

mod copies;
mod crates;
mod git;
mod postgres;
mod python;
mod shell;
mod sqlite;
mod stress;
#[path = "../support/mod.rs"]
mod support;
mod tree;
