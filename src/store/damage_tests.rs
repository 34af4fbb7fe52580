//! Whatever byte of whatever file of a stopped replica is another one, wherever a file ends, and whichever is gone: the
//! next start finds what was there, or lacks bytes and says so, or names the damage. It never shows anything else.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use crate::store::recover::{Recovered, recover, replace_snapshot};
use crate::store::test_replica::{Author, OPTIONS, append, contents, last, snapshot, tree};
use crate::store::{BootIdentity, DataDir, StoreError};

type Tree = BTreeMap<String, Vec<u8>>;

/// A replica that has taken a snapshot, gone on, and been stopped; and what its files hold.
struct Whole {
    author: Author,
    files: BTreeMap<PathBuf, Vec<u8>>,
    tree: Tree,
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Bit(usize),
    Cut(usize),
    Gone,
}

impl Whole {
    fn new() -> Self {
        let mut author = Author::new();
        let recovered = author.start("boot");
        let mut entries = vec![author.session()];
        for name in ["one", "two", "three"] {
            let (ino, made) = author.make(name);
            entries.extend([made, author.write(ino, 0, format!("{name} before").as_bytes())]);
        }
        append(&recovered, &entries, last(&entries).0);
        recovered.replay(last(&entries)).unwrap();
        recovered.files.sync().unwrap();
        snapshot(&author.data(), &recovered);
        recovered.log.compact_to(last(&entries)).unwrap();
        let (ino, made) = author.make("four");
        let more = [made, author.write(ino, 3, b"after"), author.unlink("two")];
        append(&recovered, &more, last(&more).0);
        recovered.replay(last(&more)).unwrap();
        recovered.state.flush().unwrap();
        // As a daemon does that stops.
        recovered.files.pass(last(&more));
        recovered.files.sync().unwrap();
        let tree = tree(&recovered);
        drop(recovered);
        let files = contents(&author.data());
        assert_eq!(tree.len(), 3);
        Self { author, files, tree }
    }

    /// Nothing of it says what the bytes of files are: that is for their checksums.
    fn damageable(&self) -> Vec<&Path> {
        let data = self.author.data();
        let is_one = |path: &&Path| !path.starts_with(data.join("files"));
        self.files.keys().map(PathBuf::as_path).filter(is_one).collect()
    }

    /// A copy, damaged.
    fn damaged(&self, path: &Path, damage: Damage) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        let data = self.author.data();
        let at = |path: &Path| copy.path().join(path.strip_prefix(&data).unwrap());
        for (path, bytes) in &self.files {
            std::fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            std::fs::write(at(path), bytes).unwrap();
        }
        let mut bytes = self.files[path].clone();
        match damage {
            Damage::Bit(bit) => bytes[bit / 8] ^= 1 << (bit % 8),
            Damage::Cut(len) => bytes.truncate(len),
            Damage::Gone => {
                std::fs::remove_file(at(path)).unwrap();
                return copy;
            }
        }
        std::fs::write(at(path), bytes).unwrap();
        copy
    }

    /// Bytes that are known to be missing are no fault; anything else must be what it was.
    fn judge(&self, recovered: &Recovered, what: &str) {
        recovered.replay(recovered.committed()).unwrap();
        let found = tree(recovered);
        for (name, bytes) in &found {
            assert_eq!(Some(bytes), self.tree.get(name), "{what}: {name}");
        }
        let names =
            crate::fs::query::readdir(&recovered.state.read(), crate::types::Ino::ROOT, 0, 100);
        assert_eq!(names.unwrap().len(), self.tree.len(), "{what}");
    }

    fn try_one(&self, path: &Path, damage: Damage, boot: &str) {
        let what = format!("{} {damage:?} {boot}", path.display());
        let copy = self.damaged(path, damage);
        let start = || {
            let data = DataDir::open_under(copy.path(), BootIdentity::named(boot))?;
            recover(&data, OPTIONS)
        };
        let of_state =
            path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("state-"));
        // sled panics where it reads some damage: the daemon ends then, and the next one does not believe it.
        let tried = catch_unwind(AssertUnwindSafe(|| {
            let recovered = start()?;
            match recovered.replay(recovered.committed()) {
                Err(StoreError::Sled { .. }) if of_state => return Ok(()),
                replayed => replayed?,
            }
            self.judge(&recovered, &what);
            Ok(())
        }));
        match tried {
            Ok(Ok(())) => {}
            Ok(Err(StoreError::StateLost { from, .. })) => {
                let data = DataDir::open_under(copy.path(), BootIdentity::named(boot)).unwrap();
                let whole = self
                    .files
                    .keys()
                    .find(|path| path.starts_with(self.author.data().join("snapshots")));
                let peers = copy.path().join("snapshots/snap-of-a-peer");
                std::fs::create_dir_all(peers.parent().unwrap()).unwrap();
                std::fs::copy(whole.unwrap(), &peers).unwrap();
                assert!(replace_snapshot(&data, &peers, from).unwrap(), "{what}");
                self.judge(&recover(&data, OPTIONS).unwrap(), &what);
            }
            Ok(Err(error)) => {
                assert!(
                    error.needs_a_person() || matches!(error, StoreError::NoReplica { .. }),
                    "{what}: {error}"
                );
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                let said = error.to_string();
                assert!(
                    said.contains(&name)
                        || said.contains("log")
                        || said.contains("holds no replica"),
                    "{what}: {error}"
                );
            }
            Err(_) => {
                assert!(of_state, "{what} panics");
                let data =
                    DataDir::open_under(copy.path(), BootIdentity::named("another")).unwrap();
                self.judge(&recover(&data, OPTIONS).unwrap(), &what);
            }
        }
    }

    fn try_some(&self, rng: &mut StdRng, of_each: usize) {
        for path in self.damageable() {
            let len = self.files[path].len();
            for boot in ["boot", "another"] {
                self.try_one(path, Damage::Gone, boot);
                // Most of a file of sled's, or of the log, is zeros.
                let used =
                    self.files[path].iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
                for _ in 0..of_each.min(len) {
                    self.try_one(path, Damage::Cut(rng.random_range(0..len)), boot);
                    if used > 0 {
                        self.try_one(path, Damage::Bit(rng.random_range(0..used * 8)), boot);
                    }
                }
            }
        }
    }
}

fn try_with(seed: u64, of_each: usize) {
    println!("seed {seed}");
    Whole::new().try_some(&mut StdRng::seed_from_u64(seed), of_each);
}

#[test]
fn no_damage_shows_anything_that_was_not_there() {
    try_with(rand::rng().random_range(0..1_000_000), 1);
}

#[test]
#[ignore = "long"]
fn no_damage_shows_anything_that_was_not_there_long() {
    try_with(rand::rng().random_range(0..1_000_000), 150);
}

/// A snapshot file is written anew from a state that is believed, and only from such.
#[test]
fn a_damaged_snapshot_is_mended_from_the_state() {
    let whole = Whole::new();
    let snapshots = whole.author.data().join("snapshots");
    let path = whole.files.keys().find(|path| path.starts_with(&snapshots)).unwrap();
    let copy = whole.damaged(path, Damage::Bit(1000));
    let data = DataDir::open_under(copy.path(), BootIdentity::named("boot")).unwrap();
    let recovered = recover(&data, OPTIONS).unwrap();
    assert_eq!(
        (recovered.rebuilt, recovered.snapshot.clone().unwrap().index),
        (None, recovered.state.applied())
    );
    whole.judge(&recovered, "mended");
    drop((recovered, data));
    // What was written is enough after a power loss.
    let data = DataDir::open_under(copy.path(), BootIdentity::named("another")).unwrap();
    whole.judge(&recover(&data, OPTIONS).unwrap(), "after a power loss");
}

/// Where the log has no place for a peer's snapshot, it is not put there.
#[test]
fn a_snapshot_from_before_the_log_is_of_no_use() {
    let whole = Whole::new();
    let data = whole.author.open("another");
    let genesis = whole.author.data().join("snapshots/snap-of-a-peer");
    std::fs::copy(whole.author.data().join("genesis"), &genesis).unwrap();
    let from = recover(&data, OPTIONS).unwrap().log.truncated().0;
    assert!(!replace_snapshot(&data, &genesis, from).unwrap());
    whole.judge(&recover(&data, OPTIONS).unwrap(), "as before");
}
