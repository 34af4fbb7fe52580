//! Which files the kernel reads by itself, and under which numbers it knows them (DESIGN, section 5).
//!
//! To the kernel an inode is open in passthrough or it is not: while it is, every other kind of open fails with
//! EIO. So a file that some read in passthrough gets a second number, its *alias*, for whoever cannot, above all
//! for writers: their OPEN is answered with ESTALE once, the kernel looks the name up again, and is given the
//! alias. From then on everybody who opens the file gets the alias, until nobody has it open any more. Hence, at
//! any time: the plain number is open in passthrough only, or not, or the alias is not open.
//!
//! The table here decides; what it hands out counts until [`Passthrough::leave`]. Everybody asks it, also those who must not
//! wait, so nothing is waited for under its lock: a file is lent, and made known to the kernel, before that is taken.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fuser::BackingId;
use parking_lot::Mutex;

use super::errors::OpError;
use super::root::Root;
use crate::guardian::{Slot, Watched};
use crate::node::{Handle, NodeError};
use crate::store::{Lending, StoreError};
use crate::types::{ByteRange, Generation, Ino};

/// Whoever was sent to the alias opens it within this time.
const MOVING: Duration = Duration::from_secs(5);
/// Whoever opens a file waits no longer than this for the disk to have it lent.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a file is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Way {
    /// Read by the kernel itself.
    Passthrough,
    /// Through the daemon, under the file's own number.
    #[default]
    Plain,
    /// Through the daemon, under the alias.
    Alias,
}

/// The kernel is to look the name up again: ESTALE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LookAgain {
    /// From now on the file has an alias, and had none before.
    pub(super) is_new: bool,
}

/// A backing file that the kernel has, until this is dropped.
#[derive(Debug)]
pub(super) struct Backing {
    id: BackingId,
    _lent: Lent,
}

impl Backing {
    pub(super) fn id(&self) -> &BackingId {
        &self.id
    }
}

/// A backing file that stays what it is until this is dropped.
#[derive(Debug)]
pub(super) struct Lent {
    file: Arc<File>,
    node: Handle,
    ino: Ino,
    _coming: Coming<Backing>,
}

impl Lent {
    /// Lends the backing file of a file of `size` bytes; nothing where not all of it is in place here. Here where that
    /// needs no waiting, as for each file that was lent before.
    async fn new(
        node: &Handle,
        key: (Ino, Generation),
        size: u64,
        coming: Coming<Backing>,
    ) -> Result<Option<Self>, OpError> {
        let lent =
            move |node: Handle, file, coming| Self { file, node, ino: key.0, _coming: coming };
        match node.files().lend_nowait(key, size) {
            Lending::Lent(file) => return Ok(Some(lent(node.clone(), file, coming))),
            Lending::NotWhole => return Ok(None),
            Lending::Waits => {}
        }
        let of = node.clone();
        let lending = tokio::task::spawn_blocking(move || {
            let file = of.files().lend(key, size)?;
            // Whoever waited may have gone: it is taken back then.
            Ok::<_, StoreError>(file.map(|file| lent(of, file, coming)))
        });
        let Ok(lent) = node.within(tokio::time::timeout(PATIENCE, lending)).await? else {
            // The daemon may have in memory what the disk is asked for.
            return Ok(None);
        };
        Ok(lent.map_err(|_| NodeError::Stopping)?.unwrap_or_else(|error| {
            tracing::debug!(%error, "a file is read through the daemon");
            None
        }))
    }

    /// Has `register` make it known to the kernel.
    fn backing(self, register: impl FnOnce(&File) -> io::Result<BackingId>) -> io::Result<Backing> {
        Ok(Backing { id: register(&self.file)?, _lent: self })
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.node.files().take_back(self.ino);
    }
}

/// What whoever opens a file may read by itself, as was found out before it is granted.
#[derive(Debug)]
pub(super) enum Offer {
    /// Nothing: it goes through the daemon.
    Nothing,
    /// What others read already.
    Shared(Arc<Backing>),
    /// What nobody does yet.
    Lent(Lent),
}

impl Offer {
    /// For a file of that generation and size. Waits where the disk has to be asked.
    pub(super) async fn find(
        table: &Arc<Passthrough>,
        node: &Handle,
        key: (Ino, Generation),
        size: u64,
    ) -> Result<Self, OpError> {
        match table.reading(key.0, Instant::now()) {
            Reading::Kernel(backing) => {
                let is_whole = node.files().is_whole(key, ByteRange::from(0));
                Ok(if is_whole { Self::Shared(backing) } else { Self::Nothing })
            }
            Reading::Daemon => Ok(Self::Nothing),
            Reading::Nobody(coming) => {
                Ok(Lent::new(node, key, size, coming).await?.map_or(Self::Nothing, Self::Lent))
            }
        }
    }

    /// How the file may be opened. Waits for nothing.
    pub(super) fn access(
        self,
        table: &Passthrough,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Access<Backing> {
        match self {
            Self::Nothing => Access::Daemon,
            Self::Shared(backing) => Access::Kernel(Some(backing)),
            Self::Lent(lent) => Access::Kernel(match lent.backing(register) {
                Ok(backing) => Some(Arc::new(backing)),
                Err(error) => {
                    table.refused(&error);
                    None
                }
            }),
        }
    }
}

/// Who reads a file at present, for those who have it open.
enum Reading<B> {
    Kernel(Arc<B>),
    Daemon,
    /// Nobody but who has asked, perhaps soon.
    Nobody(Coming<B>),
}

/// Somebody may be going to read a file in passthrough: whoever writes it has it shown to them, as to those who do.
#[derive(Debug)]
struct Coming<B> {
    table: Weak<Passthrough<B>>,
    ino: Ino,
}

impl<B> Drop for Coming<B> {
    fn drop(&mut self) {
        let Some(table) = self.table.upgrade() else { return };
        let mut files = table.files.lock();
        let Some(known) = files.get_mut(&self.ino) else { return };
        known.coming = known.coming.saturating_sub(1);
        if !known.is_needed(Instant::now()) {
            files.remove(&self.ino);
        }
    }
}

/// Who may read a file for whoever opens it.
#[derive(Debug)]
pub(super) enum Access<B> {
    /// The daemon only.
    Daemon,
    /// The kernel, too: where it does not so far, it reads this.
    Kernel(Option<Arc<B>>),
}

/// What is open how.
#[derive(Debug)]
pub(super) struct Passthrough<B = Backing> {
    files: Mutex<HashMap<Ino, Known<B>>>,
    watched: Arc<Watched>,
    /// The kernel has not refused it.
    works: AtomicBool,
    refusal: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Known<B> {
    passthrough: usize,
    backing: Option<Arc<B>>,
    /// Those who may come to read it so, and those by whose loan others do.
    coming: usize,
    plain: usize,
    alias: usize,
    /// Until then somebody may still open the alias.
    moving: Option<Instant>,
    /// How often the kernel was given the alias and has not forgotten it.
    lookups: u64,
    /// It may have pages of the alias then.
    watched: Option<Slot>,
}

impl<B> Default for Known<B> {
    fn default() -> Self {
        Self {
            passthrough: 0,
            backing: None,
            coming: 0,
            plain: 0,
            alias: 0,
            moving: None,
            lookups: 0,
            watched: None,
        }
    }
}

impl<B> Known<B> {
    fn is_aliased(&self, now: Instant) -> bool {
        self.alias > 0 || self.moving.is_some_and(|until| until > now)
    }

    fn is_needed(&self, now: Instant) -> bool {
        self.passthrough + self.coming + self.plain > 0 || self.lookups > 0 || self.is_aliased(now)
    }

    /// Keeps the alias for whoever is being sent there.
    fn look_again(&mut self, now: Instant) -> LookAgain {
        let is_new = !self.is_aliased(now);
        self.moving = Some(now + MOVING);
        LookAgain { is_new }
    }
}

impl<B> Passthrough<B> {
    /// Nothing is open yet. The guardian finds in `watched` of what the kernel knows an alias.
    pub(super) fn new(watched: Arc<Watched>) -> Self {
        let (works, refusal) = (AtomicBool::new(true), Mutex::default());
        Self { files: Mutex::default(), watched, works, refusal }
    }

    /// Somebody opens a file, by its alias where `by_alias`. What is offered and not used is dropped by the caller, without
    /// the lock.
    pub(super) fn enter(
        &self,
        ino: Ino,
        by_alias: bool,
        now: Instant,
        access: &Access<B>,
    ) -> Result<(Way, Option<Arc<B>>), LookAgain> {
        let mut files = self.files.lock();
        let known = files.entry(ino).or_default();
        debug_assert!(known.plain == 0 || known.alias == 0, "{ino} is open in both ways");
        debug_assert!(known.plain == 0 || known.passthrough == 0, "{ino} is open in both ways");
        if by_alias {
            if known.plain > 0 {
                return Err(LookAgain { is_new: false });
            }
            known.alias += 1;
            return Ok((Way::Alias, None));
        }
        if known.is_aliased(now) {
            return Err(known.look_again(now));
        }
        if known.passthrough > 0 {
            if matches!(access, Access::Daemon) {
                let answer = known.look_again(now);
                files.retain(|_, known| known.is_needed(now));
                return Err(answer);
            }
            known.passthrough += 1;
            return Ok((Way::Passthrough, known.backing.clone()));
        }
        if let Access::Kernel(Some(backing)) = access
            && known.plain == 0
        {
            known.passthrough = 1;
            known.backing = Some(backing.clone());
            return Ok((Way::Passthrough, Some(backing.clone())));
        }
        known.plain += 1;
        Ok((Way::Plain, None))
    }

    /// A file is closed, which the kernel knows already.
    pub(super) fn leave(&self, ino: Ino, way: Way, now: Instant) {
        let backing = {
            let mut files = self.files.lock();
            let Some(known) = files.get_mut(&ino) else { return };
            let count = match way {
                Way::Passthrough => &mut known.passthrough,
                Way::Plain => &mut known.plain,
                Way::Alias => &mut known.alias,
            };
            *count -= 1;
            let backing = if known.passthrough == 0 { known.backing.take() } else { None };
            if !known.is_needed(now) {
                files.remove(&ino);
            }
            backing
        };
        drop(backing);
    }

    /// Whether a LOOKUP is to give the alias; it counts as given then.
    pub(super) fn give_alias(&self, ino: Ino, now: Instant) -> bool {
        let mut files = self.files.lock();
        let Some(known) = files.get_mut(&ino).filter(|known| known.is_aliased(now)) else {
            return false;
        };
        known.moving = Some(now + MOVING);
        known.lookups += 1;
        known.watched.get_or_insert_with(|| self.watched.watch(Root::alias(ino).0));
        true
    }

    /// The kernel forgets an alias that it was given so many times.
    pub(super) fn forget_alias(&self, ino: Ino, lookups: u64, now: Instant) {
        let mut files = self.files.lock();
        if let Some(known) = files.get_mut(&ino) {
            known.lookups = known.lookups.saturating_sub(lookups);
            if known.lookups == 0 {
                known.watched = None;
            }
            if !known.is_needed(now) {
                files.remove(&ino);
            }
        }
    }

    /// Whether whoever opens the file gets the alias.
    pub(super) fn is_aliased(&self, ino: Ino, now: Instant) -> bool {
        self.files.lock().get(&ino).is_some_and(|known| known.is_aliased(now))
    }

    /// Whether the kernel may know the alias.
    pub(super) fn has_alias(&self, ino: Ino) -> bool {
        self.files.lock().get(&ino).is_some_and(|known| known.lookups > 0)
    }

    fn reading(self: &Arc<Self>, ino: Ino, now: Instant) -> Reading<B> {
        let mut files = self.files.lock();
        match files.get(&ino) {
            Some(Known { backing: Some(backing), .. }) => {
                return Reading::Kernel(backing.clone());
            }
            Some(known) if known.plain > 0 || known.is_aliased(now) => return Reading::Daemon,
            Some(_) | None => {}
        }
        files.entry(ino).or_default().coming += 1;
        Reading::Nobody(Coming { table: Arc::downgrade(self), ino })
    }

    /// Whether somebody reads it in passthrough, or may be about to.
    pub(super) fn reads(&self, ino: Ino) -> bool {
        let reads = |known: &Known<B>| known.passthrough + known.coming > 0;
        self.files.lock().get(&ino).is_some_and(reads)
    }

    /// Whether it is worth trying.
    pub(super) fn works(&self) -> bool {
        self.works.load(Ordering::Relaxed)
    }

    /// The kernel has refused a backing file. It will refuse the others.
    pub(super) fn refused(&self, error: &io::Error) {
        let is_for_good = [libc::EPERM, libc::EOPNOTSUPP, libc::ENOTTY, libc::EINVAL, libc::ELOOP];
        if !error.raw_os_error().is_some_and(|errno| is_for_good.contains(&errno)) {
            tracing::debug!(%error, "a file is read through the daemon");
            return;
        }
        if self.works.swap(false, Ordering::Relaxed) {
            let reason = reason(error);
            tracing::warn!(reason, "files are read through the daemon");
            *self.refusal.lock() = Some(reason);
        }
    }

    /// Why it does not work.
    pub(super) fn refusal(&self) -> Option<String> {
        self.refusal.lock().clone()
    }

    /// The mount is gone, and every file with it.
    pub(super) fn close(&self) {
        let files = std::mem::take(&mut *self.files.lock());
        drop(files);
    }
}

fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "the kernel (6.9 or later, CONFIG_FUSE_PASSTHROUGH) or CAP_SYS_ADMIN is missing".into()
        }
        Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL) => {
            "the kernel has no FUSE passthrough (6.9 or later, CONFIG_FUSE_PASSTHROUGH)".into()
        }
        Some(libc::ELOOP) => {
            "the data directory is on a stacked file system (overlayfs): use a disk's own".into()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Access, Arc, Duration, Ino, Instant, LookAgain, MOVING, Passthrough, Reading, Watched, Way,
        io,
    };

    const INO: Ino = Ino(5);
    type Table = Passthrough<u32>;
    type Answer = Result<(Way, Option<Arc<u32>>), LookAgain>;

    fn table() -> Table {
        Table::new(Watched::new().expect("memory"))
    }

    fn kernel(backing: u32) -> Access<u32> {
        Access::Kernel(Some(Arc::new(backing)))
    }

    fn reader(table: &Table, now: Instant) -> Answer {
        table.enter(INO, false, now, &kernel(7))
    }

    fn writer(table: &Table, by_alias: bool, now: Instant) -> Answer {
        table.enter(INO, by_alias, now, &Access::Daemon)
    }

    fn way(answer: Answer) -> Way {
        answer.expect("open").0
    }

    #[test]
    fn readers_share_a_backing_file_until_the_last_one_leaves() {
        let (table, now) = (table(), Instant::now());
        let (first, backing) = reader(&table, now).expect("open");
        assert_eq!((first, backing.as_deref()), (Way::Passthrough, Some(&7)));
        let (_, shared) = table.enter(INO, false, now, &kernel(8)).expect("open");
        assert_eq!(shared.as_deref(), Some(&7));
        drop(shared);
        let backing = Arc::downgrade(&backing.expect("lent"));
        table.leave(INO, Way::Passthrough, now);
        assert!(backing.upgrade().is_some() && table.reads(INO));
        table.leave(INO, Way::Passthrough, now);
        assert!(backing.upgrade().is_none() && !table.reads(INO));
        assert!(table.files.lock().is_empty());
    }

    /// Between the loan and the open a writer may come and go: what it writes is to be where the kernel reads.
    #[test]
    fn who_is_about_to_read_counts_as_a_reader() {
        let (table, now) = (Arc::new(table()), Instant::now());
        let Reading::Nobody(coming) = table.reading(INO, now) else { panic!("nobody reads") };
        assert!(table.reads(INO));
        assert_eq!(way(writer(&table, false, now)), Way::Plain);
        assert!(matches!(table.reading(INO, now), Reading::Daemon));
        table.leave(INO, Way::Plain, now);
        assert!(table.reads(INO));
        assert_eq!(way(reader(&table, now)), Way::Passthrough);
        drop(coming);
        assert!(matches!(table.reading(INO, now), Reading::Kernel(_)));
        table.leave(INO, Way::Passthrough, now);
        assert!(!table.reads(INO) && table.files.lock().is_empty());
        drop(table.reading(INO, now));
        assert!(table.files.lock().is_empty());
    }

    #[test]
    fn a_writer_that_finds_readers_gets_the_alias_and_so_does_whoever_comes_after_it() {
        let (table, now) = (table(), Instant::now());
        assert_eq!(way(reader(&table, now)), Way::Passthrough);
        assert!(!table.give_alias(INO, now), "nobody needs it");
        assert_eq!(writer(&table, false, now).expect_err("readers"), LookAgain { is_new: true });
        assert!(table.give_alias(INO, now) && table.has_alias(INO));
        assert_eq!(way(writer(&table, true, now)), Way::Alias);
        assert_eq!(reader(&table, now).expect_err("a writer"), LookAgain { is_new: false });
        assert_eq!(way(table.enter(INO, true, now, &kernel(9))), Way::Alias);
        table.leave(INO, Way::Alias, now);
        table.leave(INO, Way::Alias, now);
        assert!(table.is_aliased(INO, now), "another may be on its way");
        let later = now + MOVING;
        assert!(!table.give_alias(INO, later));
        assert_eq!(way(reader(&table, later)), Way::Passthrough);
        for _ in 0..2 {
            table.leave(INO, Way::Passthrough, later);
        }
        table.forget_alias(INO, 1, later);
        assert!(table.files.lock().is_empty());
    }

    #[test]
    fn who_comes_late_to_the_alias_is_sent_back_only_where_the_file_is_open_plainly() {
        let (table, now) = (table(), Instant::now());
        assert_eq!(way(writer(&table, false, now)), Way::Plain);
        assert_eq!(way(reader(&table, now)), Way::Plain, "it is open already");
        assert_eq!(writer(&table, true, now).expect_err("plain"), LookAgain { is_new: false });
        assert!(!table.give_alias(INO, now));
        table.leave(INO, Way::Plain, now);
        table.leave(INO, Way::Plain, now);
        assert_eq!(way(writer(&table, true, now)), Way::Alias);
        assert_eq!(writer(&table, false, now).expect_err("alias"), LookAgain { is_new: false });
    }

    #[test]
    fn what_cannot_be_lent_is_read_through_the_daemon() {
        let (table, now) = (table(), Instant::now());
        assert_eq!(way(table.enter(INO, false, now, &Access::Kernel(None))), Way::Plain);
        assert!(table.works() && table.refusal().is_none());
        table.refused(&io::Error::from_raw_os_error(libc::ELOOP));
        assert!(!table.works());
        assert!(table.refusal().expect("a reason").contains("stacked"));
    }

    #[test]
    fn those_who_move_are_forgotten_in_time() {
        let (table, now) = (table(), Instant::now());
        assert_eq!(way(reader(&table, now)), Way::Passthrough);
        writer(&table, false, now).expect_err("readers");
        table.leave(INO, Way::Passthrough, now);
        assert_eq!(table.files.lock().len(), 1);
        let later = now + MOVING + Duration::from_millis(1);
        table.enter(Ino(6), false, later, &kernel(1)).expect("open");
        table.enter(Ino(6), false, later, &Access::Daemon).expect_err("readers");
        assert_eq!(table.files.lock().len(), 1);
    }
}
