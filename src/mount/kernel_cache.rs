//! What this mount's kernel may remember, and what has to be done so that it forgets (DESIGN,
//! section 3). Pure decisions: the clock and the lease come as arguments, notifications go out in
//! `notify`.
//!
//! The order that makes it safe: an operation registers what it may be going to give (attributes of
//! an inode, a name) *before* it reads the state; a change is looked up here *after*
//! it is in the state. So either the operation reads the change, or the change finds the operation.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::kernel_names::KernelNames;
use crate::guardian::{Slot, Watched};
use crate::types::{Ino, LogIndex};

/// For so long after such a change the names of a directory, or attributes, are not cached: what changes again
/// and again then need not be taken back each time, and of its replies one is dropped at most.
pub(super) const LATELY: Duration = Duration::from_secs(1);

/// For so long after such a change a file that is opened to be read is read past the kernel's pages. What a READ that is
/// under way finds less than the kernel believes in, because the file is cut meanwhile, the kernel fills up with zeros:
/// in a page they are seen, and without one they are not made.
const SHARED: Duration = Duration::from_secs(60);

/// A reply may reach the kernel this much later than its TTL was computed without outliving the
/// lease: what the node keeps back in `Handle::lease_left` covers it.
pub(super) const LATE_REPLY: Duration = Duration::from_millis(20);

/// How often what is over is looked for.
const TIDY: Duration = Duration::from_secs(1);

/// Leave to cache something, until a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant(Option<Instant>);

impl Grant {
    /// Nothing may be cached.
    pub(super) const NONE: Self = Self(None);

    /// For what is left of the lease.
    pub(super) fn new(now: Instant, lease_left: Duration) -> Self {
        if lease_left.is_zero() { Self::NONE } else { Self(Some(now + lease_left)) }
    }

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
        let is_overtaken = attributes.under_way.changes(self.ino) != self.changes;
        let ttl = if is_overtaken { Duration::ZERO } else { self.grant.ttl(now, lease_left) };
        // What the guardian would not find must not outlive this daemon.
        if ttl.is_zero() || !attributes.give(self.ino, now + ttl + LATE_REPLY, now) {
            return Duration::ZERO;
        }
        ttl
    }
}

impl Drop for AttributeGrant {
    fn drop(&mut self) {
        self.attributes.lock().under_way.leave(self.ino);
    }
}

/// Whether a reply with this TTL, written just now, may outlive the lease: the daemon was stopped
/// between computing the TTL and writing it, and the lease was not renewed meanwhile.
pub(super) fn outlives_lease(ttl: Duration, lease_left: Duration) -> bool {
    !ttl.is_zero() && ttl > lease_left + LATE_REPLY
}

/// What the kernel of one mount may remember.
#[derive(Debug)]
pub(super) struct KernelCache {
    attributes: Arc<Mutex<Attributes>>,
    /// Inodes of which the kernel may have ACLs, or know that there are none: it keeps them until it
    /// forgets the inode or its attributes, whatever TTL those have.
    acls: Mutex<HashSet<Ino>>,
    pub(super) names: KernelNames,
    /// The `data_version` that the kernel's pages of an inode correspond to, and whether these are its alias's.
    pages: Mutex<HashMap<Ino, (LogIndex, bool)>>,
    /// Files whose bytes others have lately changed while somebody here had them open, or the kernel had pages of them.
    shared: Mutex<Expiries<Ino>>,
    /// What a mutation of unknown outcome touched: even our own changes of it surprise the kernel.
    doubtful: Mutex<HashSet<Ino>>,
}

/// The kernel throws away the reply to a GETATTR that was under way when it is told to forget the inode's
/// attributes, and then judges permissions by what it had before. So it is told only where it may have a reply
/// with a TTL: one that is under way goes without.
#[derive(Debug)]
struct Attributes {
    /// Replies with a TTL.
    given: Expiries<Ino, Slot>,
    watched: Arc<Watched>,
    /// Inodes that others have changed while the kernel was interested; until they may be given again.
    lately: Expiries<Ino>,
    under_way: UnderWay<Ino>,
    tidied: Option<Instant>,
}

impl Attributes {
    /// A reply with a TTL is going out. False where the guardian has no room to know of it.
    fn give(&mut self, ino: Ino, until: Instant, now: Instant) -> bool {
        let watched = &self.watched;
        let is_watched =
            self.given.note_with(ino, until, now, || watched.watch(ino.0)).is_watched();
        if !is_watched {
            self.given.take(ino, now);
        }
        is_watched
    }

    /// Whether the kernel has to be told that they changed.
    fn take(&mut self, ino: Ino, own: bool, now: Instant) -> bool {
        let was_given = self.given.take(ino, now);
        let is_under_way = self.under_way.changed(ino);
        if !own && (was_given || is_under_way) {
            self.lately.note(ino, now + LATELY, now);
        }
        was_given
    }

    fn take_all(&mut self, now: Instant) -> Vec<Ino> {
        self.under_way.all_changed();
        self.given.take_all(now)
    }
}

impl KernelCache {
    /// Gives back what the guardian need not know any more. To be called from time to time.
    pub(super) fn tidy(&self, now: Instant) {
        let mut attributes = self.attributes.lock();
        if attributes.tidied.is_some_and(|at| now.saturating_duration_since(at) < TIDY) {
            return;
        }
        attributes.tidied = Some(now);
        let over = attributes.given.prune(now);
        let watched = attributes.watched.clone();
        drop(attributes);
        // Nobody waits for these.
        drop(over);
        watched.sweep();
    }

    /// Of a kernel that knows nothing yet. The guardian finds in `watched` whose attributes it was given.
    pub(super) fn new(watched: Arc<Watched>) -> Self {
        let attributes = Attributes {
            given: Expiries::default(),
            watched,
            lately: Expiries::default(),
            under_way: UnderWay::default(),
            tidied: None,
        };
        Self {
            attributes: Arc::new(Mutex::new(attributes)),
            acls: Mutex::default(),
            names: KernelNames::default(),
            pages: Mutex::default(),
            shared: Mutex::default(),
            doubtful: Mutex::default(),
        }
    }

    /// An operation is going to give attributes of `ino`. To be called before it reads them.
    pub(super) fn give_attributes(
        &self,
        ino: Ino,
        now: Instant,
        lease_left: Duration,
    ) -> AttributeGrant {
        let mut attributes = self.attributes.lock();
        let is_lately = attributes.lately.is_live(ino, now);
        let grant = if is_lately { Grant::NONE } else { Grant::new(now, lease_left) };
        let changes = attributes.under_way.enter(ino);
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

    /// An OPEN, of the alias or not, read this `data_version`: whether the kernel may keep the pages that it has.
    pub(super) fn keep_pages(&self, ino: Ino, is_alias: bool, data_version: LogIndex) -> bool {
        let pages = (data_version, is_alias);
        self.pages.lock().insert(ino, pages) == Some(pages)
    }

    /// Bytes that this mount wrote were applied: the kernel's pages have them already.
    pub(super) fn wrote_pages(&self, ino: Ino, data_version: LogIndex) {
        if let Some((version, _)) = self.pages.lock().get_mut(&ino) {
            *version = data_version;
        }
    }

    /// The kernel's pages are old, or the kernel has none: whether it could have kept them.
    pub(super) fn forget_pages(&self, ino: Ino) -> bool {
        self.pages.lock().remove(&ino).is_some()
    }

    /// Others have changed bytes of a file, which somebody here has open where it `is_held`: whether the kernel may have
    /// pages of it that are old now, or get some. What goes on changing stays shared, also while nobody looks.
    pub(super) fn pages_changed(&self, ino: Ino, is_held: bool, now: Instant) -> bool {
        let may_have_pages = self.forget_pages(ino) || is_held;
        let mut shared = self.shared.lock();
        if may_have_pages || shared.is_live(ino, now) {
            shared.note(ino, now + SHARED, now);
        }
        may_have_pages
    }

    /// Whether whoever opens this file to read it had better not do so by the kernel's pages.
    pub(super) fn is_shared(&self, ino: Ino, now: Instant) -> bool {
        self.shared.lock().is_live(ino, now)
    }

    /// All inodes of which the kernel may have pages that are old now.
    pub(super) fn take_all_pages(&self) -> Vec<Ino> {
        mem::take(&mut *self.pages.lock()).into_keys().collect()
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

/// Keys, each until a moment, with what is to be kept until then.
#[derive(Debug)]
pub(super) struct Expiries<K, V = ()> {
    until: HashMap<K, (Instant, V)>,
    /// Expired ones are dropped when there are this many.
    prune_at: usize,
}

impl<K, V> Default for Expiries<K, V> {
    fn default() -> Self {
        Self { until: HashMap::new(), prune_at: 0 }
    }
}

impl<K: Copy + Eq + Hash> Expiries<K> {
    pub(super) fn note(&mut self, key: K, until: Instant, now: Instant) {
        self.note_with(key, until, now, || ());
    }
}

impl<K: Copy + Eq + Hash, V> Expiries<K, V> {
    /// Notes a key; `keep` makes what is kept with it where it is new.
    fn note_with(&mut self, key: K, until: Instant, now: Instant, keep: impl FnOnce() -> V) -> &V {
        if self.until.len() >= self.prune_at {
            drop(self.prune(now));
        }
        let (known, kept) = self.until.entry(key).or_insert_with(|| (until, keep()));
        *known = until.max(*known);
        kept
    }

    /// Forgets those that are over.
    fn prune(&mut self, now: Instant) -> Vec<V> {
        let over = self.until.extract_if(|_, (until, _)| *until <= now);
        let over = over.map(|(_, (_, kept))| kept).collect();
        self.prune_at = 2 * self.until.len() + 1024;
        over
    }

    pub(super) fn is_live(&self, key: K, now: Instant) -> bool {
        self.until.get(&key).is_some_and(|(until, _)| *until > now)
    }

    pub(super) fn take(&mut self, key: K, now: Instant) -> bool {
        self.until.remove(&key).is_some_and(|(until, _)| until > now)
    }

    fn take_all(&mut self, now: Instant) -> Vec<K> {
        self.until.drain().filter(|(_, (until, _))| *until > now).map(|(key, _)| key).collect()
    }
}

/// Replies under way, from before they read until they are written: of each key how many, and how often it has
/// changed meanwhile.
#[derive(Debug)]
pub(super) struct UnderWay<K>(HashMap<K, (usize, u64)>);

impl<K> Default for UnderWay<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Copy + Eq + Hash> UnderWay<K> {
    /// One more begins. Answers how often the key has changed before.
    pub(super) fn enter(&mut self, key: K) -> u64 {
        let (count, changes) = self.0.entry(key).or_default();
        *count += 1;
        *changes
    }

    pub(super) fn leave(&mut self, key: K) {
        if let Some((count, _)) = self.0.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&key);
            }
        }
    }

    /// How often a key that is under way has changed.
    pub(super) fn changes(&self, key: K) -> u64 {
        self.0.get(&key).map_or(0, |(_, changes)| *changes)
    }

    /// The key changes: whether it is under way.
    pub(super) fn changed(&mut self, key: K) -> bool {
        self.0.get_mut(&key).map(|(_, changes)| *changes += 1).is_some()
    }

    fn all_changed(&mut self) {
        self.0.values_mut().for_each(|(_, changes)| *changes += 1);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Duration, Ino, Instant, KernelCache, LATELY, LogIndex, SHARED, Watched, outlives_lease,
    };

    const LEASE: Duration = Duration::from_secs(2);

    fn cache() -> KernelCache {
        KernelCache::new(Watched::new().expect("memory to share"))
    }

    /// A change finds every inode whose attributes the kernel may have, once, and none whose TTL is over.
    #[test]
    fn attributes_given_are_taken_back() {
        let (cache, now) = (cache(), Instant::now());
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
        let (cache, now) = (cache(), Instant::now());
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
        let (cache, now) = (cache(), Instant::now());
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

    /// Pages are kept across opens while nobody else has written.
    #[test]
    fn pages() {
        let cache = cache();
        assert!(!cache.keep_pages(Ino(4), false, LogIndex(10)), "what the kernel has is unknown");
        assert!(cache.keep_pages(Ino(4), false, LogIndex(10)));
        cache.wrote_pages(Ino(4), LogIndex(12));
        assert!(cache.keep_pages(Ino(4), false, LogIndex(12)), "we wrote it ourselves");
        assert!(cache.forget_pages(Ino(4)), "others wrote");
        cache.wrote_pages(Ino(4), LogIndex(14));
        assert!(!cache.keep_pages(Ino(4), false, LogIndex(14)));
        assert!(
            !cache.keep_pages(Ino(4), false, LogIndex(20)),
            "a snapshot brought changes unannounced"
        );
    }

    /// What others change is read past the pages, for a while, unless nobody here has had any.
    #[test]
    fn shared() {
        let (cache, now) = (cache(), Instant::now());
        assert!(!cache.pages_changed(Ino(4), false, now), "nobody has opened it");
        assert!(!cache.is_shared(Ino(4), now));
        cache.keep_pages(Ino(4), false, LogIndex(10));
        assert!(cache.pages_changed(Ino(4), false, now));
        assert!(cache.pages_changed(Ino(5), true, now), "somebody has it open");
        assert!(cache.is_shared(Ino(4), now) && cache.is_shared(Ino(5), now));
        assert!(!cache.is_shared(Ino(6), now));
        let (soon, later) = (now + SHARED / 2, now + SHARED);
        assert!(!cache.pages_changed(Ino(5), false, soon), "the kernel has no pages any more");
        assert!(!cache.is_shared(Ino(4), later) && cache.is_shared(Ino(5), later));
        assert!(!cache.pages_changed(Ino(4), false, later) && !cache.is_shared(Ino(4), later));
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
