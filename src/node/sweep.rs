//! Collects, once after each start, the backing files that nothing names: what a crash may have left behind.

use std::thread;

use super::Handle;
use crate::consensus::Standing;
use crate::store::run_idly;

/// Waits until what the log held at the start is applied, then has a thread of its own look at all files.
pub(super) async fn collect(handle: Handle) {
    // This node's session was opened by an entry that came after all of that.
    let mut session = handle.0.session.subscribe();
    if session.wait_for(Option::is_some).await.is_err() {
        return;
    }
    // A state that is wrong may not name what the right one does.
    let mut was_equal = handle.0.comparison.was_equal();
    let mut standing = handle.0.comparison.changes();
    let is_sound = |standing: &Standing| *standing == Standing::Sound;
    if was_equal.wait_for(|was| *was).await.is_err() || standing.wait_for(is_sound).await.is_err() {
        return;
    }
    let body = move || {
        run_idly();
        match handle.files().collect_unreferenced(&handle.0.state) {
            Ok(swept) if swept.files > 0 => {
                tracing::info!(
                    files = swept.files,
                    bytes = swept.bytes,
                    "files that nothing names are gone"
                );
            }
            Ok(_) => {}
            // They take space, no more.
            Err(error) => {
                tracing::warn!(%error, "files that nothing names stay until the next start");
            }
        }
    };
    if let Err(error) = thread::Builder::new().name("sweep".to_owned()).spawn(body) {
        tracing::warn!(%error, "files that nothing names stay until the next start");
    }
}
