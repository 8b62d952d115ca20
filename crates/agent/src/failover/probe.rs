//! A handshake of our own, and whether anybody answered it.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use reconcile::failover::PROBE_TIMEOUT;
use tokio::net::TcpStream;

/// Handshakes until one is answered: a packet may be lost.
const ATTEMPTS: u32 = 2;

/// Whether the other side lives: it takes the connection, which ends at once, or refuses it.
pub(super) async fn is_answered(target: SocketAddr) -> bool {
    for _ in 0..ATTEMPTS {
        let attempt = TcpStream::connect(target);
        let tried = tokio::time::timeout(PROBE_TIMEOUT / ATTEMPTS, attempt).await;
        if tried.is_ok_and(|result| !is_silence(&result)) {
            return true;
        }
    }
    false
}

/// Only silence counts, and a router's word that nobody is there. What our own system refuses says
/// nothing of the other side.
fn is_silence(result: &io::Result<TcpStream>) -> bool {
    let silent = [ErrorKind::TimedOut, ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable];
    result.as_ref().is_err_and(|error| silent.contains(&error.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn taken_and_refused_handshakes_are_answers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        assert!(is_answered(address).await);
        drop(listener);
        assert!(is_answered(address).await, "a refusal comes from a living machine");
    }

    #[test]
    fn what_our_own_system_refuses_is_no_silence() {
        for (kind, silent) in [
            (ErrorKind::TimedOut, true),
            (ErrorKind::HostUnreachable, true),
            (ErrorKind::NetworkUnreachable, true),
            (ErrorKind::ConnectionRefused, false),
            (ErrorKind::ConnectionReset, false),
            (ErrorKind::AddrNotAvailable, false),
            (ErrorKind::PermissionDenied, false),
        ] {
            assert_eq!(is_silence(&Err(kind.into())), silent, "{kind}");
        }
    }
}
