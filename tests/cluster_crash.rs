//! Every daemon is killed at once in the middle of writing: what was synced is there afterwards.

mod support;

use std::fs;

use support::Cluster;
use support::promises::Writers;

#[test]
fn what_was_synced_survives_the_death_of_all() {
    kill_everybody(3);
}

#[test]
#[ignore = "long"]
fn what_was_synced_survives_the_death_of_all_long() {
    kill_everybody(50);
}

fn kill_everybody(rounds: usize) {
    /// Rounds whose files are kept and looked at again.
    const KEPT: usize = 3;
    let cluster = Cluster::up(3);
    let mounts = [1, 2, 3].map(|node| cluster.mount(node));
    let (mut promises, mut kept) = (Vec::new(), 0);
    for round in 0..rounds {
        let dir = format!("r{round}");
        fs::create_dir(mounts[0].join(&dir)).expect("mkdir");
        promises.push(Writers::run(&mounts, &dir, |writers| {
            writers.until_promised(60);
            (0..mounts.len()).for_each(|mount| writers.dies(mount));
            cluster.kill_everybody(3);
        }));
        cluster.up_again();
        for mount in &mounts {
            promises.iter().flatten().for_each(|promise| promise.check(mount));
        }
        kept += promises[promises.len() - 1].len();
        cluster.settle();
        if promises.len() > KEPT {
            promises.remove(0);
            fs::remove_dir_all(mounts[1].join(format!("r{}", round - KEPT))).expect("removal");
        }
    }
    println!("{kept} promises over {rounds} rounds were kept");
}
