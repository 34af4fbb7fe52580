//! Newtypes that every other module speaks in. Owns no behaviour beyond arithmetic and printing.

mod ids;
mod range;
mod time;

pub use ids::{
    ClusterId, Generation, Ino, LogIndex, MountId, NodeId, Position, ProposalKey, Seq, SessionId,
    StageId, Term, VolumeId,
};
pub use range::ByteRange;
pub use time::{Monotonic, Timestamp};
