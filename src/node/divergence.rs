//! What this replica does about how its state compares with those of the others.
//!
//! The log says now and then what most replicas' states came to (`fs::Ledger`). One that differs says so, on its disk
//! first, gives up its session and leads nobody; it applies nothing more, and takes a peer's state in the place of its own
//! (`node/install.rs`). Where no majority is known, all give up their sessions until there is one.

use std::sync::atomic::{AtomicBool, Ordering};

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

    /// A peer's state has taken the place of this one, and counts.
    pub(super) fn state_replaced(&self, state: &State) -> Result<(), StoreError> {
        *self.ledger.lock() = state.ledger()?;
        let before = self.set(Standing::Sound);
        if before != Standing::Sound {
            tracing::warn!("this replica has a peer's state, and serves again");
        }
        Ok(())
    }
}

/// This replica has come, with `batch`, to an entry that says what most states came to at an earlier one.
pub(super) fn compare(
    shared: &Shared,
    verdict: Verdict,
    at: LogIndex,
    batch: &mut Batch,
) -> Result<Sample, StoreError> {
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
        Finding::Equal => stand(shared, Standing::Sound, ""),
        Finding::Doubt => stand(shared, Standing::Doubtful, &no_majority(verdict.index)),
        Finding::Differs { index, expected, found } => {
            let why =
                format!("at entry {index} its digest was {found}, that of most is {expected}");
            diverge(shared, &why)?;
        }
        Finding::Nothing => {}
    }
    Ok(Sample { index: at, digest: digest.0 })
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
    if before == Standing::Sound {
        give_up_session(shared);
    }
}

/// What waited under it is not acknowledged any more: what it came to here may be wrong.
fn give_up_session(shared: &Shared) {
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
            Standing::Doubtful => Some(why),
            Standing::Diverged => Some(format!(
                "the state of this replica differs from the others' ({why}): it takes a peer's, and all that changed \
                 since it was equal last is fetched"
            )),
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
