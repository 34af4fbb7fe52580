//! `O_DIRECT`: any place and length, as FUSE has no blocks; together with buffered I/O and mappings.

use std::fs;
use std::os::unix::fs::FileExt;

use super::support::python::Python;
use super::support::{Cluster, PATIENCE, wait_until};
use super::{assert_bytes, content, open, pattern};

const MIB: usize = 1 << 20;

/// Offset and length: of whole pages, of sectors, of neither; of one request and of several.
const PLACES: [(usize, usize); 10] = [
    (0, 4096),
    (4096, MIB),
    (3 * MIB, 2 * MIB),
    (512, 1024),
    (1, 1),
    (511, 513),
    (4095, 8193),
    (MIB - 1, 2 * MIB + 3),
    (5 * MIB + 100, 7),
    (5 * MIB - 4096, 8192),
];

#[test]
fn direct_io_takes_any_place_and_is_seen_elsewhere() {
    let cluster = Cluster::up(3);
    let [here, there, yonder] = [1, 2, 3].map(|node| cluster.mount(node).join("f"));
    let mut wanted = Vec::new();
    let mut writer = open(&here, libc::O_DIRECT);
    let (direct, buffered) = (open(&here, libc::O_DIRECT), open(&here, 0));
    for (round, (offset, len)) in PLACES.into_iter().cycle().take(2 * PLACES.len()).enumerate() {
        // Memory that begins on a page the first time, anywhere the second.
        let bytes = pattern(round, len + 2 * 4096);
        let start = bytes.as_ptr().align_offset(4096) + round / PLACES.len();
        let bytes = &bytes[start..start + len];
        wanted.resize(wanted.len().max(offset + len), 0);
        wanted[offset..offset + len].copy_from_slice(bytes);
        let when = format!("{len} bytes at {offset}");

        writer.write_all_at(bytes, offset as u64).expect("write");
        assert_bytes(&content(&direct), &wanted, &format!("{when}, read directly here"));
        assert_bytes(&content(&buffered), &wanted, &format!("{when}, from pages here"));
        if round % 2 == 0 {
            writer.sync_all().expect("fsync");
        } else {
            drop(writer);
            writer = open(&here, libc::O_DIRECT);
        }
        assert_bytes(&fs::read(&there).expect("read"), &wanted, &format!("{when}, there"));
        let elsewhere = content(&open(&yonder, libc::O_DIRECT));
        assert_bytes(&elsewhere, &wanted, &format!("{when}, read directly there"));
    }
    let mut rest = [0; 100];
    let end = wanted.len() as u64;
    assert_eq!(direct.read_at(&mut rest, end - 30).expect("read"), 30, "up to the end");
    assert_eq!(direct.read_at(&mut rest, end).expect("read"), 0, "at the end");
    assert_eq!(direct.read_at(&mut rest, end + 4096).expect("read"), 0, "behind the end");
    cluster.settle();
}

/// On one mount at once, whichever way bytes were written; elsewhere as with any other way.
#[test]
fn direct_and_buffered_io_see_each_other() {
    const LEN: usize = 40_000;
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1).join("f"), cluster.mount(2).join("f"));
    let mut wanted = pattern(0, LEN);
    fs::write(&here, &wanted).expect("write");
    let (direct, buffered) = (open(&here, libc::O_DIRECT), open(&here, 0));
    let older = [open(&there, libc::O_DIRECT), open(&there, 0)];
    let mut python = Python::start("python3", &cluster.mount(1));
    python.does("import mmap, os; file = os.open('f', os.O_RDWR); m = mmap.mmap(file, 0)");
    for file in [&direct, &buffered, &older[0], &older[1]] {
        assert_bytes(&content(file), &wanted, "to begin with");
    }
    for round in 1..=12 {
        let offset = round * 3001;
        let bytes = pattern(round, 500);
        wanted[offset..offset + 500].copy_from_slice(&bytes);
        match round % 3 {
            0 => direct.write_all_at(&bytes, offset as u64).expect("write"),
            1 => buffered.write_all_at(&bytes, offset as u64).expect("write"),
            _ => python.does(&format!("m[{offset}:{offset} + 500] = bytes({bytes:?})")),
        }
        assert_bytes(&content(&direct), &wanted, &format!("round {round}, read directly"));
        assert_bytes(&content(&buffered), &wanted, &format!("round {round}, from pages"));
        let mapped = python.says("import hashlib; print(hashlib.sha1(m).hexdigest())");
        let read = "print(hashlib.sha1(os.pread(file, len(m), 0)).hexdigest())";
        assert_eq!(mapped, python.says(read), "round {round}, mapped");

        python.does("m.flush()");
        assert_bytes(&fs::read(&there).expect("read"), &wanted, &format!("round {round}, there"));
        for file in &older {
            wait_until(PATIENCE, "a descriptor that was open before", || {
                (content(file) == wanted).then_some(())
            });
        }
    }
    cluster.settle();
}
