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

/// Two flushes meet within a block: node 1 has the second one only, node 2 the first one only, and node 3, which has both,
/// is gone. Neither has a whole block there that the other one could have all of.
#[test]
fn each_gives_the_part_of_a_block_that_it_has() {
    let settings = ["heal_rate = \"64KiB\"", "op_timeout = \"5s\""];
    let cluster = Cluster::up_with(3, &settings);
    let (first, second) = (cluster.address(1), cluster.address(2));
    fs::write(cluster.mount(3).join("f"), b"").expect("create");
    cluster.settle();
    wait_until_complete(&first);
    have_lead(&cluster, 3);
    let wanted = pattern(7, 2 * BLOCKS * BLOCK);
    let middle = BLOCKS * BLOCK - 50_000;

    cluster.kill(1, "KILL");
    write_at(&cluster, 3, 0, &wanted[..middle]);
    cluster.start(1);
    let lacking = (BLOCKS * BLOCK / 2) as u64;
    wait_until(PATIENCE, "node 1 to know what it lacks", || {
        (missing_bytes(&first) > lacking && status(&first)["has_quorum"] == true).then_some(())
    });
    cluster.kill(2, "KILL");
    write_at(&cluster, 3, middle, &wanted[middle..]);
    cluster.kill(3, "KILL");
    cluster.start(2);
    wait_until(PATIENCE, "node 2 to know what it lacks", || {
        let lacks = missing_bytes(&second);
        (lacks > 0 && status(&second)["has_quorum"] == true).then_some(())
    });
    assert!(missing_bytes(&first) > lacking && missing_bytes(&second) > lacking);

    let mut bytes = vec![0; 2 * BLOCK];
    for node in [1, 2] {
        let file = File::open(cluster.mount(node).join("f")).expect("open");
        file.read_exact_at(&mut bytes, (middle - BLOCK) as u64).expect("read");
        let when = format!("on node {node}");
        assert_bytes(&bytes, &wanted[middle - BLOCK..middle + BLOCK], &when);
    }
}
