//! Errnos: outcomes that every replica gives alike.

use std::fmt;

/// An errno of Linux (asm-generic numbers, whatever the replica runs on: it is part of the state).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(u32);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $number:literal),* $(,)?) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($number);)*
        }

        impl fmt::Display for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(Self::$name => f.write_str(stringify!($name)),)*
                    Self(number) => write!(f, "errno {number}"),
                }
            }
        }
    };
}

errnos! {
    /// A directory cannot have a second name.
    EPERM = 1,
    /// No such name or inode, or a directory that was removed.
    ENOENT = 2,
    /// Value or batch too large.
    E2BIG = 7,
    /// Not an outcome: the command is too far ahead of the session's window of outcomes. It was not
    /// applied and leaves no outcome; propose it again once earlier ones are answered.
    EAGAIN = 11,
    /// Only directories have what is inherited.
    EACCES = 13,
    /// Nobody else is to have a vote.
    EBUSY = 16,
    /// The name exists.
    EEXIST = 17,
    /// Neither a regular file nor a directory.
    ENODEV = 19,
    /// Not a directory.
    ENOTDIR = 20,
    /// A directory.
    EISDIR = 21,
    /// The command makes no sense.
    EINVAL = 22,
    /// Past the largest size of a file.
    EFBIG = 27,
    /// No inode numbers are left.
    ENOSPC = 28,
    /// Too many links.
    EMLINK = 31,
    /// The name of an attribute is empty or too long.
    ERANGE = 34,
    /// The name is too long.
    ENAMETOOLONG = 36,
    /// An operation that this feature level does not know.
    ENOSYS = 38,
    /// The directory is not empty.
    ENOTEMPTY = 39,
    /// No such attribute.
    ENODATA = 61,
    /// A kind of allocation that there is not; or permissions of a symlink.
    EOPNOTSUPP = 95,
    /// Not an outcome: the session is unknown or has ended, or the command is below its window of
    /// outcomes, so that it was answered before. It was not applied now and leaves no outcome.
    ESTALE = 116,
    /// The bytes that were to be copied, replaced or given up are not those that the proposer saw. Nothing was changed; look
    /// again.
    ECANCELED = 125,
}

impl Errno {
    /// Its number, as [`super::proto::Outcome`] holds it.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}
