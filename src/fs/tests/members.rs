//! Members: an id for each data directory, never used again.

use super::{Errno, Op, World, proto, query};
use crate::fs::Change;
use crate::types::{NodeId, Suffrage};

fn add(nonce: u64, address: &str) -> Op {
    Op::AddMember(proto::AddMember { nonce, address: address.to_owned(), learner: false })
}

fn add_learner(nonce: u64, address: &str) -> Op {
    Op::AddMember(proto::AddMember { nonce, address: address.to_owned(), learner: true })
}

fn remove(node: u64) -> Op {
    Op::RemoveMember(proto::RemoveMember { node })
}

fn promote(node: u64) -> Op {
    Op::PromoteMember(proto::PromoteMember { node })
}

fn changed(node: u64, address: &str, suffrage: Option<Suffrage>) -> Change {
    Change::MemberChanged { node: NodeId(node), address: address.to_owned(), suffrage }
}

#[test]
fn ids_follow_nonces() {
    let mut world = World::new();
    let applied = world.cluster(add(0xb, "b:1"));
    assert_eq!(applied.outcome.id, 2);
    let added = |address: &str| changed(2, address, Some(Suffrage::Voter));
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
    let next = |world: &World| query::next_node(&world.state).expect("sound");
    assert_eq!(next(&world), NodeId(3));
    let applied = world.cluster(remove(2));
    assert_eq!(applied.changes, [Change::MemberRemoved { node: NodeId(2) }]);
    assert_eq!(next(&world), NodeId(3), "2 was a member, 3 has never been one");
    assert_eq!(world.cluster(remove(2)).outcome.errno, Errno::ENOENT.number());
    assert_eq!(world.cluster(add(0xb, "b:1")).outcome.id, 3);
}

#[test]
fn somebody_is_left_to_vote() {
    let mut world = World::new();
    let refused = |world: &mut World, node| world.cluster(remove(node)).outcome.errno;
    assert_eq!(refused(&mut world, 1), Errno::EBUSY.number(), "the only member");
    world.cluster(add_learner(0xb, "b:1"));
    world.cluster(add(0, "c:1"));
    assert_eq!(refused(&mut world, 1), Errno::EBUSY.number(), "the others have no vote");
    world.cluster(promote(2));
    assert_eq!(refused(&mut world, 1), 0);
    assert_eq!(refused(&mut world, 2), Errno::EBUSY.number(), "one was only announced");
}

#[test]
fn a_learner_stays_one_until_it_is_promoted() {
    let mut world = World::new();
    let added = world.cluster(add_learner(0xb, "b:1"));
    assert_eq!(added.changes, [changed(2, "b:1", Some(Suffrage::Learner))]);
    assert_eq!(world.cluster(add(0xb, "b:1")).changes, [], "joining again promotes nobody");
    assert_eq!(world.cluster(promote(2)).changes, [changed(2, "b:1", Some(Suffrage::Voter))]);
    assert_eq!(world.cluster(promote(2)).changes, []);
    assert_eq!(world.cluster(promote(9)).outcome.errno, Errno::ENOENT.number());
}

#[test]
fn who_was_announced_joins_by_its_address() {
    let mut world = World::new();
    let announced = world.cluster(add_learner(0, "b:1"));
    assert_eq!(announced.changes, [changed(2, "b:1", None)]);
    assert_eq!(world.cluster(add(0, "b:1")).outcome.id, 2, "announced once");
    let joined = world.cluster(add(0xb, "b:1"));
    assert_eq!(joined.changes, [changed(2, "b:1", Some(Suffrage::Learner))]);
    let other = world.cluster(add(0xc, "b:1"));
    assert_eq!(other.outcome.id, 3, "another data directory at the same address");
}
