//! A network of namespaces: one for each node, and one with the bridge that joins them. Nothing of the host's
//! own network is touched.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::support::{succeed, text};

/// What every node's interface is called.
const INTERFACE: &str = "eth0";

/// Where packets go, seen by the node that drops them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
}

/// The namespaces of one cluster; gone when dropped, with every process in them.
#[derive(Debug)]
pub struct Network {
    nodes: u64,
    prefix: String,
}

impl Network {
    pub fn of(nodes: u64) -> Self {
        let network = Self { nodes, prefix: format!("qfs{}", std::process::id()) };
        let bridge = network.bridge();
        network.note();
        Self::add(&bridge);
        ip(&["-n", &bridge, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &bridge, "link", "set", "br0", "up"]);
        for node in 1..=nodes {
            network.join(node, &bridge);
        }
        network
    }

    /// For `scripts/test`, before they are made.
    fn note(&self) {
        let Some(dir) = std::env::var_os("QUORUMFS_TEST_DIR") else { return };
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(std::path::Path::new(&dir).join("netns"))
            .expect("the list of namespaces");
        let names: String = self.all().map(|name| name + "\n").collect();
        file.write_all(names.as_bytes()).expect("write");
    }

    fn all(&self) -> impl Iterator<Item = String> {
        (1..=self.nodes).map(|node| self.name(node)).chain([self.bridge()])
    }

    fn add(name: &str) {
        ip(&["netns", "add", name]);
        ip(&["-n", name, "link", "set", "lo", "up"]);
    }

    fn join(&self, node: u64, bridge: &str) {
        let (name, port) = (self.name(node), format!("port{node}"));
        Self::add(&name);
        let pair = ["type", "veth", "peer", "name", &port, "netns", bridge];
        ip(&[&["-n", &name, "link", "add", INTERFACE][..], &pair].concat());
        ip(&["-n", bridge, "link", "set", &port, "master", "br0", "up"]);
        let address = format!("{}/24", Self::host(node));
        ip(&["-n", &name, "address", "add", &address, "dev", INTERFACE]);
        ip(&["-n", &name, "link", "set", INTERFACE, "up"]);
    }

    /// The address of a node.
    pub fn host(node: u64) -> String {
        format!("10.77.0.{node}")
    }

    fn name(&self, node: u64) -> String {
        format!("{}-{node}", self.prefix)
    }

    fn bridge(&self) -> String {
        format!("{}-b", self.prefix)
    }

    /// A command that runs `program` in the namespace of a node. Not `ip netns exec`: that makes a mount
    /// namespace too, so nobody else would see what a daemon mounts.
    pub fn run_at(&self, node: u64, program: &Command) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name(node)));
        command.arg(program.get_program()).args(program.get_args());
        command
    }

    /// All packets between a node and some others are lost, on these ways; each with the likelihood of so many in
    /// a hundred. Replaces what was lost there before.
    pub fn lose(&self, node: u64, others: &[u64], ways: &[Way], percent: u8) {
        let others: Vec<_> = others.iter().map(|other| Self::host(*other)).collect();
        let others = others.join(", ");
        let some = if percent < 100 {
            format!("numgen random mod 100 < {percent}")
        } else {
            String::new()
        };
        let chain = |way: &Way| {
            let (hook, end) = match way {
                Way::In => ("input", "saddr"),
                Way::Out => ("output", "daddr"),
            };
            format!(
                "chain {hook} {{ type filter hook {hook} priority 0; \
                 ip {end} {{ {others} }} {some} drop; }}"
            )
        };
        let chains: Vec<_> = ways.iter().map(chain).collect();
        self.rules(node, &format!("table inet faults {{\n{}\n}}\n", chains.join("\n")));
    }

    fn rules(&self, node: u64, rules: &str) {
        let mut load = self.run_at(node, Command::new("nft").args(["-f", "-"]));
        let mut load = load.stdin(Stdio::piped()).spawn().expect("nft runs");
        let mut input = load.stdin.take().expect("piped");
        write!(input, "flush ruleset\n{rules}").expect("it reads");
        drop(input);
        assert!(load.wait().expect("it ends").success(), "nft refuses {rules}");
    }

    /// What a node sends passes a link of so many megabits a second, and waits there for up to `queue`.
    pub fn narrow(&self, node: u64, mbit: u32, queue: Duration) {
        let (rate, latency) = (format!("{mbit}mbit"), format!("{}ms", queue.as_millis()));
        let shape = ["tbf", "rate", &rate, "burst", "16kb", "latency", &latency];
        let dev = ["-n", &self.name(node), "qdisc", "replace", "dev", INTERFACE, "root"];
        succeed(Command::new("tc").args(dev).args(shape));
    }

    /// Undoes everything.
    pub fn heal(&self, node: u64) {
        self.rules(node, "");
        // There may be none.
        let dev = ["-n", &self.name(node), "qdisc", "del", "dev", INTERFACE, "root"];
        let _ = Command::new("tc").args(dev).output();
    }

    /// Ends every process in it, by its id.
    fn end_processes(name: &str) {
        for _ in 0..200 {
            let listed = Command::new("ip").args(["netns", "pids", name]).output();
            let listed = listed.map(|output| text(&output.stdout)).unwrap_or_default();
            if listed.trim().is_empty() {
                return;
            }
            let pids = listed.split_whitespace();
            let _ = Command::new("kill").arg("-KILL").args(pids).output();
            std::thread::sleep(Duration::from_millis(50));
        }
        eprintln!("processes in {name} do not end");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.all() {
            Self::end_processes(&name);
            let _ = Command::new("ip").args(["netns", "delete", &name]).output();
        }
    }
}

fn ip(arguments: &[&str]) {
    succeed(Command::new("ip").args(arguments));
}
