//! How a daemon tells people and service managers what it does: log lines, and systemd's
//! notifications. Called by `cli` and by whoever starts a daemon; knows nothing of the cluster.

mod log;
mod notify;
mod slog_drain;

pub use log::start_logging;
pub use notify::{notify_ready, notify_status, notify_stopping};
pub use slog_drain::raft_logger;
