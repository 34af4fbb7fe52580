//! The client of a daemon's admin service.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::config;
use crate::rpc::admin::admin_client::AdminClient;
use crate::rpc::admin::{
    AcceptLostRequest, AddMemberRequest, LostReport, MountRequest, PromoteMemberRequest,
    RemoveMemberRequest, ScrubProgress, ScrubRequest, StatusReply, StatusRequest,
    TransferLeaderRequest, UnmountRequest,
};
use crate::types::NodeId;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A daemon that is stopped or wedged accepts connections and says nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the other end of a connection is asked whether it is there, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// A daemon that has just started may wait for a quorum first, and one that unmounts for what was written.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(90);
/// Handing over takes an election.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(15);
/// A change of membership waits for a quorum, and for the Raft group to follow.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to one daemon.
#[derive(Debug)]
pub(crate) struct Admin {
    client: AdminClient<Channel>,
    address: String,
}

impl Admin {
    /// Connects to the daemon at `HOST:PORT`.
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        ensure!(
            config::is_address(address),
            "\"{address}\" is not HOST:PORT, such as 127.0.0.1:7401"
        );
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .with_context(|| format!("\"{address}\" is not HOST:PORT"))?
            .connect_timeout(CONNECT_TIMEOUT)
            // What comes in pieces may take hours; a daemon that stands still, or a machine that is gone, is noticed.
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let channel = endpoint
            .connect()
            .await
            .with_context(|| format!("no quorumfs daemon answers at {address}"))?;
        Ok(Self { client: AdminClient::new(channel), address: address.to_owned() })
    }

    /// The cluster as this daemon sees it.
    pub(crate) async fn status(&mut self) -> Result<StatusReply> {
        tokio::time::timeout(ANSWER_TIMEOUT, self.client.status(StatusRequest {}))
            .await
            .ok()
            .with_context(|| format!("the daemon at {} does not answer", self.address))?
            .map(tonic::Response::into_inner)
            .map_err(|status| refusal(&self.address, &status))
    }

    /// Mounts, or changes a mount. An error says whether what was asked for makes no sense.
    pub(crate) async fn mount(
        &mut self,
        request: MountRequest,
    ) -> Result<(), (bool, anyhow::Error)> {
        let answer = tokio::time::timeout(MOUNT_TIMEOUT, self.client.mount(request)).await;
        let silent = || anyhow::anyhow!("the daemon at {} does not answer", self.address);
        let reply = answer.map_err(|_| (false, silent()))?;
        reply.map(drop).map_err(|status| {
            let is_usage = matches!(status.code(), Code::InvalidArgument | Code::PermissionDenied);
            (is_usage, anyhow::anyhow!("{}", status.message()))
        })
    }

    /// Takes a mount away.
    pub(crate) async fn unmount(&mut self, point: &Path, lazy: bool) -> Result<()> {
        let point = point.as_os_str().as_encoded_bytes().to_vec().into();
        let request = UnmountRequest { point, lazy };
        tokio::time::timeout(MOUNT_TIMEOUT, self.client.unmount(request))
            .await
            .ok()
            .with_context(|| format!("the daemon at {} does not answer", self.address))?
            .map(drop)
            .map_err(|status| anyhow::anyhow!("{}", status.message()))
    }

    /// Begins a scrub, which ends when the stream is dropped.
    pub(crate) async fn scrub(
        &mut self,
        request: ScrubRequest,
    ) -> Result<tonic::Streaming<ScrubProgress>> {
        tokio::time::timeout(ANSWER_TIMEOUT, self.client.scrub(request))
            .await
            .ok()
            .with_context(|| format!("the daemon at {} does not answer", self.address))?
            .map(tonic::Response::into_inner)
            .map_err(|status| refusal(&self.address, &status))
    }

    /// Begins to look for lost bytes, which ends when the stream is dropped.
    pub(crate) async fn accept_lost(
        &mut self,
        request: AcceptLostRequest,
    ) -> Result<tonic::Streaming<LostReport>> {
        let asked = tokio::time::timeout(ANSWER_TIMEOUT, self.client.accept_lost(request)).await;
        self.answer(asked)
    }

    /// Announces a member that is going to listen at `address`; answers its id.
    pub(crate) async fn add_member(&mut self, address: &str, learner: bool) -> Result<NodeId> {
        let request = AddMemberRequest { address: address.to_owned(), learner };
        let asked = tokio::time::timeout(MEMBER_TIMEOUT, self.client.add_member(request)).await;
        Ok(NodeId(self.answer(asked)?.node))
    }

    /// Takes a membership away.
    pub(crate) async fn remove_member(&mut self, node: NodeId, force: bool) -> Result<()> {
        let request = RemoveMemberRequest { node: node.0, force };
        let asked = tokio::time::timeout(MEMBER_TIMEOUT, self.client.remove_member(request)).await;
        self.answer(asked).map(drop)
    }

    /// Gives a learner a vote as soon as it holds everything.
    pub(crate) async fn promote_member(&mut self, node: NodeId) -> Result<()> {
        let request = PromoteMemberRequest { node: node.0 };
        let asked = tokio::time::timeout(MEMBER_TIMEOUT, self.client.promote_member(request)).await;
        self.answer(asked).map(drop)
    }

    fn answer<T>(
        &self,
        reply: Result<Result<tonic::Response<T>, tonic::Status>, tokio::time::error::Elapsed>,
    ) -> Result<T> {
        reply
            .ok()
            .with_context(|| format!("the daemon at {} does not answer", self.address))?
            .map(tonic::Response::into_inner)
            .map_err(|status| refusal(&self.address, &status))
    }

    /// Hands leadership over to `node`, or to any voter. Answers who leads then.
    pub(crate) async fn transfer_leader(&mut self, node: Option<NodeId>) -> Result<NodeId> {
        let request = TransferLeaderRequest { node: node.map_or(0, u64::from) };
        let reply = tokio::time::timeout(TRANSFER_TIMEOUT, self.client.transfer_leader(request))
            .await
            .ok()
            .with_context(|| format!("the daemon at {} does not answer", self.address))?
            .map_err(|status| refusal(&self.address, &status))?;
        Ok(NodeId(reply.into_inner().leader))
    }
}

fn refusal(address: &str, status: &tonic::Status) -> anyhow::Error {
    if status.code() == Code::Unimplemented {
        return anyhow::anyhow!(
            "the daemon at {address} is of another version of quorumfs and does not know this request: use the quorumfs \
             that it runs (quorumfs status says which)"
        );
    }
    anyhow::anyhow!("the daemon at {address} says: {}", status.message())
}

/// Connects and asks once.
pub(crate) async fn status_of(address: &str) -> Result<StatusReply> {
    Admin::connect(address).await?.status().await
}

#[cfg(test)]
mod tests {
    use super::refusal;

    #[test]
    fn an_older_daemon_is_named_as_that() {
        let error = refusal("n:1", &tonic::Status::unimplemented("")).to_string();
        assert!(error.contains("another version of quorumfs"), "{error}");
        let error = refusal("n:1", &tonic::Status::internal("no")).to_string();
        assert_eq!(error, "the daemon at n:1 says: no");
    }
}
