//! Where a replica can be killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// What changes something on a disk, or makes that durable.
pub const CALLS: [&str; 22] = [
    "write",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "syncfs",
    "rename",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "ftruncate",
    "fallocate",
    "copy_file_range",
    "mkdir",
    "rmdir",
    "fsetxattr",
    "ioctl",
    "symlink",
];

/// What the replica does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scene {
    /// It becomes a member, with an empty data directory.
    Joins,
    /// It starts after it was killed.
    Starts,
    /// It follows what others write: in the log, by stages, with a snapshot of its own and a cut of the log.
    Works,
    /// It takes a snapshot from another one, as it was away for too long.
    Installs,
}

/// One of them. Calls are counted from 1, for each thread.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    pub scene: Scene,
    /// Those of this name only, while it works; of any, where it is started.
    pub thread: String,
    pub call: String,
    pub number: usize,
}

impl Scene {
    pub const ALL: [Self; 4] = [Self::Works, Self::Starts, Self::Installs, Self::Joins];
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Joins => "joins",
            Self::Starts => "starts",
            Self::Works => "works",
            Self::Installs => "installs",
        })
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scene, thread, call, number } = self;
        write!(f, "{scene}, {thread}, {call} {number}")
    }
}

/// The points of a run, from what strace wrote of it (`-f -y -Y`): those whose call is about the data directory.
pub fn found_in(trace: &str, scene: Scene, data: &Path) -> Vec<Point> {
    let data = data.to_str().expect("UTF-8");
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut points = BTreeSet::new();
    for line in trace.lines() {
        let Some((who, call)) = begun(line) else { continue };
        let count = counts.entry((who, call)).or_default();
        *count += 1;
        if line.contains(data) && is_worth_it(line, call, *count) {
            let thread = match scene {
                Scene::Works => name(who),
                Scene::Joins | Scene::Starts | Scene::Installs => "any",
            };
            let (thread, call) = (thread.to_owned(), call.to_owned());
            points.insert(Point { scene, thread, call, number: *count });
        }
    }
    points.into_iter().collect()
}

/// `PID<NAME> CALL(…`: whose call it is, and which; nothing for the rest of a call, or for a signal.
fn begun(line: &str) -> Option<(&str, &str)> {
    let (who, rest) = line.split_once("> ")?;
    let (call, _) = rest.trim_start().split_once('(')?;
    CALLS.contains(&call).then_some((who, call))
}

fn name(who: &str) -> &str {
    who.split_once('<').map_or(who, |(_, name)| name)
}

/// Files of the log are made with thousands of writes of zeros: some of them will do.
fn is_worth_it(line: &str, call: &str, number: usize) -> bool {
    call != "write" || !line.contains(".raftlog") || number.is_multiple_of(512)
}

#[test]
fn points_are_found_in_what_strace_writes() {
    let trace = "\
        11<log> pwrite64(5</d/data/log/1>, \"x\"..., 40, 0) = 40\n\
        12<a b>  write(7<anon_inode:[eventfd]>, \"\\1\", 8 <unfinished ...>\n\
        11<log> fsync(5</d/data/log/1> <unfinished ...>\n\
        12<a b> <... write resumed>) = 8\n\
        12<a b> write(9</d/data/f>, \"y\", 1) = 1\n\
        13<a b> rename(\"/d/data/x\", \"/d/data/y\") = 0\n\
        13<a b> +++ killed by SIGKILL +++\n";
    let found: Vec<_> = found_in(trace, Scene::Works, Path::new("/d/data"));
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    let wanted = [
        "works, a b, rename 1",
        "works, a b, write 2",
        "works, log, fsync 1",
        "works, log, pwrite64 1",
    ];
    assert_eq!(found, wanted);
}
