//! The guardian: a tiny second process beside each daemon, which fences the daemon's mounts when it dies
//! (DESIGN, section 3), so that a killed daemon costs the others milliseconds and leaves no dead mount.
//!
//! It is the same binary, executed anew by [`Guardian::start`] before the first mount, and shares no thread with the
//! daemon: `quorumfs guardian` runs [`run`]. It must never wait for the cluster, nor look into a mount.
//!
//! | file | owns | runs in |
//! |---|---|---|
//! | `keeping` | starting the guardian, telling it everything, starting another one when it dies | the daemon |
//! | `watched` | the set of inodes that a mount's kernel may answer for by itself, in shared memory | both |
//! | `protocol` | what the daemon tells it, and descriptors that come along | both |
//! | `process` | waiting for the daemon's death, and what follows | the guardian |
//! | `fence` | one mount: the kernel forgets, the connection is aborted, the mount is detached | the guardian |
//! | `sys` | shared memory and inherited descriptors | both |
//!
//! **Why a fenced session may be expired at once.** A session may end early only if nothing is served under it any
//! more. The daemon's end of the socket closes when its last thread has let go of its descriptors, so no thread is
//! within a system call any more and no reply can reach a kernel later. The connection is aborted, whereupon every request
//! fails; that it is aborted is read from its own descriptor. What the kernel still holds is dropped then: attributes, ACLs and
//! pages of the inodes in `watched`, names by the epoch. This is done for all mounts of the daemon, strong or weak, and only
//! where all of it worked are the peers told. What fails, or what is not known, costs a session's TTL and nothing else.
//! Two things are let be, as they are of a file that was open before a change: passthrough reads by descriptors
//! that are open, and ACLs of inodes that nobody has open, which no check of permissions uses without attributes.

mod fence;
mod keeping;
mod process;
mod protocol;
mod sys;
mod watched;

pub use keeping::{Guardian, Watch};
pub use process::run;
pub use protocol::Report;
pub use sys::close_inherited;
pub use watched::{Slot, Watched};
