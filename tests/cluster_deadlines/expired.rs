//! A node that stood still goes on in another session: what its programs had asked for meanwhile is done, where it depended on
//! no lock, no file without a name and no bytes that were staged.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::support::Cluster;
use super::{WAITING, nodes, status_of};

/// Three times what a session lives for without a word of its node.
const STOPPED: Duration = Duration::from_secs(3);
/// For all to be at work, and for what was held up to be done.
const AWHILE: Duration = Duration::from_millis(1500);

/// What a program does again and again, on a path of its own.
type Work = (&'static str, fn(&Path) -> io::Result<()>);

const WORKS: [Work; 5] = [
    ("chmod", |path| {
        File::create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))
    }),
    ("rename", |path| {
        let other = path.with_extension("other");
        File::create(path)?;
        fs::rename(path, &other)?;
        fs::rename(&other, path)
    }),
    ("mkdir", |path| fs::create_dir(path).and_then(|()| fs::remove_dir(path))),
    ("create", |path| File::create_new(path).map(drop).and_then(|()| fs::remove_file(path))),
    ("write", |path| {
        let mut file = File::create(path)?;
        file.write_all(&[b'x'; 100])?;
        file.sync_all()
    }),
];

fn pid(cluster: &Cluster, node: u64) -> Pid {
    let pid = status_of(&cluster.address(node))["pid"].as_i64().and_then(|pid| pid.try_into().ok());
    Pid::from_raw(pid.expect("a number")).expect("a pid")
}

/// None of them fails while `stopped` are.
fn go_on(cluster: &Cluster, node: u64, stopped: &[u64]) {
    let mount = cluster.mount(node);
    let pids: Vec<Pid> = stopped.iter().map(|node| pid(cluster, *node)).collect();
    // Not by another process: a child that is started closes copies of what is open here, and waits for the mount.
    let signal = |signal: Signal| {
        for pid in &pids {
            kill_process(*pid, signal).expect("it runs");
        }
    };
    let is_over = AtomicBool::new(false);
    let repeat = |(name, work): Work| {
        let path = mount.join(format!("{name}-{}", stopped.len()));
        let mut times = 0;
        while !is_over.load(Ordering::Relaxed) {
            work(&path).unwrap_or_else(|error| panic!("{name}, after {times} times: {error}"));
            times += 1;
        }
        times
    };
    thread::scope(|scope| {
        let works = WORKS.map(|work| scope.spawn(move || repeat(work)));
        sleep(AWHILE);
        signal(Signal::STOP);
        sleep(STOPPED);
        signal(Signal::CONT);
        sleep(AWHILE);
        is_over.store(true, Ordering::Relaxed);
        for work in works {
            let times = work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            assert!(times > 1, "it was done {times} times");
        }
    });
}

#[test]
fn what_is_asked_for_while_a_node_stands_still_is_done_afterwards() {
    let cluster = Cluster::up_with(3, &WAITING);
    let (node, others) = nodes(&cluster);
    go_on(&cluster, node, &[node]);
    // The leader too: that it heard nobody is nobody's fault.
    go_on(&cluster, node, &others);
}
