//! Newtypes that every other module speaks in. Owns no behaviour beyond arithmetic and printing.

mod ids;
mod member;
mod range;
mod time;

pub use ids::{
    ClusterId, Generation, Ino, LogIndex, MountId, NodeId, Position, ProposalKey, Seq, SessionId,
    StageId, Term, VolumeId,
};
pub use member::Suffrage;
pub use range::ByteRange;
pub use time::{Monotonic, Timestamp};
