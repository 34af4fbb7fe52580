//! Two kinds of connections on one port: what the core's thread serves, and bulk data, which must not delay it.
//!
//! A connection for bulk data begins with eight bytes that say so, before anything else.

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::connection::{Connection, Place, Places};
use super::peer::bulk_client::BulkClient;
use super::{FRAME, MAX_MESSAGE, WINDOW};

/// No HTTP/2 connection and no TLS handshake begins like this.
const PREFACE: &[u8; 8] = b"qfs bulk";
/// Whoever connects says something within this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections that have not been taken over yet.
const WAITING: usize = 16;

type Accepted = ReceiverStream<io::Result<Connection>>;
/// To be registered with the runtime that serves it.
type ForBulk = (std::net::TcpStream, Place);

/// Connections of both kinds: for the core's thread, which is the caller's, and for bulk data, to be served on
/// another runtime.
pub(super) fn split(listener: TcpListener) -> (Accepted, mpsc::Receiver<ForBulk>) {
    let (to_core, core) = mpsc::channel(WAITING);
    let (to_bulk, bulk) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let places = Places::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = to_core.closed() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(place) = places.take() else {
                // Whoever called finds it closed, and may try again.
                tracing::warn!("there are too many connections: another one was refused");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (to_core, to_bulk) = (to_core.clone(), to_bulk.clone());
            tokio::spawn(async move {
                let sorted = sort(stream, place, &to_core, &to_bulk);
                let sorted = tokio::time::timeout(PATIENCE, sorted);
                // Whoever says nothing, or goes away, has no connection.
                drop(sorted.await);
            });
        }
    });
    (ReceiverStream::new(core), bulk)
}

async fn sort(
    mut stream: TcpStream,
    place: Place,
    to_core: &mpsc::Sender<io::Result<Connection>>,
    to_bulk: &mpsc::Sender<ForBulk>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0; PREFACE.len()];
    let is_bulk = loop {
        let seen = stream.peek(&mut first).await?;
        if seen == 0 || first[..seen] != PREFACE[..seen] {
            break false;
        }
        if seen == PREFACE.len() {
            break true;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    // The server has ended where nobody receives.
    if is_bulk {
        stream.read_exact(&mut first).await?;
        let _ = to_bulk.send((stream.into_std()?, place)).await;
    } else {
        let _ = to_core.send(Ok(Connection { stream, _place: place })).await;
    }
    Ok(())
}

/// A connection for bulk data.
pub(super) async fn connect(address: &str) -> Result<BulkClient<Channel>, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(Duration::from_secs(1))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .max_frame_size(FRAME)
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2));
    let connector = service_fn(|uri: Uri| async move {
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut stream = TcpStream::connect(authority).await?;
        stream.set_nodelay(true)?;
        stream.write_all(PREFACE).await?;
        Ok::<_, io::Error>(TokioIo::new(stream))
    });
    let channel = endpoint.connect_with_connector(connector).await?;
    Ok(BulkClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE))
}
