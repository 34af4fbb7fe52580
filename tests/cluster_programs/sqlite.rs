//! SQLite: two processes at once, with a rollback journal and with a write-ahead log.

use std::path::{Path, PathBuf};

use super::shell::{at_once, sh};
use super::support::{Cluster, names, tool};

const TRANSACTIONS: usize = 150;

/// Each transaction reads what all before it have written: what one of them did not see would be lost.
fn transact(dirs: &[PathBuf; 2], journal: &str) {
    tool("sqlite3", "apt-get install sqlite3");
    let make = format!(
        "mkdir '{journal}'; sqlite3 -bail '{journal}/db' \"PRAGMA journal_mode={journal}; \
         CREATE TABLE counter (n); INSERT INTO counter VALUES (0); \
         CREATE TABLE log (n INTEGER PRIMARY KEY, process, filler); CREATE INDEX of_process ON log (process, n)\""
    );
    assert_eq!(sh(&dirs[0], &make, &[]), format!("{}\n", journal.to_lowercase()));
    let script = format!(
        "{{ echo '.timeout 60000'; for turn in $(seq {TRANSACTIONS}); do
            echo 'BEGIN IMMEDIATE; UPDATE counter SET n = n + 1;'
            echo \"INSERT INTO log SELECT n, $1, hex(randomblob(500)) FROM counter; COMMIT;\"
            echo 'SELECT count(*) = (SELECT n FROM counter) FROM log;'
        done; }} | sqlite3 -bail '{journal}/db' > said$1
        [ \"$(sort said$1 | uniq -c | tr -s ' ')\" = ' {TRANSACTIONS} 1' ]; rm said$1"
    );
    at_once(&[&dirs[0], &dirs[1]], &script);
}

fn check(mount: &Path, journal: &str) {
    let check = format!(
        "sqlite3 -bail -cmd '.timeout 60000' '{journal}/db' 'PRAGMA integrity_check; SELECT n FROM counter; \
         SELECT process, count(*) FROM log GROUP BY process; SELECT min(n), max(n) FROM log'"
    );
    let all = 2 * TRANSACTIONS;
    let wanted = format!("ok\n{all}\n1|{TRANSACTIONS}\n2|{TRANSACTIONS}\n1|{all}\n");
    assert_eq!(sh(mount, &check, &[]), wanted, "on {}", mount.display());
}

#[test]
#[ignore = "long: it needs the program sqlite3"]
fn sqlite_with_a_journal_from_two_mounts() {
    let cluster = Cluster::up(3);
    transact(&[cluster.mount(1), cluster.mount(2)], "DELETE");
    for node in 1..=3 {
        check(&cluster.mount(node), "DELETE");
        assert_eq!(names(&cluster.mount(node).join("DELETE")), ["db"]);
    }
    cluster.settle();
}

/// A write-ahead log has an index in shared memory: SQLite has it on one machine only.
#[test]
#[ignore = "long: it needs the program sqlite3"]
fn sqlite_with_a_write_ahead_log_from_one_mount() {
    let cluster = Cluster::up(3);
    transact(&[cluster.mount(2), cluster.mount(2)], "WAL");
    // One mount after the other is no sharing.
    for node in 1..=3 {
        check(&cluster.mount(node), "WAL");
        assert_eq!(names(&cluster.mount(node).join("WAL")), ["db"], "the last to close tidies up");
    }
    cluster.settle();
}
