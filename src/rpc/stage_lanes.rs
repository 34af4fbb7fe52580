//! Outgoing streams of stages: one to each peer, connected again for as long as the daemon runs.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio_stream::Stream;
use tonic::Code;
use tonic::transport::Channel;

use super::peer::bulk_client::BulkClient;
use super::peer::stage_frame::Body;
use super::peer::{
    FetchReply, FetchRequest, Hello, StageAbandon, StageData, StageFrame, StageMark, SyncRequest,
};
use super::{lanes, wire};
use crate::node::{Answered, Fetched, Handle, Synced, ToStage, Wanted, Weighed};
use crate::types::{LogIndex, NodeId, StageId, VolumeId};

/// Between two attempts to connect.
const RECONNECT: Duration = Duration::from_millis(100);

/// The connection to one peer.
#[derive(Debug, Default)]
struct Lane(Mutex<Connection>);

#[derive(Debug, Default)]
struct Connection {
    /// How many there were.
    number: u64,
    /// None where there is no connection now.
    queue: Option<UnboundedSender<ToStage>>,
    client: Option<BulkClient<Channel>>,
}

/// The connections to all peers.
#[derive(Debug)]
pub(super) struct StageLanes {
    /// Where bulk work is done: not on the thread of the core.
    runtime: tokio::runtime::Handle,
    hello: Hello,
    handle: Arc<OnceLock<Handle>>,
    lanes: RwLock<HashMap<NodeId, Arc<Lane>>>,
}

impl StageLanes {
    pub(super) fn new(
        runtime: tokio::runtime::Handle,
        hello: Hello,
        handle: Arc<OnceLock<Handle>>,
    ) -> Self {
        Self { runtime, hello, handle, lanes: RwLock::default() }
    }

    /// Keeps a connection to a peer, which listens at `address` from now on.
    pub(super) fn learn(&self, node: NodeId, address: Arc<RwLock<String>>) {
        let lane = Arc::new(Lane::default());
        self.lanes.write().insert(node, lane.clone());
        let keep = keep_connected(node, lane, address, self.hello.clone(), self.handle.clone());
        self.runtime.spawn(keep);
    }

    pub(super) fn number(&self, node: NodeId) -> Option<u64> {
        let lanes = self.lanes.read();
        let connection = lanes.get(&node)?.0.lock();
        connection.queue.is_some().then_some(connection.number)
    }

    /// How to ask a peer, and as whom; nothing where there is no connection now.
    pub(super) fn client(&self, node: NodeId) -> Option<(BulkClient<Channel>, Hello)> {
        let client = self.lanes.read().get(&node)?.0.lock().client.clone();
        client.map(|client| (client, self.hello.clone()))
    }

    pub(super) fn fetch(&self, node: NodeId, wanted: Wanted) -> Answered<Option<Fetched>> {
        let lane = self.lanes.read().get(&node).cloned();
        let client = lane.and_then(|lane| lane.0.lock().client.clone());
        let request = FetchRequest {
            hello: Some(self.hello.clone()),
            volume: VolumeId::FIRST.0,
            ino: wanted.ino.0,
            generation: wanted.generation.0,
            offset: wanted.range.start,
            length: wanted.range.len(),
            version: wanted.version.0,
        };
        Box::pin(async move {
            let FetchReply { version, data, checksum, encoding, plain_length } =
                match client?.fetch(request).await {
                    Ok(reply) => reply.into_inner(),
                    Err(status) if status.code() == Code::NotFound => return Some(None),
                    Err(_) => return None,
                };
            let data = wire::decode_apart(encoding, plain_length, data).await;
            match data {
                Ok(data) if crc32c::crc32c(&data) == checksum => {
                    Some(Some(Fetched { version: LogIndex(version), data }))
                }
                _ => {
                    tracing::error!(peer = node.0, ino = %wanted.ino, "bytes came damaged");
                    None
                }
            }
        })
    }

    pub(super) fn sync(&self, node: NodeId, wanted: Synced) -> Answered<bool> {
        let lane = self.lanes.read().get(&node).cloned();
        let client = lane.and_then(|lane| lane.0.lock().client.clone());
        let request = SyncRequest {
            hello: Some(self.hello.clone()),
            volume: VolumeId::FIRST.0,
            ino: wanted.ino.0,
            generation: wanted.generation.0,
            index: wanted.index.0,
        };
        Box::pin(async move {
            let reply = client?.sync(request).await;
            Some(reply.ok()?.into_inner().durable)
        })
    }

    pub(super) fn send(&self, node: NodeId, number: u64, message: ToStage) {
        let lanes = self.lanes.read();
        let Some(connection) = lanes.get(&node).map(|lane| lane.0.lock()) else { return };
        if connection.number == number
            && let Some(queue) = &connection.queue
        {
            // The connection is being lost: nobody answers then.
            let _ = queue.send(message);
        }
    }
}

async fn keep_connected(
    node: NodeId,
    lane: Arc<Lane>,
    address: Arc<RwLock<String>>,
    hello: Hello,
    handle: Arc<OnceLock<Handle>>,
) {
    loop {
        let address = address.read().clone();
        if let Ok(mut client) = lanes::connect(&address).await {
            let (queue, messages) = mpsc::unbounded_channel();
            let frames = Frames { hello: Some(hello.clone()), messages };
            match client.stage(frames).await {
                Ok(answers) => {
                    {
                        let mut connection = lane.0.lock();
                        connection.number += 1;
                        connection.queue = Some(queue);
                        connection.client = Some(client.clone());
                    }
                    let mut answers = answers.into_inner();
                    while let Ok(Some(answer)) = answers.message().await {
                        if let Some(handle) = handle.get() {
                            handle.stage_marked(node, answer.mark, answer.holds);
                        }
                    }
                    {
                        let mut connection = lane.0.lock();
                        connection.queue = None;
                        connection.client = None;
                    }
                    if let Some(handle) = handle.get() {
                        handle.stage_lane_lost(node);
                    }
                }
                Err(status) => tracing::debug!(peer = node.0, %status, "no stages can be sent"),
            }
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// The stream of frames.
struct Frames {
    hello: Option<Hello>,
    messages: UnboundedReceiver<ToStage>,
}

impl Stream for Frames {
    type Item = StageFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<StageFrame>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(StageFrame { hello: Some(hello), ..StageFrame::default() }));
        }
        self.messages.poll_recv(context).map(|message| message.map(frame))
    }
}

fn frame(message: ToStage) -> StageFrame {
    let (StageId { session, number }, body) = match message {
        ToStage::Data { id, offset, bytes } => {
            let Weighed { encoded, checksum, .. } = bytes;
            let (encoding, plain_length, data) = wire::parts(encoded);
            (id, Body::Data(StageData { offset, data, checksum, encoding, plain_length }))
        }
        ToStage::Mark { id, mark, durable } => {
            (id, Body::Mark(StageMark { number: mark, durable }))
        }
        ToStage::Abandon { id } => (id, Body::Abandon(StageAbandon {})),
    };
    StageFrame {
        hello: None,
        volume: VolumeId::FIRST.0,
        session: session.0,
        stage: number,
        body: Some(body),
    }
}
