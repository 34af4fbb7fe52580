//! How a node that has lost its state, and not started, gets a snapshot from another one.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::peer::{Hello, SnapshotRequest};
use super::{FORMAT, lanes};
use crate::node::Pace;
use crate::types::{ClusterId, LogIndex, NodeId, VolumeId};

const CONNECTING: Duration = Duration::from_secs(1);
/// Nothing has come for so long, or not a mebibyte: the peer is left alone.
const SILENCE: Duration = Duration::from_secs(30);

/// Has whoever listens at `address` send its newest snapshot file, of `from` or later, for `own`: a cluster, a node of
/// it, and where that listens.
///
/// # Errors
/// A sentence for the log: asking again, or another one, may help.
pub async fn fetch_snapshot(
    address: &str,
    own: (ClusterId, NodeId, &str),
    from: LogIndex,
    pieces: mpsc::Sender<Bytes>,
) -> Result<(), tonic::Status> {
    let connected = tokio::time::timeout(CONNECTING, lanes::connect(address)).await;
    let unavailable =
        |error: tonic::transport::Error| tonic::Status::unavailable(error.to_string());
    let mut client = connected.map_err(silent)?.map_err(unavailable)?;
    let (cluster, node, own_address) = own;
    let hello = Hello {
        format: FORMAT,
        cluster: cluster.0.to_vec().into(),
        node: node.0,
        to: 0,
        address: own_address.to_owned(),
    };
    let volume = VolumeId::FIRST.0;
    let request = SnapshotRequest { hello: Some(hello), volume, from: from.0 };
    let asked = tokio::time::timeout(SILENCE, client.snapshot(request)).await.map_err(silent)?;
    let mut coming = asked?.into_inner();
    let mut pace = Pace::new(SILENCE);
    loop {
        let waiting = std::time::Instant::now();
        let message = tokio::time::timeout(pace.left(), coming.message()).await.map_err(silent)?;
        let Some(piece) = message? else { return Ok(()) };
        pace.came(piece.data.len(), waiting.elapsed());
        // Whoever writes them has said why it does not go on.
        if pieces.send(piece.data).await.is_err() {
            return Ok(());
        }
    }
}

fn silent(_: tokio::time::error::Elapsed) -> tonic::Status {
    tonic::Status::deadline_exceeded("it does not answer")
}
