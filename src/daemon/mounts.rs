//! The mounts of a daemon: the one of its configuration, and those that it is asked for while it runs.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::config::{Config, ReadMode};
use crate::guardian::Guardian;
use crate::mount::{self, Mount, MountError, MountFlags, MountOptions};
use crate::node::Handle;
use crate::rpc::admin::{MountInfo, MountRequest};
use crate::rpc::{Mounts, MountsError};
use crate::store;

/// Each has threads, a connection to the kernel, and up to 64 MiB of what is written.
const MOUNTS_MAX: usize = 64;
/// A mount takes no longer to be made, unless there is no quorum.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// A list of mounts is written within this time.
const RECORDING: Duration = Duration::from_secs(1);

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct MountTable(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: Handle,
    guardian: Guardian,
    /// Where mounts are made and taken away: never on the thread of the services.
    runtime: tokio::runtime::Handle,
    /// Where operations go on that have to wait.
    work: tokio::runtime::Handle,
    config: Config,
    /// Where the mount of the configuration is, once it was made.
    configured: OnceLock<PathBuf>,
    known: Mutex<Known>,
    /// One permit, of whoever writes the list on disk, so that the last word is the last one written.
    recording: Arc<Semaphore>,
    epochs: AtomicBool,
    /// One permit: whoever holds it changes which mounts there are. Closed when the daemon stops.
    turn: Semaphore,
}

#[derive(Debug, Default)]
struct Known {
    mounts: Vec<Arc<Mount>>,
    /// Where a mount is being made.
    coming: Option<PathBuf>,
}

impl MountTable {
    /// No mount yet. Must be called within the runtime that is to make them; `work` is where operations go on.
    pub(super) fn new(
        node: Handle,
        guardian: Guardian,
        config: &Config,
        work: &tokio::runtime::Handle,
    ) -> Self {
        Self(Arc::new(Shared {
            node,
            guardian,
            runtime: tokio::runtime::Handle::current(),
            work: work.clone(),
            config: config.clone(),
            configured: OnceLock::new(),
            known: Mutex::default(),
            recording: Arc::new(Semaphore::new(1)),
            epochs: AtomicBool::new(false),
            turn: Semaphore::new(1),
        }))
    }

    /// Makes the mount of the configuration, where it names one.
    pub(super) async fn mount_configured(&self) -> Result<(), MountError> {
        let Some(point) = self.0.config.mount.clone() else { return Ok(()) };
        let _turn = self.0.turn().await?;
        let source = format!("{}:/", self.0.config.local_address());
        let flags = MountFlags { read: self.0.config.read, ..MountFlags::default() };
        let mount = self.0.start(point, source, String::new(), flags).await?;
        // Made once.
        let _ = self.0.configured.set(mount.point().to_owned());
        Ok(())
    }

    /// Commits what is buffered, and unmounts everything.
    pub(super) async fn stop(&self) -> Result<(), MountError> {
        // It ends within a deadline, whatever calls wait for.
        self.0.node.stop_waiting();
        // A mount that is being made is waited for; one that takes longer takes itself away again.
        let _turn = tokio::time::timeout(STOP_PATIENCE, self.0.turn.acquire()).await;
        self.0.turn.close();
        let mounts = self.0.known.lock().mounts.clone();
        let mut result = Ok(());
        // The last one first: it may be inside of another.
        for mount in mounts.into_iter().rev() {
            result = mount.stop().await.and(result);
        }
        self.0.record().await;
        result
    }
}

impl Shared {
    async fn turn(&self) -> Result<SemaphorePermit<'_>, MountError> {
        self.turn.acquire().await.map_err(|_| MountError::Stopping)
    }

    /// Mounts, and forgets the mount when it ends.
    async fn start(
        self: &Arc<Self>,
        mount_point: PathBuf,
        source: String,
        subtree: String,
        flags: MountFlags,
    ) -> Result<Arc<Mount>, MountError> {
        if self.known.lock().mounts.len() >= MOUNTS_MAX {
            return Err(MountError::TooMany { most: MOUNTS_MAX });
        }
        let inline_max = usize::try_from(self.config.inline_max).expect("validated: at most 1 MiB");
        let runtime = self.work.clone();
        let point = mount_point.clone();
        let options =
            MountOptions { mount_point: point, source, subtree, flags, inline_max, runtime };
        // Before it is there: whoever cleans up after a crash must find it.
        self.known.lock().coming = Some(mount_point);
        self.record().await;
        let started = Mount::start(&self.node, &self.guardian, options).await.map(Arc::new);
        {
            let mut known = self.known.lock();
            known.coming = None;
            known.mounts.extend(started.iter().cloned());
        }
        self.record().await;
        let mount = started?;
        self.epochs.store(mount.has_epochs(), Ordering::Relaxed);
        let (shared, watched) = (self.clone(), mount.clone());
        self.runtime.spawn(async move {
            watched.ended().await;
            tracing::info!(path = %watched.point().display(), "unmounted");
            shared.known.lock().mounts.retain(|mount| !Arc::ptr_eq(mount, &watched));
            shared.record().await;
        });
        if self.turn.is_closed() {
            mount.stop().await?;
            return Err(MountError::Stopping);
        }
        Ok(mount)
    }

    /// Records where mounts are, and where one is going to be. A disk that does not answer is not waited for: whoever waits
    /// for a mount, or for its end, is not to.
    async fn record(self: &Arc<Self>) {
        let shared = self.clone();
        let recording = async move {
            // Whoever waits here has not begun; who waits for the disk goes on, and nobody else does meanwhile.
            let turn = shared.recording.clone().acquire_owned().await;
            let writing = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                loop {
                    let points = shared.known.lock().points();
                    store::record_mounts(&shared.config.data, &points)?;
                    // They may have changed while the disk took its time.
                    if shared.known.lock().points() == points {
                        return Ok::<_, store::StoreError>(());
                    }
                }
            });
            writing.await
        };
        match tokio::time::timeout(RECORDING, recording).await {
            Ok(Ok(Err(error))) => tracing::warn!(%error, "nobody will clean up after this daemon"),
            // A panic ends the daemon.
            Ok(_) => {}
            Err(_) => tracing::warn!(
                "the disk does not answer: should this daemon die, nobody will know where it has mounted"
            ),
        }
    }

    /// The mount that is in the tree at `point`.
    async fn find(&self, point: PathBuf) -> Result<Arc<Mount>, MountsError> {
        let mounts = self.known.lock().mounts.clone();
        let unknown = MountsError::Unknown(point.clone());
        // The way to it may lead through another of our mounts.
        let finding = tokio::task::spawn_blocking(move || {
            let point = mount::absolute(&point).ok()?;
            mounts.into_iter().rfind(|mount| mount.point() == point && mount.is_attached())
        });
        finding.await.ok().flatten().ok_or(unknown)
    }

    async fn mount(self: Arc<Self>, request: MountRequest) -> Result<(), MountsError> {
        let MountRequest { source, subtree, point, options, sloppy } = request;
        let point = PathBuf::from(std::ffi::OsStr::from_bytes(&point));
        if !point.is_absolute() {
            return Err(MountsError::Usage(format!("{} is not absolute", point.display())));
        }
        let usage = |error: mount::OptionError| MountsError::Usage(error.to_string());
        let fresh = MountFlags { read: self.config.read, ..MountFlags::default() };
        let wanted = fresh.with(&options, sloppy).map_err(usage)?;
        let _turn = self.turn().await.map_err(|error| failed(&error))?;
        if !wanted.remount {
            self.check_read(wanted.flags.read)?;
            return self
                .start(point, source, subtree, wanted.flags)
                .await
                .map(drop)
                .map_err(|error| failed(&error));
        }
        let mount = self.find(point).await?;
        let flags = mount.flags().with(&options, sloppy).map_err(usage)?.flags;
        self.check_read(flags.read)?;
        mount.remount(flags).await.map_err(|error| failed(&error))
    }

    /// Only a session of the roster reads strongly, and nobody hears of the leader all the time.
    fn check_read(&self, read: ReadMode) -> Result<(), MountsError> {
        let (strong, least) = (self.config.read == ReadMode::Strong, self.config.session_ttl);
        match read {
            ReadMode::Strong if !strong => Err(MountsError::Usage(format!(
                "read=strong cannot be had from a daemon whose configuration says read = \"{}\"",
                self.config.read
            ))),
            ReadMode::Bounded(age) if age < least => Err(MountsError::Usage(format!(
                "read={read} cannot be kept: a bound is at least session_ttl, {} s",
                least.as_secs_f64()
            ))),
            ReadMode::Strong | ReadMode::Bounded(_) | ReadMode::Eventual => Ok(()),
        }
    }

    async fn unmount(self: Arc<Self>, point: PathBuf, lazy: bool) -> Result<(), MountsError> {
        let mount = self.find(point).await?;
        mount.unmount(lazy).await.map_err(|error| failed(&error))
    }
}

impl Known {
    fn points(&self) -> Vec<PathBuf> {
        let points = self.mounts.iter().map(|mount| mount.point().to_owned());
        points.chain(self.coming.clone()).collect()
    }
}

fn failed(error: &MountError) -> MountsError {
    let mut sentence = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        sentence = format!("{sentence}: {cause}");
        source = cause.source();
    }
    MountsError::Failed(sentence)
}

/// Services have a thread that must never wait: the work is done where mounts are served, to its end.
async fn elsewhere<T: Send + 'static>(
    runtime: &tokio::runtime::Handle,
    work: impl Future<Output = Result<T, MountsError>> + Send + 'static,
) -> Result<T, MountsError> {
    runtime.spawn(work).await.unwrap_or_else(|_| Err(failed(&MountError::Stopping)))
}

#[tonic::async_trait]
impl Mounts for MountTable {
    async fn mount(&self, request: MountRequest) -> Result<(), MountsError> {
        elsewhere(&self.0.runtime, self.0.clone().mount(request)).await
    }

    async fn unmount(&self, point: PathBuf, lazy: bool) -> Result<(), MountsError> {
        elsewhere(&self.0.runtime, self.0.clone().unmount(point, lazy)).await
    }

    async fn list(&self) -> Vec<MountInfo> {
        let shared = self.0.clone();
        let list = async move {
            let mounts = shared.known.lock().mounts.clone();
            Ok(mounts.iter().map(|mount| info(mount)).collect())
        };
        elsewhere(&self.0.runtime, list).await.unwrap_or_default()
    }

    fn configured(&self) -> Option<(PathBuf, bool)> {
        let path = self.0.config.mount.clone()?;
        let point = self.0.configured.get();
        let known = self.0.known.lock();
        let mounted =
            known.mounts.iter().any(|mount| Some(mount.point()) == point.map(PathBuf::as_path));
        Some((path, mounted))
    }

    fn is_guarded(&self) -> bool {
        self.0.guardian.is_running()
    }

    fn has_epochs(&self) -> bool {
        self.0.epochs.load(Ordering::Relaxed)
    }
}

fn info(mount: &Mount) -> MountInfo {
    MountInfo {
        point: mount.point().as_os_str().as_bytes().to_vec().into(),
        source: mount.source().to_owned(),
        options: mount.flags().to_string(),
        attached: mount.is_attached(),
        no_passthrough: mount.no_passthrough().unwrap_or_default(),
    }
}
