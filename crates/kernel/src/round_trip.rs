//! How long an endpoint takes to answer, as the kernel measured it.

use std::os::fd::AsRawFd;
use std::time::Duration;

/// The kernel's estimate of the round trip of a TCP connection; right after it was made, the time
/// from its SYN to the answer. `None` when there is none yet.
#[allow(unsafe_code)] // an option of sockets that nix does not know
pub fn of_connection(connection: &impl AsRawFd) -> Option<Duration> {
    // SAFETY: all zeros are a value of this structure of numbers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which is as long.
    let result = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    let round_trip = Duration::from_micros(info.tcpi_rtt.into());
    (result == 0 && !round_trip.is_zero()).then_some(round_trip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_a_round_trip_and_a_listener_has_none() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("an address");
        let connection = std::net::TcpStream::connect(address).expect("a connection");
        let measured = of_connection(&connection).expect("a round trip");
        assert!(measured < Duration::from_secs(10), "{measured:?}");
        assert_eq!(
            of_connection(&std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket")),
            None
        );
    }
}
