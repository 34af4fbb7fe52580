//! A new cluster has everything that the old one's last node held, wherever making it was interrupted.

use raft::eraftpb::{ConfChangeType, ConfState};

use super::{Leaving, close, is_refounded, refound, snapshot};
use crate::fs::proto::{self, command::Op};
use crate::store::test_replica::{Author, CLUSTER, OPTIONS, append, last, tree};
use crate::store::{DataDir, Identity, StoreError, read_snapshot, recover};
use crate::types::{ClusterId, LogIndex, NodeId, Timestamp};

const FRESH: ClusterId = ClusterId([2; 16]);
const NOW: Timestamp = Timestamp { seconds: 2_000_000, nanos: 0 };

/// A member of three, with two sessions, that holds an entry which it does not know to be committed; an orphan is open.
fn survivor() -> (Author, LogIndex) {
    let mut author = Author::new();
    let recovered = author.start("boot");
    let mut entries = vec![author.session()];
    for (node, nonce) in [(2, 22), (3, 33)] {
        let address = format!("host{node}:1");
        entries.push(author.cluster(Op::AddMember(proto::AddMember {
            nonce,
            address,
            learner: false,
        })));
        entries.push(author.membership(ConfChangeType::AddLearnerNode, node));
        entries.push(author.membership(ConfChangeType::AddNode, node));
    }
    let open = proto::SessionOpen { node: 2, nonce: 5, ..proto::SessionOpen::default() };
    entries.push(author.cluster(Op::SessionOpen(open)));
    let (orphan, made) = author.make("orphan");
    entries.extend([made, author.write(orphan, 0, b"open"), author.unlink("orphan")]);
    let (ino, made) = author.make("kept");
    entries.extend([made, author.write(ino, 0, b"acknowledged")]);
    append(&recovered, &entries, last(&entries).0 - 1);
    recovered.replay(LogIndex(last(&entries).0 - 3)).unwrap();
    recovered.state.flush().unwrap();
    (author, last(&entries))
}

fn open(author: &Author) -> DataDir {
    DataDir::open_to_refound(&author.data()).unwrap()
}

fn assert_refounded(author: &Author, old_last: LogIndex) {
    let data = author.open("boot");
    assert_eq!((data.identity().cluster, data.identity().node), (FRESH, NodeId(1)));
    let genesis = author.dir.path().join("genesis");
    std::fs::write(&genesis, data.genesis().unwrap()).unwrap();
    assert_eq!(read_snapshot(&genesis).unwrap().0.cluster, FRESH);
    assert!(!data.path().join("genesis.new").exists());
    drop(data);
    for boot in ["boot", "another boot"] {
        let recovered = author.start(boot);
        assert_eq!(recovered.state.applied(), recovered.log.last_index(), "{boot}");
        assert!(recovered.log.last_index() > old_last);
        assert_eq!(recovered.committed(), recovered.log.last_index());
        assert_eq!(recovered.state.conf_state(), ConfState::from((vec![1], vec![])));
        assert_eq!(recovered.snapshot.as_ref().unwrap().cluster, FRESH);
        let files = tree(&recovered);
        assert_eq!(
            files.into_iter().collect::<Vec<_>>(),
            [("kept".to_owned(), b"acknowledged".to_vec())]
        );
        assert_eq!(Leaving::of(&recovered.state, NodeId(1)).unwrap().sessions, []);
        assert_eq!(crate::fs::check(&recovered.state.read()).unwrap(), []);
        assert_eq!(recovered.files.unreferenced(&recovered.state).unwrap(), []);
        // Newcomers begin with the snapshot, which is all there is.
        assert!(recovered.log.first_index() > old_last);
    }
}

#[test]
fn everything_that_the_log_holds_is_kept() {
    let (author, old_last) = survivor();
    let mut data = open(&author);
    assert_eq!(data.identity().cluster, CLUSTER);
    assert!(!is_refounded(&data).unwrap());
    assert_eq!(refound(&mut data, FRESH, NOW, OPTIONS).unwrap(), FRESH);
    drop(data);
    assert_refounded(&author, old_last);
}

/// The process dies behind each step; another one does it again, with another id in its hand.
#[test]
fn what_was_interrupted_goes_on() {
    for steps in 0..=4 {
        let (author, old_last) = survivor();
        let data = open(&author);
        data.begin_refounding(FRESH).unwrap();
        if steps > 0 {
            let recovered = recover(&data, OPTIONS).unwrap();
            for _ in 0..steps.min(2) {
                close(&recovered, NodeId(1), NOW).unwrap();
            }
            if steps > 2 {
                snapshot(&recovered, &data, FRESH).unwrap();
            }
        }
        assert_eq!(is_refounded(&data).unwrap(), steps > 2);
        if steps > 3 {
            let identity = Identity { cluster: FRESH, ..data.identity().clone() };
            super::change_genesis(data.path(), &identity).unwrap();
        }
        drop(data);
        let error = DataDir::open(&author.data()).unwrap_err();
        assert!(matches!(error, StoreError::Refounding { .. }), "{error}");
        assert!(error.to_string().contains("quorumfs recover --data"), "{error}");
        let mut data = open(&author);
        let other = ClusterId([9; 16]);
        assert_eq!(refound(&mut data, other, NOW, OPTIONS).unwrap(), FRESH);
        drop(data);
        assert_refounded(&author, old_last);
    }
}
