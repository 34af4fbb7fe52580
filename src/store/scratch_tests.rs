//! What a start would find is found, and nothing is changed by finding it.

use super::Scratch;
use crate::fs::proto::{self, command::Op};
use crate::store::Recovered;
use crate::store::test_replica::{Author, append, contents, last, tree};
use crate::types::{Ino, LogIndex};

/// A replica that has applied some of its log. What comes after that makes files, changes one, renews one, copies one
/// and removes two; its last entry is not known to be committed.
fn replica() -> (Author, LogIndex) {
    let mut author = Author::new();
    let recovered = author.start("boot");
    let mut entries = vec![author.session()];
    let mut inos = Vec::new();
    for name in ["changed", "renewed", "copied", "removed", "same"] {
        let (ino, made) = author.make(name);
        entries.extend([made, author.write(ino, 0, format!("{name} before").as_bytes())]);
        inos.push(ino);
    }
    append(&recovered, &entries, last(&entries).0);
    recovered.replay(last(&entries)).unwrap();
    let [changed, renewed, copied, ..] = inos[..] else { panic!("there are five") };
    let resize = proto::SetAttr { ino: renewed.0, size: Some(0), ..proto::SetAttr::default() };
    let (target, made) = author.make("copy");
    let copy = proto::CopyRange {
        source: copied.0,
        ino: target.0,
        length: 6,
        ..proto::CopyRange::default()
    };
    let more = [
        author.write(changed, 8, b"after, and longer"),
        author.of_session(Op::SetAttr(resize)),
        author.write(renewed, 3, b"anew"),
        made,
        author.of_session(Op::CopyRange(copy)),
        author.unlink("removed"),
        author.unlink("same"),
    ];
    // `made` was numbered before the others.
    let mut more = more.to_vec();
    more.sort_by_key(|entry| entry.index);
    append(&recovered, &more, last(&more).0 - 1);
    recovered.state.flush().unwrap();
    (author, last(&more))
}

fn assert_found(recovered: &Recovered, is_all: bool) {
    let mut expected = vec![
        ("changed", &b"changed after, and longer"[..]),
        ("copied", b"copied before"),
        ("copy", b"copied"),
        ("renewed", b"\0\0\0anew"),
    ];
    if !is_all {
        expected.push(("same", b"same before"));
    }
    let expected = expected.into_iter().map(|(name, bytes)| (name.to_owned(), bytes.to_vec()));
    assert_eq!(tree(recovered), expected.collect());
}

#[test]
fn the_rest_of_the_log_is_seen_and_nothing_is_changed() {
    let (author, last) = replica();
    let before = contents(&author.data());
    for (boot, is_all) in [("boot", false), ("boot", true), ("another", false), ("another", true)] {
        let data = author.open(boot);
        let (recovered, scratch) = Scratch::recover(&data, author.dir.path()).unwrap();
        assert_eq!(recovered.rebuilt.is_some(), boot == "another");
        assert_eq!(recovered.committed(), LogIndex(last.0 - 1));
        let end = if is_all { last } else { recovered.committed() };
        recovered.replay(end).unwrap();
        assert_eq!(recovered.state.applied(), end);
        assert_found(&recovered, is_all);
        let path = scratch.copy.path().to_owned();
        drop(recovered);
        drop(scratch);
        assert!(!path.exists());
        drop(data);
        let after = contents(&author.data());
        let changed: Vec<_> =
            after.iter().filter(|(path, bytes)| before.get(*path) != Some(bytes)).collect();
        assert!(changed.is_empty() && after.len() == before.len(), "{changed:?}");
    }
    // And a start finds the same.
    let recovered = author.start("boot");
    recovered.replay(recovered.committed()).unwrap();
    assert_found(&recovered, false);
}

#[test]
fn bytes_are_copied_out_with_their_holes() {
    let mut author = Author::new();
    let recovered = author.start("boot");
    let mut entries = vec![author.session()];
    let (ino, made) = author.make("sparse");
    entries.extend([made, author.write(ino, 1 << 20, b"far away")]);
    append(&recovered, &entries, last(&entries).0);
    recovered.replay(last(&entries)).unwrap();
    let path = author.dir.path().join("out");
    let out = std::fs::File::create(&path).unwrap();
    let inode = crate::fs::query::inode(&recovered.state.read(), ino).unwrap().unwrap();
    let key = (ino, inode.generation.into());
    assert_eq!(recovered.files.copy_out(key, inode.size, &out).unwrap(), []);
    let mut expected = vec![0; 1 << 20];
    expected.extend(b"far away");
    assert!(std::fs::read(&path).unwrap() == expected);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&out.metadata().unwrap());
    assert!(blocks < 64, "{blocks} blocks");
    assert_eq!(recovered.files.backing_len(key).unwrap(), Some(inode.size));
    assert_eq!(recovered.files.backing_len((Ino(77), key.1)).unwrap(), None);
}
