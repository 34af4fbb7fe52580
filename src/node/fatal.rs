//! What a replica cannot go on with.

use crate::consensus::CoreError;
use crate::store::StoreError;

/// Why a replica has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fatal {
    /// A sentence.
    pub reason: String,
    /// Its disk has no room: a quota and a lack of inodes, too, which nothing tells later.
    pub is_full: bool,
}

impl From<&StoreError> for Fatal {
    fn from(error: &StoreError) -> Self {
        Self { reason: error.to_string(), is_full: error.is_full() }
    }
}

impl From<&CoreError> for Fatal {
    /// The core writes nothing.
    fn from(error: &CoreError) -> Self {
        error.to_string().into()
    }
}

impl From<String> for Fatal {
    fn from(reason: String) -> Self {
        Self { reason, is_full: false }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::Fatal;
    use crate::store::StoreError;

    fn of(errno: i32) -> Fatal {
        let error = io::Error::from_raw_os_error(errno);
        Fatal::from(&StoreError::Io { action: "write", path: "image".into(), source: error })
    }

    /// Whatever becomes of the disk afterwards.
    #[test]
    fn it_says_that_there_was_no_room() {
        for errno in [libc::ENOSPC, libc::EDQUOT] {
            assert!(of(errno).is_full);
        }
        for errno in [libc::EIO, libc::EMFILE, libc::EROFS] {
            assert!(!of(errno).is_full);
        }
        assert_eq!(of(libc::EDQUOT).reason.matches("cannot write image").count(), 1);
        assert!(!Fatal::from("it was removed".to_owned()).is_full);
    }
}
