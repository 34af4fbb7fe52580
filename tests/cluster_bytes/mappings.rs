//! Mappings: what is synced through one is seen by opens that begin afterwards, and soon by mappings and
//! descriptors that are there already.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::support::python::Python;
use super::support::{Cluster, PATIENCE, wait_until, write_and_close};

const PAGE: usize = 4096;
const PAGES: usize = 64;

/// Maps the file `f`, and touches each of its pages.
const MAP: &str =
    "import mmap, os; file = os.open('f', FLAGS); m = mmap.mmap(file, 0); sum(m[::512])";

/// A file `f` and a Python on each mount that has it mapped; the last one through a descriptor that appends.
fn mapped_everywhere(cluster: &Cluster) -> [Python; 3] {
    write_and_close(&cluster.mount(1).join("f"), &vec![b'.'; PAGES * PAGE]).expect("write");
    [(1, "os.O_RDWR"), (2, "os.O_RDWR"), (3, "os.O_RDWR | os.O_APPEND")].map(|(node, flags)| {
        let mut python = Python::start("python3", &cluster.mount(node));
        python.does(&MAP.replace("FLAGS", flags));
        python
    })
}

/// What is put at a page's beginning; of eight bytes.
fn tag(version: usize) -> String {
    format!("v{version:07}")
}

fn store(page: usize, version: usize) -> String {
    let at = page * PAGE;
    format!("m[{at}:{at} + 8] = b'{}'", tag(version))
}

fn load(mapping: &str, page: usize) -> String {
    let at = page * PAGE;
    format!("print({mapping}[{at}:{at} + 8].decode())")
}

/// What an open that begins now reads at a page's beginning.
fn read_anew(path: &Path, page: usize) -> String {
    let file = File::open(path).expect("open");
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, (page * PAGE) as u64).expect("read");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn what_is_synced_through_a_mapping_is_seen_elsewhere() {
    let cluster = Cluster::up(3);
    let mut pythons = mapped_everywhere(&cluster);
    let map_anew = |page| {
        let map = "n = os.open('f', os.O_RDONLY); new = mmap.mmap(n, 0, prot=mmap.PROT_READ)";
        format!("{map}; {}; new.close(); os.close(n)", load("new", page))
    };
    for round in 0..48 {
        let (writer, page, wanted) = (round % 3, round * 7 % PAGES, tag(round));
        let at = page * PAGE;
        let sync = match round % 4 {
            0 => "m.flush()".to_owned(),
            1 => format!("m.flush({at}, {PAGE})"),
            2 => "os.fsync(file)".to_owned(),
            _ => "os.fdatasync(file)".to_owned(),
        };
        pythons[writer].does(&format!("{}; {sync}", store(page, round)));
        // In half of the rounds only what was there before looks: an open could have helped it.
        if round / 12 % 2 == 0 {
            for (node, python) in (1..).zip(&mut pythons) {
                let path = cluster.mount(node).join("f");
                assert_eq!(read_anew(&path, page), wanted, "{sync}, then read on mount {node}");
                assert_eq!(python.says(&map_anew(page)), wanted, "{sync}, mapped on mount {node}");
            }
        }
        for python in &mut pythons {
            wait_until(PATIENCE, "the older mapping to follow", || {
                (python.says(&load("m", page)) == wanted).then_some(())
            });
            let read = format!("print(os.pread(file, 8, {at}).decode())");
            wait_until(PATIENCE, "the older descriptor to follow", || {
                (python.says(&read) == wanted).then_some(())
            });
        }
    }
    cluster.settle();
}

/// Whoever has pages dirty loses none of them to somebody else's pages.
#[test]
fn two_mounts_write_different_pages_of_one_file() {
    let cluster = Cluster::up(3);
    let mut pythons = mapped_everywhere(&cluster);
    let mut versions = [None; PAGES];
    for round in 0..40 {
        // Neighbours, so that each one's pages lie between the other's.
        let first = round * 4 % PAGES;
        for (writer, python) in pythons[..2].iter_mut().enumerate() {
            let stores = [first + writer, first + writer + 2].map(|page| store(page, round));
            python.begins(&format!("{}; m.flush()", stores.join("; ")));
        }
        pythons[..2].iter_mut().for_each(Python::is_done);
        versions[first..first + 4].fill(Some(round));
        for (node, python) in (1..).zip(&mut pythons) {
            let path = cluster.mount(node).join("f");
            for (page, version) in versions.iter().enumerate() {
                let wanted = version.map_or_else(|| ".".repeat(8), tag);
                assert_eq!(read_anew(&path, page), wanted, "round {round}, page {page}, {node}");
            }
            wait_until(PATIENCE, "the mapping to have both", || {
                let mut pages = first..first + 4;
                pages.all(|page| python.says(&load("m", page)) == tag(round)).then_some(())
            });
        }
    }
    cluster.settle();
}

/// Nobody has to call msync: close, munmap and the end of the process do.
#[test]
fn what_was_only_stored_is_seen_after_close_and_munmap() {
    let cluster = Cluster::up(3);
    let [mut one, two, mut three] = mapped_everywhere(&cluster);
    let elsewhere = cluster.mount(3).join("f");

    one.does(&format!("{}; os.close(file)", store(1, 1)));
    assert_eq!(read_anew(&elsewhere, 1), tag(1), "closed while it is mapped");
    one.does("file = os.open('f', os.O_RDWR)");
    one.does(&format!("{}; m.close(); os.close(file)", store(2, 2)));
    assert_eq!(read_anew(&elsewhere, 2), tag(2), "closed after munmap");

    // munmap says nothing, so only later can be asked for.
    let soon = |page: usize, version| {
        wait_until(PATIENCE, "bytes of a mapping that is gone", || {
            (read_anew(&cluster.mount(2).join("f"), page) == tag(version)).then_some(())
        });
    };
    three.does(&format!("os.close(file); {}; m.close()", store(3, 3)));
    soon(3, 3);
    let mut killed = Python::start("python3", &cluster.mount(1));
    killed.does(&MAP.replace("FLAGS", "os.O_RDWR"));
    killed.does(&store(4, 4));
    killed.kill();
    soon(4, 4);
    drop(two);
    cluster.settle();
}

#[test]
fn private_mappings_are_seen_by_nobody_else() {
    let cluster = Cluster::up(3);
    let [mut one, mut two, mut three] = mapped_everywhere(&cluster);
    let changed = |node| {
        let stat = fs::metadata(cluster.mount(node).join("f")).expect("stat");
        stat.modified().expect("a time")
    };
    let before = changed(2);
    one.does("p = mmap.mmap(file, 0, access=mmap.ACCESS_COPY)");
    let private = format!("{}; {}", store(0, 7), store(9, 7)).replace("m[", "p[");
    one.does(&format!("{private}; p.flush(); os.fsync(file)"));
    for node in 1..=3 {
        let path = cluster.mount(node).join("f");
        assert_eq!([read_anew(&path, 0), read_anew(&path, 9)], ["........", "........"]);
    }
    for python in [&mut one, &mut two, &mut three] {
        assert_eq!(python.says(&load("m", 0)), "........");
    }
    assert_eq!(changed(2), before, "nothing was written");

    // What it has written hides what others write, and stays its own.
    two.does(&format!("{}; m.flush()", store(0, 8)));
    wait_until(PATIENCE, "the shared mapping beside it", || {
        (one.says(&load("m", 0)) == tag(8)).then_some(())
    });
    assert_eq!(one.says(&load("p", 0)), tag(7));
    assert_eq!(one.says(&load("p", 9)), tag(7));
    one.does("p.close(); m.close(); os.close(file)");
    for node in 1..=3 {
        let path = cluster.mount(node).join("f");
        assert_eq!([read_anew(&path, 0), read_anew(&path, 9)], [tag(8), "........".into()]);
    }
}
