//! A file system in memory, as far as backing files and stages need one. Killing a process loses nothing of it;
//! losing power loses what was not synced, or tears it.
//!
//! Names are journalled: after a power loss, those changes that were not synced are there up to some point. Bytes
//! are written back in any order: each part of a file is old, new, or zeros where there was nothing before.

use std::collections::BTreeMap;

use quorumfs::types::{ByteRange, Generation, Ino, LogIndex, StageId};

use crate::random::Random;

/// A backing file.
pub type Key = (Ino, Generation);

/// What the disk writes back at once.
const CELL: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    Backing(Key),
    /// A stage that is not written yet.
    Fresh(StageId),
    /// One that an entry has written.
    Written(LogIndex),
}

#[derive(Clone, Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    synced: Vec<u8>,
}

/// All names, and the files that are marked as having been stages.
#[derive(Clone, Debug, Default)]
struct Names {
    files: BTreeMap<Name, u64>,
    marks: BTreeMap<u64, LogIndex>,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Create(Name, u64),
    Rename(Name, Name),
    Remove(Name),
    Mark(u64, LogIndex),
}

impl Names {
    fn take(&mut self, change: Change) {
        match change {
            Change::Create(name, file) => drop(self.files.insert(name, file)),
            Change::Rename(from, to) => {
                let file = self.files.remove(&from).expect("what is renamed is there");
                self.files.insert(to, file);
            }
            Change::Remove(name) => drop(self.files.remove(&name)),
            Change::Mark(file, index) => drop(self.marks.insert(file, index)),
        }
    }
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Drive {
    contents: BTreeMap<u64, Content>,
    names: Names,
    synced: Names,
    journal: Vec<Change>,
    created: u64,
}

impl Drive {
    pub fn has(&self, name: Name) -> bool {
        self.names.files.contains_key(&name)
    }

    /// All names, ascending.
    pub fn names(&self) -> impl Iterator<Item = Name> + '_ {
        self.names.files.keys().copied()
    }

    /// Bytes of a file; zeros where it has none, or is not there.
    pub fn read(&self, name: Name, range: ByteRange) -> Vec<u8> {
        let mut read = vec![0; place(range.len())];
        if let Some(content) = self.content(name) {
            let start = place(range.start).min(content.len());
            let end = place(range.end).min(content.len());
            read[..end - start].copy_from_slice(&content[start..end]);
        }
        read
    }

    /// Whether a power loss would leave these bytes.
    pub fn has_durably(&self, name: Name, at: u64, data: &[u8]) -> bool {
        let content = self.synced.files.get(&name).map(|file| &self.contents[file].synced);
        content.is_some_and(|bytes| bytes.get(place(at)..place(at) + data.len()) == Some(data))
    }

    /// How long a file is.
    pub fn len(&self, name: Name) -> u64 {
        self.content(name).map_or(0, |content| content.len() as u64)
    }

    /// Writes to a file, which is created where it is absent.
    pub fn write(&mut self, name: Name, at: u64, data: &[u8]) {
        let bytes = self.open(name);
        let (start, end) = (place(at), place(at) + data.len());
        bytes.resize(bytes.len().max(end), 0);
        bytes[start..end].copy_from_slice(data);
    }

    /// Cuts or extends a file, which is created where it is absent.
    pub fn resize(&mut self, name: Name, size: u64) {
        self.open(name).resize(place(size), 0);
    }

    /// Makes bytes of a file zeros; its size stays.
    pub fn zero(&mut self, name: Name, range: ByteRange) {
        let end = range.end.min(self.len(name));
        if range.start < end {
            self.write(name, range.start, &vec![0; place(end - range.start)]);
        }
    }

    pub fn rename(&mut self, from: Name, to: Name) {
        self.change(Change::Rename(from, to));
    }

    pub fn remove(&mut self, name: Name) {
        if self.has(name) {
            self.change(Change::Remove(name));
        }
    }

    /// Marks a file as what was the stage of an entry.
    pub fn mark(&mut self, name: Name, index: LogIndex) {
        self.change(Change::Mark(self.names.files[&name], index));
    }

    pub fn is_marked(&self, name: Name, index: LogIndex) -> bool {
        let file = self.names.files.get(&name);
        file.is_some_and(|file| self.names.marks.get(file) == Some(&index))
    }

    /// Makes one file durable, and with it all names.
    pub fn sync_file(&mut self, name: Name) {
        let content = self.contents.get_mut(&self.names.files[&name]).expect("it has a name");
        content.synced.clone_from(&content.bytes);
        self.sync_names();
    }

    /// Makes everything durable.
    pub fn sync(&mut self) {
        self.sync_names();
        let Names { files, .. } = &self.names;
        let named: Vec<u64> = files.values().copied().collect();
        self.contents.retain(|file, _| named.contains(file));
        for content in self.contents.values_mut() {
            content.synced.clone_from(&content.bytes);
        }
    }

    fn sync_names(&mut self) {
        for change in self.journal.drain(..) {
            self.synced.take(change);
        }
    }

    /// The machine loses power.
    pub fn lose_power(&mut self, random: &mut Random) {
        let kept = random.index(self.journal.len() + 1);
        for change in self.journal.drain(..).take(kept) {
            self.synced.take(change);
        }
        self.names = self.synced.clone();
        let named: Vec<u64> = self.names.files.values().copied().collect();
        self.contents.retain(|file, _| named.contains(file));
        for content in self.contents.values_mut().filter(|content| content.bytes != content.synced)
        {
            content.tear(random);
        }
    }

    fn content(&self, name: Name) -> Option<&Vec<u8>> {
        Some(&self.contents[self.names.files.get(&name)?].bytes)
    }

    fn open(&mut self, name: Name) -> &mut Vec<u8> {
        if !self.has(name) {
            self.created += 1;
            self.change(Change::Create(name, self.created));
        }
        &mut self.contents.entry(self.names.files[&name]).or_default().bytes
    }

    fn change(&mut self, change: Change) {
        self.names.take(change);
        self.journal.push(change);
    }
}

impl Content {
    fn tear(&mut self, random: &mut Random) {
        match random.below(3) {
            0 => self.bytes.clone_from(&self.synced),
            1 => {}
            _ => {
                let (one, other) = (self.bytes.len() as u64, self.synced.len() as u64);
                let len = random.within(one.min(other), one.max(other));
                let mut torn = vec![0; place(len)];
                for (number, cell) in torn.chunks_mut(CELL).enumerate() {
                    let from = if random.chance(500) { &self.bytes } else { &self.synced };
                    let rest = from.get(number * CELL..).unwrap_or_default();
                    let len = rest.len().min(cell.len());
                    cell[..len].copy_from_slice(&rest[..len]);
                }
                self.bytes = torn;
            }
        }
        self.synced.clone_from(&self.bytes);
    }
}

fn place(at: u64) -> usize {
    usize::try_from(at).expect("files are small here")
}
