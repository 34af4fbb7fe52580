//! Bytes that were closed and never synced may go with the power of all: nobody is given anything else in their place.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::Value;

use super::support::{PATIENCE, quorumfs, succeed, wait_until, write_and_close};
use super::{Machines, NODES};

/// How long a read waits for a node that has the bytes.
pub const SETTING: &str = "op_timeout = \"5s\"";

const NAME: &str = "doubtful";
const BLOCK: usize = 128 << 10;
/// So many that they are not in place anywhere yet when the last one is closed.
const BLOCKS: usize = 24 * 8;

/// A file that was closed just before.
#[derive(Debug)]
pub struct Doubtful {
    ino: u64,
}

impl Doubtful {
    pub fn write(mount: &Path) -> Self {
        let bytes: Vec<u8> = (0..BLOCKS).flat_map(block).collect();
        write_and_close(&mount.join(NAME), &bytes).expect("write");
        Self { ino: fs::metadata(mount.join(NAME)).expect("stat").ino() }
    }

    /// The disk of a node loses what it need not have: stages.
    pub fn lose_stages(data: &Path) {
        let stages = ["new", "written"].map(|kind| data.join("stages").join(kind));
        let stages = stages.iter().flat_map(|dir| fs::read_dir(dir).expect("readdir").flatten());
        for stage in stages.map(|stage| stage.path()) {
            let bytes = fs::read(&stage).expect("read");
            if bytes.windows(MARK.len()).any(|part| part == MARK) {
                fs::remove_file(stage).expect("unlink");
            }
        }
    }

    /// On all mounts, to everybody; then it goes. Answers whether something of it was lost.
    pub fn check(&self, machines: &Machines) -> bool {
        let lost = thread::scope(|readers| {
            let reader = |mount: &PathBuf| {
                let path = mount.join(NAME);
                readers.spawn(move || lost_in(&path))
            };
            let all: Vec<_> = machines.mounts.iter().map(reader).collect();
            all.into_iter().map(|one| one.join().expect("a reader")).collect::<Vec<_>>()
        });
        assert_eq!(lost, [lost[0]; NODES.len()]);
        for node in NODES {
            let address = machines.cluster.address(node);
            wait_until(PATIENCE, "what is lost to be listed, and nothing else", || {
                (listed(&address).contains(&self.ino) == lost[0]).then_some(())
            });
        }
        fs::remove_file(machines.mounts[2].join(NAME)).expect("what is lost can be removed");
        lost[0]
    }
}

/// The inodes that lack what no connected node has.
fn listed(address: &str) -> Vec<u64> {
    let output = succeed(quorumfs().args(["status", "--json", "--addr", address]));
    let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let nowhere = status["missing"]["nowhere"].as_array().expect("a list");
    nowhere.iter().map(|range| range["ino"].as_u64().expect("a number")).collect()
}

/// In each block.
const MARK: &[u8] = b"of what is in doubt";

fn block(number: usize) -> Vec<u8> {
    format!("block {number} of what is in doubt\n")
        .into_bytes()
        .into_iter()
        .cycle()
        .take(BLOCK)
        .collect()
}

/// Whether some of it is an error; everything else is what was written.
fn lost_in(path: &Path) -> bool {
    let file = File::open(path).expect("open");
    let length = file.metadata().expect("stat").len();
    assert_eq!(length, (BLOCKS * BLOCK) as u64, "it was closed");
    for number in 0..BLOCKS {
        let mut found = vec![0; BLOCK];
        match file.read_exact_at(&mut found, (number * BLOCK) as u64) {
            // Each further error takes as long.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return true,
            Err(error) => panic!("{}, block {number}: {error}", path.display()),
            Ok(()) => assert!(found == block(number), "{}, block {number}", path.display()),
        }
    }
    false
}
