//! UDP in a session of port-forward: each frame of a flow's data stream is one datagram. A flow is
//! one client; it has a socket of its own in the pod's network, so that answers find back to it.
//! Empty datagrams are not carried: an empty frame is the end of a stream.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::port_forward::{Forwarding, Piece, words};

/// A flow over which nothing goes for this long is ended, seconds: as long as the kernel remembers
/// one that is answered (`nf_conntrack_udp_timeout_stream`).
const IDLE_S: u64 = 120;
/// Largest datagram, bytes.
const MAX_DATAGRAM_BYTES: usize = 65_535;

/// How a flow to one address ended.
enum End {
    /// The client has left, or nothing more came.
    Over,
    /// Nobody listened there from the beginning.
    Refused(io::Error),
}

impl Forwarding {
    /// Serves datagrams to the end of the flow: to the pod's loopback, by IPv4, or by IPv6 where
    /// nobody listens there.
    pub(super) async fn run_datagrams(self, mut pieces: mpsc::UnboundedReceiver<Piece>) {
        let Some((first, share)) = pieces.recv().await else { return self.end(b"").await };
        drop(share);
        let mut refused = String::new();
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let address = SocketAddr::new(address, self.port);
            match self.exchange(address, &first, &mut pieces).await {
                Ok(End::Over) => return self.end(b"").await,
                Ok(End::Refused(error)) => {
                    refused = format!("dial udp {address}: {}", words(&error));
                }
                Err(problem) => return self.fail(&problem).await,
            }
        }
        self.fail(&refused).await;
    }

    async fn exchange(
        &self,
        address: SocketAddr,
        first: &[u8],
        pieces: &mut mpsc::UnboundedReceiver<Piece>,
    ) -> Result<End, String> {
        let socket = self.place.socket(|| connected(address));
        let socket = socket.and_then(|socket| {
            UdpSocket::from_std(socket).map_err(|error| format!("socket: {}", words(&error)))
        })?;
        // What is too large is lost, as on any way.
        let _ = socket.send(first).await;
        let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
        let mut has_answered = false;
        loop {
            tokio::select! {
                piece = pieces.recv() => {
                    let Some((datagram, _share)) = piece else { return Ok(End::Over) };
                    if let Err(error) = socket.send(&datagram).await
                        && error.kind() == ErrorKind::ConnectionRefused
                        && !has_answered
                    {
                        return Ok(End::Refused(error));
                    }
                }
                received = socket.recv(&mut buffer) => match received {
                    Ok(count) => {
                        has_answered = true;
                        self.activity.touch();
                        let datagram = buffer.get(..count).unwrap_or_default();
                        let sent = self.frames.send(self.streams.data(datagram)).await;
                        if sent.is_err() {
                            return Ok(End::Over);
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused && !has_answered => {
                        return Ok(End::Refused(error));
                    }
                    // The program is being started again, perhaps: the client's next finds it.
                    Err(_) => {}
                },
                () = tokio::time::sleep(Duration::from_secs(IDLE_S)) => return Ok(End::Over),
            }
        }
    }
}

/// A socket that takes datagrams of one address alone.
fn connected(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
