//! Bytes that are lost: what peers ask each other about them, and what people ask.

use std::pin::Pin;

use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::admin::{AcceptLostRequest, DoubtedBytes, LostRange, LostReport};
use super::hello::admit;
use super::peer::bulk_client::BulkClient;
use super::peer::{Hello, LackingRange, LackingReply, LackingRequest};
use crate::node::{Answered, Fate, Handle, Lacked, Lacking, LostFile, LostOptions};
use crate::types::{ByteRange, ClusterId, Generation, Ino, LogIndex, NodeId, VolumeId};

/// One for each file that lacks bytes, or several.
pub(super) type Reports = Pin<Box<dyn Stream<Item = Result<LostReport, Status>> + Send>>;

/// Asks a peer what it lacks.
pub(super) fn lacking(
    client: Option<(BulkClient<Channel>, Hello)>,
    asked: Lacking,
) -> Answered<Lacked> {
    Box::pin(async move {
        let (mut client, hello) = client?;
        let Lacking { ino, generation, version, range } = asked;
        let request = LackingRequest {
            hello: Some(hello),
            volume: VolumeId::FIRST.0,
            ino: ino.0,
            generation: generation.0,
            version: version.0,
            start: range.start,
            end: range.end,
        };
        let reply = client.lacking(request).await.ok()?.into_inner();
        let range = |LackingRange { start, end }| (start < end).then_some(ByteRange { start, end });
        // One that makes no sense is no answer.
        let ranges = |named: Vec<_>| named.into_iter().map(range).collect::<Option<_>>();
        let LackingReply { lacking, end, doubted } = reply;
        Some(Lacked { ranges: ranges(lacking)?, doubted: ranges(doubted)?, end })
    })
}

/// Answers a peer.
pub(super) async fn lacked(
    cluster: ClusterId,
    handle: &Handle,
    request: LackingRequest,
) -> Result<Response<LackingReply>, Status> {
    admit(cluster, handle, &request.hello.unwrap_or_default())?;
    if request.volume != VolumeId::FIRST.0 {
        return Err(Status::not_found("there is no such volume here"));
    }
    let asked = Lacking {
        ino: Ino(request.ino),
        generation: Generation(request.generation),
        version: LogIndex(request.version),
        range: range(request.start, request.end)?,
    };
    let lacked =
        handle.lacking(asked).await.map_err(|error| Status::internal(error.to_string()))?;
    let Some(Lacked { ranges, doubted, end }) = lacked else {
        return Err(Status::not_found("this version of the file is not here"));
    };
    let range = |ByteRange { start, end }| LackingRange { start, end };
    let [lacking, doubted] = [ranges, doubted].map(|all| all.into_iter().map(range).collect());
    Ok(Response::new(LackingReply { lacking, end, doubted }))
}

/// Lists lost bytes for people, or gives them up.
pub(super) async fn lost(handle: &Handle, request: AcceptLostRequest) -> Result<Reports, Status> {
    let AcceptLostRequest { path, within, accept, away, even_if_doubted, take_doubted } = request;
    let fate = match (accept, take_doubted) {
        (false, false) => Fate::Listed,
        (true, false) => Fate::GivenUp { even_if_doubted },
        (false, true) => Fate::Taken,
        (true, true) => {
            return Err(Status::invalid_argument("bytes are either given up or taken"));
        }
    };
    let within = within.map(|LostRange { start, end }| range(start, end)).transpose()?;
    let named = String::from_utf8_lossy(&path).into_owned();
    let away = away.into_iter().map(NodeId).collect();
    let options = LostOptions { path: path.to_vec(), within, fate, away };
    let handle = handle.clone();
    match tokio::task::spawn_blocking(move || handle.lost(options)).await {
        Ok(Ok(Some(reports))) => {
            let reports = ReceiverStream::new(reports);
            let encode = |report: Result<_, crate::node::NodeError>| {
                report.map(encode).map_err(|error| Status::unavailable(error.to_string()))
            };
            Ok(Box::pin(reports.map(encode)))
        }
        Ok(Ok(None)) => {
            Err(Status::not_found(format!("there is no \"/{named}\" in this file system")))
        }
        Ok(Err(error)) => Err(Status::internal(error.to_string())),
        Err(_) => Err(Status::unavailable("the daemon is stopping")),
    }
}

fn range(start: u64, end: u64) -> Result<ByteRange, Status> {
    if start < end {
        Ok(ByteRange { start, end })
    } else {
        Err(Status::invalid_argument("a range begins before it ends"))
    }
}

fn encode(file: LostFile) -> LostReport {
    let LostFile { path, ino, lost, accepted, taken, .. } = file;
    let ranges = |ranges: Vec<ByteRange>| {
        ranges.into_iter().map(|ByteRange { start, end }| LostRange { start, end }).collect()
    };
    let doubted = file.doubted.into_iter().map(|(node, of)| (node.0, ranges(of)));
    LostReport {
        path: path.into(),
        ino: ino.0,
        lost: ranges(lost),
        accepted: ranges(accepted),
        taken: ranges(taken),
        doubted: doubted.map(|(node, ranges)| DoubtedBytes { node, ranges }).collect(),
        held_bytes: file.held_bytes,
        holders: file.holders.into_iter().map(u64::from).collect(),
        away: file.away.into_iter().map(u64::from).collect(),
        refusal: file.refusal.unwrap_or_default(),
    }
}
