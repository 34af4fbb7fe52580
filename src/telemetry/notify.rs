//! Tells the service manager how the daemon fares: the protocol of `sd_notify(3)`, which is one
//! datagram to the socket named by `$NOTIFY_SOCKET`. Does nothing where there is no such socket.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The mount serves.
pub fn notify_ready() {
    notify("READY=1");
}

/// A clean stop has begun.
pub fn notify_stopping() {
    notify("STOPPING=1");
}

/// One line for people who look at the service's status.
pub fn notify_status(line: &str) {
    notify(&format!("STATUS={}", line.replace('\n', " ")));
}

fn notify(state: &str) {
    if let Some(socket) = env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&socket, state)
    {
        tracing::warn!(%error, state, "cannot notify the service manager");
    }
}

/// A name that begins with `@` is in Linux's abstract namespace.
fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::send;
    use std::ffi::OsStr;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    #[test]
    fn both_kinds_of_sockets_are_reached() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("notify");
        let name = format!("quorumfs-notify-{}", std::process::id());
        let in_files = UnixDatagram::bind(&path).expect("bind");
        let address = SocketAddr::from_abstract_name(&name).expect("a short name");
        let abstract_one = UnixDatagram::bind_addr(&address).expect("bind");
        let abstract_name = format!("@{name}");
        for (receiver, socket) in
            [(in_files, path.as_os_str()), (abstract_one, OsStr::new(&abstract_name))]
        {
            send(socket, "READY=1").expect("send");
            let mut buffer = [0; 64];
            let length = receiver.recv(&mut buffer).expect("receive");
            assert_eq!(&buffer[..length], b"READY=1");
        }
    }
}
