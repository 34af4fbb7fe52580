//! From bytes of a view to records, and what to say when they are none.

use std::fmt;

use prost::Message;

use super::view::View;

/// This replica's state is not what the commands made it: to be healed from another replica. Never an
/// outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("corrupt state at key {}: {corruption}", Hex(.key))]
pub struct CorruptRecord {
    /// Where.
    pub key: Vec<u8>,
    /// What is wrong there.
    pub corruption: Corruption,
}

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// Its bytes are no such record.
    #[error("its bytes cannot be decoded")]
    Undecodable(#[source] prost::DecodeError),
    /// Another record points to it, but it does not exist.
    #[error("it is missing")]
    Missing,
    /// It is an attribute that ought to be an ACL.
    #[error("it is no valid ACL")]
    NotAnAcl,
    /// The key itself is malformed.
    #[error("the key is malformed")]
    BadKey,
}

/// What reading records adds to reading bytes. Every view has it whose error can say that a record is
/// corrupt.
pub trait Records: View<Error: From<CorruptRecord>> {
    /// The record at `key`.
    ///
    /// # Errors
    /// When this replica cannot read its own state, or the record is corrupt.
    fn record<M: Message + Default>(&self, key: &[u8]) -> Result<Option<M>, Self::Error> {
        match self.get(key)? {
            Some(value) => Ok(Some(decode(key, &value)?)),
            None => Ok(None),
        }
    }
}

impl<V: View<Error: From<CorruptRecord>> + ?Sized> Records for V {}

/// A record from its bytes.
pub(super) fn decode<M: Message + Default>(key: &[u8], value: &[u8]) -> Result<M, CorruptRecord> {
    M::decode(value).map_err(|source| CorruptRecord {
        key: key.to_vec(),
        corruption: Corruption::Undecodable(source),
    })
}

/// That an attribute is no ACL.
pub(super) fn not_an_acl(key: Vec<u8>) -> CorruptRecord {
    CorruptRecord { key, corruption: Corruption::NotAnAcl }
}

/// That a record is missing that another one points to.
pub(super) fn missing(key: Vec<u8>) -> CorruptRecord {
    CorruptRecord { key, corruption: Corruption::Missing }
}

/// That a key does not belong where it was found.
pub(super) fn bad_key(key: &[u8]) -> CorruptRecord {
    CorruptRecord { key: key.to_vec(), corruption: Corruption::BadKey }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
