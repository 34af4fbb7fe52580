//! Truncation on another mount: what was cut is gone and does not come back when the file grows again.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::support::python::Python;
use super::support::{Cluster, PATIENCE, wait_until};
use super::{assert_bytes, content, open, pattern};

const LEN: usize = 100_000;

/// Sizes that the file gets one right after the other, before anybody looks.
const SIZES: [&[usize]; 8] = [
    &[5000],
    &[20_000],
    &[4096, LEN],
    &[100, 3000],
    &[0, 5000],
    &[0],
    &[1, LEN, 50_001, 60_000],
    &[LEN],
];

#[test]
fn what_another_mount_cut_is_gone_here() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1).join("f"), cluster.mount(2).join("f"));
    let local = cluster.dir().join("wanted");
    let mut python = Python::start("python3", &cluster.mount(2));
    for (round, sizes) in SIZES.into_iter().cycle().take(3 * SIZES.len()).enumerate() {
        let mut wanted = pattern(round, LEN);
        fs::write(&here, &wanted).expect("write");
        // All of it is in the reader's kernel, in pages that stay.
        let older = File::open(&there).expect("open");
        assert_bytes(&content(&older), &wanted, "before");
        python.does("import mmap, os; file = os.open('f', os.O_RDONLY)");
        python.does("m = mmap.mmap(file, 0, prot=mmap.PROT_READ); sum(m[::512])");

        let file = (round % 2 == 0).then(|| open(&here, 0));
        for &size in sizes {
            match &file {
                Some(file) => file.set_len(size as u64).expect("ftruncate"),
                None if size == 0 => drop(File::create(&here).expect("O_TRUNC")),
                None => open(&here, libc::O_APPEND).set_len(size as u64).expect("ftruncate"),
            }
            wanted.resize(size, 0);
        }
        let when = format!("round {round}, {sizes:?}");
        assert_eq!(older.metadata().expect("fstat").len(), wanted.len() as u64, "{when}: at once");
        let opens = |mount: &Path| {
            assert_bytes(&fs::read(mount).expect("read"), &wanted, &when);
        };
        // An open would help what was there before: it comes first in every other round.
        if round % 2 == 0 {
            opens(&there);
        }
        wait_until(PATIENCE, "the descriptor that was open before", || {
            (content(&older) == wanted).then_some(())
        });
        // What lies behind the end may not be touched.
        fs::write(&local, &wanted).expect("write");
        let compare =
            format!("print(m[:{}] == open('{}', 'rb').read())", wanted.len(), local.display());
        wait_until(PATIENCE, "the mapping that was there before", || {
            (python.says(&compare) == "True").then_some(())
        });
        opens(&there);
        opens(&here);
        python.does("m.close(); os.close(file)");
    }
    cluster.settle();
}

/// Who has the file open only after the cut, and who writes behind it.
#[test]
fn bytes_behind_a_cut_are_zero_until_they_are_written() {
    let cluster = Cluster::up(3);
    let mounts = [1, 2, 3].map(|node| cluster.mount(node).join("f"));
    fs::write(&mounts[0], pattern(0, LEN)).expect("write");
    let mut wanted = pattern(0, LEN);
    for round in 0..30 {
        let (cutter, writer, reader) = (round % 3, (round + 1) % 3, (round + 2) % 3);
        assert_bytes(&fs::read(&mounts[writer]).expect("read"), &wanted, "before");
        let (cut, at) = (round * 6007 % LEN, LEN - 10 - round * 411);
        open(&mounts[cutter], 0).set_len(cut as u64).expect("ftruncate");
        let file = open(&mounts[writer], 0);
        let bytes = pattern(round, 10 + round * 300 % 9000);
        file.write_all_at(&bytes, at as u64).expect("write");
        drop(file);
        wanted.truncate(cut);
        wanted.resize(wanted.len().max(at + bytes.len()), 0);
        wanted[at..at + bytes.len()].copy_from_slice(&bytes);
        for mount in [writer, reader, cutter] {
            let found = fs::read(&mounts[mount]).expect("read");
            assert_bytes(&found, &wanted, &format!("round {round}, mount {}", mount + 1));
        }
    }
    cluster.settle();
}
