//! A replica that does not know which bytes it has: none of them is believed, and none of them is thrown away.

use std::path::Path;

use prost::Message;
use raft::eraftpb::ConfState;

use crate::fs::{Batch, Overlay, ViewMut, keys, query};
use crate::store::adopt::Trust;
use crate::store::layouts::Believed;
use crate::store::recover::{Recovered, recover};
use crate::store::test_replica::{Author, OPTIONS, append, last, snapshot};
use crate::store::{AppliedPoint, BootIdentity, DataDir, Files, State, StoreError};
use crate::types::{ByteRange, Generation, Ino, LogIndex};

const BYTES: &[u8] = b"some bytes that two nodes hold";

/// A replica of a cluster with so many voters, with two files of the same bytes: one has checksums.
fn replica(voters: u64) -> (Author, [(Ino, Generation); 2]) {
    let mut author = Author::new();
    let recovered = author.start("boot");
    let mut entries = vec![author.session()];
    let mut inos = Vec::new();
    for name in ["one", "two"] {
        let (ino, made) = author.make(name);
        entries.extend([made, author.write(ino, 0, BYTES)]);
        inos.push(ino);
    }
    append(&recovered, &entries, last(&entries).0);
    recovered.replay(last(&entries)).unwrap();
    let Recovered { state, files, .. } = &recovered;
    let voters = ConfState::from(((1..=voters).collect::<Vec<_>>(), vec![]));
    let at = AppliedPoint { index: state.applied(), term: state.term(), conf_state: Some(&voters) };
    state.commit(Batch::default(), at).unwrap();
    files.sync().unwrap();
    snapshot(&author.data(), &recovered);
    state.flush().unwrap();
    let keys = [0, 1].map(|at: usize| {
        let inode = query::inode(&state.read(), inos[at]).unwrap().unwrap();
        (inos[at], Generation(inode.generation))
    });
    let file = steady(&recovered, keys[0]);
    let sum = files.read_blocks(&file).sum(0).unwrap().unwrap();
    files.keep_checksums(&file, 0, &[sum]).unwrap();
    (author, keys)
}

fn steady(recovered: &Recovered, key: (Ino, Generation)) -> crate::store::Steady {
    let Recovered { state, files, .. } = recovered;
    let inode = query::inode(&state.read(), key.0).unwrap().unwrap();
    files.steady(key, LogIndex(inode.data_version), inode.size, state.applied()).unwrap()
}

fn flip_a_bit(image: &Path) {
    let mut bytes = std::fs::read(image).unwrap();
    bytes[20] ^= 1;
    std::fs::write(image, bytes).unwrap();
}

type Damage = fn(&Path);

/// What may become of the image, and of all that lies beside it.
const DAMAGES: [Damage; 3] = [
    |data| flip_a_bit(&data.join("stages/image")),
    |data| std::fs::remove_file(data.join("stages/image")).unwrap(),
    |data| std::fs::remove_dir_all(data.join("stages")).unwrap(),
];

fn open(author: &Author, boot: &str) -> Result<Recovered, StoreError> {
    recover(&DataDir::open_under(&author.data(), BootIdentity::named(boot)).unwrap(), OPTIONS)
}

#[test]
fn what_is_not_known_to_be_here_is_missing_and_found_again() {
    for (number, damage) in DAMAGES.iter().enumerate() {
        for boot in ["boot", "another"] {
            let (author, [proven, other]) = replica(3);
            damage(&author.data());
            if number == 0 && boot == "boot" {
                // A start that is killed before it has gone through all files.
                let (files, stages) = (author.data().join("files"), author.data().join("stages"));
                drop(Files::open_over(&files, &stages, Believed::Nothing, None).unwrap());
            }
            let recovered = open(&author, boot).unwrap();
            recovered.replay(recovered.committed()).unwrap();
            let what = format!("damage {number}, {boot}");
            let path = |key: (Ino, Generation)| recovered.files.path_of(key.0, key.1);
            let all = ByteRange::from(0);
            for key in [proven, other] {
                assert!(!recovered.files.missing(key, all).is_empty(), "{what}");
                assert_eq!(std::fs::read(path(key)).unwrap(), BYTES, "{what}");
            }
            let found = |key| recovered.files.find_here(&steady(&recovered, key), all).unwrap();
            assert!(found(proven) && !found(other), "{what}");
            assert_eq!(recovered.files.missing(proven, all), [], "{what}");
            assert!(!recovered.files.missing(other, all).is_empty(), "nothing proves it");
            let mut bytes = vec![0; BYTES.len()];
            assert!(recovered.files.read(proven.0, proven.1, 0, &mut bytes).unwrap());
            assert_eq!(bytes, BYTES, "{what}");
            recovered.files.sync().unwrap();
            drop(recovered);
            // From now on it is known.
            let recovered = open(&author, boot).unwrap();
            assert_eq!(recovered.files.missing(proven, ByteRange::from(0)), [], "{what}");
        }
    }
}

/// What is known once an image counts is known as well as after any other start: what a peer's snapshot says of a file that a
/// kernel reads by itself holds for that file, too.
#[test]
fn files_are_known_again_once_there_is_an_image() {
    let (author, [proven, _]) = replica(3);
    flip_a_bit(&author.data().join("stages/image"));
    let (files, stages) = (author.data().join("files"), author.data().join("stages"));
    {
        let files = Files::open_over(&files, &stages, Believed::Nothing, None).unwrap();
        assert!(files.layouts().is_lost());
        files.sync().unwrap();
        assert!(!files.layouts().is_lost());
    }
    flip_a_bit(&author.data().join("stages/image"));
    let recovered = open(&author, "boot").unwrap();
    recovered.replay(recovered.committed()).unwrap();
    let Recovered { state, files, .. } = &recovered;
    let all = ByteRange::from(0);
    assert!(files.find_here(&steady(&recovered, proven), all).unwrap());
    assert!(files.lend(proven, BYTES.len() as u64).unwrap().is_some());
    // As in a snapshot from a peer: it has other bytes.
    let newer = State::open(&author.dir.path().join("newer")).unwrap();
    let mut inode = query::inode(&state.read(), proven.0).unwrap().unwrap();
    inode.data_version = state.applied().0 + 1;
    let mut overlay = Overlay::new(&newer);
    overlay.put(keys::inode(proven.0), inode.encode_to_vec());
    let index = state.applied().next().next();
    let at = AppliedPoint { index, term: state.term(), conf_state: None };
    newer.commit(overlay.finish().unwrap(), at).unwrap();
    let trust = Trust { until: files.carried_out(), under: None, is_alone: false };
    files.adopt(&newer, trust).unwrap();
    let left = std::fs::metadata(files.path_of(proven.0, proven.1)).unwrap().len();
    assert_eq!(left, 0, "the kernel would go on reading what was there");
}

#[test]
fn where_nobody_else_has_them_a_person_decides() {
    for damage in DAMAGES {
        for boot in ["boot", "another"] {
            let (author, keys) = replica(1);
            damage(&author.data());
            let error = open(&author, boot).unwrap_err();
            assert!(error.to_string().contains("stages/image is damaged"), "{error}");
            for (ino, generation) in keys {
                let path = author.data().join(format!("files/00/{ino}.{generation}"));
                assert_eq!(std::fs::read(path).unwrap(), BYTES);
            }
        }
    }
}
