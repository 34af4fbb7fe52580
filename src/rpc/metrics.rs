//! What Prometheus asks of a daemon: its status as numbers, over plain HTTP at a port of their own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus::{Counter, Encoder, GaugeVec, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::admin::{MemberStatus, Missing, StatusReply};
use super::{AdminService, ServeError};

/// Connections that are served at once; the kernel keeps some more waiting.
const SCRAPES: usize = 16;
/// How long one may take, with what is asked and answered in it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves `GET /metrics` at `address` for as long as its runtime lives.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve_metrics(address: SocketAddr, admin: AdminService) -> Result<(), ServeError> {
    let bound = TcpListener::bind(address).await;
    let listener = bound.map_err(|source| ServeError::Metrics { address, source })?;
    tokio::spawn(serve(listener, admin));
    Ok(())
}

async fn serve(listener: TcpListener, admin: AdminService) {
    let places = Arc::new(Semaphore::new(SCRAPES));
    while let Ok(place) = places.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| scrape(&admin, request));
            let mut http = http1::Builder::new();
            let served = http.keep_alive(false).serve_connection(TokioIo::new(stream), answer);
            // Whoever asks for nothing, or goes away, gets nothing.
            let _ = tokio::time::timeout(PATIENCE, served).await;
            drop(place);
        });
    }
}

async fn scrape(
    admin: &AdminService,
    request: Request<Incoming>,
) -> Result<Response<String>, Infallible> {
    let (status, text) = match request.uri().path() {
        "/metrics" => match admin.status_reply().await.map(|reply| page(&reply)) {
            Ok(Ok(text)) => (StatusCode::OK, text),
            Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.message().to_owned()),
        },
        _ => (StatusCode::NOT_FOUND, "metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(prometheus::TEXT_FORMAT);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// `status` in Prometheus' text format.
fn page(status: &StatusReply) -> prometheus::Result<String> {
    let page = Page(Registry::new());
    page.node(status)?;
    page.members(&status.members)?;
    page.bytes(status)?;
    let mut text = Vec::new();
    TextEncoder::new().encode(&page.0.gather(), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What one scrape answers.
struct Page(Registry);

impl Page {
    fn node(&self, status: &StatusReply) -> prometheus::Result<()> {
        let StatusReply { node, version, role, .. } = status;
        let names = ["node", "version", "role"];
        let of_it = vec![node.to_string(), version.clone(), role.clone()];
        self.each("info", "What this node is", &names, [(of_it, 1.0)])?;
        self.one("leader", "Id of the node that leads; 0 while none is known", status.leader)?;
        self.one("has_quorum", "1 while a quorum answers this node", status.has_quorum.into())?;
        self.one("problems", "How many problems `quorumfs status` names", len(&status.problems))?;
        self.one("raft_term", "The term of Raft", status.term)?;
        self.one("raft_commit_index", "The highest index known to be committed", status.commit)?;
        self.one("raft_applied_index", "The highest index that is applied here", status.applied)?;
        self.one("raft_stable_index", "The highest index that all mounts show", status.stable)?;
        self.one("raft_first_index", "The first index of the log here", status.first_index)?;
        self.one("raft_log_bytes", "Bytes of the log here", status.log_bytes)?;
        self.one("raft_last_index", "The last index of the log here", status.last_index)?;
        self.one("sessions", "Open sessions of the cluster", len(&status.sessions))?;
        self.one("mounts", "Mounts of this node", len(&status.mounts))?;
        let lease = [(Vec::new(), seconds(status.lease_ms))];
        self.each("lease_seconds", "What is left of the session's lease", &[], lease)
    }

    fn members(&self, members: &[MemberStatus]) -> prometheus::Result<()> {
        let each = |name, help, value: &dyn Fn(&MemberStatus) -> f64| {
            let values = members.iter().map(|member| {
                (vec![member.node.to_string(), member.address.clone()], value(member))
            });
            self.each(name, help, &["member", "address"], values)
        };
        each("member_connected", "1 while there is a connection to this member", &|member| {
            f64::from(u8::from(member.connected))
        })?;
        each("member_votes", "1 for voters", &|member| {
            f64::from(u8::from(member.kind == "voter"))
        })?;
        each(
            "member_suspicion_phi",
            "Phi of the failure detector: one silence in 10^phi is a false alarm; suspected from 8 on",
            &|member| member.suspicion,
        )?;
        each("member_silent_seconds", "Since it was last heard", &|member| {
            seconds(member.silent_ms)
        })?;
        each(
            "member_disk_stalled_seconds",
            "How long its disk has had the write that it has not done; 0 where it works",
            &|member| seconds(member.stalled_ms),
        )?;
        each("member_lag_entries", "What it lacks of the log; the leader knows", &|member| {
            number(member.lag)
        })
    }

    fn bytes(&self, status: &StatusReply) -> prometheus::Result<()> {
        if let Some(Missing { files, bytes, rate, nowhere, nowhere_more, .. }) = &status.missing {
            self.one("missing_files", "Files of which this replica lacks bytes", *files)?;
            self.one("missing_bytes", "File bytes that this replica lacks", *bytes)?;
            self.one("heal_bytes_per_second", "What has come of them from peers lately", *rate)?;
            let ranges = len(nowhere) + nowhere_more;
            self.one("nowhere_ranges", "Ranges of files that no connected node has", ranges)?;
        }
        self.total("bulk_plain_bytes_total", "File bytes sent to peers", status.plain_bytes)?;
        self.total("bulk_sent_bytes_total", "As how many they travelled", status.sent_bytes)
    }

    fn one(&self, name: &str, help: &str, value: u64) -> prometheus::Result<()> {
        self.each(name, help, &[], [(Vec::new(), number(value))])
    }

    fn each(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        values: impl IntoIterator<Item = (Vec<String>, f64)>,
    ) -> prometheus::Result<()> {
        let gauge = GaugeVec::new(named(name, help), labels)?;
        for (of_it, value) in values {
            let of_it: Vec<_> = of_it.iter().map(String::as_str).collect();
            gauge.with_label_values(&of_it).set(value);
        }
        self.0.register(Box::new(gauge))
    }

    fn total(&self, name: &str, help: &str, value: u64) -> prometheus::Result<()> {
        let counter = Counter::with_opts(named(name, help))?;
        counter.inc_by(number(value));
        self.0.register(Box::new(counter))
    }
}

fn named(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("quorumfs")
}

fn len<T>(items: &[T]) -> u64 {
    items.len() as u64
}

/// As Prometheus has all numbers.
#[allow(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn number(value: u64) -> f64 {
    value as f64
}

fn seconds(ms: u64) -> f64 {
    number(ms) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::{MemberStatus, Missing, StatusReply, page};

    #[test]
    fn a_status_is_shown_as_numbers() {
        let member = MemberStatus {
            node: 2,
            address: "a\"b:1".to_owned(),
            kind: "voter".to_owned(),
            suspicion: 8.5,
            silent_ms: 1500,
            ..MemberStatus::default()
        };
        let status = StatusReply {
            node: 1,
            role: "leader".to_owned(),
            applied: 12_345_678,
            has_quorum: true,
            members: vec![member],
            missing: Some(Missing { nowhere_more: 3, ..Missing::default() }),
            sent_bytes: 7,
            ..StatusReply::default()
        };
        let text = page(&status).expect("a page");
        for line in [
            r#"quorumfs_info{node="1",role="leader",version=""} 1"#,
            "quorumfs_has_quorum 1",
            "quorumfs_raft_applied_index 12345678",
            r#"quorumfs_member_suspicion_phi{address="a\"b:1",member="2"} 8.5"#,
            r#"quorumfs_member_silent_seconds{address="a\"b:1",member="2"} 1.5"#,
            r#"quorumfs_member_connected{address="a\"b:1",member="2"} 0"#,
            "quorumfs_nowhere_ranges 3",
            "# TYPE quorumfs_bulk_sent_bytes_total counter",
            "quorumfs_bulk_sent_bytes_total 7",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
    }

    #[test]
    fn an_empty_status_is_a_page() {
        let text = page(&StatusReply::default()).expect("a page");
        assert!(text.contains("quorumfs_leader 0\n"), "{text}");
        assert!(!text.contains("quorumfs_member"), "{text}");
    }
}
