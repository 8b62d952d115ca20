//! Sockets to upstream servers, each for one question.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use dns::Transport;
use socket2::{Domain, Protocol, Socket, Type};

/// Datagrams read from one socket before others have their turn: wrong ones must not keep the
/// worker.
const MAX_DATAGRAMS: usize = 8;
/// The largest datagram taken; we offer far less.
const DATAGRAM_OCTETS: usize = 4096;

/// All sockets that are open, by the forwarder's numbers.
#[derive(Default)]
pub(crate) struct Exchanges {
    open: BTreeMap<u64, Exchange>,
}

/// One socket, connected to one server.
pub(crate) struct Exchange {
    server: SocketAddr,
    carrier: Carrier,
}

enum Carrier {
    Udp(UdpSocket),
    Tcp { stream: Socket, to_send: Vec<u8>, received: Vec<u8> },
}

/// What came of looking at a socket.
pub(crate) enum Event {
    /// Whole messages, perhaps none.
    Messages(Vec<Vec<u8>>),
    /// The socket is of no use any more.
    Failed(io::Error),
}

impl Exchanges {
    /// Opens a socket and sends, or begins to.
    pub(crate) fn open(
        &mut self,
        number: u64,
        server: SocketAddr,
        transport: Transport,
        message: &[u8],
    ) -> io::Result<&Exchange> {
        let carrier = match transport {
            Transport::Udp => {
                let any = if server.is_ipv4() {
                    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
                } else {
                    SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
                };
                // The kernel picks the port at random.
                let socket = UdpSocket::bind(any)?;
                socket.set_nonblocking(true)?;
                // Connected: the kernel drops what others send, and reports a closed port.
                socket.connect(server)?;
                socket.send(message)?;
                Carrier::Udp(socket)
            }
            Transport::Tcp => Carrier::Tcp {
                stream: connect(server)?,
                to_send: framed(message),
                received: Vec::new(),
            },
        };
        Ok(self.open.entry(number).or_insert(Exchange { server, carrier }))
    }

    /// Closes a socket.
    pub(crate) fn close(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// Reads and writes what can be. `None` for a socket that is closed already.
    pub(crate) fn advance(&mut self, number: u64) -> Option<(SocketAddr, Event)> {
        let exchange = self.open.get_mut(&number)?;
        let event = match &mut exchange.carrier {
            Carrier::Udp(socket) => receive_datagrams(socket),
            Carrier::Tcp { stream, to_send, received } => advance_stream(stream, to_send, received),
        };
        Some((exchange.server, event.map_or_else(Event::Failed, Event::Messages)))
    }

    /// The socket and whether it waits for room to write.
    pub(crate) fn interest(&self, number: u64) -> Option<(BorrowedFd<'_>, bool)> {
        Some(self.open.get(&number)?.interest())
    }
}

impl Exchange {
    /// The socket and whether it waits for room to write.
    pub(crate) fn interest(&self) -> (BorrowedFd<'_>, bool) {
        match &self.carrier {
            Carrier::Udp(socket) => (socket.as_fd(), false),
            Carrier::Tcp { stream, to_send, .. } => (stream.as_fd(), !to_send.is_empty()),
        }
    }
}

/// A message behind its length, as TCP wants it (RFC 1035, 4.2.2).
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend(message.iter().take(usize::from(length)));
    framed
}

/// Takes the first whole message from a stream's octets.
pub(crate) fn take_framed(octets: &mut Vec<u8>) -> Option<Vec<u8>> {
    let [high, low, rest @ ..] = octets.as_slice() else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let message = rest.get(..length)?.to_vec();
    octets.drain(..length + 2);
    Some(message)
}

fn connect(server: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&server.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

fn receive_datagrams(socket: &UdpSocket) -> io::Result<Vec<Vec<u8>>> {
    let mut buffer = [0; DATAGRAM_OCTETS];
    let mut messages = Vec::new();
    while messages.len() < MAX_DATAGRAMS {
        match socket.recv(&mut buffer) {
            Ok(length) => messages.push(buffer.get(..length).unwrap_or_default().to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // What came before an error still counts.
            Err(error) if messages.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    Ok(messages)
}

fn advance_stream(
    stream: &mut Socket,
    to_send: &mut Vec<u8>,
    received: &mut Vec<u8>,
) -> io::Result<Vec<Vec<u8>>> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    while !to_send.is_empty() {
        match stream.write(to_send) {
            Ok(count) => drop(to_send.drain(..count)),
            Err(error) if would_wait(&error) => return Ok(vec![]),
            Err(error) => return Err(error),
        }
    }
    let mut buffer = [0; DATAGRAM_OCTETS];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => received.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error) if would_wait(&error) => return Ok(vec![]),
            Err(error) => return Err(error),
        }
        // One question, so one message: no more than 64 KiB are ever held.
        if let Some(message) = take_framed(received) {
            return Ok(vec![message]);
        }
    }
}

fn would_wait(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NotConnected)
}
