//! Incoming bulk data.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::hello::admit;
use super::peer::bulk_server::Bulk;
use super::peer::stage_frame::Body;
use super::peer::{
    ExamineReply, ExamineRequest, FetchReply, FetchRequest, LackingReply, LackingRequest,
    OutvoteReply, OutvoteRequest, SnapshotPiece, SnapshotRequest, StageAnswer, StageData,
    StageFrame, StageMark, SyncReply, SyncRequest,
};
use super::{examining, losing, wire};
use crate::node::{DecodeError, Fetched, Given, Handle, StageError, Synced, Wanted};
use crate::store::StoreError;
use crate::types::{
    ByteRange, ClusterId, Generation, Ino, LogIndex, NodeId, SessionId, StageId, VolumeId,
};

/// Pieces of a snapshot that are read and not yet sent.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 1 << 20;
/// Answers that a peer has not taken: it is not listened to meanwhile.
const ANSWERS: usize = 1024;
/// Stages that a connection remembers at least before it looks which are complete.
const PRUNE: usize = 1024;

/// Serves `Bulk` of `proto/peer.proto` for one node.
#[derive(Debug)]
pub struct BulkService {
    cluster: ClusterId,
    handle: Handle,
}

impl BulkService {
    /// A service for `handle`'s node.
    #[must_use]
    pub fn new(cluster: ClusterId, handle: Handle) -> Self {
        Self { cluster, handle }
    }
}

#[tonic::async_trait]
impl Bulk for BulkService {
    type StageStream = ReceiverStream<Result<StageAnswer, Status>>;

    async fn stage(
        &self,
        request: Request<Streaming<StageFrame>>,
    ) -> Result<Response<Self::StageStream>, Status> {
        let mut frames = request.into_inner();
        let Some(StageFrame { hello: Some(hello), .. }) = frames.message().await? else {
            return Err(Status::invalid_argument("the first frame must be a hello"));
        };
        let from = admit(self.cluster, &self.handle, &hello)?;
        let (answers, answered) = mpsc::channel(ANSWERS);
        let incoming = Incoming {
            from,
            handle: self.handle.clone(),
            answers,
            stages: BTreeSet::new(),
            prune_at: PRUNE,
            failed: BTreeSet::new(),
        };
        tokio::spawn(incoming.run(frames));
        Ok(Response::new(ReceiverStream::new(answered)))
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<FetchReply>, Status> {
        let request = request.into_inner();
        admit(self.cluster, &self.handle, &request.hello.unwrap_or_default())?;
        if request.volume != VolumeId::FIRST.0 {
            return Err(Status::not_found("there is no such volume here"));
        }
        let wanted = Wanted {
            ino: Ino(request.ino),
            generation: Generation(request.generation),
            range: ByteRange::at(request.offset, request.length),
            version: LogIndex(request.version),
            apart: request.apart,
        };
        let handle = self.handle.clone();
        let given = tokio::task::spawn_blocking(move || {
            Ok::<_, StoreError>(match handle.give(wanted)? {
                Given::Bytes(given) => Ok(reply(&handle, wanted.range.start, given)),
                Given::Lacks => Err(Status::not_found("these bytes are not here")),
                Given::NotNow => Err(Status::unavailable("whether they are here is not known now")),
            })
        });
        match given.await {
            Ok(Ok(given)) => given.map(Response::new),
            Ok(Err(error)) => Err(Status::internal(error.to_string())),
            Err(_) => Err(Status::unavailable("the daemon is stopping")),
        }
    }

    async fn sync(&self, request: Request<SyncRequest>) -> Result<Response<SyncReply>, Status> {
        let request = request.into_inner();
        admit(self.cluster, &self.handle, &request.hello.unwrap_or_default())?;
        if request.volume != VolumeId::FIRST.0 {
            return Err(Status::not_found("there is no such volume here"));
        }
        let wanted = Synced {
            ino: Ino(request.ino),
            generation: Generation(request.generation),
            index: LogIndex(request.index),
        };
        match self.handle.sync_bytes(wanted).await {
            Ok(durable) => Ok(Response::new(SyncReply { durable })),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    type SnapshotStream = ReceiverStream<Result<SnapshotPiece, Status>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let request = request.into_inner();
        let to = admit(self.cluster, &self.handle, &request.hello.unwrap_or_default())?;
        if request.volume != VolumeId::FIRST.0 {
            return Err(Status::not_found("there is no such volume here"));
        }
        let (handle, at_least) = (self.handle.clone(), LogIndex(request.from));
        let (pieces, sent) = mpsc::channel(PIECES);
        tokio::task::spawn_blocking(move || {
            let whole = match handle.lend_snapshot(to, at_least) {
                Ok(Some(file)) => send_pieces(file, &pieces, || handle.lends_on(to)),
                Ok(None) => Err(Status::not_found("there is no such snapshot here yet")),
                Err(error) => Err(Status::internal(error.to_string())),
            };
            // Nobody listens where the connection is lost.
            let _ = whole.map_err(|status| pieces.blocking_send(Err(status)));
        });
        Ok(Response::new(ReceiverStream::new(sent)))
    }

    async fn examine(
        &self,
        request: Request<ExamineRequest>,
    ) -> Result<Response<ExamineReply>, Status> {
        examining::examined(self.cluster, &self.handle, request.into_inner()).await
    }

    async fn outvote(
        &self,
        request: Request<OutvoteRequest>,
    ) -> Result<Response<OutvoteReply>, Status> {
        examining::outvoted(self.cluster, &self.handle, request.into_inner()).await
    }

    async fn lacking(
        &self,
        request: Request<LackingRequest>,
    ) -> Result<Response<LackingReply>, Status> {
        losing::lacked(self.cluster, &self.handle, request.into_inner()).await
    }
}

/// Until the file ends, or nobody takes them any more.
fn send_pieces(
    mut file: File,
    pieces: &mpsc::Sender<Result<SnapshotPiece, Status>>,
    sends_on: impl Fn(),
) -> Result<(), Status> {
    loop {
        sends_on();
        let mut data = Vec::with_capacity(PIECE_BYTES);
        let read = Read::by_ref(&mut file).take(PIECE_BYTES as u64).read_to_end(&mut data);
        read.map_err(|error| Status::internal(error.to_string()))?;
        if data.is_empty() || pieces.blocking_send(Ok(SnapshotPiece { data: data.into() })).is_err()
        {
            return Ok(());
        }
    }
}

fn reply(handle: &Handle, asked: u64, Fetched { version, start, data }: Fetched) -> FetchReply {
    let checksum = crc32c::crc32c(&data);
    let (encoding, plain_length, data) = wire::parts(handle.encode(data));
    let skipped = start - asked;
    FetchReply { version: version.0, data, checksum, encoding, plain_length, skipped }
}

/// A stream of one peer's stages.
struct Incoming {
    from: NodeId,
    handle: Handle,
    answers: mpsc::Sender<Result<StageAnswer, Status>>,
    /// Those that may be incomplete when the stream ends.
    stages: BTreeSet<StageId>,
    /// Those that are complete are dropped when there are this many.
    prune_at: usize,
    /// Those of which something could not be stored here.
    failed: BTreeSet<StageId>,
}

impl Incoming {
    async fn run(mut self, mut frames: Streaming<StageFrame>) {
        // It ends with the connection.
        while let Ok(Some(frame)) = frames.message().await {
            if frame.volume != VolumeId::FIRST.0 {
                tracing::error!(peer = self.from.0, frame.volume, "there is no such volume here");
                continue;
            }
            let id = StageId { session: SessionId(frame.session), number: frame.stage };
            match frame.body {
                Some(Body::Data(data)) => {
                    self.stages.insert(id);
                    self.store(id, data).await;
                    self.prune();
                }
                Some(Body::Mark(mark)) => self.answer(id, mark).await,
                Some(Body::Abandon(_)) => {
                    self.stages.remove(&id);
                    self.failed.remove(&id);
                    let handle = self.handle.clone();
                    let abandoned =
                        tokio::task::spawn_blocking(move || handle.files().abandon_stage(id));
                    if let Ok(Err(error)) = abandoned.await {
                        tracing::warn!(%error, "a stage that nobody needs stays for now");
                    }
                }
                None => {}
            }
        }
        for id in self.stages {
            self.handle.files().give_up_stage(id);
        }
    }

    async fn store(&mut self, id: StageId, data: StageData) {
        if self.failed.contains(&id) {
            return;
        }
        let handle = self.handle.clone();
        let stored = tokio::task::spawn_blocking(move || {
            let StageData { offset, data, checksum, encoding, plain_length } = data;
            let data = wire::decode(encoding, plain_length, data)?;
            if crc32c::crc32c(&data) != checksum {
                return Err(NotStored::Damaged(DecodeError::Damaged));
            }
            Ok(handle.stage_received(id, offset, &data)?)
        });
        if let Ok(Err(error)) = stored.await {
            match &error {
                NotStored::Damaged(_) => {
                    tracing::error!(peer = self.from.0, stage = %id, "a stage lacks bytes: {error}");
                }
                NotStored::Stage(_) => {
                    tracing::warn!(peer = self.from.0, stage = %id, "a stage lacks bytes: {error}");
                }
            }
            self.failed.insert(id);
            // The rest is fetched when it is written.
            self.handle.files().give_up_stage(id);
        }
    }

    /// A connection lasts for as long as two daemons do.
    fn prune(&mut self) {
        if self.stages.len() >= self.prune_at {
            let files = self.handle.files();
            self.stages.retain(|id| files.is_stage_open(*id));
            // Until it is written somebody may ask whether it is here.
            self.failed.retain(|id| !files.is_stage_done(*id));
            self.prune_at = 2 * self.stages.len() + PRUNE;
        }
    }

    /// Everything that came before it has been stored, or has failed.
    async fn answer(&self, id: StageId, StageMark { number, durable }: StageMark) {
        let (handle, answers) = (self.handle.clone(), self.answers.clone());
        let failed = self.failed.contains(&id);
        let answer = move |holds| Ok(StageAnswer { mark: number, holds });
        if failed || !durable {
            // Nobody listens where the connection is lost.
            let _ = answers.send(answer(!failed)).await;
            return;
        }
        // Before the disk is waited for: so many wait at once.
        let Ok(place) = answers.reserve_owned().await else { return };
        tokio::task::spawn_blocking(move || {
            let synced = handle.sync_stage(id);
            if let Err(error) = &synced {
                tracing::warn!(stage = %id, %error, "a stage could not be made durable");
            }
            place.send(answer(synced.unwrap_or(false)));
        });
    }
}

/// Why bytes that came are not in their stage.
#[derive(Debug, thiserror::Error)]
enum NotStored {
    #[error(transparent)]
    Damaged(#[from] DecodeError),
    #[error(transparent)]
    Stage(#[from] StageError),
}
