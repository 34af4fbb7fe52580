//! A daemon that is told to end does not wait for a disk that does not answer.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout_at};

use crate::store::DataDir;

/// A disk that takes longer for a few bytes hangs. One that only is that slow costs the next start some of the log's
/// replay: what is in the kernel's memory stays there, as after a SIGKILL.
/// (A disk that has gigabytes to write first is slow, too.)
const PATIENCE: Duration = Duration::from_secs(10);
/// What others are told takes no longer: the session ends, and leadership goes to another one. Who tells them may wait for
/// the own disk, and for as long as any operation does.
const LEAVING: Duration = Duration::from_secs(4);

/// A disk that was asked whether it answers.
pub(super) struct Asked {
    until: Instant,
    answer: JoinHandle<()>,
}

impl Asked {
    /// Asks it. To be called within a runtime.
    pub(super) fn now(directory: Arc<DataDir>) -> Self {
        let asking = move || {
            if let Err(error) = directory.ask_disk() {
                tracing::debug!(%error, "the disk has answered");
            }
        };
        Self { until: Instant::now() + PATIENCE, answer: spawn_blocking(asking) }
    }

    /// Resolves where it does not answer in time, and not before this node can have left.
    pub(super) async fn hangs(&mut self) {
        let until = self.until.max(Instant::now() + LEAVING);
        if timeout_at(until, &mut self.answer).await.is_ok() {
            pending::<()>().await;
        }
    }
}
