//! What this mount's kernel may remember, and what has to be done so that it forgets (DESIGN,
//! section 3). Pure decisions: the clock and the lease come as arguments, notifications go out in
//! `notify`.
//!
//! The order that makes it safe: an operation registers what it may be going to give (attributes of
//! an inode, names of a directory) *before* it reads the state; a change is looked up here *after*
//! it is in the state. So either the operation reads the change, or the change finds the operation.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::types::{Ino, LogIndex};

/// For so long after such a change the names of a directory, or attributes, are not cached: many changes in a
/// row then cost the kernel its names once, and drop one reply at most.
const LATELY: Duration = Duration::from_secs(1);

/// A reply may reach the kernel this much later than its TTL was computed without outliving the
/// lease: what the node keeps back in `Handle::lease_left` covers it.
const LATE_REPLY: Duration = Duration::from_millis(20);

/// Leave to cache something, until a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant(Option<Instant>);

impl Grant {
    /// Nothing may be cached.
    pub(super) const NONE: Self = Self(None);

    /// The TTL for a reply that goes out now.
    pub(super) fn ttl(self, now: Instant, lease_left: Duration) -> Duration {
        self.0.map_or(Duration::ZERO, |until| until.saturating_duration_since(now).min(lease_left))
    }
}

/// Leave to cache attributes of an inode, from before they are read until the reply is written.
#[derive(Debug)]
pub(super) struct AttributeGrant {
    attributes: Arc<Mutex<Attributes>>,
    ino: Ino,
    /// How often they had changed when this began.
    changes: u64,
    grant: Grant,
}

impl AttributeGrant {
    /// The TTL for the reply, which goes out now. None where a change has come meanwhile: that one told the
    /// kernel nothing, since it would have thrown this reply away.
    pub(super) fn ttl(&self, now: Instant, lease_left: Duration) -> Duration {
        let mut attributes = self.attributes.lock();
        let is_overtaken = attributes.changes(self.ino) != self.changes;
        let ttl = if is_overtaken { Duration::ZERO } else { self.grant.ttl(now, lease_left) };
        if !ttl.is_zero() {
            attributes.given.note(self.ino, now + ttl + LATE_REPLY, now);
        }
        ttl
    }
}

impl Drop for AttributeGrant {
    fn drop(&mut self) {
        self.attributes.lock().leave(self.ino);
    }
}

/// Whether a reply with this TTL, written just now, may outlive the lease: the daemon was stopped
/// between computing the TTL and writing it, and the lease was not renewed meanwhile.
pub(super) fn outlives_lease(ttl: Duration, lease_left: Duration) -> bool {
    !ttl.is_zero() && ttl > lease_left + LATE_REPLY
}

/// What a change of a cached name asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameAction {
    /// The kernel has no name of that directory.
    Nothing,
    /// Drop the one name.
    Invalidate,
    /// An operation here may hold the directory's lock, or be about to plant the old name.
    BumpEpoch,
}

/// What the kernel of one mount may remember.
#[derive(Debug, Default)]
pub(super) struct KernelCache {
    attributes: Arc<Mutex<Attributes>>,
    /// Inodes of which the kernel may have ACLs, or know that there are none: it keeps them until it
    /// forgets the inode or its attributes, whatever TTL those have.
    acls: Mutex<HashSet<Ino>>,
    names: Mutex<Names>,
    /// The `data_version` that the kernel's pages of an inode correspond to.
    pages: Mutex<HashMap<Ino, LogIndex>>,
    /// What a mutation of unknown outcome touched: even our own changes of it surprise the kernel.
    doubtful: Mutex<HashSet<Ino>>,
}

/// The kernel throws away the reply to a GETATTR that was under way when it is told to forget the inode's
/// attributes, and then judges permissions by what it had before. So it is told only where it may have a reply
/// with a TTL: one that is under way goes without.
#[derive(Debug, Default)]
struct Attributes {
    /// Replies with a TTL.
    given: Expiries,
    /// Inodes that others have changed while the kernel was interested; until they may be given again.
    lately: Expiries,
    /// GETATTRs from before they read until their reply is written: how many, and how often the inode has
    /// changed meanwhile.
    under_way: HashMap<Ino, (usize, u64)>,
}

impl Attributes {
    fn enter(&mut self, ino: Ino) -> u64 {
        let (count, changes) = self.under_way.entry(ino).or_default();
        *count += 1;
        *changes
    }

    fn leave(&mut self, ino: Ino) {
        if let Some((count, _)) = self.under_way.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(&ino);
            }
        }
    }

    fn changes(&self, ino: Ino) -> u64 {
        self.under_way.get(&ino).map_or(0, |(_, changes)| *changes)
    }

    /// Whether the kernel has to be told that they changed.
    fn take(&mut self, ino: Ino, own: bool, now: Instant) -> bool {
        let was_given = self.given.take(ino, now);
        let under_way = self.under_way.get_mut(&ino).map(|(_, changes)| *changes += 1);
        if !own && (was_given || under_way.is_some()) {
            self.lately.note(ino, now + LATELY, now);
        }
        was_given
    }

    fn take_all(&mut self, now: Instant) -> Vec<Ino> {
        self.under_way.values_mut().for_each(|(_, changes)| *changes += 1);
        self.given.take_all(now)
    }
}

#[derive(Debug, Default)]
struct Names {
    /// Directories of which names were given.
    given: Expiries,
    /// Directories that have changed, by whomever, until names may be given again: names that are about to be
    /// removed or renamed are not cached then, and the kernel need not be made to forget all names for them.
    /// (While it looks a directory up again for that reason, getcwd(2) fails in it.)
    lately: Expiries,
    /// Number of operations on a directory, from before they read until their reply is written.
    in_flight: HashMap<Ino, usize>,
}

impl Names {
    fn action(&self, directory: Ino, existed: bool, now: Instant) -> NameAction {
        if !existed || !self.given.is_live(directory, now) {
            NameAction::Nothing
        } else if self.in_flight.contains_key(&directory) {
            NameAction::BumpEpoch
        } else {
            NameAction::Invalidate
        }
    }
}

impl KernelCache {
    /// An operation is going to give attributes of `ino`. To be called before it reads them.
    pub(super) fn give_attributes(
        &self,
        ino: Ino,
        now: Instant,
        lease_left: Duration,
    ) -> AttributeGrant {
        let mut attributes = self.attributes.lock();
        let none = lease_left.is_zero() || attributes.lately.is_live(ino, now);
        let grant = if none { Grant::NONE } else { Grant(Some(now + lease_left)) };
        let changes = attributes.enter(ino);
        AttributeGrant { attributes: self.attributes.clone(), ino, changes, grant }
    }

    /// An operation is going to give an ACL of `ino`, or say that there is none. To be called before it
    /// reads.
    pub(super) fn give_acl(&self, ino: Ino) {
        self.acls.lock().insert(ino);
    }

    /// The inode's attributes changed: whether the kernel may have them, or ACLs, which it drops with
    /// them.
    pub(super) fn take_attributes(&self, ino: Ino, own: bool, now: Instant) -> bool {
        let had_acl = self.acls.lock().remove(&ino);
        self.take_times(ino, own, now) || had_acl
    }

    /// The same for a change that leaves its ACLs as they are.
    pub(super) fn take_times(&self, ino: Ino, own: bool, now: Instant) -> bool {
        self.attributes.lock().take(ino, own, now)
    }

    /// All inodes whose attributes or ACLs the kernel may have.
    pub(super) fn take_all_attributes(&self, now: Instant) -> HashSet<Ino> {
        let mut all = mem::take(&mut *self.acls.lock());
        all.extend(self.attributes.lock().take_all(now));
        all
    }

    /// An operation is going to give a name of `directory`. To be called before it reads.
    pub(super) fn give_name(&self, directory: Ino, now: Instant, lease_left: Duration) -> Grant {
        let mut names = self.names.lock();
        if names.lately.is_live(directory, now) {
            return Grant::NONE;
        }
        give(&mut names.given, directory, now, lease_left)
    }

    /// A rename is going to take names between these directories, with the TTLs that they have. One that gets
    /// its TTL later, before the rename is received, has the kernel forget all names then.
    pub(super) fn move_names(&self, directories: [Ino; 2], now: Instant) {
        let given = &mut self.names.lock().given;
        let until = directories.iter().filter_map(|directory| given.until.get(directory)).max();
        if let Some(until) = until.copied().filter(|until| *until > now) {
            for directory in directories {
                given.note(directory, until, now);
            }
        }
    }

    /// An operation on these directories begins; to be ended by [`Self::leave`].
    pub(super) fn enter(&self, directories: &[Ino]) {
        let mut names = self.names.lock();
        for directory in directories {
            *names.in_flight.entry(*directory).or_default() += 1;
        }
    }

    /// The reply of the operation is written.
    pub(super) fn leave(&self, directories: &[Ino]) {
        let mut names = self.names.lock();
        for directory in directories {
            if let Some(count) = names.in_flight.get_mut(directory) {
                *count -= 1;
                if *count == 0 {
                    names.in_flight.remove(directory);
                }
            }
        }
    }

    /// A name of a directory changed; `existed` where the kernel may have it with its old meaning.
    pub(super) fn name_changed(&self, directory: Ino, existed: bool, now: Instant) -> NameAction {
        let mut names = self.names.lock();
        names.lately.note(directory, now + LATELY, now);
        names.action(directory, existed, now)
    }

    /// What [`Self::name_changed`] would ask for.
    pub(super) fn action(&self, directory: Ino, existed: bool, now: Instant) -> NameAction {
        self.names.lock().action(directory, existed, now)
    }

    /// Has the kernel forget all names, which `bump` makes it do (or not). No name is given in between, that
    /// would not be remembered here.
    pub(super) fn forget_names(&self, bump: impl FnOnce() -> bool) {
        let mut names = self.names.lock();
        if bump() {
            names.given.clear();
        }
    }

    /// An OPEN read this `data_version`: whether the kernel may keep the pages that it has.
    pub(super) fn keep_pages(&self, ino: Ino, data_version: LogIndex) -> bool {
        self.pages.lock().insert(ino, data_version) == Some(data_version)
    }

    /// Bytes that this mount wrote were applied: the kernel's pages have them already.
    pub(super) fn wrote_pages(&self, ino: Ino, data_version: LogIndex) {
        if let Some(version) = self.pages.lock().get_mut(&ino) {
            *version = data_version;
        }
    }

    /// The kernel's pages are old, or the kernel has none: whether it could have kept them.
    pub(super) fn forget_pages(&self, ino: Ino) -> bool {
        self.pages.lock().remove(&ino).is_some()
    }

    /// The kernel forgot the inode, but may have it anew by now: whether its ACLs have to be dropped.
    pub(super) fn forget_inode(&self, ino: Ino) -> bool {
        self.forget_pages(ino);
        self.acls.lock().remove(&ino)
    }

    /// The outcome of a mutation is unknown.
    pub(super) fn doubt(&self, inos: &[Ino]) {
        self.doubtful.lock().extend(inos);
    }

    /// Whether our own changes of an inode are to be treated as those of others.
    pub(super) fn is_doubtful(&self, ino: Ino) -> bool {
        let doubtful = self.doubtful.lock();
        !doubtful.is_empty() && doubtful.contains(&ino)
    }

    /// A new session: nothing of the old one can be applied any more.
    pub(super) fn forget_doubts(&self) {
        self.doubtful.lock().clear();
    }
}

fn give(expiries: &mut Expiries, ino: Ino, now: Instant, lease_left: Duration) -> Grant {
    if lease_left.is_zero() {
        return Grant::NONE;
    }
    let until = now + lease_left;
    // The kernel counts from when it reads the reply.
    expiries.note(ino, until + LATE_REPLY, now);
    Grant(Some(until))
}

/// Inodes, each until a moment.
#[derive(Debug, Default)]
struct Expiries {
    until: HashMap<Ino, Instant>,
    /// Expired ones are dropped when there are this many.
    prune_at: usize,
}

impl Expiries {
    fn note(&mut self, ino: Ino, until: Instant, now: Instant) {
        if self.until.len() >= self.prune_at {
            self.until.retain(|_, until| *until > now);
            self.prune_at = 2 * self.until.len() + 1024;
        }
        let known = self.until.entry(ino).or_insert(until);
        *known = until.max(*known);
    }

    fn is_live(&self, ino: Ino, now: Instant) -> bool {
        self.until.get(&ino).is_some_and(|until| *until > now)
    }

    fn take(&mut self, ino: Ino, now: Instant) -> bool {
        self.until.remove(&ino).is_some_and(|until| until > now)
    }

    fn take_all(&mut self, now: Instant) -> Vec<Ino> {
        self.until.drain().filter(|(_, until)| *until > now).map(|(ino, _)| ino).collect()
    }

    fn clear(&mut self) {
        self.until.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Duration, Ino, Instant, KernelCache, LATE_REPLY, LATELY, LogIndex, NameAction,
        outlives_lease,
    };

    const LEASE: Duration = Duration::from_secs(2);
    const DIR: Ino = Ino(1);

    /// A change finds every inode whose attributes the kernel may have, once, and none whose TTL is over.
    #[test]
    fn attributes_given_are_taken_back() {
        let (cache, now) = (KernelCache::default(), Instant::now());
        let give = |ino| cache.give_attributes(ino, now, LEASE);
        let grant = give(Ino(5));
        assert_eq!(grant.ttl(now + LEASE, LEASE), Duration::ZERO, "the reply waited too long");
        assert_eq!(grant.ttl(now, Duration::ZERO), Duration::ZERO, "the lease lapsed meanwhile");
        assert!(!cache.take_attributes(Ino(5), true, now), "nothing was given yet");
        assert_eq!(give(Ino(5)).ttl(now, LEASE), LEASE);
        assert!(cache.take_attributes(Ino(5), true, now));
        assert!(!cache.take_attributes(Ino(5), true, now));
        give(Ino(5)).ttl(now, LEASE);
        assert!(!cache.take_attributes(Ino(5), true, now + 2 * LEASE));
        give(Ino(6)).ttl(now, LEASE);
        assert_eq!(cache.take_all_attributes(now), [Ino(6)].into());
        drop(grant);
        assert!(cache.attributes.lock().under_way.is_empty());
    }

    /// A reply that is under way when a change comes is not cached, and so the kernel need not be told: it
    /// would throw the reply away. What others change again and again is not cached at all.
    #[test]
    fn attributes_under_way_are_overtaken() {
        let (cache, now) = (KernelCache::default(), Instant::now());
        let [before, other] = [5, 6].map(|ino| cache.give_attributes(Ino(ino), now, LEASE));
        assert!(!cache.take_attributes(Ino(5), true, now));
        assert_eq!(before.ttl(now, LEASE), Duration::ZERO);
        assert_eq!(cache.give_attributes(Ino(5), now, LEASE).ttl(now, LEASE), LEASE);
        assert!(cache.take_times(Ino(5), false, now));
        assert_eq!(cache.give_attributes(Ino(5), now, LEASE).ttl(now, LEASE), Duration::ZERO);
        let later = now + LATELY;
        assert_eq!(cache.give_attributes(Ino(5), later, LEASE).ttl(later, LEASE), LEASE);
        cache.take_all_attributes(now);
        assert_eq!(other.ttl(now, LEASE), Duration::ZERO, "the lease was lost in between");
    }

    /// The kernel keeps an ACL for as long as it likes.
    #[test]
    fn acls_given_are_taken_back_however_late() {
        let (cache, now) = (KernelCache::default(), Instant::now());
        cache.give_acl(Ino(5));
        assert!(cache.take_attributes(Ino(5), false, now + 100 * LEASE));
        assert!(!cache.take_attributes(Ino(5), false, now));
        cache.give_acl(Ino(6));
        cache.give_attributes(Ino(6), now, LEASE).ttl(now, LEASE);
        cache.give_attributes(Ino(7), now, LEASE).ttl(now, LEASE);
        assert_eq!(cache.take_all_attributes(now), [Ino(6), Ino(7)].into());
        cache.give_acl(Ino(8));
        assert!(cache.forget_inode(Ino(8)) && !cache.forget_inode(Ino(8)));
        assert!(!cache.take_attributes(Ino(8), false, now));
    }

    /// Without a lease nothing is cached, so nothing has to be invalidated.
    #[test]
    fn no_lease_no_cache() {
        let (cache, now) = (KernelCache::default(), Instant::now());
        let grant = cache.give_name(DIR, now, Duration::ZERO);
        assert_eq!(grant.ttl(now, LEASE), Duration::ZERO);
        assert_eq!(cache.name_changed(DIR, true, now), NameAction::Nothing);
    }

    /// A name that was given is invalidated; while an operation on its directory is in flight, by
    /// an epoch; and what others change is not given again for a while.
    #[test]
    fn names_name_changed() {
        let (cache, now) = (KernelCache::default(), Instant::now());
        assert_eq!(cache.name_changed(DIR, false, now), NameAction::Nothing);
        assert_eq!(cache.give_name(DIR, now, LEASE).ttl(now, LEASE), Duration::ZERO);
        let later = now + LATELY;
        assert_eq!(cache.give_name(DIR, later, LEASE).ttl(later, LEASE), LEASE);
        assert_eq!(cache.name_changed(DIR, false, later), NameAction::Nothing, "a new name");
        assert_eq!(cache.name_changed(DIR, true, later), NameAction::Invalidate);
        cache.enter(&[DIR, Ino(2)]);
        assert_eq!(cache.name_changed(DIR, true, later), NameAction::BumpEpoch);
        cache.leave(&[DIR, Ino(2)]);
        assert_eq!(cache.name_changed(DIR, true, later), NameAction::Invalidate);
        cache.forget_names(|| true);
        assert_eq!(cache.name_changed(DIR, true, later), NameAction::Nothing);
    }

    /// A LOOKUP that is under way when the change comes is always found.
    #[test]
    fn late_lookups_are_found() {
        let (cache, now) = (KernelCache::default(), Instant::now());
        cache.enter(&[DIR]);
        cache.give_name(DIR, now, LEASE);
        assert_eq!(cache.name_changed(DIR, true, now), NameAction::BumpEpoch);
    }

    /// A rename takes a cached name into a directory of which none was given; where none is cached, the kernel
    /// need not be told of it.
    #[test]
    fn renames_take_names_along() {
        let (cache, now) = (KernelCache::default(), Instant::now());
        cache.move_names([DIR, Ino(2)], now);
        assert_eq!(cache.action(Ino(2), true, now), NameAction::Nothing);
        cache.give_name(DIR, now, LEASE);
        cache.move_names([DIR, Ino(2)], now);
        assert_eq!(cache.action(Ino(2), true, now), NameAction::Invalidate);
        let later = now + LEASE + LATE_REPLY;
        cache.move_names([DIR, Ino(3)], later);
        assert_eq!(cache.action(Ino(3), true, later), NameAction::Nothing);
    }

    /// Pages are kept across opens while nobody else has written.
    #[test]
    fn pages() {
        let cache = KernelCache::default();
        assert!(!cache.keep_pages(Ino(4), LogIndex(10)), "what the kernel has is unknown");
        assert!(cache.keep_pages(Ino(4), LogIndex(10)));
        cache.wrote_pages(Ino(4), LogIndex(12));
        assert!(cache.keep_pages(Ino(4), LogIndex(12)), "we wrote it ourselves");
        assert!(cache.forget_pages(Ino(4)), "others wrote");
        cache.wrote_pages(Ino(4), LogIndex(14));
        assert!(!cache.keep_pages(Ino(4), LogIndex(14)));
        assert!(!cache.keep_pages(Ino(4), LogIndex(20)), "a snapshot brought changes unannounced");
    }

    /// A daemon that was stopped while it replied takes back what it gave.
    #[test]
    fn late_replies() {
        let second = Duration::from_secs(1);
        assert!(!outlives_lease(second, second));
        assert!(outlives_lease(second, Duration::ZERO));
        assert!(!outlives_lease(Duration::ZERO, Duration::ZERO));
        assert!(!outlives_lease(second, 2 * second), "renewed meanwhile");
    }
}
