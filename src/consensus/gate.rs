//! Whether a strong read may be served now.

use crate::types::{LogIndex, Monotonic};

/// The two things that a strong read needs: a live lease of this node's session, and that what it
/// reads was last changed at an index which every mount of the roster shows. Small and `Copy`, so that
/// readers decide without asking the core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadGate {
    /// The lease ends here, by this node's own clock.
    pub lease_until: Monotonic,
    /// Everything up to this index is shown by the whole roster.
    pub stable: LogIndex,
}

impl ReadGate {
    /// Whether what was last changed at `mod_index` may be served at `now`.
    #[must_use]
    pub fn may_serve(self, now: Monotonic, mod_index: LogIndex) -> bool {
        now < self.lease_until && mod_index <= self.stable
    }
}
