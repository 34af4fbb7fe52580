//! Access control lists as acl(5) tells of them: a set of entries.

use std::collections::BTreeMap;

use proptest::prelude::{Just, Strategy, prop_oneof};

pub const ACCESS: &str = "system.posix_acl_access";
pub const DEFAULT: &str = "system.posix_acl_default";

/// Tag, permissions, id: as the kernel hands them over.
pub type Entry = (u16, u16, u32);

const NOBODY: u32 = u32::MAX;
const OWNER: u16 = 1;
const USER: u16 = 2;
const GROUP_OWNER: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// What is allowed to whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Acl(BTreeMap<(u16, u32), u16>);

pub fn name() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just(ACCESS), Just(DEFAULT)]
}

/// Valid ones first, then some that are not.
pub fn entries() -> impl Strategy<Value = &'static [Entry]> {
    const O: Entry = (OWNER, 7, NOBODY);
    const G: Entry = (GROUP_OWNER, 5, NOBODY);
    const M: Entry = (MASK, 6, NOBODY);
    const X: Entry = (OTHER, 1, NOBODY);
    prop_oneof![
        2 => Just(&[O, G, X] as &[Entry]),
        2 => Just(&[O, G, M, X] as &[Entry]),
        2 => Just(&[O, (USER, 7, 3), (USER, 0, 1), G, M, X] as &[Entry]),
        2 => Just(&[(OWNER, 6, 9), G, (GROUP, 4, 0), (MASK, 0, NOBODY), X] as &[Entry]),
        1 => prop_oneof![
            Just(&[] as &[Entry]),
            Just(&[O, G] as &[Entry]),
            Just(&[G, O, X] as &[Entry]),
            Just(&[O, O, G, X] as &[Entry]),
            Just(&[O, G, X, X] as &[Entry]),
            Just(&[O, (USER, 7, 3), G, X] as &[Entry]),
            Just(&[O, G, (USER, 7, 3), M, X] as &[Entry]),
            Just(&[O, (USER, 7, NOBODY), G, M, X] as &[Entry]),
            Just(&[O, (GROUP_OWNER, 8, NOBODY), X] as &[Entry]),
            Just(&[O, G, (3, 0, 0), X] as &[Entry]),
        ],
    ]
}

pub fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

impl Acl {
    /// `None` where the entries are no list.
    pub fn of(entries: &[Entry]) -> Option<Self> {
        let count = |tag| entries.iter().filter(|entry| entry.0 == tag).count();
        let once = [OWNER, GROUP_OWNER, OTHER].into_iter().all(|tag| count(tag) == 1);
        let masked = count(MASK) == 1 || count(MASK) + count(USER) + count(GROUP) == 0;
        let known = entries.iter().all(|entry| entry.0.is_power_of_two() && entry.0 <= OTHER);
        let allowed = entries.iter().all(|entry| entry.1 <= 7);
        let someone = |entry: &Entry| !matches!(entry.0, USER | GROUP) || entry.2 != NOBODY;
        let sorted = entries.is_sorted_by_key(|entry| entry.0);
        let valid = once && masked && known && allowed && sorted && entries.iter().all(someone);
        valid.then(|| Self::set(entries))
    }

    /// What a replica holds.
    pub fn stored(value: &[u8]) -> Self {
        let (version, entries) = value.split_at(4);
        assert_eq!(version, [2, 0, 0, 0]);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, b| sum << 8 | u32::from(*b));
        let short = |bytes: &[u8]| u16::try_from(number(bytes)).expect("two bytes");
        let entry = |bytes: &[u8]| (short(&bytes[..2]), short(&bytes[2..4]), number(&bytes[4..8]));
        Self::of(&entries.chunks(8).map(entry).collect::<Vec<_>>()).expect("a valid list")
    }

    fn set(entries: &[Entry]) -> Self {
        let id = |entry: &Entry| if matches!(entry.0, USER | GROUP) { entry.2 } else { NOBODY };
        Self(entries.iter().map(|entry| ((entry.0, id(entry)), entry.1)).collect())
    }

    pub fn says_more_than_a_mode(&self) -> bool {
        self.0.len() > 3
    }

    fn group_class(&self) -> u16 {
        if self.0.contains_key(&(MASK, NOBODY)) { MASK } else { GROUP_OWNER }
    }

    pub fn mode(&self) -> u32 {
        let bits = |tag| u32::from(self.0[&(tag, NOBODY)]);
        bits(OWNER) * 64 + bits(self.group_class()) * 8 + bits(OTHER)
    }

    /// chmod.
    pub fn allow(&mut self, mode: u32) {
        for (tag, shift) in [(OWNER, 6), (self.group_class(), 3), (OTHER, 0)] {
            let permissions = u16::try_from(mode >> shift & 7).expect("three bits");
            self.0.insert((tag, NOBODY), permissions);
        }
    }
}
