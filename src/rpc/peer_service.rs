//! Incoming streams, and newcomers.

use tonic::{Request, Response, Status, Streaming};

use super::peer::peer_server::Peer;
use super::peer::{Delivered, Frame, Hello, JoinReply, JoinRequest, MemberAddress};
use super::{envelope, hello::check};
use crate::fs::query;
use crate::node::Handle;
use crate::types::{ClusterId, NodeId};

/// Serves `proto/peer.proto` for one node.
#[derive(Debug)]
pub struct PeerService {
    cluster: ClusterId,
    handle: Handle,
    /// The genesis record of the cluster, for newcomers.
    genesis: bytes::Bytes,
}

impl PeerService {
    /// A service for `handle`'s node.
    #[must_use]
    pub fn new(cluster: ClusterId, handle: Handle, genesis: bytes::Bytes) -> Self {
        Self { cluster, handle, genesis }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn deliver(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Delivered>, Status> {
        let mut frames = request.into_inner();
        let Some(Frame { hello: Some(Hello { format, cluster, node }), .. }) =
            frames.message().await?
        else {
            return Err(Status::invalid_argument("the first frame must be a hello"));
        };
        check(self.cluster, format, &cluster)?;
        let from = NodeId(node);
        tracing::info!(peer = node, "peer connected");
        // It has probably lost what it was sent on the last connection.
        self.handle.connected(from);
        while let Some(frame) = frames.message().await? {
            for envelope in frame.envelopes {
                match envelope::decode(envelope) {
                    Ok(message) => self.handle.deliver(from, message),
                    Err(error) => tracing::error!(peer = node, "message ignored: {error}"),
                }
            }
        }
        Ok(Response::new(Delivered {}))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let JoinRequest { format, cluster, nonce, address } = request.into_inner();
        check(self.cluster, format, &cluster)?;
        let node = self
            .handle
            .add_member(nonce, address)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let members = query::members(&self.handle.state())
            .map_err(|error| Status::internal(error.to_string()))?
            .into_iter()
            .map(|member| MemberAddress { node: member.node, address: member.address })
            .collect();
        Ok(Response::new(JoinReply { node: node.0, genesis: self.genesis.clone(), members }))
    }
}
