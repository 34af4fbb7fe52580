//! `quorumfs dev`: a whole cluster on this machine, each node a daemon of its own on loopback.
//!
//! Everything lies in one directory: `dev.json` says what the cluster is, `nK/` holds node K's
//! configuration, pid file, data, log and mount. Daemons outlive the command that starts them.

mod command;
mod down;
mod kill;
mod layout;
mod process;
mod report;
mod start;
mod up;
mod wait;

pub(crate) use command::{Command, run};
