//! PostgreSQL: its data directory lies in the cluster, whose leader dies while it works.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::shell::sh;
use super::support::{Cluster, PATIENCE, succeed, temporary_dir, text, wait_until};

/// The node on whose mount the server runs: it is never killed.
const OWN: u64 = 1;
const AS_POSTGRES: [&str; 3] = ["--reuid=postgres", "--regid=postgres", "--init-groups"];

/// The directory with the newest PostgreSQL's programs: Debian has only some of them in `PATH`.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").is_file() && bin.join("pgbench").is_file())
        .max_by_key(|bin| {
            let version = bin.parent().and_then(Path::file_name).expect("it was joined");
            version.to_string_lossy().parse::<u32>().ok()
        });
    newest.expect("no /usr/lib/postgresql/*/bin/initdb: run 'apt-get install postgresql'")
}

/// A server on a data directory. Killed when dropped.
struct Server<'a> {
    programs: &'a Path,
    child: Child,
    /// Where its socket and its log are.
    local: TempDir,
}

impl<'a> Server<'a> {
    fn start(programs: &'a Path, data: &Path) -> Self {
        let local = temporary_dir("postgres");
        sh(local.path(), "chown postgres . ; chmod 755 .", &[]);
        let log = File::create(local.path().join("log")).expect("create");
        let mut postgres = Command::new("setpriv");
        // Nor does it outlive a test that is killed.
        postgres.args(AS_POSTGRES).args(["--pdeathsig", "QUIT"]);
        postgres.arg(programs.join("postgres")).arg("-D").arg(data);
        postgres.args(["-c", "listen_addresses=", "-c"]);
        postgres.arg(format!("unix_socket_directories={}", local.path().display()));
        postgres.stdin(Stdio::null()).stdout(log.try_clone().expect("dup")).stderr(log);
        let child = postgres.spawn().expect("setpriv is there");
        let mut server = Self { programs, child, local };
        wait_until(PATIENCE, "PostgreSQL to serve", || {
            let ended = server.child.try_wait().expect("our child");
            assert!(ended.is_none(), "PostgreSQL has ended: {ended:?}");
            let ready = server.client("pg_isready").output().expect("it is there");
            ready.status.success().then_some(())
        });
        server
    }

    /// A program that talks to it.
    fn client(&self, name: &str) -> Command {
        let mut client = Command::new(self.programs.join(name));
        client.arg("-h").arg(self.local.path()).args(["-U", "postgres"]);
        client
    }

    /// What a query answers, without decoration.
    fn ask(&self, query: &str) -> String {
        let mut psql = self.client("psql");
        psql.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", query, "postgres"]);
        text(&succeed(&mut psql).stdout).trim_end().to_owned()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it was not waited for");
    }

    /// Shuts it down in order.
    fn stop(mut self) {
        self.signal(Signal::INT);
        let status =
            wait_until(PATIENCE, "PostgreSQL to end", || self.child.try_wait().expect("our child"));
        assert!(status.success(), "{status}");
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read(self.local.path().join("log")).unwrap_or_default();
            eprintln!("PostgreSQL said:\n{}", text(&log));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            // At once; the server takes its own children with it.
            self.signal(Signal::QUIT);
            let _ = self.child.wait();
        }
    }
}

/// What pgbench keeps true: each transaction adds the same to an account, a teller and a branch, and
/// records it.
fn check_sums(server: &Server, transactions: &str) {
    assert_eq!(server.ask("SELECT count(*) FROM pgbench_history"), transactions);
    let recorded = server.ask("SELECT sum(delta) FROM pgbench_history");
    for (table, column) in [("accounts", "a"), ("tellers", "t"), ("branches", "b")] {
        let sum = server.ask(&format!("SELECT sum({column}balance) FROM pgbench_{table}"));
        assert_eq!(sum, recorded, "{table}");
    }
    succeed(server.client("pg_amcheck").args([
        "--install-missing",
        "--heapallindexed",
        "postgres",
    ]));
}

#[test]
#[ignore = "long: it needs PostgreSQL"]
fn postgresql_works_while_the_leader_dies() {
    let programs = programs();
    let cluster = Cluster::up(3);
    // The directory of a test is its user's alone.
    sh(cluster.dir(), "chmod 755 .", &[]);
    let data = |node| cluster.mount(node).join("postgres/data");
    sh(&cluster.mount(OWN), "mkdir postgres; chown postgres postgres", &[]);
    let mut initdb = Command::new("setpriv");
    initdb.args(AS_POSTGRES).arg(programs.join("initdb")).arg("-D").arg(data(OWN));
    initdb.args(["--data-checksums", "--auth=trust", "--username=postgres", "--locale=C"]);
    succeed(initdb.current_dir("/"));

    let server = Server::start(&programs, &data(OWN));
    succeed(server.client("pgbench").args(["-i", "-q", "-s", "5", "postgres"]));
    let mut pgbench = server.client("pgbench");
    pgbench.args(["-c", "4", "-j", "2", "-T", "30", "postgres"]);
    let pgbench = pgbench.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut pgbench = pgbench.expect("it is there");
    let count =
        || -> u64 { server.ask("SELECT count(*) FROM pgbench_history").parse().expect("a number") };
    wait_until(PATIENCE, "transactions", || (count() > 100).then_some(()));
    let leader = cluster.leader_beside(OWN);
    assert!(pgbench.try_wait().expect("our child").is_none(), "it runs for 30 s");
    cluster.kill(leader, "KILL");
    let before = count();
    cluster.leader_other_than(leader);
    cluster.start(leader);
    wait_until(PATIENCE, "more transactions", || (count() > before).then_some(()));
    let output = pgbench.wait_with_output().expect("our child");
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(said.contains("number of failed transactions: 0 "), "{said}");
    println!("{said}");
    let processed = "number of transactions actually processed: ";
    let processed = said.lines().find_map(|line| line.strip_prefix(processed));
    let transactions = processed.expect("pgbench counts").to_owned();
    check_sums(&server, &transactions);

    // Killed itself, it recovers from its log; and what it left on one mount serves on another.
    drop(server);
    let server = Server::start(&programs, &data(OWN));
    check_sums(&server, &transactions);
    server.stop();
    let other = if cluster.leader() == 2 { 3 } else { 2 };
    let mut checksums = Command::new("setpriv");
    checksums.args(AS_POSTGRES).arg(programs.join("pg_checksums"));
    succeed(checksums.arg("--check").arg("-D").arg(data(other)).current_dir("/"));
    let server = Server::start(&programs, &data(other));
    check_sums(&server, &transactions);
    server.stop();
    cluster.settle();
}
