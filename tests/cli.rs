//! Bad input: each mistake gets one clear sentence and a non-zero exit, and nothing is overwritten.
#![allow(clippy::disallowed_methods, reason = "waits with deadlines")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::{
    Cluster, contents, names, quorumfs, succeed, temporary_dir, text, wait_until, write_and_sync,
};
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
        refuses_to_change(&self.path("data"), &mut self.command(&["serve"]), words);
    }

    /// The same where nobody is to try again.
    fn stays_down(&self, words: &[&str]) {
        stays_down(&self.path("data"), &mut self.command(&["serve"]), words);
    }

    fn init(&self) -> String {
        text(&succeed(&mut self.command(&["cluster", "init"])).stdout)
    }
}

/// What `serve` exits with where it must not be started again by itself.
const STAYS_DOWN: i32 = 3;

/// A node that has run, then died.
struct Stopped {
    cluster: Cluster,
}

impl Stopped {
    fn new() -> Self {
        let cluster = Cluster::up(1);
        for number in 0..50 {
            write_and_sync(&cluster.mount(1).join(format!("f{number}")), b"kept").expect("write");
        }
        cluster.kill(1, "KILL");
        Self { cluster }
    }

    fn data(&self) -> PathBuf {
        self.cluster.dir().join("n1/data")
    }

    /// The node must not start, for what these words say, and nobody is to try again.
    fn stays_down(&self, words: &[&str]) {
        let mut serve = quorumfs();
        serve.args(["serve", "--config"]).arg(self.cluster.dir().join("n1/quorumfs.toml"));
        stays_down(&self.data(), &mut serve, words);
    }

    /// The same while one byte of a file is another than it was; then the node must start again.
    fn stays_down_while_changed(&self, file: &Path, offset: usize, words: &[&str]) {
        let before = change(file, offset);
        self.stays_down(words);
        fs::write(file, before).expect("write");
    }

    fn serves_again(&self) {
        self.cluster.start(1);
        assert_eq!(names(&self.cluster.mount(1)).len(), 50);
    }
}

/// Makes one byte of a file another one. Answers what it held.
fn change(file: &Path, offset: usize) -> Vec<u8> {
    let before = fs::read(file).expect("read");
    let mut changed = before.clone();
    changed[offset] ^= 0x10;
    fs::write(file, changed).expect("write");
    before
}

fn refuses_to_change(data: &Path, command: &mut Command, words: &[&str]) {
    ends_without_change(data, command, 1, words);
}

fn stays_down(data: &Path, command: &mut Command, words: &[&str]) {
    ends_without_change(data, command, STAYS_DOWN, words);
}

fn ends_without_change(data: &Path, command: &mut Command, code: i32, words: &[&str]) {
    let before = contents(data);
    assert_ends(command, code, words);
    let after = contents(data);
    let differ = |path: &&PathBuf| before.get(*path) != after.get(*path);
    let changed: Vec<_> = before.keys().chain(after.keys()).filter(differ).collect();
    assert!(changed.is_empty(), "{changed:?} of the data directory changed");
}

/// Runs what must end by itself, soon, with exit code 1 and one sentence at the end of stderr.
fn assert_refused(command: &mut Command, words: &[&str]) {
    assert_ends(command, 1, words);
}

fn assert_ends(command: &mut Command, code: i32, words: &[&str]) {
    let output = run_for(command, Duration::from_secs(30));
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {stderr}");
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

fn only_file(dir: &Path) -> PathBuf {
    let names = names(dir);
    assert_eq!(names.len(), 1, "{names:?}");
    dir.join(&names[0])
}

fn copy(from: &Path, to: &Path) {
    succeed(Command::new("cp").arg("-a").arg("--sparse=always").arg(from).arg(to));
}

/// Descriptors are checked before anything else, and raised where that is possible.
#[test]
fn too_few_files_that_may_be_open() {
    let bench = Bench::new();
    let program = quorumfs().get_program().to_owned();
    let with_limit = |limit: &str| {
        let mut shell = Command::new("sh");
        // Root would raise the hard limit.
        let serve = "exec setpriv --bounding-set -sys_resource \"$0\" serve --config \"$1\"";
        shell.args(["-c", &format!("{limit}; {serve}")]);
        shell.arg(&program).arg(bench.path("quorumfs.toml"));
        shell
    };
    assert_refused(&mut with_limit("ulimit -n 1000"), &["no more than 1000 files", "LimitNOFILE"]);
    bench.init();
    let mut serve = with_limit("ulimit -Sn 256");
    let serve = serve.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    let soft_limit = || {
        let limits = fs::read_to_string(format!("/proc/{}/limits", serve.id())).ok()?;
        let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
        line.split_whitespace().nth(3)?.parse().ok().filter(|soft| *soft > 256)
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut limit: Option<u64> = None;
    while limit.is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        limit = soft_limit();
    }
    end(serve);
    succeed(&mut bench.command(&["cleanup"]));
    assert!(limit >= Some(4096), "{limit:?}");
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
    assert!(contents(&bench.path("data")) == before, "the data directory was changed");
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
    assert_refused(&mut bench.command(&["serve"]), &[peer, "cluster", "correct"]);
    assert_eq!(names(&bench.path("data")), ["joining"], "only what asking again needs");
}

#[test]
fn no_fuse() {
    let bench = Bench::new();
    let serve = bench.command(&["serve"]);
    let without = |device: &str| {
        let script = format!("mount -t tmpfs none /dev && {device} && exec \"$0\" \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).arg(serve.get_program());
        command.args(serve.get_args());
        command
    };
    let data = bench.path("data");
    refuses_to_change(&data, &mut without("true"), &["/dev/fuse", "modprobe fuse"]);
    refuses_to_change(&data, &mut without("touch /dev/fuse"), &["/dev/fuse", "not a device"]);
}

#[test]
fn data_of_a_newer_format() {
    let bench = Bench::new();
    bench.init();
    let identity = bench.path("data/identity");
    let text = fs::read_to_string(&identity).expect("read");
    fs::write(&identity, text.replace("format = 2", "format = 3")).expect("write");
    bench.stays_down(&["identity", "newer version", "format 3"]);
    fs::write(&identity, text).expect("write");

    // Magic (8 bytes), format (4), checksum of both (4).
    let snapshot = only_file(&bench.path("data/snapshots"));
    let mut bytes = fs::read(&snapshot).expect("read");
    bytes[8] = 2;
    let checksum = crc32c::crc32c(&bytes[..12]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&snapshot, bytes).expect("write");
    bench.stays_down(&["snapshot", "newer version", "format 2"]);
}

/// Written anew while nothing but the process has died, when the state can be believed without it: it is what the next
/// power loss leaves. A node that is alone has nobody to ask then.
#[test]
fn a_corrupted_snapshot_file() {
    let stopped = Stopped::new();
    let snapshot = || only_file(&stopped.data().join("snapshots"));
    let length = |file: &Path| fs::metadata(file).expect("stat").len();
    for part in [0, 1, 2, 3] {
        let file = snapshot();
        let length = usize::try_from(length(&file)).expect("small");
        change(&file, [3, 20, length / 2, length - 3][part]);
        stopped.serves_again();
        stopped.cluster.kill(1, "KILL");
    }
    let (file, boot) = (snapshot(), stopped.data().join("boot"));
    let before = fs::read(&boot).expect("read");
    fs::remove_file(&boot).expect("remove");
    for offset in [3, 20] {
        stopped.stays_down_while_changed(&file, offset, &["snapshot", "damaged", "peers"]);
    }
    fs::write(boot, before).expect("write");
    stopped.serves_again();
}

#[test]
fn a_corrupted_log_file() {
    let stopped = Stopped::new();
    let logs = names(&stopped.data().join("log"));
    let log = logs.iter().rfind(|name| name.ends_with(".raftlog")).expect("a log file");
    let file = stopped.data().join("log").join(log);
    let bytes = fs::read(&file).expect("read");
    // The rest of the file was allocated ahead.
    let written = bytes.iter().rposition(|byte| *byte != 0).expect("something");
    for offset in [written / 4, written / 2, written * 3 / 4] {
        stopped.stays_down_while_changed(&file, offset, &["log", "damaged", "join"]);
    }
    // All records are whole.
    change(&file, 3);
    stopped.serves_again();
}

/// Two daemons with one id would both vote: what a copied directory could do to its cluster.
#[test]
fn a_copy_of_the_data_of_a_running_node() {
    let cluster = Cluster::up(1);
    let bench = Bench::new();
    copy(&cluster.dir().join("n1/data"), &bench.path("data"));
    let address = &cluster.status().nodes[0].address;
    bench.refuses(&["data", "node 1", address, &bench.port.to_string(), "correct"]);
    write_and_sync(&cluster.mount(1).join("f"), b"").expect("the cluster goes on");
}

#[test]
fn data_that_is_in_use() {
    let cluster = Cluster::up(1);
    let bench = Bench::new();
    let data = cluster.dir().join("n1/data");
    let (listen, data) = (format!("127.0.0.1:{}", bench.port), data.display());
    bench.write_config(&format!("data = '{data}'\nmount = 'mnt'\nlisten = '{listen}'\n"));
    let pid = cluster.status().nodes[0].pid.to_string();
    assert_refused(&mut bench.command(&["serve"]), &["in use", &pid, "stop"]);
    write_and_sync(&cluster.mount(1).join("f"), b"").expect("the cluster goes on");
}

#[test]
fn data_of_another_node() {
    let cluster = Cluster::up(2);
    cluster.down();
    let at = |node: &str| cluster.dir().join(node);
    let other = cluster.status().nodes[1].address.clone();
    fs::rename(at("n1/data"), at("own")).expect("rename");
    fs::rename(at("n2/data"), at("n1/data")).expect("rename");
    let mut serve = quorumfs();
    serve.args(["serve", "--config"]).arg(at("n1/quorumfs.toml"));
    refuses_to_change(&at("n1/data"), &mut serve, &["n1/data", "node 2", &other, "correct"]);
    fs::rename(at("n1/data"), at("n2/data")).expect("rename");
    fs::rename(at("own"), at("n1/data")).expect("rename");
    cluster.up_again();
}

/// A command that works on a data directory whose daemon does not run.
fn offline(command: &str, data: &Path, more: &[&Path]) -> Command {
    let mut offline = quorumfs();
    offline.arg(command).arg("--data").arg(data).args(more);
    offline
}

#[test]
fn no_replica_to_work_on() {
    let bench = Bench::new();
    let (data, to, out) = (bench.path("nothing"), Path::new("--to"), bench.path("out"));
    assert_refused(&mut offline("export", &data, &[to, &out]), &["nothing", "holds no replica"]);
    assert_refused(&mut offline("recover", &data, &[]), &["nothing", "holds no replica"]);
    let output = offline("fsck", &data, &[]).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(2), "it cannot be checked");
    assert!(text(&output.stderr).contains("holds no replica"));
    assert!(!data.exists() && !out.exists());
}

#[test]
fn a_target_that_cannot_take_the_tree() {
    let bench = Bench::new();
    bench.init();
    let (data, to) = (bench.path("data"), Path::new("--to"));
    let refuses = |target: &Path, words: &[&str]| {
        refuses_to_change(&data, &mut offline("export", &data, &[to, target]), words);
    };
    refuses(&data.join("out"), &["within the data directory", "elsewhere"]);
    refuses(&bench.path("mnt/../data"), &["within the data directory"]);
    fs::write(bench.path("mnt/f"), "").expect("write");
    refuses(&bench.path("mnt"), &["mnt", "not empty", "(it holds f)"]);
    refuses(&bench.path("quorumfs.toml"), &["quorumfs.toml"]);
    assert_eq!(names(&bench.path("mnt")), ["f"]);
}

#[test]
fn nowhere_to_make_copies() {
    let bench = Bench::new();
    bench.init();
    let scratch = bench.path("absent");
    let mut recover = offline("recover", &bench.path("data"), &[Path::new("--scratch"), &scratch]);
    refuses_to_change(&bench.path("data"), &mut recover, &["absent", "No such file"]);
}

#[test]
fn a_recovery_that_was_interrupted() {
    let bench = Bench::new();
    bench.init();
    let id = "00112233445566778899aabbccddeeff";
    fs::write(bench.path("data/recovering"), id).expect("write");
    bench.stays_down(&["becoming a new cluster", "quorumfs recover --data"]);
    fs::write(bench.path("data/recovering"), "half").expect("write");
    bench.stays_down(&["recovering", "damaged", "remove this file"]);
    fs::write(bench.path("data/recovering"), id).expect("write");
    let recovered = succeed(&mut offline("recover", &bench.path("data"), &[Path::new("--yes")]));
    assert!(text(&recovered.stdout).contains(&format!("cluster = \"{id}\"")));
    bench.configure("cluster = 'ffffffffffffffffffffffffffffffff'");
    bench.refuses(&["belongs to cluster", id]);
}

#[test]
fn a_read_mode_that_cannot_be_kept() {
    let bench = Bench::new();
    bench.configure("read = 'bounded=0.1'");
    bench.refuses(&["read must be", "session_ttl"]);
}

#[test]
fn nobody_to_ask() {
    let port = Bench::new().port;
    let address = format!("127.0.0.1:{port}");
    assert_refused(quorumfs().args(["status", "--addr", &address]), &[&address]);
    assert_refused(quorumfs().args(["leader", "transfer", "--addr", &address]), &[&address]);
    for wrong in ["127.0.0.1:99999", "127.0.0.1"] {
        assert_refused(quorumfs().args(["status", "--addr", wrong]), &[wrong, "is not HOST:PORT"]);
    }
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
fn settings_that_nobody_knows() {
    let dir = temporary_dir("cli");
    let at = dir.path().join("new");
    for (line, why) in [("foo = 1", "foo"), ("op_timeout = '1ms'", "op_timeout must be")] {
        let mut up = quorumfs();
        up.args(["dev", "up", "--set", line, "--dir"]).arg(&at);
        assert_refused(&mut up, &["--set", why]);
        assert!(!at.exists(), "something was made");
    }
}

/// It would join as another node, and stay as a member that nobody can start.
#[test]
fn a_dev_node_that_has_lost_its_data() {
    let cluster = Cluster::up(2);
    let data = cluster.dir().join("n2/data");
    cluster.kill(2, "KILL");
    fs::remove_dir_all(&data).and_then(|()| fs::create_dir(&data)).expect("the data is lost");
    let dir = cluster.dir();
    assert_refused(quorumfs().args(["dev", "start", "2", "--dir"]).arg(dir), &["has no data"]);
    assert_refused(quorumfs().args(["dev", "up", "--dir"]).arg(dir), &["another directory"]);
    let members = quorumfs().args(["member", "list", "--addr", &cluster.address(1)]).output();
    let members = text(&members.expect("the binary runs").stdout);
    assert_eq!(members.lines().count(), 3, "{members}");
}

#[test]
fn a_pipe_that_nobody_reads() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let bench = Bench::new();
    let mut command = bench.command(&["cluster", "init"]);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().expect("runs");
    assert_eq!(output.status.code(), Some(128 + libc::SIGPIPE), "{output:?}");
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn usage_errors_exit_with_two() {
    for words in [&["serve"][..], &["dev", "kill", "x", "--dir", "d"], &["nonsense"]] {
        let output = quorumfs().args(words).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(2), "{words:?}");
    }
}
