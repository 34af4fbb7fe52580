//! The driver: runs the core and the stores, and is what the mount and the services talk to.
//!
//! [`Handle`] is its face. Nothing in here decides what may be read or acknowledged: `consensus`
//! does, and the driver executes.

mod handle;

pub use handle::{Handle, NodeError, Observer, Pending};
