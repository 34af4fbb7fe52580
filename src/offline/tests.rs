//! Bytes that are in stages are there, and those that are nowhere are named.

use std::path::PathBuf;

use super::{Checks, Entries, Incomplete, Member, MissingRange, Stopped, export, fsck, outlook};
use crate::fs::proto::{AddMember, command::Op};
use crate::fs::{Digest, Verdict};
use crate::store::test_replica::{Author, TIME, append, contents, last};
use crate::types::Timestamp;

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
