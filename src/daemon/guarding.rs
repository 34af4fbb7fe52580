//! What the daemon's guardian is told of the cluster, so that it knows whom to report to.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::config::Config;
use crate::fs::query;
use crate::guardian::{Guardian, Report};
use crate::node::Handle;
use crate::store::{self, Identity, StoreError};

/// Starts the guardian, and keeps it informed for as long as the daemon runs.
pub(super) fn start(
    config: &Config,
    identity: &Identity,
    node: &Handle,
    runtime: &tokio::runtime::Handle,
) -> Result<Guardian> {
    let guardian =
        Guardian::start(config.log.as_deref()).context("cannot start the daemon's guardian")?;
    let blank = Report {
        cluster: identity.cluster.0,
        node: identity.node.0,
        address: identity.address.clone(),
        ..Report::default()
    };
    runtime.spawn(inform(guardian.clone(), blank, node.clone(), config.data.clone()));
    Ok(guardian)
}

/// Everything is unmounted, and the session is closed: there is nothing to guard. Where a daemon ends in any
/// other way its guardian is not told, and sees to what is left.
pub(super) async fn stop(guardian: Guardian) {
    let stopping = tokio::task::spawn_blocking(move || guardian.stop());
    // It does not panic.
    let _ = stopping.await;
}

async fn inform(guardian: Guardian, blank: Report, node: Handle, data: PathBuf) {
    let (mut sessions, mut members) = (node.sessions(), node.members_changed());
    loop {
        sessions.borrow_and_update();
        members.borrow_and_update();
        match report(&blank, &node) {
            Ok(report) => {
                guardian.set_report(report.clone());
                record(&data, &report).await;
            }
            Err(error) => tracing::warn!(%error, "the guardian does not know whom to report to"),
        }
        let changed = tokio::select! {
            changed = sessions.changed() => changed,
            changed = members.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// For a start without a state, too.
async fn record(data: &Path, report: &Report) {
    let addresses: Vec<_> = report.peers.iter().map(|(_, address)| address.clone()).collect();
    let data = data.to_owned();
    let recorded =
        tokio::task::spawn_blocking(move || store::record_peers(&data, &addresses)).await;
    if let Ok(Err(error)) = recorded {
        tracing::warn!(%error, "where the others listen is not recorded");
    }
}

fn report(blank: &Report, node: &Handle) -> Result<Report, StoreError> {
    let session = node.session().0;
    let members = query::members(&node.state())?.into_iter();
    let peers = members.filter(|member| member.node != blank.node);
    let peers = peers.map(|member| (member.node, member.address)).collect();
    Ok(Report { session, peers, ..blank.clone() })
}
