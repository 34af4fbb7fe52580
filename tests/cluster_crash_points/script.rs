//! What is written while the replica is killed: the same each time, but for its bytes.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::support::{names, write_and_close, write_and_sync};

/// Files that travel in the log: so much that it has to be cut.
const SMALL: usize = 72;
const SMALL_LEN: usize = 16_000;
const LARGE_LEN: usize = 2_500_000;
const PATCH_LEN: usize = 150_000;

/// What the files hold after a round: everything is overwritten by each.
pub fn content(round: usize) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for number in 0..SMALL {
        files.insert(format!("small{number}"), bytes(round, &format!("small{number}"), SMALL_LEN));
    }
    let mut large = bytes(round, "large", LARGE_LEN);
    large[1_000_000..1_000_000 + PATCH_LEN].copy_from_slice(&bytes(round, "patch", PATCH_LEN));
    files.insert("copy".to_owned(), large.clone());
    files.insert("large".to_owned(), large);
    files.insert("renamed".to_owned(), bytes(round, "renamed", 300_000));
    files.insert("appended".to_owned(), bytes(round, "appended", 5 * 700));
    files
}

/// Writes them into a directory that may hold those of an earlier round.
///
/// # Errors
/// None may come: the mount is another replica's.
pub fn run(dir: &Path, round: usize) -> io::Result<()> {
    let files = content(round);
    fs::create_dir_all(dir)?;
    for number in 0..SMALL {
        let name = format!("small{number}");
        let write = if number % 8 == 0 { write_and_sync } else { write_and_close };
        write(&dir.join(&name), &files[&name])?;
    }
    let large = dir.join("large");
    write_and_sync(&large, &bytes(round, "large", LARGE_LEN))?;
    // Is copied into what is there.
    let file = File::options().write(true).open(&large)?;
    file.write_all_at(&files["large"][1_000_000..1_000_000 + PATCH_LEN], 1_000_000)?;
    file.sync_data()?;
    fs::copy(&large, dir.join("copy"))?;
    // Over one that exists, and nobody has synced it.
    write_and_close(&dir.join("new"), &files["renamed"])?;
    fs::rename(dir.join("new"), dir.join("renamed"))?;
    append(&dir.join("appended"), &files["appended"])?;
    let gone = dir.join("gone");
    // A round that failed may have left it.
    fs::create_dir_all(&gone)?;
    write_and_sync(&gone.join("staged"), &files["renamed"])?;
    fs::remove_file(gone.join("staged"))?;
    fs::remove_dir(gone)
}

fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    file.set_len(0)?;
    for record in bytes.chunks(700) {
        file.write_all(record)?;
        file.sync_data()?;
    }
    Ok(())
}

/// Panics where a mount shows anything else than a round has left.
pub fn check(dir: &Path, round: usize) {
    let wanted = content(round);
    assert!(names(dir).iter().eq(wanted.keys()), "{:?}", names(dir));
    for (name, bytes) in &wanted {
        let path = dir.join(name);
        let found = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let same = bytes.iter().zip(&found).take_while(|(one, other)| one == other).count();
        assert!(found == *bytes, "{} of round {round} differs from {same} on", path.display());
    }
}

fn bytes(round: usize, name: &str, len: usize) -> Vec<u8> {
    format!("{name} of round {round}\n").into_bytes().into_iter().cycle().take(len).collect()
}
