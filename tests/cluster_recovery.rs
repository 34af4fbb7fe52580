//! When too much is gone: what can be done with the data directories of nodes that do not run.
#![allow(clippy::disallowed_methods, reason = "waits with deadlines")]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

use rustix::fs::{XattrFlags, lgetxattr, listxattr, lsetxattr};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Cluster, PATIENCE, contents, quorumfs, succeed, text, wait_until, write_and_sync};

const LARGE: usize = 3 << 20;
/// Version 2; owner rw, user 1000 r, group r, mask r, others nothing: tag, permissions and id of each.
const ACL: &[u8] =
    b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\
    \x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

/// What a name means, to compare two trees.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Meaning {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    xattrs: BTreeMap<String, Vec<u8>>,
    /// Of a file its bytes, of a symbolic link its target.
    content: Vec<u8>,
    /// All names of the same file.
    links: Vec<PathBuf>,
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Meaning> {
    let mut inodes: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    let mut paths = vec![root.to_owned()];
    let mut all = Vec::new();
    while let Some(path) = paths.pop() {
        let found = fs::symlink_metadata(&path).expect("stat");
        if found.is_dir() {
            let entries = fs::read_dir(&path).expect("readdir");
            paths.extend(entries.map(|entry| entry.expect("readdir").path()));
        }
        let name = path.strip_prefix(root).expect("below the root").to_owned();
        inodes.entry(found.ino()).or_default().push(name.clone());
        all.push((name, path, found));
    }
    for names in inodes.values_mut() {
        names.sort();
    }
    let meaning = |(name, path, found): (PathBuf, PathBuf, fs::Metadata)| {
        let content = match found.file_type() {
            kind if kind.is_symlink() => {
                fs::read_link(&path).expect("readlink").into_os_string().into_encoded_bytes()
            }
            kind if kind.is_file() => fs::read(&path).expect("read"),
            _ => Vec::new(),
        };
        let xattrs = if found.is_symlink() { BTreeMap::new() } else { xattrs(&path) };
        let meaning = Meaning {
            mode: found.mode(),
            owner: (found.uid(), found.gid()),
            modified: (found.mtime(), found.mtime_nsec()),
            xattrs,
            content,
            links: inodes[&found.ino()].clone(),
        };
        (name, meaning)
    };
    all.into_iter().map(meaning).collect()
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 4096];
    let len = listxattr(path, &mut names[..]).expect("listxattr");
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 4096];
        let len = lgetxattr(path, name, &mut value[..]).expect("getxattr");
        value[..len].to_vec()
    };
    names.map(|name| (text(name), value(name))).collect()
}

#[track_caller]
fn assert_same(found: &BTreeMap<PathBuf, Meaning>, wanted: &BTreeMap<PathBuf, Meaning>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (name, wanted) in wanted {
        let short = |meaning: &Meaning| Meaning { content: Vec::new(), ..meaning.clone() };
        assert_eq!(short(&found[name]), short(wanted), "{}", name.display());
        assert!(found[name].content == wanted.content, "the bytes of {} differ", name.display());
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 31 % 251).expect("below 251")).collect()
}

/// A bit of everything; what is synced is on disk on a quorum.
fn write_tree(root: &Path) {
    fs::create_dir_all(root.join("a/deep/er")).expect("mkdir");
    write_and_sync(&root.join("a/small"), b"a few bytes").expect("write");
    write_and_sync(&root.join("a/large"), &pattern(LARGE)).expect("write");
    fs::hard_link(root.join("a/small"), root.join("a/deep/linked")).expect("link");
    symlink("../small", root.join("a/deep/symbolic")).expect("symlink");
    write_and_sync(&root.join("renamed.tmp"), b"new").expect("write");
    write_and_sync(&root.join("renamed"), b"old, and longer").expect("write");
    fs::rename(root.join("renamed.tmp"), root.join("renamed")).expect("rename");
    let sparse = File::create(root.join("sparse")).expect("create");
    sparse.write_all_at(b"begin", 0).expect("write");
    sparse.write_all_at(b"end", 64 << 20).expect("write");
    sparse.sync_all().expect("fsync");
    fs::write(root.join("removed"), b"gone").expect("write");
    fs::remove_file(root.join("removed")).expect("remove");
    let owned = root.join("a/owned");
    write_and_sync(&owned, b"somebody's").expect("write");
    lsetxattr(&owned, "user.colour", b"green", XattrFlags::empty()).expect("setxattr");
    lsetxattr(&owned, "system.posix_acl_access", ACL, XattrFlags::empty()).expect("setfacl");
    std::os::unix::fs::chown(&owned, Some(1000), Some(2000)).expect("chown");
    fs::set_permissions(root.join("a/deep"), fs::Permissions::from_mode(0o2750)).expect("chmod");
    let past = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
    File::open(root.join("a/deep/er")).and_then(|dir| dir.set_times(past)).expect("utimens");
    File::open(root).and_then(|dir| dir.sync_all()).expect("fsync");
}

/// Three nodes with the same tree, all of which have died.
fn killed() -> (Cluster, BTreeMap<PathBuf, Meaning>) {
    let cluster = Cluster::up(3);
    write_tree(&cluster.mount(1));
    cluster.settle();
    for node in 1..=3 {
        wait_until(PATIENCE, "all bytes to be everywhere", || {
            let mut status = quorumfs();
            status.args(["status", "--json", "--addr", &cluster.address(node)]);
            let status: Value = serde_json::from_slice(&succeed(&mut status).stdout).expect("JSON");
            (status["missing"]["bytes"] == 0).then_some(())
        });
    }
    let wanted = tree(&cluster.mount(1));
    for node in 1..=3 {
        cluster.kill(node, "KILL");
    }
    (cluster, wanted)
}

fn data(cluster: &Cluster, node: u64) -> PathBuf {
    cluster.dir().join(format!("n{node}/data"))
}

/// `quorumfs COMMAND --data …`, with its exit code.
fn offline(command: &str, data: &Path, more: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        quorumfs().arg(command).arg("--data").arg(data).args(more).output().expect("it runs");
    (status.code().expect("it ends by itself"), text(&stdout), text(&stderr))
}

/// What `fsck` finds must contain these words, and its exit code be 1; or be 0 where nothing is to be found.
#[track_caller]
fn assert_fsck(data: &Path, more: &[&str], words: &[&str]) -> Value {
    let mut arguments = vec!["--json"];
    arguments.extend(more);
    let (code, stdout, stderr) = offline("fsck", data, &arguments);
    let report: Value =
        serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}"));
    let findings = report["findings"].as_array().expect("findings");
    assert_eq!(code, i32::from(!words.is_empty()), "{report:#}");
    assert_eq!(findings.len(), usize::from(!words.is_empty()), "{report:#}");
    for word in words {
        let what = findings[0]["what"].as_str().expect("a sentence");
        assert!(what.contains(word), "\"{word}\" is not in: {what}");
    }
    report
}

fn flip(file: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(file).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("write");
}

/// The backing file of a path, by its inode number on a mount.
fn backing(cluster: &Cluster, node: u64, ino: u64) -> PathBuf {
    let own = data(cluster, node);
    let all = cluster.backing_files(ino);
    all.into_iter().find(|path| path.starts_with(&own)).expect("a backing file")
}

/// A backing file that nothing can name: of the root directory.
fn plant_orphan(data: &Path) -> PathBuf {
    let orphan = data.join("files/00/1.1");
    fs::create_dir_all(orphan.parent().expect("a directory")).expect("mkdir");
    fs::write(&orphan, [7; 9000]).expect("write");
    orphan
}

#[test]
fn the_tree_comes_out_of_each_node_and_damage_is_named() {
    let cluster = Cluster::up(3);
    write_tree(&cluster.mount(1));
    let large = fs::metadata(cluster.mount(1).join("a/large")).expect("stat").ino();
    let small = fs::metadata(cluster.mount(1).join("a/small")).expect("stat").ino();
    cluster.settle();
    let sidecar = |path: &Path| {
        let path = path.to_string_lossy().replace("/files/", "/checksums/");
        PathBuf::from(path)
    };
    wait_until(PATIENCE, "checksums on node 2", || {
        let files = cluster.backing_files(large);
        let own = files.into_iter().find(|path| path.starts_with(data(&cluster, 2)))?;
        sidecar(&own).exists().then_some(())
    });
    let wanted = tree(&cluster.mount(1));
    for node in 1..=3 {
        let (code, _, stderr) = offline("fsck", &data(&cluster, node), &[]);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("in use by another daemon (process"), "{stderr}");
    }
    for node in 1..=3 {
        cluster.kill(node, "KILL");
    }

    for node in 1..=3 {
        let data = data(&cluster, node);
        let before = contents(&data);
        let report = assert_fsck(&data, &["--bytes"], &[]);
        assert_eq!(report["files"], 5, "{report:#}");
        let target = cluster.dir().join(format!("out{node}"));
        let target_name = target.to_string_lossy().into_owned();
        let (code, stdout, stderr) = offline("export", &data, &["--to", &target_name]);
        assert_eq!(code, 0, "{stdout}{stderr}");
        assert_same(&tree(&target), &wanted);
        let sparse = fs::metadata(target.join("sparse")).expect("stat");
        assert!(sparse.blocks() < 1024, "{} blocks", sparse.blocks());
        let (code, _, stderr) = offline("export", &data, &["--to", &target_name]);
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains("is not empty"), "{stderr}");
        assert!(contents(&data) == before, "the data directory of node {node} has changed");
    }
    let left = support::names(cluster.dir());
    assert!(!left.iter().any(|name| name.starts_with("quorumfs-scratch")), "{left:?}");

    let data = data(&cluster, 2);
    let snapshot = data.join("snapshots").join(&support::names(&data.join("snapshots"))[0]);
    flip(&snapshot, 100);
    assert_fsck(&data, &[], &["snapshots/snap-", "is damaged at byte", "takes another one"]);
    flip(&snapshot, 100);

    let lost = backing(&cluster, 2, small);
    let aside = cluster.dir().join("aside");
    fs::rename(&lost, &aside).expect("rename");
    let name = lost.to_string_lossy().into_owned();
    assert_fsck(&data, &[], &["/a/", "has 11 bytes", &name, "is gone"]);
    fs::rename(&aside, &lost).expect("rename");

    let rotten = backing(&cluster, 2, large);
    flip(&rotten, 200_000);
    assert_fsck(&data, &[], &[]);
    assert_fsck(&data, &["--bytes"], &["/a/large: 1 blocks", "at byte 131072"]);
    flip(&rotten, 200_000);

    let orphan = plant_orphan(&data);
    assert_fsck(&data, &[], &["nothing names", "files/00/1.1", "inode 1"]);
    assert!(orphan.exists());
    let (code, stdout, _) = offline("fsck", &data, &["--repair"]);
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("(removed)") && !orphan.exists(), "{stdout}");
    assert_fsck(&data, &["--bytes"], &[]);

    // Nothing of it has hurt.
    cluster.up_again();
    cluster.settle();
    assert_same(&tree(&cluster.mount(2)), &wanted);
}

#[test]
fn one_node_becomes_a_cluster_with_everything() {
    let (cluster, wanted) = killed();
    let data = data(&cluster, 2);
    let before = contents(&data);
    let (code, stdout, stderr) = offline("recover", &data, &[]);
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert!(stderr.contains("nothing was changed") && stderr.contains("--yes"), "{stderr}");
    for words in
        ["node 2 becomes the only member", "node 1 at", "node 3 at", " sessions end", "all bytes"]
    {
        assert!(stdout.contains(words), "\"{words}\" is not in: {stdout}");
    }
    assert!(contents(&data) == before, "it has changed");

    let (code, stdout, stderr) = offline("recover", &data, &["--yes", "--json"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    let new = report["cluster"].as_str().expect("an id");
    assert_fsck(&data, &["--bytes"], &[]);

    // The old configuration names the old cluster.
    let config = cluster.dir().join("n2/quorumfs.toml");
    let (_, refused) = serve(&config);
    assert!(refused.contains(new) && refused.contains("correct `cluster`"), "{refused}");
    configure(&config, new, &[]);
    cluster.start(2);
    assert_same(&tree(&cluster.mount(2)), &wanted);
    write_and_sync(&cluster.mount(2).join("later"), b"goes on").expect("write");

    // Another one joins with nothing, as a new member.
    let address = cluster.address(2);
    fs::remove_dir_all(cluster.dir().join("n3/data")).expect("remove");
    fs::create_dir(cluster.dir().join("n3/data")).expect("mkdir");
    let joining = cluster.dir().join("n3/quorumfs.toml");
    configure(&joining, new, std::slice::from_ref(&address));
    let _joined = Joined::start(&joining);
    let mount = cluster.mount(3);
    wait_until(PATIENCE, "the mount of the new member", || {
        mount.join("later").exists().then_some(())
    });
    let wanted = tree(&cluster.mount(2));
    assert_eq!(wanted[Path::new("later")].content, b"goes on");
    assert_same(&tree(&mount), &wanted);
    write_and_sync(&mount.join("there"), b"too").expect("write");
    assert_eq!(fs::read(cluster.mount(2).join("there")).expect("read"), b"too");
    let members = succeed(quorumfs().args(["member", "list", "--json", "--addr", &address]));
    let members: Value = serde_json::from_slice(&members.stdout).expect("JSON");
    let nodes = members.as_array().expect("members").iter().map(|member| &member["node"]);
    assert_eq!(nodes.collect::<Vec<_>>(), [2, 4], "{members:#}");
}

/// A daemon under another id than its directory's, which `dev` would not start.
struct Joined(Child, PathBuf);

impl Joined {
    fn start(config: &Path) -> Self {
        let mut serve = quorumfs();
        let log = File::create(config.with_extension("log")).expect("create");
        serve.args(["serve", "--config"]).arg(config).stdout(Stdio::null()).stderr(log);
        Self(serve.spawn().expect("the binary runs"), config.with_extension("log"))
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.0);
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(&self.1).unwrap_or_default());
        }
        // It has ended by itself where it could not start.
        let _ = kill_process(pid, Signal::TERM);
        self.0.wait().expect("a child");
    }
}

/// Of a daemon that does not start.
fn serve(config: &Path) -> (i32, String) {
    let output = quorumfs().args(["serve", "--config"]).arg(config).output().expect("it runs");
    (output.status.code().expect("it ends by itself"), text(&output.stderr))
}

fn configure(config: &Path, cluster: &str, peers: &[String]) {
    let before = fs::read_to_string(config).expect("read");
    let kept =
        before.lines().filter(|line| !line.starts_with("cluster") && !line.starts_with("peers"));
    let mut lines: Vec<_> = kept.map(str::to_owned).collect();
    lines.push(format!("cluster = '{cluster}'"));
    lines.push(format!("peers = {peers:?}"));
    fs::write(config, lines.join("\n")).expect("write");
}

#[test]
fn a_start_collects_what_nothing_names() {
    let cluster = Cluster::up(1);
    write_tree(&cluster.mount(1));
    let wanted = tree(&cluster.mount(1));
    cluster.kill(1, "KILL");
    let orphan = plant_orphan(&data(&cluster, 1));
    cluster.start(1);
    wait_until(PATIENCE, "the orphan to be collected", || (!orphan.exists()).then_some(()));
    assert_same(&tree(&cluster.mount(1)), &wanted);
    cluster.kill(1, "KILL");
    assert_fsck(&data(&cluster, 1), &[], &[]);
}
