//! What the mount does when the node applies a change: the kernel has to have forgotten it before
//! others are told that it is applied here.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::core::Core;
use super::name_drops::Name;
use crate::fs::Change;
use crate::node::Observer;
use crate::types::{ByteRange, Ino, LogIndex, SessionId};

impl Observer for Core {
    fn received(&self, own: bool, changes: &[Change], may_wait: bool) {
        self.forget_attributes(own, changes);
        let moved = if own { Vec::new() } else { self.take_directories(changes) };
        let dropped = self.forget_names_of(changes, may_wait);
        self.drop_directories(moved, &dropped, may_wait);
    }

    fn would_wait(&self, changes: &[Change]) -> bool {
        let now = Instant::now();
        let waits = |change: &Change| match change {
            Change::Name { parent, name, existed } => {
                let name = (*parent, name.as_slice());
                *existed && (self.cache.names.may_have(name, now) || self.directories.has(name))
            }
            // There may be many.
            Change::SomeAttributes => true,
            _ => false,
        };
        self.kernel().is_busy() || changes.iter().any(waits)
    }

    fn applied(&self, index: LogIndex, own: bool, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Bytes { ino, range } => self.bytes_changed(index, own, *ino, *range),
                Change::Removed { ino } => drop(self.cache.forget_pages(*ino)),
                _ => {}
            }
        }
        // A GETATTR since the receipt waited for this, and the kernel would throw its reply away if it were
        // told to forget attributes now: it would go on by the old mode. Not received are bytes of this mount,
        // and weak mounts have not waited.
        let writes = changes.iter().any(|change| matches!(change, Change::Bytes { .. }));
        if (own && writes) || self.reads_weakly() {
            self.forget_attributes(own, changes);
        }
        self.forget_names_of(changes, true);
    }

    fn condemned(&self, ino: Ino, range: ByteRange) {
        self.cache.forget_pages(ino);
        self.kernel().drop_pages(ino, range);
    }

    fn state_replaced(&self) {
        self.forget_everything();
    }

    fn lease_lost(&self) {
        // Names have a TTL within the lease, and whoever is in a directory is to find its path meanwhile.
        self.forget_all_attributes(Instant::now());
    }

    fn session_changed(&self, session: SessionId) {
        tracing::info!(%session, "the mount has a new session");
        self.cache.forget_doubts();
        // Whoever believes in a lock of the last session is to find out, not to read the kernel's pages.
        for buffer in self.open.buffers() {
            self.lose_pages(&buffer, session);
        }
    }

    fn holds(&self, ino: Ino) -> bool {
        self.open.promise(ino)
    }

    fn flush(self: Arc<Self>, ino: Ino) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            if let Some(buffer) = self.open.buffer(ino)
                && let Err(error) = self.commit_and_acknowledge(&buffer).await
            {
                tracing::warn!(%ino, %error, "bytes written under locks may not be seen everywhere yet");
            }
        })
    }
}

impl Core {
    /// Has the kernel forget attributes.
    fn forget_attributes(&self, own: bool, changes: &[Change]) {
        let now = Instant::now();
        for change in changes {
            match change {
                Change::Attributes { ino } | Change::Orphaned { ino } | Change::Removed { ino } => {
                    self.attributes_changed(*ino, own, now);
                }
                Change::Bytes { ino, .. } | Change::Name { parent: ino, .. } => {
                    if self.cache.take_times(*ino, own, now) {
                        self.kernel().drop_attributes(*ino);
                    }
                }
                Change::SomeAttributes => self.forget_all_attributes(now),
                Change::LocksDelegated { .. }
                | Change::LocksRecalled { .. }
                | Change::LocksReturned { .. }
                | Change::LockAnswered { .. }
                | Change::SessionOpened { .. }
                | Change::SessionEnded { .. }
                | Change::MemberChanged { .. }
                | Change::MemberRemoved { .. } => {}
            }
        }
    }

    /// Attributes and names at once, pages soon.
    pub(super) fn forget_everything(&self) {
        self.forget_all_attributes(Instant::now());
        self.forget_names();
        let buffers = self.open.buffers();
        let open = buffers.iter().map(|buffer| buffer.ino);
        for ino in self.cache.take_all_pages().into_iter().chain(open) {
            self.kernel().drop_pages(ino, ByteRange::from(0));
        }
    }

    fn forget_all_attributes(&self, now: Instant) {
        for ino in self.cache.take_all_attributes(now) {
            self.kernel().drop_attributes(ino);
        }
    }

    /// Has the kernel forget names; all of them where it might wait otherwise and must not. For our own changes
    /// too, which find no name, unless it was given meanwhile (see [`super::kernel_names`]). Answers which were dropped.
    fn forget_names_of(&self, changes: &[Change], may_wait: bool) -> Vec<Name> {
        let now = Instant::now();
        let mut names = Vec::new();
        for change in changes {
            if let Change::Name { parent, name, existed } = change
                && self.cache.names.changed((*parent, name), *existed, now)
            {
                names.push((*parent, name.clone()));
            }
        }
        if names.is_empty() {
            return names;
        }
        if may_wait && self.kernel().drop_names(&names, || self.locks_may_be_held()) {
            self.cache.names.dropped(&names, now);
            return names;
        }
        self.forget_names();
        Vec::new()
    }

    pub(super) fn locks_may_be_held(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) > 0
    }

    /// For our own changes too: another process may have the old attributes cached.
    pub(super) fn attributes_changed(&self, ino: Ino, own: bool, now: Instant) {
        if self.cache.take_attributes(ino, own, now) {
            self.kernel().drop_attributes(ino);
        }
    }

    fn bytes_changed(&self, index: LogIndex, own: bool, ino: Ino, range: ByteRange) {
        if own && let Some(buffer) = self.open.buffer(ino) {
            buffer.lock().applied(range);
        }
        if own && !self.cache.is_doubtful(ino) {
            self.cache.wrote_pages(ino, index);
            return;
        }
        // First forgotten, then dropped: an OPEN in between drops them itself.
        if self.cache.pages_changed(ino, self.open.is_held(ino), Instant::now()) {
            self.kernel().drop_pages(ino, range);
        }
    }
}
