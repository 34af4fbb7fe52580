//! Files without a name: readable and writable on every mount that has them open, until the last close.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::support::{Cluster, PATIENCE, wait_until};
use super::{assert_bytes, content, open, pattern};

const LEN: usize = 300_000;

/// Bytes are visible to opens that begin afterwards; a name there is none.
fn open_again(file: &File) -> File {
    open(format!("/proc/self/fd/{}", file.as_raw_fd()).as_ref(), 0)
}

fn wait_until_gone(cluster: &Cluster, ino: u64) {
    wait_until(PATIENCE, "its bytes to be gone on every node", || {
        cluster.backing_files(ino).is_empty().then_some(())
    });
}

#[test]
fn a_file_without_a_name_lives_until_its_last_close() {
    let cluster = Cluster::up(3);
    let [one, two, three] = [1, 2, 3].map(|node| cluster.mount(node));
    for name in ["f", "marker"] {
        fs::write(one.join(name), pattern(0, LEN)).expect("write");
    }
    let ino = fs::metadata(one.join("f")).expect("stat").ino();
    let files = [open(&one.join("f"), 0), open(&two.join("f"), 0)];
    let marker = File::open(one.join("marker")).expect("open");
    let marker_ino = marker.metadata().expect("fstat").ino();
    // Unlinked by a mount that has neither open, and the name is used again at once.
    for name in ["f", "marker"] {
        fs::remove_file(three.join(name)).expect("unlink");
    }
    fs::write(three.join("f"), "another").expect("write");
    let mut wanted = pattern(0, LEN);
    for round in 1..=6 {
        let (writer, reader) = (&files[round % 2], &files[(round + 1) % 2]);
        let (bytes, offset) = (pattern(round, 5000), round * 60_000);
        writer.write_all_at(&bytes, offset as u64).expect("write");
        wanted.resize(wanted.len().max(offset + 5000), 0);
        wanted[offset..offset + 5000].copy_from_slice(&bytes);
        if round % 3 == 0 {
            writer.set_len(wanted.len() as u64 - 1000).expect("ftruncate");
            wanted.truncate(wanted.len() - 1000);
        }
        writer.sync_all().expect("fsync");
        assert_bytes(&content(&open_again(reader)), &wanted, &format!("round {round}"));
        let stat = reader.metadata().expect("fstat");
        assert_eq!((stat.nlink(), stat.len()), (0, wanted.len() as u64));
    }

    let [first, last] = files;
    drop((first, marker));
    // Once that is gone everybody knows what the first mount has closed.
    wait_until_gone(&cluster, marker_ino);
    assert_eq!(cluster.backing_files(ino).len(), 3);
    last.write_all_at(b"still written", 10).expect("write");
    last.sync_all().expect("fsync");
    wanted[10..23].copy_from_slice(b"still written");
    assert_bytes(&content(&open_again(&last)), &wanted, "by the last one who has it open");
    drop(last);
    wait_until_gone(&cluster, ino);
    for mount in [one, two, three] {
        assert_eq!(fs::read_to_string(mount.join("f")).expect("read"), "another");
    }
    cluster.settle();
}

/// A mapping holds a file as a descriptor does, and a node's death takes only its own hold.
#[test]
fn a_file_without_a_name_outlives_a_node_that_had_it_open() {
    let cluster = Cluster::up(3);
    let (leader, own) = (cluster.leader(), cluster.follower());
    let other = 6 - leader - own;
    fs::write(cluster.mount(own).join("f"), pattern(0, LEN)).expect("write");
    let ino = fs::metadata(cluster.mount(own).join("f")).expect("stat").ino();
    let mut python = super::support::python::Python::start("python3", &cluster.mount(own));
    python.does("import mmap, os; file = os.open('f', os.O_RDWR); m = mmap.mmap(file, 0)");
    python.does("os.close(file)");
    let theirs = File::open(cluster.mount(other).join("f")).expect("open");
    fs::remove_file(cluster.mount(leader).join("f")).expect("unlink");
    cluster.kill(other, "KILL");
    drop(theirs);
    cluster.start(other);
    cluster.settle();
    assert_eq!(cluster.backing_files(ino).len(), 3);
    python.does("m[:5] = b'alive'; m.flush()");
    assert_eq!(python.says("print(m[:5].decode(), len(m))"), format!("alive {LEN}"));
    python.does("m.close()");
    wait_until_gone(&cluster, ino);
}
