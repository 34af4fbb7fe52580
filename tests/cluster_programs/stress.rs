//! stress-ng: its file-system stressors complain about no more than on a local file system.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::thread;

use super::support::{Cluster, temporary_dir, text, tool};

/// What stress-ng found wrong in a directory, as messages without what differs from run to run.
struct Report {
    complaints: BTreeSet<String>,
    /// The stressors that ran.
    ran: BTreeSet<String>,
    said: String,
}

impl Report {
    fn of(dir: &Path) -> Self {
        let stress = tool("stress-ng", "apt-get install stress-ng");
        let seconds = std::env::var("QUORUMFS_STRESS_SECONDS").unwrap_or_else(|_| "20".to_owned());
        let mut command = Command::new(stress);
        command.args(["--class", "filesystem", "--sequential", "2", "--timeout"]);
        command.arg(format!("{seconds}s")).arg("--temp-path").arg(dir);
        let output = command.current_dir(dir).output().expect("it is there");
        let said = text(&output.stdout) + &text(&output.stderr);
        // 2 is what a stressor that failed makes of it, 3 one that was skipped.
        assert!(matches!(output.status.code(), Some(0 | 2 | 3)), "{}: {said}", output.status);
        let messages = || said.lines().filter_map(Self::message);
        let is_complaint = |kind: &str| kind == "fail" || kind == "error";
        let complaints = messages().filter(|(kind, _)| is_complaint(kind));
        let place = dir.to_string_lossy();
        let complaints =
            complaints.map(|(_, text)| normalize(&text.replace(&*place, "DIR"))).collect();
        let started = messages().filter_map(|(_, text)| text.strip_prefix("dispatching hogs: 2 "));
        let ran = started.flat_map(|all| all.split(", 2 ").map(str::to_owned)).collect();
        Self { complaints, ran, said }
    }

    /// The kind and the text of `stress-ng: fail:  [123] chmod: fchmod failed, errno=5`.
    fn message(line: &str) -> Option<(&str, &str)> {
        let (kind, rest) = line.strip_prefix("stress-ng: ")?.split_once(':')?;
        Some((kind, rest.split_once("] ")?.1.trim()))
    }
}

/// Numbers are processes, addresses and counts: but for that of an error.
fn normalize(text: &str) -> String {
    let mut normal = String::new();
    for word in text.split_inclusive(|c: char| c.is_whitespace() || c == ',') {
        let keeps = word.contains("errno");
        let digits = |c: char| if c.is_ascii_digit() && !keeps { '#' } else { c };
        normal.extend(word.chars().map(digits));
    }
    while normal.contains("##") {
        normal = normal.replace("##", "#");
    }
    normal
}

/// Both at once: half an hour is enough. `QUORUMFS_STRESS_SECONDS` is how long each stressor runs, 20 otherwise.
#[test]
#[ignore = "long: it needs the program stress-ng"]
fn stress_ng_finds_no_more_than_locally() {
    let local = temporary_dir("local");
    let cluster = Cluster::up(3);
    let (wanted, found) = thread::scope(|scope| {
        let wanted = scope.spawn(|| Report::of(local.path()));
        let found = Report::of(&cluster.mount(1));
        (wanted.join().expect("it says why"), found)
    });
    assert!(found.ran.len() > 20, "it did next to nothing: {}", found.said);
    assert_eq!(found.ran, wanted.ran);
    let more: Vec<_> = found.complaints.difference(&wanted.complaints).collect();
    assert!(more.is_empty(), "{more:#?}\n{}", found.said);
    println!("{} stressors; on both: {:#?}", found.ran.len(), wanted.complaints);
    cluster.settle();
}
