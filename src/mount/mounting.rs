//! Mounting, serving, unmounting.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use tokio::sync::watch;

use super::core::Core;
use super::filesystem::QuorumFs;
use super::notify::Kernel;
use super::{mount_point, sys};
use crate::node::Handle;

/// Two threads are best on two cores, and more gain nothing: no operation blocks one.
const SESSION_THREADS: usize = 2;

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// An existing directory at which nothing is mounted.
    pub mount_point: PathBuf,
    /// The most bytes of one flush that travel inside a command of the log.
    pub inline_max: usize,
}

/// Why a mount could not be made or unmade.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory is not there.
    #[error("the mount point {} cannot be used: create the directory first", path.display())]
    MissingMountPoint {
        /// As it was given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("the mount point {} is not a directory", path.display())]
    NotADirectory {
        /// The mount point.
        path: PathBuf,
    },
    /// Something is there already.
    #[error("a file system ({fs_type}) is already mounted at {}: unmount it first", path.display())]
    AlreadyMounted {
        /// The mount point.
        path: PathBuf,
        /// The type of what is there.
        fs_type: String,
    },
    /// The remains of an earlier daemon cannot be removed.
    #[error("a dead quorumfs mount at {} cannot be removed: run 'umount -l' on it", path.display())]
    DeadMount {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No FUSE.
    #[error(
        "/dev/fuse cannot be opened: load the kernel module fuse, or give the container access"
    )]
    NoFuseDevice {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the mount.
    #[error(
        "cannot mount at {}: run as root, or install fusermount3 and set user_allow_other in \
         /etc/fuse.conf",
        path.display()
    )]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A thread or a descriptor could not be had.
    #[error("cannot serve the mount at {}", path.display())]
    Serve {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The mount could not be taken away.
    #[error("cannot unmount {}: run 'umount -l' on it", path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A mount that is being served. Dropping it without [`Mount::stop`] leaves it to serve on.
#[derive(Debug)]
pub struct Mount {
    core: Arc<Core>,
    point: PathBuf,
    unmounter: SessionUnmounter,
    ended: watch::Receiver<bool>,
}

impl Mount {
    /// Mounts, and serves until [`Self::stop`] or until somebody unmounts. Blocks for a moment.
    ///
    /// # Errors
    /// One sentence for each thing that can be wrong with the mount point or the system.
    pub fn start(
        handle: &Handle,
        options: MountOptions,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, MountError> {
        let MountOptions { mount_point, inline_max } = options;
        let point = mount_point::prepare(&mount_point)?;
        let refused = |source| MountError::Refused { path: point.clone(), source };
        let serve = |source| MountError::Serve { path: point.clone(), source };
        let core = Arc::new(Core::new(handle.for_mount(), runtime, inline_max));
        let mut session =
            Session::new(QuorumFs(core.clone()), &point, &config()).map_err(refused)?;
        let device = session.as_fd().try_clone_to_owned().map_err(serve)?;
        core.set_kernel(Kernel::start(session.notifier(), device).map_err(serve)?);
        core.node.observe(core.clone());
        core.runtime.spawn(Core::commit_aged(Arc::downgrade(&core)));
        let unmounter = session.unmount_callable();
        let ended = serve_session(session).map_err(serve)?;
        mount_point::raise_read_ahead(&point);
        let epochs = core.kernel().has_epochs();
        tracing::info!(path = %point.display(), epochs, "mounted");
        Ok(Self { core, point, unmounter, ended })
    }

    /// Whether the kernel has dentry epochs; without them it caches no names.
    #[must_use]
    pub fn has_epochs(&self) -> bool {
        self.core.kernel().has_epochs()
    }

    /// Waits until nothing is served any more: somebody unmounted, or the connection broke.
    pub async fn ended(&mut self) {
        // The sender goes only after it has sent.
        let _ = self.ended.wait_for(|ended| *ended).await;
    }

    /// Commits what is buffered, and unmounts. Programs that still use the mount get errors.
    ///
    /// # Errors
    /// When the mount cannot be taken away.
    pub async fn stop(mut self) -> Result<(), MountError> {
        self.core.commit_all().await;
        let (point, mut unmounter) = (self.point.clone(), self.unmounter);
        let detached = tokio::task::spawn_blocking(move || {
            // Politely first: what is written until then still arrives.
            unmounter.unmount().or_else(|_| sys::detach(&point, true))
        });
        if let Ok(Err(source)) = detached.await {
            return Err(MountError::Unmount { path: self.point, source });
        }
        let _ = self.ended.wait_for(|ended| *ended).await;
        Ok(())
    }
}

fn config() -> Config {
    let mut options = vec![
        MountOption::FSName(mount_point::SOURCE.into()),
        MountOption::Subtype("quorumfs".into()),
        MountOption::DefaultPermissions,
    ];
    if sys::is_root() {
        options.extend([MountOption::Dev, MountOption::Suid]);
    }
    let mut config = Config::default();
    config.mount_options = options;
    config.acl = SessionACL::All;
    config.n_threads = Some(SESSION_THREADS);
    config
}

/// Starts the session threads. What is answered becomes true when they have ended.
fn serve_session(session: Session<QuorumFs>) -> io::Result<watch::Receiver<bool>> {
    let (ended, has_ended) = watch::channel(false);
    thread::Builder::new().name("fuse-session".into()).spawn(move || {
        if let Err(error) = session.run() {
            tracing::error!(%error, "the FUSE session failed");
        }
        ended.send_replace(true);
    })?;
    Ok(has_ended)
}
