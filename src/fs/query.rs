//! Reads of the state. A stand-in: the real one is written elsewhere with these signatures.

use super::{View, proto};
use crate::types::Ino;

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Where a stream goes on after it.
    pub cookie: u64,
    /// The name.
    pub name: Vec<u8>,
    /// What it means.
    pub ino: Ino,
    /// Its kind.
    pub kind: proto::Kind,
}

/// The record of an inode.
///
/// # Errors
/// When the view cannot be read.
pub fn inode<V: View>(_view: &V, _ino: Ino) -> Result<Option<proto::Inode>, V::Error> {
    unimplemented!()
}

/// What a name of a directory means.
///
/// # Errors
/// When the view cannot be read.
pub fn lookup<V: View>(
    _view: &V,
    _parent: Ino,
    _name: &[u8],
) -> Result<Option<proto::Dentry>, V::Error> {
    unimplemented!()
}

/// At most `limit` names that come after a cookie.
///
/// # Errors
/// When the view cannot be read.
pub fn readdir<V: View>(
    _view: &V,
    _dir: Ino,
    _after_cookie: u64,
    _limit: usize,
) -> Result<Vec<DirEntry>, V::Error> {
    unimplemented!()
}

/// The value of an extended attribute.
///
/// # Errors
/// When the view cannot be read.
pub fn xattr<V: View>(_view: &V, _ino: Ino, _name: &[u8]) -> Result<Option<Vec<u8>>, V::Error> {
    unimplemented!()
}

/// The names of the extended attributes.
///
/// # Errors
/// When the view cannot be read.
pub fn xattr_names<V: View>(_view: &V, _ino: Ino) -> Result<Vec<Vec<u8>>, V::Error> {
    unimplemented!()
}
