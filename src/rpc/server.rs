//! The daemon's one listening socket.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::Server;

use super::admin::admin_server::AdminServer;
use super::connection::{Connection, Place};
use super::peer::bulk_server::BulkServer;
use super::peer::peer_server::PeerServer;
use super::{AdminService, BulkService, FRAME, MAX_MESSAGE, PeerService, WINDOW, lanes};

/// Why the daemon cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; is another daemon running, or is `listen` not an address \
         of this machine?"
    )]
    Bind {
        /// `listen` of the configuration.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The address for metrics cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; is another daemon running, or is `metrics` not an address of \
         this machine?"
    )]
    Metrics {
        /// `metrics` of the configuration.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The server ended by itself.
    #[error("the gRPC server ended: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// Takes the address, so that a port in use is known before anything else is touched.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Bind { address, source })
}

/// Serves until `stop` resolves; bulk data on a runtime of its own.
///
/// # Errors
/// When the server ends by itself.
pub async fn serve(
    listener: TcpListener,
    peer: PeerService,
    admin: AdminService,
    bulk: (BulkService, tokio::runtime::Handle),
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (incoming, for_bulk) = lanes::split(listener);
    let bulk = bulk.1.spawn(serve_bulk(bulk.0, for_bulk));
    let peer = PeerServer::new(peer)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(1)))
        .add_service(peer)
        .add_service(AdminServer::new(admin))
        .serve_with_incoming_shutdown(incoming, stop)
        .await?;
    bulk.abort();
    Ok(())
}

async fn serve_bulk(
    service: BulkService,
    mut accepted: mpsc::Receiver<(std::net::TcpStream, Place)>,
) -> Result<(), tonic::transport::Error> {
    let bulk = BulkServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    // Each is registered with this runtime from here on.
    let incoming = futures_util::stream::poll_fn(move |context| {
        let register = |(stream, place)| {
            let stream = tokio::net::TcpStream::from_std(stream)?;
            Ok::<_, std::io::Error>(Connection { stream, _place: place })
        };
        accepted.poll_recv(context).map(|accepted| accepted.map(register))
    });
    Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .max_frame_size(Some(FRAME))
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(1)))
        .http2_keepalive_timeout(Some(std::time::Duration::from_secs(2)))
        .add_service(bulk)
        .serve_with_incoming(incoming)
        .await
}
