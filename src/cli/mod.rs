//! The command line: one file per subcommand, thin over [`crate::daemon`] and the admin service.
//!
//! A command fails with exit code 1 and one sentence on stderr; 2 is a usage error, clap's; `serve` fails with 3 where it is not
//! to be started again by itself (`fsck` has its own codes). Anything
//! that touches a mount point goes through `probe`, because a `stat` of a mount whose daemon hangs
//! never returns.

mod accept_lost;
mod args;
mod cleanup;
mod client;
mod cluster;
mod date;
mod dev;
mod export;
mod fsck;
mod guardian;
mod leader;
mod member;
mod mount;
mod mountpoint;
mod preflight;
mod probe;
mod recover;
mod scrub;
mod serve;
mod size;
mod status;
mod sys;

pub use args::main;
