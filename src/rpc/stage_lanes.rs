//! Outgoing streams of stages: one to each peer, connected again for as long as the daemon runs.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio_stream::Stream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::peer::bulk_client::BulkClient;
use super::peer::stage_frame::Body;
use super::peer::{
    FetchReply, FetchRequest, Hello, SnapshotRequest, StageAbandon, StageAnswer, StageData,
    StageFrame, StageMark, SyncRequest,
};
use super::stage_queue::{Outgoing, StageQueue};
use super::{lanes, wire};
use crate::node::{Answered, Fetched, Handle, Synced, ToStage, Wanted, Weighed};
use crate::types::{LogIndex, NodeId, StageId, VolumeId};

/// Between two attempts to connect.
const RECONNECT: Duration = Duration::from_millis(100);
/// Between two looks at whether a peer takes what is sent to it.
const LOOK: Duration = Duration::from_millis(500);

/// The connection to one peer.
#[derive(Debug, Default)]
struct Lane(Mutex<Connection>);

#[derive(Debug, Default)]
struct Connection {
    /// How many there were.
    number: u64,
    /// None where there is no connection now, or where the peer does not move.
    queue: Option<StageQueue>,
    client: Option<BulkClient<Channel>>,
}

type Lanes = Arc<RwLock<HashMap<NodeId, Arc<Lane>>>>;

/// The connections to all peers.
#[derive(Debug)]
pub(super) struct StageLanes {
    /// Where bulk work is done: not on the thread of the core.
    runtime: tokio::runtime::Handle,
    hello: Hello,
    handle: Arc<OnceLock<Handle>>,
    lanes: Lanes,
    tasks: Mutex<HashMap<NodeId, tokio::task::AbortHandle>>,
}

impl StageLanes {
    pub(super) fn new(
        runtime: tokio::runtime::Handle,
        hello: Hello,
        handle: Arc<OnceLock<Handle>>,
    ) -> Self {
        Self { runtime, hello, handle, lanes: Lanes::default(), tasks: Mutex::default() }
    }

    /// Keeps a connection to a peer, which listens at `address` from now on.
    pub(super) fn learn(&self, node: NodeId, address: Arc<RwLock<String>>) {
        let lane = Arc::new(Lane::default());
        self.lanes.write().insert(node, lane.clone());
        let (lanes, handle) = (self.lanes.clone(), self.handle.clone());
        let kept = Kept { node, lane, lanes, handle };
        let task = self.runtime.spawn(kept.keep_connected(address, self.hello_to(node)));
        self.tasks.lock().insert(node, task.abort_handle());
    }

    /// Keeps no connection to that one any more.
    pub(super) fn forget(&self, node: NodeId) {
        self.lanes.write().remove(&node);
        if let Some(task) = self.tasks.lock().remove(&node) {
            task.abort();
            if let Some(handle) = self.handle.get() {
                handle.stage_lane_lost(node);
            }
        }
    }

    fn hello_to(&self, node: NodeId) -> Hello {
        Hello { to: node.0, ..self.hello.clone() }
    }

    pub(super) fn number(&self, node: NodeId) -> Option<u64> {
        let lanes = self.lanes.read();
        let connection = lanes.get(&node)?.0.lock();
        connection.queue.is_some().then_some(connection.number)
    }

    /// How to ask a peer, and as whom; nothing where there is no connection now.
    pub(super) fn client(&self, node: NodeId) -> Option<(BulkClient<Channel>, Hello)> {
        let client = self.lanes.read().get(&node)?.0.lock().client.clone();
        client.map(|client| (client, self.hello_to(node)))
    }

    pub(super) fn fetch(&self, node: NodeId, wanted: Wanted) -> Answered<Option<Fetched>> {
        let lane = self.lanes.read().get(&node).cloned();
        let client = lane.and_then(|lane| lane.0.lock().client.clone());
        let request = FetchRequest {
            hello: Some(self.hello_to(node)),
            volume: VolumeId::FIRST.0,
            ino: wanted.ino.0,
            generation: wanted.generation.0,
            offset: wanted.range.start,
            length: wanted.range.len(),
            version: wanted.version.0,
            apart: wanted.apart,
        };
        Box::pin(async move {
            let FetchReply { version, data, checksum, encoding, plain_length, skipped } =
                match client?.fetch(request).await {
                    Ok(reply) => reply.into_inner(),
                    // It lacks them: every other code says nothing of that.
                    Err(status) if status.code() == Code::NotFound => return Some(None),
                    Err(_) => return None,
                };
            let data = wire::decode_apart(encoding, plain_length, data).await;
            match data {
                Ok(data) if crc32c::crc32c(&data) == checksum => {
                    let start = wanted.range.start.saturating_add(skipped);
                    Some(Some(Fetched { version: LogIndex(version), start, data }))
                }
                _ => {
                    tracing::error!(peer = node.0, ino = %wanted.ino, "bytes came damaged");
                    None
                }
            }
        })
    }

    pub(super) fn snapshot(
        &self,
        node: NodeId,
        at_least: LogIndex,
        pieces: tokio::sync::mpsc::Sender<Bytes>,
    ) -> Answered<()> {
        let client = self.client(node);
        Box::pin(async move {
            let (mut client, hello) = client?;
            let volume = VolumeId::FIRST.0;
            let request = SnapshotRequest { hello: Some(hello), volume, from: at_least.0 };
            let mut coming = client.snapshot(request).await.ok()?.into_inner();
            while let Some(piece) = coming.message().await.ok()? {
                pieces.send(piece.data).await.ok()?;
            }
            Some(())
        })
    }

    pub(super) fn sync(&self, node: NodeId, wanted: Synced) -> Answered<bool> {
        let lane = self.lanes.read().get(&node).cloned();
        let client = lane.and_then(|lane| lane.0.lock().client.clone());
        let request = SyncRequest {
            hello: Some(self.hello_to(node)),
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
            queue.send(message);
        }
    }
}

/// The task that keeps a connection to one peer.
struct Kept {
    node: NodeId,
    lane: Arc<Lane>,
    /// All of them.
    lanes: Lanes,
    handle: Arc<OnceLock<Handle>>,
}

impl Kept {
    async fn keep_connected(self, address: Arc<RwLock<String>>, hello: Hello) {
        loop {
            let address = address.read().clone();
            if let Ok(mut client) = lanes::connect(&address).await {
                let (queue, outgoing) = StageQueue::new();
                let frames = Frames { hello: Some(hello.clone()), outgoing };
                match client.stage(frames).await {
                    Ok(answers) => {
                        self.open(queue, client);
                        self.take_answers(answers.into_inner()).await;
                        self.close();
                    }
                    Err(status) => {
                        tracing::debug!(peer = self.node.0, %status, "no stages can be sent");
                    }
                }
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    fn open(&self, queue: StageQueue, client: BulkClient<Channel>) {
        let mut connection = self.lane.0.lock();
        connection.number += 1;
        connection.queue = Some(queue);
        connection.client = Some(client);
        drop(connection);
        if let Some(handle) = self.handle.get() {
            handle.stage_lane_opened(self.node);
        }
    }

    fn close(&self) {
        {
            let mut connection = self.lane.0.lock();
            connection.queue = None;
            connection.client = None;
        }
        if let Some(handle) = self.handle.get() {
            handle.stage_lane_lost(self.node);
        }
    }

    /// Until the stream ends. A peer that does not move is sent nothing more by it: what it has not taken would fill the
    /// budget, and so hold up everybody for the sake of one. It has another stream once it has come to the end of this one.
    async fn take_answers(&self, mut answers: Streaming<StageAnswer>) {
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                answer = answers.message() => {
                    let Ok(Some(answer)) = answer else { return };
                    if let Some(handle) = self.handle.get() {
                        handle.stage_marked(self.node, answer.mark, answer.holds);
                    }
                }
                _ = look.tick() => {
                    if self.is_stuck() && self.are_others_enough() {
                        tracing::warn!(
                            peer = self.node.0,
                            "it takes no bytes, as if its disk hung: it will fetch what it lacks when it is well"
                        );
                        self.close();
                    }
                }
            }
        }
    }

    fn is_stuck(&self) -> bool {
        let now = Instant::now();
        let mut connection = self.lane.0.lock();
        connection.queue.as_mut().is_some_and(|queue| {
            queue.look(now);
            queue.is_stuck(now)
        })
    }

    /// Without a quorum of them nothing can be written: it is better to wait then.
    fn are_others_enough(&self) -> bool {
        let moves = |lane: &Arc<Lane>| lane.0.lock().queue.as_ref().is_some_and(StageQueue::moves);
        let moving: Vec<_> = {
            let lanes = self.lanes.read();
            let others = lanes.iter().filter(|(node, _)| **node != self.node);
            others.filter(|(_, lane)| moves(lane)).map(|(node, _)| *node).collect()
        };
        self.handle.get().is_some_and(|handle| handle.makes_quorum_with(&moving))
    }
}

/// The stream of frames.
struct Frames {
    hello: Option<Hello>,
    outgoing: Outgoing,
}

impl Stream for Frames {
    type Item = StageFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<StageFrame>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(StageFrame { hello: Some(hello), ..StageFrame::default() }));
        }
        Pin::new(&mut self.outgoing).poll_next(context).map(|message| message.map(frame))
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
