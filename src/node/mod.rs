//! The driver: runs the core and the stores, and is what the mount and the services talk to.
//!
//! [`Handle`] is its face. Nothing in here decides what may be read or acknowledged: `consensus`
//! does, and the threads here execute.
//!
//! | thread | does |
//! |---|---|
//! | `core` | the streams to the peers, and the task that owns the core; never blocks; has the mount forget what received entries will change, where that waits for nothing |
//! | `log` | appends to the Raft log and syncs it, as one write for all that waits |
//! | `apply` | has the mount forget what received entries will change; applies committed ones: backing files, state |
//! | `merge` | brings stages in place |
//! | `checksums` | makes checksums of files that have become quiet, where nobody else needs the disk |
//! | `snapshot` | writes snapshot files and cuts the log behind them |

mod apply;
mod blocks;
mod checksums;
mod clock;
mod deadline;
mod divergence;
mod driver;
mod durability;
mod encoding;
mod fatal;
mod fetch;
mod handle;
mod healing;
mod install;
mod invalidate;
mod live_time;
mod locks;
mod log_length;
mod log_writer;
mod look;
mod lost;
mod member_table;
mod members;
mod merger;
mod mutations;
mod observers;
mod pace;
mod removals;
mod scrub;
mod scrub_file;
mod session;
mod shared;
mod snapshots;
mod space;
mod staging;
mod start;
mod status;
mod survey;
mod sweep;
mod touches;
mod transport;
mod wall_clocks;

pub use apply::{answers_here, without_answering};
pub use blocks::{Block, Examined};
pub use clock::{monotonic, wall};
pub use deadline::{Caller, Deadline, Left};
pub use durability::Synced;
pub use encoding::{DecodeError, Encoded, Encoder, Encoding};
pub use fatal::{Fatal, FatalKind};
pub use fetch::{Fetched, Given, Missing, Wanted};
pub use handle::{Handle, NodeError, Pending};
pub use locks::Locked;
pub use look::Look;
pub use lost::{Fate, LostFile, LostOptions};
pub use member_table::Members;
pub use members::MemberRefusal;
pub use observers::Observer;
pub use pace::Pace;
pub use removals::{Heard, Removal, Removals};
pub use scrub::{ScrubFinding, ScrubOptions, ScrubReport};
pub use space::{OnDisk, SpaceReport};
pub use staging::{OpenStage, StageError, Weighed};
pub use start::{Node, NodeConfig, StartError, run_promptly};
pub use status::RaftStatus;
pub use survey::{Lacked, Lacking};
pub use transport::{Answered, ToPeer, ToStage, Transport};
