//! `O_APPEND` from several mounts at once: no record is lost, torn or overwritten, and nobody who follows
//! the file sees anything but records.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command};

use super::support::{Cluster, PATIENCE, wait_until};

const RECORDS: usize = 120;

/// Appends records of different lengths, each by one write(2). `#` as often as the record says is its end.
const APPENDER: &str = r"
import fcntl, os, sys
path, writer, style = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def opened():
    if style == 'fcntl':
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
        return file
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_DSYNC if style == 'sync' else 0))
file = opened()
for number in range(RECORDS):
    long = style == 'keep' and number % 40 == 7
    filler = 700_000 + writer if long else number * 397 * (writer + 1) % 9000
    record = b'%d %d %d %s\n' % (writer, number, filler, b'#' * filler)
    assert os.write(file, record) == len(record)
    if style == 'reopen':
        os.close(file)
        file = opened()
os.close(file)
";

fn appender(path: &Path, writer: usize, style: &str) -> Child {
    let mut python = Command::new("python3");
    let script = APPENDER.replace("RECORDS", &RECORDS.to_string());
    python.args(["-c", &script]).arg(path).arg(writer.to_string()).arg(style);
    python.spawn().expect("python3 runs")
}

/// What has been read of the file so far, of which each line must be a record.
#[derive(Default)]
struct Reading {
    rest: Vec<u8>,
    bytes: usize,
    /// The next number of each writer.
    next: BTreeMap<usize, usize>,
}

impl Reading {
    fn go_on(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<_> = self.rest.drain(..=end).collect();
            self.check(&line[..end]);
        }
    }

    fn check(&mut self, line: &[u8]) {
        let shown = String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned();
        let at = self.bytes - self.rest.len() - line.len() - 1;
        let broken = || panic!("no record at {at}: {shown:?}, {} bytes", line.len());
        let mut fields = line.splitn(4, |&byte| byte == b' ');
        let mut number =
            || -> Option<usize> { std::str::from_utf8(fields.next()?).ok()?.parse().ok() };
        let (Some(writer), Some(seq), Some(filler)) = (number(), number(), number()) else {
            broken()
        };
        if !fields
            .next()
            .is_some_and(|rest| rest.len() == filler && rest.iter().all(|&b| b == b'#'))
        {
            broken();
        }
        let next = self.next.entry(writer).or_default();
        assert_eq!(seq, *next, "record of writer {writer} at {at}");
        *next += 1;
    }

    fn assert_complete(&self, writers: usize) {
        let wanted: BTreeMap<_, _> = (0..writers).map(|writer| (writer, RECORDS)).collect();
        assert_eq!((self.rest.len(), &self.next), (0, &wanted));
    }
}

/// Writers on the first `mounts` mounts, in each style one on each; followed on the last mount.
fn append_together(mounts: u64, styles: &[&str]) {
    let cluster = Cluster::up(3);
    fs::write(cluster.mount(3).join("log"), "").expect("write");
    let mut followed = File::open(cluster.mount(3).join("log")).expect("open");
    let mut appenders = Vec::new();
    for style in styles {
        for node in 1..=mounts {
            appenders.push(appender(&cluster.mount(node).join("log"), appenders.len(), style));
        }
    }
    let writers = appenders.len();
    let mut reading = Reading::default();
    let mut bytes = vec![0; 1 << 20];
    while !appenders.is_empty() {
        let len = followed.read(&mut bytes).expect("read");
        reading.go_on(&bytes[..len]);
        appenders.retain_mut(|appender| match appender.try_wait().expect("it is ours") {
            Some(status) => {
                assert!(status.success(), "{status}");
                false
            }
            None => true,
        });
    }
    for node in 1..=3 {
        let mut all = Reading::default();
        all.go_on(&fs::read(cluster.mount(node).join("log")).expect("read"));
        all.assert_complete(writers);
    }
    wait_until(PATIENCE, "the follower to come to the end", || {
        let len = followed.read(&mut bytes).expect("read");
        reading.go_on(&bytes[..len]);
        (len == 0 && reading.next.values().all(|&next| next == RECORDS)).then_some(())
    });
    reading.assert_complete(writers);
    cluster.settle();
}

#[test]
fn two_mounts_append_to_one_file() {
    append_together(2, &["keep", "reopen", "sync"]);
}

/// The follower's mount writes, too.
#[test]
fn three_mounts_append_to_one_file() {
    append_together(3, &["keep", "reopen", "sync"]);
}

#[test]
fn one_mount_appends_in_every_way() {
    append_together(1, &["keep", "reopen", "sync", "fcntl"]);
}

/// Where `O_APPEND` came after the open, other mounts may divide a write (`docs/posix.md`), and that is all.
#[test]
fn nothing_is_lost_or_overwritten_where_append_came_after_open() {
    const WRITES: usize = 60;
    let cluster = Cluster::up(3);
    let script = format!(
        "import fcntl, os, sys
file = os.open('log', os.O_WRONLY | os.O_CREAT)
fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
for number in range({WRITES}):
    assert os.write(file, sys.argv[1].encode() * (number * 397 % 9000)) == number * 397 % 9000"
    );
    let writers: Vec<_> = [("a", 1), ("b", 1), ("c", 2), ("d", 2), ("e", 3)]
        .map(|(byte, node)| {
            let mut python = Command::new("python3");
            python.args(["-c", &script, byte]).current_dir(cluster.mount(node));
            python.spawn().expect("python3 runs")
        })
        .into();
    let letters = writers.len();
    for mut writer in writers {
        assert!(writer.wait().expect("it is ours").success());
    }
    let each: usize = (0..WRITES).map(|number| number * 397 % 9000).sum();
    for node in 1..=3 {
        let mut counts = BTreeMap::new();
        for byte in fs::read(cluster.mount(node).join("log")).expect("read") {
            *counts.entry(byte).or_insert(0) += 1;
        }
        let wanted: BTreeMap<_, _> = (b'a'..).take(letters).map(|byte| (byte, each)).collect();
        assert_eq!(counts, wanted, "mount {node}");
    }
    cluster.settle();
}
