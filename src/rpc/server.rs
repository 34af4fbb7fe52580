//! The daemon's one listening socket.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::admin::admin_server::AdminServer;
use super::peer::peer_server::PeerServer;
use super::{AdminService, MAX_MESSAGE, PeerService, WINDOW};

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

/// Serves until `stop` resolves.
///
/// # Errors
/// When the server ends by itself.
pub async fn serve(
    listener: TcpListener,
    peer: PeerService,
    admin: AdminService,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
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
    Ok(())
}
