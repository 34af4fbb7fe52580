//! POSIX access control lists (acl(5)) as the kernel hands them over in extended attributes: which are
//! valid, and how they and permission bits go together. What comes of it is the state machine's.

use super::errno::Errno;
use super::limits::ACL_MAX;

/// The extended attribute of the list that permissions are checked by.
pub const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
/// The extended attribute of the list that a directory gives to what is made in it.
pub const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// `linux/posix_acl_xattr.h`: a version, then entries of tag, permissions and id, little-endian.
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
/// The id of an entry that names nobody.
const NOBODY: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// A valid list. Permissions are three bits each: read 4, write 2, execute 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl {
    owner: u16,
    users: Vec<Named>,
    group: u16,
    groups: Vec<Named>,
    /// There is one wherever somebody is named.
    mask: Option<u16>,
    other: u16,
}

/// What one user or group may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    id: u32,
    permissions: u16,
}

/// An entry of the encoded list.
#[derive(Clone, Copy)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

impl Acl {
    /// From an attribute's value: EINVAL where the kernel's `posix_acl_valid` gives it, too.
    pub(super) fn decode(value: &[u8]) -> Result<Self, Errno> {
        if value.len() > ACL_MAX {
            return Err(Errno::E2BIG);
        }
        let (version, entries) = value.split_first_chunk().ok_or(Errno::EINVAL)?;
        let (entries, rest) = entries.as_chunks::<ENTRY_BYTES>();
        if u32::from_le_bytes(*version) != VERSION || !rest.is_empty() {
            return Err(Errno::EINVAL);
        }
        let entries: Vec<_> = entries.iter().copied().map(Entry::decode).collect();
        Self::of_entries(&entries).ok_or(Errno::EINVAL)
    }

    /// The order of entries is part of their validity.
    fn of_entries(mut entries: &[Entry]) -> Option<Self> {
        if entries.iter().any(|entry| entry.permissions > 0o7) {
            return None;
        }
        let rest = &mut entries;
        let acl = Self {
            owner: take(rest, USER_OBJ)?,
            users: take_named(rest, USER)?,
            group: take(rest, GROUP_OBJ)?,
            groups: take_named(rest, GROUP)?,
            mask: take(rest, MASK),
            other: take(rest, OTHER)?,
        };
        let names_somebody = !acl.users.is_empty() || !acl.groups.is_empty();
        (rest.is_empty() && (acl.mask.is_some() || !names_somebody)).then_some(acl)
    }

    /// The attribute's value.
    pub(super) fn encode(&self) -> Vec<u8> {
        let unnamed = |tag, permissions| Entry { tag, permissions, id: NOBODY };
        let named =
            |tag| move |named: &Named| Entry { tag, permissions: named.permissions, id: named.id };
        let mut entries = vec![unnamed(USER_OBJ, self.owner)];
        entries.extend(self.users.iter().map(named(USER)));
        entries.push(unnamed(GROUP_OBJ, self.group));
        entries.extend(self.groups.iter().map(named(GROUP)));
        entries.extend(self.mask.map(|mask| unnamed(MASK, mask)));
        entries.push(unnamed(OTHER, self.other));
        let mut value = Vec::with_capacity(HEADER_BYTES + ENTRY_BYTES * entries.len());
        value.extend_from_slice(&VERSION.to_le_bytes());
        for entry in entries {
            value.extend_from_slice(&entry.encode());
        }
        value
    }

    /// Whether permission bits say all of it.
    pub(super) fn is_minimal(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty() && self.mask.is_none()
    }

    /// The permission bits of an inode with this list: those of the group are the mask, where there is
    /// one.
    pub(super) fn mode(&self) -> u32 {
        let group = self.mask.unwrap_or(self.group);
        u32::from(self.owner) << 6 | u32::from(group) << 3 | u32::from(self.other)
    }

    /// What chmod(2) makes of it.
    pub(super) fn set_mode(&mut self, mode: u32) {
        let [owner, group, other] = triples(mode);
        self.owner = owner;
        *self.group_class() = group;
        self.other = other;
    }

    /// What is left of a directory's default list for what is made in it with this mode.
    pub(super) fn restrict(&mut self, mode: u32) {
        let [owner, group, other] = triples(mode);
        self.owner &= owner;
        *self.group_class() &= group;
        self.other &= other;
    }

    /// What the permission bits of the group stand for.
    fn group_class(&mut self) -> &mut u16 {
        self.mask.as_mut().unwrap_or(&mut self.group)
    }
}

impl Entry {
    fn decode(bytes: [u8; ENTRY_BYTES]) -> Self {
        let [t0, t1, p0, p1, id @ ..] = bytes;
        Self {
            tag: u16::from_le_bytes([t0, t1]),
            permissions: u16::from_le_bytes([p0, p1]),
            id: u32::from_le_bytes(id),
        }
    }

    fn encode(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..2].copy_from_slice(&self.tag.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.permissions.to_le_bytes());
        bytes[4..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }
}

/// Takes the next entry where it has the tag.
fn take(entries: &mut &[Entry], tag: u16) -> Option<u16> {
    let (first, rest) = entries.split_first()?;
    if first.tag != tag {
        return None;
    }
    *entries = rest;
    Some(first.permissions)
}

/// Takes all that have the tag and come next; `None` where one of them names nobody.
fn take_named(entries: &mut &[Entry], tag: u16) -> Option<Vec<Named>> {
    let count = entries.iter().take_while(|entry| entry.tag == tag).count();
    let (named, rest) = entries.split_at(count);
    *entries = rest;
    let named = named.iter().map(|entry| {
        let Entry { permissions, id, .. } = *entry;
        (id != NOBODY).then_some(Named { id, permissions })
    });
    named.collect()
}

/// The permission bits of owner, group and others.
fn triples(mode: u32) -> [u16; 3] {
    [6, 3, 0].map(|shift| u16::try_from(mode >> shift & 0o7).expect("three bits"))
}
