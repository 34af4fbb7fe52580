//! Who waits for a mutation is told what became of it, whatever becomes of its session.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use super::{
    Deadline, MountId, Mutations, NodeError, NodeId, Op, Outcome, ProposalKey, REFUSED, Seq,
    SessionId, Submission, Wait,
};
use prost::Message;

use crate::consensus::Input;
use crate::fs::proto::{Command, Make, SetAttr, Touch, Write};

struct SubmitsMore(Arc<Mutations>);

impl Wake for SubmitsMore {
    fn wake(self: Arc<Self>) {
        let (_, _, input) = self.0.submit(None, touch(None), 0);
        assert!(input.is_some(), "there is room");
    }
}

fn touch(proposer: Option<MountId>) -> Submission {
    let (op, deadline) = (Op::Touch(Touch::default()), Deadline::of_node());
    Submission { op, wait: Wait::Here, time: None, proposer, deadline }
}

/// Operations go on where they are answered.
#[test]
fn whoever_is_answered_may_submit_at_once() {
    let mutations = Arc::new(Mutations::new(NodeId(1)));
    assert!(mutations.begin(SessionId(7), None, || 0).is_empty());
    let mount = Some(MountId(3));
    let (answer, _, _) = mutations.submit(None, touch(mount), 0);
    let mut answer = pin!(answer);
    let waker = Waker::from(Arc::new(SubmitsMore(mutations.clone())));
    let mut context = Context::from_waker(&waker);
    assert!(answer.as_mut().poll(&mut context).is_pending());
    let key = ProposalKey { session: SessionId(7), seq: Seq(1) };
    assert_eq!(mutations.proposer(key), mount);
    assert_eq!(mutations.applied(key, &Outcome::default()), mount);
    assert!(mutations.acknowledge(key, || 0).is_empty());
    assert!(matches!(answer.poll(&mut context), Poll::Ready(Ok(Ok(_)))));
    assert_eq!(mutations.inner.lock().last_seq, 2);
    assert_eq!(mutations.proposer(key), None, "nobody waits for it any more");
}

/// A mount is there before its node has a session.
#[test]
fn what_comes_before_the_first_session_waits_for_it() {
    let mutations = Mutations::new(NodeId(1));
    let (first, _, input) = mutations.submit(None, touch(None), 0);
    assert!(input.is_none());
    let (second, _, _) = mutations.submit(Some(SessionId::CLUSTER), touch(None), 0);
    let second = second.blocking_recv();
    let is_lost = matches!(second, Ok(Err(NodeError::SessionLost)));
    assert!(is_lost, "there are no locks yet that it could depend on");
    assert_eq!(mutations.begin(SessionId(7), None, || 0).len(), 1);
    assert_eq!(mutations.give_up(|_| Err(NodeError::Deadline)).len(), 1);
    assert!(matches!(first.blocking_recv(), Ok(Err(NodeError::Deadline))));
}

/// A session that is known to have ended takes nothing more; what depends on it is told, and all else goes into the next one.
#[test]
fn what_comes_after_the_end_of_a_session_waits_for_the_next() {
    let mutations = Mutations::new(NodeId(1));
    mutations.begin(SessionId(7), Some((100, 200)), || 0);
    let (mut proposed, _, input) = mutations.submit(None, touch(None), 0);
    assert!(input.is_some());
    mutations.end(SessionId(6));
    assert!(mutations.is_open(), "another one has ended");
    mutations.end(SessionId(7));
    assert_eq!((mutations.session(), mutations.is_open()), (SessionId(7), false));

    let (mut waits, _, input) = mutations.submit(None, touch(None), 0);
    assert!(input.is_none(), "it would be refused");
    let (of_it, _, _) = mutations.submit(Some(SessionId(7)), touch(None), 0);
    assert!(matches!(of_it.blocking_recv(), Ok(Err(NodeError::SessionLost))));
    let make = Submission { op: Op::Make(Make::default()), ..touch(None) };
    let (made, _, _) = mutations.submit(None, make, 0);
    let made = made.blocking_recv();
    assert!(matches!(made, Ok(Err(NodeError::NotDone))), "its number belongs to nobody");
    mutations.grant(200, 300);
    assert_eq!(mutations.take_ino(), (None, true));
    assert!(proposed.try_recv().is_err() && waits.try_recv().is_err(), "nobody is told yet");

    let inputs = mutations.begin(SessionId(8), None, || 0);
    let [Input::Propose { key, .. }] = &inputs[..] else { panic!("{inputs:?}") };
    assert_eq!(*key, ProposalKey { session: SessionId(8), seq: Seq(1) });
    mutations.applied(*key, &Outcome::default());
    mutations.acknowledge(*key, || 0);
    assert!(matches!(waits.try_recv(), Ok(Ok(_))));
    // The log says what became of the one that had been proposed.
    let key = ProposalKey { session: SessionId(7), seq: Seq(1) };
    mutations.applied(key, &Outcome { errno: REFUSED, ..Outcome::default() });
    mutations.acknowledge(key, || 0);
    assert!(matches!(proposed.try_recv(), Ok(Err(NodeError::SessionLost))));
}

/// Whoever was cut off for a while goes on in its next session, with what depended on nothing of the last one.
#[test]
fn what_was_refused_is_proposed_in_the_next_session() {
    let mutations = Mutations::new(NodeId(1));
    mutations.begin(SessionId(7), None, || 0);
    let submission = |op| Submission { op, ..touch(None) };
    let chmod = || Op::SetAttr(SetAttr::default());
    let staged = Op::Write(Write { stage: 1, ..Write::default() });
    let (mut attributes, number, _) = mutations.submit(None, submission(chmod()), 0);
    let (mut locked, ..) = mutations.submit(Some(SessionId(7)), submission(chmod()), 0);
    let (mut made, ..) = mutations.submit(None, submission(Op::Make(Make::default())), 0);
    let (mut bytes, ..) = mutations.submit(None, submission(staged), 0);
    mutations.end(SessionId(7));
    let refused = |seq| {
        let key = ProposalKey { session: SessionId(7), seq: Seq(seq) };
        mutations.applied(key, &Outcome { errno: REFUSED, ..Outcome::default() });
        mutations.acknowledge(key, || 0)
    };
    assert!((1..3).all(|seq| refused(seq).is_empty()), "there is no session");
    assert!(matches!(locked.try_recv(), Ok(Err(NodeError::SessionLost))));
    assert_eq!(mutations.begin(SessionId(8), None, || 0).len(), 1);
    assert!((3..5).all(|seq| refused(seq).is_empty()));
    assert!(matches!(made.try_recv(), Ok(Err(NodeError::NotDone))));
    assert!(matches!(bytes.try_recv(), Ok(Err(NodeError::SessionLost))));
    assert!(attributes.try_recv().is_err(), "it goes on");
    // A snapshot says nothing of single commands.
    let (mut skipped, ..) = mutations.submit(None, submission(chmod()), 0);
    mutations.skip();
    let of_it = ProposalKey { session: SessionId(8), seq: Seq(2) };
    mutations.applied(of_it, &Outcome { errno: REFUSED, ..Outcome::default() });
    mutations.acknowledge(of_it, || 0);
    assert!(matches!(skipped.try_recv(), Ok(Err(NodeError::SessionLost))));
    let key = ProposalKey { session: SessionId(8), seq: number.get().expect("proposed") };
    mutations.applied(key, &Outcome::default());
    mutations.acknowledge(key, || 0);
    assert!(matches!(attributes.try_recv(), Ok(Ok(_))));
}

/// Each is answered why it is given up, wherever it waits; others go on waiting.
#[test]
fn whoever_waits_for_too_long_is_told_why() {
    let mutations = Mutations::new(NodeId(1));
    let (queued, _, _) = mutations.submit(None, touch(None), 0);
    assert!(mutations.give_up(|_| Ok(())).is_empty());
    assert!(mutations.give_up(|_| Err(NodeError::Interrupted)).is_empty());
    assert!(matches!(queued.blocking_recv(), Ok(Err(NodeError::Interrupted))));
    assert!(mutations.begin(SessionId(7), None, || 0).is_empty(), "it is not made any more");
    let (left, _, _) = mutations.submit(None, touch(None), 0);
    drop(left);
    let (_waits, _, _) = mutations.submit(None, touch(None), 0);
    assert_eq!(mutations.give_up(|_| Ok(())).len(), 1, "nobody waits for the first one");
}

/// Every command says what was given up, until one that did is known to be applied.
#[test]
fn what_is_given_up_is_said_until_everybody_knows() {
    let mutations = Mutations::new(NodeId(1));
    mutations.begin(SessionId(7), None, || 0);
    let propose = || {
        let (answer, _, input) = mutations.submit(None, touch(None), 0);
        let Some(Input::Propose { data, .. }) = input else { panic!("there is room") };
        (answer, Command::decode(data).expect("a command"))
    };
    let acknowledge = |seq| {
        let key = ProposalKey { session: SessionId(7), seq: Seq(seq) };
        mutations.applied(key, &Outcome::default());
        mutations.acknowledge(key, || 0);
    };
    let give_up = |answer| {
        drop(answer);
        assert_eq!(mutations.give_up(|_| Ok(())).len(), 1);
    };
    let (_first, _) = propose();
    let (second, _) = propose();
    give_up(second);
    let (third, command) = propose();
    assert_eq!((command.lowest_unanswered, command.given_up), (1, vec![2]));
    give_up(third);
    let (_fourth, command) = propose();
    assert_eq!(command.given_up, [2, 3], "the one that said so is given up itself");
    acknowledge(1);
    let (_fifth, command) = propose();
    assert_eq!((command.lowest_unanswered, command.given_up), (4, vec![2, 3]));
    acknowledge(4);
    let (sixth, command) = propose();
    assert_eq!(command.given_up, [0_u64; 0]);
    give_up(sixth);
    (7..100).for_each(|seq| {
        let _waits = propose();
        acknowledge(seq);
    });
    assert_eq!(propose().1.given_up, [0_u64; 0], "nor does anything stay for ever");
}
