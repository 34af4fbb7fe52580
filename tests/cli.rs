//! Bad input: each mistake gets one clear sentence and a non-zero exit, and nothing is overwritten.
#![allow(clippy::disallowed_methods, reason = "waits with deadlines")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use support::{Cluster, quorumfs, succeed, temporary_dir, text, wait_until};
use tempfile::TempDir;

/// A node's directories and configuration, with nothing wrong in them.
struct Bench {
    dir: TempDir,
    port: u16,
}

impl Bench {
    fn new() -> Self {
        let dir = temporary_dir("cli");
        fs::create_dir(dir.path().join("mnt")).expect("mkdir");
        let port =
            TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("bound").port();
        let bench = Self { dir, port };
        bench.configure("");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, more: &str) {
        let listen = format!("127.0.0.1:{}", self.port);
        self.write_config(&format!("data = 'data'\nmount = 'mnt'\nlisten = '{listen}'\n{more}\n"));
    }

    fn write_config(&self, text: &str) {
        fs::write(self.path("quorumfs.toml"), text).expect("write");
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = quorumfs();
        command.args(words).arg("--config").arg(self.path("quorumfs.toml"));
        command
    }

    /// `quorumfs serve` must fail with a sentence that contains all of `words`.
    fn refuses(&self, words: &[&str]) {
        let before = contents(&self.path("data"));
        assert_refused(&mut self.command(&["serve"]), words);
        assert_eq!(contents(&self.path("data")), before, "the data directory was changed");
    }

    fn init(&self) -> String {
        text(&succeed(&mut self.command(&["cluster", "init"])).stdout)
    }
}

/// Runs what must end by itself, soon, with exit code 1 and one sentence at the end of stderr.
fn assert_refused(command: &mut Command, words: &[&str]) {
    let output = run_for(command, Duration::from_secs(30));
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {stderr}");
    let sentences: Vec<_> = stderr.lines().filter(|line| line.starts_with("quorumfs: ")).collect();
    assert_eq!(sentences.len(), 1, "one sentence: {stderr}");
    for word in words {
        assert!(sentences[0].contains(word), "\"{word}\" is not in: {}", sentences[0]);
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

fn run_for(command: &mut Command, limit: Duration) -> Output {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let description = format!("{command:?} to end");
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until(limit, &description, || child.try_wait().expect("a child"));
    }));
    if let Err(panic) = result {
        end(child);
        std::panic::resume_unwind(panic);
    }
    child.wait_with_output().expect("its output")
}

fn end(mut child: Child) {
    child.kill().expect("a child");
    child.wait().expect("a child");
}

/// Every file below a directory with its bytes; empty where there is none.
/// All files but the lock, which names whoever tried last.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for entry in entries {
        let path = entry.expect("readdir").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if !path.ends_with("LOCK") {
            found.insert(path.clone(), fs::read(&path).expect("read"));
        }
    }
    found
}

#[test]
fn a_configuration_that_is_missing() {
    let bench = Bench::new();
    fs::remove_file(bench.path("quorumfs.toml")).expect("remove");
    bench.refuses(&["cannot read the configuration", "quorumfs.toml"]);
}

#[test]
fn an_unknown_key() {
    let bench = Bench::new();
    bench.configure("sesion_ttl = '2s'");
    bench.refuses(&["quorumfs.toml", "line 4", "sesion_ttl"]);
}

#[test]
fn a_value_of_the_wrong_kind() {
    let bench = Bench::new();
    bench.configure("session_ttl = '2 fortnights'");
    bench.refuses(&["line 4", "500ms"]);
    bench.configure("cluster = 'mine'");
    bench.refuses(&["line 4", "32 hexadecimal digits"]);
}

#[test]
fn an_address_that_others_reach_without_tls() {
    let bench = Bench::new();
    bench.write_config("data = 'data'\nmount = 'mnt'\nlisten = '192.0.2.1:7401'\n");
    bench.refuses(&["listen 192.0.2.1:7401", "TLS", "insecure = true"]);
}

#[test]
fn a_mount_point_that_does_not_exist() {
    let bench = Bench::new();
    fs::remove_dir(bench.path("mnt")).expect("rmdir");
    bench.refuses(&["mnt", "does not exist"]);
}

#[test]
fn a_mount_point_that_is_a_file() {
    let bench = Bench::new();
    fs::remove_dir(bench.path("mnt")).expect("rmdir");
    fs::write(bench.path("mnt"), "").expect("write");
    bench.refuses(&["mnt", "not a directory"]);
}

#[test]
fn a_mount_point_that_is_taken() {
    let cluster = Cluster::up(1);
    let bench = Bench::new();
    let listen = format!("127.0.0.1:{}", bench.port);
    let mount = cluster.mount(1);
    let mount = mount.display();
    bench.write_config(&format!("data = 'data'\nmount = '{mount}'\nlisten = '{listen}'\n"));
    bench.refuses(&["mounted", "already"]);
}

#[test]
fn a_port_in_use() {
    let bench = Bench::new();
    let taken = TcpListener::bind(("127.0.0.1", bench.port)).expect("bind");
    bench.refuses(&[&taken.local_addr().expect("bound").to_string(), "in use"]);
}

#[test]
fn a_node_without_a_cluster() {
    let bench = Bench::new();
    bench.refuses(&["cluster init"]);
}

#[test]
fn a_second_cluster_in_the_same_data() {
    let bench = Bench::new();
    let printed = bench.init();
    assert!(printed.contains("cluster = \"") && printed.contains("peers = [\""), "{printed}");
    let before = contents(&bench.path("data"));
    assert_refused(&mut bench.command(&["cluster", "init"]), &["data"]);
    assert_eq!(contents(&bench.path("data")), before, "the data directory was changed");
}

#[test]
fn data_of_another_cluster() {
    let bench = Bench::new();
    bench.init();
    bench.configure("cluster = '00112233445566778899aabbccddeeff'");
    bench.refuses(&["data", "cluster", "00112233445566778899aabbccddeeff"]);
}

#[test]
fn a_peer_of_another_cluster() {
    let cluster = Cluster::up(1);
    let bench = Bench::new();
    let peer = &cluster.status().nodes[0].address;
    bench.configure(&format!("cluster = '00112233445566778899aabbccddeeff'\npeers = ['{peer}']"));
    assert_refused(&mut bench.command(&["serve"]), &[peer, "cluster"]);
}

#[test]
fn a_read_mode_that_is_not_served_yet() {
    let bench = Bench::new();
    bench.configure("read = 'eventual'");
    bench.refuses(&["eventual", "strong"]);
}

#[test]
fn nobody_to_ask() {
    let port = Bench::new().port;
    let address = format!("127.0.0.1:{port}");
    assert_refused(quorumfs().args(["status", "--addr", &address]), &[&address]);
    assert_refused(quorumfs().args(["leader", "transfer", "--addr", &address]), &[&address]);
}

#[test]
fn a_directory_without_a_dev_cluster() {
    let dir = temporary_dir("cli");
    for words in [&["status"][..], &["kill", "1"], &["start", "1"]] {
        let mut command = quorumfs();
        command.arg("dev").args(words).arg("--dir").arg(dir.path());
        assert_refused(&mut command, &["no dev cluster", "dev up"]);
    }
    succeed(quorumfs().args(["dev", "down", "--dir"]).arg(dir.path()));
}

#[test]
fn a_failed_start_leaves_nothing_behind() {
    let dir = temporary_dir("cli");
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("bound").port().to_string();
    let mut command = quorumfs();
    command.args(["dev", "up", "--nodes", "1", "--base-port", &port, "--dir"]).arg(dir.path());
    assert_refused(&mut command, &["node 1"]);
    assert!(!dir.path().join("n1/pid").exists(), "a daemon is left");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&*dir.path().to_string_lossy()), "a mount is left");
}

#[test]
fn usage_errors_exit_with_two() {
    for words in [&["serve"][..], &["dev", "kill", "x", "--dir", "d"], &["nonsense"]] {
        let output = quorumfs().args(words).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(2), "{words:?}");
    }
}
