//! The conformance suite `pjdfstest` (the crate of that name): on every mount, and while leaders die.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::support::{Cluster, succeed, text, tool};

/// How many leaders have to die while the suite runs.
const KILLS: usize = 10;
/// How long a new leader leads.
const REIGN: Duration = Duration::from_secs(2);
/// The node whose mount the suite uses; it is never killed.
const OWN: u64 = 1;

/// Everything that Linux has: the other features are flags of files and ACLs of FreeBSD. Any two users
/// do.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.01

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// The suite and what it needs beside a mount.
struct Suite {
    program: PathBuf,
    /// Holds the configurations, and is on another file system.
    dir: tempfile::TempDir,
}

#[test]
#[ignore = "long: it needs the program pjdfstest"]
fn pjdfstest_on_every_mount() {
    let suite = Suite::new();
    let cluster = Cluster::up(3);
    for node in 1..=3 {
        suite.run(&cluster.mount(node));
    }
}

#[test]
#[ignore = "long: it needs the program pjdfstest"]
fn pjdfstest_while_leaders_die() {
    let suite = Suite::new();
    let cluster = Cluster::up(3);
    let (running, killed) = (AtomicBool::new(false), AtomicBool::new(false));
    let mount = cluster.mount(OWN);
    thread::scope(|scope| {
        let tester = scope.spawn(|| {
            while !killed.load(Ordering::Relaxed) {
                running.store(true, Ordering::Relaxed);
                suite.run(&mount);
                running.store(false, Ordering::Relaxed);
            }
        });
        let mut kills = 0;
        while kills < KILLS && !tester.is_finished() {
            kills += usize::from(kill_leader(&cluster, &running));
        }
        killed.store(true, Ordering::Relaxed);
    });
    cluster.settle();
}

/// Kills the leader, and brings its node back when there is another. Answers whether the suite ran at
/// that moment.
fn kill_leader(cluster: &Cluster, running: &AtomicBool) -> bool {
    thread::sleep(REIGN);
    let leader = cluster.leader_beside(OWN);
    let ran = running.load(Ordering::Relaxed);
    cluster.kill(leader, "KILL");
    cluster.leader_other_than(leader);
    cluster.start(leader);
    ran
}

impl Suite {
    fn new() -> Self {
        let program = tool("pjdfstest", "cargo install pjdfstest --version 0.2.2");
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in /dev/shm");
        fs::write(dir.path().join("writable.toml"), CONFIGURATION).expect("write");
        let remounting = CONFIGURATION.replace("[settings]", "[settings]\nallow_remount = true");
        fs::write(dir.path().join("remounting.toml"), remounting).expect("write");
        // mount(8) would leave a remount to a helper for FUSE, which starts a daemon.
        let internal = "#!/bin/sh\nexec /bin/mount --internal-only \"$@\"\n";
        fs::write(dir.path().join("mount"), internal).expect("write");
        succeed(Command::new("chmod").arg("755").arg(dir.path().join("mount")));
        Self { program, dir }
    }

    /// Runs all of it. The tests that make the mount read-only run by themselves: others leave files
    /// open for writing.
    fn run(&self, mount: &Path) {
        let skipped = self.run_part("writable.toml", mount, &[]);
        let others = skipped.iter().filter(|test| !test.contains("::erofs_"));
        // glibc knows no LINK_MAX of ours; `names` has a test of it.
        assert_eq!(others.collect::<Vec<_>>(), ["link::link_count_max"]);
        let skipped = self.run_part("remounting.toml", mount, &["::erofs_"]);
        assert_eq!(skipped, [""; 0]);
    }

    /// Runs what must not fail, and answers what was skipped.
    fn run_part(&self, configuration: &str, mount: &Path, patterns: &[&str]) -> Vec<String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut paths = vec![self.dir.path().to_path_buf()];
        paths.extend(std::env::split_paths(&path));
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.dir.path().join(configuration));
        command.arg("-s").arg(self.dir.path()).arg("-p").arg(mount).args(patterns);
        command.env("PATH", std::env::join_paths(paths).expect("no colon in a temporary name"));
        let output = command.output().expect("it is a program");
        judge(&output)
    }
}

fn judge(output: &Output) -> Vec<String> {
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{printed}{}", text(&output.stderr));
    let passed = printed.lines().filter(|line| line.ends_with(" ok")).count();
    assert!(passed > 10, "it tested nothing: {printed}");
    let skipped = printed.lines().filter(|line| line.ends_with(" skipped"));
    skipped.map(|line| line.trim_end_matches("skipped").trim_end().to_owned()).collect()
}
