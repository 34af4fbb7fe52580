//! What a daemon answers on its socket before it has started.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tonic::transport::Server;
use tower::Service;

use super::admin::admin_server;
use super::lanes;
use super::peer::peer_server;

/// Peers try again at once, and there is nothing to be told them yet.
const PAUSE: Duration = Duration::from_secs(2);

/// Tells people what a start is about, until it is dropped.
#[derive(Debug)]
pub struct Starting {
    says: watch::Sender<String>,
    /// Dropped to end the server, and its connections as soon as they have their answers.
    _running: oneshot::Sender<()>,
}

impl Starting {
    /// Answers beside `listener`, which nobody else accepts from meanwhile. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the system gives no further descriptor.
    pub fn begin(listener: &TcpListener) -> io::Result<Self> {
        let beside = std::net::TcpListener::from(listener.as_fd().try_clone_to_owned()?);
        let (incoming, _) = lanes::split(TcpListener::from_std(beside)?);
        let (says, said) = watch::channel(String::new());
        let (running, stopped) = oneshot::channel();
        let server = Server::builder()
            .add_service(NotYet::<Person>(said.clone(), Person))
            .add_service(NotYet::<Peer>(said, Peer))
            .serve_with_incoming_shutdown(incoming, async move {
                // The sender is only ever dropped.
                let _ = stopped.await;
            });
        tokio::spawn(server);
        Ok(Self { says, _running: running })
    }

    /// What it is about from now on.
    pub fn says(&self, line: &str) {
        self.says.send_replace(line.to_owned());
    }
}

/// Who asks, and how long the answer waits.
trait Caller: Clone + Send + Sync + 'static {
    const NAME: &'static str;
    const PAUSE: Duration;
}

#[derive(Clone)]
struct Person;

impl Caller for Person {
    const NAME: &'static str = admin_server::SERVICE_NAME;
    const PAUSE: Duration = Duration::ZERO;
}

#[derive(Clone)]
struct Peer;

impl Caller for Peer {
    const NAME: &'static str = peer_server::SERVICE_NAME;
    const PAUSE: Duration = PAUSE;
}

/// Answers everything with what is said.
#[derive(Clone)]
struct NotYet<C>(watch::Receiver<String>, C);

impl<C: Caller> NamedService for NotYet<C> {
    const NAME: &'static str = C::NAME;
}

impl<C: Caller> Service<Request<Body>> for NotYet<C> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let mut said = self.0.clone();
        Box::pin(async move {
            // No longer than the start takes: a peer is wanted then.
            let ended = async { while said.changed().await.is_ok() {} };
            let _ = tokio::time::timeout(C::PAUSE, ended).await;
            let line = format!("it has not started yet: {}", *said.borrow());
            Ok(tonic::Status::unavailable(line).into_http())
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::{Body, NotYet, Peer, Request, Service, watch};

    /// A start that takes no time is not to keep its peers away for longer.
    #[tokio::test]
    async fn a_peer_that_waits_is_let_go_when_the_start_is_over() {
        let (says, said) = watch::channel(String::new());
        let mut answer = NotYet(said, Peer).call(Request::new(Body::empty()));
        says.send_replace("something else".to_owned());
        assert!((&mut answer).now_or_never().is_none(), "it has come too early");
        drop(says);
        assert!(answer.now_or_never().is_some());
    }
}
