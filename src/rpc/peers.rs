//! Outgoing streams: one to each peer, connected again for as long as the daemon runs.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::AbortHandle;
use tokio_stream::Stream;

use super::peer::peer_client::PeerClient;
use super::peer::{Envelope, Frame, Hello};
use super::stage_lanes::StageLanes;
use super::{FORMAT, MAX_MESSAGE, WINDOW, envelope, examining, losing, removal};
use crate::consensus::PeerMessage;
use crate::node::{
    Answered, Block, Examined, Fetched, Handle, Lacked, Lacking, Synced, ToPeer, ToStage,
    Transport, Wanted,
};
use crate::types::{ClusterId, LogIndex, NodeId};

/// More than this many bytes on their way to one peer are dropped: Raft sends them again when the
/// peer is back.
const MAX_QUEUED: usize = 64 << 20;
/// At most this many messages go into one frame.
const PER_FRAME: usize = 64;
/// Between two attempts to connect.
const RECONNECT: Duration = Duration::from_millis(100);

/// The streams to all peers.
pub struct Peers {
    hello: Hello,
    node: NodeId,
    runtime: tokio::runtime::Handle,
    /// Told of new connections.
    handle: Arc<OnceLock<Handle>>,
    links: RwLock<HashMap<NodeId, Link>>,
    stages: StageLanes,
}

#[derive(Clone)]
struct Link {
    address: Arc<RwLock<String>>,
    queue: UnboundedSender<(ToPeer, usize)>,
    queued: Arc<AtomicUsize>,
    connected: Arc<AtomicBool>,
    /// What keeps it; none in its own hands.
    task: Option<AbortHandle>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Peers {
    /// No peers yet of a node that listens at `address`; [`Transport::learn`] makes them known. Bulk data is sent on a runtime of its own, `bulk`.
    #[must_use]
    pub fn new(
        (cluster, node): (ClusterId, NodeId),
        address: String,
        runtime: tokio::runtime::Handle,
        bulk: tokio::runtime::Handle,
    ) -> Self {
        let cluster = cluster.0.to_vec().into();
        let hello = Hello { format: FORMAT, cluster, node: node.0, to: 0, address };
        let handle = Arc::new(OnceLock::new());
        let stages = StageLanes::new(bulk, hello.clone(), handle.clone());
        Self { hello, node, runtime, handle, links: RwLock::new(HashMap::new()), stages }
    }

    /// The node to tell of new connections. Called once.
    pub fn serve_node(&self, handle: Handle) {
        let first = self.handle.set(handle).is_ok();
        debug_assert!(first, "the streams serve one node");
    }

    /// Where a member listens.
    #[must_use]
    pub fn address(&self, node: NodeId) -> Option<String> {
        self.links.read().get(&node).map(|link| link.address.read().clone())
    }
}

impl Transport for Peers {
    fn send(&self, to: NodeId, message: ToPeer) {
        let links = self.links.read();
        let Some(link) = links.get(&to) else { return };
        let size = size_of_message(&message);
        if !link.connected.load(Ordering::Relaxed)
            || link.queued.load(Ordering::Relaxed) + size > MAX_QUEUED
        {
            return;
        }
        link.queued.fetch_add(size, Ordering::Relaxed);
        // The task that reads the queue lives as long as the runtime.
        let _ = link.queue.send((message, size));
    }

    fn learn(&self, node: NodeId, address: &str) {
        if node == self.node {
            return;
        }
        let mut links = self.links.write();
        if let Some(link) = links.get(&node) {
            address.clone_into(&mut link.address.write());
            return;
        }
        let (queue, messages) = mpsc::unbounded_channel();
        let link = Link {
            address: Arc::new(RwLock::new(address.to_owned())),
            queue,
            queued: Arc::new(AtomicUsize::new(0)),
            connected: Arc::new(AtomicBool::new(false)),
            task: None,
        };
        self.stages.learn(node, link.address.clone());
        let hello = Hello { to: node.0, ..self.hello.clone() };
        let handle = self.handle.clone();
        let kept = keep_connected(node, link.clone(), hello, messages, handle);
        let task = self.runtime.spawn(kept).abort_handle();
        links.insert(node, Link { task: Some(task), ..link });
    }

    fn forget(&self, node: NodeId) {
        self.stages.forget(node);
        if let Some(task) = self.links.write().remove(&node).and_then(|link| link.task) {
            task.abort();
        }
    }

    fn peers(&self) -> Vec<NodeId> {
        self.links.read().keys().copied().collect()
    }

    fn stage_lane(&self, node: NodeId) -> Option<u64> {
        self.stages.number(node)
    }

    fn stage(&self, to: NodeId, lane: u64, message: ToStage) {
        self.stages.send(to, lane, message);
    }

    fn fetch(&self, from: NodeId, wanted: Wanted) -> Answered<Option<Fetched>> {
        self.stages.fetch(from, wanted)
    }

    fn fetch_snapshot(
        &self,
        from: NodeId,
        at_least: LogIndex,
        pieces: mpsc::Sender<Bytes>,
    ) -> Answered<()> {
        self.stages.snapshot(from, at_least, pieces)
    }

    fn sync(&self, to: NodeId, wanted: Synced) -> Answered<bool> {
        self.stages.sync(to, wanted)
    }

    fn examine(&self, at: NodeId, asked: Examined) -> Answered<Vec<Block>> {
        examining::examine(self.stages.client(at), asked)
    }

    fn outvote(&self, at: NodeId, asked: Examined, sum: u32) -> Answered<bool> {
        examining::outvote(self.stages.client(at), asked, sum)
    }

    fn lacking(&self, at: NodeId, asked: Lacking) -> Answered<Lacked> {
        losing::lacking(self.stages.client(at), asked)
    }

    fn is_connected(&self, node: NodeId) -> bool {
        self.links.read().get(&node).is_some_and(|link| link.connected.load(Ordering::Relaxed))
    }
}

async fn keep_connected(
    node: NodeId,
    link: Link,
    hello: Hello,
    messages: UnboundedReceiver<(ToPeer, usize)>,
    handle: Arc<OnceLock<Handle>>,
) {
    let messages = Arc::new(tokio::sync::Mutex::new(messages));
    let mut last_refusal = String::new();
    loop {
        let address = link.address.read().clone();
        if let Ok(mut client) = connect(&address).await {
            // What gathered for the last connection is old news.
            while let Ok((_, size)) = messages.lock().await.try_recv() {
                link.queued.fetch_sub(size, Ordering::Relaxed);
            }
            let Ok(guard) = messages.clone().try_lock_owned() else {
                // The last connection's stream is not dropped yet.
                tokio::time::sleep(RECONNECT).await;
                continue;
            };
            link.connected.store(true, Ordering::Relaxed);
            if let Some(handle) = handle.get() {
                handle.connected(node);
            }
            let frames = Frames {
                hello: Some(hello.clone()),
                messages: guard,
                queued: link.queued.clone(),
                buffer: Vec::new(),
            };
            let end = client.deliver(frames).await;
            link.connected.store(false, Ordering::Relaxed);
            let refusal = end.err();
            if let Some(handle) = handle.get()
                && let Some(removal) = refusal.as_ref().and_then(removal::removal)
            {
                handle.told_of_removal(&removal);
            }
            say_why(refusal.as_ref(), &mut last_refusal, (node, &address));
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Why a connection has ended. One that is refused is tried again at once, and refused for the same reason: that is said
/// once.
fn say_why(refusal: Option<&tonic::Status>, last: &mut String, (peer, address): (NodeId, &str)) {
    let is_refusal = |status: &&tonic::Status| {
        matches!(status.code(), tonic::Code::FailedPrecondition | tonic::Code::PermissionDenied)
    };
    let Some(status) = refusal.filter(is_refusal) else {
        tracing::info!(peer = peer.0, address, "peer went away");
        last.clear();
        return;
    };
    if status.message() == last {
        return;
    }
    if status.code() == tonic::Code::FailedPrecondition {
        tracing::error!(peer = peer.0, address, "peer refuses us: {}", status.message());
    } else {
        tracing::info!(peer = peer.0, address, "peer refuses us: {}", status.message());
    }
    status.message().clone_into(last);
}

pub(super) async fn connect(
    address: &str,
) -> Result<PeerClient<tonic::transport::Channel>, tonic::transport::Error> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2));
    let channel = endpoint.connect().await?;
    Ok(PeerClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE))
}

/// The stream of frames: whatever waits goes into one.
struct Frames {
    hello: Option<Hello>,
    messages: tokio::sync::OwnedMutexGuard<UnboundedReceiver<(ToPeer, usize)>>,
    queued: Arc<AtomicUsize>,
    buffer: Vec<(ToPeer, usize)>,
}

impl Stream for Frames {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Frame>> {
        let this = &mut *self;
        if let Some(hello) = this.hello.take() {
            return Poll::Ready(Some(Frame { hello: Some(hello), envelopes: Vec::new() }));
        }
        match this.messages.poll_recv_many(context, &mut this.buffer, PER_FRAME) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(0) => Poll::Ready(None),
            Poll::Ready(_) => {
                let mut envelopes: Vec<Envelope> = Vec::with_capacity(this.buffer.len());
                for (message, size) in this.buffer.drain(..) {
                    this.queued.fetch_sub(size, Ordering::Relaxed);
                    envelopes.push(envelope::encode(message));
                }
                Poll::Ready(Some(Frame { hello: None, envelopes }))
            }
        }
    }
}

fn size_of_message(message: &ToPeer) -> usize {
    match message {
        ToPeer::Core(PeerMessage::Raft(message)) => {
            64 + message.entries.iter().map(|entry| entry.data.len() + 32).sum::<usize>()
        }
        ToPeer::Core(
            PeerMessage::Visible { .. }
            | PeerMessage::Stalled { .. }
            | PeerMessage::Ask { .. }
            | PeerMessage::Heartbeat { .. }
            | PeerMessage::HeartbeatAck { .. }
            | PeerMessage::Commit { .. }
            | PeerMessage::LogCut { .. }
            | PeerMessage::Digest(_),
        )
        | ToPeer::Disk(..) => 64,
    }
}
