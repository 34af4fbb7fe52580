//! The inodes that the kernel of one mount may answer for by itself, kept where the guardian finds them when the
//! daemon is dead: a table of slots in shared memory, each with the number by which the kernel knows an inode.
//!
//! Whoever gives the kernel something takes a slot before, which is one relaxed store, and gives it back when the kernel
//! has nothing any more. A slot keeps its number for a while then: what is lost is only precision, and the guardian has the
//! kernel forget a little more than needed. Then it is emptied: what the guardian has to do before it tells the peers
//! depends on what the kernel has, and not on how many inodes there ever were.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::sys::SharedNumbers;

/// More than these are not watched: 8 MiB where all of them are used.
const SLOTS: usize = 1 << 20;
/// For so long a slot that was given back stays as it is: whoever gave it back may be about to tell the kernel.
const KEPT: Duration = Duration::from_secs(1);
/// Slots that are emptied at once: whoever wants one waits meanwhile.
const SWEPT: usize = 1024;
/// What comes before the slots.
const HEADER: usize = 2;
/// Place of: how many slots were ever used.
const USED: usize = 0;
/// Place of: how many inodes are without a slot at present.
const UNWATCHED: usize = 1;

/// The table of one mount, as its daemon sees it.
#[derive(Debug)]
pub struct Watched {
    memory: SharedNumbers,
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    /// Slots from here on were never used.
    next: usize,
    /// The one that was given back first comes first.
    given_back: VecDeque<(Instant, usize)>,
    empty: Vec<usize>,
}

/// A place in the table, until it is dropped; or the note that there was none.
#[derive(Debug)]
pub struct Slot {
    watched: Arc<Watched>,
    place: Option<usize>,
}

impl Watched {
    /// An empty table.
    ///
    /// # Errors
    /// When the kernel gives no memory to share.
    pub fn new() -> io::Result<Arc<Self>> {
        Self::with_slots(SLOTS)
    }

    fn with_slots(slots: usize) -> io::Result<Arc<Self>> {
        let memory = SharedNumbers::new(HEADER + slots)?;
        Ok(Arc::new(Self { memory, free: Mutex::default() }))
    }

    /// Watches an inode, by the number that the kernel knows it by. To be called before the kernel is given
    /// anything.
    #[must_use]
    pub fn watch(self: &Arc<Self>, node: u64) -> Slot {
        let numbers = self.memory.numbers();
        let mut free = self.free.lock();
        let place = free.take(numbers.len() - HEADER);
        match place {
            Some(place) => numbers[HEADER + place].store(node, Ordering::Relaxed),
            None => drop(numbers[UNWATCHED].fetch_add(1, Ordering::Relaxed)),
        }
        numbers[USED].store(free.next as u64, Ordering::Relaxed);
        Slot { watched: self.clone(), place }
    }

    /// Empties the slots that were given back a while ago. To be called from time to time.
    pub fn sweep(&self) {
        loop {
            let mut free = self.free.lock();
            let mut swept = 0;
            while swept < SWEPT
                && let Some(place) = free.take_old()
            {
                self.memory.numbers()[HEADER + place].store(0, Ordering::Relaxed);
                free.empty.push(place);
                swept += 1;
            }
            if swept < SWEPT {
                return;
            }
        }
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl Free {
    fn take(&mut self, slots: usize) -> Option<usize> {
        if let Some(place) = self.empty.pop().or_else(|| self.take_old()) {
            return Some(place);
        }
        let place = self.next;
        (place < slots).then(|| self.next += 1)?;
        Some(place)
    }

    /// One that was given back a while ago.
    fn take_old(&mut self) -> Option<usize> {
        let is_old = |(when, _): &mut (Instant, usize)| when.elapsed() > KEPT;
        self.given_back.pop_front_if(is_old).map(|(_, place)| place)
    }
}

impl Slot {
    /// Whether the guardian will find the inode. Where not, nothing is to be given that can be done without.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.place.is_some()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.watched.free.lock().given_back.push_back((Instant::now(), place));
        } else {
            self.watched.memory.numbers()[UNWATCHED].fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The same table, as its guardian reads it when nobody writes any more.
#[derive(Debug)]
pub(super) struct Seen(SharedNumbers);

impl Seen {
    pub(super) fn new(memory: OwnedFd) -> io::Result<Self> {
        Ok(Self(SharedNumbers::of(memory)?))
    }

    /// Whether it is known of every inode.
    pub(super) fn is_complete(&self) -> bool {
        self.number(UNWATCHED) == 0
    }

    /// By what numbers the kernel knows the inodes.
    pub(super) fn nodes(&self) -> impl Iterator<Item = u64> + '_ {
        let numbers = self.0.numbers();
        let used = usize::try_from(self.number(USED)).unwrap_or(usize::MAX);
        let nodes = numbers.iter().skip(HEADER).take(used);
        nodes.map(|node| node.load(Ordering::Relaxed)).filter(|node| *node != 0)
    }

    fn number(&self, place: usize) -> u64 {
        self.0.numbers().get(place).map_or(0, |number: &AtomicU64| number.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::{AsFd, KEPT, Seen, Watched};

    fn seen(watched: &Watched) -> Seen {
        Seen::new(watched.as_fd().try_clone_to_owned().expect("a descriptor")).expect("mapped")
    }

    /// What was given is found by whoever maps the memory anew, also a moment after it was taken back.
    #[test]
    fn the_guardian_sees_what_the_mount_has_given() {
        let watched = Watched::new().expect("memory");
        let slots = [5, 7].map(|node| watched.watch(node));
        let guardian = seen(&watched);
        assert_eq!(guardian.nodes().collect::<Vec<_>>(), [5, 7]);
        drop(slots);
        let _other = watched.watch(9);
        assert_eq!(guardian.nodes().collect::<Vec<_>>(), [5, 7, 9]);
        assert!(guardian.is_complete());
    }

    /// What the kernel had a while ago is no work for the guardian, however much it was.
    #[test]
    fn slots_that_were_given_back_are_emptied() {
        let watched = Watched::new().expect("memory");
        let slots: Vec<_> = (1..=100_000).map(|node| watched.watch(node)).collect();
        let kept = watched.watch(1 << 40);
        drop(slots);
        let guardian = seen(&watched);
        watched.sweep();
        assert_eq!(guardian.nodes().count(), 100_001, "the kernel may not know yet");
        std::thread::sleep(KEPT + KEPT / 4);
        watched.sweep();
        assert_eq!(guardian.nodes().collect::<Vec<_>>(), [1 << 40]);
        drop(kept);
        let _again: Vec<_> = (1..=100_000).map(|node| watched.watch(node)).collect();
        assert_eq!(watched.free.lock().next, 100_001, "they are used again");
        assert_eq!(guardian.nodes().count(), 100_001);
    }

    /// The guardian knows when it does not know everything.
    #[test]
    fn a_full_table_is_incomplete_for_as_long_as_it_is() {
        let watched = Watched::with_slots(2).expect("memory");
        let slots: Vec<_> = (1..=3).map(|node| watched.watch(node)).collect();
        assert!(slots[1].is_watched() && !slots[2].is_watched());
        let guardian = seen(&watched);
        assert!(!guardian.is_complete());
        drop(slots);
        assert!(guardian.is_complete());
    }
}
