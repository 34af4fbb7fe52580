//! What nodes say to each other.

use prost::Message;
use quorumfs::rpc::peer::{self, envelope::Body, stage_frame};

use super::{RAISE_FORMAT, compare};

/// What nodes say to each other. A change of these raises the format of the protocol, which is in here, too.
#[test]
#[allow(clippy::too_many_lines, reason = "a list")]
fn messages_are_encoded_as_ever() {
    let hello = peer::Hello {
        format: quorumfs::rpc::FORMAT,
        cluster: vec![7; 16].into(),
        node: 1,
        to: 2,
        address: "n:1".to_owned(),
    };
    let bodies = [
        Body::Raft(bytes::Bytes::from_static(b"message")),
        Body::Visible(peer::Visible { session: 1, index: 2, term: 3, invalidated: 4 }),
        Body::Heartbeat(peer::Heartbeat { session: 1, number: 2, applied: 3 }),
        Body::HeartbeatAck(peer::HeartbeatAck { session: 1, number: 2 }),
        Body::LogCut(peer::LogCut { first_index: 1 }),
        Body::Ask(peer::Ask { index: 1 }),
        Body::Space(peer::Space { free_bytes: 1, total_bytes: 2, synced: 3, holds: 4, wall_ms: 5 }),
        Body::Commit(peer::Commit { term: 1, durable: 2, commit: 3 }),
        Body::Stalled(peer::Stalled { milliseconds: 1 }),
        Body::Digest(peer::DigestAt { index: 1, digest: vec![2; 16].into() }),
    ];
    let envelopes =
        bodies.into_iter().map(|body| peer::Envelope { volume: 1, body: Some(body) }).collect();
    let frame = peer::Frame { hello: Some(hello.clone()), envelopes };
    let data = peer::StageData {
        offset: 1,
        data: "bytes".into(),
        checksum: 2,
        encoding: peer::Encoding::Zstd.into(),
        plain_length: 3,
    };
    let stage = |body| peer::StageFrame {
        hello: Some(hello.clone()),
        volume: 1,
        session: 2,
        stage: 3,
        body: Some(body),
    };
    let mark = stage_frame::Body::Mark(peer::StageMark { number: 1, durable: true });
    let abandon = stage_frame::Body::Abandon(peer::StageAbandon {});
    let fetch = peer::FetchRequest {
        hello: Some(hello.clone()),
        volume: 1,
        ino: 2,
        generation: 3,
        offset: 4,
        length: 5,
        version: 6,
        apart: true,
    };
    let reply = peer::FetchReply {
        version: 1,
        data: "bytes".into(),
        checksum: 2,
        encoding: peer::Encoding::Lz4.into(),
        plain_length: 3,
        skipped: 4,
    };
    let join = peer::JoinRequest {
        format: quorumfs::rpc::FORMAT,
        cluster: vec![7; 16].into(),
        nonce: 1,
        address: "n:1".to_owned(),
        node: 2,
    };
    let lacking = peer::LackingRequest {
        hello: Some(hello.clone()),
        volume: 1,
        ino: 2,
        generation: 3,
        version: 4,
        start: 5,
        end: 6,
    };
    let examine = peer::ExamineRequest {
        hello: Some(hello.clone()),
        volume: 1,
        ino: 2,
        generation: 3,
        version: 4,
        first: 5,
        count: 6,
    };
    let lacked = peer::LackingReply {
        lacking: vec![peer::LackingRange { start: 1, end: 2 }],
        end: 3,
        doubted: vec![peer::LackingRange { start: 1, end: 1 }],
    };
    let block = peer::ExaminedBlock { checksum: Some(1), whole: true, rotten: true };
    let outvote = peer::OutvoteRequest { block: Some(examine.clone()), checksum: 1 };
    let sync = peer::SyncRequest {
        hello: Some(hello.clone()),
        volume: 1,
        ino: 2,
        generation: 3,
        index: 4,
    };
    let snapshot = peer::SnapshotRequest { hello: Some(hello.clone()), volume: 1, from: 9 };
    let member = peer::MemberAddress { node: 1, address: "n:1".to_owned() };
    let removed = peer::Removed { by: 1, voters: vec![member.clone()] };
    let joined = peer::JoinReply { node: 1, genesis: "record".into(), members: vec![member] };
    let fenced = peer::FencedRequest { hello: Some(hello.clone()), session: 1 };
    let records = [
        ("Frame", frame.encode_to_vec()),
        ("StageFrame", stage(stage_frame::Body::Data(data)).encode_to_vec()),
        ("StageFrame.mark", stage(mark).encode_to_vec()),
        ("StageFrame.abandon", stage(abandon).encode_to_vec()),
        ("StageAnswer", peer::StageAnswer { mark: 1, holds: true }.encode_to_vec()),
        ("LackingReply", lacked.encode_to_vec()),
        ("ExamineReply", peer::ExamineReply { blocks: vec![block] }.encode_to_vec()),
        ("OutvoteRequest", outvote.encode_to_vec()),
        ("OutvoteReply", peer::OutvoteReply { outvoted: true }.encode_to_vec()),
        ("SyncRequest", sync.encode_to_vec()),
        ("SyncReply", peer::SyncReply { durable: true }.encode_to_vec()),
        ("SnapshotRequest", snapshot.encode_to_vec()),
        ("SnapshotPiece", peer::SnapshotPiece { data: "bytes".into() }.encode_to_vec()),
        ("JoinReply", joined.encode_to_vec()),
        ("Removed", removed.encode_to_vec()),
        ("FetchRequest", fetch.encode_to_vec()),
        ("FetchReply", reply.encode_to_vec()),
        ("JoinRequest", join.encode_to_vec()),
        ("LackingRequest", lacking.encode_to_vec()),
        ("ExamineRequest", examine.encode_to_vec()),
        ("FencedRequest", fenced.encode_to_vec()),
    ];
    let records = records.map(|(name, bytes)| (name.to_owned(), bytes)).into();
    compare("messages.txt", &records, RAISE_FORMAT);
}
