//! What waits to be sent by one stream of stages, and whether its peer takes any of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio_stream::Stream;

use crate::node::ToStage;

/// A peer that takes nothing for so long, though something waits for it, does not move: longer than a disk hesitates
/// that works.
pub(super) const STALL: Duration = Duration::from_secs(3);

/// The end by which messages come in.
#[derive(Debug)]
pub(super) struct StageQueue {
    sender: UnboundedSender<ToStage>,
    shared: Arc<Shared>,
    /// How many were taken when it was looked at last, and since when none are.
    taken: u64,
    stands_since: Option<Instant>,
}

/// The end that the stream takes them from. It ends when the other end is dropped.
#[derive(Debug)]
pub(super) struct Outgoing(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<UnboundedReceiver<ToStage>>,
    taken: AtomicU64,
}

impl StageQueue {
    pub(super) fn new() -> (Self, Outgoing) {
        let (sender, waiting) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { waiting: Mutex::new(waiting), taken: AtomicU64::new(0) });
        let queue = Self { sender, shared: shared.clone(), taken: 0, stands_since: None };
        (queue, Outgoing(shared))
    }

    pub(super) fn send(&self, message: ToStage) {
        // The connection is being lost: nobody answers then.
        let _ = self.sender.send(message);
    }

    /// To be called often enough to tell [`STALL`] from less.
    pub(super) fn look(&mut self, now: Instant) {
        let taken = self.shared.taken.load(Ordering::Relaxed);
        if taken != self.taken || self.shared.waiting.lock().is_empty() {
            (self.taken, self.stands_since) = (taken, None);
        } else {
            self.stands_since.get_or_insert(now);
        }
    }

    /// Whether the peer took what there was for it, when it was looked at last.
    pub(super) fn moves(&self) -> bool {
        self.stands_since.is_none()
    }

    pub(super) fn is_stuck(&self, now: Instant) -> bool {
        self.stands_since.is_some_and(|since| now.saturating_duration_since(since) >= STALL)
    }
}

impl Drop for StageQueue {
    /// What waits has to go at once, not when the peer takes more: it counts against the budget.
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting.lock();
        waiting.close();
        while waiting.try_recv().is_ok() {}
    }
}

impl Stream for Outgoing {
    type Item = ToStage;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ToStage>> {
        let next = self.0.waiting.lock().poll_recv(context);
        if matches!(next, Poll::Ready(Some(_))) {
            self.0.taken.fetch_add(1, Ordering::Relaxed);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio_stream::StreamExt;

    use super::{STALL, StageQueue};
    use crate::node::ToStage;
    use crate::types::{SessionId, StageId};

    fn message(mark: u64) -> ToStage {
        ToStage::Mark { id: StageId { session: SessionId(1), number: 1 }, mark, durable: false }
    }

    #[tokio::test]
    async fn who_takes_nothing_of_what_waits_is_stuck() {
        let (mut queue, mut outgoing) = StageQueue::new();
        let start = Instant::now();
        let at = |queue: &mut StageQueue, after: Duration| {
            queue.look(start + after);
            (queue.moves(), queue.is_stuck(start + after))
        };
        let second = Duration::from_secs(1);
        assert_eq!(at(&mut queue, 10 * second), (true, false), "nothing waits");
        queue.send(message(1));
        queue.send(message(2));
        assert_eq!(at(&mut queue, 20 * second), (false, false));
        assert_eq!(at(&mut queue, 20 * second + STALL / 2), (false, false));
        outgoing.next().await.unwrap();
        assert_eq!(at(&mut queue, 20 * second + STALL), (true, false), "it is slow");
        assert_eq!(at(&mut queue, 30 * second), (false, false));
        assert_eq!(at(&mut queue, 30 * second + STALL), (false, true));
    }

    #[tokio::test]
    async fn nothing_is_kept_for_a_stream_that_is_given_up() {
        let (queue, mut outgoing) = StageQueue::new();
        queue.send(message(1));
        drop(queue);
        assert!(outgoing.0.waiting.lock().is_empty());
        assert!(outgoing.next().await.is_none(), "it ends");
        let (queue, mut outgoing) = StageQueue::new();
        let ending = tokio::spawn(async move { outgoing.next().await.is_none() });
        tokio::task::yield_now().await;
        drop(queue);
        assert!(ending.await.unwrap(), "also where it waits");
    }
}
