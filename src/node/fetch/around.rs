//! Reading what is missing where there is no room to keep it: from a peer, past this node's disk.

use super::piece::connected;
use super::{Fetched, Key, Wanted};
use crate::node::handle::{Handle, NodeError};
use crate::store::StoreError;
use crate::types::{ByteRange, LogIndex, NodeId};

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
            let into = &mut bytes[at(part.start)..at(part.end)];
            if !self.ask(key, *part, *version, into).await {
                return Ok(None);
            }
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

    /// Fills `into` with bytes of a version that is applied here, from whoever has them; false where not all are to be
    /// had.
    async fn ask(&self, key: Key, range: ByteRange, version: LogIndex, into: &mut [u8]) -> bool {
        let (ino, generation) = key;
        let whole = Wanted { ino, generation, range, version, apart: false };
        let peers = connected(self);
        for node in &peers {
            if let Some(fetched) = self.ask_one(*node, whole).await {
                into.copy_from_slice(&fetched.data);
                return true;
            }
        }
        // Each may have some of it.
        let mut left = vec![range];
        for node in peers {
            let mut lacked = Vec::new();
            while let Some(range) = left.pop() {
                let wanted = Wanted { range, apart: true, ..whole };
                let Some(fetched) = self.ask_one(node, wanted).await else {
                    lacked.push(range);
                    continue;
                };
                let came = fetched.range();
                let at = |at: u64| usize::try_from(at - whole.range.start).expect("in memory");
                into[at(came.start)..at(came.end)].copy_from_slice(&fetched.data);
                let before = ByteRange { end: came.start, ..range };
                lacked.extend(Some(before).filter(|before| !before.is_empty()));
                let behind = ByteRange { start: came.end, ..range };
                left.extend(Some(behind).filter(|behind| !behind.is_empty()));
            }
            left = lacked;
        }
        left.is_empty()
    }

    async fn ask_one(&self, node: NodeId, wanted: Wanted) -> Option<Fetched> {
        let asked = self.0.transport.fetch(node, wanted);
        let answer = tokio::time::timeout(self.op_timeout() / 3, asked).await.ok()??;
        let fetched = answer.filter(|fetched| fetched.answers(&wanted))?;
        self.until_applied(fetched.version).await.then_some(fetched)
    }
}
