//! The command line: one file per subcommand, thin over [`crate::daemon`] and the admin service.
//!
//! A command fails with exit code 1 and one sentence on stderr; 2 is a usage error, clap's. Anything
//! that touches a mount point goes through `probe`, because a `stat` of a mount whose daemon hangs
//! never returns.

mod args;
mod cleanup;
mod client;
mod cluster;
mod dev;
mod leader;
mod member;
mod mount;
mod mountpoint;
mod preflight;
mod probe;
mod scrub;
mod serve;
mod status;
mod sys;

pub use args::main;
