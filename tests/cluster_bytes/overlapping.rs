//! Writers on three mounts that overwrite each other, in flushes large and small, while nodes are killed.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::staged::assert_backing;
use super::support::{Cluster, PATIENCE, wait_until};

const SIZE: usize = 6 << 20;
/// Every cell says by which write it came, and where it belongs.
const CELL: usize = 16;

/// One write: who, which, where.
#[derive(Clone, Copy, Debug)]
struct Flush {
    writer: u32,
    number: u32,
    start: usize,
    len: usize,
}

impl Flush {
    fn random(writer: u32, number: u32, random: &mut StdRng) -> Self {
        // Some travel in the log, others beside it.
        let largest = [512, 8 << 10, 60 << 10, 200 << 10, 1 << 20][random.random_range(0..5)];
        let len = random.random_range(1..=largest / CELL) * CELL;
        let start = random.random_range(0..=(SIZE - len) / CELL) * CELL;
        Self { writer, number, start, len }
    }

    fn bytes(self) -> Vec<u8> {
        let cell = |at: usize| {
            let mut cell = [0; CELL];
            cell[..4].copy_from_slice(&self.writer.to_le_bytes());
            cell[4..8].copy_from_slice(&self.number.to_le_bytes());
            cell[8..].copy_from_slice(&(at as u64).to_le_bytes());
            cell
        };
        (self.start..self.start + self.len).step_by(CELL).flat_map(cell).collect()
    }

    fn covers(self, at: usize) -> bool {
        (self.start..self.start + self.len).contains(&at)
    }
}

/// Each cell is one of the writes that were tried, where it belongs.
fn assert_cells(bytes: &[u8], tried: &[Vec<Flush>]) {
    for (number, cell) in bytes.chunks(CELL).enumerate() {
        let at = number * CELL;
        let field = |from: usize| u32::from_le_bytes(cell[from..from + 4].try_into().expect("4"));
        let (writer, number) = (field(0) as usize, field(4) as usize);
        let place = u64::from_le_bytes(cell[8..].try_into().expect("8"));
        let flush = tried.get(writer).and_then(|flushes| flushes.get(number));
        let is_its = flush.is_some_and(|flush| flush.covers(at)) && place == at as u64;
        assert!(is_its, "byte {at} has {cell:02x?}, of {flush:?}");
    }
}

/// Opens, writes and flushes; false where the node is away.
fn carry_out(path: &Path, flush: Flush, durably: bool) -> bool {
    let written = File::options().write(true).open(path).and_then(|file| {
        file.write_all_at(&flush.bytes(), flush.start as u64)?;
        if durably { file.sync_all() } else { file.set_modified(std::time::SystemTime::now()) }
    });
    written.is_ok()
}

/// `flushes` in all, and a node killed and started again each time so many more are done.
fn overlap(flushes: usize, kill_every: usize) {
    let cluster = Cluster::up(3);
    let first = Flush { writer: 0, number: 0, start: 0, len: SIZE };
    fs::write(cluster.mount(1).join("f"), first.bytes()).expect("write");
    let (done, killed, over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let mut tried = vec![vec![first]];
    std::thread::scope(|scope| {
        let writers: Vec<_> = (1..=3_u32)
            .map(|writer| {
                let (path, done) = (cluster.mount(writer.into()).join("f"), &done);
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(writer.into());
                    let mut tried = Vec::new();
                    while done.load(Ordering::Relaxed) < flushes {
                        let number = u32::try_from(tried.len()).expect("few");
                        let flush = Flush::random(writer, number, &mut random);
                        tried.push(flush);
                        if carry_out(&path, flush, random.random_bool(0.3)) {
                            done.fetch_add(1, Ordering::Relaxed);
                        } else {
                            std::thread::sleep(Duration::from_millis(50));
                        }
                    }
                    tried
                })
            })
            .collect();
        let killer = scope.spawn(|| {
            let mut random = StdRng::seed_from_u64(99);
            while !over.load(Ordering::Relaxed) {
                let next = (killed.load(Ordering::Relaxed) + 1) * kill_every;
                if done.load(Ordering::Relaxed) < next {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                let node = random.random_range(1..=3);
                cluster.kill(node, "KILL");
                std::thread::sleep(Duration::from_millis(random.random_range(0..1500)));
                cluster.start(node);
                cluster.settle_mounts();
                killed.fetch_add(1, Ordering::Relaxed);
            }
        });
        for writer in writers {
            tried.push(writer.join().expect("a writer"));
        }
        over.store(true, Ordering::Relaxed);
        killer.join().expect("the killer");
    });
    assert!(killed.load(Ordering::Relaxed) > 0, "nobody was killed");
    cluster.settle();
    let found = fs::read(cluster.mount(1).join("f")).expect("read");
    assert_eq!(found.len(), SIZE);
    assert_cells(&found, &tried);
    for node in 2..=3 {
        assert!(fs::read(cluster.mount(node).join("f")).expect("read") == found, "node {node}");
    }
    assert_backing(&cluster, &cluster.mount(1).join("f"), &found);
    let ino = fs::metadata(cluster.mount(1).join("f")).expect("stat").ino();
    wait_until(PATIENCE, "stages to be merged", || {
        (cluster.backing_files(ino).len() == 3).then_some(())
    });
}

#[test]
fn overlapping_writers_and_kills() {
    overlap(600, 150);
}

/// The same, for long.
#[test]
#[ignore = "long"]
fn many_overlapping_writers_and_kills() {
    overlap(10_000, 400);
}
