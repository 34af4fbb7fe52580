//! Descriptors that no child of this process inherits.
//!
//! Starting a program closes, in the child, what its parent has open, and closing a file on a mount asks the
//! mount's daemon: where that daemon is cut off or stands still, whoever makes faults would be held up by them.

use std::sync::Barrier;

/// Gives the calling thread a table of descriptors of its own. It holds what is open now, pipes to programs too, so
/// nobody goes on before all threads that do this are `ready`.
#[expect(unsafe_code, reason = "no safe crate of this repository has unshare(2)")]
pub fn keep_to_this_thread(ready: &Barrier) {
    // SAFETY: it takes no pointers; files that other threads open or close from here on are not used by this one.
    let unshared = unsafe { libc::unshare(libc::CLONE_FILES) };
    assert_eq!(unshared, 0, "unshare: {}", std::io::Error::last_os_error());
    ready.wait();
}
