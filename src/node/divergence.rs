//! What this replica does about how its state compares with those of the others.
//!
//! The log says now and then what most replicas' states came to (`fs::Ledger`). One that differs says so, on its disk
//! first, gives up its session and leads nobody; it applies nothing more, and has another state take the place of its own
//! (`node/healing.rs`). Where no majority is known, all give up their sessions until there is one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::Handle;
use super::shared::Shared;
use crate::consensus::{Input, Sample, Standing};
use crate::fs::{Batch, Digest, Finding, Ledger, Verdict};
use crate::store::{DataDir, State, StoreError, put_ledger};
use crate::types::{LogIndex, SessionId};

/// How this replica compares, and what its digests were.
#[derive(Debug)]
pub(super) struct Comparison {
    ledger: Mutex<Ledger>,
    standing: watch::Sender<Standing>,
    /// What reads ask.
    is_sound: AtomicBool,
    /// Why it is not sound, as a sentence.
    why: Mutex<String>,
    retracing: Mutex<Retracing>,
    /// In this process, it was found equal to the majority.
    was_equal: watch::Sender<bool>,
}

/// What is known of the state that this replica's own snapshot and log lead to.
#[derive(Debug, Default)]
struct Retracing {
    /// It has taken the place of another one, and nobody has found it equal since.
    is_untried: bool,
    /// It is of no use: what was wrong comes again.
    fails: bool,
    /// The last entry of doubt for which it was looked at.
    examined: LogIndex,
    /// Why it, or another one, could not be built when that was last tried, and when it is tried again.
    hindered: Option<(String, Instant)>,
}

impl Comparison {
    /// As the last process left it.
    pub(super) fn of(state: &State, dir: &DataDir) -> Result<Self, StoreError> {
        let ledger = state.ledger()?;
        let (standing, why) = match (dir.diverged()?, ledger.doubt()) {
            (Some(since), _) => (Standing::Diverged, format!("it differed before, since {since}")),
            (None, Some(index)) => (Standing::Doubtful, no_majority(index)),
            (None, None) => (Standing::Sound, String::new()),
        };
        if standing != Standing::Sound {
            tracing::error!("this replica serves nothing: {why}");
        }
        Ok(Self {
            ledger: Mutex::new(ledger),
            standing: watch::channel(standing).0,
            is_sound: AtomicBool::new(standing == Standing::Sound),
            why: Mutex::new(why),
            retracing: Mutex::default(),
            was_equal: watch::channel(false).0,
        })
    }

    pub(super) fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    pub(super) fn is_sound(&self) -> bool {
        self.is_sound.load(Ordering::Acquire)
    }

    /// Answers what it was before.
    fn set(&self, standing: Standing) -> Standing {
        self.is_sound.store(standing == Standing::Sound, Ordering::Release);
        self.standing.send_replace(standing)
    }

    pub(super) fn is_diverged(&self) -> bool {
        self.standing() == Standing::Diverged
    }

    pub(super) fn changes(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Whether a snapshot of the state at `index` may count.
    pub(super) fn attests(&self, index: LogIndex, digest: Digest) -> bool {
        self.ledger.lock().attests(index, digest)
    }

    /// Another state has taken the place of this one, and counts.
    pub(super) fn state_replaced(&self, state: &State) -> Result<(), StoreError> {
        let ledger = state.ledger()?;
        let doubt = ledger.doubt();
        *self.ledger.lock() = ledger;
        if let Some(index) = doubt {
            *self.why.lock() = no_majority(index);
            self.set(Standing::Doubtful);
        } else if self.set(Standing::Sound) != Standing::Sound {
            tracing::warn!("this replica has another state, and serves again");
        }
        Ok(())
    }

    /// Up to where what this replica has may count as on its disk: what is in doubt may go.
    pub(super) fn counts(&self) -> LogIndex {
        if self.is_sound() { LogIndex(u64::MAX) } else { self.ledger.lock().equal() }
    }

    /// Told once this replica was found equal to the majority in this process.
    pub(super) fn was_equal(&self) -> watch::Receiver<bool> {
        self.was_equal.subscribe()
    }

    fn is_equal(&self) {
        *self.retracing.lock() = Retracing::default();
        self.was_equal.send_if_modified(|was| !std::mem::replace(was, true));
    }

    /// Whether the state that this replica's own snapshot and log lead to may be the right one.
    pub(super) fn may_retrace(&self) -> bool {
        let mut retracing = self.retracing.lock();
        retracing.fails |= retracing.is_untried;
        !retracing.fails
    }

    /// It has taken the place of this one.
    pub(super) fn retraced(&self) {
        self.retracing.lock().is_untried = true;
    }

    /// It is none, or not the right one.
    pub(super) fn retracing_fails(&self) {
        self.retracing.lock().fails = true;
    }

    /// Another state cannot be built beside this one, as a sentence says: it is not tried before `again`.
    pub(super) fn cannot_now(&self, why: String, again: Instant) {
        self.retracing.lock().hindered = Some((why, again));
    }

    /// One was built.
    pub(super) fn can_again(&self) {
        self.retracing.lock().hindered = None;
    }

    /// Whether that is so still.
    pub(super) fn is_hindered(&self) -> bool {
        let hindered = &self.retracing.lock().hindered;
        hindered.as_ref().is_some_and(|(_, again)| Instant::now() < *again)
    }

    /// Whether the state at `index` was found to be that of the majority, whatever is known of this one.
    pub(super) fn was_equal_at(&self, index: LogIndex, digest: Digest) -> bool {
        self.ledger.lock().was_equal_at(index, digest)
    }

    /// The entry at which the voters differ, with this replica's digest there, unless that was looked at.
    pub(super) fn to_examine(&self) -> Option<(LogIndex, Digest)> {
        let ledger = self.ledger.lock();
        let index = ledger.doubt()?;
        let found = ledger.sample_at(index)?;
        (self.retracing.lock().examined < index).then_some((index, found))
    }

    pub(super) fn examined(&self, index: LogIndex) {
        self.retracing.lock().examined = index;
    }
}

/// This replica has come, with `batch`, to an entry that says what most states came to at an earlier one. Answers what the
/// core is to be told.
pub(super) fn compare(
    shared: &Shared,
    verdict: Verdict,
    at: LogIndex,
    batch: &mut Batch,
) -> Result<Input, StoreError> {
    let mut digest = shared.state.digest();
    digest.merge(batch.digest);
    let finding = {
        let mut ledger = shared.comparison.ledger.lock();
        let finding = ledger.judge(verdict);
        ledger.sample(at, digest);
        put_ledger(batch, &ledger);
        finding
    };
    match finding {
        Finding::Equal => {
            shared.comparison.is_equal();
            stand(shared, Standing::Sound, "");
        }
        Finding::Doubt => stand(shared, Standing::Doubtful, &no_majority(verdict.index)),
        Finding::Differs { index, expected, found } => {
            let why =
                format!("at entry {index} its digest was {found}, that of most is {expected}");
            diverge(shared, &why)?;
        }
        Finding::Nothing => {}
    }
    let sample = Sample { index: at, digest: digest.0 };
    Ok(Input::Sampled { sample, judged: verdict.index })
}

/// This replica's state is not what it should be.
pub(super) fn diverge(shared: &Shared, why: &str) -> Result<(), StoreError> {
    if !shared.comparison.is_diverged() {
        let since = shared.comparison.ledger.lock().equal();
        shared.config.directory.set_diverged(since)?;
        stand(shared, Standing::Diverged, why);
    }
    Ok(())
}

fn stand(shared: &Shared, standing: Standing, why: &str) {
    let comparison = &shared.comparison;
    let mut known = comparison.why.lock();
    let before = comparison.standing();
    // Who differs does so until its state is replaced, whatever was under way.
    if before == standing || before == Standing::Diverged {
        return;
    }
    why.clone_into(&mut known);
    comparison.set(standing);
    drop(known);
    match standing {
        Standing::Sound => {
            tracing::warn!("this replica is one of the majority, and serves again");
        }
        Standing::Doubtful | Standing::Diverged => {
            tracing::error!(node = shared.node.0, "this replica serves nothing: {why}");
        }
    }
    shared.input(Input::Stands(standing));
    // What it says of its disk changes with it.
    shared.space.look_again.notify_one();
    if before == Standing::Sound {
        give_up_session(shared);
    }
}

/// What waited under it is not acknowledged any more: what it came to here may be wrong.
pub(super) fn give_up_session(shared: &Shared) {
    let session = shared.mutations.session();
    for key in shared.mutations.leave() {
        shared.input(Input::Abandon { key });
    }
    if session != SessionId::CLUSTER {
        shared.session_ended(session);
    }
    for (_, observer) in shared.observers.all().iter() {
        let observer = observer.clone();
        // It may wait for the kernel.
        std::thread::spawn(move || observer.lease_lost());
    }
}

fn no_majority(index: LogIndex) -> String {
    format!(
        "the voters differ at entry {index}, and no majority of them agrees: bring back those that are away; if that \
         does not help, see 'When replicas differ' in docs/recovery.md"
    )
}

impl Handle {
    /// Why this replica serves nothing, where its state is not known to be that of the others.
    #[must_use]
    pub fn divergence(&self) -> Option<String> {
        let why = self.0.comparison.why.lock().clone();
        match self.0.comparison.standing() {
            Standing::Sound => None,
            Standing::Doubtful => Some(format!("{why}{}", self.what_hinders())),
            Standing::Diverged => Some(format!(
                "the state of this replica differs from the others' ({why}): {}, and what changed since it was equal \
                 last is fetched{}",
                self.how_it_heals(),
                self.what_hinders()
            )),
        }
    }

    fn what_hinders(&self) -> String {
        let hindered = &self.0.comparison.retracing.lock().hindered;
        let why =
            hindered.as_ref().map(|(why, _)| format!("; another state cannot be built now: {why}"));
        why.unwrap_or_default()
    }

    fn how_it_heals(&self) -> &'static str {
        if !self.0.comparison.retracing.lock().fails {
            return "it builds it anew from its own snapshot and log";
        }
        if self.0.transport.peers().into_iter().any(|node| self.0.transport.is_connected(node)) {
            "what it builds from its own snapshot and log does so, too, so it takes that of another node"
        } else {
            "what it builds from its own snapshot and log does so, too, and no node is connected whose it could take"
        }
    }

    /// Whether anything of this replica's state may be shown.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.0.comparison.is_sound()
    }

    /// Waits until it may.
    ///
    /// # Errors
    /// [`super::NodeError::Deadline`] where that takes too long.
    pub async fn until_sound(&self) -> Result<(), super::NodeError> {
        while !self.is_sound() {
            let mut changes = self.0.comparison.changes();
            let sound = async { changes.wait_for(|now| *now == Standing::Sound).await.map(drop) };
            self.within(sound).await?.map_err(|_| super::NodeError::Stopping)?;
        }
        Ok(())
    }
}
