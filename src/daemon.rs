//! One daemon: puts the store, the node, the services and the mount together.

mod descriptors;
mod disk;
mod ending;
mod guarding;
mod lost_state;
mod mounts;
mod starting;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::{Config, OnQuorumLoss, ReadMode};
use crate::consensus::CoreConfig;
use crate::node::{Fatal, Node, NodeConfig};
use crate::rpc::{self, AdminService, BulkService, JoinError, PeerService, Peers};
use crate::store::{self, DataDir, Identity, StoreError};
use crate::telemetry;
use crate::types::{ClusterId, NodeId};

pub use self::ending::StaysDown;
use self::mounts::MountTable;
use self::starting::Starting;

/// How long a thread for what blocks stays without work. They are woken in turn, so with tokio's 10 s a daemon that has hardly
/// anything to do would keep as many as its largest burst has needed.
const IDLE: Duration = Duration::from_secs(1);
/// How often it is looked whether a quorum still answers.
const LOOK: Duration = Duration::from_millis(500);
/// Less room than this is a full disk: nothing can be started on it.
const ROOM_TO_START: u64 = 4 << 20;
/// The same where the last daemon has ended on a full disk: a batch of the log, another file of it, and some more. What is
/// kept for log and snapshots is enough, too.
const ROOM_AFTER_FULL: u64 = 64 << 20;
/// Between two looks at a disk that is full.
const FULL: Duration = Duration::from_secs(1);
/// How long a replica that cannot go on waits for somebody else to lead, and then for its mounts to be gone. What is
/// left the guardian takes away.
const GIVING_UP: Duration = Duration::from_millis(500);
/// How long a daemon that gives up may take altogether.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// What `cluster init` made, and what the others need to join.
#[derive(Clone, Debug)]
pub struct InitReport {
    /// The new cluster.
    pub cluster: ClusterId,
    /// Its first node.
    pub node: NodeId,
    /// Where the others reach it.
    pub address: String,
}

/// Makes a new cluster's first node in an empty data directory.
///
/// # Errors
/// When the directory holds anything already, or cannot be written.
pub fn init(config: &Config) -> Result<InitReport> {
    let identity = Identity {
        cluster: ClusterId(rand::rng().random()),
        node: NodeId(1),
        nonce: rand::rng().random(),
        address: config.address(),
    };
    let report = InitReport {
        cluster: identity.cluster,
        node: identity.node,
        address: identity.address.clone(),
    };
    store::found_cluster(&config.data, identity, crate::node::wall())?;
    Ok(report)
}

/// Runs a daemon until SIGTERM or SIGINT; `after_crash_loop` starts one also where those before it have ended by
/// themselves again and again.
///
/// # Errors
/// When it cannot start, or cannot go on; [`StaysDown`] where it must not be started again by itself.
pub fn run(config: &Config, after_crash_loop: bool) -> Result<()> {
    ending::end_at_panics();
    descriptors::raise_limit()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_keep_alive(IDLE)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    // Signals, and the beginning and end of mounts, have their own thread, timers and threads for disks: whatever those of
    // the mounts' operations wait for.
    let control = tokio::runtime::Builder::new_current_thread()
        .thread_keep_alive(IDLE)
        .enable_all()
        .build()
        .context("cannot start the runtime of the daemon")?;
    let streams = Streams::start()?;
    let runtimes = Runtimes { work: runtime.handle().clone(), streams: streams.handle.clone() };
    let result = control.block_on(serve(config, after_crash_loop, &runtimes));
    drop(streams);
    // Reads of a disk that does not answer must not keep the daemon from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    control.shutdown_background();
    result
}

/// Where what runs beside [`serve`].
struct Runtimes {
    /// Operations of mounts that have to wait, and all that moves bytes.
    work: tokio::runtime::Handle,
    /// See [`Streams`].
    streams: tokio::runtime::Handle,
}

async fn serve(
    config: &Config,
    after_crash_loop: bool,
    Runtimes { work, streams }: &Runtimes,
) -> Result<()> {
    // From here on a signal is not lost.
    let stopping = told_to_stop()?;
    tokio::pin!(stopping);
    let listener = streams.spawn(rpc::bind(config.listen)).await??;
    let starting = Starting::begin(&listener, streams)?;
    starting.says("opening the data directory, or joining the cluster");
    let directory = tokio::select! {
        directory = open(config) => Arc::new(directory.map_err(ending::not_opened)?),
        () = &mut stopping => return Ok(()),
    };
    ending::look_back(&directory, after_crash_loop)?;
    tokio::select! {
        waited = until_there_is_room(&directory, config.reserve, &starting) => {
            waited.map_err(|error| ending::not_started(&directory, error))?;
        }
        () = &mut stopping => return Ok(()),
    }
    let identity = directory.identity().clone();
    let genesis = genesis(&directory)?;
    tracing::info!(node = identity.node.0, cluster = %identity.cluster, "starting");

    let peers = Arc::new(Peers::new(
        (identity.cluster, identity.node),
        identity.address.clone(),
        streams.clone(),
        work.clone(),
    ));
    let recovered = tokio::select! {
        recovered = lost_state::recover(config, &directory, &starting) => recovered?,
        () = &mut stopping => return Ok(()),
    };
    let settings = node_config(config, &identity, &directory);
    let started = within(work, || Node::start(settings, recovered, peers.clone(), streams));
    let node = started.map_err(|error| ending::not_started(&directory, error))?;
    let handle = node.handle();
    peers.serve_node(handle.clone());
    let mut fatal = handle.fatal();
    streams.spawn(end_what_hangs(handle.fatal()));

    let guardian = guarding::start(config, &identity, &handle, work)?;
    let mounts = MountTable::new(handle.clone(), guardian.clone(), config, work);
    let peer_service = PeerService::new(identity.cluster, handle.clone(), genesis);
    let bulk = BulkService::new(identity.cluster, handle.clone());
    let bulk = (bulk, work.clone());
    let admin = AdminService::new(identity.cluster, handle, Arc::new(mounts.clone()));
    if let Some(address) = config.metrics {
        work.spawn(rpc::serve_metrics(address, admin.clone())).await??;
    }
    drop(starting);
    let (stop_server, server_stopped) = tokio::sync::oneshot::channel::<()>();
    let server = streams.spawn(rpc::serve(listener, peer_service, admin, bulk, async move {
        let _ = server_stopped.await;
    }));

    tokio::select! {
        biased;
        _ = fatal.wait_for(Option::is_some) => {}
        served = mount_and_report(&mounts, &node, config.on_quorum_loss) => served?,
        () = &mut stopping => {}
    }

    telemetry::notify_stopping();
    tracing::info!("stopping");
    stop(&directory, node, &mounts).await?;
    guarding::stop(guardian).await;
    let _ = stop_server.send(());
    // Streams of peers end with the process.
    server.abort();
    Ok(())
}

/// Returns where the mount of the configuration cannot be made.
async fn mount_and_report(
    mounts: &MountTable,
    node: &Node,
    on_quorum_loss: OnQuorumLoss,
) -> Result<()> {
    // Without a quorum, too: programs then get what the configuration says, and not an empty directory.
    let mounts = mounts.clone();
    tokio::spawn(async move { mounts.mount_configured().await }).await??;
    report(node, on_quorum_loss).await;
    Ok(())
}

/// Has `work` spawn what it spawns in another runtime.
fn within<T>(runtime: &tokio::runtime::Handle, work: impl FnOnce() -> T) -> T {
    let _entered = runtime.enter();
    work()
}

/// Ends in good order. It may fail while it stops, too: then it ends in the other way after all.
async fn stop(directory: &Arc<DataDir>, node: Node, mounts: &MountTable) -> Result<()> {
    let fatal = node.handle().fatal();
    let mut disk = disk::Asked::now(directory.clone());
    let stopped = if fatal.borrow().is_none() { mounts.stop().await } else { Ok(()) };
    let failed = fatal.borrow().clone();
    if let Some(failed) = failed {
        return Err(give_up(directory, &node, mounts, failed).await);
    }
    stopped?;
    let stopping = async {
        node.leave().await;
        node.stop().await
    };
    let ended = tokio::select! {
        ended = stopping => ended.map_err(|error| Fatal::from(&error)),
        () = disk.hangs() => {
            let path = directory.path().display();
            tracing::error!("the disk under {path} does not answer: the daemon ends as it is");
            std::process::exit(1);
        }
    };
    let failed = fatal.borrow().clone().or(ended.err());
    failed.map_or(Ok(()), |failed| Err(ending::ended(directory, failed)))
}

/// Once the replica has failed, also while it stops, a disk that does not answer is not waited for: whoever waits for this
/// daemon is not to.
async fn end_what_hangs(mut fatal: watch::Receiver<Option<Fatal>>) {
    if fatal.wait_for(Option::is_some).await.is_ok() {
        std::thread::spawn(|| {
            std::thread::sleep(GIVEN_UP);
            tracing::error!("something does not answer: the daemon ends as it is");
            std::process::exit(1);
        });
    }
}

/// The replica cannot go on. Nothing can be committed through it, so nobody is to wait for it.
async fn give_up(
    directory: &DataDir,
    node: &Node,
    mounts: &MountTable,
    why: Fatal,
) -> anyhow::Error {
    let error = ending::ended(directory, why);
    node.give_leadership_away(GIVING_UP).await;
    let _ = tokio::time::timeout(GIVING_UP, mounts.stop()).await;
    error
}

/// The record that newcomers start from. A node whose own is damaged serves all the same: they ask another one.
fn genesis(directory: &DataDir) -> Result<bytes::Bytes> {
    match directory.genesis() {
        Ok(record) => Ok(record.into()),
        Err(error @ StoreError::Corrupt { .. }) => {
            tracing::error!("{error}");
            Ok(bytes::Bytes::new())
        }
        Err(error) => Err(error.into()),
    }
}

/// Whoever filled the disk may make room again. A start in between would end where the last one did.
async fn until_there_is_room(
    directory: &DataDir,
    reserve: u64,
    starting: &Starting,
) -> Result<(), StoreError> {
    if let Err(error) = directory.remove_leftovers() {
        tracing::warn!("{error}");
    }
    let wanted = ending::was_full(directory).then(|| ROOM_AFTER_FULL.min(reserve));
    let (mut is_told, mut has_made_room) = (false, false);
    loop {
        let left = directory.available()?;
        let is_enough = match wanted {
            Some(wanted) => directory.takes_in(wanted)?,
            None => left >= ROOM_TO_START,
        };
        if is_enough {
            return Ok(());
        }
        if !std::mem::replace(&mut has_made_room, true) {
            store::make_room(directory)?;
            continue;
        }
        if !std::mem::replace(&mut is_told, true) {
            let path = directory.path().display();
            let wanted = wanted.unwrap_or(ROOM_TO_START);
            let line = format!(
                "the disk under {path} is full ({left} bytes are left, {wanted} are wanted, and some inodes; a quota may \
                 leave less): free some space; waiting"
            );
            starting.says(&line);
            tracing::error!("{line}");
        }
        tokio::time::sleep(FULL).await;
    }
}

/// Tells the service manager, and the log, whether a quorum answers: that the daemon is ready once one does, and how
/// it fares from then on. Runs for ever.
async fn report(node: &Node, on_quorum_loss: OnQuorumLoss) {
    let without = match on_quorum_loss {
        OnQuorumLoss::Error => "no quorum answers: calls fail at their deadline",
        OnQuorumLoss::Block => "no quorum answers: calls wait until one does",
    };
    let mut was_ready = false;
    loop {
        if !node.handle().has_quorum() {
            telemetry::notify_status(without);
            tracing::warn!("{without}");
        }
        node.until_serving().await;
        if !std::mem::replace(&mut was_ready, true) {
            telemetry::notify_ready();
        }
        telemetry::notify_status("serving");
        tracing::info!("serving");
        while node.handle().has_quorum() {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Resolves at SIGTERM or SIGINT.
fn told_to_stop() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// The thread of the core and its streams to the peers. Nothing on it ever waits for a disk or a
/// kernel: heartbeats must get through whatever the mount is busy with.
struct Streams {
    handle: tokio::runtime::Handle,
    /// Dropped to end the thread.
    _running: tokio::sync::oneshot::Sender<()>,
}

impl Streams {
    fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .thread_keep_alive(IDLE)
            .enable_all()
            .build()
            .context("cannot start the runtime of the streams")?;
        let handle = runtime.handle().clone();
        let (running, stopped) = tokio::sync::oneshot::channel();
        let body = move || {
            crate::node::run_promptly();
            // The sender is only ever dropped.
            let _ = runtime.block_on(stopped);
        };
        std::thread::Builder::new().name("core".to_owned()).spawn(body)?;
        Ok(Self { handle, _running: running })
    }
}

fn node_config(config: &Config, identity: &Identity, directory: &Arc<DataDir>) -> NodeConfig {
    NodeConfig {
        cluster: identity.cluster,
        directory: directory.clone(),
        core: CoreConfig::new(identity.node, config.session_ttl),
        op_timeout: config.op_timeout,
        on_quorum_loss: config.on_quorum_loss,
        snapshot_min_log: config.snapshot_min_log,
        max_log: config.max_log,
        reserve: config.reserve,
        heal_rate: config.heal_rate,
        compression: config.compression,
        strong: config.read == ReadMode::Strong,
    }
}

/// The data directory of an existing member, or that of a new one that has just joined.
async fn open(config: &Config) -> Result<DataDir> {
    if !DataDir::holds_replica(&config.data) {
        return join(config).await;
    }
    let data = config.data.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let directory = DataDir::open(&data)?;
        let is_removed = directory.is_removed()?;
        Ok::<_, StoreError>((directory, is_removed))
    });
    let (mut directory, is_removed) = opening.await??;
    if is_removed {
        return Err(StaysDown(Fatal::removed(directory.identity().node).reason).into());
    }
    if let Some(wanted) = config.cluster {
        let found = directory.identity().cluster;
        ensure!(
            found == wanted,
            "the data directory {} belongs to cluster {found}, not {wanted}: correct `cluster` or \
             `data` in the configuration",
            config.data.display()
        );
    }
    if directory.identity().address != config.address() {
        move_to(config, &mut directory).await?;
    }
    Ok(directory)
}

/// The others reach a node where its cluster says that it is. A daemon elsewhere works on the data of
/// another node, or on a copy, whose votes would count twice: unless they agree that the node has moved.
async fn move_to(config: &Config, directory: &mut DataDir) -> Result<()> {
    let identity = directory.identity().clone();
    let here = config.address();
    ensure!(
        !config.peers.is_empty(),
        "the data directory {} belongs to node {} at {}, but this daemon is at {here}: correct `data`, \
         `listen` or `advertise` in the configuration, or set `peers` to have the others told that the node has moved",
        config.data.display(),
        identity.node,
        identity.address
    );
    let (cluster, node) = (identity.cluster, Some(identity.node));
    match rpc::join(&config.peers, cluster, identity.nonce, &here, node).await {
        Err(JoinError::Removed(node)) => {
            return Err(ending::ended(directory, Fatal::removed(node)));
        }
        joined => joined?,
    };
    tracing::info!(
        node = identity.node.0,
        from = identity.address,
        to = here,
        "the node has moved"
    );
    Ok(directory.set_identity(Identity { address: here, ..identity })?)
}

async fn join(config: &Config) -> Result<DataDir> {
    let (Some(cluster), false) = (config.cluster, config.peers.is_empty()) else {
        bail!(
            "there is no replica in the data directory {}: run `quorumfs cluster init` to make a new cluster, or set \
             `cluster` and `peers` to join one",
            config.data.display()
        );
    };
    let nonce = store::joining_nonce(&config.data, rand::rng().random())?;
    let joined = rpc::join(&config.peers, cluster, nonce, &config.address(), None).await?;
    let identity = Identity { cluster, node: joined.node, nonce, address: config.address() };
    Ok(store::join_cluster(&config.data, identity, &joined.genesis)?)
}
