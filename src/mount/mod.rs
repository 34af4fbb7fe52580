//! The FUSE side: turns what the kernel asks into queries and commands, and keeps the kernel's
//! caches no newer and no older than DESIGN section 3 allows.
//!
//! [`Mount::start`] mounts and serves; everything else is private. The layers, outermost first:
//!
//! | file | owns |
//! |---|---|
//! | `mounting`, `options`, `mount_point`, `mount_error`, `sys` | mounting, remounting, unmounting, and what can be wrong |
//! | `root` | which directory the mount shows as its root |
//! | `filesystem`, `requests`, `dispatch`, `operation` | fuser's trait: decodes a request, runs it, sends the reply |
//! | `waiting`, `session_threads`, `signals`, `late` | who waits for long: answered when killed, and at the deadline at the latest |
//! | `attributes`, `names`, `renames`, `directories`, `open_files`, `file_io`, `space`, `xattrs`, `locks` | one method per operation |
//! | `core`, `flushing` | what operations share: stable reads, mutations, committing buffers |
//! | `open_table`, `buffer`, `extents` | open files and the bytes they have not committed yet |
//! | `passthrough` | which files the kernel reads by itself |
//! | `kernel_cache`, `kernel_names`, `kernel_directories`, `directory_drops`, `observer`, `notify`, `name_drops` | what the kernel may remember, and making it forget |
//! | `times`, `errors` | conversions |
//!
//! An operation never blocks its session thread: it is a future, polled once there and handed to
//! the runtime only if it has to wait. No lock is held across an await, and none while the kernel
//! is being notified.

mod attributes;
mod buffer;
mod core;
mod credentials;
mod directories;
mod directory_drops;
mod dispatch;
mod errors;
mod extents;
mod file_io;
mod filesystem;
mod flushing;
mod kernel_cache;
mod kernel_directories;
mod kernel_names;
mod late;
mod locks;
mod mount_error;
mod mount_point;
mod mounting;
mod name_drops;
mod names;
mod notify;
mod observer;
mod open_files;
mod open_table;
mod operation;
mod options;
mod passthrough;
mod renames;
mod requests;
mod root;
mod session_threads;
mod signals;
mod space;
mod sys;
mod times;
mod waiting;
mod xattrs;

pub use mount_error::MountError;
pub use mount_point::absolute;
pub use mounting::{Mount, MountOptions};
pub use options::{MountFlags, OptionError, Wanted};
