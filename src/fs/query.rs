//! Reads of the state. Each is right at one applied index only where the whole of it runs on a view
//! that stays as it is meanwhile. What is absent counts as last changed with its directory: to judge
//! a name that was not found, look at the `mod_index` of its parent.

use super::keys::{self, Counter, KeyRange, Parsed};
use super::pages::Pages;
use super::proto;
use super::record::{self, CorruptRecord, Records};
use super::view::{Pair, View};
use crate::types::{Ino, NodeId, SessionId, Suffrage};

/// Pairs of small records that are read together.
const PAGE: usize = 256;
/// Pairs of attributes that are read together: their values may have 64 KiB each.
const XATTR_PAGE: usize = 16;

/// A name of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its place: listings go on after it. At least 3, at most `i64::MAX`.
    pub cookie: u64,
    /// The name.
    pub name: Vec<u8>,
    /// What it means.
    pub ino: Ino,
    /// The kind of that inode.
    pub kind: proto::Kind,
}

/// An inode, orphan or not.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn inode<V: Records>(view: &V, ino: Ino) -> Result<Option<proto::Inode>, V::Error> {
    view.record(&keys::inode(ino))
}

/// How many inode numbers were given out so far; none is ever used again.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn inos_given<V: Records>(view: &V) -> Result<u64, V::Error> {
    Ok(view.record(&keys::counter(Counter::NextIno))?.unwrap_or(0))
}

/// What a name means in a directory.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn lookup<V: Records>(
    view: &V,
    parent: Ino,
    name: &[u8],
) -> Result<Option<proto::Dentry>, V::Error> {
    view.record(&keys::dentry(parent, name))
}

/// Names of a directory after a cookie, in the order of their cookies: `limit` of them (at least
/// one), and more only where the last ones share a cookie. Fewer than `limit` means that there are
/// no more. `.` and `..` are not among them.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn readdir<V: Records>(
    view: &V,
    directory: Ino,
    after_cookie: u64,
    limit: usize,
) -> Result<Vec<DirEntry>, V::Error> {
    let limit = limit.max(1);
    let range = keys::dentries(directory, after_cookie);
    let mut pairs = view.scan(&range.from, &range.to, limit)?;
    if pairs.len() == limit {
        let rest = collided(directory, &pairs)?;
        let mut pages = Pages::new(rest, PAGE);
        while let Some(page) = pages.next(view)? {
            pairs.extend(page);
        }
    }
    pairs.into_iter().map(|(key, value)| Ok(dir_entry(&key, &value)?)).collect()
}

/// An extended attribute's value.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn xattr<V: View>(view: &V, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>, V::Error> {
    view.get(&keys::xattr(ino, name))
}

/// The names of an inode's extended attributes, in their order.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn xattr_names<V: View>(view: &V, ino: Ino) -> Result<Vec<Vec<u8>>, V::Error> {
    let mut names = Vec::new();
    let mut pages = Pages::new(keys::xattrs(ino), XATTR_PAGE);
    while let Some(page) = pages.next(view)? {
        for (key, _) in page {
            if let Some(Parsed::Xattr { name, .. }) = keys::parse(&key) {
                names.push(name.to_vec());
            }
        }
    }
    Ok(names)
}

/// A live session.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn session<V: Records>(
    view: &V,
    session: SessionId,
) -> Result<Option<proto::Session>, V::Error> {
    view.record(&keys::session(session))
}

/// The live sessions, oldest first.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn sessions<V: Records>(view: &V) -> Result<Vec<(SessionId, proto::Session)>, V::Error> {
    collect(view, keys::sessions(), |key, value| match keys::parse(key) {
        Some(Parsed::Session { session }) => Ok((session, record::decode(key, value)?)),
        _ => Err(record::bad_key(key)),
    })
}

/// The ids of the live sessions, ascending.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn session_ids<V: Records>(view: &V) -> Result<Vec<SessionId>, V::Error> {
    collect(view, keys::sessions(), |key, _| match keys::parse(key) {
        Some(Parsed::Session { session }) => Ok(session),
        _ => Err(record::bad_key(key)),
    })
}

/// The ended sessions of a node that are still remembered, oldest first.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn tombstones<V: Records>(
    view: &V,
    node: NodeId,
) -> Result<Vec<(SessionId, proto::Session)>, V::Error> {
    collect(view, keys::tombstones(node), |key, value| match keys::parse(key) {
        Some(Parsed::Tombstone { session, .. }) => Ok((session, record::decode(key, value)?)),
        _ => Err(record::bad_key(key)),
    })
}

/// What a path of names below the root leads to, in one state; nothing where a name is not there. Symbolic links are not
/// followed.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn resolve<V: Records>(view: &V, path: &[u8]) -> Result<Option<Ino>, V::Error> {
    let mut ino = Ino::ROOT;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        let Some(dentry) = lookup(view, ino, name)? else { return Ok(None) };
        ino = Ino(dentry.ino);
    }
    Ok(Some(ino))
}

/// The members of the cluster, by id.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn members<V: Records>(view: &V) -> Result<Vec<proto::Member>, V::Error> {
    collect(view, keys::members(), record::decode)
}

/// What a member is to be; nothing where it was announced and has not joined.
#[must_use]
pub fn suffrage(member: &proto::Member) -> Option<Suffrage> {
    let wanted = if member.learner { Suffrage::Learner } else { Suffrage::Voter };
    (member.nonce != 0).then_some(wanted)
}

/// The id that the next member is given: all below were given to somebody.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn next_node<V: Records>(view: &V) -> Result<NodeId, V::Error> {
    Ok(NodeId(view.record::<u64>(&keys::counter(Counter::NextNode))?.unwrap_or(0)))
}

/// Who may still hold an inode that has no name.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn orphan<V: Records>(view: &V, ino: Ino) -> Result<Option<proto::Orphan>, V::Error> {
    view.record(&keys::orphan(ino))
}

/// At most `limit` orphans with numbers above `after`, ascending.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn orphans<V: Records>(
    view: &V,
    after: Ino,
    limit: usize,
) -> Result<Vec<(Ino, proto::Orphan)>, V::Error> {
    let range = keys::orphans(after);
    let page = view.scan(&range.from, &range.to, limit)?;
    let decoded = page.into_iter().map(|(key, value)| match keys::parse(&key) {
        Some(Parsed::Orphan { ino }) => Ok((ino, record::decode(&key, &value)?)),
        _ => Err(record::bad_key(&key).into()),
    });
    decoded.collect()
}

/// At most `limit` inodes with numbers above `after`, ascending.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn inodes<V: Records>(
    view: &V,
    after: Ino,
    limit: usize,
) -> Result<Vec<(Ino, proto::Inode)>, V::Error> {
    let range = keys::inodes(after);
    let page = view.scan(&range.from, &range.to, limit)?;
    let decoded = page.into_iter().map(|(key, value)| match keys::parse(&key) {
        Some(Parsed::Inode { ino }) => Ok((ino, record::decode(&key, &value)?)),
        _ => Err(record::bad_key(&key).into()),
    });
    decoded.collect()
}

/// The lowest inode number that nobody was granted yet: one more than there can be inodes.
///
/// # Errors
/// When this replica cannot read its own state.
pub fn next_ino<V: Records>(view: &V) -> Result<Ino, V::Error> {
    let next = view.record(&keys::counter(Counter::NextIno))?;
    Ok(Ino(next.unwrap_or(Ino::ROOT.0 + 1)))
}

/// A small table, or part of one, whole.
fn collect<V: Records, T>(
    view: &V,
    range: KeyRange,
    read: impl Fn(&[u8], &[u8]) -> Result<T, CorruptRecord>,
) -> Result<Vec<T>, V::Error> {
    let mut all = Vec::new();
    let mut pages = Pages::new(range, PAGE);
    while let Some(page) = pages.next(view)? {
        for (key, value) in page {
            all.push(read(&key, &value)?);
        }
    }
    Ok(all)
}

/// The names after the last pair that share its cookie.
fn collided(directory: Ino, pairs: &[Pair]) -> Result<KeyRange, CorruptRecord> {
    let mut range = keys::dentries(directory, u64::MAX);
    if let Some((last, _)) = pairs.last() {
        let Some(Parsed::Dentry { cookie, .. }) = keys::parse(last) else {
            return Err(record::bad_key(last));
        };
        range = KeyRange { from: last.clone(), to: keys::dentries(directory, cookie).from };
        range.from.push(0);
    }
    Ok(range)
}

fn dir_entry(key: &[u8], value: &[u8]) -> Result<DirEntry, CorruptRecord> {
    let Some(Parsed::Dentry { cookie, name, .. }) = keys::parse(key) else {
        return Err(record::bad_key(key));
    };
    let dentry: proto::Dentry = record::decode(key, value)?;
    Ok(DirEntry { cookie, name: name.to_vec(), ino: Ino(dentry.ino), kind: dentry.kind() })
}
