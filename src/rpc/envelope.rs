//! Between the core's messages and what goes over the wire.

use std::time::Duration;

use protobuf::Message as _;
use raft::eraftpb::Message;

use super::peer::{
    Ask, Commit, DigestAt, Envelope, Heartbeat, HeartbeatAck, LogCut, Space, Stalled, Visible,
    envelope::Body,
};
use crate::consensus::{Claim, PeerMessage, Sample};
use crate::fs::Digest;
use crate::node::{self, OnDisk, SpaceReport};
use crate::types::{LogIndex, SessionId, Term, Timestamp, VolumeId};

/// A message that makes no sense: of another volume, or not decodable.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnvelopeError {
    #[error("it is about volume {0}, which does not exist here")]
    Volume(u64),
    #[error("it is empty")]
    Empty,
    #[error("its digest has not 16 bytes")]
    Digest,
    #[error("its Raft message cannot be decoded: {0}")]
    Raft(#[from] protobuf::ProtobufError),
}

pub(super) fn encode(message: node::ToPeer) -> Envelope {
    let body = match message {
        node::ToPeer::Core(message) => body_of_core(message),
        node::ToPeer::Disk(SpaceReport { free_bytes, total_bytes }, on_disk, wall) => {
            let OnDisk { synced, holds } = on_disk;
            let (synced, holds, wall_ms) = (synced.0, holds.0, milliseconds(wall));
            Body::Space(Space { free_bytes, total_bytes, synced, holds, wall_ms })
        }
    };
    Envelope { volume: VolumeId::FIRST.0, body: Some(body) }
}

fn milliseconds(time: Timestamp) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or_default();
    seconds.saturating_mul(1000) + u64::from(time.nanos / 1_000_000)
}

fn timestamp(milliseconds: u64) -> Timestamp {
    let nanos = u32::try_from(milliseconds % 1000).expect("below 1000") * 1_000_000;
    Timestamp { seconds: i64::try_from(milliseconds / 1000).expect("a 1000th fits"), nanos }
}

fn body_of_core(message: PeerMessage) -> Body {
    match message {
        PeerMessage::Raft(message) => {
            let bytes =
                message.write_to_bytes().expect("every required field is set: there is none");
            Body::Raft(bytes.into())
        }
        PeerMessage::Visible { session, index, invalidated } => Body::Visible(Visible {
            session: session.0,
            index: index.0,
            term: invalidated.term.0,
            invalidated: invalidated.index.0,
        }),
        PeerMessage::Heartbeat { session, number, visible } => {
            Body::Heartbeat(Heartbeat { session: session.0, number, applied: visible.0 })
        }
        PeerMessage::HeartbeatAck { session, number } => {
            Body::HeartbeatAck(HeartbeatAck { session: session.0, number })
        }
        PeerMessage::Stalled { stalled } => {
            let milliseconds = u64::try_from(stalled.as_millis()).unwrap_or(u64::MAX);
            Body::Stalled(Stalled { milliseconds })
        }
        PeerMessage::Ask { index } => Body::Ask(Ask { index: index.0 }),
        PeerMessage::Commit { durable, commit } => Body::Commit(Commit {
            term: durable.term.0,
            durable: durable.index.0,
            commit: commit.0,
        }),
        PeerMessage::Digest(Sample { index, digest }) => {
            let digest = Digest(digest).to_bytes().to_vec().into();
            Body::Digest(DigestAt { index: index.0, digest })
        }
        PeerMessage::LogCut { first_index } => Body::LogCut(LogCut { first_index: first_index.0 }),
    }
}

pub(super) fn decode(envelope: Envelope) -> Result<node::ToPeer, EnvelopeError> {
    if envelope.volume != VolumeId::FIRST.0 {
        return Err(EnvelopeError::Volume(envelope.volume));
    }
    Ok(node::ToPeer::Core(match envelope.body.ok_or(EnvelopeError::Empty)? {
        Body::Space(Space { free_bytes, total_bytes, synced, holds, wall_ms }) => {
            let report = SpaceReport { free_bytes, total_bytes };
            let on_disk = OnDisk { synced: LogIndex(synced), holds: LogIndex(holds) };
            return Ok(node::ToPeer::Disk(report, on_disk, timestamp(wall_ms)));
        }
        Body::Raft(bytes) => {
            let mut message = Message::default();
            message.merge_from_bytes(&bytes)?;
            PeerMessage::Raft(Box::new(message))
        }
        Body::Visible(Visible { session, index, term, invalidated }) => PeerMessage::Visible {
            session: SessionId(session),
            index: LogIndex(index),
            invalidated: Claim { term: Term(term), index: LogIndex(invalidated) },
        },
        Body::Heartbeat(Heartbeat { session, number, applied }) => PeerMessage::Heartbeat {
            session: SessionId(session),
            number,
            visible: LogIndex(applied),
        },
        Body::HeartbeatAck(HeartbeatAck { session, number }) => {
            PeerMessage::HeartbeatAck { session: SessionId(session), number }
        }
        Body::Stalled(Stalled { milliseconds }) => {
            PeerMessage::Stalled { stalled: Duration::from_millis(milliseconds) }
        }
        Body::Ask(Ask { index }) => PeerMessage::Ask { index: LogIndex(index) },
        Body::Commit(Commit { term, durable, commit }) => PeerMessage::Commit {
            durable: Claim { term: Term(term), index: LogIndex(durable) },
            commit: LogIndex(commit),
        },
        Body::Digest(DigestAt { index, digest }) => {
            let digest = Digest::from_bytes(&digest).ok_or(EnvelopeError::Digest)?.0;
            PeerMessage::Digest(Sample { index: LogIndex(index), digest })
        }
        Body::LogCut(LogCut { first_index }) => {
            PeerMessage::LogCut { first_index: LogIndex(first_index) }
        }
    }))
}
