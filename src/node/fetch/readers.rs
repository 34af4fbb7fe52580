//! Who reads missing bytes one after the other has what comes next fetched before it asks. Pure.

use std::collections::HashMap;

use super::Key;
use crate::types::ByteRange;

/// The first window, for whoever goes on where it stopped.
const FIRST: u64 = 512 << 10;
/// The largest.
const LARGEST: u64 = 8 << 20;
/// Requests of one reader may overtake each other by so much: the kernel's own read-ahead sends several.
const SLACK: u64 = 1 << 20;
/// Files whose readers are remembered.
const FILES: usize = 256;

/// The readers of incomplete files.
#[derive(Debug, Default)]
pub(super) struct Readers {
    files: HashMap<Key, Reader>,
    /// Grows with each read.
    now: u64,
}

#[derive(Debug, Default)]
struct Reader {
    /// One past the last byte that was read.
    position: u64,
    /// 0 until somebody reads on.
    window: u64,
    /// What lies before has been asked for.
    ahead: u64,
    /// Of the last read.
    at: u64,
}

impl Readers {
    /// Whether a file's readers are remembered.
    pub(super) fn knows(&self, key: Key) -> bool {
        self.files.contains_key(&key)
    }

    /// Somebody reads a range: what to fetch ahead.
    pub(super) fn read(&mut self, key: Key, range: ByteRange) -> Option<ByteRange> {
        self.now += 1;
        if self.files.len() >= FILES && !self.knows(key) {
            let oldest = self.files.iter().min_by_key(|(_, reader)| reader.at);
            let oldest = oldest.map(|(key, _)| *key);
            oldest.and_then(|oldest| self.files.remove(&oldest));
        }
        // A file's first bytes are read by whoever reads all of it.
        let reader = self.files.entry(key).or_default();
        reader.at = self.now;
        reader.read(range)
    }

    /// A file is complete.
    pub(super) fn forget(&mut self, key: Key) {
        self.files.remove(&key);
    }
}

impl Reader {
    fn read(&mut self, range: ByteRange) -> Option<ByteRange> {
        let goes_on = range.start <= self.position.max(self.ahead).saturating_add(SLACK)
            && range.start.saturating_add(SLACK) >= self.position;
        if !goes_on {
            *self = Self { position: range.end, ahead: range.end, window: 0, at: self.at };
            return None;
        }
        self.position = self.position.max(range.end);
        self.ahead = self.ahead.max(self.position);
        // Half a window is left while the next half is fetched.
        if self.window > 0 && self.ahead - self.position > self.window / 2 {
            return None;
        }
        self.window = (2 * self.window).clamp(FIRST, LARGEST);
        let start = self.ahead;
        self.ahead = self.position.saturating_add(self.window);
        (start < self.ahead).then_some(ByteRange { start, end: self.ahead })
    }
}

#[cfg(test)]
mod tests {
    use super::{ByteRange, FILES, FIRST, Key, LARGEST, Readers};
    use crate::types::{Generation, Ino};

    const STEP: u64 = 128 << 10;
    const KEY: Key = (Ino(1), Generation(1));

    #[test]
    fn the_window_of_a_sequential_reader_grows() {
        let mut readers = Readers::default();
        let (mut end, mut largest) = (STEP, 0);
        for step in 0..2000 {
            if let Some(ahead) = readers.read(KEY, ByteRange::at(step * STEP, STEP)) {
                assert_eq!(ahead.start, end, "nothing is asked for twice or left out");
                end = ahead.end;
                largest = largest.max(end - (step + 1) * STEP);
            }
            assert!(end > (step + 1) * STEP, "it is asked for before it is read");
        }
        assert_eq!(largest, LARGEST);
    }

    #[test]
    fn a_random_reader_has_no_window() {
        let mut readers = Readers::default();
        for at in [900, 5, 700, 300, 40, 1200] {
            assert_eq!(readers.read(KEY, ByteRange::at(at << 20, 4096)), None, "{at}");
        }
        let on = readers.read(KEY, ByteRange::at((1200 << 20) + 4096, 4096));
        assert_eq!(on, Some(ByteRange::at((1200 << 20) + 8192, FIRST)), "now it goes on");
    }

    /// As the kernel sends what it reads ahead.
    #[test]
    fn requests_may_overtake_each_other() {
        let mut readers = Readers::default();
        let mut ahead = 0;
        for pair in 0..40 {
            for step in [2 * pair + 1, 2 * pair] {
                let range = readers.read(KEY, ByteRange::at(step * STEP, STEP));
                ahead = range.map_or(ahead, |range| range.end);
            }
            assert!(ahead > 2 * (pair + 1) * STEP);
        }
    }

    #[test]
    fn few_are_remembered() {
        let mut readers = Readers::default();
        for ino in 0..5000 {
            readers.read((Ino(ino), Generation(1)), ByteRange::at(0, STEP));
        }
        assert_eq!(readers.files.len(), FILES);
        assert!(readers.knows((Ino(4999), Generation(1))) && !readers.knows(KEY));
        readers.forget((Ino(4999), Generation(1)));
        assert!(!readers.knows((Ino(4999), Generation(1))));
    }
}
