//! What all operations share: stable reads, mutations, and what is kept between operations.

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fuser::{FileAttr, FileType};
use parking_lot::RwLock;

use super::errors::OpError;
use super::kernel_cache::{AttributeGrant, KernelCache, LATE_REPLY, outlives_lease};
use super::kernel_directories::{Changing, KernelDirectories};
use super::kernel_names::{NameGrant, Removal, Removing};
use super::late::Late;
use super::names::Place;
use super::notify::Kernel;
use super::open_table::{OpenTable, Released};
use super::options::MountFlags;
use super::passthrough::Passthrough;
use super::root::Root;
use super::times;
use super::waiting::Waiting;
use crate::config::ReadMode;
use crate::fs::proto;
use crate::guardian::Watched;
use crate::node::{Deadline, Handle, Look, NodeError};
use crate::store::StateRead;
use crate::types::{Ino, LogIndex, SessionId};

/// Everything that a mount keeps between operations.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) node: Handle,
    pub(super) runtime: tokio::runtime::Handle,
    /// What the mount shows.
    pub(super) root: Root,
    /// How it behaves; a remount changes that.
    pub(super) flags: RwLock<MountFlags>,
    pub(super) open: OpenTable,
    pub(super) cache: KernelCache,
    /// Where the kernel has directories.
    pub(super) directories: KernelDirectories,
    pub(super) passthrough: Arc<Passthrough>,
    /// The kernel lets files be mapped that are read past its pages.
    pub(super) maps_direct: AtomicBool,
    /// Requests that are not answered yet.
    pub(super) in_flight: AtomicUsize,
    /// Those that could not be answered at once.
    pub(super) waiting: Waiting,
    pub(super) late: Late,
    /// What the buffers of the whole mount weigh.
    pub(super) buffered: AtomicUsize,
    /// The most bytes of one flush that travel inside a command.
    pub(super) inline_max: usize,
    kernel: OnceLock<Kernel>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Of the thread; 0 where it is in another pid namespace.
    pub(super) pid: u32,
}

impl Core {
    pub(super) fn new(
        node: Handle,
        runtime: tokio::runtime::Handle,
        flags: MountFlags,
        inline_max: usize,
        watched: Arc<Watched>,
    ) -> Self {
        Self {
            node,
            runtime,
            root: Root::WHOLE,
            flags: RwLock::new(flags),
            open: OpenTable::new(watched.clone()),
            cache: KernelCache::new(watched.clone()),
            directories: KernelDirectories::default(),
            passthrough: Arc::new(Passthrough::new(watched)),
            maps_direct: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            waiting: Waiting::new(),
            late: Late::default(),
            buffered: AtomicUsize::new(0),
            inline_max,
            kernel: OnceLock::new(),
        }
    }

    /// The way to the kernel: known from when the mount is there, before the first request.
    pub(super) fn set_kernel(&self, kernel: Kernel) {
        assert!(self.kernel.set(kernel).is_ok(), "a mount has one kernel");
    }

    pub(super) fn kernel(&self) -> &Kernel {
        self.kernel.get().expect("set before requests and changes come")
    }

    /// Reads the state at one applied index, stable or not.
    pub(super) fn query<T>(
        &self,
        read: impl FnOnce(&StateRead<'_>) -> Result<T, OpError>,
    ) -> Result<T, OpError> {
        read(&self.node.state())
    }

    /// Waits until reads of this mount may look at the state: where they are bounded, until it is fresh
    /// enough; where they are strong, for the lease; in any case until it has come to what the files are.
    pub(super) async fn until_fresh(&self) -> Result<(), OpError> {
        self.node.until_sound().await?;
        let read = self.flags.read().read;
        match read {
            ReadMode::Bounded(age) => Ok(self.node.until_fresh(age).await?),
            // Nobody without a lease asks the disk: where that hangs, the lease is over soon.
            ReadMode::Strong if self.node.may_serve(LogIndex(0)) => Ok(()),
            ReadMode::Strong => Ok(self.node.until_servable(LogIndex(0)).await?),
            ReadMode::Eventual if self.node.session() != SessionId::CLUSTER => Ok(()),
            ReadMode::Eventual => Ok(self.node.until_session().await.map(drop)?),
        }
    }

    /// Whether this mount may show what was last changed at `mod_index`, and was looked at in `session`.
    pub(super) fn may_serve(&self, mod_index: LogIndex, session: SessionId) -> bool {
        let read = self.flags.read().read;
        match read {
            // In another session changes may have been acknowledged without us in between.
            ReadMode::Strong => self.node.may_serve(mod_index) && self.node.session() == session,
            ReadMode::Bounded(_) | ReadMode::Eventual => self.node.is_sound(),
        }
    }

    /// Whether reads of this mount may be served before what has been received is applied.
    pub(super) fn reads_weakly(&self) -> bool {
        self.flags.read().read != ReadMode::Strong
    }

    /// For how long the kernel may cache what it is told now: no longer than the lease, so that nothing has to
    /// reach it that cannot, and no longer than a bounded mount may show it.
    fn cacheable(&self) -> Duration {
        let (read, lease) = (self.flags.read().read, self.node.lease_left());
        match read {
            ReadMode::Bounded(age) => lease.min(self.node.fresh_left(age)),
            ReadMode::Strong | ReadMode::Eventual => lease,
        }
    }

    /// Reads what may be served: `read` answers with the index at which its answer last changed, or will
    /// have changed by entries that are here already, and is asked again until that is stable and the lease
    /// live. Entries that come while it waits do not concern it: it began before them.
    pub(super) async fn read_stable<T>(
        &self,
        read: impl Fn(&Look<'_>) -> Result<(T, LogIndex), OpError>,
    ) -> Result<T, OpError> {
        let deadline = Deadline::current();
        let since = self.node.received();
        loop {
            self.until_fresh().await?;
            let session = self.node.session();
            let (answer, mod_index, is_servable) = {
                let look = self.node.look(since);
                let (answer, mod_index) = read(&look)?;
                // While it lives nothing is applied. Afterwards what the answer lacks could become servable, and
                // the answer be taken for one that has it.
                (answer, mod_index, self.may_serve(mod_index, session))
            };
            if is_servable {
                return Ok(answer);
            }
            self.node.check(&deadline)?;
            self.node.until_servable(mod_index).await?;
        }
    }

    /// EROFS where nothing may be changed through this mount. The kernel says so first, unless somebody
    /// has told it otherwise.
    pub(super) fn writable(&self) -> Result<(), OpError> {
        if self.flags.read().read_only { Err(OpError::Errno(libc::EROFS)) } else { Ok(()) }
    }

    /// relatime's touch at an open with these flags, where the mount wants any.
    pub(super) fn touch(&self, ino: Ino, inode: &proto::Inode, flags: i32) {
        let mount = *self.flags.read();
        let never = mount.no_atime || mount.read_only || flags & libc::O_NOATIME != 0;
        let now = times::now();
        if !never && times::wants_touch(inode, now) {
            self.node.touch(ino, inode.atime, now);
            self.attributes_changed(ino, true, Instant::now());
        }
    }

    /// Proposes a mutation and waits until it may be acknowledged. `touched` is what the kernel's
    /// caches no longer agree with should its outcome stay unknown.
    pub(super) async fn mutate(
        &self,
        touched: &[Ino],
        op: proto::command::Op,
    ) -> Result<proto::Outcome, OpError> {
        self.mutate_in(None, touched, op).await
    }

    /// The same; it fails where the session is not `only_in` any more.
    pub(super) async fn mutate_in(
        &self,
        only_in: Option<SessionId>,
        touched: &[Ino],
        op: proto::command::Op,
    ) -> Result<proto::Outcome, OpError> {
        self.writable()?;
        self.take_space_for(&op)?;
        let outcome = match self.node.mutate_in(only_in, op).await {
            Ok(outcome) => outcome,
            Err(NodeError::NotDone) => return Err(NodeError::NotDone.into()),
            Err(error) => return Err(self.unknown_outcome(touched, error)),
        };
        match i32::try_from(outcome.errno) {
            Ok(0) => Ok(outcome),
            Ok(errno) => Err(OpError::Errno(errno)),
            Err(_) => Err(OpError::Errno(libc::EIO)),
        }
    }

    /// Whether a mutation happened is unknown: what the kernel has cached is not believed any more.
    pub(super) fn unknown_outcome(&self, touched: &[Ino], error: NodeError) -> OpError {
        tracing::warn!(?touched, %error, "the outcome of a mutation is unknown");
        self.cache.doubt(touched);
        self.forget_names();
        error.into()
    }

    /// The session is over: what is still buffered is committed, if that can be done in time, and nothing is held
    /// any more.
    pub(super) async fn end(self: &Arc<Self>) {
        self.commit_all(tokio::time::Instant::now() + self.node.op_timeout()).await;
        self.unlock_everything();
        // Nobody makes what programs hold of it follow from here on.
        self.forget_everything();
        self.node.ignore();
        self.passthrough.close();
        for ino in self.open.close() {
            self.node.release_orphan(ino);
        }
    }

    /// Ends a hold that did not become an open file.
    pub(super) fn unhold(&self, ino: Ino) {
        self.released(ino, self.open.unhold(ino));
    }

    pub(super) fn released(&self, ino: Ino, released: Released) {
        match released {
            Released::Nothing => {}
            Released::Orphan => self.node.release_orphan(ino),
        }
    }

    /// Registers that attributes of `ino` are going to be given.
    pub(super) fn give_attributes(&self, ino: Ino) -> AttributeGrant {
        let now = Instant::now();
        // What is written to the alias the kernel does not know of the file's own number.
        let is_aliased = self.passthrough.is_aliased(ino, now);
        let cacheable = if is_aliased { Duration::ZERO } else { self.cacheable() };
        self.cache.give_attributes(ino, now, cacheable)
    }

    /// Registers that a name is going to be given to `thread`.
    pub(super) fn give_name(&self, place: &Place, thread: u32) -> NameGrant {
        let cacheable = if self.kernel().has_epochs() { self.cacheable() } else { Duration::ZERO };
        self.cache.names.give(place.key(), thread, Instant::now(), cacheable)
    }

    /// The TTL of a name in a reply that goes out now.
    pub(super) fn name_ttl(&self, attr: &FileAttr, grant: &NameGrant) -> Duration {
        let is_directory = attr.kind == FileType::Directory;
        grant.ttl(is_directory, Instant::now(), self.cacheable())
    }

    /// To be called before `thread` removes or renames these names: see [`super::kernel_names`]. Keep the first that it
    /// answers until the reply is written, and tell the other what became of the names. ESTALE where the kernel is to look
    /// them up again.
    pub(super) async fn begin_removal(
        &self,
        places: &[&Place],
        thread: u32,
    ) -> Result<(Removing, Changing), OpError> {
        let (names, began) = (&self.cache.names, Instant::now());
        let keys: Vec<_> = places.iter().map(|place| place.key()).collect();
        let mut removal = names.ask(&keys, thread, began);
        while removal == Removal::LookUpAgain {
            if names.are_taken_in(&keys, thread) {
                return Err(OpError::Errno(libc::ESTALE));
            }
            if began.elapsed() > LATE_REPLY {
                removal = Removal::ForgetAll;
            } else {
                tokio::time::sleep(LATE_REPLY / 20).await;
            }
        }
        // From here on the names are not given.
        let removing = names.remove(&keys, thread, Instant::now());
        if removal == Removal::ForgetAll {
            self.forget_names();
        }
        Ok((removing, self.directories.change(places)))
    }

    /// The TTL of attributes in a reply that goes out now.
    pub(super) fn attribute_ttl(&self, grant: &AttributeGrant) -> Duration {
        grant.ttl(Instant::now(), self.cacheable())
    }

    /// To be called when a reply with an attribute TTL is written.
    pub(super) fn gave_attributes(&self, ino: Ino, ttl: Duration) {
        if outlives_lease(ttl, self.cacheable()) {
            self.kernel().drop_attributes(ino);
        }
    }

    /// To be called when a reply with an entry TTL is written.
    pub(super) fn gave_name(&self, ttl: Duration) {
        if outlives_lease(ttl, self.cacheable()) {
            self.forget_names();
        }
    }

    /// Makes the kernel forget all names.
    pub(super) fn forget_names(&self) {
        self.cache.names.forget_all(|| self.kernel().bump_epoch());
    }
}
