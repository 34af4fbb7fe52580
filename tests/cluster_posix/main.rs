//! What POSIX promises to programs, on real mounts: where sharing matters from two of them at once, and
//! where it helps beside the same operations on a local file system.
#![allow(clippy::disallowed_methods, reason = "programs run beside threads that kill daemons")]

mod acls;
mod attributes;
mod beside;
mod large_directory;
mod moved;
mod names;
mod pjdfstest;
#[path = "../support/mod.rs"]
mod support;
mod working_directories;
mod xattrs;
