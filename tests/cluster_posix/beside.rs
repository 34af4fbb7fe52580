//! The same shell commands in a directory of a local file system and in one of a cluster, there from
//! its mounts in turn: they must print and leave the same.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::support::{Cluster, temporary_dir, text};

/// A directory of the cluster and one beside it.
pub struct Beside {
    local: TempDir,
    name: &'static str,
    mounts: Vec<PathBuf>,
    steps: usize,
}

impl Beside {
    /// Makes the directory on both sides, with all permissions for everybody.
    pub fn new(cluster: &Cluster, name: &'static str) -> Self {
        let local = temporary_dir("local");
        let mounts = vec![cluster.mount(1), cluster.mount(2)];
        let beside = Self { local, name, mounts, steps: 0 };
        let make = format!("umask 0; mkdir {name}");
        for dir in [beside.local.path(), &beside.mounts[0]] {
            assert_eq!(run(dir, &make), "0\n");
        }
        beside
    }

    /// Runs one command on both sides, and compares what it and then `look` print. `look` runs on every
    /// mount.
    pub fn step(&mut self, command: &str, look: &str) {
        let mount = &self.mounts[self.steps % self.mounts.len()];
        self.steps += 1;
        let local = self.local.path().join(self.name);
        let wanted = run(&local, command);
        assert_same(&run(&mount.join(self.name), command), &wanted, command);
        let wanted = run(&local, look);
        for mount in &self.mounts {
            let when = format!("on {} after {command}", mount.display());
            assert_same(&run(&mount.join(self.name), look), &wanted, &when);
        }
    }
}

fn assert_same(found: &str, wanted: &str, when: &str) {
    let pairs = found.lines().zip(wanted.lines());
    let different: Vec<_> = pairs.filter(|(found, wanted)| found != wanted).collect();
    assert!(found == wanted, "{when}: found and wanted {different:#?}");
}

/// What a shell command prints in a directory, and its exit status.
pub fn run(dir: &Path, command: &str) -> String {
    let mut shell = Command::new("sh");
    shell.env("LC_ALL", "C").args(["-c", command]).current_dir(dir);
    let output = shell.output().expect("there is a shell");
    let code = output.status.code().expect("not killed");
    format!("{}{}{code}\n", text(&output.stdout), text(&output.stderr))
}
