//! Where the other members were last known to listen: for a replica that has lost its state, and with it the table of
//! members. A hint, no more: whoever answers there says what cluster it belongs to.

use std::path::Path;

use super::{StoreError, durable};

/// Addresses, one a line.
const FILE: &str = "peers";

/// The addresses that were recorded last in a data directory; none where they cannot be read.
#[must_use]
pub fn recorded_peers(data: &Path) -> Vec<String> {
    let bytes = std::fs::read(data.join(FILE)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
}

/// Records the addresses of the other members, where they are not what is recorded.
///
/// # Errors
/// When the disk refuses.
pub fn record_peers(data: &Path, addresses: &[String]) -> Result<(), StoreError> {
    if recorded_peers(data) == addresses {
        return Ok(());
    }
    let mut text = addresses.join("\n");
    text.push('\n');
    durable::replace(&data.join(FILE), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::{record_peers, recorded_peers};

    #[test]
    fn addresses_are_kept() {
        let data = tempfile::tempdir().unwrap();
        assert!(recorded_peers(data.path()).is_empty());
        let addresses = ["a:1", "b:2"].map(str::to_owned);
        record_peers(data.path(), &addresses).unwrap();
        assert_eq!(recorded_peers(data.path()), addresses);
        std::fs::write(data.path().join("peers"), [0xff, b'\n']).unwrap();
        assert_eq!(recorded_peers(data.path()).len(), 1, "whatever it says");
    }
}
