//! What a daemon uses at one moment.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::support::Cluster;

/// What is measured: how it is called, and whether in bytes.
pub const MEASURES: [(&str, bool); 8] = [
    ("memory (RSS)", true),
    ("descriptors", false),
    ("threads", false),
    ("Raft log", true),
    ("snapshot", true),
    ("state (sled)", true),
    ("files and stages", true),
    ("whole data directory", true),
];
/// Which of them the threads are.
pub const THREADS: usize = 2;

/// Of one daemon.
#[derive(Clone, Debug)]
pub struct Sample {
    pub at: Duration,
    pub node: u64,
    /// As `MEASURES` has them.
    pub values: [u64; MEASURES.len()],
    /// Of the whole machine, which others may use too.
    pub kernel: u64,
}

impl Sample {
    /// Of all daemons that run.
    pub fn of_all(cluster: &Cluster, at: Duration) -> Vec<Self> {
        let nodes = cluster.status().nodes.into_iter().filter(|node| node.pid != 0);
        let data = |node: u64| cluster.dir().join(format!("n{node}/data"));
        nodes.filter_map(|node| Self::of(&data(node.id), node.id, node.pid, at)).collect()
    }

    /// Nothing where it dies meanwhile.
    fn of(data: &Path, node: u64, pid: i32, at: Duration) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        let threads = field(&status, "Threads:")?;
        let states = fs::read_dir(data).ok()?.flatten();
        let states = states.filter(|dir| dir.file_name().to_string_lossy().starts_with("state-"));
        let values = [
            field(&status, "VmRSS:")? << 10,
            descriptors,
            threads,
            used(&data.join("log")),
            used(&data.join("snapshots")),
            states.map(|dir| used(&dir.path())).sum(),
            used(&data.join("files")) + used(&data.join("stages")),
            used(data),
        ];
        let kernel = fs::read_to_string("/proc/meminfo").ok()?;
        Some(Self { at, node, values, kernel: field(&kernel, "Slab:")? << 10 })
    }
}

/// `NAME   NUMBER…`, as /proc has it.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// What a directory takes on the disk. What goes meanwhile takes nothing.
fn used(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match fs::symlink_metadata(entry.path()) {
            Ok(found) if found.is_dir() => used(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
