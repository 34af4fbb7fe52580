//! Bytes of which no node has all: one has these, another one those.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::healing::{missing_bytes, status, wait_until_complete};
use super::support::{Cluster, PATIENCE, quorumfs, wait_until};
use super::{assert_bytes, pattern};

const BLOCK: usize = 128 << 10;
/// Far more than is healed while the test runs.
const BLOCKS: usize = 64;

/// Has a node lead.
fn have_lead(cluster: &Cluster, node: u64) {
    wait_until(PATIENCE, "that node to lead", || {
        let leader = cluster.leader();
        if leader != node {
            let (to, at) = (node.to_string(), cluster.address(leader));
            quorumfs().args(["leader", "transfer", &to, "--addr", &at]).output().expect("it runs");
        }
        (leader == node).then_some(())
    });
}

fn write_at(cluster: &Cluster, node: u64, offset: usize, bytes: &[u8]) {
    let file = File::options().write(true).open(cluster.mount(node).join("f")).expect("open");
    file.write_all_at(bytes, offset as u64).expect("write");
    file.sync_all().expect("fsync");
}

fn until_lacking(cluster: &Cluster, node: u64, more_than: u64) {
    let address = cluster.address(node);
    wait_until(PATIENCE, "a node to know what it lacks", || {
        let lacks = missing_bytes(&address) > more_than;
        (lacks && status(&address)["has_quorum"] == true).then_some(())
    });
}

/// Two flushes meet within a block: node 1 has the second one only, node 2 the first one only, node 5 has neither, and
/// nodes 3 and 4, which have both, are gone. None has a whole block there that another one could have all of.
#[test]
fn each_gives_the_part_of_a_block_that_it_has() {
    let settings = ["heal_rate = \"64KiB\"", "op_timeout = \"5s\""];
    let cluster = Cluster::up_with(5, &settings);
    fs::write(cluster.mount(3).join("f"), b"").expect("create");
    cluster.settle();
    wait_until_complete(&cluster.address(1));
    have_lead(&cluster, 3);
    let wanted = pattern(7, 2 * BLOCKS * BLOCK);
    let middle = BLOCKS * BLOCK - 50_000;
    let half = (BLOCKS * BLOCK / 2) as u64;

    cluster.kill(5, "KILL");
    cluster.kill(1, "KILL");
    write_at(&cluster, 3, 0, &wanted[..middle]);
    cluster.start(1);
    until_lacking(&cluster, 1, half);
    cluster.kill(2, "KILL");
    write_at(&cluster, 3, middle, &wanted[middle..]);
    // What it may get from them meanwhile is at the beginning of the file.
    cluster.start(5);
    cluster.kill(3, "KILL");
    cluster.kill(4, "KILL");
    cluster.start(2);
    until_lacking(&cluster, 2, half);
    until_lacking(&cluster, 5, 3 * half);
    until_lacking(&cluster, 1, half);

    let mut bytes = vec![0; 2 * BLOCK];
    for node in [5, 1, 2] {
        let file = File::open(cluster.mount(node).join("f")).expect("open");
        file.read_exact_at(&mut bytes, (middle - BLOCK) as u64).expect("read");
        let when = format!("on node {node}");
        assert_bytes(&bytes, &wanted[middle - BLOCK..middle + BLOCK], &when);
    }
}
