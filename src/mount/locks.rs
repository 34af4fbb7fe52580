//! GETLK and SETLK: record locks (fcntl) and whole-file locks (flock) alike, and what becomes of them when
//! files are closed.
//!
//! The kernel tells owners apart: processes for fcntl, open files for flock. A process that closes any
//! descriptor of a file loses its locks of it (FLUSH names the owner); what a handle was used to lock
//! goes at the latest with that handle. The locks of a session end with it: the handles that were used
//! to take them fail from then on, since others may have them by now.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::buffer::Buffer;
use super::core::Core;
use super::errors::OpError;
use super::open_table::OpenFile;
use crate::fs::WHOLE_FILE;
use crate::fs::proto::{Lock, LockAnswer, LockMode};
use crate::node::NodeError;
use crate::types::SessionId;

/// Who may have locks of an inode through this mount.
#[derive(Debug, Default)]
pub(super) struct Lockers {
    /// Looked at by each READ and WRITE.
    any: AtomicBool,
    owners: Mutex<Vec<Locker>>,
}

#[derive(Debug)]
struct Locker {
    owner: u64,
    /// The handles that it used.
    handles: Vec<u64>,
    /// Where its locks are; `None` where nobody knows which of them it has.
    session: Option<SessionId>,
}

impl Lockers {
    /// Whether there may be any.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Whether locks that were taken with this handle are not what its programs believe.
    pub(super) fn are_lost(&self, handle: u64, session: SessionId) -> bool {
        self.any()
            && self
                .owners
                .lock()
                .iter()
                .any(|locker| locker.session != Some(session) && locker.handles.contains(&handle))
    }

    /// An owner is going to ask for a lock with this handle.
    fn enter(&self, owner: u64, handle: u64, session: SessionId) {
        let mut owners = self.owners.lock();
        self.any.store(true, Ordering::Relaxed);
        match owners.iter_mut().find(|locker| locker.owner == owner) {
            Some(locker) if locker.handles.contains(&handle) => {}
            Some(locker) => locker.handles.push(handle),
            None => owners.push(Locker { owner, handles: vec![handle], session: Some(session) }),
        }
    }

    /// It was granted a lock in this session. One that has locks of an earlier session stays lost.
    fn granted(&self, owner: u64, asked_in: SessionId, granted_in: SessionId) {
        for locker in self.owners.lock().iter_mut().filter(|locker| locker.owner == owner) {
            if locker.session == Some(asked_in) {
                locker.session = Some(granted_in);
            }
        }
    }

    /// Nobody knows what it has.
    fn doubt(&self, owner: u64) {
        for locker in self.owners.lock().iter_mut().filter(|locker| locker.owner == owner) {
            locker.session = None;
        }
    }

    fn owners(&self) -> Vec<u64> {
        self.owners.lock().iter().map(|locker| locker.owner).collect()
    }

    fn knows(&self, owner: u64) -> bool {
        self.any() && self.owners.lock().iter().any(|locker| locker.owner == owner)
    }

    /// It has no locks any more. One that lost some stays, for its handles to say so.
    fn leave(&self, owner: u64, session: SessionId) {
        self.retain(|locker| locker.owner != owner || locker.session != Some(session));
    }

    /// A handle is gone: the owners that used it.
    fn close(&self, handle: u64) -> Vec<u64> {
        let mut closed = Vec::new();
        self.retain(|locker| {
            let used = locker.handles.contains(&handle);
            if used {
                closed.push(locker.owner);
                // What it took with others is gone too, and if it was lost, they still have to say so.
                locker.handles.retain(|other| *other != handle);
            }
            !used || (locker.session.is_none() && !locker.handles.is_empty())
        });
        closed
    }

    fn retain(&self, keep: impl FnMut(&mut Locker) -> bool) {
        let mut owners = self.owners.lock();
        owners.retain_mut(keep);
        self.any.store(!owners.is_empty(), Ordering::Relaxed);
    }
}

/// Who asks for a lock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) handle: u64,
    pub(super) owner: u64,
    /// The thread that waits; 0 where it is not known here.
    pub(super) thread: u32,
}

impl Core {
    /// SETLK and SETLKW of a lock.
    pub(super) async fn lock(
        &self,
        asker: Asker,
        wanted: Lock,
        mode: LockMode,
    ) -> Result<(), OpError> {
        let file = self.file(asker.handle)?;
        let (ino, lockers) = (file.buffer.ino, &file.buffer.lockers);
        if !wanted.exclusive && lockers.knows(asker.owner) {
            // It may have been exclusive before.
            self.flush_before_unlock(&file).await?;
        }
        let session = self.node.session();
        lockers.enter(asker.owner, asker.handle, session);
        let interrupted = || is_interrupted(asker.thread);
        let locked = match self.node.request_lock(ino, wanted, mode, interrupted).await {
            Ok(locked) => locked,
            Err(error) => {
                lockers.doubt(asker.owner);
                return Err(error.into());
            }
        };
        let errno = match locked.answer {
            LockAnswer::Granted => {
                lockers.granted(asker.owner, session, locked.session);
                if !locked.here {
                    // What the one before wrote must be seen.
                    self.kernel().until_pages_dropped(ino).await;
                }
                return self.file(asker.handle).map(drop);
            }
            LockAnswer::Refused | LockAnswer::Free | LockAnswer::Queued => libc::EAGAIN,
            LockAnswer::Deadlock => libc::EDEADLK,
            LockAnswer::TooMany => libc::ENOLCK,
            LockAnswer::Cancelled => libc::EINTR,
            LockAnswer::Unspecified => libc::ESTALE,
        };
        Err(OpError::Errno(errno))
    }

    /// GETLK: the lock that is in the way of this one.
    pub(super) async fn test_lock(
        &self,
        asker: Asker,
        wanted: Lock,
    ) -> Result<Option<Lock>, OpError> {
        let file = self.file(asker.handle)?;
        let asked = self
            .node
            .request_lock(file.buffer.ino, wanted, LockMode::Test, || is_interrupted(asker.thread));
        let locked = asked.await?;
        let session = self.node.session();
        Ok(locked.conflict.map(|lock| {
            // A process of another machine has no number here.
            let pid = if lock.session == session.0 { lock.pid } else { 0 };
            Lock { pid, ..lock }
        }))
    }

    /// SETLK with `F_UNLCK`.
    pub(super) async fn unlock(&self, asker: Asker, start: u64, end: u64) -> Result<(), OpError> {
        let file = self.file(asker.handle)?;
        if !file.buffer.lockers.knows(asker.owner) {
            return Ok(());
        }
        self.flush_before_unlock(&file).await?;
        if (start, end) == (0, WHOLE_FILE) {
            return self.unlock_all(&file.buffer, asker.owner).await.map_err(OpError::from);
        }
        Ok(self.node.unlock(file.buffer.ino, asker.owner, start, end).await?)
    }

    /// A process has closed a descriptor of the file.
    pub(super) async fn closed_by(&self, file: &OpenFile, owner: u64) -> Result<(), OpError> {
        if file.buffer.lockers.knows(owner) {
            self.unlock_all(&file.buffer, owner).await?;
        }
        Ok(())
    }

    /// A handle is gone.
    pub(super) async fn handle_gone(&self, buffer: &Buffer, handle: u64) {
        if !buffer.lockers.any() {
            return;
        }
        for owner in buffer.lockers.close(handle) {
            if let Err(error) = self.node.unlock(buffer.ino, owner, 0, WHOLE_FILE).await {
                tracing::warn!(ino = %buffer.ino, owner, %error, "the locks of a closed file stay for now");
            }
        }
    }

    /// The mount goes. Nobody waits: what cannot be said now goes with the session.
    pub(super) fn unlock_everything(&self) {
        for buffer in self.open.buffers() {
            for owner in buffer.lockers.owners() {
                let (node, ino) = (self.node.clone(), buffer.ino);
                self.runtime.spawn(async move { node.unlock(ino, owner, 0, WHOLE_FILE).await });
            }
        }
    }

    async fn unlock_all(&self, buffer: &Buffer, owner: u64) -> Result<(), NodeError> {
        let session = self.node.session();
        let unlocked = self.node.unlock(buffer.ino, owner, 0, WHOLE_FILE).await;
        match unlocked {
            Ok(()) => buffer.lockers.leave(owner, session),
            Err(_) => buffer.lockers.doubt(owner),
        }
        unlocked
    }

    /// Locks are how programs order their bytes: whoever gets the lock next has to see them. While only
    /// this mount has any, it sees them already.
    async fn flush_before_unlock(&self, file: &OpenFile) -> Result<(), OpError> {
        if self.node.decides_locks(file.buffer.ino) {
            return Ok(());
        }
        self.commit_and_acknowledge(&file.buffer).await
    }
}

/// Whether a thread that waits has a signal to handle, or is gone. The kernel would have told us, but
/// fuser does not: `/proc` does (proc(5): `SigPnd`, `ShdPnd`, less what is blocked or ignored).
fn is_interrupted(thread: u32) -> bool {
    if thread == 0 {
        return false;
    }
    let Ok(status) = std::fs::read_to_string(format!("/proc/{thread}/status")) else { return true };
    has_signal(&status)
}

fn has_signal(status: &str) -> bool {
    let mask = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        value.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or_default()
    };
    let pending = mask("SigPnd") | mask("ShdPnd");
    pending & !(mask("SigBlk") | mask("SigIgn")) != 0
}

#[cfg(test)]
mod tests {
    use super::{Lockers, SessionId, has_signal};

    const ONE: SessionId = SessionId(1);
    const TWO: SessionId = SessionId(2);

    /// Signals count unless they are blocked or ignored, whether sent to the thread or to the process.
    #[test]
    fn signals() {
        let status = |pending, shared, blocked, ignored| {
            format!(
                "Name:\tx\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\n\
                 SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n"
            )
        };
        assert!(!has_signal(&status(0, 0, 0, 0)));
        assert!(has_signal(&status(0x100, 0, 0, 0)));
        assert!(has_signal(&status(0, 0x4000, 0x100, 0)));
        assert!(!has_signal(&status(0x100, 0, 0x100, 0)));
        assert!(!has_signal(&status(0, 0x100, 0, 0x100)));
    }

    /// Whoever had locks in a session that ended finds out with whichever handle it used, until that is
    /// closed; others don't.
    #[test]
    fn lost_with_the_session() {
        let lockers = Lockers::default();
        assert!(!lockers.any());
        lockers.enter(7, 70, ONE);
        lockers.enter(7, 71, ONE);
        lockers.enter(8, 80, ONE);
        lockers.granted(7, ONE, ONE);
        assert!(!lockers.are_lost(70, ONE));
        lockers.leave(8, ONE);
        for handle in [70, 71] {
            assert!(lockers.are_lost(handle, TWO));
        }
        assert!(!lockers.are_lost(80, TWO), "it had none any more");
        lockers.leave(7, TWO);
        assert!(lockers.are_lost(70, TWO), "what it does in the new session changes nothing");
        assert_eq!(lockers.close(71), [7]);
    }

    /// Nobody knows what an owner has whose request was not answered.
    #[test]
    fn in_doubt() {
        let lockers = Lockers::default();
        lockers.enter(7, 70, ONE);
        lockers.enter(7, 71, ONE);
        lockers.doubt(7);
        assert!(lockers.are_lost(70, ONE));
        assert_eq!(lockers.close(70), [7]);
        assert!(lockers.are_lost(71, ONE), "closing one handle does not make up for it");
        assert_eq!(lockers.close(71), [7]);
        assert!(!lockers.any());
    }
}
