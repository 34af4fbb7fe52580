//! The driver: runs the core and the stores, and is what the mount and the services talk to.
//!
//! [`Handle`] is its face. Nothing in here decides what may be read or acknowledged: `consensus`
//! does, and the threads here execute.
//!
//! | thread | does |
//! |---|---|
//! | `core` | the streams to the peers, and the task that owns the core; never blocks |
//! | `log` | appends to the Raft log and syncs it, as one write for all that waits |
//! | `apply` | applies committed entries: backing files, state, the mount's caches |
//! | `snapshot` | writes snapshot files and cuts the log behind them |

mod apply;
mod clock;
mod driver;
mod handle;
mod log_writer;
mod mutations;
mod session;
mod shared;
mod snapshots;
mod start;
mod status;
mod transport;

pub use clock::{monotonic, wall};
pub use handle::{Handle, NodeError, Observer, Pending};
pub use start::{Node, NodeConfig, run_promptly};
pub use status::RaftStatus;
pub use transport::Transport;
