//! Identifiers. Plain integers on the wire and on disk, distinct types in code.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }

        impl From<$name> for u64 {
            fn from(value: $name) -> u64 {
                value.0
            }
        }
    };
}

id!(
    /// A member of the cluster, and its Raft id. It belongs to a data directory; 0 is nobody.
    NodeId
);
id!(
    /// A mount's session: the log index of the entry that opened it. 0 is the cluster itself.
    SessionId
);
id!(
    /// One of the mounts that a daemon serves, from 1; numbers are not used again while it runs.
    MountId
);
id!(
    /// Number of a command within its session, from 1.
    Seq
);
id!(
    /// An inode number. 1 is the root; numbers are never used again.
    Ino
);
id!(
    /// A life of a file's bytes: a new one at create and at truncation to zero.
    Generation
);
id!(
    /// A position in the Raft log, from 1.
    LogIndex
);
id!(
    /// A Raft term.
    Term
);
id!(
    /// A Raft group. There is one, number 1, until clusters carry several.
    VolumeId
);

impl Ino {
    /// The root directory.
    pub const ROOT: Self = Self(1);
}

impl SessionId {
    /// Commands of the cluster itself.
    pub const CLUSTER: Self = Self(0);
}

impl VolumeId {
    /// The only volume of today's clusters.
    pub const FIRST: Self = Self(1);
}

impl LogIndex {
    /// The index after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Where in the log an entry stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Its index.
    pub index: LogIndex,
    /// The term of its leader.
    pub term: Term,
}

/// What names a command from its proposal to its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalKey {
    /// The proposing session.
    pub session: SessionId,
    /// Its number; for the cluster's own commands a random one.
    pub seq: Seq,
}

/// Bytes that a session has sent to all replicas and not written yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageId {
    /// Whose.
    pub session: SessionId,
    /// Which of the session's, from 1.
    pub number: u64,
}

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.session, self.number)
    }
}

/// 16 random bytes that name a cluster. Printed and read as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for ClusterId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "a cluster id is 32 hexadecimal digits";
        if text.len() != 32 || !text.is_ascii() {
            return Err(WANTED);
        }
        let mut bytes = [0; 16];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| WANTED)?;
        }
        Ok(Self(bytes))
    }
}
