//! Every operation of a file system, while nodes are gone: in time, and killable.

use std::fs;
use std::time::{Duration, Instant};

use super::support::{Cluster, PATIENCE, wait_until};
use super::{
    Call, OP_TIMEOUT, OP_TIMEOUT_SETTING, SHORT_OP_TIMEOUT, SLACK, WAITING, all_calls, do_all,
    nodes, until_alone,
};

/// What needs nobody else.
const FREE: [&str; 5] = ["write", "write-large", "statfs", "fsyncdir", "ioctl"];
/// What a process that is killed may take until it is gone.
const DEATH: Duration = Duration::from_secs(2);

/// Does everything once; each call has to end in time, with one of these results.
fn all_end(calls: &mut [Call], when: &str, allowed: impl Fn(&str) -> &'static [&'static str]) {
    let limit = (OP_TIMEOUT + SLACK).as_secs_f64();
    let mut wrong = Vec::new();
    for (name, result, seconds) in do_all(calls) {
        if seconds > limit || !allowed(&name).contains(&result.as_str()) {
            wrong.push(format!("{name}: {result} after {seconds} s"));
        }
    }
    assert!(wrong.is_empty(), "{when}: {wrong:#?}");
}

fn with_nodes_gone(signal: &str) {
    let cluster = Cluster::up_with(3, &[OP_TIMEOUT_SETTING]);
    let (node, [follower, leader]) = nodes(&cluster);
    let mut calls = all_calls(&cluster.mount(node));
    all_end(&mut calls, "all nodes there", |_| &["ok"]);
    cluster.kill(follower, signal);
    all_end(&mut calls, "one node gone", |_| &["ok"]);
    let address = cluster.address(node);
    cluster.kill(leader, signal);
    // For as long as the lease lives, reads are answered.
    all_end(&mut calls, "two nodes gone", |_| &["ok", "EIO"]);
    until_alone(&address);
    all_end(&mut calls, "two nodes gone for long", |name| match name {
        // Until there is too much of it.
        "write-large" => &["ok", "EIO"],
        name if FREE.contains(&name) => &["ok"],
        _ => &["EIO"],
    });
    // It would wait for a quorum to take what was written.
    cluster.kill(node, "KILL");
    if signal == "STOP" {
        cluster.kill(follower, "CONT");
        cluster.kill(leader, "CONT");
    }
}

/// Whatever is gone, no call is past its deadline.
#[test]
fn every_call_ends_when_nodes_are_killed() {
    with_nodes_gone("KILL");
}

/// The same for nodes whose connections stay, and that say nothing.
#[test]
#[ignore = "long"]
fn every_call_ends_when_nodes_are_silent() {
    with_nodes_gone("STOP");
}

/// Calls that are to wait for the quorum do. Whoever is killed meanwhile goes at once, whatever it waits for, and what
/// it had written is committed when the quorum is back; the others go on then.
#[test]
fn calls_that_wait_for_a_quorum_can_be_killed() {
    let cluster = Cluster::up_with(3, &WAITING);
    let (node, others) = nodes(&cluster);
    let mut calls = all_calls(&cluster.mount(node));
    let address = cluster.address(node);
    for other in others {
        cluster.kill(other, "KILL");
    }
    until_alone(&address);
    for call in &mut calls {
        call.program.tell("go");
    }
    std::thread::sleep(SHORT_OP_TIMEOUT + SLACK);
    let mut answered: Vec<_> = calls
        .iter_mut()
        .filter_map(|call| Some((call.name.clone(), call.program.answer_within(Duration::ZERO)?)))
        .collect();
    answered.retain(|(name, answer)| !FREE.contains(&name.as_str()) || !answer.starts_with("ok"));
    assert_eq!(answered, [], "they need a quorum");

    let (mut staying, mut killed): (Vec<_>, Vec<_>) = calls
        .into_iter()
        .partition(|call| ["mkdir", "read", "rename"].contains(&call.name.as_str()));
    for call in &mut killed {
        call.program.begin_to_kill();
    }
    let dead = Instant::now() + DEATH;
    let stuck: Vec<_> = killed
        .iter_mut()
        .filter_map(|call| (!call.program.is_gone_by(dead)).then(|| call.name.clone()))
        .collect();
    assert_eq!(stuck, Vec::<String>::new(), "killed, and not gone");

    for other in others {
        cluster.start(other);
    }
    for call in &mut staying {
        let answer = call.program.answer_within(PATIENCE).expect("the quorum is back");
        assert!(answer.starts_with("ok"), "{}: {answer}", call.name);
    }
    cluster.settle();
    for (name, written) in [("fsync", "round 0"), ("flush", "round 0"), ("close", "closed")] {
        let file = if name == "close" { "closed-0" } else { "file" };
        let path = cluster.mount(others[0]).join(name).join(file);
        wait_until(PATIENCE, &format!("what {name} had written"), || {
            fs::read(&path).expect("read").starts_with(written.as_bytes()).then_some(())
        });
    }
}
