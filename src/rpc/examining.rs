//! Blocks of files that replicas are asked about: the messages on their way out and in.

use tonic::transport::Channel;
use tonic::{Response, Status};

use super::hello::admit;
use super::peer::bulk_client::BulkClient;
use super::peer::{
    ExamineReply, ExamineRequest, ExaminedBlock, Hello, OutvoteReply, OutvoteRequest,
};
use crate::node::{Answered, Block, Examined, Handle, NodeError};
use crate::types::{ClusterId, Generation, Ino, LogIndex, VolumeId};

/// How to ask a peer, and as whom.
type Client = Option<(BulkClient<Channel>, Hello)>;

/// Blocks that are asked for at once at most.
const BLOCKS: u64 = 1024;

/// Asks a peer what it has.
pub(super) fn examine(client: Client, asked: Examined) -> Answered<Vec<Block>> {
    Box::pin(async move {
        let (mut client, hello) = client?;
        let reply = client.examine(encode(hello, asked)).await.ok()?;
        let blocks = reply.into_inner().blocks.into_iter();
        Some(
            blocks
                .map(|ExaminedBlock { checksum, whole, rotten }| Block {
                    sum: checksum,
                    whole,
                    rotten,
                })
                .collect(),
        )
    })
}

/// Tells a peer that it has another block than the others.
pub(super) fn outvote(client: Client, asked: Examined, sum: u32) -> Answered<bool> {
    Box::pin(async move {
        let (mut client, hello) = client?;
        let request = OutvoteRequest { block: Some(encode(hello, asked)), checksum: sum };
        Some(client.outvote(request).await.ok()?.into_inner().outvoted)
    })
}

/// Answers a peer.
pub(super) async fn examined(
    cluster: ClusterId,
    handle: &Handle,
    request: ExamineRequest,
) -> Result<Response<ExamineReply>, Status> {
    let asked = decode(cluster, handle, &request)?;
    let blocks = handle.examine(asked).await.map_err(|error| refusal(&error))?;
    let blocks = blocks.ok_or_else(|| Status::not_found("this version of the file is not here"))?;
    let blocks = blocks.into_iter();
    let blocks =
        blocks.map(|Block { sum, whole, rotten }| ExaminedBlock { checksum: sum, whole, rotten });
    Ok(Response::new(ExamineReply { blocks: blocks.collect() }))
}

/// The same.
pub(super) async fn outvoted(
    cluster: ClusterId,
    handle: &Handle,
    request: OutvoteRequest,
) -> Result<Response<OutvoteReply>, Status> {
    let asked = decode(cluster, handle, &request.block.unwrap_or_default())?;
    let outvoted = handle.outvoted(asked, request.checksum).await;
    Ok(Response::new(OutvoteReply { outvoted: outvoted.map_err(|error| refusal(&error))? }))
}

fn encode(hello: Hello, asked: Examined) -> ExamineRequest {
    ExamineRequest {
        hello: Some(hello),
        volume: VolumeId::FIRST.0,
        ino: asked.ino.0,
        generation: asked.generation.0,
        version: asked.version.0,
        first: asked.first,
        count: asked.count,
    }
}

fn decode(
    cluster: ClusterId,
    handle: &Handle,
    request: &ExamineRequest,
) -> Result<Examined, Status> {
    let hello = request.hello.as_ref();
    admit(cluster, handle, hello.unwrap_or(&Hello::default()))?;
    if request.volume != VolumeId::FIRST.0 {
        return Err(Status::not_found("there is no such volume here"));
    }
    if request.count > BLOCKS {
        return Err(Status::invalid_argument("these are too many blocks at once"));
    }
    Ok(Examined {
        ino: Ino(request.ino),
        generation: Generation(request.generation),
        version: LogIndex(request.version),
        first: request.first,
        count: request.count,
    })
}

fn refusal(error: &NodeError) -> Status {
    match error {
        NodeError::Store(_) => Status::internal(error.to_string()),
        NodeError::Deadline
        | NodeError::Interrupted
        | NodeError::SessionLost
        | NodeError::NotDone
        | NodeError::Stopping => Status::unavailable(error.to_string()),
    }
}
