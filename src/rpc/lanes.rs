//! Two kinds of connections on one port: what the core's thread serves, and bulk data, which must not delay it.
//!
//! A connection for bulk data begins with eight bytes that say so, before anything else.

use std::io;
use std::time::{Duration, Instant};

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
const PREFACE: &[u8] = b"qfs bulk";
/// How HTTP/2 begins (RFC 9113, section 3.4). hyper would wait for it for ever.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Whoever connects says this within this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// Refused connections are logged so often at most.
const LOGGED: Duration = Duration::from_secs(1);
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
        let mut logged: Option<Instant> = None;
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
                if logged.is_none_or(|at| at.elapsed() >= LOGGED) {
                    logged = Some(Instant::now());
                    tracing::warn!("there are too many connections: more are refused");
                }
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
    let is_bulk = begins(&stream, PREFACE).await?;
    if is_bulk {
        stream.read_exact(&mut [0; PREFACE.len()]).await?;
    }
    if !begins(&stream, HTTP2).await? {
        return Ok(());
    }
    // The server has ended where nobody receives.
    if is_bulk {
        let _ = to_bulk.send((stream.into_std()?, place)).await;
    } else {
        let _ = to_core.send(Ok(Connection { stream, _place: place })).await;
    }
    Ok(())
}

/// Between two looks at a connection that has not said what it is: a stranger who goes silent is not looked at often.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Waits until it begins with these bytes, or cannot any more.
async fn begins(stream: &TcpStream, with: &[u8]) -> io::Result<bool> {
    let mut first = [0; HTTP2.len()];
    let mut pause = Duration::from_millis(1);
    loop {
        let seen = stream.peek(&mut first[..with.len()]).await?;
        if seen == 0 || first[..seen] != with[..seen] {
            return Ok(false);
        }
        if seen == with.len() {
            return Ok(true);
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
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

#[cfg(test)]
mod tests {
    use super::{AsyncWriteExt, HTTP2, PREFACE, TcpListener, TcpStream, split};

    /// Who speaks neither is closed; who says a part is waited for.
    #[tokio::test]
    async fn connections_are_told_apart_by_how_they_begin() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (mut core, mut bulk) = split(listener);
        let connect = |parts: Vec<Vec<u8>>| async move {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            for part in parts {
                stream.write_all(&part).await.expect("it takes it");
                tokio::time::sleep(std::time::Duration::from_millis(3)).await;
            }
            stream
        };
        let mut other = connect(vec![b"GET / HTTP/1.1\r\n\r\n".to_vec()]).await;
        let mut byte = [0];
        let end = tokio::io::AsyncReadExt::read(&mut other, &mut byte).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        let (first, second) = HTTP2.split_at(1);
        let _core = connect(vec![first.to_vec(), second.to_vec()]).await;
        assert!(futures_util::StreamExt::next(&mut core).await.is_some_and(|one| one.is_ok()));
        let _bulk = connect(vec![PREFACE[..3].to_vec(), [&PREFACE[3..], HTTP2].concat()]).await;
        assert!(bulk.recv().await.is_some());
        let _silent = connect(vec![first.to_vec()]).await;
        assert!(bulk.try_recv().is_err());
    }
}
