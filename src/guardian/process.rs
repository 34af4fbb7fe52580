//! The guardian's own process: waits until its daemon is dead, fences its mounts, and has the peers told.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use super::fence::Watching;
use super::protocol::{Order, Report, receive};

/// Runs until the daemon ends or dies. Its orders come by standard input. `tell` reports to the peers; it is called at most
/// once, when all mounts of a dead daemon are fenced.
///
/// # Errors
/// When an order cannot be understood or followed: the daemon then starts another guardian.
pub fn run(tell: impl FnOnce(Report)) -> io::Result<()> {
    // What keeps no mount and no directory busy.
    std::env::set_current_dir("/")?;
    // People see it in `ps`; "exe" would be its name otherwise.
    let _ = rustix::thread::set_name(c"quorumfs-guard");
    let socket = io::stdin();
    let mut mounts = BTreeMap::new();
    let mut report = Report::default();
    while let Some((order, descriptors)) = receive(&socket.as_fd())? {
        match order {
            Order::Watch { mount, place, alias } => {
                mounts.insert(mount, Watching::new(place, alias, descriptors)?);
            }
            Order::Forget { mount } => drop(mounts.remove(&mount)),
            Order::Report(latest) => report = latest,
            Order::End => return Ok(()),
        }
    }
    let began = Instant::now();
    let mut all = true;
    // The oldest first: what is mounted within it goes with it.
    for watching in mounts.into_values() {
        let point = watching.point();
        let fenced = watching.fence();
        let took = began.elapsed();
        tracing::info!(point = %point.display(), fenced, ?took, "the daemon is dead: its mount was taken away");
        all &= fenced;
    }
    if all && report.session != 0 {
        tell(report);
    }
    Ok(())
}
