//! The daemon's side: starts the guardian, tells it everything, and starts another one when it dies.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use parking_lot::Mutex;

use super::protocol::{self, Order, Place, Report};
use super::watched::Watched;

/// This program itself, also where its file was replaced meanwhile.
const PROGRAM: &str = "/proc/self/exe";
/// Between two attempts to start a guardian.
const AGAIN: Duration = Duration::from_millis(500);
/// A guardian that is told to end does so within this time.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// The guardian of this daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Guardian(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Where it logs beside standard error.
    log: Option<PathBuf>,
    state: Mutex<State>,
    /// The thread that waits for its death has ended when nobody can send here any more.
    ended: Receiver<()>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Running>,
    /// Everything that another guardian has to be told.
    mounts: BTreeMap<u64, Mounted>,
    report: Option<Report>,
    last_mount: u64,
    stopping: bool,
}

#[derive(Debug)]
struct Running {
    child: Child,
    socket: Arc<OwnedFd>,
}

#[derive(Debug)]
struct Mounted {
    place: Place,
    fuse: OwnedFd,
    watched: Arc<Watched>,
}

/// A mount that is watched until this is dropped.
#[derive(Debug)]
pub struct Watch {
    guardian: Guardian,
    mount: u64,
}

impl Guardian {
    /// Starts the guardian, and the thread that mends its death.
    ///
    /// # Errors
    /// When there can be no process or no thread.
    pub fn start(log: Option<&Path>) -> io::Result<Self> {
        let (ending, ended) = bounded(0);
        let log = log.map(std::path::absolute).transpose()?;
        let shared = Arc::new(Shared { log, state: Mutex::default(), ended });
        let socket = shared.spawn(&mut shared.state.lock())?;
        let kept = shared.clone();
        let body = move || {
            kept.keep(socket);
            drop::<crossbeam_channel::Sender<()>>(ending);
        };
        std::thread::Builder::new().name("guardian".into()).spawn(body)?;
        Ok(Self(shared))
    }

    /// Watches a mount, which is in the tree and not served yet. Its descriptor is that of FUSE.
    ///
    /// # Errors
    /// When the mount is not in the tree, or there can be no further descriptor.
    pub fn watch(
        &self,
        point: &Path,
        fuse: BorrowedFd<'_>,
        watched: Arc<Watched>,
    ) -> io::Result<Watch> {
        let place = Place::of(point)?.ok_or(io::ErrorKind::NotFound)?;
        let mounted = Mounted { place, fuse: fuse.try_clone_to_owned()?, watched };
        let mut state = self.0.state.lock();
        state.last_mount += 1;
        let mount = state.last_mount;
        let (order, descriptors) = mounted.order(mount);
        state.tell(&order, &descriptors);
        state.mounts.insert(mount, mounted);
        Ok(Watch { guardian: self.clone(), mount })
    }

    /// Whom to tell what when this daemon has died. A word that comes too late does no harm: a session that
    /// has ended by then is no news, and one that is not named lives for its TTL.
    pub fn set_report(&self, report: Report) {
        let mut state = self.0.state.lock();
        if state.report.as_ref() != Some(&report) {
            state.tell(&Order::Report(report.clone()), &[]);
            state.report = Some(report);
        }
    }

    /// Whether there is one at present.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.0.state.lock().running.is_some()
    }

    /// The session is closed: the guardian ends, and nobody is told anything. Where programs in other namespaces still hold on
    /// to a mount it stays, and fences that when this process is gone. Blocks for a moment.
    pub fn stop(&self) {
        {
            let mut state = self.0.state.lock();
            if !state.mounts.is_empty() {
                return;
            }
            state.stopping = true;
            state.tell(&Order::End, &[]);
        }
        if self.0.ended.recv_timeout(END_PATIENCE)
            == Err(crossbeam_channel::RecvTimeoutError::Timeout)
        {
            self.0.state.lock().give_up();
        }
    }
}

impl Shared {
    /// Waits for the guardian's death, again and again.
    fn keep(&self, mut socket: Arc<OwnedFd>) {
        loop {
            let began = Instant::now();
            // It never says anything.
            let _ = protocol::receive(&socket);
            {
                let mut state = self.state.lock();
                let Some(Running { mut child, .. }) = state.running.take() else { return };
                // It is dead already, or of no use.
                let _ = child.kill();
                let status = child.wait();
                if state.stopping {
                    return;
                }
                tracing::error!(?status, "the guardian has died: starting another one");
            }
            std::thread::sleep(AGAIN.saturating_sub(began.elapsed()));
            socket = loop {
                let mut state = self.state.lock();
                if state.stopping {
                    return;
                }
                match self.spawn(&mut state) {
                    Ok(socket) => break socket,
                    Err(error) => tracing::error!(%error, "cannot start a guardian"),
                }
                drop(state);
                std::thread::sleep(AGAIN);
            };
        }
    }

    /// Starts a guardian and tells it everything, in this order: what it may report, it reports only once it knows all mounts.
    fn spawn(&self, state: &mut State) -> io::Result<Arc<OwnedFd>> {
        let (socket, theirs) = protocol::pair()?;
        let mut command = Command::new(PROGRAM);
        command.arg0("quorumfs").args(["guardian", "--of", &std::process::id().to_string()]);
        if let Some(log) = &self.log {
            command.arg("--log").arg(log);
        }
        // In a process group of its own: an interrupt from the terminal is for the daemon.
        command.process_group(0).stdin(theirs).stdout(Stdio::null());
        // Readiness is the daemon's to tell.
        command.env_remove("NOTIFY_SOCKET");
        let child = command.spawn()?;
        tracing::info!(pid = child.id(), "guardian started");
        let socket = Arc::new(socket);
        state.running = Some(Running { child, socket: socket.clone() });
        state.tell_everything();
        Ok(socket)
    }
}

impl State {
    fn tell_everything(&mut self) {
        let mounts = std::mem::take(&mut self.mounts);
        for (mount, mounted) in &mounts {
            let (order, descriptors) = mounted.order(*mount);
            self.tell(&order, &descriptors);
        }
        self.mounts = mounts;
        if let Some(report) = self.report.clone() {
            self.tell(&Order::Report(report), &[]);
        }
    }

    /// Tells the guardian, where there is one. One that cannot be told something must not live on: it would say that
    /// everything is fenced and not know of everything.
    fn tell(&mut self, order: &Order, descriptors: &[BorrowedFd<'_>]) {
        let Some(running) = &self.running else { return };
        if let Err(error) = protocol::send(&running.socket, order, descriptors) {
            tracing::warn!(%error, "the guardian does not listen");
            self.give_up();
        }
    }

    /// Ends it; whoever waits for its death then starts another one.
    fn give_up(&mut self) {
        if let Some(running) = &mut self.running {
            // It may have died just now.
            let _ = running.child.kill();
        }
    }
}

impl Mounted {
    fn order(&self, mount: u64) -> (Order, [BorrowedFd<'_>; 2]) {
        let order = Order::Watch { mount, place: self.place.clone() };
        (order, [self.fuse.as_fd(), self.watched.as_fd()])
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.guardian.0.state.lock();
        state.mounts.remove(&self.mount);
        state.tell(&Order::Forget { mount: self.mount }, &[]);
    }
}
