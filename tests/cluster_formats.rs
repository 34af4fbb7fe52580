//! Data directories that an earlier version of this program has written: fsck, export and a daemon take them as they are.
//!
//! `tests/golden/format-1` has them, and `QUORUMFS_WRITE_GOLDEN=1` writes them anew: see `docs/formats.md`.
#![allow(clippy::disallowed_methods, reason = "waits with deadlines")]

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::process::{Pid, Signal, kill_process};
use support::{Cluster, PATIENCE, quorumfs, succeed, temporary_dir, text, wait_until};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/format-1");
/// A daemon was killed; and its directory became another cluster, whose whole tree is in a snapshot file.
const DIRECTORIES: [&str; 2] = ["killed", "refounded"];
/// Larger than what travels in the log.
const LARGE: usize = 300 << 10;
const XATTR: &str = "user.note";
/// A stage that became a backing file says so in one.
const XATTRS: [&str; 2] = ["--xattrs", "--xattrs-include=*"];

/// Makes a tree with something of everything.
fn make_tree(root: &Path) {
    let write = |name: &str, bytes: &[u8]| support::write_and_sync(&root.join(name), bytes);
    fs::create_dir_all(root.join("models/run 1")).expect("mkdir");
    write("models/run 1/config.json", b"{ \"layers\": 12 }\n").expect("write");
    let large: Vec<u8> = (0..LARGE).map(|at| (at / 4096 + at).to_le_bytes()[0]).collect();
    write("models/run 1/weights.bin", &large).expect("write");
    write("models/replaced", &large[..70_000]).expect("write");
    write("models/replaced", b"shorter\n").expect("write");
    write("models/appended", b"one\n").expect("write");
    let appended = File::options().append(true).open(root.join("models/appended"));
    std::io::Write::write_all(&mut appended.expect("open"), b"two\n").expect("write");
    let sparse = File::create(root.join("sparse")).expect("create");
    sparse.write_all_at(b"end", 1 << 20).expect("write");
    sparse.sync_all().expect("fsync");
    write("a name in UTF-8: \u{e4}\u{20ac}", b"").expect("write");
    fs::hard_link(root.join("models/appended"), root.join("second name")).expect("link");
    symlink("models/run 1", root.join("latest")).expect("symlink");
    let config = root.join("models/run 1/config.json");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o4751)).expect("chmod");
    setxattr(&config, XATTR, b"kept", XattrFlags::empty()).expect("setxattr");
    fs::rename(root.join("models/replaced"), root.join("models/renamed")).expect("rename");
    write("gone", b"gone").expect("write");
    fs::remove_file(root.join("gone")).expect("unlink");
}

/// A line for each name: kind and mode, owner, links, size, time, what it holds.
fn list(root: &Path) -> String {
    let mut found = BTreeMap::new();
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        let meta = fs::symlink_metadata(&path).expect("stat");
        let name = path.strip_prefix(root).expect("below it").to_owned();
        let mut line = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
        if meta.is_dir() {
            let entries = fs::read_dir(&path).expect("readdir");
            paths.extend(entries.map(|entry| entry.expect("readdir").path()));
        } else {
            write!(line, " {} {}", meta.nlink(), meta.len()).expect("a string takes it");
        }
        if meta.is_symlink() {
            let target = fs::read_link(&path).expect("readlink");
            write!(line, " -> {}", target.display()).expect("as above");
        } else if name != Path::new("") {
            write!(line, " {}.{:09}", meta.mtime(), meta.mtime_nsec()).expect("as above");
        }
        if meta.is_file() {
            let hash = blake3::hash(&fs::read(&path).expect("read"));
            write!(line, " {hash}").expect("as above");
            let mut value = [0; 100];
            if let Ok(len) = getxattr(&path, XATTR, &mut value) {
                write!(line, " {XATTR}={}", text(&value[..len])).expect("as above");
            }
        }
        found.insert(name, line);
    }
    found
        .iter()
        .fold(String::new(), |all, (name, line)| all + &format!("{}: {line}\n", name.display()))
}

/// A copy of a golden data directory, and of the tree that it holds.
fn unpack(name: &str, to: &Path) -> PathBuf {
    fs::create_dir(to).expect("mkdir");
    let archive = format!("{GOLDEN}/{name}.tar.gz");
    succeed(Command::new("tar").args(XATTRS).args(["-xzf", &archive, "-C"]).arg(to));
    to.join("data")
}

fn listing(name: &str) -> String {
    fs::read_to_string(format!("{GOLDEN}/{name}.tree")).expect("the golden listing")
}

#[track_caller]
fn assert_tree(found: &str, name: &str, what: &str) {
    assert!(
        found == listing(name),
        "{what} does not show the tree that the golden data directory {name} of format 1 holds. Directories like it are in \
         use: keep reading them, or raise the format and move them to it (docs/formats.md).\nfound:\n{found}\nwanted:\n{}",
        listing(name)
    );
}

/// Where its daemon listened.
fn address_of(data: &Path) -> String {
    let identity = fs::read_to_string(data.join("identity")).expect("an identity");
    let line = identity.lines().find_map(|line| line.strip_prefix("address = "));
    line.expect("it has one").trim_matches('"').to_owned()
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it has one")
}

/// A configuration in `dir`, with a mount point beside it.
fn configure(dir: &Path, data: &Path) -> PathBuf {
    fs::create_dir(dir.join("mnt")).expect("mkdir");
    let config = dir.join("quorumfs.toml");
    // Where it listened another test's cluster may be by now; the others are told where it was, of whom there are none.
    let (listen, advertise) = (free_address(), address_of(data));
    let data = data.display();
    let settings = format!(
        "data = \"{data}\"\nmount = \"mnt\"\nlisten = \"{listen}\"\nadvertise = \"{advertise}\"\n"
    );
    fs::write(&config, settings).expect("write");
    config
}

/// A daemon on some data directory, mounted beside it.
struct Serving {
    daemon: Child,
    dir: PathBuf,
}

impl Serving {
    fn start(dir: &Path, data: &Path) -> Self {
        let config = configure(dir, data);
        let settings = fs::read_to_string(&config).expect("it was written");
        let address = settings.lines().find_map(|line| line.strip_prefix("listen = "));
        let address = address.expect("it listens").trim_matches('"').to_owned();
        let log = File::create(dir.join("log")).expect("create");
        let mut serve = quorumfs();
        serve.args(["serve", "--config"]).arg(config);
        serve.stdout(Stdio::null()).stderr(log);
        let mut serving = Self { daemon: serve.spawn().expect("it runs"), dir: dir.to_owned() };
        wait_until(PATIENCE, "the daemon to serve", || {
            let ended = serving.daemon.try_wait().expect("a child");
            assert_eq!(ended, None, "{}", serving.log());
            let status = quorumfs().args(["status", "--json", "--addr", &address]).output();
            let status: serde_json::Value =
                serde_json::from_slice(&status.expect("it runs").stdout).ok()?;
            (status["mounted"] == true && status["has_quorum"] == true).then_some(())
        });
        serving
    }

    fn mount(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        // It has ended by itself where it could not start.
        let _ = kill_process(Pid::from_child(&self.daemon), Signal::TERM);
        self.daemon.wait().expect("a child");
    }
}

#[test]
fn golden_data_directories_can_be_used() {
    if std::env::var_os("QUORUMFS_WRITE_GOLDEN").is_some() {
        write_golden();
        panic!("they are written: run this without QUORUMFS_WRITE_GOLDEN");
    }
    for name in DIRECTORIES {
        let dir = temporary_dir("golden");
        let data = unpack(name, &dir.path().join("offline"));
        succeed(quorumfs().args(["fsck", "--bytes", "--data"]).arg(&data));
        let exported = dir.path().join("exported");
        let mut export = quorumfs();
        // Its daemon was killed before it knew that the last entry was committed.
        export.args(["export", "--uncommitted", "--data"]).arg(&data).arg("--to").arg(&exported);
        succeed(&mut export);
        assert_tree(&list(&exported), name, "quorumfs export");

        let online = dir.path().join("online");
        let data = unpack(name, &online);
        let serving = Serving::start(&online, &data);
        assert_tree(&list(&serving.mount()), name, "a daemon");
        // And goes on from there.
        let path = serving.mount().join("models/appended");
        let mut file = File::options().append(true).open(&path).expect("open");
        std::io::Write::write_all(&mut file, b"three\n").expect("write");
        file.sync_all().expect("fsync");
        assert_eq!(fs::read(&path).expect("read"), b"one\ntwo\nthree\n");
    }
}

/// The data directory of a newer version is left alone, whatever is asked of it.
#[test]
fn a_newer_data_directory_is_refused() {
    let dir = temporary_dir("golden");
    let online = dir.path().join("online");
    let data = unpack("killed", &online);
    let identity = data.join("identity");
    let newer = fs::read_to_string(&identity).expect("read").replace("format = 1", "format = 3");
    fs::write(&identity, newer).expect("write");
    let config = configure(&online, &data);
    let before = support::contents(&data);
    let data = data.to_str().expect("UTF-8");
    let config = config.to_str().expect("UTF-8");
    let to = dir.path().join("to");
    for command in [
        vec!["serve", "--config", config],
        vec!["fsck", "--data", data],
        vec!["fsck", "--repair", "--data", data],
        vec!["export", "--data", data, "--to", to.to_str().expect("UTF-8")],
        vec!["recover", "--yes", "--data", data],
    ] {
        let output = quorumfs().args(&command).output().expect("it runs");
        let said = text(&output.stderr) + &text(&output.stdout);
        assert!(!output.status.success(), "{command:?}");
        assert!(said.contains("was written by a newer version of quorumfs (format 3"), "{said}");
        assert_eq!(support::contents(Path::new(data)), before, "{command:?} changed something");
    }
}

/// Kills a daemon; then makes a new cluster of what it left.
fn write_golden() {
    let cluster = Cluster::up(1);
    make_tree(&cluster.mount(1));
    let tree = list(&cluster.mount(1));
    cluster.kill(1, "KILL");
    let node = cluster.dir().join("n1");
    let write = |name: &str| {
        let archive = format!("{GOLDEN}/{name}.tar");
        // Files that the log will need are made by a start.
        let mut tar = Command::new("tar");
        tar.args(XATTRS).args([
            "--sort=name",
            "--exclude=*.reserved",
            "--exclude=data/files/spare/*",
        ]);
        succeed(tar.args(["-cf", &archive, "-C"]).arg(&node).arg("data"));
        succeed(Command::new("gzip").args(["-9nf", &archive]));
        fs::write(format!("{GOLDEN}/{name}.tree"), &tree).expect("write");
    };
    write("killed");
    succeed(quorumfs().args(["recover", "--yes", "--data"]).arg(node.join("data")));
    write("refounded");
}
