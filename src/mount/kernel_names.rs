//! Which names this mount's kernel may remember (DESIGN, section 3), and how it is made to forget them before
//! anybody may see that they have gone.
//!
//! What *others* remove or rename is dropped by a notification, which takes the directory's lock. For what is
//! removed *here* that cannot be had: the operation holds the lock until it has its reply, and its reply waits
//! for others, who may show the change before. So a name that the kernel may have is not removed at once: the
//! operation is refused with ESTALE, for which every system call looks its path up again and tries once more. That
//! look-up leaves the kernel with a name that it asks for each time, and nothing to forget.
//!
//! The last resort, making the kernel look every name up again, is not harmless: while it looks up the working
//! directory of a process, getcwd(2) fails there.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::kernel_cache::{Expiries, Grant, LATE_REPLY, LATELY, UnderWay};
use super::name_drops::Name;
use crate::types::Ino;

/// Who was to look a name up again does so within this time, or has given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The names that the kernel of one mount may remember.
#[derive(Debug, Default)]
pub(super) struct KernelNames {
    names: Arc<Mutex<Names>>,
    ids: RandomState,
}

/// Stands for a name in a directory. Two that have the same one are forgotten together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct NameId(u64);

#[derive(Debug, Default)]
struct Names {
    given: HashMap<NameId, Given>,
    /// Those that are over are dropped when there are this many.
    prune_given_at: usize,
    under_way: UnderWay<NameId>,
    /// Replies that give a name and are not written yet, each with the thread that waits for it.
    unwritten: Vec<(NameId, u32)>,
    /// Names that threads here remove or rename: they are not given.
    removers: HashMap<NameId, Vec<Remover>>,
    /// Those that have given up are dropped when there are this many.
    prune_removers_at: usize,
    /// Directories that have changed, until names other than those of directories may be given again: a new
    /// file is often renamed soon.
    changed: Expiries<Ino>,
    /// Directories that have lost names, until any may be given again.
    lost: Expiries<Ino>,
}

/// A name that was given a TTL.
#[derive(Debug)]
struct Given {
    until: Instant,
    /// When that was, the last time.
    at: Instant,
    /// The threads that were answered; 0 for one that is unknown.
    threads: Vec<u32>,
}

/// A thread that wants to remove or rename a name.
#[derive(Debug)]
struct Remover {
    thread: u32,
    step: Step,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It was refused, and is to look the name up again, before that moment.
    Refused(Instant),
    /// It has done so, and is to come back before that moment.
    LookedUp(Instant),
    AtWork,
}

impl Remover {
    fn is_live(&self, now: Instant) -> bool {
        match self.step {
            Step::Refused(until) | Step::LookedUp(until) => now < until,
            Step::AtWork => true,
        }
    }
}

/// What a removal or a rename has to do first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// The kernel has no such name cached: nothing.
    Begin,
    /// Answer ESTALE, when [`KernelNames::are_taken_in`].
    LookUpAgain,
    /// Have the kernel forget all names: whoever asks did not look the name up again, or is unknown.
    ForgetAll,
}

/// A removal or rename that is under way until its reply is written. Its names are not given meanwhile.
#[derive(Debug)]
pub(super) struct Removing {
    names: Arc<Mutex<Names>>,
    ids: Vec<NameId>,
    thread: u32,
}

impl Drop for Removing {
    fn drop(&mut self) {
        let mut names = self.names.lock();
        for id in &self.ids {
            names.end_removal(*id, self.thread);
        }
    }
}

/// Leave to cache a name, from before it is read until the reply is written.
#[derive(Debug)]
pub(super) struct NameGrant {
    names: Arc<Mutex<Names>>,
    directory: Ino,
    id: NameId,
    /// The thread that asks; 0 where it is unknown.
    thread: u32,
    /// How often the name had changed when this began.
    changes: u64,
    grant: Grant,
}

impl NameGrant {
    /// The TTL for the reply, which goes out now. None where the name has changed meanwhile, or might soon.
    pub(super) fn ttl(&self, is_directory: bool, now: Instant, lease_left: Duration) -> Duration {
        let mut names = self.names.lock();
        let is_overtaken = names.under_way.changes(self.id) != self.changes;
        let may_give = !is_overtaken && names.may_give(self, is_directory, now);
        let ttl = if may_give { self.grant.ttl(now, lease_left) } else { Duration::ZERO };
        if ttl.is_zero() {
            names.looked_up(self.id, self.thread);
        } else {
            names.give(self.id, self.thread, now, ttl);
        }
        ttl
    }
}

impl Drop for NameGrant {
    fn drop(&mut self) {
        let mut names = self.names.lock();
        names.under_way.leave(self.id);
        let this = (self.id, self.thread);
        if let Some(at) = names.unwritten.iter().position(|reply| *reply == this) {
            names.unwritten.swap_remove(at);
        }
    }
}

impl Names {
    fn may_give(&self, grant: &NameGrant, is_directory: bool, now: Instant) -> bool {
        let removers = self.removers.get(&grant.id);
        !self.lost.is_live(grant.directory, now)
            && (is_directory || !self.changed.is_live(grant.directory, now))
            && !removers.is_some_and(|removers| removers.iter().any(|one| one.is_live(now)))
    }

    fn give(&mut self, id: NameId, thread: u32, now: Instant, ttl: Duration) {
        if self.given.len() >= self.prune_given_at {
            self.given.retain(|_, given| given.until > now);
            self.prune_given_at = 2 * self.given.len() + 1024;
        }
        let until = now + ttl + LATE_REPLY;
        let fresh = || Given { until, at: now, threads: Vec::new() };
        let known = self.given.entry(id).or_insert_with(fresh);
        if known.until <= now {
            known.threads.clear();
        }
        if !known.threads.contains(&thread) {
            known.threads.push(thread);
        }
        known.until = until.max(known.until);
        known.at = now;
        self.unwritten.push((id, thread));
    }

    /// A thread was answered without leave to cache the name.
    fn looked_up(&mut self, id: NameId, thread: u32) {
        for remover in self.removers.get_mut(&id).into_iter().flatten() {
            if let Step::Refused(until) = remover.step
                && remover.thread == thread
            {
                remover.step = Step::LookedUp(until);
            }
        }
    }

    fn may_have(&self, id: NameId, now: Instant) -> bool {
        self.given.get(&id).is_some_and(|given| given.until > now)
    }

    /// What the removal of one name has to do first.
    fn ask(&self, id: NameId, thread: u32, now: Instant) -> Removal {
        let mut own = self.removers.get(&id).into_iter().flatten();
        let own = own.find(|remover| remover.thread == thread && remover.is_live(now));
        match own.map(|remover| remover.step) {
            _ if !self.may_have(id, now) => Removal::Begin,
            // The thread has had that reply, since it goes on.
            Some(Step::LookedUp(_)) => Removal::Begin,
            Some(Step::Refused(_) | Step::AtWork) => Removal::ForgetAll,
            None if thread == 0 || self.given[&id].threads.contains(&0) => Removal::ForgetAll,
            None => Removal::LookUpAgain,
        }
    }

    fn set_step(&mut self, id: NameId, thread: u32, step: Step, now: Instant) {
        if self.removers.len() >= self.prune_removers_at {
            self.removers.retain(|_, removers| {
                removers.retain(|remover| remover.is_live(now));
                !removers.is_empty()
            });
            self.prune_removers_at = 2 * self.removers.len() + 1024;
        }
        let removers = self.removers.entry(id).or_default();
        removers.retain(|one| one.thread != thread || one.step == Step::AtWork);
        removers.push(Remover { thread, step });
    }

    fn end_removal(&mut self, id: NameId, thread: u32) {
        let Some(removers) = self.removers.get_mut(&id) else { return };
        let is_this = |one: &Remover| one.thread == thread && one.step == Step::AtWork;
        if let Some(at) = removers.iter().position(is_this) {
            removers.swap_remove(at);
        }
        if removers.is_empty() {
            self.removers.remove(&id);
        }
    }
}

impl Removal {
    /// What two names ask for together.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::ForgetAll, _) | (_, Self::ForgetAll) => Self::ForgetAll,
            (Self::LookUpAgain, _) | (_, Self::LookUpAgain) => Self::LookUpAgain,
            (Self::Begin, Self::Begin) => Self::Begin,
        }
    }
}

impl KernelNames {
    fn id(&self, directory: Ino, name: &[u8]) -> NameId {
        NameId(self.ids.hash_one((directory, name)))
    }

    /// An operation is going to give a name to `thread` (0 where that is unknown). To be called before it reads.
    pub(super) fn give(
        &self,
        (directory, name): (Ino, &[u8]),
        thread: u32,
        now: Instant,
        lease_left: Duration,
    ) -> NameGrant {
        let (id, names) = (self.id(directory, name), self.names.clone());
        let changes = names.lock().under_way.enter(id);
        let grant = Grant::new(now, lease_left);
        NameGrant { names, directory, id, thread, changes, grant }
    }

    /// A thread wants to remove or rename these names: what it has to do first. From now on they are not given,
    /// until it comes back, or for a while.
    pub(super) fn ask(&self, places: &[(Ino, &[u8])], thread: u32, now: Instant) -> Removal {
        let mut names = self.names.lock();
        let ids: Vec<_> = places.iter().map(|(parent, name)| self.id(*parent, name)).collect();
        let asks = ids.iter().map(|id| names.ask(*id, thread, now));
        let removal = asks.fold(Removal::Begin, Removal::and);
        for id in ids {
            match removal {
                Removal::Begin => drop(names.given.remove(&id)),
                Removal::LookUpAgain => {
                    names.set_step(id, thread, Step::Refused(now + PATIENCE), now);
                }
                Removal::ForgetAll => {}
            }
        }
        removal
    }

    /// Whether all other threads have taken in the replies that gave them these names: a reply that came after
    /// the one to the remover's look-up would be believed.
    pub(super) fn are_taken_in(&self, places: &[(Ino, &[u8])], thread: u32) -> bool {
        let mut others = Vec::new();
        {
            let names = self.names.lock();
            for (parent, name) in places {
                let id = self.id(*parent, name);
                if names.unwritten.iter().any(|(one, other)| *one == id && *other != thread) {
                    return false;
                }
                others.extend(names.given.get(&id).into_iter().flat_map(|given| &given.threads));
            }
        }
        others.into_iter().all(|other| other == thread || !is_running(other))
    }

    /// The removal of these names begins.
    pub(super) fn remove(&self, places: &[(Ino, &[u8])], thread: u32, now: Instant) -> Removing {
        let ids: Vec<_> = places.iter().map(|(parent, name)| self.id(*parent, name)).collect();
        let mut names = self.names.lock();
        for ((directory, _), id) in places.iter().zip(&ids) {
            names.lost.note(*directory, now + LATELY, now);
            names.set_step(*id, thread, Step::AtWork, now);
        }
        Removing { names: self.names.clone(), ids, thread }
    }

    /// The names of a directory are listed: whoever does that is going to look at some. A new file among them is no
    /// reason not to give them any more.
    pub(super) fn listed(&self, directory: Ino, now: Instant) {
        self.names.lock().changed.take(directory, now);
    }

    /// A name changed; `existed` where the kernel may have it with its old meaning. Whether it has to be dropped.
    pub(super) fn changed(
        &self,
        (directory, name): (Ino, &[u8]),
        existed: bool,
        now: Instant,
    ) -> bool {
        let mut names = self.names.lock();
        names.changed.note(directory, now + LATELY, now);
        if !existed {
            return false;
        }
        let id = self.id(directory, name);
        names.lost.note(directory, now + LATELY, now);
        names.under_way.changed(id);
        names.may_have(id, now)
    }

    /// Whether the kernel may have that name.
    pub(super) fn may_have(&self, (directory, name): (Ino, &[u8]), now: Instant) -> bool {
        self.names.lock().may_have(self.id(directory, name), now)
    }

    /// The kernel has dropped these names, which had changed at that moment.
    pub(super) fn dropped(&self, dropped: &[Name], changed: Instant) {
        let mut names = self.names.lock();
        for (directory, name) in dropped {
            let id = self.id(*directory, name);
            if names.given.get(&id).is_some_and(|given| given.at <= changed) {
                names.given.remove(&id);
            }
        }
    }

    /// Has the kernel forget all names, which `bump` makes it do (or not): also those that are under way, so
    /// that nothing is lost between the two. No name is given in between, that would not be remembered here.
    pub(super) fn forget_all(&self, bump: impl FnOnce() -> bool) {
        let mut names = self.names.lock();
        if bump() {
            names.given.clear();
        }
    }
}

/// Whether a thread may not have run since it was woken by a reply (proc_pid_stat(5)): one that sleeps, or is no
/// more, has.
fn is_running(thread: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{thread}/stat"));
    let state = |stat: &str| stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    stat.is_ok_and(|stat| matches!(state(&stat), Some('R') | None))
}

#[cfg(test)]
mod tests {
    use super::{Duration, Ino, Instant, KernelNames, LATE_REPLY, LATELY, PATIENCE, Removal, fs};

    const LEASE: Duration = Duration::from_secs(2);
    const DIR: Ino = Ino(1);
    const NAME: (Ino, &[u8]) = (DIR, b"name");
    const OTHER: (Ino, &[u8]) = (DIR, b"other");
    const THREAD: u32 = 7;
    /// The largest there can be is 4,194,304.
    const NO_THREAD: u32 = 4_200_000;

    fn names() -> (KernelNames, Instant) {
        (KernelNames::default(), Instant::now())
    }

    fn give(names: &KernelNames, place: (Ino, &[u8]), thread: u32, now: Instant) -> bool {
        !names.give(place, thread, now, LEASE).ttl(false, now, LEASE).is_zero()
    }

    /// Without a lease nothing is cached, so nothing has to be dropped.
    #[test]
    fn no_lease_no_cache() {
        let (names, now) = names();
        let grant = names.give(NAME, THREAD, now, Duration::ZERO);
        assert_eq!(grant.ttl(true, now, LEASE), Duration::ZERO);
        assert!(!names.changed(NAME, true, now));
        let grant = names.give(OTHER, THREAD, now, LEASE);
        assert_eq!(grant.ttl(true, now, Duration::ZERO), Duration::ZERO, "lapsed meanwhile");
    }

    /// A name that was given is dropped when it changes, another is not; and of a directory that changes none
    /// is given for a while, but those of directories where only new ones come.
    #[test]
    fn changes_take_names_back() {
        let (names, now) = names();
        assert!(give(&names, NAME, THREAD, now));
        assert!(!names.changed((DIR, b"new"), false, now));
        assert!(!give(&names, (DIR, b"file"), THREAD, now));
        names.listed(DIR, now);
        assert!(give(&names, (DIR, b"listed"), THREAD, now));
        let directory = names.give((DIR, b"sub"), THREAD, now, LEASE);
        assert_eq!(directory.ttl(true, now, LEASE), LEASE);
        assert!(!names.changed((DIR, b"file"), true, now), "never given");
        assert_eq!(directory.ttl(true, now, LEASE), Duration::ZERO);
        assert!(names.may_have(NAME, now) && names.changed(NAME, true, now));
        names.dropped(&[(DIR, b"name".to_vec())], now);
        assert!(!names.changed(NAME, true, now));
        assert!(names.changed((DIR, b"sub"), true, now));
        names.forget_all(|| false);
        assert!(names.changed((DIR, b"sub"), true, now), "the kernel did not");
        names.forget_all(|| true);
        assert!(!names.changed((DIR, b"sub"), true, now));
        let later = now + LATELY;
        assert!(give(&names, NAME, THREAD, later));
        names.dropped(&[(DIR, b"name".to_vec())], now);
        assert!(names.may_have(NAME, later), "given after the one that was dropped");
        assert!(!names.may_have(NAME, later + LEASE + LATE_REPLY), "its TTL is over");
        drop(directory);
        assert!(names.names.lock().under_way.is_empty());
        assert!(names.names.lock().unwritten.is_empty());
    }

    /// A reply that is under way when its name changes is not cached, however long it takes.
    #[test]
    fn names_under_way_are_overtaken() {
        let (names, now) = names();
        let [grant, other] = [NAME, OTHER].map(|place| names.give(place, THREAD, now, LEASE));
        assert!(!names.changed(NAME, true, now));
        let later = now + LATELY;
        assert_eq!(grant.ttl(true, later, LEASE), Duration::ZERO);
        assert_eq!(other.ttl(true, later, LEASE), (now + LEASE).duration_since(later));
    }

    /// What the kernel may have is looked up again before it is removed, by each thread that wants to remove
    /// it, however long that takes; nobody is sent back twice.
    #[test]
    fn own_removals_look_up_again() {
        let (names, now) = names();
        let ask = |thread, now| names.ask(&[NAME, OTHER], thread, now);
        assert_eq!(ask(THREAD, now), Removal::Begin);
        assert!(give(&names, NAME, THREAD, now));
        assert_eq!(ask(THREAD, now), Removal::LookUpAgain);
        assert_eq!(ask(8, now), Removal::LookUpAgain);
        assert!(names.changed(NAME, true, now), "others may change it meanwhile");
        let later = now + LATELY;
        assert!(!give(&names, NAME, THREAD, later) && !give(&names, NAME, 9, later));
        assert_eq!(ask(8, later), Removal::ForgetAll, "it did not look it up");
        assert_eq!(ask(THREAD, later), Removal::Begin);
        let removing = names.remove(&[NAME, OTHER], THREAD, later);
        assert_eq!(ask(8, later), Removal::Begin, "it has gone from the kernel");
        let later = later + LATELY;
        assert!(!give(&names, NAME, THREAD, later), "while it is being removed");
        drop(removing);
        assert!(!give(&names, NAME, THREAD, later), "8 may come yet");
        assert!(give(&names, NAME, THREAD, now + PATIENCE));
    }

    /// Removals of one name by several, or by unknown threads, are each ended once.
    #[test]
    fn names_are_given_after_the_last_removal() {
        let (names, now) = names();
        let [one, two] = [0, 0].map(|thread| names.remove(&[NAME], thread, now));
        let later = now + LATELY;
        drop(one);
        assert!(!give(&names, NAME, THREAD, later));
        drop(two);
        assert!(give(&names, NAME, THREAD, later));
        assert!(names.names.lock().removers.is_empty());
    }

    /// Who cannot be told apart has the kernel forget all names.
    #[test]
    fn unknown_threads() {
        let (names, now) = names();
        assert!(give(&names, NAME, THREAD, now) && give(&names, OTHER, 0, now));
        assert_eq!(names.ask(&[NAME], 0, now), Removal::ForgetAll);
        assert_eq!(names.ask(&[OTHER], THREAD, now), Removal::ForgetAll);
        assert_eq!(names.ask(&[NAME], THREAD, now), Removal::LookUpAgain);
    }

    /// A reply is taken in when it is written and its thread has slept since, or is no more.
    #[test]
    fn replies_are_taken_in() {
        let (names, now) = names();
        let grant = names.give(NAME, NO_THREAD, now, LEASE);
        assert!(!grant.ttl(true, now, LEASE).is_zero());
        assert!(names.are_taken_in(&[NAME], NO_THREAD), "whoever goes on has had the reply");
        assert!(!names.are_taken_in(&[OTHER, NAME], THREAD), "not written yet");
        drop(grant);
        assert!(names.are_taken_in(&[OTHER, NAME], THREAD));
        // A test does not sleep while it looks at itself.
        let own = fs::read_link("/proc/thread-self").expect("a link to PID/task/TID");
        let own = own.file_name().and_then(|own| own.to_str()?.parse().ok()).expect("a number");
        assert!(give(&names, OTHER, own, now));
        assert!(!names.are_taken_in(&[OTHER, NAME], THREAD));
        assert!(names.are_taken_in(&[OTHER, NAME], own));
    }
}
