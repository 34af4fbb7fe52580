//! Real daemons, real mounts: what one mount did is what the others see, whoever dies.

mod support;

use std::fs;

use support::{Cluster, names, write_and_close};

#[test]
fn what_one_mount_writes_the_others_read() {
    let cluster = Cluster::up(3);
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    fs::create_dir(cluster.mount(1).join("dir")).expect("mkdir");
    write_and_close(&cluster.mount(1).join("dir/file"), &bytes).expect("write");
    for node in [2, 3] {
        let path = cluster.mount(node).join("dir/file");
        assert_eq!(fs::read(&path).expect("read"), bytes, "mount {node}");
    }
    fs::rename(cluster.mount(2).join("dir/file"), cluster.mount(2).join("moved")).expect("rename");
    fs::remove_dir(cluster.mount(3).join("dir")).expect("rmdir");
    assert_eq!(names(&cluster.mount(1)), ["moved"]);
}

#[test]
fn a_cluster_that_went_down_comes_up_with_its_data() {
    let cluster = Cluster::up(3);
    write_and_close(&cluster.mount(2).join("kept"), b"kept").expect("write");
    cluster.down();
    assert_eq!(names(&cluster.mount(2)), Vec::<String>::new(), "still mounted");
    cluster.down();
    cluster.up_again();
    for node in 1..=3 {
        assert_eq!(fs::read(cluster.mount(node).join("kept")).expect("read"), b"kept");
    }
}

#[test]
fn the_others_go_on_when_the_leader_dies_and_it_catches_up() {
    let cluster = Cluster::up(3);
    let writer = cluster.follower();
    let dead = cluster.leader();
    cluster.kill(dead, "KILL");
    for number in 0..50 {
        let path = cluster.mount(writer).join(format!("f{number}"));
        write_and_close(&path, b"x").expect("the mount goes on by itself");
    }
    cluster.start(dead);
    cluster.settle();
    assert_eq!(names(&cluster.mount(dead)).len(), 50);
}

/// A program that replaces a file again and again costs a node that is behind no more than these changes: while it
/// runs on, and when it starts with them in its log.
#[test]
fn a_node_that_was_away_catches_up_with_many_replacements_of_one_file() {
    let cluster = Cluster::up(3);
    let node = cluster.follower();
    let beside = (1..=3).find(|other| *other != node).expect("there are two");
    let (file, new) = (cluster.mount(beside).join("file"), cluster.mount(beside).join("new"));
    for round in 0..2 {
        let signal = ["STOP", "KILL"][round];
        cluster.kill(node, signal);
        // Until its session has ended, the others wait for it.
        for number in 0..300 {
            write_and_close(&new, format!("{round} {number}").as_bytes()).expect("write");
            fs::rename(&new, &file).expect("rename");
        }
        if signal == "STOP" {
            cluster.kill(node, "CONT");
        } else {
            cluster.start(node);
        }
        cluster.settle();
        let status = cluster.status();
        let pid = status.nodes.iter().find(|found| found.id == node).expect("it runs").pid;
        let peak = peak_mebibytes(pid);
        assert!(peak < 400, "{peak} MiB");
        let found = fs::read(cluster.mount(node).join("file")).expect("read");
        assert_eq!(found, format!("{round} 299").as_bytes());
    }
}

fn peak_mebibytes(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}
