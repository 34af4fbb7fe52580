//! A node that is alive but stuck must not hold up the others for ever, least of all while it leads.

use crate::clock::SECOND;
use crate::node::Node;
use crate::trace::Trace;
use crate::world::World;

/// What stands still.
#[derive(Clone, Copy, Debug)]
enum What {
    Applier,
    Disk,
}

/// All others get on although something of one node stands still for a minute.
fn others_get_on(seed: u64, leads: bool, what: What) {
    let mut world = up(seed, false);
    let stuck = world.nodes.iter().position(|node| node.leads() == leads).expect("one leads");
    hold_up(&mut world, stuck, what);
}

/// The same, with a member that never votes.
fn others_get_on_beside_a_learner(seed: u64, what: What) {
    let mut world = beside_a_learner(seed);
    let leader = world.nodes.iter().position(Node::leads).expect("one leads");
    hold_up(&mut world, leader, what);
}

/// Where all have come equally far, nobody is preferred who cannot take over.
fn somebody_else_leads(seed: u64) {
    let mut world = beside_a_learner(seed);
    world.working = false;
    world.run_until(10 * SECOND, |_| false);
    let stuck = world.nodes.iter().position(Node::leads).expect("one leads");
    let daemon = world.nodes[stuck].daemon.as_mut().expect("it leads");
    daemon.disk_busy_until = world.now + 60 * SECOND;
    // Changes nothing, but is to be written.
    world.add_member(stuck, stuck);
    let has_moved = |world: &World| {
        let mut others = world.nodes.iter().enumerate().filter(|(node, _)| *node != stuck);
        others.any(|(_, node)| node.leads())
    };
    assert!(world.run_until(5 * SECOND, has_moved), "a leader whose disk stands still leads on");
}

/// With a member that never votes, whose session is the newest.
fn beside_a_learner(seed: u64) -> World {
    let mut world = up(seed, true);
    let learner = world.nodes.iter().position(|node| node.is_learner).expect("there is one");
    world.crash(learner, false);
    assert!(world.run_until(20 * SECOND, World::is_up), "the learner does not come back");
    let session = |node: usize| world.nodes[node].daemon.as_ref().and_then(|it| it.mount.session);
    let newest = (0..world.nodes.len()).max_by_key(|node| session(*node));
    assert_eq!(newest, Some(learner), "the learner has the newest session");
    world
}

fn up(seed: u64, has_learner: bool) -> World {
    let mut world = World::with(seed, has_learner, Trace::silent());
    world.begin();
    assert!(world.run_until(20 * SECOND, World::is_up), "the cluster does not come up");
    world
}

fn hold_up(world: &mut World, stuck: usize, what: What) {
    let until = world.now + 60 * SECOND;
    match what {
        What::Applier => world.nodes[stuck].applier_stuck_until = until,
        What::Disk => {
            let daemon = world.nodes[stuck].daemon.as_mut().expect("it leads or follows");
            daemon.disk_busy_until = until;
        }
    }
    for _ in 0..5 {
        let before: Vec<u64> = world.clients.iter().map(|client| client.answered).collect();
        let get_on = |world: &World| {
            let mut clients = world.clients.iter().zip(&before);
            clients.all(|(client, before)| client.node == stuck || client.answered > *before)
        };
        assert!(world.run_until(8 * SECOND, get_on), "the others wait for a stuck node");
    }
}

#[test]
fn a_stuck_leader_holds_up_nobody_for_long() {
    (0..10).for_each(|seed| others_get_on(seed, true, What::Applier));
}

#[test]
fn a_stuck_follower_holds_up_nobody_for_long() {
    (0..10).for_each(|seed| others_get_on(seed, false, What::Applier));
}

/// Only those of at least three voters can do without one.
#[test]
fn a_leader_whose_disk_stands_still_holds_up_nobody_for_long() {
    more_than_two().for_each(|seed| others_get_on(seed, true, What::Disk));
}

/// A learner cannot take over, however far it has come.
#[test]
fn a_stuck_leader_beside_a_learner_holds_up_nobody_for_long() {
    for seed in 0..10 {
        others_get_on_beside_a_learner(seed, What::Applier);
    }
    more_than_two().for_each(|seed| others_get_on_beside_a_learner(seed, What::Disk));
}

#[test]
fn a_leader_whose_disk_stands_still_hands_over_beside_a_learner() {
    more_than_two().for_each(somebody_else_leads);
}

fn more_than_two() -> impl Iterator<Item = u64> {
    let voters = |seed: &u64| World::with(*seed, false, Trace::silent()).nodes.len();
    (0..15).filter(move |seed| voters(seed) > 2)
}
