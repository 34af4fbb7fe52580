//! Bytes that are in stages are there, and those that are nowhere are named.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::{Checks, Entries, Incomplete, Member, MissingRange, Stopped, export, fsck, outlook};
use crate::fs::proto::{self, AddMember, command::Op};
use crate::fs::query;
use crate::fs::{Digest, Verdict};
use crate::store::test_replica::{Author, TIME, append, contents, last};
use crate::types::{Ino, LogIndex, Timestamp};

const LEN: usize = 300_000;

/// Of three files the bytes of the first are in a stage that was written, those of the second in one that is to be, and
/// some of those of the third are not here. A member was added; the last entry is not known to be committed.
fn replica() -> Author {
    let mut author = Author::new();
    let recovered = author.start("boot");
    let mut entries = vec![author.session()];
    let [written, fresh, missing] = [1, 2, 3].map(|content| vec![content; LEN]);
    let (ino, made) = author.make("written");
    entries.extend([made, author.write_stage(ino, 1, 0, &written)]);
    let applied = last(&entries);
    let (ino, made) = author.make("fresh");
    entries.extend([made, author.write_stage(ino, 2, 0, &fresh)]);
    let (ino, made) = author.make("missing");
    entries.extend([made, author.write(ino, 0, &missing[..1000])]);
    entries.push(author.write_stage(ino, 3, 4096, &missing[4096..]));
    let member = AddMember { nonce: 7, address: "host:1".to_owned(), learner: false };
    entries.push(author.cluster(Op::AddMember(member)));
    entries.push(author.unlink("fresh"));
    for (number, bytes) in [(1, &written), (2, &fresh)] {
        recovered.files.stage(author.stage(number), 0, bytes).unwrap();
    }
    append(&recovered, &entries, last(&entries).0 - 1);
    recovered.replay(applied).unwrap();
    recovered.state.flush().unwrap();
    author
}

#[test]
fn staged_bytes_are_exported_and_missing_ones_are_holes() {
    let author = replica();
    let before = contents(&author.data());
    for boot in ["boot", "another"] {
        let data = author.open(boot);
        let stopped = Stopped::open(&data, Some(author.dir.path()), Entries::Committed).unwrap();
        let target = author.dir.path().join(boot);
        let exported = export(&stopped, &target).unwrap();
        let whole: Vec<_> = ["written", "fresh"]
            .iter()
            .map(|name| std::fs::read(target.join(name)).unwrap())
            .collect();
        assert!(whole == [vec![1; LEN], vec![2; LEN]]);
        let mut partly = vec![0; LEN];
        partly[..1000].fill(3);
        assert!(std::fs::read(target.join("missing")).unwrap() == partly);
        let path = target.join("missing").to_string_lossy().into_owned();
        let missing = [MissingRange { path, start: 4096, end: LEN as u64 }];
        assert_eq!((exported.missing.as_slice(), &exported.failed[..]), (&missing[..], &[][..]));
        assert_eq!((exported.files, exported.bytes), (3, 3 * LEN as u64));
        assert_eq!(exported.last_index, exported.index + 1);
    }
    let all = author.open("boot");
    let stopped = Stopped::open(&all, Some(author.dir.path()), Entries::All).unwrap();
    let target = author.dir.path().join("all");
    assert_eq!(export(&stopped, &target).unwrap().files, 2);
    assert!(!target.join("fresh").exists());
    drop(stopped);
    assert!(contents(&author.data()) == before, "it has changed");
}

/// Whose trees people compare must know what is known against each.
#[test]
fn an_export_says_what_is_known_against_the_replica() {
    let mut author = Author::new();
    let recovered = author.start("boot");
    let mut entries = vec![author.session()];
    let (before, made) = author.make("before");
    entries.extend([made, author.write(before, 0, b"believed")]);
    let equal = last(&entries);
    let (after, made) = author.make("after");
    entries.extend([made, author.write(after, 0, b"in doubt")]);
    let verdict = |digest| Verdict { index: equal, digest }.to_op();
    entries.push(author.cluster(verdict(None)));
    let doubt = last(&entries);
    entries.push(author.cluster(Verdict { index: doubt, digest: Some(Digest::default()) }.to_op()));
    append(&recovered, &entries, doubt.0);
    drop(recovered);
    let exported = |entries, name: &str| {
        let data = author.open("boot");
        let stopped = Stopped::open(&data, Some(author.dir.path()), entries).unwrap();
        export(&stopped, &author.dir.path().join(name)).unwrap()
    };
    let doubts = exported(Entries::Committed, "in doubt").doubts;
    assert!(doubts.len() == 1 && doubts[0].contains(&format!("entry {equal}")), "{doubts:?}");
    let sound = exported(Entries::All, "sound");
    assert_eq!((sound.doubts, sound.doubted), (vec![], vec![]));
    author.open("boot").set_diverged(equal).unwrap();
    let differs = exported(Entries::All, "differs");
    assert!(differs.doubts.len() == 1 && differs.doubts[0].contains("differ"), "{differs:?}");
    let path = author.dir.path().join("differs/after");
    assert_eq!(differs.doubted, [path.to_string_lossy()]);
}

#[test]
fn missing_bytes_are_no_fault_but_are_lost_with_the_others() {
    let author = replica();
    let data = author.open("boot");
    let checks = Checks { scratch: Some(author.dir.path()), ..Checks::default() };
    let report = fsck(&data, checks).unwrap();
    assert_eq!(report.findings, []);
    let lacking = LEN as u64 - 4096;
    assert_eq!((report.files, report.missing_files, report.missing_bytes), (3, 1, lacking));
    assert_eq!(report.staged_files, 2);

    let stopped = Stopped::open(&data, Some(author.dir.path()), Entries::All).unwrap();
    let outlook = outlook(&stopped).unwrap();
    let missing = Incomplete { path: "/missing".to_owned(), ranges: vec![(4096, LEN as u64)] };
    assert_eq!(outlook.missing, [missing]);
    assert_eq!(outlook.members, [Member { node: 2, address: "host:1".to_owned() }]);
    assert_eq!((outlook.node, outlook.sessions), (1, 1));
    assert_eq!(outlook.last_index, outlook.committed + 1);
    let time = Timestamp { seconds: TIME.seconds, nanos: TIME.nanos };
    assert_eq!(outlook.last_time, Some(time));
}

/// What a session has staged that has ended, and checksums without a file.
#[test]
fn stages_that_nobody_needs_are_found_and_removed() {
    let author = replica();
    let stray = |path: &str| -> PathBuf { author.data().join(path) };
    let strays = [stray("stages/new/1.5"), stray("checksums/00/1.1")];
    for path in &strays {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"stray").unwrap();
    }
    let before = contents(&author.data());
    let data = author.open("boot");
    let checks = Checks { scratch: Some(author.dir.path()), ..Checks::default() };
    let found = fsck(&data, checks).unwrap().findings;
    assert_eq!(found.len(), 2, "{found:?}");
    for (finding, path) in found.iter().zip(strays.iter().rev()) {
        assert!(finding.what.contains(path.to_str().unwrap()) && !finding.repaired, "{finding:?}");
    }
    assert!(contents(&author.data()) == before, "it has changed");
    let repaired = fsck(&data, Checks { repair: true, ..checks }).unwrap().findings;
    assert!(repaired.len() == 2 && repaired.iter().all(|finding| finding.repaired), "{repaired:?}");
    assert!(strays.iter().all(|path| !path.exists()));
    assert_eq!(contents(&author.data()).len(), before.len() - 2);
    assert_eq!(fsck(&data, checks).unwrap().findings, []);
}

/// Files of which the backing file is gone, whole, cut, and rotten, and an empty one. Of the cut and rotten ones the checksums are
/// known.
fn replica_on_a_bad_disk() -> Author {
    let mut author = Author::new();
    let recovered = author.start("boot");
    let names = ["gone", "whole", "cut", "rotten"];
    let mut entries = vec![author.session()];
    for name in names {
        let (ino, made) = author.make(name);
        entries.extend([made, author.write(ino, 0, &vec![5; LEN])]);
    }
    let (empty, made) = author.make("empty");
    let truncate = proto::SetAttr { ino: empty.0, size: Some(0), ..proto::SetAttr::default() };
    entries.extend([made, author.of_session(Op::SetAttr(truncate))]);
    append(&recovered, &entries, last(&entries).0);
    recovered.replay(last(&entries)).unwrap();
    let files = &recovered.files;
    let mut paths = HashMap::new();
    for entry in query::readdir(&recovered.state.read(), Ino::ROOT, 0, 10).unwrap() {
        let inode = query::inode(&recovered.state.read(), entry.ino).unwrap().unwrap();
        let key = (entry.ino, inode.generation.into());
        let version = LogIndex(inode.data_version);
        let file = files.steady(key, version, inode.size, recovered.state.applied()).unwrap();
        if ["cut", "rotten"].map(str::as_bytes).contains(&&*entry.name) {
            let mut reader = files.read_blocks(&file);
            let sums: Vec<_> =
                (0..file.blocks()).map(|block| reader.sum(block).unwrap().unwrap()).collect();
            files.keep_checksums(&file, 0, &sums).unwrap();
        }
        paths.insert(entry.name, files.path_of(key.0, key.1));
    }
    recovered.files.sync().unwrap();
    recovered.state.flush().unwrap();
    let path = |name: &[u8]| &paths[name];
    let open = |name| std::fs::OpenOptions::new().write(true).open(path(name)).unwrap();
    std::fs::remove_file(path(b"gone")).unwrap();
    open(b"cut").set_len(100_000).unwrap();
    open(b"rotten").write_all_at(b"rot", 150_000).unwrap();
    author
}

/// Zeros in their place would be taken for what was written.
#[test]
fn what_the_disk_has_lost_is_named() {
    let author = replica_on_a_bad_disk();
    for boot in ["boot", "another"] {
        let data = author.open(boot);
        let stopped = Stopped::open(&data, Some(author.dir.path()), Entries::Committed).unwrap();
        let target = author.dir.path().join(boot);
        let exported = export(&stopped, &target).unwrap();
        let path = |name| target.join(name).to_string_lossy().into_owned();
        let gone = MissingRange { path: path("gone"), start: 0, end: LEN as u64 };
        assert_eq!(exported.missing, [gone], "{boot}");
        let mut failed: Vec<_> =
            exported.failed.iter().map(|f| (f.path.clone(), &*f.what)).collect();
        failed.sort_unstable();
        let what = |count, first| {
            format!("{count} blocks are not what their checksums say, the first at byte {first}")
        };
        let (cut, rotten) = (what(3, 0), what(1, 131_072));
        assert_eq!(failed, [(path("cut"), &*cut), (path("rotten"), &*rotten)], "{boot}");
        assert!(std::fs::read(target.join("whole")).unwrap() == vec![5; LEN]);

        let outlook = outlook(&stopped).unwrap();
        let missing = Incomplete { path: "/gone".to_owned(), ranges: vec![(0, LEN as u64)] };
        assert_eq!(outlook.missing, [missing], "{boot}");
        drop(stopped);
        let checks = Checks { bytes: true, scratch: Some(author.dir.path()), ..Checks::default() };
        let found = fsck(&data, checks).unwrap().findings;
        let words = ["/gone has 300000 bytes", "/cut: 3 blocks", "/rotten: 1 block"];
        assert_eq!(found.len(), 3, "{found:?}");
        for word in words {
            assert!(found.iter().any(|finding| finding.what.starts_with(word)), "{found:?}");
        }
    }
}

/// The copy is gone when that is read.
#[test]
fn damage_is_that_of_the_data_directory() {
    let author = replica();
    let log = author.data().join("log");
    for entry in std::fs::read_dir(&log).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let data = author.open("boot");
    let refused = Stopped::open(&data, Some(author.dir.path()), Entries::All).unwrap_err();
    let said = refused.to_string();
    assert!(said.starts_with(&format!("{} is damaged", log.display())), "{said}");
    assert!(said.contains("if other nodes are left") && !said.contains("scratch"), "{said}");
}
