//! What the clients did and saw: the input of the checkers.

use quorumfs::types::Ino;

/// What an operation is about. Operations on different subjects do not affect each other, so each
/// subject is checked by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// An extended attribute; a new one every so many operations, so that histories stay short.
    Register { file: Ino, round: u64 },
    /// Some names of a directory; likewise.
    Names { directory: Ino, round: u64 },
    /// A file that is only appended to.
    Log { file: Ino },
    /// A few parts of a file, each filled with one value; a new file every so many operations.
    Slots { file: Ino },
}

impl Subject {
    /// The inode that it is about.
    pub fn file(self) -> Ino {
        match self {
            Self::Register { file, .. } | Self::Log { file } | Self::Slots { file } => file,
            Self::Names { directory, .. } => directory,
        }
    }
}

/// Parts of a file of [`Subject::Slots`], one after the other.
pub const SLOTS: usize = 4;
/// Bytes of each.
pub const SLOT: u64 = 24;

/// Some of them: a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SomeSlots(pub u8);

impl SomeSlots {
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..SLOTS).filter(move |slot| self.0 & (1 << slot) != 0)
    }
}

/// One of the few names that belong to a [`Subject::Names`].
pub type Name = usize;
/// How many they are.
pub const NAMES: usize = 3;

/// How a rename treats the new name, with the flags of renameat2(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RenameMode {
    Replace = 0,
    NoReplace = 1,
    Exchange = 2,
}

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Set(u64),
    Get,
    Make {
        name: Name,
        ino: u64,
        directory: bool,
    },
    Remove {
        name: Name,
        directory: bool,
    },
    Rename {
        from: Name,
        to: Name,
        mode: RenameMode,
    },
    Lookup(Name),
    Append {
        tag: u64,
        wait_for_roster: bool,
        staged: bool,
    },
    Size,
    Fill {
        slots: SomeSlots,
        value: u64,
        staged: bool,
    },
    Peek,
    Punch(usize),
    /// Truncates to zero.
    Cut,
}

impl Call {
    pub fn is_read(&self) -> bool {
        matches!(self, Self::Get | Self::Lookup(_) | Self::Size | Self::Peek)
    }

    /// Whether its bytes travel beside the log.
    pub fn is_staged(&self) -> bool {
        matches!(self, Self::Append { staged: true, .. } | Self::Fill { staged: true, .. })
    }
}

/// What it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    Done,
    Errno(u32),
    /// Of a register; 0 where it was never set.
    Value(u64),
    /// The inode behind a name, and whether it is a directory.
    Entry(Option<(u64, bool)>),
    /// Where an append went, or a file ends.
    Offset(u64),
    /// What each of some slots is filled with; 0 where it is empty.
    Filled([u64; SLOTS]),
}

/// One operation of one client. Stamps order invocations and answers of the whole cluster.
#[derive(Clone, Debug)]
pub struct Record {
    #[expect(dead_code, reason = "for whoever reads the history of a failed run")]
    pub client: usize,
    pub subject: Subject,
    pub call: Call,
    pub invoked: u64,
    /// None where the client never got an answer: then it may or may not have happened.
    pub answer: Option<(u64, Answer)>,
    /// It certainly never happened.
    pub void: bool,
}

/// All of them, in order of invocation.
#[derive(Debug, Default)]
pub struct History {
    pub records: Vec<Record>,
    stamp: u64,
}

impl History {
    pub fn invoke(&mut self, client: usize, subject: Subject, call: Call) -> usize {
        let invoked = self.next_stamp();
        self.records.push(Record { client, subject, call, invoked, answer: None, void: false });
        self.records.len() - 1
    }

    pub fn answer(&mut self, record: usize, answer: Answer) {
        let stamp = self.next_stamp();
        let record = &mut self.records[record];
        assert!(record.answer.is_none(), "answered twice: {record:?}");
        record.answer = Some((stamp, answer));
    }

    /// It was given up before anything was asked for.
    pub fn void(&mut self, record: usize) {
        self.records[record].void = true;
    }

    fn next_stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }
}
