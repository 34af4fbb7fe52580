//! Waiting for daemons: for a condition, with a deadline, and no longer than the daemon lives.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cli::client;
use crate::cli::dev::layout::{Layout, NodeDir};
use crate::cli::dev::process::Daemon;
use crate::cli::mountpoint;
use crate::cli::probe::{self, Finding};
use crate::rpc::admin::StatusReply;

const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The node that an error is about, as a context: its log says more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FailingNode(pub(crate) u16);

impl fmt::Display for FailingNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// Waits until `condition` names nothing any more that is waited for at the daemon of `node`.
async fn until(
    node: &NodeDir,
    mut condition: impl AsyncFnMut(&NodeDir) -> Result<Option<String>>,
) -> Result<()> {
    let failing = FailingNode(node.node);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let Some(missing) = condition(node).await.context(failing)? else { return Ok(()) };
        if Daemon::of(node)?.is_none() {
            return Err(anyhow::anyhow!("its daemon stopped; the wait was for {missing}"))
                .context(failing);
        }
        if Instant::now() > deadline {
            let seconds = TIMEOUT.as_secs();
            return Err(anyhow::anyhow!("waited {seconds} s for {missing}")).context(failing);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Waits for what `node` says, whatever it can do by then.
pub(crate) async fn until_answering(node: &NodeDir) -> Result<StatusReply> {
    let mut said = None;
    until(node, async |node| {
        said = client::status_of(&node.address).await.ok();
        Ok(said.is_none().then(|| "an answer".to_owned()))
    })
    .await?;
    Ok(said.expect("it was waited for"))
}

/// Waits until `node` is a voter with a leader and its mount serves.
pub(crate) async fn until_serving(node: &NodeDir) -> Result<()> {
    until(node, async |node| {
        let Ok(status) = client::status_of(&node.address).await else {
            return Ok(Some("an answer".to_owned()));
        };
        if status.node != u64::from(node.node) {
            bail!("it is node {} of its cluster: use a new directory", status.node);
        }
        if let Some(missing) = missing_of_membership(&status) {
            return Ok(Some(missing.to_owned()));
        }
        let mount = node.mount();
        if !mountpoint::is_fuse(&mount)? || probe::probe(&mount).await? != Finding::Serves {
            return Ok(Some("its mount to serve".to_owned()));
        }
        Ok(None)
    })
    .await
}

/// Waits until every node serves and sees all of them as voters under a leader.
pub(crate) async fn until_complete(layout: &Layout) -> Result<()> {
    for node in layout.all() {
        until_serving(&node).await?;
    }
    for node in layout.all() {
        until(&node, async |node| {
            let Ok(status) = client::status_of(&node.address).await else {
                return Ok(Some("an answer".to_owned()));
            };
            let voters = status.members.iter().filter(|member| member.kind == "voter").count();
            if status.leader == 0 {
                return Ok(Some("it to know a leader".to_owned()));
            }
            let all = usize::from(layout.nodes);
            Ok((voters < all).then(|| format!("it to know {all} voters instead of {voters}")))
        })
        .await?;
    }
    Ok(())
}

fn missing_of_membership(status: &StatusReply) -> Option<&'static str> {
    let voter =
        status.members.iter().any(|member| member.node == status.node && member.kind == "voter");
    match (status.leader, voter, status.mounted, status.has_quorum) {
        (0, ..) => Some("it to know a leader"),
        (_, false, ..) => Some("it to be a voter"),
        (_, _, false, _) => Some("it to be mounted"),
        (.., false) => Some("a quorum to answer it"),
        _ => None,
    }
}
