//! Members: an id for each data directory, never used again.

use super::{Errno, Op, World, digest_of, proto, query};
use crate::fs::Change;
use crate::fs::keys;
use crate::types::NodeId;

fn add(nonce: u64, address: &str) -> Op {
    Op::AddMember(proto::AddMember { nonce, address: address.to_owned() })
}

#[test]
fn ids_follow_nonces() {
    let mut world = World::new();
    let applied = world.cluster(add(0xb, "b:1"));
    assert_eq!(applied.outcome.id, 2);
    let added =
        |address: &str| Change::MemberAdded { node: NodeId(2), address: address.to_owned() };
    assert_eq!(applied.changes, [added("b:1")]);
    let again = world.cluster(add(0xb, "b:1"));
    assert_eq!((again.outcome.id, again.changes), (2, vec![]));
    let moved = world.cluster(add(0xb, "b:2"));
    assert_eq!((moved.outcome.id, moved.changes), (2, vec![added("b:2")]));
    assert_eq!(world.cluster(add(0xc, "c:1")).outcome.id, 3);
    assert_eq!(world.cluster(add(0xd, "")).outcome.errno, Errno::EINVAL.number());
    let addresses: Vec<_> = query::members(&world.state)
        .expect("sound")
        .into_iter()
        .map(|member| (member.node, member.address))
        .collect();
    let expected = [(1, "a:1"), (2, "b:2"), (3, "c:1")].map(|(id, at)| (id, at.to_owned()));
    assert_eq!(addresses, expected);
}

#[test]
fn a_removed_members_id_is_not_used_again() {
    let mut world = World::new();
    world.cluster(add(0xb, "b:1"));
    world.state.remove(&keys::member(NodeId(2)));
    world.digest = digest_of(&world.state);
    assert_eq!(world.cluster(add(0xb, "b:1")).outcome.id, 3);
}
