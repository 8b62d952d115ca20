//! Sockets that measure a path. What those of UDP send is never fragmented by this node nor
//! shortened to a path MTU that somebody told it of (RFC 8899), and may go without a checksum. Of
//! those of TCP it is told what became of the bytes.
#![allow(unsafe_code)] // options of sockets that nix does not wrap

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

use crate::Error;

/// `linux/udp.h`: the checksum of IPv6 datagrams may be left out, by who sends and who receives.
const UDP_NO_CHECK6_TX: libc::c_int = 101;
const UDP_NO_CHECK6_RX: libc::c_int = 102;

/// Opens such a socket, not blocking.
///
/// # Errors
/// `EADDRNOTAVAIL` while the node has no such address, `EADDRINUSE` when the port is taken.
pub fn open(address: SocketAddr) -> Result<UdpSocket, Error> {
    let failed = |error: std::io::Error| {
        let errno = error.raw_os_error().unwrap_or_default();
        Error::new(errno, format!("open UDP {address} for the path self-test"))
    };
    let socket = UdpSocket::bind(address).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    let options = match address {
        SocketAddr::V4(_) => {
            &[(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)][..]
        }
        SocketAddr::V6(_) => &[
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
            (libc::SOL_UDP, UDP_NO_CHECK6_RX, 1),
        ],
    };
    for (level, name, value) in options {
        set(&socket, *level, *name, *value)?;
    }
    Ok(socket)
}

/// Whether what is sent from now on carries a checksum.
///
/// # Errors
/// When the socket is none for UDP.
pub fn set_checksum(socket: &impl AsFd, is_ipv6: bool, on: bool) -> Result<(), Error> {
    let value = libc::c_int::from(!on);
    match is_ipv6 {
        false => set(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, value),
        true => set(socket, libc::SOL_UDP, UDP_NO_CHECK6_TX, value),
    }
}

/// What became of the bytes that were written to a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Bytes that the far end has not acknowledged, sent or not.
    pub outstanding_bytes: u32,
    /// Segments that had to be sent again.
    pub retransmitted: u32,
}

/// How far a TCP socket is with what was written to it (`SIOCOUTQ`, `TCP_INFO`).
///
/// # Errors
/// When the socket is none for TCP.
pub fn delivery(socket: &impl AsFd) -> Result<Delivery, Error> {
    let failed = |errno: Errno| Error::new(errno as i32, "read the state of a TCP socket");
    let descriptor = socket.as_fd().as_raw_fd();
    let mut outstanding: libc::c_int = 0;
    // SAFETY: the descriptor is open as long as `socket`, and the pointer is that of a live
    // integer, which is what the kernel writes.
    let result = unsafe { libc::ioctl(descriptor, libc::TIOCOUTQ, &raw mut outstanding) };
    Errno::result(result).map_err(failed)?;
    // SAFETY: all fields are integers, for which zeros are values.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `socket`, the pointers are those of live values,
    // and the kernel writes no more than the length that it is given.
    let result = unsafe {
        libc::getsockopt(
            descriptor,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).map_err(failed)?;
    let outstanding_bytes = u32::try_from(outstanding).unwrap_or(u32::MAX);
    Ok(Delivery { outstanding_bytes, retransmitted: info.tcpi_total_retrans })
}

fn set(
    socket: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> Result<(), Error> {
    // SAFETY: the descriptor is open as long as `socket`, the pointer is that of a live integer
    // and the length is the integer's; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new(errno as i32, format!("set option {name} of a UDP socket")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_arrive_with_and_without_a_checksum() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let to = open(address.parse().expect("an address")).expect("a socket");
            let from = open(address.parse().expect("an address")).expect("a socket");
            to.set_nonblocking(false).expect("set");
            to.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("set");
            for on in [true, false, true] {
                set_checksum(&from, address.starts_with('['), on).expect("set");
                let there = to.local_addr().expect("an address");
                assert_eq!(from.send_to(b"x", there).expect("sent"), 1, "{address}");
                assert_eq!(to.recv(&mut [0; 2]).expect("arrives"), 1, "{address}");
            }
        }
    }
    #[test]
    fn it_is_known_what_became_of_a_streams_bytes() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let mut stream = std::net::TcpStream::connect(address).expect("connected");
        // More than both sockets hold: the rest waits for a reader.
        stream.set_nonblocking(true).expect("set");
        let piece = [0; 1 << 20];
        let mut written = 0;
        while let Ok(length) = stream.write(&piece) {
            written += length;
        }
        let full = delivery(&stream).expect("read");
        assert!(full.outstanding_bytes > 0 && full.outstanding_bytes as usize <= written);
        let (mut far, _) = listener.accept().expect("accepted");
        let mut buffer = vec![0; written];
        far.read_exact(&mut buffer).expect("read");
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while delivery(&stream).expect("read").outstanding_bytes > 0 {
            assert!(std::time::Instant::now() < limit, "all was read, and not acknowledged");
            std::thread::yield_now();
        }
    }
}
