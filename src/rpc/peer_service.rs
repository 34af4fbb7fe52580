//! Incoming streams, and newcomers.

use tonic::{Request, Response, Status, Streaming};

use super::peer::peer_server::Peer;
use super::peer::{
    Delivered, FencedReply, FencedRequest, Frame, JoinReply, JoinRequest, MemberAddress,
};
use super::{
    envelope,
    hello::{admit, check, recognize},
    removal,
};
use crate::node::Handle;
use crate::types::{ClusterId, NodeId, SessionId};

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

    /// A member may come back at another address, but not while a daemon with the same data is alive at the old one:
    /// one of them works on a copy, and each would vote.
    fn check_move(&self, node: NodeId, nonce: u64, address: &str) -> Result<(), Status> {
        let members = self.handle.members();
        let Some(member) = members.get(node).filter(|member| member.nonce == nonce) else {
            if members.is_removed(node) {
                return Err(removal::refuse(&self.handle, node));
            }
            // This one may lag behind.
            return Err(Status::unavailable(format!("node {node} is not known here yet")));
        };
        if member.address != address
            && (node == self.handle.node() || self.handle.is_connected(node))
        {
            return Err(Status::failed_precondition(format!(
                "node {node} runs at {}: stop it there before it is started elsewhere; if this is a copy of its data \
                 directory, let this machine join as a new member, with an empty one",
                member.address
            )));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn deliver(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Delivered>, Status> {
        let mut frames = request.into_inner();
        let Some(Frame { hello: Some(hello), .. }) = frames.message().await? else {
            return Err(Status::invalid_argument("the first frame must be a hello"));
        };
        let from = admit(self.cluster, &self.handle, &hello)?;
        self.handle.meet(from, &hello.address);
        let mut members = self.handle.members_changed();
        tracing::info!(peer = from.0, "peer connected");
        // It has probably lost what it was sent on the last connection.
        self.handle.connected(from);
        loop {
            let frame = tokio::select! {
                frame = frames.message() => frame?,
                _ = members.changed() => {
                    // It may be no member any more, and is to hear of it.
                    admit(self.cluster, &self.handle, &hello)?;
                    continue;
                }
            };
            let Some(frame) = frame else { return Ok(Response::new(Delivered {})) };
            for envelope in frame.envelopes {
                match envelope::decode(envelope) {
                    Ok(message) => self.handle.deliver(from, message),
                    Err(error) => tracing::error!(peer = from.0, "message ignored: {error}"),
                }
            }
        }
    }

    async fn fenced(
        &self,
        request: Request<FencedRequest>,
    ) -> Result<Response<FencedReply>, Status> {
        let FencedRequest { hello, session } = request.into_inner();
        let hello = hello.ok_or_else(|| Status::invalid_argument("a hello is missing"))?;
        // The last word of a node that was removed: nobody is to wait for its session.
        let node = recognize(self.cluster, &self.handle, &hello)?;
        tracing::info!(
            node = node.0,
            session,
            "the daemon of a node is dead, its mounts are fenced"
        );
        self.handle.fenced(node, SessionId(session));
        Ok(Response::new(FencedReply {}))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let JoinRequest { format, cluster, nonce, address, node } = request.into_inner();
        check(self.cluster, format, &cluster)?;
        if self.genesis.is_empty() {
            return Err(Status::unavailable(
                "the genesis record of this node is damaged: ask another node",
            ));
        }
        if node != 0 {
            self.check_move(NodeId(node), nonce, &address)?;
        }
        let added = self.handle.add_member(nonce, address, false).await;
        let node = added.map_err(|error| Status::unavailable(error.to_string()))?;
        let members = self.handle.members();
        let members = members.list.iter().cloned();
        let members = members
            .map(|member| MemberAddress { node: member.node, address: member.address })
            .collect();
        Ok(Response::new(JoinReply { node: node.0, genesis: self.genesis.clone(), members }))
    }
}
