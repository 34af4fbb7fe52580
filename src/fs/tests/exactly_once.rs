//! Exactly once: a retry gets its first answer, and nothing is lost or applied twice.

use super::{Errno, Op, ROOT, World, proto, release, rmdir, session_end, unlink};
use crate::fs::keys;
use crate::fs::limits::{OUTCOME_WINDOW, PRUNE_BATCH};
use crate::types::SessionId;

fn outcomes(world: &World, session: u64) -> usize {
    let range = keys::outcomes(SessionId(session));
    world.state.range(range.from..range.to).count()
}

#[test]
fn a_retry_gets_its_first_answer_and_changes_nothing() {
    let mut world = World::new();
    world.file(ROOT, "f");
    let unlink = world.command(unlink(ROOT, "f"));
    let first = world.apply(&unlink);
    let state = world.state.clone();
    let again = world.apply(&unlink);
    assert_eq!((again.outcome, again.changes, again.effects), (first.outcome, vec![], vec![]));
    assert_eq!(world.state, state);
    // The name is free again; a refused command keeps its answer all the same.
    let refused = world.command(rmdir(ROOT, "f"));
    assert_eq!(world.apply(&refused).outcome.errno, Errno::ENOENT.number());
    world.directory(ROOT, "f");
    assert_eq!(world.apply(&refused).outcome.errno, Errno::ENOENT.number());
}

#[test]
fn a_command_that_was_overtaken_is_applied_once() {
    let mut world = World::new();
    let (five, six) = (world.make_op(proto::Kind::Regular, ROOT, "5"), unlink(ROOT, "6"));
    let five = world.command(Op::Make(five));
    let six = proto::Command { lowest_unanswered: five.seq, ..world.command(six) };
    world.apply(&six);
    assert_eq!(world.apply(&five).outcome.errno, 0);
    assert!(world.apply(&five).changes.is_empty());
}

/// A program was told that its truncation had failed, wrote the file anew, and was told that this had worked.
#[test]
fn what_was_given_up_is_refused_after_what_came_later() {
    let mut world = World::new();
    let [before, late, unanswered] = [(); 3].map(|()| world.command(release(9)));
    assert_eq!(world.apply(&before).outcome.errno, 0);
    let given_up = vec![before.seq, late.seq];
    let next = proto::Command {
        lowest_unanswered: unanswered.seq.min(before.seq),
        given_up,
        ..world.command(release(9))
    };
    assert_eq!(world.apply(&next).outcome.errno, 0);
    assert_eq!(world.apply(&late).outcome.errno, Errno::ESTALE.number());
    assert_eq!(world.apply(&before).outcome.errno, 0, "it was carried out before");
    assert_eq!(world.apply(&unanswered).outcome.errno, 0);
    // Also where nothing is remembered of it: it is below the window.
    let last = proto::Command { given_up: vec![late.seq], ..world.command(release(9)) };
    assert_eq!(world.apply(&last).outcome.errno, 0);
    assert_eq!(world.apply(&late).outcome.errno, Errno::ESTALE.number());
}

#[test]
fn what_is_below_the_window_is_refused() {
    let mut world = World::new();
    let old = world.command(release(9));
    world.seq += PRUNE_BATCH;
    world.ok(release(9));
    let applied = world.apply(&old);
    assert_eq!(applied.outcome.errno, Errno::ESTALE.number());
    let wrong = world.command(release(9));
    let wrong = proto::Command { lowest_unanswered: wrong.seq + 1, ..wrong };
    assert_eq!(world.apply(&wrong).outcome.errno, Errno::ESTALE.number());
    let zero = proto::Command { seq: 0, lowest_unanswered: 0, ..old };
    assert_eq!(world.apply(&zero).outcome.errno, Errno::ESTALE.number());
}

#[test]
fn what_is_too_far_ahead_can_come_again() {
    let mut world = World::new();
    let state = world.state.clone();
    let mut far = world.command(release(9));
    far.seq += OUTCOME_WINDOW;
    assert_eq!(world.apply(&far).outcome.errno, Errno::EAGAIN.number());
    assert_eq!(world.state, state);
    far.lowest_unanswered += 1;
    assert_eq!(world.apply(&far).outcome.errno, 0);
}

#[test]
fn outcomes_are_forgotten_once_they_are_answered() {
    let mut world = World::new();
    for _ in 0..3 * PRUNE_BATCH {
        world.ok(release(9));
        assert!(outcomes(&world, world.session) as u64 <= PRUNE_BATCH + 1);
    }
    let first = world.seq + 1;
    for _ in 0..OUTCOME_WINDOW {
        let command = world.command(release(9));
        let command = proto::Command { lowest_unanswered: first, ..command };
        assert_eq!(world.apply(&command).outcome.errno, 0);
    }
    assert_eq!(outcomes(&world, world.session) as u64, OUTCOME_WINDOW);
    // A leap past everything costs no more than what there is to forget.
    world.seq = u64::MAX - 1;
    world.ok(release(9));
    assert_eq!(outcomes(&world, world.session), 1);
}

#[test]
fn an_ended_session_answers_what_it_did_until_the_next_one() {
    let mut world = World::new();
    let old = world.session;
    let op = world.make_op(proto::Kind::Regular, ROOT, "f");
    let done = world.command(Op::Make(op));
    let first = world.apply(&done);
    let never = world.command(unlink(ROOT, "f"));
    world.cluster(session_end(old));
    assert_eq!(world.apply(&never).outcome.errno, Errno::ESTALE.number());
    assert_eq!(world.apply(&done).outcome, first.outcome);
    assert_eq!(outcomes(&world, old), 1);
    world.session = world.open(1, 101);
    assert_eq!(outcomes(&world, old), 0);
    assert_eq!(world.apply(&done).outcome.errno, Errno::ESTALE.number());
}

#[test]
fn an_unknown_session_is_refused() {
    let mut world = World::new();
    let state = world.state.clone();
    let command = proto::Command { session: 999, ..world.command(release(9)) };
    assert_eq!(world.apply(&command).outcome.errno, Errno::ESTALE.number());
    assert_eq!(world.state, state);
}
