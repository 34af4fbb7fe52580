//! What can be done with the data directory of a node that does not run: checking it, taking the tree out of it, making
//! a new cluster of it.
//!
//! Called by `cli`. Everything here holds the directory's lock. Looking never changes it: what a start would find is
//! found in a copy of what a start would change ([`Stopped`]), by the same code. Only [`fsck()`] with a repair, and
//! [`crate::store::refound`], write to it.

mod attributes;
mod export;
mod files;
mod fsck;
mod names;
mod outlook;
mod stopped;
#[cfg(test)]
mod tests;

pub use export::{ExportError, Exported, Failure, MissingRange, export};
pub use fsck::{Checks, Finding, Report, fsck};
pub use outlook::{Incomplete, Member, Outlook, outlook};
pub use stopped::{Entries, Stopped};
