//! What people and scripts ask of a daemon.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::admin::admin_server::Admin;
use super::admin::{
    AcceptLostRequest, AddMemberReply, AddMemberRequest, ListMountsReply, ListMountsRequest,
    Missing, MountInfo, MountReply, MountRequest, Nowhere, PromoteMemberReply,
    PromoteMemberRequest, RemoveMemberReply, RemoveMemberRequest, ScrubRequest, SessionStatus,
    StatusReply, StatusRequest, TransferLeaderReply, TransferLeaderRequest, UnmountReply,
    UnmountRequest,
};
use super::{Mounts, MountsError, local_caller, losing, membership, scrubbing};
use crate::consensus::Role;
use crate::fs::Digest;
use crate::node::{self, Handle, RaftStatus};
use crate::types::{ByteRange, ClusterId, Ino, LogIndex, NodeId};

/// How long a status waits for what others may have locked.
const LOOKING: Duration = Duration::from_secs(1);

/// Serves `proto/admin.proto` for one node.
#[derive(Clone)]
pub struct AdminService {
    cluster: ClusterId,
    handle: Handle,
    mounts: Arc<dyn Mounts>,
    /// Whose turn it is to look at what may be locked.
    looking: Arc<Semaphore>,
}

impl AdminService {
    /// A service for `handle`'s node.
    #[must_use]
    pub fn new(cluster: ClusterId, handle: Handle, mounts: Arc<dyn Mounts>) -> Self {
        Self { cluster, handle, mounts, looking: Arc::new(Semaphore::new(1)) }
    }

    /// The status, with what can be known at once where the disk does not answer.
    pub(super) async fn status_reply(&self) -> Result<StatusReply, Status> {
        let raft = self.handle.raft_status().await.map_err(unavailable)?;
        let mounts = tokio::time::timeout(LOOKING, self.mounts.list()).await;
        let behind_locks = self.look_behind_locks().await;
        Ok(self.reply(&raft, mounts.unwrap_or_default(), behind_locks))
    }

    /// Nothing where it does not come in time. One thread at most waits for it, however often it is asked for.
    async fn look_behind_locks(&self) -> Option<BehindLocks> {
        let (handle, turn) = (self.handle.clone(), self.looking.clone());
        let look = async move {
            let turn = turn.acquire_owned().await.ok()?;
            let look = move || {
                let found = BehindLocks::look(&handle);
                drop(turn);
                found
            };
            tokio::task::spawn_blocking(look).await.ok()
        };
        tokio::time::timeout(LOOKING, look).await.ok().flatten()
    }

    /// Waits for nothing.
    fn reply(
        &self,
        raft: &RaftStatus,
        mounts: Vec<MountInfo>,
        behind_locks: Option<BehindLocks>,
    ) -> StatusReply {
        let handle = &self.handle;
        let problems = self.problems(raft, behind_locks.as_ref());
        let (applied, digest, missing) = match behind_locks {
            Some(found) => (found.applied, found.digest.to_string(), Some(missing(found.missing))),
            None => (raft.applied, String::new(), None),
        };
        let sessions = raft
            .sessions
            .iter()
            .map(|(info, shown)| SessionStatus {
                session: info.session.0,
                node: info.node.0,
                strong: info.strong,
                visible: shown.0,
            })
            .collect();
        let (mount, mounted) = self.mounts.configured().unwrap_or_default();
        let (plain_bytes, sent_bytes) = handle.traffic();
        StatusReply {
            cluster: self.cluster.0.to_vec().into(),
            node: handle.node().0,
            pid: u64::from(std::process::id()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: role(raft.role).to_owned(),
            leader: raft.leader.0,
            term: raft.term.0,
            commit: raft.commit.0,
            applied: applied.0,
            stable: handle.stable_index().0,
            first_index: handle.first_index().0,
            last_index: raft.last_index.0,
            mount: mount.display().to_string(),
            mounted,
            session: handle.session().0,
            lease_ms: u64::try_from(handle.lease_left().as_millis()).unwrap_or(u64::MAX),
            members: membership::list(handle, raft),
            sessions,
            problems,
            digest,
            epochs: self.mounts.has_epochs(),
            mounts,
            missing,
            plain_bytes,
            sent_bytes,
            has_quorum: handle.has_quorum(),
            log_bytes: handle.log_bytes(),
        }
    }

    fn problems(&self, raft: &RaftStatus, behind_locks: Option<&BehindLocks>) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(fatal) = &*self.handle.fatal().borrow() {
            problems.push(format!("this replica has stopped: {}", fatal.reason));
        }
        problems.extend(self.handle.said_to_be_removed());
        problems.extend(self.handle.divergence());
        problems.extend(self.handle.waits_for_comparison());
        if raft.leader == NodeId(0) {
            problems.push("no leader is known: writes and strong reads wait".to_owned());
        }
        if !self.handle.has_quorum() {
            problems.push(
                "no quorum answers this node, so it has no lease: writes and strong reads wait, and bounded reads \
                 soon"
                    .to_owned(),
            );
        }
        if !self.mounts.is_guarded() {
            problems.push(
                "this daemon has no guardian at present: if it died now, the others would wait for its session to \
                 expire, and its mounts would stay behind until its next start (the log says why)"
                    .to_owned(),
            );
        }
        problems.extend(self.handle.clocks_apart().into_iter().map(|(node, ahead_ms)| {
            format!(
                "the wall clock of node {node} is {ahead_ms} ms ahead of this node's: have both follow NTP, or times of \
                 files are wrong"
            )
        }));
        if self.handle.files().is_full() {
            problems.push(
                "the disk of this node is down to its reserve: new bytes are missing here, and come when there is \
                 room"
                    .to_owned(),
            );
        }
        if !raft.stalled.is_zero() {
            problems.push(format!(
                "the disk of this node, node {}, has not done a write for {:.1?}: its mounts wait for it",
                self.handle.node(),
                raft.stalled
            ));
        }
        problems.extend(membership::problems(&self.handle, raft));
        let Some(BehindLocks { missing, .. }) = behind_locks else {
            problems.push(format!(
                "what waits for the disk of this node has not been done for {LOOKING:?}: what is missing here is not \
                 known at present"
            ));
            return problems;
        };
        let nowhere = missing.nowhere.len() as u64 + missing.nowhere_more;
        if nowhere > 0 {
            problems.push(format!(
                "{nowhere} ranges of files are missing here and on every connected node: bring the nodes back that \
                 have them, or accept them as lost (quorumfs accept-lost)"
            ));
        }
        problems
    }
}

/// What is to be had only behind locks that others hold while they wait for the disk.
struct BehindLocks {
    applied: LogIndex,
    digest: Digest,
    missing: node::Missing,
}

impl BehindLocks {
    fn look(handle: &Handle) -> Self {
        let missing = handle.missing();
        let state = handle.state();
        Self { applied: state.applied(), digest: state.digest(), missing }
    }
}

fn missing(missing: node::Missing) -> Missing {
    let node::Missing { files, bytes, rate, left, nowhere, nowhere_more } = missing;
    let left_ms = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    let one =
        |(ino, range): (Ino, ByteRange)| Nowhere { ino: ino.0, start: range.start, end: range.end };
    let nowhere = nowhere.into_iter().map(one).collect();
    Missing { files, bytes, rate, left_ms, nowhere, nowhere_more }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(self.status_reply().await?))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderReply>, Status> {
        check_caller(&request, "hand leadership over").await?;
        let wanted = Some(NodeId(request.into_inner().node)).filter(|node| *node != NodeId(0));
        let leader = membership::transfer(&self.handle, wanted).await?;
        Ok(Response::new(TransferLeaderReply { leader: leader.0 }))
    }

    async fn add_member(
        &self,
        request: Request<AddMemberRequest>,
    ) -> Result<Response<AddMemberReply>, Status> {
        check_caller(&request, "change who is a member").await?;
        let node = membership::add(&self.handle, request.into_inner()).await?;
        Ok(Response::new(AddMemberReply { node: node.0 }))
    }

    async fn remove_member(
        &self,
        request: Request<RemoveMemberRequest>,
    ) -> Result<Response<RemoveMemberReply>, Status> {
        check_caller(&request, "change who is a member").await?;
        membership::remove(&self.handle, request.into_inner()).await?;
        Ok(Response::new(RemoveMemberReply {}))
    }

    async fn promote_member(
        &self,
        request: Request<PromoteMemberRequest>,
    ) -> Result<Response<PromoteMemberReply>, Status> {
        check_caller(&request, "change who is a member").await?;
        membership::promote(&self.handle, NodeId(request.into_inner().node)).await?;
        Ok(Response::new(PromoteMemberReply {}))
    }

    async fn mount(&self, request: Request<MountRequest>) -> Result<Response<MountReply>, Status> {
        check_caller(&request, "mount and unmount").await?;
        self.mounts.mount(request.into_inner()).await.map_err(|error| refusal(&error))?;
        Ok(Response::new(MountReply {}))
    }

    async fn unmount(
        &self,
        request: Request<UnmountRequest>,
    ) -> Result<Response<UnmountReply>, Status> {
        check_caller(&request, "mount and unmount").await?;
        let UnmountRequest { point, lazy } = request.into_inner();
        let point = OsString::from_vec(point.into()).into();
        self.mounts.unmount(point, lazy).await.map_err(|error| refusal(&error))?;
        Ok(Response::new(UnmountReply {}))
    }

    type ScrubStream = scrubbing::Progress;

    async fn scrub(
        &self,
        request: Request<ScrubRequest>,
    ) -> Result<Response<Self::ScrubStream>, Status> {
        check_caller(&request, "scrub").await?;
        Ok(Response::new(scrubbing::scrub(&self.handle, request.into_inner()).await?))
    }

    type AcceptLostStream = losing::Reports;

    async fn accept_lost(
        &self,
        request: Request<AcceptLostRequest>,
    ) -> Result<Response<Self::AcceptLostStream>, Status> {
        check_caller(&request, "accept bytes as lost").await?;
        Ok(Response::new(losing::lost(&self.handle, request.into_inner()).await?))
    }

    async fn list_mounts(
        &self,
        _: Request<ListMountsRequest>,
    ) -> Result<Response<ListMountsReply>, Status> {
        Ok(Response::new(ListMountsReply { mounts: self.mounts.list().await }))
    }
}

/// The daemon mounts where it is told, as root, and reads whatever it is told to: only root of its own machine may
/// tell it.
async fn check_caller<T: Sync>(request: &Request<T>, what: &str) -> Result<(), Status> {
    let addresses = request.remote_addr().zip(request.local_addr());
    let user = tokio::task::spawn_blocking(move || {
        addresses.and_then(|(caller, own)| local_caller::user_of(caller, own))
    });
    match user.await.map_err(unavailable)? {
        Some(user) if user == 0 || user == rustix::process::geteuid().as_raw() => Ok(()),
        Some(_) => Err(Status::permission_denied(format!("only root may {what}"))),
        None => Err(Status::permission_denied(
            "this daemon runs on another machine: give the address of the one on this machine",
        )),
    }
}

fn refusal(error: &MountsError) -> Status {
    let sentence = error.to_string();
    match error {
        MountsError::Usage(_) => Status::invalid_argument(sentence),
        MountsError::Failed(_) => Status::failed_precondition(sentence),
        MountsError::Unknown(_) => Status::not_found(sentence),
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
    }
}

fn unavailable(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}
