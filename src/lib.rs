//! quorumfs: a directory that several machines share and that survives the loss of any minority of
//! them.
//!
//! This page is the map. `README.md` says how to use it; each module says what it owns, who calls it and
//! what it must not do.
//!
//! ```text
//!  program ── kernel ── FUSE ──► mount ──► node::Handle ──► consensus (raft-rs) ──► peers (rpc)
//!                                  │             │                 │ committed
//!                                  │ reads       │                 ▼
//!                                  └──────► store ◄──────────── apply (fs)
//! ```
//!
//! # How things flow
//!
//! **A mutation** (create, rename, setattr …). `mount` builds a command in which everything that could
//! differ between replicas is already decided (times, inode numbers, owners) and proposes it through
//! [`node::Handle::mutate_in`]. The core forwards it to the leader, whose log entry is persisted by a
//! quorum. When it is received everywhere, reads of what it may change begin to wait and kernels forget
//! that. Who proposed it counts by itself when it is committed; others learn it with the next entries, or when a
//! read asks. Each replica's apply thread runs [`fs::apply`] on it, writes one batch to the state, and makes
//! sure that its kernel serves nothing older. Then it tells the others the index that it shows. The
//! lowest such index over the roster is the *stable index*; once it reaches the entry, the core lets the
//! proposer acknowledge.
//!
//! **A write** stays in the mount's buffer for that inode, where all its reads see it. A flush (close,
//! fsync, a full buffer, a timer) turns it into `Write` commands that carry the bytes. A change of
//! attributes that comes before carries them along in its own command, where they fit.
//!
//! **An fsync** is a flush that waits until its commands may be acknowledged: by then a quorum has them
//! on disk in the log.
//!
//! **A read** asks nobody. It queries the local state, and may be served if the session's lease is live
//! and what it read was last changed at a stable index ([`consensus::ReadGate`]). Bytes come from the
//! backing file, with the mount's buffer on top.
//!
//! **A copy within the file system** is a command that names two ranges: each replica copies between its own
//! backing files. Until a snapshot is behind it, the source's bytes are pinned, so that a replay copies the
//! same ones (`store/pins.rs`).
//!
//! **Space.** Nodes tell each other what their disks take in. What needs more than a quorum has is refused
//! with ENOSPC when it is asked for; what has been taken in is never lost for want of space.
//!
//! **Rot.** A thread that comes after everybody else keeps checksums of the blocks of quiet files. Whoever sends bytes
//! to a peer compares them with these, and a scrub compares all replicas ([`node::Handle::scrub`]). A block that is not
//! what it should be is *missing* from then on, and fetched as everything that is.
//!
//! **A disk that fails.** Bytes of files that it does not take or give are missing. A failed write of the log, or any failed
//! fsync, stops this replica alone ([`node::Handle::fatal`]), and so does any panic; why is recorded (`store/ends.rs`). What a
//! start finds damaged is mended where the log is whole (`store/recover.rs`, `daemon/lost_state.rs`); otherwise the daemon
//! stays down and says what to do (`docs/disk-faults.md`).
//!
//! **A change of leader.** Followers notice the silence, one is elected. Everybody proposes again what
//! has no outcome (session and sequence number make that harmless), and sends its heartbeats to the new
//! leader, which waits a whole TTL before it expires anybody.
//!
//! **A snapshot.** When the log has grown enough, the backing files are synced, the state is exported as
//! of one index to a snapshot file, and the log is cut behind it. After a crash of the machine the state
//! is rebuilt from that file and the log; after a crash of the process alone sled is trusted.
//!
//! **A divergence.** The log says now and then what most replicas' states came to ([`fs::Ledger`]). One that differs serves
//! nothing and applies nothing more until it has installed a peer's snapshot, and fetches what may be wrong in its files
//! (`node/divergence.rs`). A snapshot counts only once its state was found equal.
//!
//! **The death of a daemon.** A second process, the [`guardian`], notices it, has the kernel forget what it was told, takes
//! the mounts away and tells the peers, which end the session at once instead of after its TTL.
//!
//! **Without a daemon.** [`offline`] looks at a stopped node's directory as its next start would find it, in a copy of what
//! a start would change. Files that a crash left behind and that nothing names are collected after each start
//! (`store/sweep.rs`).
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | session | what a daemon and its mounts are to the cluster: opened through the log, kept alive by heartbeats |
//! | roster | the sessions whose mounts read strongly |
//! | guardian | the process beside a daemon that fences its mounts when it dies |
//! | fenced | nothing is served under this session any more |
//! | lease | the time during which a session cannot have been expired; counted by its own node |
//! | applied index | the last entry in this replica's state |
//! | stable index | what every mount of the roster shows |
//! | `mod_index` | the index at which a record was last changed |
//! | digest | what a state's records add up to; equal states have equal ones |
//! | attested | found equal to the majority, by what the log says |
//! | generation | a life of a file's bytes: a new one at create and at truncation to zero |
//! | pin, stage | bytes of a backing file that a replayed copy will read; where they are kept once the file changes |
//! | orphan | an inode without a name that some session may still hold open |

// Clocks, environment and threads are forbidden by `clippy.toml` everywhere but in the modules that
// are allowed them here. `fs`, `consensus` and `types` never are.
#[allow(clippy::disallowed_methods, reason = "waits for daemons with deadlines")]
pub mod cli;
pub mod config;
pub mod consensus;
#[allow(clippy::disallowed_methods, reason = "starts threads and reads the clocks")]
pub mod daemon;
pub mod fs;
#[allow(clippy::disallowed_methods, reason = "outlives its daemon on threads and clocks")]
pub mod guardian;
#[allow(clippy::disallowed_methods, reason = "leases and times of buffered writes need clocks")]
pub mod mount;
mod mountinfo;
pub mod mutants;
#[allow(clippy::disallowed_methods, reason = "drives the core: threads and clocks are its job")]
pub mod node;
pub mod offline;
#[allow(clippy::disallowed_methods, reason = "connections have time-outs")]
pub mod rpc;
#[allow(clippy::disallowed_methods, reason = "flushes and takes snapshots on threads of its own")]
pub mod store;
#[allow(clippy::disallowed_methods, reason = "reads the environment of the service manager")]
pub mod telemetry;
pub mod types;
