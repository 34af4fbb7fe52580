//! Who is a member: what people ask a daemon to change.

use std::time::Duration;

use tonic::Status;

use super::admin::{AddMemberRequest, MemberStatus, RemoveMemberRequest};
use crate::config;
use crate::consensus::Suspicion;
use crate::fs::{proto, query};
use crate::node::{Handle, MemberRefusal, NodeError, RaftStatus};
use crate::types::{LogIndex, NodeId, Suffrage};

/// How long a removed node may keep its place in the Raft group.
const PLACE_GOES: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often leadership is asked for, and how long each time.
const TRANSFERS: u32 = 5;
const TRANSFER: Duration = Duration::from_secs(1);

/// All members, and whoever has a place in the Raft group still; by id.
pub(super) fn list(handle: &Handle, raft: &RaftStatus) -> Vec<MemberStatus> {
    let table = handle.members();
    let known = &table.list;
    let place = |node: u64| raft.members.iter().find(|(placed, ..)| placed.0 == node);
    let status = |node: u64, address: &str, kind: &str| {
        let matched = place(node).and_then(|(_, _, matched)| *matched);
        let node = NodeId(node);
        let health = raft.suspicions.iter().find(|(other, _)| *other == node);
        let health = health.map_or(Suspicion::default(), |(_, health)| *health);
        MemberStatus {
            node: node.0,
            address: address.to_owned(),
            kind: kind.to_owned(),
            connected: node == handle.node() || handle.is_connected(node),
            matched: matched.map_or(0, |index| index.0),
            lag: matched.map_or(0, |index: LogIndex| raft.last_index.0.saturating_sub(index.0)),
            suspicion: health.phi,
            silent_ms: milliseconds(health.silent),
            stalled_ms: milliseconds(health.stalled),
        }
    };
    let mut members: Vec<_> = known
        .iter()
        .map(|member| {
            let votes = place(member.node).is_some_and(|(_, votes, _)| *votes);
            status(member.node, &member.address, kind(member, votes))
        })
        .collect();
    let leaving = raft.members.iter().filter(|(node, ..)| table.get(*node).is_none());
    members.extend(leaving.map(|(node, ..)| status(node.0, "", "leaving")));
    members.sort_unstable_by_key(|member| member.node);
    members
}

/// What is wrong with the others, as sentences.
pub(super) fn problems(handle: &Handle, raft: &RaftStatus) -> Vec<String> {
    let mut problems = Vec::new();
    for (node, health) in &raft.suspicions {
        let Suspicion { phi, silent, stalled } = health;
        if !handle.is_connected(*node) {
            problems.push(format!("node {node} is out of reach"));
        } else if !stalled.is_zero() {
            problems
                .push(format!("the disk of node {node} has not done a write for {stalled:.1?}"));
        } else if health.is_suspected() {
            problems.push(format!(
                "node {node} is connected and has said nothing for {silent:.1?} (suspicion {phi:.1})"
            ));
        }
    }
    problems
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn kind(member: &proto::Member, votes: bool) -> &'static str {
    match query::suffrage(member) {
        None => "announced",
        Some(_) if votes => "voter",
        Some(Suffrage::Voter) => "joining",
        Some(Suffrage::Learner) => "learner",
    }
}

pub(super) async fn add(handle: &Handle, request: AddMemberRequest) -> Result<NodeId, Status> {
    let AddMemberRequest { address, learner } = request;
    if !config::is_address(&address) {
        return Err(Status::invalid_argument(format!(
            "\"{address}\" is not HOST:PORT of a port at which a daemon can listen"
        )));
    }
    // Where a disk is lost, another member follows at the same address; not beside one that is there.
    let is_there = |node: NodeId| node == handle.node() || handle.is_connected(node);
    let members = handle.members();
    let taken = members.list.iter().find(|m| m.address == address && is_there(NodeId(m.node)));
    if let Some(member) = taken {
        return Err(Status::failed_precondition(format!(
            "node {} is a member at {address}, and runs: give the address at which the new one is going to listen",
            member.node
        )));
    }
    handle.add_member(0, address, learner).await.map_err(|error| unavailable(&error))
}

pub(super) async fn promote(handle: &Handle, node: NodeId) -> Result<(), Status> {
    handle
        .promote_member(node)
        .await
        .map_err(|error| unavailable(&error))?
        .map_err(|refusal| refused(node, refusal))
}

pub(super) async fn remove(handle: &Handle, request: RemoveMemberRequest) -> Result<(), Status> {
    let node = NodeId(request.node);
    let raft = handle.raft_status().await.map_err(|error| unavailable(&error))?;
    if !request.force {
        refuse_without_quorum(handle, &raft, node)?;
    }
    handle
        .remove_member(node)
        .await
        .map_err(|error| unavailable(&error))?
        .map_err(|refusal| refused(node, refusal))?;
    if node == handle.node() {
        // It is going to stop.
        return Ok(());
    }
    let gone = async {
        loop {
            let raft = handle.raft_status().await.map_err(|error| unavailable(&error))?;
            if !raft.members.iter().any(|(placed, ..)| *placed == node) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(PLACE_GOES, gone).await.unwrap_or_else(|_| {
        Err(Status::unavailable(format!(
            "node {node} is no member any more, but still has its place in the Raft group: it goes as soon as \
             most of the others hold all bytes on their disks, and a leader has a quorum"
        )))
    })
}

/// Those who vote now must be able to agree on it, and those who are left on everything afterwards.
fn refuse_without_quorum(handle: &Handle, raft: &RaftStatus, node: NodeId) -> Result<(), Status> {
    let voters = raft.members.iter().filter(|(_, votes, _)| *votes).map(|(node, ..)| *node);
    let voters: Vec<_> = voters.collect();
    let left: Vec<_> = voters.iter().copied().filter(|other| *other != node).collect();
    if left.is_empty() {
        return Err(Status::failed_precondition(format!(
            "nobody else votes yet: wait until another member holds everything (quorumfs member list says voter), then \
             remove node {node}"
        )));
    }
    let is_reached = |other: &&NodeId| **other == handle.node() || handle.is_connected(**other);
    let reached = |voters: &[NodeId]| voters.iter().filter(is_reached).count();
    let of =
        |voters: &[NodeId]| format!("{} of {} voters are in reach", reached(voters), voters.len());
    let is_quorum = |voters: &[NodeId]| reached(voters) > voters.len() / 2;
    if !is_quorum(&voters) {
        return Err(Status::failed_precondition(format!(
            "to remove node {node} needs a quorum, and only {}. Bring the others back first. If they are gone for \
             good, stop this daemon: `quorumfs recover` makes a new cluster of its data directory alone",
            of(&voters)
        )));
    }
    if !is_quorum(&left) {
        return Err(Status::failed_precondition(format!(
            "without node {node}, only {} of those that are left: nothing could be agreed on any more. Bring them \
             back first, or say --force",
            of(&left)
        )));
    }
    Ok(())
}

/// Has this voter lead, or any that can. Whoever leads is told; answers who leads then.
pub(super) async fn transfer(handle: &Handle, wanted: Option<NodeId>) -> Result<NodeId, Status> {
    let raft = handle.raft_status().await.map_err(|error| unavailable(&error))?;
    let before = raft.leader;
    if before == NodeId(0) {
        return Err(Status::unavailable("nobody leads at present: there is nothing to hand over"));
    }
    if wanted == Some(before) {
        return Ok(before);
    }
    if let Some(wanted) = wanted {
        check_successor(handle, &raft, wanted)?;
    }
    let wanted = wanted.or_else(|| own_successor(handle, &raft));
    let mut leader = handle.leader();
    for _ in 0..TRANSFERS {
        // Where another node leads, the word may be lost.
        handle.transfer_leader(wanted);
        let handed = leader.wait_for(|now| *now != before && *now != NodeId(0));
        if let Ok(Ok(now)) = tokio::time::timeout(TRANSFER, handed).await {
            return Ok(*now);
        }
    }
    Err(Status::unavailable(format!(
        "node {before} leads still: nobody has taken over within {:?}",
        TRANSFERS * TRANSFER
    )))
}

/// Why a node cannot lead, where that is known.
fn check_successor(handle: &Handle, raft: &RaftStatus, node: NodeId) -> Result<(), Status> {
    let why = match raft.members.iter().find(|(member, ..)| *member == node) {
        None => "is no member of this cluster (quorumfs member list shows them)",
        Some((_, false, _)) => {
            "has no vote, so it cannot lead (quorumfs member promote gives it one)"
        }
        Some((_, true, _)) if node != handle.node() && !handle.is_connected(node) => {
            "is out of reach"
        }
        Some((_, true, _)) => return Ok(()),
    };
    Err(Status::failed_precondition(format!("node {node} {why}")))
}

/// Whom a node that does not lead names to the leader, which chooses for itself where it is asked: this node, or whoever is
/// in reach.
fn own_successor(handle: &Handle, raft: &RaftStatus) -> Option<NodeId> {
    let own = handle.node();
    if raft.leader == own {
        return None;
    }
    let others = raft.members.iter().filter(|(node, votes, _)| *votes && *node != raft.leader);
    let mut others = others.map(|(node, ..)| *node);
    let is_well = |node: &NodeId| {
        let health = raft.suspicions.iter().find(|(other, _)| other == node);
        let is_suspected = health.is_some_and(|(_, health)| health.is_suspected());
        *node == own || (handle.is_connected(*node) && !is_suspected)
    };
    others.clone().find(|node| *node == own).or_else(|| others.find(is_well))
}

fn refused(node: NodeId, refusal: MemberRefusal) -> Status {
    Status::failed_precondition(format!("node {node}: {refusal}"))
}

fn unavailable(error: &NodeError) -> Status {
    Status::unavailable(error.to_string())
}
