//! A disk that another program fills to the last block.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use quorumfs::store::{DataDir, EndKind, Identity, record_end, recorded_ends};
use quorumfs::types::{ClusterId, NodeId};

use super::daemon::{data, ends, pid_of, until_gone};
use super::lost::Memory;
use super::pattern;
use super::support::disk::SmallDisk;
use super::support::{Cluster, PATIENCE, wait_until, write_and_sync};

/// Takes all that is left.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("a file");
    let block = vec![7; 1 << 16];
    while file.write_all(&block).is_ok() {}
    while file.write_all(&[7; 512]).is_ok() {}
}

/// Bytes are left, and no inodes: that the last daemon has ended for want of room is recorded all the same, and the next one
/// waits.
#[test]
fn no_inodes_are_no_room() {
    const ROOM: u64 = 1 << 20;
    let dir = tempfile::tempdir().expect("a directory");
    let memory = Memory::mount(&dir.path().join("memory"), "size=16m,nr_inodes=100");
    let path = dir.path().join("memory/data");
    let identity = Identity {
        cluster: ClusterId([1; 16]),
        node: NodeId(1),
        nonce: 1,
        address: "a:1".to_owned(),
    };
    let data = DataDir::create(&path, identity).expect("create");
    record_end(&path, EndKind::Failed, "of something else").expect("record");
    assert!(data.takes_in(ROOM).expect("look"));
    let stuffing = dir.path().join("memory/stuffing");
    fs::create_dir(&stuffing).expect("a directory");
    let made = (0..).take_while(|number| File::create(stuffing.join(number.to_string())).is_ok());
    assert!(made.count() > 10);
    assert!(data.available().expect("look") > ROOM);
    assert!(!data.takes_in(ROOM).expect("look"));
    record_end(&path, EndKind::Full, "of no inodes").expect("record");
    let ends = recorded_ends(&path).expect("read");
    assert_eq!(
        ends.iter().map(|end| end.kind).collect::<Vec<_>>(),
        [EndKind::Failed, EndKind::Full]
    );
    fs::remove_dir_all(&stuffing).expect("remove");
    assert!(data.takes_in(ROOM).expect("look"));
    drop((data, memory));
}

/// The replica on it may stop; started meanwhile it waits for room and says so, and when there is room again it goes on.
#[test]
#[ignore = "long"]
fn a_disk_that_was_full_is_used_again() {
    let mut disk = None;
    let cluster = Cluster::up_in(3, |dir| {
        disk = Some(SmallDisk::mount(&dir.join("n3/data"), 320 << 20));
    });
    let disk = disk.expect("mounted");
    cluster.leader_beside(3);
    let stuffing = data(&cluster, 3).join("stuffing");
    let pid = pid_of(&cluster, 3);
    fill(&stuffing);
    let names: Vec<_> = (0..40).map(|number| format!("f{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        let mount = cluster.mount(1 + number as u64 % 2);
        write_and_sync(&mount.join(name), &pattern(number, 200_000)).expect("two are a quorum");
    }
    let is_down = pid_of(&cluster, 3) != pid;
    if !is_down {
        cluster.kill(3, "KILL");
    }
    until_gone(pid);
    println!(
        "it {} by itself: {}",
        if is_down { "ended" } else { "did not end" },
        ends(&cluster, 3)
    );
    let mut daemon = super::daemon::Daemon::start(&cluster, 3, &[], &[]);
    daemon.until_it_says("is full");
    fs::remove_file(&stuffing).expect("remove");
    daemon.until_it_says("serving");
    for (number, name) in names.iter().enumerate() {
        let path = cluster.mount(3).join(name);
        let wanted = pattern(number, 200_000);
        wait_until(PATIENCE, "its bytes", || (fs::read(&path).ok()? == wanted).then_some(()));
    }
    assert_eq!(daemon.stop().code, Some(0));
    cluster.start(3);
    cluster.settle();
    cluster.down();
    drop(disk);
}
