//! The one configuration of a daemon: a TOML file, read once at start.
//!
//! Every field says its default, its bounds and what it does. Unknown keys are refused, so that a
//! misspelt one is not silently a default. Parsing checks one value at a time;
//! [`Config::validate`] checks what they mean together.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use crate::types::ClusterId;

/// What a daemon is told by its operator. `scripts/quorumfs.toml` is a commented example.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Directory of this node's own state: Raft log, snapshots, backing files. No default. It belongs
    /// to one node of one cluster for ever. Relative paths start at the configuration file.
    pub data: PathBuf,

    /// Directory for a copy of the daemon's log lines, as `quorumfs.log`. Default: none, they go to
    /// stderr only.
    #[serde(default)]
    pub log: Option<PathBuf>,

    /// The directory to mount on at start. Default: none, which leaves mounting to fstab and `quorumfs
    /// mount`. It must exist, and nothing may be mounted there.
    #[serde(default)]
    pub mount: Option<PathBuf>,

    /// Address and port for peers, `quorumfs status` and joining nodes. No default.
    pub listen: SocketAddr,

    /// Address and port at which Prometheus finds this node's metrics (`/metrics`, HTTP without TLS); nothing
    /// can be changed there. Default: none.
    #[serde(default)]
    pub metrics: Option<SocketAddr>,

    /// `HOST:PORT` at which the others reach this node. Default: `listen`. Must be given where
    /// `listen` is every address (`0.0.0.0` or `[::]`). Stays what it was when the node was made:
    /// data is refused at another address.
    #[serde(default)]
    pub advertise: Option<String>,

    /// The cluster that this node belongs to: 32 hexadecimal digits, as `cluster init` prints them.
    /// Default: none, which only the node that runs `cluster init` may have. A node never joins, nor
    /// starts from the data of, another cluster.
    #[serde(default, deserialize_with = "cluster_id")]
    pub cluster: Option<ClusterId>,

    /// `HOST:PORT` of members to join through; any one that answers is enough. Default: none. Not
    /// used any more once the node is a member.
    #[serde(default)]
    pub peers: Vec<String>,

    /// How fresh reads of this daemon's mounts are, unless a mount's own option says otherwise:
    /// `"strong"`, `"bounded=SECONDS"` or `"eventual"`. Default: strong. Minimum of a bound:
    /// `session_ttl`. Where it is not strong no writer waits for this daemon, and none of its
    /// mounts can read strongly.
    #[serde(default)]
    pub read: ReadMode,

    /// How long the others wait for this mount when it falls silent, before they go on without it: a
    /// crashed node delays writers by this much. Default 2 s, minimum 0.5 s. `"2s"`, `"500ms"` or an
    /// integer of milliseconds.
    #[serde(default = "default_session_ttl", deserialize_with = "duration")]
    pub session_ttl: Duration,

    /// After this long without an answer of a quorum an operation fails with EIO. Default 30 s,
    /// minimum: twice `session_ttl`.
    #[serde(default = "default_op_timeout", deserialize_with = "duration")]
    pub op_timeout: Duration,

    /// What calls do that need a quorum while there is none: `"error"` has them fail with EIO once
    /// `op_timeout` is over, `"block"` has them wait until it is back (a process that is killed goes all
    /// the same). Default: error.
    #[serde(default)]
    pub on_quorum_loss: OnQuorumLoss,

    /// Allows addresses that other machines can reach although there is no TLS yet. Default false.
    /// Whoever reaches the port can then read and change everything.
    #[serde(default)]
    pub insecure: bool,

    /// The Raft log is cut by a snapshot no sooner than after this many bytes. Default 64 MiB,
    /// minimum 1 MiB. Smaller means quicker restarts and more snapshots. An integer, or `"64MiB"`.
    #[serde(default = "default_snapshot_min_log", deserialize_with = "size")]
    pub snapshot_min_log: u64,
    /// However far a member lags, the log is cut when it has this many bytes: the member is sent a snapshot then. Default
    /// 1 GiB, minimum `snapshot_min_log`. Where a snapshot (all names and attributes) is larger, the log becomes as large as
    /// that; and twice as large while one is sent or waits to be compared. Have room for it, beside `reserve`.
    #[serde(default = "default_max_log", deserialize_with = "size")]
    pub max_log: u64,

    /// Bytes of the disk under `data` that are kept for the Raft log and snapshots. Writes get ENOSPC
    /// when fewer than a quorum of nodes have more than this left. Default 256 MiB, minimum 16 MiB. A node
    /// whose own disk is full to the last byte stops. An integer, or `"256MiB"`.
    #[serde(default = "default_reserve", deserialize_with = "size")]
    pub reserve: u64,

    /// The most bytes of one flush that travel inside a command of the log. Default 64 KiB, minimum
    /// 4 KiB, maximum 1 MiB.
    #[serde(default = "default_inline_max", deserialize_with = "size")]
    pub inline_max: u64,

    /// How many bytes per second this node fetches at most of what it lacks and nobody is reading, so that
    /// healing leaves network and disks to others; what somebody reads is fetched at once, however much that
    /// is. Default 0: no limit. Minimum, where there is one: 64 KiB. An integer, or `"50MiB"`.
    #[serde(default, deserialize_with = "size")]
    pub heal_rate: u64,

    /// What is done to file bytes that this node sends to others: `"off"`, `"lz4"` (costs little) or `"zstd"`
    /// (saves more, for networks slower than some 100 MB/s). Default: off. Bytes that do not compress are sent
    /// as they are. What others send is understood whatever is set here.
    #[serde(default)]
    pub compression: Compression,
}

/// What calls do while there is no quorum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnQuorumLoss {
    /// They fail at their deadline.
    #[default]
    Error,
    /// They wait.
    Block,
}

/// What is done to bulk data on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Nothing.
    #[default]
    Off,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// How fresh the reads of a mount are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// A read sees everything that was acknowledged before it began, on whichever mount.
    #[default]
    Strong,
    /// A read is at most this old; it waits where the leader has not been heard of for that long.
    Bounded(Duration),
    /// A read sees what this replica has.
    Eventual,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not TOML, or a key or value is unknown.
    #[error("cannot use the configuration {path}, line {line}: {message}")]
    Parse {
        /// Its path.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong there, without line breaks.
        message: String,
    },
    /// Its values do not make sense together.
    #[error("cannot use the configuration {path}")]
    Invalid {
        /// Its path.
        path: PathBuf,
        /// The first mistake.
        #[source]
        source: Mistake,
    },
}

/// A mistake in the values of a configuration, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// Mounting over one's own data, or keeping data in one's own mount.
    #[error("data and mount must not lie within each other: choose separate directories")]
    Nested,
    /// Peers cannot reach "every address".
    #[error("listen is {0}, which the others cannot call: set advertise to this node's HOST:PORT")]
    Unreachable(SocketAddr),
    /// Not `HOST:PORT`.
    #[error("{field} \"{address}\" is not HOST:PORT")]
    Address {
        /// The key.
        field: &'static str,
        /// Its value.
        address: String,
    },
    /// Others could reach a port that nothing protects.
    #[error(
        "{field} {address} can be reached by other machines and TLS is not available yet: \
         use a loopback address, or set insecure = true on a network that you trust"
    )]
    Insecure {
        /// The key.
        field: &'static str,
        /// Its value.
        address: String,
    },
    /// Peers without a cluster to join.
    #[error("peers are given but cluster is not: copy the id that `quorumfs cluster init` printed")]
    PeersWithoutCluster,
    /// A value beyond its bounds.
    #[error("{field} must be {bounds}")]
    Bounds {
        /// The key.
        field: &'static str,
        /// From where to where.
        bounds: &'static str,
    },
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, does not parse, or contains a [`Mistake`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// The same of what a file at `path` would hold.
    ///
    /// # Errors
    /// When it does not parse, or contains a [`Mistake`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self =
            toml::from_str(text).map_err(|error| parse_error(path, text, &error))?;
        let base = std::path::absolute(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let base = base.parent().unwrap_or(Path::new("/"));
        config.data = base.join(&config.data);
        config.mount = config.mount.map(|mount| base.join(mount));
        config.log = config.log.map(|log| base.join(log));
        config
            .validate()
            .map_err(|source| ConfigError::Invalid { path: path.to_owned(), source })?;
        Ok(config)
    }

    /// Where the others reach this node.
    #[must_use]
    pub fn address(&self) -> String {
        self.advertise.clone().unwrap_or_else(|| self.listen.to_string())
    }

    /// Where programs of this machine reach the daemon.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        let host = match self.listen.ip() {
            IpAddr::V4(host) if host.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(host) if host.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            host => host,
        };
        SocketAddr::new(host, self.listen.port())
    }

    /// Checks what the values mean together.
    ///
    /// # Errors
    /// The first mistake found.
    pub fn validate(&self) -> Result<(), Mistake> {
        if let Some(mount) = &self.mount
            && (self.data.starts_with(mount) || mount.starts_with(&self.data))
        {
            return Err(Mistake::Nested);
        }
        if self.advertise.is_none() && self.listen.ip().is_unspecified() {
            return Err(Mistake::Unreachable(self.listen));
        }
        self.validate_addresses()?;
        if !self.peers.is_empty() && self.cluster.is_none() {
            return Err(Mistake::PeersWithoutCluster);
        }
        self.validate_bounds()
    }

    fn validate_addresses(&self) -> Result<(), Mistake> {
        let listen = self.listen.to_string();
        let metrics = self.metrics.map(|address| address.to_string());
        let named = std::iter::once(("listen", listen.as_str()))
            .chain(metrics.iter().map(|address| ("metrics", address.as_str())))
            .chain(self.advertise.iter().map(|address| ("advertise", address.as_str())))
            .chain(self.peers.iter().map(|address| ("peers", address.as_str())));
        for (field, address) in named {
            let Some(host) = host(address) else {
                return Err(Mistake::Address { field, address: address.to_owned() });
            };
            if !self.insecure && !is_loopback(host) {
                return Err(Mistake::Insecure { field, address: address.to_owned() });
            }
        }
        Ok(())
    }

    fn validate_bounds(&self) -> Result<(), Mistake> {
        let bounded = match self.read {
            ReadMode::Bounded(age) => age >= self.session_ttl,
            ReadMode::Strong | ReadMode::Eventual => true,
        };
        let bounds = [
            ("session_ttl", "at least 0.5 s", self.session_ttl >= Duration::from_millis(500)),
            ("read", "bounded by at least session_ttl", bounded),
            ("op_timeout", "at least twice session_ttl", self.op_timeout >= 2 * self.session_ttl),
            ("snapshot_min_log", "at least 1 MiB", self.snapshot_min_log >= 1 << 20),
            ("max_log", "at least snapshot_min_log", self.max_log >= self.snapshot_min_log),
            ("reserve", "at least 16 MiB", self.reserve >= 16 << 20),
            ("inline_max", "from 4 KiB to 1 MiB", (4 << 10..=1 << 20).contains(&self.inline_max)),
            (
                "heal_rate",
                "0 or at least 64 KiB",
                self.heal_rate == 0 || self.heal_rate >= 64 << 10,
            ),
        ];
        match bounds.into_iter().find(|(_, _, kept)| !kept) {
            Some((field, bounds, _)) => Err(Mistake::Bounds { field, bounds }),
            None => Ok(()),
        }
    }
}

impl FromStr for ReadMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "read is \"strong\", \"bounded=SECONDS\" or \"eventual\"";
        match text {
            "strong" => Ok(Self::Strong),
            "eventual" => Ok(Self::Eventual),
            _ => {
                let seconds = text.strip_prefix("bounded=").ok_or(WANTED)?;
                let seconds: f64 = seconds.parse().map_err(|_| WANTED)?;
                Duration::try_from_secs_f64(seconds).map(Self::Bounded).map_err(|_| WANTED)
            }
        }
    }
}

impl fmt::Display for ReadMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Strong => f.write_str("strong"),
            Self::Bounded(age) => write!(f, "bounded={}", age.as_secs_f64()),
            Self::Eventual => f.write_str("eventual"),
        }
    }
}

impl<'de> Deserialize<'de> for ReadMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

fn default_session_ttl() -> Duration {
    Duration::from_secs(2)
}

fn default_op_timeout() -> Duration {
    Duration::from_secs(30)
}

fn default_snapshot_min_log() -> u64 {
    64 << 20
}

fn default_max_log() -> u64 {
    1 << 30
}

fn default_reserve() -> u64 {
    256 << 20
}

fn default_inline_max() -> u64 {
    64 << 10
}

/// Whether an address is `HOST:PORT`, at which somebody can listen.
#[must_use]
pub fn is_address(address: &str) -> bool {
    host(address).is_some()
}

/// The host of `HOST:PORT`, without the brackets of an IPv6 address.
fn host(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    if port.parse::<u16>().ok()? == 0 {
        return None;
    }
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty() && !host.contains(char::is_whitespace)).then_some(host)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text.get(..start).map_or(1, |before| before.matches('\n').count() + 1);
    let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
    ConfigError::Parse { path: path.to_owned(), line, message }
}

fn cluster_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ClusterId>, D::Error> {
    String::deserialize(deserializer)?.parse().map(Some).map_err(de::Error::custom)
}

/// A quantity as it is written: a bare integer, or one with its unit.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected an integer, or a string with a unit")]
enum Quantity {
    Bare(u64),
    Written(String),
}

impl Quantity {
    /// In the base unit, which a bare integer is in too.
    fn resolve(self, units: &[(&str, u64)]) -> Option<u64> {
        match self {
            Self::Bare(value) => Some(value),
            Self::Written(text) => {
                let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
                let (number, unit) = text.split_at(digits);
                let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
                number.parse::<u64>().ok()?.checked_mul(*factor)
            }
        }
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Quantity::deserialize(deserializer)?
        .resolve(&[("ms", 1), ("s", 1_000), ("m", 60_000)])
        .map(Duration::from_millis)
        .ok_or_else(|| de::Error::custom("expected a time such as \"2s\", \"500ms\" or \"1m\""))
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Quantity::deserialize(deserializer)?
        .resolve(&[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)])
        .ok_or_else(|| de::Error::custom("expected a size such as 65536, \"64KiB\" or \"1MiB\""))
}

#[cfg(test)]
mod tests {
    use super::{Compression, Config, Mistake, OnQuorumLoss, ReadMode, host};
    use std::time::Duration;

    const LEAST: &str = "data = '/var/d'\nmount = '/mnt/q'\nlisten = '127.0.0.1:7401'\n";

    fn parse(rest: &str) -> Result<Config, String> {
        toml::from_str(&format!("{LEAST}{rest}")).map_err(|error| error.message().to_owned())
    }

    fn mistake(rest: &str) -> Mistake {
        parse(rest).expect("it parses").validate().expect_err("it is a mistake")
    }

    #[test]
    fn the_least_configuration_has_the_documented_defaults() {
        let config = parse("").expect("it parses");
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.session_ttl, Duration::from_secs(2));
        assert_eq!(config.op_timeout, Duration::from_secs(30));
        assert_eq!(config.on_quorum_loss, OnQuorumLoss::Error);
        assert_eq!((config.snapshot_min_log, config.inline_max), (64 << 20, 64 << 10));
        assert_eq!(config.reserve, 256 << 20);
        assert_eq!((config.heal_rate, config.compression), (0, Compression::Off));
        assert_eq!((config.read, config.insecure), (ReadMode::Strong, false));
        assert_eq!(config.address(), "127.0.0.1:7401");
        assert_eq!(config.local_address(), config.listen);
        let unmounted = LEAST.replace("mount = '/mnt/q'\n", "");
        let config: Config = toml::from_str(&unmounted).expect("a mount is not needed");
        assert_eq!((config.validate(), config.mount), (Ok(()), None));
    }

    #[test]
    fn quantities_take_units() {
        let config = parse("session_ttl = '1500ms'\nop_timeout = 9000\ninline_max = '1MiB'\n")
            .expect("it parses");
        assert_eq!(config.session_ttl, Duration::from_millis(1500));
        assert_eq!(config.op_timeout, Duration::from_secs(9));
        assert_eq!(config.inline_max, 1 << 20);
        assert!(parse("session_ttl = '2 hours'").expect_err("no such unit").contains("500ms"));
        assert!(parse("inline_max = '99999999999GiB'").is_err());
    }

    #[test]
    fn compression_is_one_of_three() {
        for (text, wanted) in
            [("off", Compression::Off), ("lz4", Compression::Lz4), ("zstd", Compression::Zstd)]
        {
            let config = parse(&format!("compression = '{text}'")).expect("it parses");
            assert_eq!(config.compression, wanted);
        }
        assert!(parse("compression = 'gzip'").expect_err("not known").contains("zstd"));
    }

    #[test]
    fn without_a_quorum_calls_fail_or_wait() {
        let config = parse("on_quorum_loss = 'block'").expect("it parses");
        assert_eq!(config.on_quorum_loss, OnQuorumLoss::Block);
        assert!(parse("on_quorum_loss = 'panic'").expect_err("not known").contains("block"));
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(parse("sesion_ttl = '2s'").expect_err("misspelt").contains("sesion_ttl"));
    }

    #[test]
    fn read_modes_are_read_as_they_are_written() {
        for text in ["strong", "eventual", "bounded=2.5"] {
            assert_eq!(text.parse::<ReadMode>().expect("valid").to_string(), text);
        }
        assert!("bounded=-1".parse::<ReadMode>().is_err());
        assert!("weak".parse::<ReadMode>().is_err());
    }

    #[test]
    fn an_unprotected_port_needs_consent() {
        let cluster = "cluster = '00112233445566778899aabbccddeeff'\n";
        let peers = format!("{cluster}peers = ['10.0.0.1:7401']\n");
        assert!(matches!(mistake(&peers), Mistake::Insecure { field: "peers", .. }));
        assert!(matches!(
            mistake("advertise = 'node1:7401'"),
            Mistake::Insecure { field: "advertise", .. }
        ));
        let consented = parse(&format!("{peers}insecure = true\n")).expect("it parses");
        assert_eq!(consented.validate(), Ok(()));
    }

    #[test]
    fn mistakes_are_found() {
        assert_eq!(mistake("peers = ['localhost:1']"), Mistake::PeersWithoutCluster);
        assert!(matches!(mistake("session_ttl = 100"), Mistake::Bounds { .. }));
        assert!(matches!(mistake("inline_max = '2MiB'"), Mistake::Bounds { .. }));
        assert!(matches!(mistake("reserve = '15MiB'"), Mistake::Bounds { .. }));
        assert!(matches!(mistake("heal_rate = '63KiB'"), Mistake::Bounds { .. }));
        assert!(matches!(mistake("read = 'bounded=1'"), Mistake::Bounds { field: "read", .. }));
        assert!(matches!(mistake("advertise = 'node1'"), Mistake::Address { .. }));
        let mut config = parse("").expect("it parses");
        config.data = "/mnt/q/data".into();
        assert_eq!(config.validate(), Err(Mistake::Nested));
        config = parse("").expect("it parses");
        config.listen = "0.0.0.0:7401".parse().expect("valid");
        assert!(matches!(config.validate(), Err(Mistake::Unreachable(_))));
        assert_eq!(config.local_address().to_string(), "127.0.0.1:7401");
    }

    #[test]
    fn hosts_are_told_from_ports() {
        assert_eq!(host("[::1]:80"), Some("::1"));
        assert_eq!(host("node:80"), Some("node"));
        for wrong in ["node", "node:", ":80", "::1:80", "node:0", "a b:80", "node:99999"] {
            assert_eq!(host(wrong), None, "{wrong}");
        }
    }
}
