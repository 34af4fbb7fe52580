//! How much may be under way at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests of one kind, bounded in number and in the memory that their answers take.
#[derive(Debug)]
pub(super) struct Slots {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// Room for one request, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

impl Slots {
    pub(super) fn new(requests: usize, bytes: usize) -> Self {
        let [requests, bytes] = [requests, bytes].map(|count| Arc::new(Semaphore::new(count)));
        Self { requests, bytes }
    }

    /// Waits for room; `bytes` is no more than there is in all.
    pub(super) async fn take(&self, bytes: u64) -> Slot {
        const OPEN: &str = "slots are never closed";
        let bytes = u32::try_from(bytes).expect("a piece is small");
        let request = self.requests.clone().acquire_owned().await.expect(OPEN);
        let bytes = self.bytes.clone().acquire_many_owned(bytes).await.expect(OPEN);
        Slot { _request: request, _bytes: bytes }
    }
}
