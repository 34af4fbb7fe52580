//! quorumfs: a directory that several machines share and that survives the loss of any minority of
//! them.

pub mod consensus;
pub mod fs;
pub mod node;
pub mod store;
pub mod types;
