//! Short TCP streams between gateways. TCP gives whole trains of segments to the links, which cut
//! them apart and write their checksums; where a link or its driver does that wrongly, datagrams of
//! every size pass, and streams crawl.
//!
//! The far kernel takes the bytes and acknowledges them; nobody reads them. Streams are taken of
//! known nodes alone, so many at once, and each for a moment.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netlink::probe;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

/// Bytes of a stream: some trains of segments, and less than a receiver takes without reading.
const STREAM_BYTES: usize = 32 * 1024;
/// Segments of a stream that may be lost on a way that loses some now and then. Where trains of
/// segments are lost, each of the stream's segments is sent again alone, some twenty.
const RETRANSMITTED_MAX: u32 = 4;
/// How often the kernel is asked how far a stream is.
const LOOK_PERIOD: Duration = Duration::from_millis(5);
/// Streams of others that are open at once; further ones are closed at once.
const STREAMS_MAX: usize = 16;
/// A stream of others is closed after this: its sender has long seen what he wants to.
const STREAM_LIFE: Duration = Duration::from_secs(2);
/// After an error of a socket no stream is taken for this long.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Takes streams at an address of this node, at a port that the kernel chooses. Answers the port.
pub(super) fn listen(
    address: IpAddr,
    is_known: impl Fn(IpAddr) -> bool + Send + 'static,
    tasks: &mut JoinSet<()>,
) -> io::Result<u16> {
    let listener = std::net::TcpListener::bind((address, 0))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    tasks.spawn(take(TcpListener::from_std(listener)?, is_known));
    Ok(port)
}

async fn take(listener: TcpListener, is_known: impl Fn(IpAddr) -> bool) {
    let mut open = JoinSet::new();
    loop {
        let taken = tokio::select! {
            taken = listener.accept() => taken,
            Some(_) = open.join_next() => continue,
        };
        match taken {
            Ok((stream, from)) if is_known(from.ip()) && open.len() < STREAMS_MAX => {
                open.spawn(async move {
                    tokio::time::sleep(STREAM_LIFE).await;
                    drop(stream);
                });
            }
            Ok(_) => {}
            // Whatever it is, it may pass; not in a busy loop.
            Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
        }
    }
}

/// Whether a stream gets through as it is sent. `None` when there is none: a packet filter may let
/// datagrams through and no streams, which says nothing of segments.
pub(super) async fn passes(from: IpAddr, to: SocketAddr, patience: Duration) -> Option<bool> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.ok()?;
    socket.bind(SocketAddr::new(from, 0)).ok()?;
    let connected = tokio::time::timeout(patience, socket.connect(to)).await;
    let mut stream = connected.ok()?.ok()?;
    // Nothing of it shall stay behind.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).ok()?;
    let until = Instant::now() + patience;
    let bytes = vec![0; STREAM_BYTES];
    let written = tokio::time::timeout(patience, stream.write_all(&bytes)).await;
    if !matches!(written, Ok(Ok(()))) {
        return Some(false);
    }
    loop {
        let delivery = probe::delivery(&stream).ok()?;
        if delivery.retransmitted > RETRANSMITTED_MAX {
            return Some(false);
        }
        if delivery.outstanding_bytes == 0 {
            return Some(true);
        }
        if Instant::now() >= until {
            return Some(false);
        }
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn streams_of_known_nodes_are_taken_and_those_of_others_closed() {
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().expect("an address");
            let known = Arc::new(AtomicBool::new(true));
            let (mut tasks, asked) = (JoinSet::new(), Arc::clone(&known));
            let port = listen(address, move |_| asked.load(Ordering::Relaxed), &mut tasks);
            let to = SocketAddr::new(address, port.expect("a port"));
            let patience = Duration::from_secs(10);
            assert_eq!(passes(address, to, patience).await, Some(true), "{to}");
            known.store(false, Ordering::Relaxed);
            let mut stream = tokio::net::TcpStream::connect(to).await.expect("connected");
            let mut byte = [0];
            let read = tokio::io::AsyncReadExt::read(&mut stream, &mut byte);
            let closed = tokio::time::timeout(patience, read).await.expect("soon");
            assert!(closed.is_err() || closed.is_ok_and(|length| length == 0), "{to}");
            // Nobody is there: that says nothing.
            drop(tasks);
            while tokio::net::TcpStream::connect(to).await.is_ok() {
                tokio::task::yield_now().await;
            }
            assert_eq!(passes(address, to, patience).await, None, "{to}");
        }
    }
}
