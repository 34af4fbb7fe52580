//! What a daemon says that has not started yet: to the service manager, and to whoever asks for its status.

use anyhow::{Context, Result};
use tokio::net::TcpListener;

use crate::rpc;
use crate::telemetry;

/// Answers until it is dropped.
#[derive(Debug)]
pub(super) struct Starting(rpc::Starting);

impl Starting {
    /// On the daemon's socket, served by `streams`.
    pub(super) fn begin(listener: &TcpListener, streams: &tokio::runtime::Handle) -> Result<Self> {
        let _within = streams.enter();
        let answering = rpc::Starting::begin(listener).context("cannot answer while starting")?;
        Ok(Self(answering))
    }

    /// What the start is about from now on.
    pub(super) fn says(&self, line: &str) {
        telemetry::notify_status(line);
        self.0.says(line);
    }
}
