//! strace(1): says which calls a daemon makes, and kills it before one of them.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::points::{CALLS, Point};
use super::support::{PATIENCE, wait_until};

/// A running strace that is attached to a daemon, whose threads it lets go when dropped.
#[derive(Debug)]
pub struct Attached(Child);

/// The options that have all calls written to a file.
pub fn all_calls(trace: &Path) -> Vec<String> {
    let calls = format!("trace={}", CALLS.join(","));
    let options = ["-f", "--seccomp-bpf", "-y", "-Y", "-s", "4", "-e", &calls, "-o"];
    options.into_iter().chain([trace.to_str().expect("UTF-8")]).map(str::to_owned).collect()
}

/// The options that have a process killed.
pub fn kill_at(point: &Point) -> Vec<String> {
    let Point { call, number, .. } = point;
    let trace = format!("trace={call}");
    let inject = format!("inject={call}:signal=KILL:when={number}");
    let options = ["-e", &trace, "-e", &inject, "-o", "/dev/null"];
    options.map(str::to_owned).to_vec()
}

impl Attached {
    /// To all threads of a process, and those that it will have.
    pub fn to_all(pid: u32, trace: &Path) -> Self {
        // What seccomp(2) filters has to be followed from its start.
        let options = all_calls(trace).into_iter().filter(|option| option != "--seccomp-bpf");
        Self::attach(pid, &[pid], &options.collect::<Vec<_>>())
    }

    /// To the threads of a name, one of which will be killed, and the others with it.
    pub fn to_threads(pid: u32, point: &Point) -> Self {
        let threads: Vec<_> =
            threads(pid).into_iter().filter(|(_, name)| *name == point.thread).collect();
        let threads: Vec<_> = threads.into_iter().map(|(thread, _)| thread).collect();
        Self::attach(pid, &threads, &kill_at(point))
    }

    fn attach(pid: u32, threads: &[u32], options: &[String]) -> Self {
        let mut strace = Command::new("strace");
        strace.args(options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        for thread in threads {
            strace.args(["-p", &thread.to_string()]);
        }
        let child = strace.spawn().expect("strace is installed");
        let is_traced = |thread: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"));
            status.is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
        };
        let attached = Self(child);
        // The first thread may come to the call before strace has the last one.
        let has_ended = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status"));
            status.map_or(true, |status| status.contains("State:\tZ"))
        };
        let is_done = || threads.iter().all(is_traced) || has_ended();
        wait_until(PATIENCE, "strace", || is_done().then_some(()));
        attached
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // By SIGTERM, which has it detach.
        let _ = Command::new("kill").arg(self.0.id().to_string()).output();
        let _ = self.0.wait();
    }
}

/// The threads of a process, with their names.
fn threads(pid: u32) -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let thread = |entry: fs::DirEntry| {
        let name = fs::read_to_string(entry.path().join("comm")).ok()?.trim_end().to_owned();
        Some((entry.file_name().to_str()?.parse().ok()?, name))
    };
    entries.flatten().filter_map(thread).collect()
}
