//! `O_SYNC` and `O_DSYNC`: what write(2) has answered is seen by others and survives everybody's death.

use std::fs;
use std::os::unix::fs::FileExt;
use std::thread;

use super::support::Cluster;
use super::support::python::Python;
use super::{assert_bytes, open, pattern};

const FLAGS: [i32; 5] = [
    libc::O_SYNC,
    libc::O_DSYNC,
    libc::O_SYNC | libc::O_DIRECT,
    libc::O_SYNC | libc::O_APPEND,
    libc::O_DSYNC | libc::O_APPEND,
];

/// The last one is more than one request.
const LENGTHS: [usize; 4] = [1, 4096, 5000, (2 << 20) + 1];

#[test]
fn a_synchronous_write_is_seen_elsewhere_once_it_returns() {
    let cluster = Cluster::up(3);
    for (number, flags) in FLAGS.into_iter().enumerate() {
        let name = format!("f{number}");
        let file = open(&cluster.mount(1).join(&name), flags);
        let mut wanted = Vec::new();
        for (round, len) in LENGTHS.into_iter().cycle().take(12).enumerate() {
            let bytes = pattern(round, len);
            // Appended, or over the last bytes that are there.
            let offset = wanted.len() - if flags & libc::O_APPEND == 0 { round % 3 } else { 0 };
            wanted.resize(wanted.len().max(offset + len), 0);
            wanted[offset..offset + len].copy_from_slice(&bytes);
            file.write_all_at(&bytes, offset as u64).expect("write");
            let node = 2 + round as u64 % 2;
            let found = fs::read(cluster.mount(node).join(&name)).expect("read");
            assert_bytes(&found, &wanted, &format!("{flags:o}, {len} bytes, on mount {node}"));
        }
    }
    // The same for a single call.
    let mut python = Python::start("python3", &cluster.mount(1));
    python.does("import os; file = os.open('single', os.O_RDWR | os.O_CREAT)");
    for round in 0..10 {
        let flag = ["os.RWF_DSYNC", "os.RWF_SYNC"][round % 2];
        python.does(&format!("os.pwritev(file, [b'{round:05}'], 0, {flag})"));
        let found = fs::read(cluster.mount(2).join("single")).expect("read");
        assert_eq!(found, format!("{round:05}").as_bytes(), "{flag}");
    }
    cluster.settle();
}

/// Without fsync and close.
#[test]
fn a_synchronous_write_survives_the_death_of_all() {
    let cluster = Cluster::up(3);
    let mut written = Vec::new();
    let mut files = Vec::new();
    for (number, flags) in FLAGS.into_iter().enumerate() {
        for node in 1..=3 {
            let name = format!("f{number}-n{node}");
            let file = open(&cluster.mount(node).join(&name), flags);
            let mut wanted = Vec::new();
            for len in LENGTHS {
                let bytes = pattern(number, len);
                file.write_all_at(&bytes, wanted.len() as u64).expect("write");
                wanted.extend_from_slice(&bytes);
            }
            written.push((name, wanted));
            files.push(file);
        }
    }
    thread::scope(|killers| {
        for node in 1..=3 {
            let cluster = &cluster;
            killers.spawn(move || cluster.kill(node, "KILL"));
        }
    });
    drop(files);
    cluster.up_again();
    for node in 1..=3 {
        for (name, wanted) in &written {
            let found = fs::read(cluster.mount(node).join(name)).expect("read");
            assert_bytes(&found, wanted, &format!("{name} on mount {node}"));
        }
    }
    cluster.settle();
}
