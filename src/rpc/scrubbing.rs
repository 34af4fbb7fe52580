//! Scrubs, as people ask for them.

use std::pin::Pin;

use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::admin::{self, ScrubProgress, ScrubRequest};
use crate::node::{Handle, ScrubFinding, ScrubOptions, ScrubReport};

/// How far it is, until it is done.
pub(super) type Progress = Pin<Box<dyn Stream<Item = Result<ScrubProgress, Status>> + Send>>;

/// Begins one.
pub(super) async fn scrub(handle: &Handle, request: ScrubRequest) -> Result<Progress, Status> {
    let ScrubRequest { path, rate } = request;
    let handle = handle.clone();
    let path = path.to_vec();
    let named = String::from_utf8_lossy(&path).into_owned();
    let options = ScrubOptions { path, rate: (rate > 0).then_some(rate) };
    // It looks at the state first, which may wait.
    let begun = tokio::task::spawn_blocking(move || handle.scrub(&options));
    match begun.await {
        Ok(Ok(Some(reports))) => {
            Ok(Box::pin(ReceiverStream::new(reports).map(|report| Ok(encode(report)))))
        }
        Ok(Ok(None)) => {
            Err(Status::not_found(format!("there is no \"/{named}\" in this file system")))
        }
        Ok(Err(error)) => Err(Status::internal(error.to_string())),
        Err(_) => Err(Status::unavailable("the daemon is stopping")),
    }
}

fn encode(report: ScrubReport) -> ScrubProgress {
    let finding = report.finding.map(|finding| {
        let ScrubFinding { path, ino, offset, what, healed } = finding;
        admin::ScrubFinding { path: path.into(), ino: ino.0, offset, what, healed }
    });
    ScrubProgress {
        files: report.files,
        files_total: report.files_total,
        bytes: report.bytes,
        bytes_total: report.bytes_total,
        counted: report.counted,
        found: report.found,
        healed: report.healed,
        unhealed: report.unhealed,
        skipped: report.skipped,
        unasked: report.unasked.into_iter().map(u64::from).collect(),
        finding,
        done: report.done,
    }
}
