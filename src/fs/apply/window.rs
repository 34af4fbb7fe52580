//! Exactly once: which commands of a session are new, which were answered, which must be refused.
//!
//! Outcomes are kept one key each from the session's `lowest` seq on. `lowest` follows what the
//! commands say is answered, in steps of [`PRUNE_BATCH`], so that most commands do not write the
//! session's record. An ended session's outcomes stay until its node opens the next one.
//!
//! A command whose proposer has given it up must not be carried out after those that came later: it may lie in a peer's inbox for
//! any time. So the next ones name it, and whoever applies one of them first notes that it is refused.

use prost::Message;

use crate::fs::errno::Errno;
use crate::fs::keys;
use crate::fs::limits::{OUTCOME_WINDOW, PRUNE_BATCH};
use crate::fs::proto;
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::mutants::{self, Mutant};
use crate::types::{Seq, SessionId};

/// What to do with a command.
pub(super) enum Admission {
    /// Execute it; this is its session.
    New(proto::Session),
    /// It was executed; this was its outcome.
    Answered(Box<proto::Outcome>),
    /// It cannot be said that it was not executed before, or its outcome could not be kept.
    Refused(Errno),
}

/// Decides about a command of a session, and forgets outcomes that nobody will ask for.
pub(super) fn admit<V: ViewMut + Records>(
    view: &mut V,
    command: &proto::Command,
) -> Result<Admission, V::Error> {
    let id = SessionId(command.session);
    if let Some(outcome) = view.record(&keys::outcome(id, Seq(command.seq)))?
        && !mutants::is(Mutant::SkipDedup)
    {
        return Ok(Admission::Answered(Box::new(outcome)));
    }
    let Some(mut session) = view.record::<proto::Session>(&keys::session(id))? else {
        if mutants::is(Mutant::OutliveSession) {
            return Ok(Admission::New(proto::Session::default()));
        }
        return Ok(Admission::Refused(Errno::ESTALE));
    };
    let floor = session.lowest.max(command.lowest_unanswered);
    if command.seq < floor {
        return Ok(Admission::Refused(Errno::ESTALE));
    }
    if command.seq - floor >= OUTCOME_WINDOW {
        return Ok(Admission::Refused(Errno::EAGAIN));
    }
    let window_full = command.seq - session.lowest >= OUTCOME_WINDOW;
    if window_full || floor - session.lowest >= PRUNE_BATCH {
        let kept_end = session.lowest.saturating_add(OUTCOME_WINDOW);
        for seq in session.lowest..floor.min(kept_end) {
            view.delete(keys::outcome(id, Seq(seq)));
        }
        session.lowest = floor;
        view.put(keys::session(id), session.encode_to_vec());
    }
    if !mutants::is(Mutant::OutliveProposer) {
        refuse_given_up(view, command, session.lowest)?;
    }
    Ok(Admission::New(session))
}

/// Their proposer has said that they failed, and has gone on: what is done from here on must not be undone by them.
fn refuse_given_up<V: ViewMut + Records>(
    view: &mut V,
    command: &proto::Command,
    lowest: u64,
) -> Result<(), V::Error> {
    let id = SessionId(command.session);
    let window = lowest..lowest.saturating_add(OUTCOME_WINDOW);
    for seq in command.given_up.iter().copied().filter(|seq| window.contains(seq)) {
        let key = keys::outcome(id, Seq(seq));
        if seq != command.seq && view.record::<proto::Outcome>(&key)?.is_none() {
            let refused = proto::Outcome { errno: Errno::ESTALE.number(), ..Default::default() };
            view.put(key, refused.encode_to_vec());
        }
    }
    Ok(())
}
