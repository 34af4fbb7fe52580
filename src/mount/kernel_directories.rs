//! In which place of its tree this mount's kernel has each directory.
//!
//! It has a directory in one place only, and keeps it there when the name's TTL is over. Where it finds the
//! directory elsewhere it moves it: under a lock that rename(2) holds while it looks its names up, so there the
//! move from one parent to another is refused, and the program gets ESTALE, each time. So where others rename a
//! directory, the kernel is made to drop the old place, also where it was given no TTL.
//!
//! A directory that is in use then loses its name, but stays in its old place, as does what is in use below it, until
//! the kernel finds it. It forgets the inode when it has dropped it, so it is known here which are *stranded*. Where
//! a thread looks one up twice, and asks nothing of it in between, it was refused the move: what is below is
//! dropped, and with it, if that is in use no more, the directory.
//!
//! Nothing depends on all this but that one errno: where an operation here holds a lock that a drop takes, nobody
//! waits for it. Nor does it have to be exact: a directory that is found elsewhere is dropped from its old place then.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::name_drops::Name;
use super::names::Place;
use crate::types::Ino;

/// The directories that the kernel of one mount knows.
#[derive(Debug, Default)]
pub(super) struct KernelDirectories {
    tree: Arc<Mutex<Tree>>,
    /// How many have a finder: looked at by each GETATTR.
    finders: AtomicUsize,
    ids: RandomState,
}

#[derive(Debug, Default)]
struct Tree {
    /// Until the kernel forgets them.
    known: HashMap<Ino, Known>,
    /// By the names that they have.
    at: HashMap<NameId, Ino>,
    /// Directories in which operations change names: the kernel holds their locks. How many in each.
    changing: HashMap<Ino, usize>,
}

#[derive(Debug, Default)]
struct Known {
    /// How often the kernel was told of it.
    lookups: u64,
    /// Nothing where it is stranded.
    at: Option<At>,
    /// It was stranded, and this thread has looked it up: it may still be.
    finder: Option<u32>,
}

#[derive(Clone, Debug)]
struct At {
    id: NameId,
    parent: Ino,
    name: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct NameId(u64);

/// An operation that changes names, which the kernel follows by itself where it succeeds.
#[derive(Debug)]
pub(super) struct Changing {
    tree: Arc<Mutex<Tree>>,
    places: Vec<At>,
    /// The directories that have those names: they are nobody else's affair meanwhile.
    directories: Vec<Option<Ino>>,
    is_done: bool,
}

impl KernelDirectories {
    fn at(&self, place: &Place) -> At {
        let id = self.id(place.key());
        At { id, parent: place.parent, name: place.name.clone() }
    }

    fn id(&self, name: (Ino, &[u8])) -> NameId {
        NameId(self.ids.hash_one(name))
    }

    /// The kernel is told that it finds a directory here. Answers the name in another directory by which it had it
    /// before: that is to be dropped.
    pub(super) fn give(&self, ino: Ino, place: &Place) -> Option<Name> {
        let id = self.id(place.key());
        let mut tree = self.tree.lock();
        let known = tree.known.entry(ino).or_default();
        known.lookups += 1;
        if known.at.as_ref().is_some_and(|at| at.id == id) {
            return None;
        }
        let before = tree.put(ino, Some(self.at(place)));
        let before = before.filter(|before| before.parent != place.parent);
        before.map(|before| (before.parent, before.name.to_vec()))
    }

    /// The kernel forgets an inode that it was told of so often.
    pub(super) fn forget(&self, ino: Ino, lookups: u64) {
        let mut tree = self.tree.lock();
        let Some(known) = tree.known.get_mut(&ino) else { return };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups == 0 {
            tree.put(ino, None);
            let found = tree.known.remove(&ino).and_then(|known| known.finder);
            self.finders.fetch_sub(usize::from(found.is_some()), Ordering::Relaxed);
        }
    }

    /// Whether the kernel has a directory by that name.
    pub(super) fn has(&self, name: (Ino, &[u8])) -> bool {
        self.tree.lock().at.contains_key(&self.id(name))
    }

    /// Others remove or rename that name: whether the kernel has a directory there, which is to be dropped.
    pub(super) fn changed(&self, name: (Ino, &[u8])) -> bool {
        let mut tree = self.tree.lock();
        let ino = tree.at.get(&self.id(name)).copied();
        ino.inspect(|ino| drop(tree.put(*ino, None))).is_some()
    }

    /// An operation here changes these names, and holds the locks of their directories.
    pub(super) fn change(&self, places: &[&Place]) -> Changing {
        let places: Vec<_> = places.iter().map(|place| self.at(place)).collect();
        let mut tree = self.tree.lock();
        for at in &places {
            *tree.changing.entry(at.parent).or_default() += 1;
        }
        let directories: Vec<_> = places.iter().map(|at| tree.at.remove(&at.id)).collect();
        for ino in directories.iter().flatten() {
            // The kernel has found it.
            let found = tree.known.get_mut(ino).and_then(|known| known.finder.take());
            self.finders.fetch_sub(usize::from(found.is_some()), Ordering::Relaxed);
        }
        Changing { tree: self.tree.clone(), places, directories, is_done: false }
    }

    /// Whether an operation here holds the lock of a directory, perhaps for long.
    pub(super) fn is_locked(&self, ino: Ino) -> bool {
        self.tree.lock().changing.contains_key(&ino)
    }

    /// Whether the kernel has a directory without a name.
    pub(super) fn is_stranded(&self, ino: Ino) -> bool {
        self.tree.lock().known.get(&ino).is_some_and(|known| known.at.is_none())
    }

    /// A thread looks a directory up: whether that failed before, as it was stranded, and may fail again.
    pub(super) fn finds_again(&self, ino: Ino, thread: u32) -> bool {
        let mut tree = self.tree.lock();
        let Some(known) = tree.known.get_mut(&ino) else { return false };
        if known.at.is_some() && known.finder.is_none() {
            return false;
        }
        let before = known.finder.replace(thread);
        self.finders.fetch_add(usize::from(before.is_none()), Ordering::Relaxed);
        before == Some(thread)
    }

    /// A thread asks something of an inode itself: if it is a directory that it looked up, the kernel has it there.
    pub(super) fn found(&self, ino: Ino, thread: u32) {
        if self.finders.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut tree = self.tree.lock();
        let known = tree.known.get_mut(&ino);
        let found = known.and_then(|known| known.finder.take_if(|finder| *finder == thread));
        self.finders.fetch_sub(usize::from(found.is_some()), Ordering::Relaxed);
    }
}

impl Tree {
    /// Notes where a known directory is. Answers where it was.
    fn put(&mut self, ino: Ino, at: Option<At>) -> Option<At> {
        let known = self.known.get_mut(&ino)?;
        let before = mem::replace(&mut known.at, at.clone());
        if let Some(before) = &before
            && self.at.get(&before.id) == Some(&ino)
        {
            self.at.remove(&before.id);
        }
        if let Some(at) = at
            && let Some(other) = self.at.insert(at.id, ino)
            && let Some(other) = self.known.get_mut(&other)
        {
            // The kernel dropped that when it found this one there.
            other.at = None;
        }
        before
    }

    /// A change of these names by an operation here is over.
    fn unlock(&mut self, at: &At) {
        if let Some(count) = self.changing.get_mut(&at.parent) {
            *count -= 1;
            if *count == 0 {
                self.changing.remove(&at.parent);
            }
        }
    }
}

impl Changing {
    /// The names are gone.
    pub(super) fn removed(mut self) {
        self.end(|tree, directories, _| {
            for ino in directories.iter().flatten() {
                tree.put(*ino, None);
            }
        });
    }

    /// What had the first name has the second one now, and the other way round where they were exchanged.
    pub(super) fn renamed(mut self, are_exchanged: bool) {
        self.end(|tree, directories, places| {
            let ([from, to], [old, new]) = (directories, places) else { return };
            if let Some(ino) = to {
                tree.put(*ino, are_exchanged.then(|| old.clone()));
            }
            if let Some(ino) = from {
                tree.put(*ino, Some(new.clone()));
            }
        });
    }

    fn end(&mut self, change: impl FnOnce(&mut Tree, &[Option<Ino>], &[At])) {
        change(&mut self.tree.lock(), &self.directories, &self.places);
        self.is_done = true;
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        let mut tree = self.tree.lock();
        for (at, ino) in self.places.iter().zip(&self.directories) {
            tree.unlock(at);
            let Some(known) = ino.and_then(|ino| tree.known.get(&ino)) else { continue };
            let is_there = known.at.as_ref().is_some_and(|known| known.id == at.id);
            if let Some(ino) = ino
                && is_there
                && !self.is_done
            {
                tree.at.entry(at.id).or_insert(*ino);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Ino, KernelDirectories, Place};

    const DIRECTORY: Ino = Ino(7);

    fn place(parent: u64, name: &'static str) -> Place {
        Place { parent: Ino(parent), name: Bytes::from_static(name.as_bytes()) }
    }

    fn has(directories: &KernelDirectories, place: &Place) -> bool {
        directories.has(place.key())
    }

    /// Also with no TTL: until others take the name, or the kernel forgets the inode, as often as it was told of it.
    #[test]
    fn directories_have_a_place_until_they_are_forgotten() {
        let directories = KernelDirectories::default();
        let here = place(1, "d");
        assert!(!has(&directories, &here));
        assert_eq!([0; 2].map(|_| directories.give(DIRECTORY, &here)), [None, None]);
        directories.forget(DIRECTORY, 1);
        assert!(directories.changed(here.key()));
        assert!(!directories.changed(here.key()), "dropped once");
        assert!(directories.is_stranded(DIRECTORY));
        directories.give(DIRECTORY, &here);
        directories.forget(DIRECTORY, 2);
        assert!(!has(&directories, &here) && !directories.is_stranded(DIRECTORY));
        let tree = directories.tree.lock();
        assert!(tree.known.is_empty() && tree.at.is_empty());
    }

    /// Who looks a stranded directory up again without having used it was refused it.
    #[test]
    fn stranded_directories_are_found() {
        let directories = KernelDirectories::default();
        let [old, new] = [place(1, "d"), place(2, "d")];
        let looks_up = |thread| {
            let again = directories.finds_again(DIRECTORY, thread);
            directories.give(DIRECTORY, &new);
            again
        };
        directories.give(DIRECTORY, &old);
        assert!(!directories.finds_again(DIRECTORY, 5), "it has a name");
        directories.changed(old.key());
        assert_eq!([5, 5, 5, 6, 5].map(looks_up), [false, true, true, false, false]);
        directories.found(DIRECTORY, 6);
        assert!(looks_up(5), "another thread may have it open");
        directories.found(DIRECTORY, 5);
        assert_eq!(directories.finders.load(super::Ordering::Relaxed), 0);
        assert_eq!([5, 5].map(looks_up), [false; 2]);
        directories.changed(new.key());
        assert!(!looks_up(5));
        drop(directories.change(&[&new]));
        assert!(!looks_up(5), "it was there to be renamed");
        directories.changed(new.key());
        assert!(!looks_up(5));
        directories.forget(DIRECTORY, u64::MAX);
        assert_eq!(directories.finders.load(super::Ordering::Relaxed), 0);
    }

    /// Whoever finds it elsewhere has the old place dropped, where the kernel cannot always move it by itself.
    #[test]
    fn a_directory_that_is_found_elsewhere_is_dropped() {
        let directories = KernelDirectories::default();
        directories.give(DIRECTORY, &place(1, "d"));
        assert_eq!(directories.give(DIRECTORY, &place(1, "e")), None, "in the same parent");
        assert_eq!(directories.give(DIRECTORY, &place(2, "d")), Some((Ino(1), b"e".to_vec())));
        assert!(!has(&directories, &place(1, "e")) && has(&directories, &place(2, "d")));
        directories.give(Ino(8), &place(2, "d"));
        assert_eq!(directories.give(DIRECTORY, &place(1, "d")), None, "another took its place");
    }

    /// What operations here do the kernel does with them; meanwhile it holds the locks.
    #[test]
    fn own_changes_are_followed() {
        let directories = KernelDirectories::default();
        let [old, new] = [place(1, "d"), place(2, "d")];
        directories.give(DIRECTORY, &old);
        let locked = |parent| directories.is_locked(Ino(parent));
        let failed = directories.change(&[&old, &new]);
        assert!(!has(&directories, &old) && locked(1) && locked(2) && !locked(3));
        drop(failed);
        assert!(has(&directories, &old) && !locked(1) && !locked(2));
        directories.change(&[&old, &new]).renamed(false);
        assert!(!has(&directories, &old) && has(&directories, &new) && !locked(1));
        directories.give(Ino(8), &old);
        directories.change(&[&old, &new]).renamed(true);
        let at =
            |place: &Place| directories.tree.lock().at.get(&directories.id(place.key())).copied();
        assert_eq!((at(&old), at(&new)), (Some(DIRECTORY), Some(Ino(8))));
        directories.change(&[&old, &new]).renamed(false);
        assert_eq!((at(&old), at(&new)), (None, Some(DIRECTORY)), "replaced");
        directories.change(&[&new]).removed();
        assert_eq!(at(&new), None);
        assert!(directories.tree.lock().changing.is_empty());
    }
}
