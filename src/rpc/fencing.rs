//! What a guardian tells the peers of its dead daemon.

use std::time::Duration;

use super::FORMAT;
use super::peer::{FencedRequest, Hello};
use super::peers::connect;
use crate::types::{ClusterId, NodeId, SessionId};

/// Who has not heard by then is out of reach, and expires the session in its own time.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whose session is fenced.
#[derive(Clone, Debug)]
pub struct Fenced {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node whose daemon is dead.
    pub node: NodeId,
    /// Where that daemon listened.
    pub address: String,
    /// Its session.
    pub session: SessionId,
}

/// Tells all peers at once that a session serves nothing any more. Only the leader acts on it, but who that is may have just
/// changed.
pub async fn tell_fenced(fenced: &Fenced, peers: &[(NodeId, String)]) {
    let told = peers.iter().map(|(to, address)| async move {
        let told = tokio::time::timeout(PATIENCE, tell(fenced, *to, address)).await;
        (to, told.unwrap_or_else(|_| Err("no answer in time".to_owned())))
    });
    // The disk of the log may hang, and nobody is to wait for that.
    for (to, told) in futures_util::future::join_all(told).await {
        match told {
            Ok(()) => tracing::info!(peer = to.0, session = fenced.session.0, "told"),
            Err(reason) => tracing::info!(peer = to.0, reason, "cannot be told"),
        }
    }
}

async fn tell(fenced: &Fenced, to: NodeId, address: &str) -> Result<(), String> {
    let hello = Hello {
        format: FORMAT,
        cluster: fenced.cluster.0.to_vec().into(),
        node: fenced.node.0,
        to: to.0,
        address: fenced.address.clone(),
    };
    let mut client = connect(address).await.map_err(|error| error.to_string())?;
    let request = FencedRequest { hello: Some(hello), session: fenced.session.0 };
    client.fenced(request).await.map_err(|status| status.message().to_owned())?;
    Ok(())
}
