//! A node that is alive but stuck must not hold up the others for ever, least of all while it leads.

use crate::clock::SECOND;
use crate::trace::Trace;
use crate::world::World;

/// All others get on although one node applies nothing for a minute.
fn others_get_on(seed: u64, leads: bool) {
    let mut world = World::new(seed, Trace::silent());
    world.begin();
    assert!(world.run_until(20 * SECOND, World::is_up), "the cluster does not come up");
    let stuck = world.nodes.iter().position(|node| node.leads() == leads).expect("one leads");
    world.nodes[stuck].applier_stuck_until = world.now + 60 * SECOND;
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
    (0..10).for_each(|seed| others_get_on(seed, true));
}

#[test]
fn a_stuck_follower_holds_up_nobody_for_long() {
    (0..10).for_each(|seed| others_get_on(seed, false));
}
