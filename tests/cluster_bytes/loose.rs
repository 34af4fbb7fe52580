//! Bytes that are closed and not synced.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Barrier;

use super::support::{Cluster, write_and_close, write_and_sync};
use super::{assert_bytes, pattern};

/// More than travels in the log.
const SIZE: usize = 512 << 10;
const FILES: usize = 12;

/// Two mounts write a file that neither knows to have any bytes. The one that comes second replaces what the other one may have
/// synced by then, so it is written only once disks have it; no program hears of that.
#[test]
fn who_comes_second_replaces_what_it_did_not_know() {
    let cluster = Cluster::up(3);
    let path = |node: u64, number: usize| cluster.mount(node).join(number.to_string());
    let bytes = [pattern(1, SIZE), pattern(2, SIZE)];
    let both = Barrier::new(2);
    let write = |node: u64, number: usize, bytes: &[u8]| {
        let file = File::options().write(true).open(path(node, number)).expect("open");
        file.write_all_at(bytes, 0).expect("write");
        let copy = file.try_clone().expect("dup");
        both.wait();
        // A close, which tells nobody whether it has failed.
        drop(copy);
        file.sync_all()
    };
    for number in 0..FILES {
        fs::write(path(3, number), b"").expect("create");
        std::thread::scope(|scope| {
            let one = scope.spawn(|| write(1, number, &bytes[0]));
            let other = scope.spawn(|| write(2, number, &bytes[1]));
            for written in [one, other] {
                written.join().expect("a writer").expect("what was closed is kept");
            }
        });
    }
    for number in 0..FILES {
        let found = fs::read(path(3, number)).expect("read");
        let writer = usize::from(found.first() == bytes[1].first());
        assert_bytes(&found, &bytes[writer], &format!("file {number}"));
        for node in [1, 2] {
            assert_bytes(&fs::read(path(node, number)).expect("read"), &found, "on both");
        }
    }
}

/// Two mounts publish the first version of a file at once, one of them without having synced it. Where it comes second it
/// replaces what was synced, so its bytes go to disks first; no program hears of that.
#[test]
fn two_publish_a_name_that_neither_has_seen() {
    let cluster = Cluster::up(3);
    let path = |node: u64, name: &str| cluster.mount(node).join(name);
    let bytes = [pattern(1, SIZE), pattern(2, SIZE)];
    let both = Barrier::new(2);
    let publish = |node: u64, number: usize, bytes: &[u8]| {
        let own = path(node, &format!("{number}.{node}"));
        let written =
            if node == 1 { write_and_sync(&own, bytes) } else { write_and_close(&own, bytes) };
        both.wait();
        written.and_then(|()| fs::rename(own, path(node, &number.to_string())))
    };
    let mut second = [0; 2];
    for number in 0..FILES {
        std::thread::scope(|scope| {
            let one = scope.spawn(|| publish(1, number, &bytes[0]));
            let other = scope.spawn(|| publish(2, number, &bytes[1]));
            for published in [one, other] {
                published.join().expect("a publisher").expect("both are in time");
            }
        });
        let found = fs::read(path(3, &number.to_string())).expect("read");
        let writer = usize::from(found.first() == bytes[1].first());
        assert_bytes(&found, &bytes[writer], &format!("file {number}"));
        second[writer] += 1;
    }
    println!("who came second: {second:?}");
}
