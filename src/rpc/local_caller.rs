//! Who on this machine is at the other end of a connection. Whoever may reach the port may ask for the
//! status; mounting, which the daemon does as root and in its own mount namespace, is for root here.

use std::fs;
use std::net::{IpAddr, SocketAddr};

/// The user whose socket `caller` is, of a connection to `own`; `None` where it is not of this machine
/// (network namespace). From the kernel's tables of sockets (`proc_net(5)`, tcp).
pub(super) fn user_of(caller: SocketAddr, own: SocketAddr) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    tables.iter().flatten().find_map(|table| find(table, canonical(caller), canonical(own)))
}

fn find(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let found = (address(fields.nth(1)?)?, address(fields.next()?)?);
        (found == (local, remote)).then(|| fields.nth(4)?.parse().ok())?
    })
}

/// `0100007F:1CE9`: 32-bit words as this machine stores them, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':').filter(|(host, _)| [8, 32].contains(&host.len()))?;
    let words: Option<Vec<[u8; 4]>> = host
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok())
        .map(|word| word.map(u32::to_ne_bytes))
        .collect();
    let bytes = words?.concat();
    let host = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(canonical(SocketAddr::new(host, u16::from_str_radix(port, 16).ok()?)))
}

/// IPv4 in the clothes of IPv6 is IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

    use super::{SocketAddr, address, user_of};

    /// A connection of this test's own is found, with its user; one that is not there is not.
    #[test]
    fn the_kernel_knows_whose_connection_it_is() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let own = listener.local_addr().expect("bound");
        let stream = TcpStream::connect(own).expect("connected");
        let (_accepted, caller) = listener.accept().expect("accepted");
        assert_eq!(Some(caller), stream.local_addr().ok());
        let user = rustix::process::getuid().as_raw();
        assert_eq!(user_of(caller, own), Some(user));
        let mapped = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), caller.port()));
        assert_eq!(user_of(mapped, own), Some(user));
        assert_eq!(user_of(SocketAddr::from(([203, 0, 113, 9], caller.port())), own), None);
    }

    #[test]
    fn addresses_are_words() {
        let v4 = address("0100007F:1CE9").expect("IPv4");
        assert_eq!(v4, SocketAddr::from((Ipv4Addr::LOCALHOST, 7401)));
        let v6 = address("00000000000000000000000001000000:1CE9").expect("IPv6");
        assert_eq!(v6, SocketAddr::from((Ipv6Addr::LOCALHOST, 7401)));
        assert_eq!([address(""), address("01:02"), address("zz:1")], [None; 3]);
    }
}
