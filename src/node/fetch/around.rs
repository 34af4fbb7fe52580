//! Reading what is missing where there is no room to keep it: from a peer, past this node's disk.

use super::piece::connected;
use super::{Key, Wanted};
use crate::node::handle::{Handle, NodeError};
use crate::store::StoreError;
use crate::types::{ByteRange, LogIndex};

impl Handle {
    /// The bytes of a range, of which some are missing here: those from peers, the others from this node's disk.
    /// Nothing where that changed meanwhile, or no peer has them now.
    ///
    /// # Errors
    /// When this node's own disk refuses.
    ///
    /// # Panics
    /// Where a range does not fit into memory's addresses, which cannot be.
    pub async fn read_around(
        &self,
        key: Key,
        range: ByteRange,
    ) -> Result<Option<Vec<u8>>, NodeError> {
        let missing = self.files().missing(key, range);
        let at = move |at: u64| usize::try_from(at - range.start).expect("in memory");
        let mut bytes = vec![0; at(range.end)];
        for (part, version) in &missing {
            let Some(fetched) = self.ask(key, *part, *version).await else { return Ok(None) };
            bytes[at(part.start)..at(part.end)].copy_from_slice(&fetched);
        }
        let handle = self.clone();
        let here = tokio::task::spawn_blocking(move || {
            let mut start = range.start;
            let ends = missing.iter().map(|(part, _)| *part);
            for part in ends.chain([ByteRange::at(range.end, 0)]) {
                let gap = &mut bytes[at(start)..at(part.start)];
                if !handle.files().read(key.0, key.1, start, gap)? {
                    return Ok(None);
                }
                start = part.end;
            }
            let is_same = handle.files().missing(key, range) == missing;
            Ok::<_, StoreError>(is_same.then_some(bytes))
        });
        Ok(here.await.map_err(|_| NodeError::Stopping)??)
    }

    /// Bytes of a version that is applied here, from whoever has them.
    async fn ask(&self, key: Key, range: ByteRange, version: LogIndex) -> Option<bytes::Bytes> {
        let wanted = Wanted { ino: key.0, generation: key.1, range, version };
        for node in connected(self) {
            let asked = self.0.transport.fetch(node, wanted);
            let answer = tokio::time::timeout(self.op_timeout() / 3, asked).await;
            if let Ok(Some(Some(fetched))) = answer
                && fetched.data.len() as u64 == range.len()
                && self.until_applied(fetched.version).await
            {
                return Some(fetched.data);
            }
        }
        None
    }
}
