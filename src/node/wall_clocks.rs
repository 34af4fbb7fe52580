//! Whether the nodes' wall clocks agree: times of files come from the node that changes them.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::types::{Monotonic, NodeId, Timestamp};

/// More than this is worth a word.
const TOLERATED_MS: i64 = 1000;
/// So many reports one after the other must say so: one may have been under way for long.
const REPORTS: u32 = 3;
/// Reports that come together were held up together: only the first one counts.
const TOGETHER: Duration = Duration::from_millis(200);
/// Of a node that is silent for so long nothing is said.
const SILENT: Duration = Duration::from_secs(10);

/// What is known of the other nodes' wall clocks.
#[derive(Debug, Default)]
pub(super) struct WallClocks(Mutex<BTreeMap<NodeId, Apart>>);

#[derive(Clone, Copy, Debug, Default)]
struct Apart {
    /// By how many milliseconds the other one is ahead of ours.
    ahead_ms: i64,
    /// How many reports in a row said more than what is tolerated.
    reports: u32,
    /// When the last report that counted came, by this node's monotonic clock.
    heard: Monotonic,
}

impl Apart {
    fn is_known(self) -> bool {
        self.reports >= REPORTS
    }
}

impl WallClocks {
    /// A node has just said what time it is there.
    pub(super) fn heard(&self, node: NodeId, theirs: Timestamp, own: Timestamp, now: Monotonic) {
        let ahead_ms = milliseconds(theirs).saturating_sub(milliseconds(own));
        let mut known = self.0.lock();
        let apart = known.entry(node).or_default();
        if apart.reports > 0 && now.since(apart.heard) < TOGETHER {
            return;
        }
        let was_known = apart.is_known();
        let is_apart = ahead_ms.saturating_abs() > TOLERATED_MS;
        let reports = if is_apart { apart.reports.saturating_add(1) } else { 0 };
        *apart = Apart { ahead_ms, reports, heard: now };
        match (was_known, apart.is_known()) {
            (false, true) => {
                tracing::warn!(
                    peer = node.0,
                    ahead_ms,
                    "its wall clock differs from ours: check NTP on both"
                );
            }
            (true, false) => tracing::info!(peer = node.0, "its wall clock agrees with ours again"),
            (false, false) | (true, true) => {}
        }
    }

    /// Of other nodes nothing is kept.
    pub(super) fn retain(&self, is_known: impl Fn(NodeId) -> bool) {
        self.0.lock().retain(|node, _| is_known(*node));
    }

    /// Nodes whose clocks differ, and by how many milliseconds each is ahead of ours.
    pub(super) fn apart(&self, now: Monotonic) -> Vec<(NodeId, i64)> {
        let known = self.0.lock();
        let apart = known.iter().filter(|(_, apart)| apart.is_known());
        let apart = apart.filter(|(_, apart)| now.since(apart.heard) < SILENT);
        apart.map(|(node, apart)| (*node, apart.ahead_ms)).collect()
    }
}

fn milliseconds(time: Timestamp) -> i64 {
    time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::{Duration, Monotonic, NodeId, Timestamp, WallClocks};

    /// A clock that is off is told of, not a report that was late; and not any longer than it is off.
    #[test]
    fn clocks_that_differ_are_known() {
        let clocks = WallClocks::default();
        let own = Timestamp { seconds: 1_000, nanos: 900_000_000 };
        let heard = |seconds, nanos, at| {
            let at = Monotonic::default() + Duration::from_millis(at);
            clocks.heard(NodeId(2), Timestamp { seconds, nanos }, own, at);
            clocks.apart(at)
        };
        heard(990, 0, 0);
        heard(1_001, 0, 500);
        assert_eq!(heard(1_000, 0, 1_000), [], "one report was late");
        (1..5).for_each(|together| drop(heard(995, 0, 1_500 + together)));
        assert_eq!(heard(999, 0, 1_510), [], "held up together");
        heard(999, 0, 2_000);
        assert_eq!(heard(998, 900_000_000, 2_500), [(NodeId(2), -2000)]);
        assert_eq!(clocks.apart(Monotonic::default() + Duration::from_secs(60)), [], "silent");
        assert_eq!(heard(1_001, 0, 3_000), []);
    }
}
