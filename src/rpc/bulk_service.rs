//! Incoming bulk data.

use std::collections::BTreeSet;

use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::examining;
use super::hello::check;
use super::peer::bulk_server::Bulk;
use super::peer::stage_frame::Body;
use super::peer::{
    ExamineReply, ExamineRequest, FetchReply, FetchRequest, OutvoteReply, OutvoteRequest,
    StageAnswer, StageFrame, StageMark,
};
use crate::node::{Fetched, Handle, Wanted};
use crate::types::{
    ByteRange, ClusterId, Generation, Ino, LogIndex, NodeId, SessionId, StageId, VolumeId,
};

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
    type StageStream = UnboundedReceiverStream<Result<StageAnswer, Status>>;

    async fn stage(
        &self,
        request: Request<Streaming<StageFrame>>,
    ) -> Result<Response<Self::StageStream>, Status> {
        let mut frames = request.into_inner();
        let Some(StageFrame { hello: Some(hello), .. }) = frames.message().await? else {
            return Err(Status::invalid_argument("the first frame must be a hello"));
        };
        check(self.cluster, hello.format, &hello.cluster)?;
        let (answers, answered) = mpsc::unbounded_channel();
        let incoming = Incoming {
            from: NodeId(hello.node),
            handle: self.handle.clone(),
            answers,
            stages: BTreeSet::new(),
            failed: BTreeSet::new(),
        };
        tokio::spawn(incoming.run(frames));
        Ok(Response::new(UnboundedReceiverStream::new(answered)))
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<FetchReply>, Status> {
        let request = request.into_inner();
        let hello = request.hello.unwrap_or_default();
        check(self.cluster, hello.format, &hello.cluster)?;
        if request.volume != VolumeId::FIRST.0 {
            return Err(Status::not_found("there is no such volume here"));
        }
        let wanted = Wanted {
            ino: Ino(request.ino),
            generation: Generation(request.generation),
            range: ByteRange::at(request.offset, request.length),
            version: LogIndex(request.version),
        };
        let handle = self.handle.clone();
        let given = tokio::task::spawn_blocking(move || handle.give(wanted)).await;
        match given {
            Ok(Ok(Some(Fetched { version, data }))) => {
                let checksum = crc32c::crc32c(&data);
                Ok(Response::new(FetchReply { version: version.0, data, checksum }))
            }
            Ok(Ok(None)) => Err(Status::not_found("these bytes are not here")),
            Ok(Err(error)) => Err(Status::internal(error.to_string())),
            Err(_) => Err(Status::unavailable("the daemon is stopping")),
        }
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
}

/// A stream of one peer's stages.
struct Incoming {
    from: NodeId,
    handle: Handle,
    answers: mpsc::UnboundedSender<Result<StageAnswer, Status>>,
    /// Those that may be incomplete when the stream ends.
    stages: BTreeSet<StageId>,
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
                    if crc32c::crc32c(&data.data) == data.checksum {
                        self.store(id, data.offset, data.data).await;
                    } else {
                        tracing::error!(peer = self.from.0, stage = %id, "bytes came damaged");
                        self.failed.insert(id);
                    }
                }
                Some(Body::Mark(mark)) => self.answer(id, mark),
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

    async fn store(&mut self, id: StageId, offset: u64, data: bytes::Bytes) {
        if self.failed.contains(&id) {
            return;
        }
        let handle = self.handle.clone();
        let stored =
            tokio::task::spawn_blocking(move || handle.stage_received(id, offset, &data)).await;
        if let Ok(Err(error)) = stored {
            tracing::warn!(peer = self.from.0, stage = %id, %error, "bytes of a stage are not stored");
            self.failed.insert(id);
        }
    }

    /// Everything that came before it has been stored, or has failed.
    fn answer(&self, id: StageId, StageMark { number, durable }: StageMark) {
        let (handle, answers) = (self.handle.clone(), self.answers.clone());
        let failed = self.failed.contains(&id);
        let answer = move |holds| {
            // Nobody listens where the connection is lost.
            let _ = answers.send(Ok(StageAnswer { mark: number, holds }));
        };
        if failed || !durable {
            return answer(!failed);
        }
        tokio::task::spawn_blocking(move || {
            let synced = handle.files().sync_stage(id);
            if let Err(error) = &synced {
                tracing::warn!(stage = %id, %error, "a stage could not be made durable");
            }
            answer(synced.is_ok());
        });
    }
}
