//! GETLK and SETLK: record locks (fcntl) and whole-file locks (flock) alike, and what becomes of them when
//! files are closed.
//!
//! The kernel tells owners apart: processes for fcntl, open files for flock. A process that closes any
//! descriptor of a file loses its locks of it (FLUSH names the owner); what a handle was used to lock
//! goes at the latest with that handle. The locks of a session end with it: the handles that were used
//! to take them fail from then on, since others may have them by now. What the kernel has in mapped pages
//! of such a file goes with them, whoever stored it: a page does not say by whom, or by which handle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::buffer::Buffer;
use super::core::Core;
use super::errors::OpError;
use super::open_table::OpenFile;
use super::signals::is_interrupted;
use crate::fs::WHOLE_FILE;
use crate::fs::proto::{Lock, LockAnswer, LockMode};
use crate::node::NodeError;
use crate::types::{ByteRange, SessionId};

/// Who may have locks of an inode through this mount.
#[derive(Debug, Default)]
pub(super) struct Lockers {
    /// Looked at by each READ and WRITE.
    any: AtomicBool,
    owners: Mutex<Vec<Locker>>,
    /// Locked before `owners` where both are.
    pages: Mutex<Pages>,
}

/// What the kernel may have in mapped pages of the file and has not sent yet.
#[derive(Debug, Default)]
struct Pages {
    /// Some of it may have been stored under locks of this session.
    locked_in: Option<SessionId>,
    /// That one is over, and the pages are gone after this drop.
    dropped_by: Option<u64>,
}

#[derive(Debug)]
struct Locker {
    owner: u64,
    /// The handles that it used.
    handles: Vec<u64>,
    /// Whether it has, or had, any locks.
    holds: bool,
    /// Where they are; `None` where nobody knows which of them it has.
    session: Option<SessionId>,
    /// Requests under way.
    asking: usize,
    /// How often it was granted one.
    grants: u64,
}

impl Lockers {
    /// Whether there may be any.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Whether locks that were taken with this handle are not what its programs believe.
    pub(super) fn are_lost(&self, handle: u64, session: SessionId) -> bool {
        let lost = |locker: &Locker| {
            locker.holds && locker.session != Some(session) && locker.handles.contains(&handle)
        };
        self.any() && self.owners.lock().iter().any(lost)
    }

    /// Whether mapped pages may have been stored to under locks of a session that is over. `begin` then begins to
    /// drop them all, once, and answers a number by which `is_done` knows whether that is done.
    pub(super) fn are_pages_lost(
        &self,
        session: SessionId,
        begin: impl Fn() -> u64,
        is_done: impl Fn(u64) -> bool,
    ) -> bool {
        let mut pages = self.pages.lock();
        loop {
            let Some(over) = pages.locked_in.filter(|locked_in| *locked_in != session) else {
                return false;
            };
            if !is_done(*pages.dropped_by.get_or_insert_with(&begin)) {
                return true;
            }
            // What is in them now was stored since.
            let owners = self.owners.lock();
            let held_in = owners.iter().filter(|locker| locker.holds).filter_map(|it| it.session);
            let locked_in = held_in.filter(|session| session.0 > over.0).max_by_key(|it| it.0);
            *pages = Pages { locked_in, dropped_by: None };
        }
    }

    /// Whether what is stored to pages may have been stored under a lock.
    pub(super) fn have_pages(&self) -> bool {
        self.any() || self.pages.lock().locked_in.is_some()
    }

    /// An owner is going to ask for a lock with this handle.
    fn enter(&self, owner: u64, handle: u64) {
        self.with(owner, |locker| {
            locker.asking += 1;
            if !locker.handles.contains(&handle) {
                locker.handles.push(handle);
            }
        });
    }

    /// It has its answer: where the lock is, if it was granted. One that has locks of an earlier session
    /// stays lost.
    fn answered(&self, owner: u64, handle: u64, granted_in: Option<SessionId>) {
        self.with(owner, |locker| {
            locker.asking = locker.asking.saturating_sub(1);
            if let Some(session) = granted_in {
                if !locker.holds {
                    locker.session = Some(session);
                }
                locker.holds = true;
                locker.grants += 1;
                // A close may have come in between.
                if !locker.handles.contains(&handle) {
                    locker.handles.push(handle);
                }
            }
        });
        self.retain(|locker| locker.holds || locker.asking > 0);
        if let Some(session) = granted_in {
            self.pages.lock().locked_in.get_or_insert(session);
        }
    }

    /// Nobody knows what it has.
    fn doubt(&self, owner: u64) {
        self.with(owner, |locker| {
            locker.holds = true;
            locker.session = None;
        });
    }

    fn knows(&self, owner: u64) -> bool {
        self.any() && self.owners.lock().iter().any(|locker| locker.owner == owner)
    }

    fn owners(&self) -> Vec<u64> {
        self.owners.lock().iter().map(|locker| locker.owner).collect()
    }

    /// How often an owner was granted a lock so far.
    fn grants(&self, owner: u64) -> u64 {
        let owners = self.owners.lock();
        owners.iter().find(|locker| locker.owner == owner).map_or(0, |locker| locker.grants)
    }

    /// It has no locks any more, but for those that it was granted after its first `grants`. One that lost
    /// some stays, for its handles to say so.
    fn leave(&self, owner: u64, session: SessionId, grants: u64) {
        self.with(owner, |locker| {
            if locker.session == Some(session) && locker.grants == grants {
                locker.holds = false;
            }
        });
        self.retain(|locker| locker.holds || locker.asking > 0);
    }

    /// A handle is gone: the owners that used it.
    fn close(&self, handle: u64, session: SessionId) -> Vec<u64> {
        let mut closed = Vec::new();
        self.retain(|locker| {
            let used = locker.handles.contains(&handle);
            if used {
                closed.push(locker.owner);
                // What it took with others is gone too, and if it was lost, they still have to say so.
                locker.handles.retain(|other| *other != handle);
            }
            let is_lost = locker.holds && locker.session != Some(session);
            !used || locker.asking > 0 || (is_lost && !locker.handles.is_empty())
        });
        closed
    }

    /// Somebody's locks were released while their session lasted. Where nobody has any, whoever stores to pages
    /// believes in none.
    fn released_in(&self, session: SessionId) {
        let mut pages = self.pages.lock();
        let is_held = self.owners.lock().iter().any(|locker| locker.holds);
        if pages.locked_in == Some(session) && !is_held {
            pages.locked_in = None;
        }
    }

    fn with(&self, owner: u64, change: impl FnOnce(&mut Locker)) {
        let mut owners = self.owners.lock();
        self.any.store(true, Ordering::Relaxed);
        let place = owners.iter().position(|locker| locker.owner == owner);
        let place = place.unwrap_or_else(|| {
            owners.push(Locker {
                owner,
                handles: Vec::new(),
                holds: false,
                session: None,
                asking: 0,
                grants: 0,
            });
            owners.len() - 1
        });
        change(&mut owners[place]);
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

/// A lock that was granted.
#[derive(Debug)]
pub(super) struct Granted {
    buffer: Arc<Buffer>,
    owner: u64,
}

impl Core {
    /// SETLK and SETLKW of a lock.
    pub(super) async fn lock(
        &self,
        asker: Asker,
        wanted: Lock,
        mode: LockMode,
    ) -> Result<Granted, OpError> {
        let file = self.file(asker.handle)?;
        let (ino, lockers) = (file.buffer.ino, &file.buffer.lockers);
        if !wanted.exclusive && lockers.knows(asker.owner) {
            // It may have been exclusive before.
            self.flush_before_unlock(&file).await?;
        }
        lockers.enter(asker.owner, asker.handle);
        let interrupted = || self.open.is_closed() || is_interrupted(asker.thread);
        let locked = match self.node.request_lock(ino, wanted, mode, interrupted).await {
            Ok(locked) => locked,
            Err(error) => {
                lockers.doubt(asker.owner);
                lockers.answered(asker.owner, asker.handle, None);
                return Err(error.into());
            }
        };
        let is_granted = locked.answer == LockAnswer::Granted;
        lockers.answered(asker.owner, asker.handle, is_granted.then_some(locked.session));
        if !is_granted {
            return Err(OpError::Errno(errno_of(locked.answer)));
        }
        // What the one before wrote must be seen, and what is stored from now on must not go with what was stored under
        // locks of an earlier session.
        let shown = async {
            self.lose_pages(&file.buffer, self.node.session());
            self.until_pages_fit(ino).await?;
            self.lose_pages(&file.buffer, self.node.session());
            self.show_to_passthrough(ino).await
        };
        if let Err(error) = shown.await {
            self.take_back(&file.buffer, asker.owner);
            return Err(error);
        }
        let kept = self.file(asker.handle);
        if self.open_file_of(asker.handle).is_err() {
            // Nobody is left who could unlock it.
            self.unlock_all(&file.buffer, asker.owner).await?;
        }
        kept.map(|file| Granted { buffer: file.buffer.clone(), owner: asker.owner })
    }

    /// Nobody was told that a lock was granted: nobody would unlock it.
    pub(super) fn unsent_lock(self: &Arc<Self>, granted: &Granted) {
        self.take_back(&granted.buffer, granted.owner);
    }

    /// An owner does not hear of a lock that it was granted: it has none any more.
    fn take_back(&self, buffer: &Buffer, owner: u64) {
        buffer.lockers.doubt(owner);
        self.node.unlock_later(buffer.ino, owner);
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
        match locked.answer {
            LockAnswer::Free | LockAnswer::Refused => {}
            answer => return Err(OpError::Errno(errno_of(answer))),
        }
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
        self.node.unlock(file.buffer.ino, asker.owner, start, end).await?;
        Ok(())
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
        for owner in buffer.lockers.close(handle, self.node.session()) {
            match self.node.unlock(buffer.ino, owner, 0, WHOLE_FILE).await {
                Ok(Some(session)) => buffer.lockers.released_in(session),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(ino = %buffer.ino, owner, %error, "the locks of a closed file stay for now");
                    self.node.unlock_later(buffer.ino, owner);
                }
            }
        }
    }

    /// The mount goes. Nobody waits: what cannot be said now is said later, or goes with the session.
    pub(super) fn unlock_everything(&self) {
        for buffer in self.open.buffers() {
            for owner in buffer.lockers.owners() {
                self.node.unlock_later(buffer.ino, owner);
            }
        }
    }

    async fn unlock_all(&self, buffer: &Buffer, owner: u64) -> Result<(), NodeError> {
        let grants = buffer.lockers.grants(owner);
        match self.node.unlock(buffer.ino, owner, 0, WHOLE_FILE).await {
            Ok(Some(session)) => {
                buffer.lockers.leave(owner, session, grants);
                buffer.lockers.released_in(session);
                Ok(())
            }
            // They were lost before.
            Ok(None) => Ok(()),
            Err(error) => {
                self.take_back(buffer, owner);
                Err(error)
            }
        }
    }

    /// Has the kernel drop what was stored to mapped pages under locks of a session that is not this one. Answers
    /// whether it may have some of that still: none of it may be committed.
    pub(super) fn lose_pages(&self, buffer: &Buffer, session: SessionId) -> bool {
        let begin = || {
            self.cache.forget_pages(buffer.ino);
            self.kernel().drop_pages(buffer.ino, ByteRange::from(0))
        };
        let is_done = |number| self.kernel().has_dropped_pages(buffer.ino, number);
        buffer.lockers.are_pages_lost(session, begin, is_done)
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

/// What a program is told whose request was not granted.
fn errno_of(answer: LockAnswer) -> i32 {
    match answer {
        LockAnswer::Deadlock => libc::EDEADLK,
        LockAnswer::TooMany => libc::ENOLCK,
        LockAnswer::Cancelled => libc::EINTR,
        LockAnswer::Unspecified => libc::ESTALE,
        LockAnswer::Granted | LockAnswer::Refused | LockAnswer::Free | LockAnswer::Queued => {
            libc::EAGAIN
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::{Lockers, SessionId};

    const ONE: SessionId = SessionId(1);
    const TWO: SessionId = SessionId(2);

    /// Whoever had locks in a session that ended finds out with whichever handle it used, until that is
    /// closed; others don't, nor does whoever only asked.
    #[test]
    fn lost_with_the_session() {
        let lockers = Lockers::default();
        assert!(!lockers.any());
        for (owner, handle, granted) in
            [(7, 70, true), (7, 71, true), (8, 80, true), (9, 90, false)]
        {
            lockers.enter(owner, handle);
            assert!(lockers.any() && !lockers.are_lost(handle, ONE), "while it asks");
            lockers.answered(owner, handle, granted.then_some(ONE));
        }
        assert!(!lockers.are_lost(70, ONE));
        lockers.leave(8, ONE, 1);
        for handle in [70, 71] {
            assert!(lockers.are_lost(handle, TWO));
        }
        assert!(!lockers.are_lost(80, TWO), "it had none any more");
        assert!(!lockers.are_lost(90, TWO), "it never had any");
        lockers.enter(7, 70);
        lockers.answered(7, 70, Some(TWO));
        lockers.leave(7, TWO, 3);
        assert!(lockers.are_lost(70, TWO), "what it does in the new session changes nothing");
        assert_eq!(lockers.close(71, TWO), [7]);
        assert!(lockers.are_lost(70, TWO), "closing one handle does not make up for the other");
        assert_eq!(lockers.close(70, TWO), [7]);
        assert!(!lockers.any());
    }

    /// What is stored to pages while anybody has a lock goes with the session, and nothing that is stored once they are
    /// dropped.
    #[test]
    fn pages_are_lost_with_the_session() {
        let lockers = Lockers::default();
        let drops = Cell::new(0);
        let are_lost = |session, done| {
            let begin = || {
                drops.set(drops.get() + 1);
                drops.get()
            };
            lockers.are_pages_lost(session, begin, |number| number <= done)
        };
        let lock = |owner, session| {
            lockers.enter(owner, owner * 10);
            lockers.answered(owner, owner * 10, Some(session));
        };
        lock(7, ONE);
        lock(8, ONE);
        lockers.leave(7, ONE, 1);
        lockers.released_in(ONE);
        assert!(!are_lost(ONE, 0));
        assert!(are_lost(SessionId::CLUSTER, 0) && are_lost(TWO, 0), "another had one");
        lockers.close(80, TWO);
        lockers.released_in(TWO);
        assert!(are_lost(TWO, 0), "nobody is left, but what was stored is");
        lock(9, TWO);
        assert_eq!(drops.get(), 1);
        assert!(!are_lost(TWO, 1), "they are gone");
        assert!(are_lost(SessionId(3), 1), "stored under a lock of the next session");
        assert!(!are_lost(SessionId(3), 2));
        assert!(!are_lost(SessionId(4), 2), "nobody has a lock but in a session long over");
        assert_eq!(drops.get(), 2);
        lockers.close(90, SessionId(4));
        lock(7, SessionId(4));
        lockers.leave(7, SessionId(4), 1);
        lockers.released_in(SessionId(4));
        assert!(!are_lost(SessionId(5), 2), "stored under no lock");
    }

    /// A lock that is granted while the same owner unlocks everything is still known.
    #[test]
    fn granted_while_it_unlocks() {
        let lockers = Lockers::default();
        lockers.enter(7, 70);
        let grants = lockers.grants(7);
        lockers.leave(7, ONE, grants);
        assert!(lockers.knows(7), "it asks");
        lockers.answered(7, 70, Some(ONE));
        lockers.leave(7, ONE, grants);
        assert!(lockers.knows(7), "it was granted one since");
        lockers.leave(7, ONE, lockers.grants(7));
        assert!(!lockers.any());
    }

    /// Nobody knows what an owner has whose request was not answered.
    #[test]
    fn in_doubt() {
        let lockers = Lockers::default();
        for handle in [70, 71] {
            lockers.enter(7, handle);
            lockers.answered(7, handle, Some(ONE));
        }
        lockers.doubt(7);
        assert!(lockers.are_lost(70, ONE));
        assert_eq!(lockers.close(70, ONE), [7]);
        assert!(lockers.are_lost(71, ONE), "closing one handle does not make up for it");
        assert_eq!(lockers.close(71, ONE), [7]);
        assert!(!lockers.any());
    }
}
