//! What programs see when the quorum is lost, or their own node's disk hangs: every call ends, or can be ended; mounts come and
//! go; and what was lost is said, once.
#![allow(clippy::disallowed_methods, reason = "tests measure how long calls take")]

mod calls;
mod expired;
mod hung;
mod lost;
mod mounts;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::program::Program;
use support::{Cluster, PATIENCE, quorumfs, succeed, text, wait_until};

/// Calls fail after this time.
const OP_TIMEOUT: Duration = Duration::from_secs(4);
const OP_TIMEOUT_SETTING: &str = "op_timeout = \"4s\"";
/// For tests that measure no deadline: all that takes time takes half as long.
const WAITING: [&str; 3] =
    ["op_timeout = \"2s\"", "session_ttl = \"1s\"", "on_quorum_loss = \"block\""];
const FAILING_SOON: [&str; 2] = ["op_timeout = \"2s\"", "session_ttl = \"1s\""];
const SHORT_OP_TIMEOUT: Duration = Duration::from_secs(2);
/// What there may be between a deadline and the answer.
const SLACK: Duration = Duration::from_secs(1);

/// A process with one operation to do.
struct Call {
    name: String,
    program: Program,
}

/// A node whose programs are looked at, and the two others; the last one leads.
fn nodes(cluster: &Cluster) -> (u64, [u64; 2]) {
    let node = 1;
    let leader = cluster.leader_beside(node);
    (node, [5 - leader, leader])
}

fn operations() -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/operations.py");
    let mut python = Command::new("python3");
    python.arg(script);
    python
}

/// One process for each operation, all prepared.
fn all_calls(mount: &Path) -> Vec<Call> {
    let names = succeed(operations().arg("--list")).stdout;
    calls(mount, text(&names).lines())
}

/// One process for each of these operations, all prepared.
fn calls<'a>(mount: &Path, names: impl IntoIterator<Item = &'a str>) -> Vec<Call> {
    let calls = names.into_iter().map(|name| {
        let program = Program::spawn(operations().arg(name).arg(mount));
        Call { name: name.to_owned(), program }
    });
    let mut calls: Vec<_> = calls.collect();
    for call in &mut calls {
        assert_eq!(call.program.answer(), "ready", "{}", call.name);
    }
    calls
}

/// Has all of them done at once. What came of each, and after how many seconds.
fn do_all(calls: &mut [Call]) -> Vec<(String, String, f64)> {
    for call in &mut *calls {
        call.program.tell("go");
    }
    let answers = calls.iter_mut().map(|call| {
        let answer = call.program.answer();
        let (result, seconds) = answer.split_once(' ').expect("a result and a time");
        (call.name.clone(), result.to_owned(), seconds.parse().expect("seconds"))
    });
    let answers = answers.collect();
    for call in &mut *calls {
        call.program.tell("undo");
    }
    answers
}

/// What a node's daemon says of itself.
fn status_of(address: &str) -> serde_json::Value {
    let output = succeed(quorumfs().args(["status", "--json", "--addr", address]));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Waits until a node knows that no quorum answers it.
fn until_alone(address: &str) {
    wait_until(PATIENCE, "the lease to lapse", || {
        (status_of(address)["has_quorum"] == false).then_some(())
    });
}
