//! The core's settings. The same on every node of a cluster, but for `node` and `election_ticks`.

use std::time::Duration;

use crate::types::NodeId;

/// Settings of a [`super::Core`].
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// This node.
    pub node: NodeId,
    /// How often the driver hands in [`super::Input::Tick`].
    pub tick: Duration,
    /// Ticks without a leader until a node stands for election: drawn from `[min, max)`. Simulations
    /// pin it by giving `max = min + 1`, because raft-rs draws from the thread's own generator.
    pub election_ticks: (usize, usize),
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// How long a session lives without being renewed.
    pub session_ttl: Duration,
    /// The replicas' states are compared so often while they change. A newcomer gets no vote before it has been.
    pub digest_period: Duration,
    /// A proposal without an outcome is proposed again after this long.
    pub retry_after: Duration,
    /// Bytes of own proposals on their way; more wait here.
    pub max_in_flight_bytes: usize,
    /// Bytes of entries that stay in memory although they are durable and applied, for peers that lag
    /// a little; older ones are read from the log.
    pub kept_log_bytes: usize,
}

impl CoreConfig {
    /// The settings of a real node.
    #[must_use]
    pub fn new(node: NodeId, session_ttl: Duration) -> Self {
        Self {
            node,
            tick: Duration::from_millis(50),
            election_ticks: (12, 20),
            heartbeat_ticks: 2,
            session_ttl,
            digest_period: Duration::from_millis(250),
            retry_after: Duration::from_secs(1),
            max_in_flight_bytes: 32 << 20,
            kept_log_bytes: 8 << 20,
        }
    }

    /// How often a session asks to be renewed.
    #[must_use]
    pub fn heartbeat_interval(&self) -> Duration {
        self.session_ttl / 4
    }

    /// How long a leader waits for a session that it has renewed: the TTL, and a margin for clocks
    /// whose rates differ (5%, far more than any that runs right).
    #[must_use]
    pub fn expiry(&self) -> Duration {
        self.session_ttl + self.session_ttl / 20
    }
}
