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
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::kernel_cache::{Expiries, Grant, LATE_REPLY, LATELY, UnderWay};
use super::notify::Name;
use crate::types::Ino;

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
    /// Names that are over are dropped when there are this many.
    prune_at: usize,
    under_way: UnderWay<NameId>,
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
    /// The thread that was answered; none where several were within a short time, or it is unknown.
    thread: Option<u32>,
    /// Threads that were to look it up again before they remove it, and whether they have.
    removers: Vec<(u32, bool)>,
}

/// What a removal or a rename has to do first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// The kernel has no such name cached.
    Begin,
    /// Answer ESTALE at that moment.
    LookUpAgain(Instant),
    /// The kernel has to forget all names: whoever asks did not look the name up again.
    ForgetAll,
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
        if is_overtaken || !names.may_give(self.directory, is_directory, now) {
            names.looked_up(self.id, self.thread);
            return Duration::ZERO;
        }
        let ttl = self.grant.ttl(now, lease_left);
        if !ttl.is_zero() {
            names.give(self.id, self.thread, now, ttl);
        }
        ttl
    }
}

impl Drop for NameGrant {
    fn drop(&mut self) {
        self.names.lock().under_way.leave(self.id);
    }
}

impl Names {
    fn may_give(&self, directory: Ino, is_directory: bool, now: Instant) -> bool {
        !self.lost.is_live(directory, now)
            && (is_directory || !self.changed.is_live(directory, now))
    }

    fn give(&mut self, id: NameId, thread: u32, now: Instant, ttl: Duration) {
        if self.given.len() >= self.prune_at {
            self.given.retain(|_, given| given.until > now);
            self.prune_at = 2 * self.given.len() + 1024;
        }
        let thread = Some(thread).filter(|thread| *thread != 0);
        let until = now + ttl + LATE_REPLY;
        let known =
            self.given.entry(id).or_insert(Given { until, at: now, thread, removers: Vec::new() });
        if known.thread != thread && now < known.at + LATE_REPLY {
            known.thread = None;
        } else {
            known.thread = thread;
        }
        known.until = until.max(known.until);
        known.at = now;
        known.removers.clear();
    }

    /// A thread was given the name without a TTL.
    fn looked_up(&mut self, id: NameId, thread: u32) {
        if let Some(given) = self.given.get_mut(&id) {
            let removers = given.removers.iter_mut();
            removers.filter(|(remover, _)| *remover == thread).for_each(|(_, has)| *has = true);
        }
    }

    fn may_have(&self, id: NameId, now: Instant) -> bool {
        self.given.get(&id).is_some_and(|given| given.until > now)
    }

    fn begin_removal(&mut self, id: NameId, thread: u32, now: Instant) -> Removal {
        let Some(given) = self.given.get_mut(&id).filter(|given| given.until > now) else {
            return Removal::Begin;
        };
        match given.removers.iter().find(|(remover, _)| *remover == thread) {
            // The thread has had the reply, since it goes on.
            Some((_, true)) => {
                self.given.remove(&id);
                Removal::Begin
            }
            Some((_, false)) => Removal::ForgetAll,
            None if thread == 0 => Removal::ForgetAll,
            None => {
                given.removers.push((thread, false));
                // A reply that another thread has yet to take in must not come after the one to this look-up.
                let is_own = given.thread == Some(thread);
                Removal::LookUpAgain(if is_own { now } else { given.at + LATE_REPLY })
            }
        }
    }
}

impl Removal {
    /// What two names ask for together.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::ForgetAll, _) | (_, Self::ForgetAll) => Self::ForgetAll,
            (Self::LookUpAgain(one), Self::LookUpAgain(two)) => Self::LookUpAgain(one.max(two)),
            (Self::LookUpAgain(at), Self::Begin) | (Self::Begin, Self::LookUpAgain(at)) => {
                Self::LookUpAgain(at)
            }
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

    /// A thread wants to remove or rename these names. Until it is done, or for a while, they are not given any
    /// more.
    pub(super) fn begin_removal(
        &self,
        places: &[(Ino, &[u8])],
        thread: u32,
        now: Instant,
    ) -> Removal {
        let mut names = self.names.lock();
        let mut removal = Removal::Begin;
        for (directory, name) in places {
            names.lost.note(*directory, now + LATELY, now);
            removal = removal.and(names.begin_removal(self.id(*directory, name), thread, now));
        }
        removal
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

    /// The kernel has dropped these names, after they had changed: none was given since.
    pub(super) fn dropped(&self, dropped: &[Name]) {
        let mut names = self.names.lock();
        for (directory, name) in dropped {
            names.given.remove(&self.id(*directory, name));
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

#[cfg(test)]
mod tests {
    use super::{Duration, Ino, Instant, KernelNames, LATE_REPLY, LATELY, Removal};

    const LEASE: Duration = Duration::from_secs(2);
    const DIR: Ino = Ino(1);
    const NAME: (Ino, &[u8]) = (DIR, b"name");
    const THREAD: u32 = 7;

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
        let grant = names.give(NAME, THREAD, now, LEASE);
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
        let directory = names.give((DIR, b"sub"), THREAD, now, LEASE);
        assert_eq!(directory.ttl(true, now, LEASE), LEASE);
        assert!(!names.changed((DIR, b"file"), true, now), "never given");
        assert_eq!(directory.ttl(true, now, LEASE), Duration::ZERO);
        assert!(names.may_have(NAME, now) && names.changed(NAME, true, now));
        names.dropped(&[(DIR, b"name".to_vec())]);
        assert!(!names.changed(NAME, true, now));
        assert!(names.changed((DIR, b"sub"), true, now));
        names.forget_all(|| false);
        assert!(names.changed((DIR, b"sub"), true, now), "the kernel did not");
        names.forget_all(|| true);
        assert!(!names.changed((DIR, b"sub"), true, now));
        assert!(give(&names, NAME, THREAD, now + LATELY));
        assert!(!names.may_have(NAME, now + LATELY + LEASE + LATE_REPLY), "its TTL is over");
        drop(directory);
        assert!(names.names.lock().under_way.is_empty());
    }

    /// A reply that is under way when its name changes is not cached, however long it takes.
    #[test]
    fn names_under_way_are_overtaken() {
        let (names, now) = names();
        let [grant, other] =
            [NAME, (DIR, b"other")].map(|place| names.give(place, THREAD, now, LEASE));
        assert!(!names.changed(NAME, true, now));
        let later = now + LATELY;
        assert_eq!(grant.ttl(true, later, LEASE), Duration::ZERO);
        assert_eq!(other.ttl(true, later, LEASE), (now + LEASE).duration_since(later));
    }

    /// What the kernel may have is looked up again before it is removed, by each thread that wants to remove it.
    #[test]
    fn own_removals_look_up_again() {
        let (names, now) = names();
        let begin = |thread, now| names.begin_removal(&[NAME, (DIR, b"other")], thread, now);
        assert_eq!(begin(THREAD, now), Removal::Begin);
        let now = now + LATELY;
        assert!(give(&names, NAME, THREAD, now));
        assert_eq!(begin(THREAD, now), Removal::LookUpAgain(now));
        assert_eq!(begin(8, now), Removal::LookUpAgain(now + LATE_REPLY), "7 may not have it yet");
        assert!(names.changed(NAME, true, now), "others may change it meanwhile");
        assert!(!give(&names, NAME, THREAD, now));
        assert_eq!(begin(8, now), Removal::ForgetAll, "it did not look it up");
        assert_eq!(begin(THREAD, now), Removal::Begin);
        assert_eq!(begin(8, now), Removal::Begin, "it has gone from the kernel");
    }

    /// Who cannot be told apart has the kernel forget all names.
    #[test]
    fn unknown_threads() {
        let (names, now) = names();
        assert!(give(&names, NAME, 0, now));
        assert_eq!(names.begin_removal(&[NAME], 0, now), Removal::ForgetAll);
        assert_eq!(
            names.begin_removal(&[NAME], THREAD, now),
            Removal::LookUpAgain(now + LATE_REPLY)
        );
    }
}
