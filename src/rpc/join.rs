//! How a daemon with an empty data directory becomes a member.

use std::time::Duration;

use super::peer::peer_client::PeerClient;
use super::peer::{JoinReply, JoinRequest};
use super::{FORMAT, removal};
use crate::node::{Heard, Removals, monotonic};
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
pub enum JoinError {
    /// It is of another cluster, or of another version; or this is a copy of a member that is there.
    #[error("{address} refuses: {reason}")]
    Refused {
        /// Who refused.
        address: String,
        /// Its sentence.
        reason: String,
    },
    /// The member that has moved is none any more.
    #[error("node {0} was removed from the cluster")]
    Removed(NodeId),
}

/// Asks the peers in turn, until one answers. The nonce makes asking again harmless: it is answered
/// with the same id. A member that has moved says which it is.
///
/// # Errors
/// When a peer belongs to another cluster or speaks another format; when the member that has moved was removed.
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
    let (mut peers, mut removals) = (peers.to_vec(), Removals::default());
    let mut rounds = 0_u32;
    loop {
        for peer in peers.clone() {
            match ask(&peer, request.clone()).await {
                Ok(JoinReply { node, genesis, .. }) => {
                    return Ok(Joined { node: NodeId(node), genesis });
                }
                Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                    let reason = status.message().to_owned();
                    return Err(JoinError::Refused { address: peer, reason });
                }
                Err(status) => {
                    tracing::debug!(peer, "cannot join yet: {}", status.message());
                    if let (Some(node), Some(removal)) = (moved, removal::removal(&status)) {
                        let heard = removals.hear_of_asked(monotonic(), removal, &mut peers);
                        if heard == Heard::Certain {
                            return Err(JoinError::Removed(node));
                        }
                    }
                }
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
