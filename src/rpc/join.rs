//! How a daemon with an empty data directory becomes a member.

use std::time::Duration;

use super::FORMAT;
use super::peer::peer_client::PeerClient;
use super::peer::{JoinReply, JoinRequest};
use crate::types::{ClusterId, NodeId};

/// Between two rounds of asking.
const AGAIN: Duration = Duration::from_millis(200);

/// What a newcomer is given.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Its id.
    pub node: NodeId,
    /// The record that every member starts from.
    pub genesis: bytes::Bytes,
}

/// Why a daemon cannot join. Asking again does not help.
#[derive(Debug, thiserror::Error)]
#[error("{address} refuses: {reason}")]
pub struct JoinError {
    /// Who refused.
    pub address: String,
    /// Its sentence.
    pub reason: String,
}

/// Asks the peers in turn, until one answers. The nonce makes asking again harmless: it is answered
/// with the same id. A member that has moved says which it is.
///
/// # Errors
/// When a peer belongs to another cluster or speaks another format.
pub async fn join(
    peers: &[String],
    cluster: ClusterId,
    nonce: u64,
    address: &str,
    moved: Option<NodeId>,
) -> Result<Joined, JoinError> {
    let request = JoinRequest {
        format: FORMAT,
        cluster: cluster.0.to_vec().into(),
        nonce,
        address: address.to_owned(),
        node: moved.map_or(0, u64::from),
    };
    let mut rounds = 0_u32;
    loop {
        for peer in peers {
            match ask(peer, request.clone()).await {
                Ok(JoinReply { node, genesis, .. }) => {
                    return Ok(Joined { node: NodeId(node), genesis });
                }
                Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                    let reason = status.message().to_owned();
                    return Err(JoinError { address: peer.clone(), reason });
                }
                Err(status) => tracing::debug!(peer, "cannot join yet: {}", status.message()),
            }
        }
        if rounds.is_multiple_of(25) {
            tracing::info!("waiting for one of {} to let this node join", peers.join(", "));
        }
        rounds += 1;
        tokio::time::sleep(AGAIN).await;
    }
}

async fn ask(peer: &str, request: JoinRequest) -> Result<JoinReply, tonic::Status> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{peer}"))
        .map_err(|error| tonic::Status::invalid_argument(error.to_string()))?
        .connect_timeout(Duration::from_secs(1))
        .timeout(Duration::from_secs(10));
    let channel =
        endpoint.connect().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    Ok(PeerClient::new(channel).join(request).await?.into_inner())
}
