//! How a daemon ends that cannot go on, and when it does not start again.
//!
//! A panic in any thread ends the process at once: a daemon of which a part is gone must not serve. The guardian then
//! fences its mounts, as after a SIGKILL, and the next start believes nothing but what is durable. Whatever makes a
//! daemon end is recorded in its data directory; after some such ends it stays down until a person has looked.

use std::panic::PanicHookInfo;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::node::{Fatal, FatalKind, StartError};
use crate::store::{self, DataDir, EndKind, StoreError};

/// A disk that does not answer must not keep a daemon from ending.
const RECORDING: Duration = Duration::from_secs(1);

/// The data directory that this process works on.
static DATA: OnceLock<PathBuf> = OnceLock::new();

/// A daemon that does not run, and must not be started again before a person has looked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StaysDown(pub(super) String);

/// Refuses to start where the daemons before this one have ended again and again; `anyway` forgets that. From here on,
/// panics are recorded.
///
/// # Errors
/// [`StaysDown`], or when the disk refuses.
pub(super) fn look_back(directory: &DataDir, anyway: bool) -> anyhow::Result<()> {
    let data = directory.path();
    // Of the directory that was locked first; there is one in a process.
    let _ = DATA.set(data.to_owned());
    if anyway {
        if let Err(error) = store::forget_ends(data) {
            tracing::warn!("{error}");
        }
        return Ok(());
    }
    let ends = store::recorded_ends(data).unwrap_or_else(|error| {
        // Why others ended keeps nobody down by itself.
        tracing::warn!("{error}");
        Vec::new()
    });
    if let Some(last) = ends.last() {
        tracing::warn!(reason = last.reason, "an earlier daemon on this data directory ended");
    }
    match store::crash_loop(&ends) {
        None => Ok(()),
        Some(last) => Err(StaysDown(format!(
            "the daemon stays down: it ended by itself {} times within {} minutes, the last time because {}; when \
             the cause is mended, start it once with `quorumfs serve --after-crash-loop`",
            store::LOOP,
            store::WINDOW.as_secs() / 60,
            last.reason
        ))
        .into()),
    }
}

/// A data directory that cannot be opened: where trying again would give the same, nobody is to.
pub(super) fn not_opened(error: anyhow::Error) -> anyhow::Error {
    let is_lasting = error.downcast_ref().is_some_and(StoreError::needs_a_person);
    if is_lasting { StaysDown(error.to_string()).into() } else { error }
}

/// The same of a start that came so far that it is recorded.
pub(super) fn not_started(directory: &DataDir, error: impl Into<anyhow::Error>) -> anyhow::Error {
    let error = match error.into().downcast() {
        Ok(StartError::Store(error)) => error.into(),
        Ok(error) => error.into(),
        Err(error) => error,
    };
    let error = not_opened(error);
    if error.is::<StaysDown>() {
        return error;
    }
    let is_full = error.downcast_ref().is_some_and(StoreError::is_full);
    let _ = ended(directory, Fatal::failed(error.to_string(), is_full));
    error
}

/// The replica cannot go on, and the next start is to know why. An fsync may have failed, and then the kernel gives back what
/// is not on the disk. Answers what this process ends with.
pub(super) fn ended(directory: &DataDir, why: Fatal) -> anyhow::Error {
    let data = directory.path().to_owned();
    let kind = match why.kind {
        FatalKind::Failed => EndKind::Failed,
        FatalKind::Full => EndKind::Full,
        FatalKind::Removed => {
            let reason = why.reason.clone();
            in_time(move || store::record_removed(&data, &reason));
            return StaysDown(why.reason).into();
        }
    };
    distrust_and_record(data, kind, why.reason.clone());
    anyhow::Error::msg(why.reason)
}

/// Whether the last daemon that ended by itself did so for want of room.
pub(super) fn was_full(directory: &DataDir) -> bool {
    let ends = store::recorded_ends(directory.path()).unwrap_or_default();
    ends.last().is_some_and(|last| last.kind == EndKind::Full)
}

/// Has every panic end this process.
pub(super) fn end_at_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        if !store::is_contained() {
            end(panic);
        }
    }));
}

fn end(panic: &PanicHookInfo<'_>) -> ! {
    static ENDING: AtomicBool = AtomicBool::new(false);
    if ENDING.swap(true, Ordering::SeqCst) {
        // Another thread is about it.
        std::thread::sleep(2 * RECORDING);
        std::process::abort();
    }
    let thread = std::thread::current();
    let place = panic.location().map(|place| format!(" at {}:{}", place.file(), place.line()));
    let reason = format!(
        "its thread {} panicked{}: {}",
        thread.name().unwrap_or("without a name"),
        place.unwrap_or_default(),
        panic.payload_as_str().unwrap_or("no reason given")
    );
    if let Some(data) = DATA.get() {
        // What is in memory may be wrong, and so may what was made of it.
        distrust_and_record(data.clone(), EndKind::Panicked, reason);
    }
    std::process::abort()
}

fn distrust_and_record(data: PathBuf, kind: EndKind, reason: String) {
    in_time(move || {
        if let Err(error) = store::distrust_state(&data) {
            eprintln!("quorumfs: {error}");
        }
        store::record_end(&data, kind, &reason)
    });
}

/// Waits no longer than [`RECORDING`].
fn in_time(record: impl FnOnce() -> Result<(), StoreError> + Send + 'static) {
    let (done, recorded) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        if let Err(error) = record() {
            eprintln!("quorumfs: the reason is not recorded: {error}");
        }
        let _ = done.send(());
    });
    let _ = recorded.recv_timeout(RECORDING);
}

#[cfg(test)]
mod tests {
    use super::{DataDir, Fatal, StaysDown, StoreError, ended, look_back, not_started, was_full};
    use crate::store::LOOP;
    use crate::store::test_replica::Author;

    fn error(errno: i32) -> StoreError {
        let source = std::io::Error::from_raw_os_error(errno);
        StoreError::Io { action: "create", path: "image.tmp".into(), source }
    }

    /// Whether a daemon stays down after so many ends as make a loop, and whether the next one would wait for room.
    fn after_ends(errno: i32, end: impl Fn(&DataDir, StoreError)) -> (bool, bool) {
        let author = Author::new();
        let data = author.open("boot");
        (0..LOOP).for_each(|_| end(&data, error(errno)));
        let stays_down = look_back(&data, false).is_err_and(|error| error.is::<StaysDown>());
        (stays_down, was_full(&data))
    }

    /// There is room on the disk of this test, so nothing but the error says that there was none.
    #[test]
    fn ends_for_want_of_room_are_no_loop() {
        let running = |data: &DataDir, error| drop(ended(data, Fatal::from(&error)));
        let starting = |data: &DataDir, error: StoreError| drop(not_started(data, error));
        for errno in [libc::EDQUOT, libc::ENOSPC] {
            assert_eq!(after_ends(errno, running), (false, true));
            assert_eq!(after_ends(errno, starting), (false, true));
        }
        for errno in [libc::EIO, libc::EMFILE] {
            assert_eq!(after_ends(errno, running), (true, false));
            assert_eq!(after_ends(errno, starting), (true, false));
        }
    }
}
