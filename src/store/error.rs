//! This replica's own trouble with its disk.

use std::io;
use std::path::{Path, PathBuf};

use crate::fs::Digest;
use crate::types::LogIndex;

/// What a person does about a replica whose disk lost something that it had promised to keep.
pub(crate) const REJOIN: &str = "move this data directory away and join the cluster as a new node: \
     the other nodes hold everything that was acknowledged";

/// The same where there may be no other node.
const TRY_ANOTHER: &str = "if other nodes are left, move this data directory away and join the cluster as a new node: they \
     hold everything that was acknowledged; if none is, try the data directory of another one";

/// What a person does about a replica whose snapshot file is damaged.
pub(crate) const TAKE_ANOTHER: &str = "start the daemon: it writes it anew from its state, or takes another one from the \
     other nodes; if none of them can be reached, correct `peers` in its configuration";

/// What a person does about a state whose records are not what was written.
pub(crate) const REBUILD: &str = "remove the file `boot` of the data directory and restart the daemon: the state is then \
     rebuilt from the snapshot file and the log";

/// Why the store could not do something. Never an outcome of a command.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The engine of the Raft log refused.
    #[error("cannot {action} the Raft log in {path}: {source}")]
    Log {
        /// What was being done, as a verb.
        action: &'static str,
        /// The log's directory.
        path: PathBuf,
        /// What raft-engine said.
        #[source]
        source: raft_engine::Error,
    },
    /// The engine of the Raft log gave up: its way of reporting that an fsync failed.
    #[error(
        "cannot {action} the Raft log in {path}: its engine gave up (see the panic before this), \
         most likely because the disk failed an fsync; check the disk, then restart the daemon"
    )]
    LogPanicked {
        /// What was being done, as a verb.
        action: &'static str,
        /// The log's directory.
        path: PathBuf,
    },
    /// A write of the log failed before; what the disk holds of it is not known until it is read anew.
    #[error("the Raft log in {path} failed before and takes nothing more; restart the daemon")]
    LogPoisoned {
        /// The log's directory.
        path: PathBuf,
    },
    /// Entries that do not follow what the log holds. A fault of the caller.
    #[error("the Raft log holds {first} to {last}: entry {index} cannot be read, cut or put there")]
    LogGap {
        /// Which entry.
        index: LogIndex,
        /// The first entry that the log holds.
        first: LogIndex,
        /// The last entry that the log holds; before `first` where it is empty.
        last: LogIndex,
    },
    /// sled refused.
    #[error("cannot {action} the state in {path}: {source}")]
    Sled {
        /// What was being done, as a verb.
        action: &'static str,
        /// The state's directory.
        path: PathBuf,
        /// What sled said.
        #[source]
        source: sled::Error,
    },
    /// A file is not what was written.
    #[error("{} is damaged{}: {what}; {advice}", path.display(), at(*offset))]
    Corrupt {
        /// Which file or directory.
        path: PathBuf,
        /// Where in it, in bytes, where that is known.
        offset: Option<u64>,
        /// What is wrong with it.
        what: String,
        /// What the person can do.
        advice: &'static str,
    },
    /// Neither a state nor a snapshot file is left that could be used. The log is whole: with a peer's snapshot the
    /// replica goes on.
    #[error("{damage}")]
    StateLost {
        /// What is wrong with the snapshot file.
        damage: Box<StoreError>,
        /// The snapshot must be of this entry or a later one: the log begins behind it.
        from: LogIndex,
    },
    /// A record of the state that is not what the commands made it.
    #[error("{source}; {advice}", advice = REBUILD)]
    CorruptRecord {
        /// Which, and what is wrong with it.
        #[source]
        source: crate::fs::CorruptRecord,
    },
    /// All records of the state together are not what they were when they were written.
    #[error(
        "the records of the state add up to {found} instead of {expected}: some are not what was written; start the \
         daemon: it finds that when it writes its next snapshot, and builds the state anew"
    )]
    Rotten {
        /// Their digest.
        found: Digest,
        /// What it was to be.
        expected: Digest,
    },
    /// A file of a format that came later.
    #[error(
        "{path} was written by a newer version of quorumfs ({what} {found}, this one knows up to {supported}); start \
         that version, or a newer one"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// What came later: its format, or the feature level of what is in it.
        what: &'static str,
        /// Which it has.
        found: u64,
        /// The newest one known here.
        supported: u64,
    },
    /// A command that came later.
    #[error(
        "entry {index} of the log in {path} is of a kind that this version of quorumfs does not know: start the newer \
         version that has written it"
    )]
    NewerCommand {
        /// The log's directory.
        path: PathBuf,
        /// Which entry.
        index: LogIndex,
    },
    /// Another daemon works on the data directory.
    #[error("{path} is in use by another daemon (process {pid}); stop that one first")]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// The process id that the other left, or "unknown".
        pid: String,
    },
    /// The directory is becoming a new cluster.
    #[error(
        "{path} is becoming a new cluster, and that was interrupted: run `quorumfs recover --data {path} --yes`, \
         which goes on where it stopped"
    )]
    Refounding {
        /// The data directory.
        path: PathBuf,
    },
    /// There is no replica in the directory.
    #[error("{path} holds no replica; create or join a cluster first")]
    NoReplica {
        /// The directory.
        path: PathBuf,
    },
    /// The directory cannot take a new replica.
    #[error("{path} is not empty (it holds {found}); give an empty directory for a new replica")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// A name that is in it.
        found: String,
    },
}

impl From<crate::fs::CorruptRecord> for StoreError {
    fn from(corrupt: crate::fs::CorruptRecord) -> Self {
        Self::CorruptRecord { source: corrupt }
    }
}

impl StoreError {
    /// Whether it says that the disk has no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        use super::room::is_full;
        match self {
            Self::Io { source, .. }
            | Self::Sled { source: sled::Error::Io(source), .. }
            | Self::Log { source: raft_engine::Error::Io(source), .. } => is_full(source),
            // Where there was no room in another file either.
            Self::Log { source: raft_engine::Error::TryAgain(_), .. } => true,
            _ => false,
        }
    }

    /// Whether it says that the disk does not take bytes in: it has no room, or cannot write there.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Io { source, .. } if super::refused::is_refused(source))
    }

    /// Whether it says that something is not what was written, so that looking again gives the same.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Corrupt { .. }
                | Self::CorruptRecord { .. }
                | Self::LogGap { .. }
                | Self::StateLost { .. }
        )
    }

    /// Whether a daemon cannot start before somebody has done something: trying again gives the same.
    #[must_use]
    pub fn needs_a_person(&self) -> bool {
        self.is_damage() || matches!(self, Self::Newer { .. } | Self::Refounding { .. })
    }

    /// Damage that was found in a copy of a data directory is that of the original. Whoever looks at a copy may have no
    /// other node.
    pub(super) fn of_a_copy(self, copy: &Path, original: &Path) -> Self {
        let named = |path: PathBuf| match path.strip_prefix(copy) {
            Ok(rest) => original.join(rest),
            Err(_) => path,
        };
        match self {
            Self::Corrupt { path, offset, what, advice } => {
                let advice = if advice == REJOIN { TRY_ANOTHER } else { advice };
                Self::Corrupt { path: named(path), offset, what, advice }
            }
            Self::StateLost { damage, from } => {
                Self::StateLost { damage: Box::new(damage.of_a_copy(copy, original)), from }
            }
            Self::Newer { path, what, found, supported } => {
                Self::Newer { path: named(path), what, found, supported }
            }
            Self::NewerCommand { path, index } => Self::NewerCommand { path: named(path), index },
            other => other,
        }
    }

    /// For `map_err` after a system call.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// For `map_err` after a call of sled.
    pub(crate) fn sled(action: &'static str, path: &Path) -> impl FnOnce(sled::Error) -> Self {
        move |source| Self::Sled { action, path: path.to_owned(), source }
    }
}

fn at(offset: Option<u64>) -> String {
    offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{PathBuf, StoreError};

    /// Engines hand on the kind of an error, and not its number.
    #[test]
    fn engines_say_that_there_is_no_room() {
        let is_full = |errno| {
            let error = || io::Error::new(io::Error::from_raw_os_error(errno).kind(), "pwrite");
            let (action, path) = ("write", PathBuf::new);
            let log = raft_engine::Error::Io(error());
            let state = sled::Error::Io(error());
            [
                StoreError::Io { action, path: path(), source: error() }.is_full(),
                StoreError::Log { action, path: path(), source: log }.is_full(),
                StoreError::Sled { action, path: path(), source: state.clone() }.is_full(),
            ]
        };
        assert_eq!(is_full(libc::ENOSPC), [true; 3]);
        assert_eq!(is_full(libc::EDQUOT), [true; 3]);
        assert_eq!(is_full(libc::EIO), [false; 3]);
        let source = raft_engine::Error::TryAgain("twice".to_owned());
        assert!(StoreError::Log { action: "write", path: PathBuf::new(), source }.is_full());
    }
}
