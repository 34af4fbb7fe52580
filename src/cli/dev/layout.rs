//! Where things lie in the directory of a dev cluster.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::types::ClusterId;

/// What `dev.json` says: the cluster that the directory is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// Without symbolic links, so that it compares equal to what the kernel lists as mounted.
    #[serde(skip)]
    pub(crate) dir: PathBuf,
    /// Node K listens on `base_port + K - 1` of 127.0.0.1.
    pub(crate) base_port: u16,
    /// How many nodes there are: at most as many as there are ports for.
    pub(crate) nodes: u16,
    /// The cluster's id, once it is made.
    pub(crate) cluster: Option<String>,
}

/// One node's own directory.
#[derive(Clone, Debug)]
pub(crate) struct NodeDir {
    /// Its number, from 1, which is also its id in the cluster.
    pub(crate) node: u16,
    /// `DIR/nK`.
    pub(crate) dir: PathBuf,
    /// Where its daemon listens.
    pub(crate) address: String,
}

/// Held by a command that changes which daemons run.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "locked for as long as it is open")] File);

impl Layout {
    /// The cluster in `dir`, if there is one.
    pub(crate) fn find(dir: &Path) -> Result<Option<Self>> {
        let file = dir.join("dev.json");
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", file.display()));
            }
        };
        let mut layout: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged", file.display()))?;
        layout.dir = canonical(dir)?;
        Ok(Some(layout))
    }

    /// The cluster in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        Self::find(dir)?.with_context(|| {
            format!("there is no dev cluster in {}: run `quorumfs dev up` first", dir.display())
        })
    }

    /// A new one in `dir`, which exists.
    pub(crate) fn create(dir: &Path, nodes: u16, base_port: Option<u16>) -> Result<Self> {
        let dir = canonical(dir)?;
        let base_port = match base_port {
            Some(port) if u32::from(port) + u32::from(nodes) > 1 << 16 => {
                bail!("there are no {nodes} ports from {port} on")
            }
            Some(port) => port,
            None => free_ports(&dir, nodes)?,
        };
        let layout = Self { dir, base_port, nodes, cluster: None };
        layout.save()?;
        Ok(layout)
    }

    /// Writes `dev.json`, whole or not at all.
    pub(crate) fn save(&self) -> Result<()> {
        let file = self.dir.join("dev.json");
        let new = self.dir.join("dev.json.new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&new, &file))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// All nodes in order.
    pub(crate) fn all(&self) -> Vec<NodeDir> {
        (1..=self.nodes).map(|node| self.at(node)).collect()
    }

    /// The node with this number.
    pub(crate) fn node(&self, node: u16) -> Result<NodeDir> {
        if (1..=self.nodes).contains(&node) {
            Ok(self.at(node))
        } else {
            bail!("there is no node {node}: the cluster has nodes 1 to {}", self.nodes)
        }
    }

    fn at(&self, node: u16) -> NodeDir {
        NodeDir {
            node,
            dir: self.dir.join(format!("n{node}")),
            address: format!("127.0.0.1:{}", self.base_port + (node - 1)),
        }
    }
}

impl NodeDir {
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(crate) fn mount(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("quorumfs.toml")
    }

    pub(crate) fn pid_file(&self) -> PathBuf {
        self.dir.join("pid")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log").join("quorumfs.log")
    }

    /// Makes its directories. A mount point that exists is not looked at: it may be a dead mount.
    pub(crate) fn create(&self) -> Result<()> {
        for dir in [self.dir.clone(), self.data(), self.dir.join("log"), self.mount()] {
            match fs::create_dir(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot create {}", dir.display()));
                }
            }
        }
        Ok(())
    }

    /// Whether it has never been a node.
    pub(crate) fn is_new(&self) -> Result<bool> {
        let data = self.data();
        match fs::read_dir(&data) {
            Ok(mut entries) => Ok(entries.next().is_none()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", data.display())),
        }
    }

    /// Writes its configuration, with these further lines, unless there is one, which its owner may have edited.
    pub(crate) fn configure(
        &self,
        cluster: Option<&str>,
        peers: &[String],
        settings: &[String],
    ) -> Result<()> {
        let file = self.config();
        if file.exists() {
            return Ok(());
        }
        fs::write(&file, configuration(&self.address, cluster, peers, settings))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

fn configuration(
    address: &str,
    cluster: Option<&str>,
    peers: &[String],
    settings: &[String],
) -> String {
    let membership = cluster.map_or_else(String::new, |cluster| {
        format!(
            "cluster = \"{cluster}\"
peers = {peers:?}
"
        )
    });
    format!(
        "data = \"data\"
mount = \"mnt\"
listen = \"{address}\"
{membership}{}
",
        settings.join("\n")
    )
}

/// Whether nodes could be configured with these further lines: of the first node, and of the others. Before anything is written
/// to `dir`.
pub(crate) fn check_settings(dir: &Path, settings: &[String]) -> Result<()> {
    const ADDRESS: &str = "127.0.0.1:1";
    let (cluster, peers) = (ClusterId([1; 16]).to_string(), [ADDRESS.to_owned()]);
    for (node, cluster, peers) in [(1, None, &[][..]), (2, Some(&*cluster), &peers)] {
        let text = configuration(ADDRESS, cluster, peers, settings);
        Config::parse(&text, &dir.join(format!("n{node}/quorumfs.toml")))
            .context("what --set says cannot be in a configuration")?;
    }
    Ok(())
}

/// Waits for its turn, for some seconds.
pub(crate) async fn lock(dir: &Path) -> Result<Lock> {
    const ATTEMPTS: u32 = 200;
    let path = dir.join("dev.lock");
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    for _ in 0..ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(Lock(file)),
            Err(fs::TryLockError::WouldBlock) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
    bail!("another `quorumfs dev` command is at work in {}: try again later", dir.display())
}

fn canonical(dir: &Path) -> Result<PathBuf> {
    fs::canonicalize(dir).with_context(|| format!("cannot look at {}", dir.display()))
}

/// A block of ports that nobody listens on now, below those that the kernel hands out by itself.
/// Where the search begins depends on the directory, so that two clusters that come up at once do
/// not meet.
fn free_ports(dir: &Path, nodes: u16) -> Result<u16> {
    const FIRST: u16 = 17_400;
    const BLOCKS: u16 = 450;
    const BLOCK: u16 = 32;
    if nodes > BLOCK {
        bail!("a dev cluster has at most {BLOCK} nodes");
    }
    let start = crc32c::crc32c(dir.as_os_str().as_encoded_bytes()) % u32::from(BLOCKS);
    let start = u16::try_from(start).expect("below BLOCKS");
    (0..BLOCKS)
        .map(|i| FIRST + (start + i) % BLOCKS * BLOCK)
        .find(|base| {
            (*base..base + nodes).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        })
        .with_context(|| format!("there are no {nodes} free ports in a row: give --base-port"))
}
