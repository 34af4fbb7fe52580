//! `quorumfs status`: the cluster as one daemon sees it.

use anyhow::Result;
use serde::Serialize;

use crate::cli::client;
use crate::cli::size::size;
use crate::rpc::admin::{self, MemberStatus, MountInfo, SessionStatus, StatusReply};
use crate::types::ClusterId;

/// Which daemon to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct AddressArgs {
    /// The address of a daemon.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7401")]
    pub(crate) addr: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    at: AddressArgs,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What is printed: [`StatusReply`] with the cluster as people write it.
#[derive(Debug, Serialize)]
struct Status {
    cluster: String,
    node: u64,
    pid: u64,
    version: String,
    role: String,
    leader: u64,
    term: u64,
    commit: u64,
    applied: u64,
    stable: u64,
    first_index: u64,
    last_index: u64,
    mount: String,
    mounted: bool,
    session: u64,
    lease_ms: u64,
    epochs: bool,
    digest: String,
    members: Vec<Member>,
    sessions: Vec<Session>,
    problems: Vec<String>,
    mounts: Vec<Mount>,
    /// Nothing where it cannot be known at present.
    missing: Option<Missing>,
    plain_bytes: u64,
    sent_bytes: u64,
    has_quorum: bool,
    log_bytes: u64,
}

/// File bytes that the node lacks; see `proto/admin.proto`.
#[derive(Debug, Default, Serialize)]
struct Missing {
    files: u64,
    bytes: u64,
    rate: u64,
    left_ms: Option<u64>,
    nowhere: Vec<Nowhere>,
    nowhere_more: u64,
}

#[derive(Debug, Serialize)]
struct Nowhere {
    ino: u64,
    start: u64,
    end: u64,
}

#[derive(Debug, Serialize)]
struct Mount {
    point: String,
    source: String,
    options: String,
    attached: bool,
    /// Whether the kernel reads large files by itself.
    passthrough: bool,
    /// Why not; empty where it does.
    no_passthrough: String,
}

/// One member, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct Member {
    pub(crate) node: u64,
    pub(crate) address: String,
    pub(crate) kind: String,
    pub(crate) connected: bool,
    matched: u64,
    pub(crate) lag: u64,
    suspicion: f64,
    silent_ms: u64,
    stalled_ms: u64,
}

#[derive(Debug, Serialize)]
struct Session {
    session: u64,
    node: u64,
    strong: bool,
    visible: u64,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let status = Status::from(client::status_of(&args.at.addr).await?);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&status);
    }
    Ok(())
}

fn print(status: &Status) {
    let leader = match status.leader {
        0 => "nobody leads".to_owned(),
        leader => format!("node {leader} leads"),
    };
    println!("cluster {}: {leader} in term {}", status.cluster, status.term);
    println!(
        "node {} ({}, pid {}, version {}): commit {}, applied {}, stable {}, log {} to {} ({})",
        status.node,
        status.role,
        status.pid,
        status.version,
        status.commit,
        status.applied,
        status.stable,
        status.first_index,
        status.last_index,
        size(status.log_bytes)
    );
    println!(
        "session {} with {} ms left, kernel epochs: {}",
        status.session,
        status.lease_ms,
        if status.epochs { "yes" } else { "no" }
    );
    if !status.mounted && !status.mount.is_empty() {
        println!("mount {}: not mounted", status.mount);
    }
    for mount in &status.mounts {
        println!(
            "mount {}: {} ({}){}",
            mount.point,
            mount.source,
            mount.options,
            if mount.attached { "" } else { ", unmounted, still in use" }
        );
        if !mount.passthrough {
            println!("  no passthrough: {}", mount.no_passthrough);
        }
    }
    for member in &status.members {
        println!(
            "member {} {} at {} ({}), matched {}, lag {}, suspicion {:.1}",
            member.node,
            member.kind,
            member.address,
            if member.connected { "connected" } else { "not connected" },
            member.matched,
            member.lag,
            member.suspicion
        );
    }
    for session in &status.sessions {
        println!(
            "session {} of node {} ({}), shows up to {}",
            session.session,
            session.node,
            if session.strong { "strong" } else { "not strong" },
            session.visible
        );
    }
    if let Some(missing) = &status.missing {
        print_missing(missing);
    }
    if status.sent_bytes < status.plain_bytes {
        let (sent, plain) = (size(status.sent_bytes), size(status.plain_bytes));
        println!("{plain} of files were sent to others, compressed to {sent}");
    }
    for problem in &status.problems {
        println!("problem: {problem}");
    }
}

fn print_missing(missing: &Missing) {
    if missing.files == 0 {
        println!("all bytes of all files are here");
        return;
    }
    let pace = match missing.left_ms {
        Some(left) => format!("{}/s come, {} s left", size(missing.rate), left.div_ceil(1000)),
        None => "none come at present".to_owned(),
    };
    println!("missing here: {} of {} files; {pace}", size(missing.bytes), missing.files);
    for Nowhere { ino, start, end } in &missing.nowhere {
        println!("no connected node has bytes {start} to {end} of inode {ino}");
    }
    if missing.nowhere_more > 0 {
        println!("and {} more such ranges", missing.nowhere_more);
    }
}

impl From<MountInfo> for Mount {
    fn from(mount: MountInfo) -> Self {
        let MountInfo { point, source, options, attached, no_passthrough } = mount;
        let point = String::from_utf8_lossy(&point).into_owned();
        let passthrough = no_passthrough.is_empty();
        Self { point, source, options, attached, passthrough, no_passthrough }
    }
}

impl From<admin::Missing> for Missing {
    fn from(missing: admin::Missing) -> Self {
        let admin::Missing { files, bytes, rate, left_ms, nowhere, nowhere_more } = missing;
        let one = |admin::Nowhere { ino, start, end }| Nowhere { ino, start, end };
        let nowhere = nowhere.into_iter().map(one).collect();
        Self { files, bytes, rate, left_ms, nowhere, nowhere_more }
    }
}

impl From<StatusReply> for Status {
    fn from(reply: StatusReply) -> Self {
        Self {
            cluster: <[u8; 16]>::try_from(&reply.cluster[..])
                .map_or_else(|_| "unknown".to_owned(), |id| ClusterId(id).to_string()),
            node: reply.node,
            pid: reply.pid,
            version: reply.version,
            role: reply.role,
            leader: reply.leader,
            term: reply.term,
            commit: reply.commit,
            applied: reply.applied,
            stable: reply.stable,
            first_index: reply.first_index,
            last_index: reply.last_index,
            mount: reply.mount,
            mounted: reply.mounted,
            session: reply.session,
            lease_ms: reply.lease_ms,
            epochs: reply.epochs,
            digest: reply.digest,
            members: reply.members.into_iter().map(Member::from).collect(),
            sessions: reply.sessions.into_iter().map(Session::from).collect(),
            problems: reply.problems,
            mounts: reply.mounts.into_iter().map(Mount::from).collect(),
            missing: reply.missing.map(Missing::from),
            plain_bytes: reply.plain_bytes,
            sent_bytes: reply.sent_bytes,
            has_quorum: reply.has_quorum,
            log_bytes: reply.log_bytes,
        }
    }
}

impl From<MemberStatus> for Member {
    fn from(member: MemberStatus) -> Self {
        let MemberStatus {
            node,
            address,
            kind,
            connected,
            matched,
            lag,
            suspicion,
            silent_ms,
            stalled_ms,
        } = member;
        Self { node, address, kind, connected, matched, lag, suspicion, silent_ms, stalled_ms }
    }
}

impl From<SessionStatus> for Session {
    fn from(session: SessionStatus) -> Self {
        let SessionStatus { session, node, strong, visible } = session;
        Self { session, node, strong, visible }
    }
}
