//! The guardian's own process: waits until its daemon is dead, fences its mounts, and has the peers told.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::fence::{self, Watching};
use super::protocol::{Order, Report, receive};
use super::sys;

/// Detaching takes no time, where no other file system on the way to a mount hangs.
const DETACH_PATIENCE: Duration = Duration::from_secs(1);

/// Runs until the daemon ends or dies. Its orders come by standard input. `tell` reports to the peers; it is called at most
/// once, when all mounts of a dead daemon are fenced.
///
/// # Errors
/// When an order cannot be understood or followed: the daemon then starts another guardian.
pub fn run(tell: impl FnOnce(&Report)) -> io::Result<()> {
    sys::ignore_requests_to_end();
    // What keeps no mount and no directory busy.
    std::env::set_current_dir("/")?;
    // People see it in `ps`; "exe" would be its name otherwise.
    let _ = rustix::thread::set_name(c"quorumfs-guard");
    let socket = io::stdin();
    let mut mounts = BTreeMap::new();
    let mut report = Report::default();
    while let Some((order, descriptors)) = receive(&socket.as_fd())? {
        match order {
            Order::Watch { mount, place } => {
                mounts.insert(mount, Watching::new(place, descriptors)?);
            }
            Order::Forget { mount } => drop(mounts.remove(&mount)),
            Order::Report(latest) => report = latest,
            Order::End => return Ok(()),
        }
    }
    fence(&mounts.into_values().collect::<Vec<_>>(), &report, tell);
    Ok(())
}

/// What is to be logged is logged in the end: the disk that takes it may be what killed the daemon.
fn fence(mounts: &[Watching], report: &Report, tell: impl FnOnce(&Report)) {
    let began = Instant::now();
    // All of them before any path is looked at: one may be mounted within another.
    mounts.iter().for_each(Watching::abort);
    let places: Vec<_> = mounts.iter().map(Watching::place).collect();
    let (detaching, detached) = crossbeam_channel::bounded::<()>(0);
    std::thread::spawn(move || {
        fence::detach(&places);
        drop(detaching);
    });
    // It ends when the sender goes; or it hangs, and ends with this process.
    let _ = detached.recv_timeout(DETACH_PATIENCE);
    let fenced: Vec<_> = mounts.iter().map(Watching::forget).collect();
    let took = began.elapsed();
    if report.session != 0 && fenced.iter().all(|fenced| *fenced) {
        tell(report);
    }
    for (mount, fenced) in mounts.iter().zip(fenced) {
        let point = mount.point();
        tracing::info!(point = %point.display(), fenced, ?took, "the daemon is dead: its mount was taken away");
    }
}
