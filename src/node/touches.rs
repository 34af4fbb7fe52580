//! Access times that this node renewed and that are not in the state yet: they go to the others in
//! batches, and this node shows them until they are there.

use std::collections::HashMap;

use crate::fs::proto::{Time, TouchedInode};
use crate::types::Ino;

/// Each inode is in both lots where it was read again meanwhile.
#[derive(Debug, Default)]
pub(super) struct Touches {
    pending: HashMap<Ino, Touched>,
    /// Proposed, and not applied yet.
    proposed: HashMap<Ino, Touched>,
}

/// What is renewed: only where nobody has set another since.
#[derive(Clone, Copy, Debug)]
struct Touched {
    seen: Option<Time>,
    atime: Time,
}

impl Touches {
    /// An inode whose access time was `seen` is to have another.
    pub(super) fn touch(&mut self, ino: Ino, seen: Option<Time>, atime: Time) {
        let touched = self.pending.entry(ino).or_insert(Touched { seen, atime });
        // Those before it count only together with it.
        touched.atime = atime;
    }

    /// The access time that an inode is to have, whose recorded one is this.
    pub(super) fn of(&self, ino: Ino, recorded: Option<Time>) -> Option<Time> {
        [&self.proposed, &self.pending].into_iter().fold(recorded, |time, lot| {
            let touched = lot.get(&ino).filter(|touched| touched.seen == time);
            touched.map_or(time, |touched| Some(touched.atime))
        })
    }

    /// An access time is set: what was renewed before does not count. False where it is on its way: then whoever sets
    /// one waits until that is settled.
    pub(super) fn forget(&mut self, ino: Ino) -> bool {
        self.pending.remove(&ino);
        !self.proposed.contains_key(&ino)
    }

    /// What is to be proposed now, in the order of numbers.
    pub(super) fn take(&mut self) -> Vec<TouchedInode> {
        self.proposed = std::mem::take(&mut self.pending);
        let touched = |(ino, touched): (&Ino, &Touched)| {
            let Touched { seen, atime } = *touched;
            TouchedInode { ino: ino.0, atime: Some(atime), seen }
        };
        let mut touched: Vec<_> = self.proposed.iter().map(touched).collect();
        touched.sort_by_key(|touched| touched.ino);
        touched
    }

    /// What was taken is applied, or lost.
    pub(super) fn settled(&mut self) {
        self.proposed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::{Ino, Time, Touches};

    fn at(seconds: i64) -> Time {
        Time { seconds, nanos: 0 }
    }

    #[test]
    fn shown_until_applied() {
        let mut touches = Touches::default();
        touches.touch(Ino(2), None, at(1));
        touches.touch(Ino(1), None, at(2));
        let taken: Vec<_> = touches.take().iter().map(|touched| touched.ino).collect();
        assert_eq!(taken, [1, 2]);
        assert_eq!(touches.of(Ino(2), None), Some(at(1)));
        touches.touch(Ino(2), Some(at(1)), at(3));
        assert_eq!(touches.of(Ino(2), None), Some(at(3)), "one after the other");
        assert_eq!(touches.of(Ino(2), Some(at(1))), Some(at(3)), "the first is applied");
        touches.settled();
        assert_eq!(touches.of(Ino(1), Some(at(2))), Some(at(2)));
        assert_eq!(touches.of(Ino(2), Some(at(1))), Some(at(3)));
    }

    /// Another mount has set the time.
    #[test]
    fn what_was_set_since_is_shown() {
        let mut touches = Touches::default();
        touches.touch(Ino(1), Some(at(1)), at(10));
        touches.touch(Ino(1), Some(at(10)), at(11));
        assert_eq!(touches.of(Ino(1), Some(at(1))), Some(at(11)));
        assert_eq!(touches.of(Ino(1), Some(at(5))), Some(at(5)));
        let taken = touches.take();
        assert_eq!((taken[0].seen, taken[0].atime), (Some(at(1)), Some(at(11))));
    }

    /// Neither shown nor proposed any more.
    #[test]
    fn set_since() {
        let mut touches = Touches::default();
        touches.touch(Ino(1), None, at(1));
        assert!(touches.forget(Ino(1)));
        assert!(touches.take().is_empty());
        touches.touch(Ino(1), None, at(1));
        touches.take();
        assert!(!touches.forget(Ino(1)), "it may be applied behind what is set");
        touches.settled();
        assert!(touches.forget(Ino(1)));
        assert_eq!(touches.of(Ino(1), None), None);
    }
}
