//! fsck: whether a state keeps all its invariants.
//!
//! Called by tests after commands, and by `quorumfs check`. It holds in memory some 200 bytes and a name for
//! each inode, and of the rest one page at a time.

mod locks;
mod problem;
mod sessions;
mod tree;
mod walk;

pub use problem::Problem;
pub use walk::check;
