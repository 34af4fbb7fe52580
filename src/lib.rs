//! quorumfs: a directory that several machines share and that survives the loss of any minority of
//! them.

pub mod fs;
pub mod mount;
pub mod node;
pub mod store;
pub mod types;
