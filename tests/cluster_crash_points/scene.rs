//! The scenes: a cluster of two, and a third replica that is killed in the middle of something.

use std::fs;
use std::time::Duration;

use super::points::{Point, Scene, found_in};
use super::record::Outcome;
use super::script;
use super::strace::{self, Attached};
use super::support::{Cluster, PATIENCE, wait_until};
use super::victim::{Victim, empty, remove_member, status};

/// Snapshots are due early, and whoever is away for a moment needs one.
const SETTINGS: [&str; 2] = ["snapshot_min_log = \"1MiB\"", "max_log = \"1MiB\""];
/// A daemon that was killed while it was traced is gone at once; one that was not has come to rest.
const AFTERWARDS: Duration = Duration::from_millis(700);

/// Where the scenes are played. Between them, the replica is a member that does not run.
#[derive(Debug)]
pub struct Stage {
    victim: Victim,
    cluster: Cluster,
    round: usize,
}

impl Stage {
    pub fn up() -> Self {
        let cluster = Cluster::up_with(2, &SETTINGS);
        let mut victim = Victim::beside(&cluster, &SETTINGS);
        victim.start(&[]);
        assert!(victim.until_ready(), "it dies");
        let mut stage = Self { victim, cluster, round: 0 };
        stage.plays();
        stage.recovered();
        stage
    }

    /// Plays a scene to its end; answers which points there are.
    pub fn count(&mut self, scene: Scene) -> Vec<Point> {
        let trace = self.cluster.dir().join("trace");
        if scene == Scene::Works {
            self.victim.start(&[]);
            assert!(self.victim.until_ready(), "it dies");
            let pid = self.victim.pid().expect("it runs");
            let attached = Attached::to_all(pid, &trace);
            self.plays();
            self.until_settled();
            drop(attached);
        } else {
            self.prepare(scene);
            self.victim.start(&strace::all_calls(&trace));
            assert!(self.victim.until_ready(), "it dies");
            self.until_settled();
            self.victim.end("TERM");
        }
        let text = fs::read(&trace).expect("strace wrote it");
        let points = found_in(&String::from_utf8_lossy(&text), scene, &self.victim.data());
        self.recovered();
        points
    }

    /// Plays a scene, in which the replica is killed, and checks that it recovers.
    pub fn kill_at(&mut self, point: &Point) -> Outcome {
        let was_killed = if point.scene == Scene::Works {
            self.victim.start(&[]);
            assert!(self.victim.until_ready(), "{point}: it dies before");
            let pid = self.victim.pid().expect("it runs");
            let attached = Attached::to_threads(pid, point);
            self.plays();
            let was_killed = self.victim.dies_within(AFTERWARDS);
            drop(attached);
            was_killed
        } else {
            self.prepare(point.scene);
            let mut options = strace::kill_at(point);
            options.insert(0, "-f".to_owned());
            self.victim.start(&options);
            !self.victim.until_ready() || self.victim.dies_within(AFTERWARDS)
        };
        if !was_killed {
            self.victim.end("TERM");
        }
        self.recovered();
        if was_killed { Outcome::Recovered } else { Outcome::NotReached }
    }

    /// What has to be before a scene in which the replica is started.
    fn prepare(&mut self, scene: Scene) {
        match scene {
            Scene::Works => {}
            Scene::Starts => {
                self.victim.start(&[]);
                assert!(self.victim.until_ready(), "it dies");
                self.plays();
                self.victim.end("KILL");
            }
            Scene::Joins => {
                empty(&self.victim.data());
                self.forget_members();
            }
            Scene::Installs => {
                let known = self.last_index();
                wait_until(PATIENCE, "the log to be cut", || {
                    self.plays();
                    let first = |node| self.field(node, "first_index");
                    (first(1) > known + 1 && first(2) > known + 1).then_some(())
                });
            }
        }
    }

    /// Another replica's mount is written to. Where its session ended, as on a machine that stood still for longer than a
    /// session lives, it is written to again.
    fn plays(&mut self) {
        self.round += 1;
        let dir = self.cluster.mount(1).join("d");
        for _ in 0..3 {
            let Err(error) = script::run(&dir, self.round) else { return };
            println!("round {} begins anew: {error}", self.round);
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
        }
        panic!("round {} fails each time", self.round);
    }

    /// Whatever it went through: it starts, has everything, and nothing is wrong on its disk.
    fn recovered(&mut self) {
        if self.victim.is_dead() {
            self.victim.end("KILL");
            self.victim.start(&[]);
        }
        assert!(self.victim.until_ready(), "it dies again");
        self.until_settled();
        script::check(&self.victim.mount().join("d"), self.round);
        self.victim.end("TERM");
        self.victim.check();
    }

    /// Waits until all three have applied the same, with the same result.
    fn until_settled(&self) {
        let [one, two] = [1, 2].map(|node| self.cluster.address(node));
        wait_until(PATIENCE, "all to agree", || {
            let all = [&one, &two, self.victim.address()].map(status);
            let [Some(first), Some(second), Some(third)] = &all else { return None };
            for other in [second, third] {
                if other["applied"] != first["applied"] {
                    return None;
                }
                assert_eq!(other["digest"], first["digest"], "at {}", first["applied"]);
            }
            Some(())
        });
    }

    /// Those that are gone: the replica that lost its disk, and what it was when it was killed while it joined.
    fn forget_members(&self) {
        let address = self.cluster.address(1);
        let members = status(&address).expect("it runs")["members"].clone();
        for member in members.as_array().expect("a list") {
            let node = member["node"].as_u64().expect("a number");
            if node > 2 {
                remove_member(&address, node);
            }
        }
        wait_until(PATIENCE, "it to be forgotten", || {
            (status(&address)?["members"].as_array()?.len() == 2).then_some(())
        });
    }

    fn field(&self, node: u64, name: &str) -> u64 {
        let address = self.cluster.address(node);
        status(&address).expect("it runs")[name].as_u64().expect("a number")
    }

    fn last_index(&self) -> u64 {
        self.field(1, "last_index")
    }
}
