//! Sessions: opened once, ended once, each with numbers of its own.

use prost::Message;

use super::{
    Applied, Errno, Ino, Op, ROOT, World, digest_of, proto, query, session_end, session_open,
};
use crate::fs::Change;
use crate::fs::keys;
use crate::fs::limits::{FIRST_GRANT, GRANT_MAX, GRANTS_KEPT};
use crate::types::{NodeId, SessionId};

fn grant(count: u64) -> Op {
    Op::GrantInodes(proto::GrantInodes { count })
}

#[test]
fn a_session_is_its_log_index() {
    let mut world = World::new();
    let applied = world.cluster(session_open(2, 9));
    let id = world.index;
    assert_eq!(applied.outcome.id, id);
    let granted = applied.outcome.granted.expect("a first range");
    assert_eq!(granted.end - granted.first, FIRST_GRANT);
    let opened = Change::SessionOpened { session: SessionId(id), node: NodeId(2), strong: true };
    assert_eq!(applied.changes, [opened]);
    let again = world.cluster(session_open(2, 9));
    assert_eq!((again.outcome, again.changes), (applied.outcome, vec![]));
    let refused = world.cluster(session_open(0, 9));
    assert_eq!(refused.outcome.errno, Errno::EINVAL.number());
}

#[test]
fn a_new_session_of_a_node_ends_its_last() {
    let mut world = World::new();
    let first = world.session;
    let applied = world.cluster(session_open(1, 101));
    let ended = Change::SessionEnded { session: SessionId(first), node: NodeId(1) };
    assert!(applied.changes.contains(&ended));
    let live = query::session_ids(&world.state).expect("sound");
    assert_eq!(live, [SessionId(applied.outcome.id)]);
    // A copy of the command that opened the first one was under way: it must not end the second.
    let late = world.cluster(session_open(1, 100));
    assert_eq!((late.outcome.errno, late.changes), (Errno::ESTALE.number(), vec![]));
}

/// A daemon that died asked for a session; what it said turns up when the next daemon of the node has one.
#[test]
fn an_opening_that_was_overtaken_by_the_next_daemon_is_refused() {
    let mut world = World::new();
    let open = |nonce, applied| {
        let open =
            proto::SessionOpen { node: 1, nonce, strong: true, applied, ..Default::default() };
        Op::SessionOpen(open)
    };
    let before = world.session;
    let next = world.cluster(open(200, Some(before))).outcome;
    assert_eq!(next.errno, 0);
    let late = world.cluster(open(100, Some(before)));
    assert_eq!((late.outcome.errno, late.changes), (Errno::ESTALE.number(), vec![]));
    assert_eq!(world.cluster(open(300, Some(next.id))).outcome.errno, 0);
}

#[test]
fn an_end_is_harmless_twice() {
    let mut world = World::new();
    let session = SessionId(world.session);
    let applied = world.cluster(session_end(session.0));
    assert_eq!(applied.changes, [Change::SessionEnded { session, node: NodeId(1) }]);
    assert_eq!(world.cluster(session_end(session.0)), Applied::default());
    assert_eq!(world.cluster(session_end(999)), Applied::default());
}

#[test]
fn a_session_can_end_itself() {
    let mut world = World::new();
    let command = world.command(session_end(world.session));
    assert_eq!(world.apply(&command).changes.len(), 1);
    assert_eq!(world.apply(&command), Applied::default());
}

#[test]
fn granted_numbers_are_nobody_elses() {
    let mut world = World::new();
    let mut last = 0;
    for _ in 0..GRANTS_KEPT + 3 {
        let range = world.ok(grant(10)).outcome.granted.expect("a range");
        assert!(range.first >= last && range.end == range.first + 10);
        last = range.end;
    }
    assert_eq!(query::next_ino(&world.state), Ok(Ino(last)));
    let session = query::session(&world.state, SessionId(world.session)).expect("sound");
    let granted = session.expect("is live").granted;
    assert_eq!((granted.len(), granted.last().map(|range| range.end)), (GRANTS_KEPT, Some(last)));
    world.next_ino = last - 1;
    world.file(ROOT, "f");
    world.refused(Errno::EINVAL, grant(0));
    world.refused(Errno::EINVAL, grant(GRANT_MAX + 1));
}

#[test]
fn numbers_end_where_the_aliases_begin() {
    let mut world = World::new();
    let key = keys::counter(keys::Counter::NextIno);
    world.state.insert(key, ((1_u64 << 63) - 5).encode_to_vec());
    world.digest = digest_of(&world.state);
    world.refused(Errno::ENOSPC, grant(6));
    world.ok(grant(5));
}

#[test]
fn who_may_propose_what() {
    let mut world = World::new();
    world.refused(Errno::EINVAL, session_open(3, 3));
    let address = "b:1".to_owned();
    let add = proto::AddMember { nonce: 1, address, learner: false };
    world.refused(Errno::EINVAL, Op::AddMember(add));
    world.refused(Errno::EINVAL, Op::RemoveMember(proto::RemoveMember { node: 1 }));
    world.refused(Errno::EINVAL, Op::PromoteMember(proto::PromoteMember { node: 1 }));
    world.refused(Errno::EINVAL, Op::Attest(proto::Attest::default()));
    let op = world.make_op(proto::Kind::Regular, ROOT, "f");
    assert_eq!(world.cluster(Op::Make(op)).outcome.errno, Errno::EINVAL.number());
    let unknown = proto::Command { op: None, ..world.command(grant(1)) };
    assert_eq!(world.apply(&unknown).outcome.errno, Errno::ENOSYS.number());
}
