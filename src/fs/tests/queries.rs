//! What queries answer.

use std::collections::BTreeMap;

use prost::Message;

use super::{Ino, Op, Overlay, ROOT, World, apply, at, proto, query, unlink};
use crate::fs::keys;
use crate::fs::{CorruptRecord, Corruption};
use crate::types::SessionId;

#[test]
fn a_listing_goes_on_after_any_cookie() {
    let mut world = World::new();
    let mut names: Vec<String> = (0..40).map(|i| format!("name-{i}")).collect();
    for name in &names {
        world.file(ROOT, name);
    }
    let all = query::readdir(&world.state, Ino(ROOT), 0, 100).expect("sound");
    let mut listed: Vec<&[u8]> = all.iter().map(|entry| entry.name.as_slice()).collect();
    listed.sort_unstable();
    names.sort();
    assert!(listed.into_iter().eq(names.iter().map(String::as_bytes)));
    assert!(all.is_sorted_by_key(|entry| entry.cookie));
    for limit in [0, 1, 7, 39, 40, 41] {
        let mut paged: Vec<query::DirEntry> = Vec::new();
        loop {
            let after = paged.last().map_or(0, |entry| entry.cookie);
            let page = query::readdir(&world.state, Ino(ROOT), after, limit).expect("sound");
            if page.is_empty() {
                break;
            }
            paged.extend(page);
        }
        assert_eq!(paged, all, "limit {limit}");
    }
    assert_eq!(query::readdir(&world.state, Ino(ROOT), u64::MAX, 5), Ok(vec![]));
    assert_eq!(query::readdir(&world.state, Ino(999), 0, 5), Ok(vec![]));
}

#[test]
fn names_that_share_a_cookie_are_not_split() {
    let mut state = BTreeMap::new();
    let mut put = |cookie: u64, name: &str| {
        let mut key = keys::dentries(Ino(5), cookie - 1).from;
        key.extend_from_slice(name.as_bytes());
        let dentry = proto::Dentry { ino: 7, kind: proto::Kind::Regular.into() };
        state.insert(key, dentry.encode_to_vec());
    };
    for (cookie, name) in [(3, "a"), (4, "b"), (4, "c"), (4, "d"), (i64::MAX as u64, "e")] {
        put(cookie, name);
    }
    let names = |after, limit| -> Vec<Vec<u8>> {
        let entries = query::readdir(&state, Ino(5), after, limit).expect("sound");
        entries.into_iter().map(|entry| entry.name).collect()
    };
    assert_eq!(names(0, 1), [b"a"]);
    assert_eq!(names(0, 2), [b"a", b"b", b"c", b"d"]);
    assert_eq!(names(3, 1), [b"b", b"c", b"d"]);
    assert_eq!(names(4, 1), [b"e"]);
}

#[test]
fn an_overlay_is_listed_like_what_it_becomes() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.file(ROOT, name);
    }
    let op = world.make_op(proto::Kind::Regular, ROOT, "d");
    let commands = [world.command(unlink(ROOT, "b")), world.command(Op::Make(op))];
    let mut overlay = Overlay::new(&world.state);
    for (i, command) in (50..).zip(&commands) {
        apply(&mut overlay, at(i), command).expect("sound");
    }
    let listed = query::readdir(&overlay, Ino(ROOT), 0, 2).expect("sound");
    let all = query::readdir(&overlay, Ino(ROOT), 0, 9).expect("sound");
    let mut after = world.state.clone();
    overlay.finish().expect("a map").write_to(&mut after);
    assert_eq!(listed, query::readdir(&after, Ino(ROOT), 0, 2).expect("sound"));
    assert_eq!(all, query::readdir(&after, Ino(ROOT), 0, 9).expect("sound"));
    assert_eq!(all.len(), 3);
}

#[test]
fn a_corrupt_record_is_this_replicas_trouble() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let key = keys::inode(Ino(file));
    world.state.insert(key.clone(), vec![0xff]);
    let error = query::inode(&world.state, Ino(file)).expect_err("no such record");
    assert_eq!(error.key, key);
    world.state.remove(&key);
    let command = world.command(unlink(ROOT, "f"));
    let error = apply(&mut world.state, at(9), &command).expect_err("a name without an inode");
    assert_eq!(error, CorruptRecord { key, corruption: Corruption::Missing });
    assert!(error.to_string().contains("69000000"), "{error}");
}

#[test]
fn sessions_are_listed_oldest_first() {
    let mut world = World::new();
    let (first, second) = (world.session, world.open(2, 1));
    let sessions = query::sessions(&world.state).expect("sound");
    let ids: Vec<_> = sessions.iter().map(|(id, session)| (*id, session.node)).collect();
    assert_eq!(ids, [(SessionId(first), 1), (SessionId(second), 2)]);
}
