//! Keeps this node's session open, and says for it what nobody waits for.

use std::time::Duration;

use rand::Rng;

use super::divergence::give_up_session;
use super::{Handle, NodeError};
use crate::consensus::{Input, Standing, Wait};
use crate::fs::proto::{ReleaseOrphans, SessionEnd, SessionOpen, Touch, command::Op};
use crate::fs::query;
use crate::types::{Ino, SessionId};

/// How often orphans that are no longer held, and access times, are told to the others.
const HOUSEKEEPING: Duration = Duration::from_millis(200);
/// At most this many in one command.
const PER_COMMAND: usize = 1000;

/// Opens a session, and another whenever the last one was ended by the others. Runs for ever.
pub(super) async fn keep_open(handle: Handle) {
    let mut session = handle.0.session.subscribe();
    loop {
        if session.wait_for(Option::is_none).await.is_err() {
            return;
        }
        // Whoever is not known to be right shows nothing.
        let mut sound = handle.0.comparison.changes();
        if sound.wait_for(|standing| *standing == Standing::Sound).await.is_err() {
            return;
        }
        match open(&handle).await {
            Ok(id) => tracing::info!(session = id.0, "session opened"),
            // Known by now: no time is to be lost, the others wait for the old session.
            Err(NodeError::SessionLost) => tracing::debug!("an earlier session was not known"),
            Err(error) => {
                tracing::info!("cannot open a session yet: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn open(handle: &Handle) -> Result<SessionId, NodeError> {
    let shared = &handle.0;
    let nonce = rand::rng().random();
    let open = SessionOpen {
        node: shared.node.0,
        nonce,
        principal: String::new(),
        strong: shared.config.strong,
        applied: Some(handle.state().applied().0),
    };
    // A late duplicate of an earlier opening is refused, as any command of a session that is gone.
    let outcome = handle.mutate_cluster(Op::SessionOpen(open)).await?;
    if outcome.errno != 0 {
        // An earlier daemon's session was not known here yet. Now that this outcome is applied, it is.
        return Err(NodeError::SessionLost);
    }
    let session = SessionId(outcome.id);
    let granted = outcome.granted.map(|range| (range.first, range.end));
    let waited = shared.mutations.begin(session, granted, || shared.clock.next());
    shared.locks.begin(session);
    shared.input(Input::OwnSession { session: Some(session) });
    for input in waited {
        shared.input(input);
    }
    shared.session.send_replace(Some(session));
    release_unheld(handle, session)?;
    for (_, observer) in shared.observers.all().iter() {
        observer.session_changed(session);
    }
    // It may have been ended between its opening and the line above.
    let gone = query::session(&handle.state(), session)?.is_none();
    if !handle.is_sound() {
        // Nor is anything acknowledged that was submitted meanwhile.
        give_up_session(shared);
    } else if gone {
        shared.session_ended(session);
    }
    Ok(session)
}

/// Inodes that lost their last name before this node knew of its session.
fn release_unheld(handle: &Handle, session: SessionId) -> Result<(), NodeError> {
    let mut after = Ino(0);
    loop {
        let page = query::orphans(&handle.state(), after, PER_COMMAND)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = *last;
        for (ino, orphan) in page {
            let asked = orphan.holders.contains(&session.0);
            if asked {
                handle.release_orphan(ino);
            }
        }
    }
}

/// Tells the others what has gathered. Runs for ever.
pub(super) async fn housekeep(handle: Handle) {
    let mut every = tokio::time::interval(HOUSEKEEPING);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = handle.0.refill.notified() => {
                if let Err(error) = handle.grant_inodes().await {
                    tracing::debug!("no new inode numbers yet: {error}");
                }
                continue;
            }
        }
        if handle.session() == SessionId::CLUSTER {
            continue;
        }
        handle.0.locks.return_unused();
        let inos = std::mem::take(&mut *handle.0.released.lock());
        for inos in inos.chunks(PER_COMMAND) {
            let op = Op::ReleaseOrphans(ReleaseOrphans { inos: inos.to_vec() });
            if handle.submit(op, Wait::Here, None).await.is_err() {
                // A session that is gone holds nothing; otherwise it is said again.
                handle.0.released.lock().extend_from_slice(inos);
            }
        }
        let touched = handle.0.touches.lock().take();
        for inodes in touched.chunks(PER_COMMAND) {
            // An access time that is lost is lost.
            let op = Op::Touch(Touch { inodes: inodes.to_vec() });
            let _ = handle.submit(op, Wait::Here, None).await;
        }
        handle.0.touches.lock().settled();
        handle.0.touched.notify_waiters();
    }
}

/// Closes the session, so that nobody waits for this node any more.
pub(super) async fn close(handle: &Handle) {
    let session = handle.session();
    if session == SessionId::CLUSTER {
        return;
    }
    let op = Op::SessionEnd(SessionEnd { session: session.0, expired: false });
    let closed = handle.mutate_cluster(op);
    if tokio::time::timeout(Duration::from_secs(2), closed).await.is_err() {
        tracing::warn!(session = session.0, "no quorum closes the session: it will expire");
    }
}
