//! Mounts: several of one daemon, of subtrees, for reading only; made, changed and unmade as programs and
//! people do it on Linux.
#![allow(clippy::disallowed_methods, reason = "reads where tests work")]

mod support;

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use support::program::Program;
use support::{
    Cluster, Node, PATIENCE, names, quorumfs, succeed, text, wait_until, write_and_close,
    write_and_sync,
};

/// A directory to mount on.
fn point(cluster: &Cluster, name: &str) -> PathBuf {
    let point = cluster.dir().join(name);
    fs::create_dir_all(&point).expect("mkdir");
    point
}

/// `quorumfs mount` of a node's file system.
fn mount(cluster: &Cluster, node: u64, subtree: &str, name: &str, options: &str) -> PathBuf {
    let point = point(cluster, name);
    let spec = format!("{}:/{subtree}", cluster.address(node));
    succeed(quorumfs().arg("mount").arg(spec).arg(&point).args(["-o", options]));
    point
}

fn umount(options: &[&str], point: &Path) -> Output {
    Command::new("umount").args(options).arg(point).output().expect("umount runs")
}

/// What the kernel's table says of a mount: source, type and options.
fn mounted(point: &Path) -> Option<(String, String, String)> {
    let mut findmnt = Command::new("findmnt");
    findmnt.args(["--raw", "--noheadings", "--output", "SOURCE,FSTYPE,OPTIONS", "--mountpoint"]);
    let output = findmnt.arg(point).output().expect("findmnt runs");
    let line = text(&output.stdout);
    let mut fields = line.split_whitespace().map(str::to_owned);
    Some((fields.next()?, fields.next()?, fields.next()?))
}

fn has_option(point: &Path, option: &str) -> bool {
    mounted(point).expect("mounted").2.split(',').any(|known| known == option)
}

/// The mounts that a node's daemon lists.
fn listed(cluster: &Cluster, node: u64) -> Vec<(PathBuf, bool)> {
    let address = cluster.address(node);
    let output = succeed(quorumfs().args(["status", "--json", "--addr", &address]));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mounts = status["mounts"].as_array().expect("a list").iter();
    let field = |mount: &serde_json::Value| {
        let point = mount["point"].as_str().expect("a path").into();
        (point, mount["attached"].as_bool().expect("known"))
    };
    mounts.map(field).collect()
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// `mount.quorumfs` where mount(8) looks for it; gone when dropped.
struct Helper(Vec<PathBuf>);

impl Helper {
    fn install() -> Self {
        let program = quorumfs().get_program().to_owned();
        let links = ["/sbin/mount.quorumfs", "/sbin/mount.fuse.quorumfs"].map(PathBuf::from);
        let made = links.into_iter().filter(|link| match symlink(&program, link) {
            Ok(()) => true,
            // Installed on this machine: it stays.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => panic!("{}: {error}", link.display()),
        });
        let made: Vec<PathBuf> = made.collect();
        if let Some(dir) = std::env::var_os("QUORUMFS_TEST_DIR") {
            let file =
                File::options().create(true).append(true).open(Path::new(&dir).join("links"));
            let mut file = file.expect("a list for whoever cleans up");
            for link in &made {
                writeln!(file, "{}", link.display()).expect("written");
            }
        }
        Self(made)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.0.iter().for_each(|link| fs::remove_file(link).expect("it was there"));
    }
}

/// To each mount of a daemon the others are like those of other nodes: what one has changed, no other one
/// remembers.
#[test]
fn mounts_of_one_daemon_show_the_same_as_mounts_of_others() {
    let cluster = Cluster::up(3);
    let mounts = [cluster.mount(1), mount(&cluster, 1, "", "second", "rw"), cluster.mount(2)];
    let name = "file";
    for (round, writer) in mounts.iter().cycle().take(12).enumerate() {
        let bytes = format!("round {round}").repeat(1 + round * 1000);
        let path = writer.join(name);
        write_and_close(&path, bytes.as_bytes()).expect("write");
        for mount in &mounts {
            assert!(fs::read(mount.join(name)).expect("read") == bytes.as_bytes(), "round {round}");
        }
        // In place: the pages that the others have cached are of the same file.
        let mut file = File::options().write(true).open(&path).expect("open");
        file.write_all(b"ROUND").expect("write");
        drop(file);
        let mode = 0o600 + u32::try_from(round).expect("small");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
        for mount in &mounts {
            let mut start = [0; 5];
            File::open(mount.join(name)).expect("open").read_exact(&mut start).expect("read");
            assert_eq!(&start, b"ROUND", "round {round}");
            let metadata = fs::metadata(mount.join(name)).expect("stat");
            assert_eq!(metadata.mode() & 0o7777, mode, "round {round}");
        }
        fs::rename(&path, writer.join("other")).expect("rename");
        for mount in &mounts {
            assert_eq!(errno(fs::metadata(mount.join(name))), Some(libc::ENOENT), "round {round}");
            assert_eq!(names(mount), ["other"]);
        }
        fs::rename(writer.join("other"), &path).expect("rename back");
    }
    assert_eq!(listed(&cluster, 1).len(), 2);
    cluster.settle();
}

/// A file without a name lives as long as any mount of any daemon has it open.
#[test]
fn every_mount_of_a_daemon_holds_what_it_has_open() {
    let cluster = Cluster::up(3);
    let second = mount(&cluster, 1, "", "second", "rw");
    write_and_close(&cluster.mount(1).join("file"), b"still here").expect("write");
    let first_file = File::open(cluster.mount(1).join("file")).expect("open");
    let mut second_file = File::open(second.join("file")).expect("open");
    fs::remove_file(cluster.mount(2).join("file")).expect("unlink");
    drop(first_file);
    // Time for the daemon to tell the others what it no longer holds.
    write_and_sync(&cluster.mount(1).join("marker"), b"x").expect("write");
    std::thread::sleep(Duration::from_millis(700));
    let mut bytes = Vec::new();
    second_file.read_to_end(&mut bytes).expect("read");
    assert_eq!(bytes, b"still here");
    drop(second_file);
    cluster.settle();
}

#[test]
fn a_subtree_is_all_that_its_mount_shows() {
    let cluster = Cluster::up(3);
    let whole = cluster.mount(2);
    fs::create_dir_all(whole.join("models/large")).expect("mkdir");
    write_and_close(&whole.join("outside"), b"x").expect("write");
    write_and_close(&whole.join("models/large/weights"), b"1234").expect("write");
    let part = mount(&cluster, 1, "models/large", "part", "rw");
    assert_eq!(names(&part), ["weights"]);
    let source = format!("{}:/models/large", cluster.address(1));
    let (found, kind, _) = mounted(&part).expect("mounted");
    assert_eq!((found.as_str(), kind.as_str()), (source.as_str(), "fuse.quorumfs"));

    let inode = |path: &Path| fs::metadata(path).expect("stat").ino();
    assert_eq!(inode(&part), inode(&whole.join("models/large")));
    fs::create_dir(part.join("new")).expect("mkdir");
    write_and_close(&part.join("new/file"), b"new").expect("write");
    assert_eq!(fs::read(whole.join("models/large/new/file")).expect("read"), b"new");
    fs::rename(whole.join("models/large/weights"), whole.join("models/large/W")).expect("rename");
    assert_eq!(names(&part), ["W", "new"]);

    // What the kernel knows of its root is taken back as well.
    for mode in [0o700, 0o755, 0o711] {
        let mode = Permissions::from_mode(mode);
        fs::set_permissions(whole.join("models/large"), mode.clone()).expect("chmod");
        let seen = fs::metadata(&part).expect("stat").mode();
        assert_eq!(seen & 0o777, mode.mode());
    }
    let root = Permissions::from_mode(0o750);
    fs::set_permissions(&part, root).expect("chmod of the root");
    assert_eq!(fs::metadata(whole.join("models/large")).expect("stat").mode() & 0o777, 0o750);

    fs::remove_dir_all(whole.join("models/large")).expect("rm -r");
    assert_eq!(errno(fs::create_dir(part.join("late"))), Some(libc::ENOENT));
    // It goes once every session has said that nobody there holds it.
    wait_until(PATIENCE, "the directory to be gone", || {
        (errno(fs::metadata(&part)) == Some(libc::ESTALE)).then_some(())
    });
    assert!(umount(&[], &part).status.success());
}

/// The kernel refuses, and if somebody tells it not to, the daemon does. Reading leaves no trace.
#[test]
fn a_read_only_mount_changes_nothing() {
    let cluster = Cluster::up(3);
    let whole = cluster.mount(1);
    write_and_close(&whole.join("file"), b"bytes").expect("write");
    fs::create_dir(whole.join("dir")).expect("mkdir");
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let file = File::options().write(true).open(whole.join("file")).expect("open");
    file.set_times(fs::FileTimes::new().set_accessed(long_ago)).expect("utimens");
    drop(file);
    let atime = |path: &Path| fs::metadata(path).expect("stat").accessed().expect("a time");

    let read_only = mount(&cluster, 1, "", "ro", "ro");
    let no_atime = mount(&cluster, 1, "", "noatime", "noatime,nosuid,nodev,noexec");
    assert!(has_option(&read_only, "ro") && has_option(&no_atime, "rw"));
    for option in ["noatime", "nosuid", "nodev", "noexec"] {
        assert!(has_option(&no_atime, option), "{option}");
    }
    let refuses = || {
        let path = read_only.join("file");
        assert_eq!(errno(File::create(read_only.join("new"))), Some(libc::EROFS));
        assert_eq!(errno(File::options().append(true).open(&path)), Some(libc::EROFS));
        assert_eq!(errno(fs::create_dir(read_only.join("new"))), Some(libc::EROFS));
        assert_eq!(errno(fs::remove_dir(read_only.join("dir"))), Some(libc::EROFS));
        assert_eq!(errno(fs::rename(&path, read_only.join("new"))), Some(libc::EROFS));
        let mode = Permissions::from_mode(0o600);
        assert_eq!(errno(fs::set_permissions(&path, mode)), Some(libc::EROFS));
        assert_eq!(fs::read(&path).expect("read"), b"bytes");
    };
    refuses();
    // Without our helper only the kernel is told.
    succeed(Command::new("mount").args(["-i", "-o", "remount,rw"]).arg(&read_only));
    assert!(has_option(&read_only, "rw"));
    refuses();

    assert_eq!(fs::read(no_atime.join("file")).expect("read"), b"bytes");
    // Touches are told to the others within 200 ms.
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(atime(&whole.join("file")), long_ago);
    assert_eq!(fs::read(whole.join("file")).expect("read"), b"bytes");
    wait_until(PATIENCE, "a touch", || (atime(&whole.join("file")) > long_ago).then_some(()));
}

/// EBUSY while a file is open; lazily it goes at once, and what is written still arrives.
#[test]
fn a_busy_mount_can_be_left_behind() {
    let cluster = Cluster::up(3);
    let second = mount(&cluster, 1, "", "second", "rw");
    let mut file = File::create(second.join("file")).expect("create");
    file.write_all(b"one ").expect("write");
    let refused = umount(&[], &second);
    assert_eq!(refused.status.code(), Some(32), "{}", text(&refused.stderr));
    let refused = quorumfs().arg("umount").arg(&second).output().expect("it runs");
    assert!(text(&refused.stderr).contains("is busy"), "{}", text(&refused.stderr));
    assert!(mounted(&second).is_some());

    assert!(umount(&["-l"], &second).status.success());
    assert_eq!(mounted(&second), None);
    assert_eq!(names(&second), Vec::<String>::new());
    assert!(listed(&cluster, 1).contains(&(second.clone(), false)), "it serves still");
    file.write_all(b"two").expect("write");
    drop(file);
    assert_eq!(fs::read(cluster.mount(3).join("file")).expect("read"), b"one two");
    wait_until(PATIENCE, "the daemon to forget the mount", || {
        (listed(&cluster, 1).len() == 1).then_some(())
    });

    // The same place again, and the other way to do it.
    mount(&cluster, 1, "", "second", "rw");
    let mut file = File::create(second.join("again")).expect("create");
    file.write_all(b"three").expect("write");
    succeed(quorumfs().args(["umount", "--lazy"]).arg(&second));
    drop(file);
    assert_eq!(fs::read(cluster.mount(2).join("again")).expect("read"), b"three");
}

/// Programs that still run have lost their locks once their mount was forced away, or its daemon stopped.
#[test]
fn locks_go_with_their_mount() {
    let cluster = Cluster::up(3);
    let second = mount(&cluster, 1, "", "second", "rw");
    let [mut forced, mut stopped, mut other] = [second.clone(), cluster.mount(2), cluster.mount(3)]
        .map(|mount| Program::with(&mount.join("file")));
    assert_eq!(forced.ask("fcntl f w 0 10"), "ok");
    assert_eq!(stopped.ask("flock f s"), "EAGAIN");
    assert_eq!(stopped.ask("fcntl f w 10 10"), "ok");
    assert_eq!(other.ask("fcntl f w 0 10"), "EAGAIN");
    assert!(umount(&["-f", "-l"], &second).status.success());
    assert_eq!(other.ask("fcntl f w 0 10 wait"), "ok", "once the mount is gone");
    // What the kernel has cached it may still read for a while.
    assert_eq!(forced.ask("write f 0 late"), "ENOTCONN");
    // The daemon's other mount goes on.
    let mut first = Program::with(&cluster.mount(1).join("file"));
    assert_eq!(first.ask("fcntl f w 20 10"), "ok");

    assert_eq!(other.ask("fcntl f w 10 10"), "EAGAIN");
    let is_second = |node: &Node| node.id == 2;
    let pid = cluster.status().nodes.into_iter().find(is_second).expect("it is known").pid;
    cluster.kill(2, "TERM");
    assert_eq!(other.ask("fcntl f w 10 10 wait"), "ok", "once the daemon has stopped");
    assert_eq!(other.ask("fcntl f w 20 10"), "EAGAIN");
    // It answers nobody some time before it has ended.
    let program = format!("/proc/{pid}/exe");
    wait_until(PATIENCE, "the daemon to end", || fs::read_link(&program).is_err().then_some(()));
    cluster.start(2);
    cluster.settle();
}

/// A container that has a copy of the table of mounts holds up neither umount nor the daemon's end.
#[test]
#[ignore = "long"]
fn other_namespaces_hold_up_nobody() {
    let cluster = Cluster::up(1);
    let second = mount(&cluster, 1, "", "second", "rw");
    let mut container = Command::new("unshare");
    let container = container.args(["--mount", "--propagation", "private", "cat"]);
    let mut container = container.stdin(std::process::Stdio::piped()).spawn().expect("it runs");
    let table = format!("/proc/{}/comm", container.id());
    wait_until(PATIENCE, "the container", || {
        (fs::read_to_string(&table).ok()?.trim() == "cat").then_some(())
    });
    write_and_close(&second.join("file"), b"x").expect("write");
    succeed(quorumfs().arg("umount").arg(&second));
    assert_eq!(fs::read(cluster.mount(1).join("file")).expect("read"), b"x");
    assert!(listed(&cluster, 1).contains(&(second, false)), "the container has it still");
    cluster.down();
    drop(container.stdin.take());
    container.wait().expect("it ends");
}

/// The daemon and its other mounts go on without one.
#[test]
fn a_mount_that_is_unmounted_leaves_the_others() {
    let cluster = Cluster::up(3);
    let second = mount(&cluster, 1, "", "second", "rw");
    write_and_close(&second.join("file"), b"x").expect("write");
    succeed(quorumfs().arg("umount").arg(cluster.mount(1)));
    assert_eq!(listed(&cluster, 1), [(second.clone(), true)]);
    assert!(!cluster.status().nodes[0].mounted);
    write_and_close(&second.join("file"), b"y").expect("write");
    assert!(umount(&[], &second).status.success());
    wait_until(PATIENCE, "no mount", || listed(&cluster, 1).is_empty().then_some(()));
    write_and_close(&cluster.mount(2).join("file"), b"z")
        .expect("nobody waits for node 1's kernel");
    let again = mount(&cluster, 1, "", "second", "rw");
    assert_eq!(fs::read(again.join("file")).expect("read"), b"z");
}

#[test]
fn fstab_and_remount_work_as_for_any_file_system() {
    let (helper, cluster) = (Helper::install(), Cluster::up(3));
    fs::create_dir(cluster.mount(1).join("models")).expect("mkdir");
    write_and_close(&cluster.mount(1).join("models/file"), b"x").expect("write");
    let models = point(&cluster, "models");
    let fstab = cluster.dir().join("fstab");
    let spec = format!("{}:/models", cluster.address(1));
    let line = format!("{spec} {} quorumfs ro,noatime,nofail,_netdev 0 0\n", models.display());
    fs::write(&fstab, line).expect("write");
    let mount = || {
        let mut mount = Command::new("mount");
        mount.arg("-T").arg(&fstab);
        mount
    };
    succeed(mount().arg(&models));
    let (source, kind, _) = mounted(&models).expect("mounted");
    assert_eq!((source, kind.as_str()), (spec, "fuse.quorumfs"));
    assert!(has_option(&models, "ro") && has_option(&models, "noatime"));
    succeed(mount().arg("-a"));
    assert_eq!(listed(&cluster, 1).len(), 2, "mounted once");

    assert_eq!(errno(File::create(models.join("new"))), Some(libc::EROFS));
    succeed(Command::new("mount").args(["-o", "remount,rw"]).arg(&models));
    assert!(has_option(&models, "rw") && has_option(&models, "noatime"));
    let mut file = File::create(models.join("new")).expect("create");
    let busy = Command::new("mount").args(["-o", "remount,ro"]).arg(&models).output();
    let busy = busy.expect("mount runs");
    assert_eq!(busy.status.code(), Some(32), "{}", text(&busy.stderr));
    file.write_all(b"written").expect("still for writing");
    drop(file);
    succeed(Command::new("mount").args(["-o", "remount,ro"]).arg(&models));
    assert_eq!(errno(File::create(models.join("newer"))), Some(libc::EROFS));
    assert_eq!(fs::read(cluster.mount(2).join("models/new")).expect("read"), b"written");
    assert!(umount(&[], &models).status.success());
    assert_eq!(mounted(&models), None);
    drop((cluster, helper));
}

/// Each mistake has its sentence, and the exit code that mount(8) documents.
#[test]
fn what_cannot_be_mounted_is_said() {
    let (helper, cluster) = (Helper::install(), Cluster::up(1));
    let address = cluster.address(1);
    write_and_close(&cluster.mount(1).join("file"), b"x").expect("write");
    let free = point(&cluster, "free");
    let missing = cluster.dir().join("missing");
    let wanted = [
        (format!("{address}:/"), &free, "quota", 1, "unknown mount option \"quota\""),
        (format!("{address}:/"), &free, "read=weak", 1, "bounded=SECONDS"),
        (format!("{address}:/none"), &free, "rw", 32, "no directory \"/none\""),
        (format!("{address}:/file"), &free, "rw", 32, "no directory \"/file\""),
        (format!("{address}:/"), &missing, "rw", 32, "create the directory first"),
        (format!("{address}:/"), &cluster.mount(1), "rw", 32, "already mounted"),
        ("127.0.0.1:1:/".to_owned(), &free, "rw", 32, "no quorumfs daemon answers"),
        ("/dev/sda".to_owned(), &free, "rw", 1, "is not HOST:PORT"),
        (format!("{address}:/"), &free, "remount,ro", 32, "is not a mount of this daemon"),
    ];
    for (spec, dir, options, code, sentence) in wanted {
        let mut mount = Command::new("/sbin/mount.quorumfs");
        let output = mount.arg(&spec).arg(dir).args(["-o", options]).output().expect("it runs");
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(code), 1), "{said}");
        assert!(said.contains(sentence), "{said}");
    }
    let nothing = quorumfs().arg("umount").arg(&free).output().expect("it runs");
    assert!(text(&nothing.stderr).contains("is not a quorumfs mount"));
    assert_eq!(listed(&cluster, 1).len(), 1);
    drop((cluster, helper));
}

/// The daemon is root and mounts wherever it is told; and who leads is not everybody's business.
#[test]
fn only_root_may_change_anything() {
    let cluster = Cluster::up(1);
    let address = cluster.address(1);
    let program = File::open(quorumfs().get_program()).expect("the program");
    let refused = |arguments: &[&str]| {
        // By its descriptor: nobody may not look into the directories above it.
        let mut as_nobody = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        let output = as_nobody.uid(65534).current_dir("/").args(arguments).output();
        let output = output.expect("it runs");
        assert!(!output.status.success());
        text(&output.stderr)
    };
    let mount = refused(&["mount", &address, "/mnt"]);
    assert_eq!(mount, "quorumfs: only root may mount and unmount\n");
    let transfer = refused(&["leader", "transfer", "--addr", &address]);
    assert!(transfer.contains("only root may hand leadership over"), "{transfer}");
}

/// A daemon that was killed leaves mounts that answer nothing: whatever comes next takes all of them away.
#[test]
#[ignore = "long"]
fn no_dead_mount_stays() {
    let cluster = Cluster::up(3);
    let config = cluster.dir().join("n1").join("quorumfs.toml");
    let second = mount(&cluster, 1, "", "a second", "rw");
    let die = || {
        cluster.kill(1, "KILL");
        let found = errno(fs::metadata(&second));
        assert!(matches!(found, Some(libc::ECONNABORTED | libc::ENOTCONN)), "{found:?}");
    };
    die();
    cluster.start(1);
    assert_eq!(mounted(&second), None, "the next start");
    assert_eq!(listed(&cluster, 1).len(), 1, "only the mount of the configuration comes back");

    mount(&cluster, 1, "", "a second", "rw");
    die();
    succeed(quorumfs().arg("cleanup").arg("--config").arg(&config));
    assert_eq!((mounted(&second), mounted(&cluster.mount(1))), (None, None), "cleanup");

    cluster.start(1);
    mount(&cluster, 1, "", "a second", "rw");
    die();
    succeed(quorumfs().arg("umount").arg(&second));
    assert_eq!(mounted(&second), None, "umount without a daemon");

    cluster.start(1);
    mount(&cluster, 1, "", "a second", "rw");
    die();
    cluster.down();
    assert_eq!(mounted(&second), None, "dev down");
}
