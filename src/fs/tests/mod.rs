//! Tests of the state machine as its callers see it, one subject a file; [`World`] is what they share.

mod acls;
mod attributes;
mod checks;
mod encoding;
mod exactly_once;
mod locks;
mod lost;
mod members;
mod names;
mod orphans;
mod queries;
mod renames;
mod sessions;
mod space;
mod together;
mod unapplied;
mod world;
mod writes;

use self::world::{
    ROOT, World, at, bytes, digest_of, link, release, rename, resize, rmdir, session_end,
    session_open, time, unlink, write,
};
use super::proto::command::Op;
use super::{Applied, Change, Errno, Overlay, Unapplied, apply, check, proto, query};
use crate::types::{Ino, LogIndex, MountId};
