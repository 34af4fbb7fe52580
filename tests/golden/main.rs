//! Encodings of format 1, byte for byte: what is in logs and snapshot files of clusters that are in use, and what nodes
//! say to each other.
//!
//! `QUORUMFS_WRITE_GOLDEN=1` writes the golden bytes anew: see `docs/formats.md`.
#![allow(clippy::disallowed_methods, reason = "the environment says whether to write")]

mod commands;
mod messages;
mod records;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use quorumfs::fs::proto;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/format-1");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

/// Compares records with the golden ones: a line for each, its name and its bytes.
#[track_caller]
fn compare(file: &str, records: &BTreeMap<String, Vec<u8>>, what_to_do: &str) {
    let path = format!("{GOLDEN}/{file}");
    let line = |(name, bytes): (&String, &Vec<u8>)| format!("{name} {}\n", hex(bytes));
    if std::env::var_os("QUORUMFS_WRITE_GOLDEN").is_some() {
        fs::write(&path, records.iter().map(line).collect::<Vec<_>>().concat()).expect("write");
        panic!(
            "{path} is written: look at what has changed, and run this without QUORUMFS_WRITE_GOLDEN"
        );
    }
    let text = fs::read_to_string(&path).expect("the golden records");
    let golden: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    for (name, bytes) in records {
        let wanted = golden.get(name.as_str()).copied().unwrap_or("nothing");
        assert!(
            hex(bytes) == wanted,
            "{name} is not encoded as in {path}.\nfound:  {}\nwanted: {wanted}\n{what_to_do}",
            hex(bytes)
        );
    }
    assert_eq!(golden.len(), records.len(), "{path} has records that nothing here makes");
}

const RAISE_LEVEL: &str = "Logs and snapshot files with those bytes are in use, and replicas of another version would come to \
     another state. Take the change back; or raise FEATURE_LEVEL (src/fs/limits.rs) and rpc::FORMAT, keep these golden \
     records readable, and write those of the new level (docs/formats.md, \"Changing a format\").";
const RAISE_FORMAT: &str = "Nodes of another version would misunderstand it. Take the change back; or raise rpc::FORMAT \
     (src/rpc/mod.rs), so that they refuse each other, and write the golden records anew (docs/formats.md, \"Changing a \
     format\").";

#[allow(clippy::unnecessary_wraps, reason = "as messages have it")]
fn time(seconds: i64) -> Option<proto::Time> {
    Some(proto::Time { seconds, nanos: 999 })
}

fn some_write() -> proto::Write {
    let inline = proto::Piece { offset: 3, data: "bytes".into(), length: 0, checksums: vec![] };
    proto::Write {
        ino: 5,
        pieces: vec![inline],
        append: true,
        kill_suid_sgid: true,
        stage: 0,
        loose: false,
        adds_only: false,
    }
}

fn lock() -> proto::Lock {
    proto::Lock { session: 3, owner: 4, start: 5, end: u64::MAX, exclusive: true, pid: 7 }
}
