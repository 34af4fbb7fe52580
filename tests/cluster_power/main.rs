//! The power goes, on one node or on all at once: what was synced is there afterwards, and what is not says so.
#![allow(clippy::disallowed_methods, reason = "killers are threads")]

#[path = "../support/mod.rs"]
mod support;

mod doubtful;
mod images;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use doubtful::Doubtful;
use images::Disks;
use support::promises::{Promise, Writers};
use support::{Cluster, quorumfs, succeed};

const NODES: [u64; 3] = [1, 2, 3];

#[test]
fn what_was_synced_survives_a_power_loss() {
    lose_power(1);
}

#[test]
#[ignore = "long"]
fn what_was_synced_survives_a_power_loss_long() {
    lose_power(20);
}

/// A cluster whose data directories can be cloned while it runs.
struct Machines {
    disks: Disks,
    cluster: Cluster,
    mounts: [PathBuf; 3],
}

fn lose_power(rounds: usize) {
    let mut machines = Machines::up();
    let (mut kept, mut lost, mut promises) = (0, 0, Vec::<(String, Vec<Promise>)>::new());
    for round in 0..rounds {
        for alone in [false, true] {
            let dir = format!("r{round}{}", if alone { "-alone" } else { "" });
            fs::create_dir(machines.mounts[0].join(&dir)).expect("mkdir");
            let (made, doubtful) = if alone {
                (machines.one_loses_power(&dir, round), None)
            } else {
                let (made, files) = machines.all_lose_power(&dir);
                (made, Some(files))
            };
            kept += made.len();
            promises.push((dir, made));
            machines.check(&promises);
            lost += usize::from(doubtful.is_some_and(|files| files.check(&machines)));
            if promises.len() > 3 {
                let (oldest, _) = promises.remove(0);
                fs::remove_dir_all(machines.mounts[1].join(oldest)).expect("removal");
            }
        }
    }
    machines.cluster.down();
    for node in NODES {
        succeed(quorumfs().arg("fsck").arg("--data").arg(machines.data(node)));
    }
    println!(
        "{kept} promises over {rounds} power losses of one and of all were kept, and {lost} loose files lost"
    );
}

impl Machines {
    fn up() -> Self {
        let mut disks = None;
        let cluster = Cluster::up_in_with(3, &[doubtful::SETTING], |dir| {
            let places = NODES.map(|node| dir.join(format!("n{node}/data")));
            disks = Some(Disks::make(dir, &places));
        });
        let mounts = NODES.map(|node| cluster.mount(node));
        Self { disks: disks.expect("it was prepared"), cluster, mounts }
    }

    fn data(&self, node: u64) -> PathBuf {
        self.cluster.dir().join(format!("n{node}/data"))
    }

    /// The disks of all nodes are what they were at one moment of the run. Answers what was promised before.
    fn all_lose_power(&mut self, dir: &str) -> (Vec<Promise>, Doubtful) {
        let (cluster, disks) = (&self.cluster, &mut self.disks);
        let (writing, mut taken) = (&self.mounts[0], None);
        Writers::run(&self.mounts, dir, |writers| {
            writers.until_promised(60);
            let promised = writers.so_far();
            let doubtful = Doubtful::write(writing);
            taken = Some((promised, doubtful, disks.clone_all()));
            (0..NODES.len()).for_each(|mount| writers.dies(mount));
            thread::scope(|killers| {
                for node in NODES {
                    killers.spawn(move || cluster.kill(node, "KILL"));
                }
            });
        });
        let (promised, doubtful, clone) = taken.expect("the writers ran");
        self.disks.become_clone(clone);
        for node in NODES {
            forget_boot(&self.data(node));
            Doubtful::lose_stages(&self.data(node));
        }
        self.cluster.up_again();
        (promised, doubtful)
    }

    /// The disk of one node is what it was when its daemon was killed; the others go on. Answers all that was promised.
    fn one_loses_power(&mut self, dir: &str, round: usize) -> Vec<Promise> {
        let number = round % NODES.len();
        let node = NODES[number];
        let data = self.data(node);
        let (cluster, disks) = (&self.cluster, &mut self.disks);
        Writers::run(&self.mounts, dir, |writers| {
            writers.until_promised(60);
            writers.dies(number);
            // What it says after the clone, nobody hears.
            cluster.kill(node, "KILL");
            let clone = disks.clone_all();
            disks.one_becomes_clone(number, &clone);
            forget_boot(&data);
            cluster.start(node);
        })
    }

    fn check(&self, promises: &[(String, Vec<Promise>)]) {
        self.cluster.settle();
        for mount in &self.mounts {
            promises.iter().flat_map(|(_, made)| made).for_each(|promise| promise.check(mount));
        }
        self.cluster.settle();
    }
}

impl Drop for Machines {
    /// Before the disks go. What fails here fails again when the cluster is dropped.
    fn drop(&mut self) {
        let _ = self.cluster.dev("down").output();
    }
}

/// As if the machine had been started anew. (The clone is another mount, which would do by itself.)
fn forget_boot(data: &Path) {
    let boot = data.join("boot");
    let known =
        fs::read_to_string(&boot).expect("it is recorded under which boot the state was written");
    fs::write(boot, format!("another boot than {known}")).expect("write");
}
