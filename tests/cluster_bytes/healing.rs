//! A node that lacks bytes gets them from the others: in the background, sooner what somebody reads, compressed
//! where that is asked for; and it says what it lacks.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::support::{Cluster, PATIENCE, quorumfs, succeed, text, wait_until, write_and_close};
use super::{assert_bytes, pattern};

const MIB: usize = 1 << 20;
/// Larger than `inline_max`, which these clusters have as small as it may be.
const SMALL: usize = 12_345;

/// A cluster whose nodes have more in their configuration.
fn cluster_with(nodes: u16, configuration: &str) -> Cluster {
    let cluster = Cluster::up(nodes);
    cluster.down();
    for node in 1..=nodes {
        configure(&cluster, u64::from(node), configuration);
    }
    cluster.up_again();
    cluster
}

fn configure(cluster: &Cluster, node: u64, more: &str) {
    let config = cluster.dir().join(format!("n{node}/quorumfs.toml"));
    let text = fs::read_to_string(&config).expect("its configuration");
    fs::write(&config, format!("{text}{more}")).expect("write");
}

pub fn status(address: &str) -> Value {
    let output = succeed(quorumfs().args(["status", "--json", "--addr", address]));
    serde_json::from_slice(&output.stdout).expect("the documented JSON")
}

pub fn missing_bytes(address: &str) -> u64 {
    status(address)["missing"]["bytes"].as_u64().expect("a number")
}

pub fn wait_until_complete(address: &str) {
    wait_until(PATIENCE, "nothing to be missing", || {
        (status(address)["missing"]["files"] == 0).then_some(())
    });
}

/// File bytes that nodes have sent to others, and as how many they travelled.
fn sent(addresses: &[String]) -> (u64, u64) {
    let of = |name: &str| {
        addresses.iter().map(|address| status(address)[name].as_u64().expect("a number")).sum()
    };
    (of("plain_bytes"), of("sent_bytes"))
}

/// The backing files of a node, with their bytes.
fn backing(cluster: &Cluster, node: u64) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = cluster.dir().join(format!("n{node}/data/files"));
    let list = |dir: &Path| -> Vec<_> {
        fs::read_dir(dir).expect("readdir").map(|entry| entry.expect("readdir").path()).collect()
    };
    let dirs = list(&files).into_iter().filter(|dir| !dir.ends_with("spare"));
    let all = dirs.flat_map(|dir| list(&dir));
    let name = |path: &Path| path.strip_prefix(&files).expect("below it").to_owned();
    all.map(|path| (name(&path), fs::read(&path).expect("read"))).collect()
}

/// xorshift: nothing compresses it.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(byte).collect()
}

/// Many small files and some large ones, which nobody reads there.
#[test]
fn a_node_that_was_down_heals_by_itself_and_says_how_far_it_is() {
    const FILES: usize = 2000;
    const LARGE: usize = 3;
    let cluster = cluster_with(3, "inline_max = \"4KiB\"\n");
    let address = cluster.address(3);
    wait_until_complete(&address);
    cluster.leader_beside(3);
    cluster.kill(3, "KILL");
    std::thread::scope(|threads| {
        for writer in 0..4 {
            let dir = cluster.mount(writer % 2 + 1).join(format!("d{writer}"));
            threads.spawn(move || {
                fs::create_dir(&dir).expect("mkdir");
                for number in 0..FILES / 4 {
                    let bytes = pattern(number, SMALL);
                    write_and_close(&dir.join(number.to_string()), &bytes).expect("write");
                }
            });
        }
    });
    for number in 0..LARGE {
        let path = cluster.mount(1).join(format!("large{number}"));
        write_and_close(&path, &pattern(number, 15 * MIB)).expect("write");
    }
    // So that it can be watched.
    configure(&cluster, 3, "heal_rate = \"20MiB\"\n");
    cluster.start(3);
    let (mut seen, mut with_time) = (Vec::new(), 0);
    wait_until(PATIENCE, "all bytes to be there", || {
        let status = status(&address);
        let missing = &status["missing"];
        let bytes = missing["bytes"].as_u64().expect("a number");
        let files = missing["files"].as_u64().expect("a number");
        assert_eq!(files == 0, bytes == 0, "{missing}");
        assert!(files <= (FILES + LARGE) as u64, "{missing}");
        if bytes > 0 && missing["left_ms"].is_u64() {
            assert!(missing["rate"].as_u64() > Some(0), "{missing}");
            with_time += 1;
        }
        seen.push(bytes);
        let applied = |name: &str| status[name].as_u64().expect("a number");
        let is_up_to_date = seen.iter().any(|bytes| *bytes > 0) && applied("applied") > 1000;
        (is_up_to_date && bytes == 0).then_some(())
    });
    let most = seen.iter().copied().max().expect("it was asked");
    let highest = seen.iter().rposition(|bytes| *bytes == most).expect("it is one of them");
    assert!(seen[highest..].is_sorted_by(|one, next| one >= next), "it goes down: {seen:?}");
    assert!(seen[highest..].len() > 3 && with_time > 0, "it can be watched: {seen:?}");
    cluster.settle();
    let (here, there) = (backing(&cluster, 1), backing(&cluster, 3));
    assert_eq!(there.len(), FILES + LARGE);
    assert!(here.keys().eq(there.keys()));
    for (name, bytes) in &there {
        assert_bytes(bytes, &here[name], &name.display().to_string());
    }
}

/// However slow the background is told to be.
#[test]
fn what_is_read_comes_at_once() {
    let cluster = cluster_with(3, "heal_rate = \"64KiB\"\n");
    let address = cluster.address(3);
    cluster.leader_beside(3);
    cluster.kill(3, "KILL");
    let wanted = pattern(1, 24 * MIB + 321);
    for name in ["another", "read", "random"] {
        write_and_close(&cluster.mount(1).join(name), &wanted).expect("write");
    }
    cluster.start(3);
    let read = fs::read(cluster.mount(3).join("read")).expect("read");
    assert_bytes(&read, &wanted, "one byte after the other");
    let random = fs::File::open(cluster.mount(3).join("random")).expect("open");
    for at in (0..24).map(|step| step * 17 % 24 * MIB + 4321) {
        let mut part = vec![0; 9000];
        random.read_exact_at(&mut part, at as u64).expect("read");
        assert_bytes(&part, &wanted[at..at + 9000], "here and there");
    }
    assert!(missing_bytes(&address) > MIB as u64, "the rest waits");
}

/// On their way to the mounts of others and to a node that was down.
fn compressed(compression: &str) {
    let cluster = cluster_with(3, &format!("compression = \"{compression}\"\n"));
    let addresses: Vec<_> = (1..=3).map(|node| cluster.address(node)).collect();
    let line = format!("step 17: loss 0.25, compressed by {compression}\n");
    let lines: Vec<u8> = line.bytes().cycle().take(6 * MIB + 7).collect();
    let write = |name: &str, bytes: &[u8]| {
        let before = sent(&addresses[..2]);
        write_and_close(&cluster.mount(1).join(name), bytes).expect("write");
        let here = fs::read(cluster.mount(2).join(name)).expect("read");
        assert_bytes(&here, bytes, name);
        let after = sent(&addresses[..2]);
        (after.0 - before.0, after.1 - before.1)
    };
    let (plain, travelled) = write("text", &lines);
    assert!(plain >= 2 * lines.len() as u64, "to both others: {plain}");
    assert!(travelled < plain / 4, "{travelled} of {plain}");
    let noise = noise(3 * MIB);
    let (plain, travelled) = write("noise", &noise);
    assert!(plain >= 2 * noise.len() as u64, "to both others: {plain}");
    assert_eq!(travelled, plain, "it does not compress");

    cluster.leader_beside(3);
    cluster.kill(3, "KILL");
    write("text while it is down", &lines);
    write("noise while it is down", &noise);
    let before = sent(&addresses[..2]);
    cluster.start(3);
    for (name, bytes) in [("text", &lines), ("noise", &noise)] {
        for name in [name.to_owned(), format!("{name} while it is down")] {
            let there = fs::read(cluster.mount(3).join(&name)).expect("read");
            assert_bytes(&there, bytes, &name);
        }
    }
    wait_until_complete(&addresses[2]);
    let after = sent(&addresses[..2]);
    let (plain, travelled) = (after.0 - before.0, after.1 - before.1);
    assert!(plain >= (lines.len() + noise.len()) as u64, "{plain}");
    let most = noise.len() + lines.len() / 4;
    assert!(travelled < most as u64, "{travelled} of {plain}");
    cluster.settle();
}

#[test]
fn lz4_saves_bytes_on_the_wire() {
    compressed("lz4");
}

#[test]
fn zstd_saves_bytes_on_the_wire() {
    compressed("zstd");
}

/// The nodes that have the bytes are gone, and those that are left know of each other that they do not.
#[test]
fn bytes_that_no_connected_node_has_are_listed() {
    let cluster = cluster_with(5, "heal_rate = \"64KiB\"\n");
    let (last, other) = (cluster.address(5), cluster.address(4));
    wait_until(PATIENCE, "a leader among the first three", || {
        let leader = cluster.leader();
        if leader > 3 {
            let at = cluster.address(leader);
            quorumfs().args(["leader", "transfer", "--addr", &at]).output().expect("it runs");
        }
        (leader <= 3).then_some(())
    });
    cluster.kill(4, "KILL");
    cluster.kill(5, "KILL");
    let wanted = pattern(3, 24 * MIB);
    write_and_close(&cluster.mount(1).join("f"), &wanted).expect("write");
    let ino = fs::metadata(cluster.mount(1).join("f")).expect("stat").ino();
    cluster.start(4);
    cluster.start(5);
    for address in [&last, &other] {
        wait_until(PATIENCE, "it to know what it lacks", || {
            (missing_bytes(address) > 0).then_some(())
        });
    }
    for node in 1..=3 {
        cluster.kill(node, "KILL");
    }
    wait_until(PATIENCE, "a range that nobody has", || {
        let status = status(&last);
        let nowhere = status["missing"]["nowhere"].as_array().expect("a list").clone();
        let problems = status["problems"].to_string();
        let first = nowhere.first()?;
        assert!(first["ino"] == ino && first["start"].as_u64() < first["end"].as_u64(), "{first}");
        assert!(problems.contains("missing here and on every connected node"), "{problems}");
        Some(())
    });
    let said = succeed(quorumfs().args(["status", "--addr", &last]));
    let said = text(&said.stdout);
    assert!(said.contains(&format!("of inode {ino}")) && said.contains("missing here"), "{said}");

    cluster.up_again();
    cluster.settle();
    assert_bytes(&fs::read(cluster.mount(5).join("f")).expect("read"), &wanted, "they are back");
    wait_until(PATIENCE, "nothing to be listed", || {
        let status = status(&last);
        (status["missing"]["nowhere"].as_array().expect("a list").is_empty()).then_some(())
    });
}
