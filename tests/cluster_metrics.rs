//! What monitoring is told about the health of the others.
#![allow(clippy::disallowed_methods, reason = "waits with deadlines")]

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use support::{Cluster, quorumfs, text, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

/// An address that nobody uses.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The value of a line that begins so.
fn value(page: &str, begins: &str) -> Option<f64> {
    let line = page.lines().find(|line| line.starts_with(begins))?;
    line.rsplit_once(' ')?.1.trim().parse().ok()
}

#[test]
fn who_stands_still_is_suspected_in_status_and_metrics() {
    let cluster = Cluster::up(3);
    cluster.down();
    let addresses = [1, 2, 3].map(|node: u64| {
        let (address, path) = (free(), cluster.dir().join(format!("n{node}/quorumfs.toml")));
        let config = fs::read_to_string(&path).expect("its configuration");
        fs::write(&path, format!("metrics = \"{address}\"\n{config}")).expect("write");
        address
    });
    cluster.up_again();
    let (leader, still) = (cluster.leader(), cluster.follower());
    let metrics = addresses[usize::try_from(leader - 1).expect("three nodes")];
    let phi = || {
        let page = get(metrics, "/metrics").expect("a page");
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        assert_eq!(value(&page, "quorumfs_has_quorum "), Some(1.0), "{page}");
        let of_it = page.lines().find(|line| {
            line.starts_with("quorumfs_member_suspicion_phi")
                && line.contains(&format!("member=\"{still}\""))
        });
        value(of_it.unwrap_or_else(|| panic!("no suspicion of {still}: {page}")), "").expect("phi")
    };
    assert!(phi() < 8.0);
    cluster.kill(still, "STOP");
    wait_until(PATIENCE, "suspicion", || (phi() >= 8.0).then_some(()));
    let status = quorumfs().args(["status", "--addr", &cluster.address(leader)]).output();
    cluster.kill(still, "CONT");
    let said = text(&status.expect("it runs").stdout);
    assert!(said.contains(&format!("node {still} ")), "{said}");
    assert!(said.contains("has said nothing for") || said.contains("is out of reach"), "{said}");
    wait_until(PATIENCE, "trust", || (phi() < 8.0).then_some(()));
    assert!(get(metrics, "/other").expect("an answer").starts_with("HTTP/1.1 404"));
}
