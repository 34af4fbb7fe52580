//! Mounting, serving, remounting, unmounting.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fuser::{BackingId, Config, MountOption, Session, SessionACL};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::core::Core;
use super::errors::OpError;
use super::filesystem::QuorumFs;
use super::mount_error::MountError;
use super::names::Place;
use super::notify::Kernel;
use super::options::MountFlags;
use super::root::Root;
use super::{mount_point, session_threads, sys};
use crate::fs::proto::Kind;
use crate::fs::query;
use crate::guardian::{Guardian, Watched};
use crate::node::{Deadline, Handle, Observer};
use crate::store::StateRead;

/// A mount that nobody uses ends within this after it was unmounted.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// What to mount where, and how.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// An existing directory at which nothing is mounted.
    pub mount_point: PathBuf,
    /// What the kernel's table is to name as the source: `ADDR:/SUBTREE`.
    pub source: String,
    /// The directory of the file system that becomes the root: names separated by `/`, none for all.
    pub subtree: String,
    /// How the mount behaves at first.
    pub flags: MountFlags,
    /// The most bytes of one flush that travel inside a command of the log.
    pub inline_max: usize,
    /// Where operations go on that have to wait.
    pub runtime: tokio::runtime::Handle,
}

/// A mount that is being served. Dropping it without [`Mount::stop`] leaves it to serve on.
#[derive(Debug)]
pub struct Mount {
    core: Arc<Core>,
    point: PathBuf,
    /// As `/proc/self/mountinfo` names it.
    device: String,
    source: String,
    ended: watch::Receiver<bool>,
}

/// What a mount's blocking start needs beside the options.
struct Watching {
    guardian: Guardian,
    watched: Arc<Watched>,
}

/// What a mount's blocking start answers.
struct Started {
    point: PathBuf,
    device: String,
    ended: watch::Receiver<bool>,
}

impl Mount {
    /// Mounts, and serves until somebody unmounts. Where no quorum answers, the mount does what is configured for
    /// that. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// One sentence for each thing that can be wrong with the mount point, the subtree or the system.
    pub async fn start(
        handle: &Handle,
        guardian: &Guardian,
        options: MountOptions,
    ) -> Result<Self, MountError> {
        let MountOptions { mount_point, source, subtree, flags, inline_max, runtime } = options;
        let serve = |source| MountError::Serve { path: mount_point.clone(), source };
        let watched = Watched::new().map_err(serve)?;
        let watching = Watching { guardian: guardian.clone(), watched: watched.clone() };
        let mut core = Core::new(handle.for_mount(), runtime.clone(), flags, inline_max, watched);
        // It may wait for the disk.
        let finding = runtime.spawn(async move {
            core.root = Deadline::of_node().covers(core.find_root(&subtree)).await?;
            Ok::<_, MountError>(Arc::new(core))
        });
        let core = finding.await.map_err(|_| MountError::Stopping)??;
        let starting = {
            let (core, source) = (core.clone(), source.clone());
            spawn_blocking(move || begin(&core, watching, &mount_point, &source, flags))
        };
        let Started { point, device, ended } =
            starting.await.map_err(|_| MountError::Stopping)??;
        let epochs = core.kernel().has_epochs();
        tracing::info!(path = %point.display(), source, epochs, "mounted");
        Ok(Self { core, point, device, source, ended })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// What the kernel's table names as its source.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// How it behaves now.
    #[must_use]
    pub fn flags(&self) -> MountFlags {
        *self.core.flags.read()
    }

    /// Whether the kernel has dentry epochs; without them it caches no names.
    #[must_use]
    pub fn has_epochs(&self) -> bool {
        self.core.kernel().has_epochs()
    }

    /// Why files cannot be read by the kernel itself; nothing where they can.
    #[must_use]
    pub fn no_passthrough(&self) -> Option<String> {
        self.core.passthrough.refusal()
    }

    /// Whether it is still in the tree of this process; it goes on serving what programs hold of it
    /// where it was unmounted lazily.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        mount_point::is_there(&self.point, &self.device)
    }

    /// Waits until nothing is served any more, because somebody unmounted or the connection broke, and
    /// everything that was written has been committed.
    pub async fn ended(&self) {
        // The sender goes only after it has sent.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Changes how it behaves.
    ///
    /// # Errors
    /// [`MountError::Busy`] where files are open for writing that could not be written any more.
    pub async fn remount(&self, flags: MountFlags) -> Result<(), MountError> {
        let before = self.flags();
        // Whoever is refused is refused by the kernel first.
        if !flags.read_only {
            *self.core.flags.write() = flags;
        }
        let point = self.point.clone();
        let result = spawn_blocking(move || sys::remount(&point, flags)).await;
        let error = match result.map_err(|_| MountError::Stopping)? {
            Ok(()) => {
                *self.core.flags.write() = flags;
                if flags.read != before.read {
                    // What it was told while less was promised.
                    self.core.lease_lost();
                    self.core.forget_names();
                }
                return Ok(());
            }
            Err(error) => error,
        };
        *self.core.flags.write() = before;
        let path = self.point.clone();
        Err(match error.raw_os_error() {
            Some(libc::EBUSY) => MountError::Busy { path },
            _ => MountError::Remount { path, source: error },
        })
    }

    /// Unmounts, and waits until what was written has been committed, for `op_timeout` at most; or, `lazily`, takes the mount out of the
    /// tree and lets programs go on with what they have open.
    ///
    /// # Errors
    /// [`MountError::Busy`] where programs use it, unless `lazily`.
    pub async fn unmount(&self, lazily: bool) -> Result<(), MountError> {
        self.unmount_until(lazily, self.patience()).await
    }

    async fn unmount_until(
        &self,
        lazily: bool,
        until: tokio::time::Instant,
    ) -> Result<(), MountError> {
        if self.is_attached() {
            let point = self.point.clone();
            let unmounting = spawn_blocking(move || {
                if lazily { sys::detach(&point, false) } else { sys::unmount(&point) }
            });
            let path = || self.point.clone();
            unmounting.await.map_err(|_| MountError::Stopping)?.map_err(|source| {
                match source.raw_os_error() {
                    Some(libc::EBUSY) => MountError::Busy { path: path() },
                    _ => MountError::Unmount { path: path(), source },
                }
            })?;
        }
        if !lazily {
            self.core.commit_all(until).await;
            self.until_ended().await;
        }
        Ok(())
    }

    /// Commits what is buffered, as far as that can be done within `op_timeout`, and unmounts. Programs that still use
    /// the mount get errors.
    ///
    /// # Errors
    /// When the mount cannot be taken away.
    pub async fn stop(&self) -> Result<(), MountError> {
        let until = self.patience();
        self.core.commit_all(until).await;
        // Politely first: what is written until then still arrives.
        let busy = self.is_attached()
            && match self.unmount_until(false, until).await {
                Err(MountError::Busy { .. }) => true,
                result => result.map(|()| false)?,
            };
        if self.has_ended() {
            return Ok(());
        }
        let (point, device) = (self.point.clone(), self.device.clone());
        let aborting = spawn_blocking(move || {
            mount_point::abort(&device);
            if busy { sys::detach(&point, true) } else { Ok(()) }
        });
        let aborted = aborting.await.map_err(|_| MountError::Stopping)?;
        aborted.map_err(|source| MountError::Unmount { path: self.point.clone(), source })?;
        self.until_ended().await;
        Ok(())
    }

    /// Until when what was written is waited for.
    fn patience(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + self.core.node.op_timeout()
    }

    fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits for the end, but not for programs that hold on to the mount in namespaces of their own.
    async fn until_ended(&self) {
        if tokio::time::timeout(END_TIMEOUT, self.ended()).await.is_err() {
            tracing::info!(path = %self.point.display(), "somebody holds on to the mount");
        }
    }
}

impl Core {
    /// Whether the kernel takes backing files is found out before anybody waits for it. It keeps the file of this
    /// attempt until it is unmounted.
    fn try_passthrough(&self, device: &OwnedFd) {
        let tried = self.node.files().sample().map_err(io::Error::other);
        if let Err(error) = tried.and_then(|file| BackingId::create_raw(device, file)) {
            self.passthrough.refused(&error);
        }
    }

    /// The directory that a path of names leads to.
    async fn find_root(&self, subtree: &str) -> Result<Root, MountError> {
        // Nobody waits for a quorum to mount what is here.
        if !self.node.has_quorum()
            && let Ok(Some(root)) = self.query(|state| directory_at(state, subtree))
        {
            return Ok(root);
        }
        let missing = || MountError::NoSubtree { subtree: subtree.to_owned() };
        let mut root = Root::WHOLE;
        for name in subtree.split('/').filter(|name| !name.is_empty()) {
            let found = async {
                let place = Place::new(root.0, name.as_bytes())?;
                self.read_stable(|look| self.find(look, &place)).await
            };
            root = match found.await {
                Ok(Some(seen)) if seen.inode.kind() == Kind::Directory => Root(seen.ino),
                Ok(_) | Err(OpError::Errno(_)) => return Err(missing()),
                Err(error) => return Err(MountError::NoAnswer { reason: error.to_string() }),
            };
        }
        // The mount is to serve when this returns.
        match self.seen(root.0).await {
            Ok(_) => Ok(root),
            Err(OpError::Errno(_)) => Err(missing()),
            Err(error) => Err(MountError::NoAnswer { reason: error.to_string() }),
        }
    }
}

/// The directory that a path of names leads to, in one state.
fn directory_at(state: &StateRead<'_>, subtree: &str) -> Result<Option<Root>, OpError> {
    let Some(ino) = query::resolve(state, subtree.as_bytes())? else { return Ok(None) };
    let inode = query::inode(state, ino)?;
    Ok(inode.filter(|inode| inode.kind() == Kind::Directory).map(|_| Root(ino)))
}

/// Mounts and starts the session threads. Blocks for a moment.
fn begin(
    core: &Arc<Core>,
    watching: Watching,
    mount_point: &Path,
    source: &str,
    flags: MountFlags,
) -> Result<Started, MountError> {
    let point = mount_point::prepare(mount_point)?;
    let refused = |source| MountError::Refused { path: point.clone(), source };
    let serve = |source| MountError::Serve { path: point.clone(), source };
    let session = mount(core.clone(), &point, source, flags).map_err(refused)?;
    let started = serve_session(core, watching, &point, session).map_err(serve);
    let device = mount_point::device(&point).unwrap_or_default();
    if started.is_err() {
        // It would answer nothing.
        let _ = sys::detach(&point, true);
    }
    let ended = started?;
    mount_point::raise_read_ahead(&device);
    Ok(Started { point, device, ended })
}

/// Mounts by ourselves, because the library cannot set the type; where only fusermount3 may mount, it has
/// that do it.
fn mount(
    core: Arc<Core>,
    point: &Path,
    source: &str,
    flags: MountFlags,
) -> io::Result<Session<QuorumFs>> {
    let device = match sys::mount(point, source, flags) {
        Ok(device) => device,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            return Session::new(QuorumFs(core), point, &config(source, flags));
        }
        Err(error) => return Err(error),
    };
    let session = Session::from_fd(QuorumFs(core), device, SessionACL::All, config(source, flags));
    if session.is_err() {
        // What is mounted without a session answers nothing.
        let _ = sys::detach(point, true);
    }
    session
}

fn config(source: &str, flags: MountFlags) -> Config {
    let MountFlags { read_only, no_atime, no_suid, no_dev, no_exec, read: _ } = flags;
    let either = |is_on, on, off| if is_on { on } else { off };
    let mut config = Config::default();
    config.mount_options = vec![
        // fusermount3 ends an option at a comma.
        MountOption::FSName(source.replace(',', "_")),
        MountOption::Subtype(mount_point::SUBTYPE.into()),
        MountOption::DefaultPermissions,
        either(read_only, MountOption::RO, MountOption::RW),
        either(no_atime, MountOption::NoAtime, MountOption::Atime),
        either(no_exec, MountOption::NoExec, MountOption::Exec),
    ];
    if sys::is_root() {
        config.mount_options.push(either(no_suid, MountOption::NoSuid, MountOption::Suid));
        config.mount_options.push(either(no_dev, MountOption::NoDev, MountOption::Dev));
    }
    config.acl = SessionACL::All;
    config.n_threads = Some(session_threads::ALL);
    config
}

/// Starts the session threads. What is answered becomes true when they have ended and the mount has let go
/// of everything.
fn serve_session(
    core: &Arc<Core>,
    Watching { guardian, watched }: Watching,
    point: &Path,
    session: Session<QuorumFs>,
) -> io::Result<watch::Receiver<bool>> {
    let device = session.as_fd().try_clone_to_owned()?;
    // Before the first request is answered, as below.
    let watch = guardian.watch(point, device.as_fd(), watched)?;
    let passthrough = core.passthrough.clone();
    core.try_passthrough(&device);
    core.waiting.start()?;
    core.set_kernel(Kernel::start(session.notifier(), device, core.root, passthrough)?);
    // Before the first request is answered: nothing that the kernel is given escapes it.
    core.node.observe(core.clone());
    core.runtime.spawn(Core::commit_aged(Arc::downgrade(core)));
    let (ended, has_ended) = watch::channel(false);
    let serving = core.clone();
    let body = move || {
        if let Err(error) = session.run() {
            tracing::error!(%error, "the FUSE session failed");
        }
        let runtime = serving.runtime.clone();
        runtime.block_on(serving.end());
        drop(watch);
        ended.send_replace(true);
    };
    if let Err(error) = thread::Builder::new().name("fuse-session".into()).spawn(body) {
        core.node.ignore();
        return Err(error);
    }
    Ok(has_ended)
}
