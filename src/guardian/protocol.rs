//! What a daemon tells its guardian, one message of a packet socket each; descriptors come along. The guardian
//! answers nothing.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use crate::mountinfo::{self, MountLine};

/// The longest message: a list of members, or a path.
const MESSAGE_MAX: usize = 64 << 10;
/// Descriptors that come with a message: that of FUSE and that of the watched inodes.
const DESCRIPTORS: usize = 2;

/// Bytes that may wait in the socket: thousands of orders.
const QUEUE: usize = 8 << 20;

/// Something that the guardian is to know or to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// A mount is going to be served. With the descriptors of FUSE and of the watched inodes.
    Watch {
        /// Its name in [`Order::Forget`].
        mount: u64,
        place: Place,
    },
    /// It has ended.
    Forget { mount: u64 },
    /// Whom to tell what. Said after all mounts are known.
    Report(Report),
    /// The daemon has unmounted everything, and ends.
    End,
}

/// Where a mount is, and by what it is recognised there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) point: OsString,
    pub(super) id: u64,
    /// The number that is never given to another mount, where the kernel has such.
    pub(super) unique: Option<u64>,
    pub(super) device: String,
}

impl Place {
    /// The uppermost mount there.
    pub(super) fn of(point: &Path) -> io::Result<Option<Self>> {
        let Some(line) = mountinfo::top(point)? else { return Ok(None) };
        let MountLine { id, device, point, .. } = line;
        Ok(Some(Self { id, unique: mountinfo::unique_id(&point), device, point: point.into() }))
    }

    /// Whether a mount is the one that was there then.
    pub(super) fn is(&self, line: &MountLine) -> bool {
        (self.id, self.device.as_str()) == (line.id, line.device.as_str())
            && self.unique == mountinfo::unique_id(&line.point)
    }
}

/// What is to be told when the daemon has died, and to whom. Plain numbers, as messages have them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The cluster.
    pub cluster: [u8; 16],
    /// The daemon's node.
    pub node: u64,
    /// Where it listens.
    pub address: String,
    /// The daemon's session; 0 while it has none.
    pub session: u64,
    /// The other members, and where they listen.
    pub peers: Vec<(u64, String)>,
}

/// Two ends of a socket.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
    // Many mounts are told at once, to a process that is only starting. Beyond the system's limit for root only.
    if rustix::net::sockopt::set_socket_send_buffer_size_force(&ours, QUEUE).is_err() {
        rustix::net::sockopt::set_socket_send_buffer_size(&ours, QUEUE)?;
    }
    Ok((ours, theirs))
}

/// Says it without ever waiting: a guardian that does not listen is as good as none.
pub(super) fn send(
    socket: &OwnedFd,
    order: &Order,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(order)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(&text)], &mut control, flags)?;
    Ok(())
}

/// The next message and its descriptors; nothing once nobody can send any more.
pub(super) fn receive(socket: &impl AsFd) -> io::Result<Option<(Order, Vec<OwnedFd>)>> {
    let mut text = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut text)];
        match rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            result => break result?,
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some((serde_json::from_slice(&text[..received.bytes])?, descriptors)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStringExt;

    use super::{Order, Place, Report, pair, receive, send};

    /// Orders and descriptors arrive in order, and what was said before the end is heard before it.
    #[test]
    fn orders_and_descriptors_arrive() {
        let (daemon, guardian) = pair().expect("sockets");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"same").expect("written");
        let point = std::ffi::OsString::from_vec(b"/mnt/\xff".to_vec());
        let place = Place { point, id: 7, unique: Some(1 << 40), device: "0:52".into() };
        let watch = Order::Watch { mount: 1, place };
        send(&daemon, &watch, &[file.as_fd(), file.as_fd()]).expect("sent");
        let report = Order::Report(Report { session: 9, ..Report::default() });
        send(&daemon, &report, &[]).expect("sent");
        drop(daemon);
        let (order, descriptors) = receive(&guardian).expect("received").expect("an order");
        assert_eq!((order, descriptors.len()), (watch, 2));
        let mut passed = std::fs::File::from(descriptors.into_iter().next().expect("one"));
        passed.rewind().expect("seek");
        let mut text = String::new();
        passed.read_to_string(&mut text).expect("read");
        assert_eq!(text, "same");
        assert_eq!(receive(&guardian).expect("received").expect("an order").0, report);
        assert!(receive(&guardian).expect("the end").is_none());
    }

    /// A guardian that does not listen holds nobody up.
    #[test]
    fn a_full_queue_is_an_error() {
        let (daemon, _guardian) = pair().expect("sockets");
        let sent = (0..100_000).map(|_| send(&daemon, &Order::End, &[])).find(Result::is_err);
        assert!(sent.is_some(), "it never filled");
    }
}
