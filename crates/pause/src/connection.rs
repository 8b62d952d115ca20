//! One connection of the runtime: requests in, with the descriptors that travel beside them, and
//! answers out. Never blocks.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, send, sendmsg,
};
use pause::{MAX_MESSAGE_BYTES, Request, Response};

use crate::sys;

/// Descriptors that may wait for their request: those of one command.
const MAX_DESCRIPTORS: usize = 3;
/// Bytes read at a time.
const READ_BYTES: usize = 16 * 1024;

/// The connection and what is under way on it.
pub struct Connection {
    socket: OwnedFd,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// Set when the other side is gone, or broke the protocol.
    pub closed: bool,
    /// Whether exits are reported here.
    pub watches: bool,
}

impl Connection {
    /// Takes an accepted socket, non-blocking.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            descriptors: Vec::new(),
            closed: false,
            watches: false,
        }
    }

    /// For polling.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether answers wait for room.
    pub fn wants_to_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Reads what is there and returns the whole requests in it.
    pub fn receive(&mut self) -> Vec<Result<Request, String>> {
        let mut requests = Vec::new();
        loop {
            match self.read_some() {
                Ok(0) => self.closed = true,
                Ok(_) if self.incoming.len() <= MAX_MESSAGE_BYTES => {
                    self.split(&mut requests);
                    continue;
                }
                Ok(_) => self.closed = true,
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
                Err(_) => self.closed = true,
            }
            return requests;
        }
    }

    /// The three descriptors of a command.
    pub fn take_streams(&mut self) -> Option<[OwnedFd; 3]> {
        std::mem::take(&mut self.descriptors).try_into().ok()
    }

    /// Queues an answer and writes what the socket takes.
    pub fn answer(&mut self, response: &Response) {
        match serde_json::to_vec(response) {
            Ok(text) => self.outgoing.extend_from_slice(&text),
            Err(_) => self.closed = true,
        }
        self.outgoing.push(b'\n');
        // A reader that is this far behind has hung: it connects again when it lives.
        self.closed |= self.outgoing.len() > MAX_MESSAGE_BYTES;
        self.flush();
    }

    /// Writes what the socket takes.
    pub fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.socket.as_raw_fd(), &self.outgoing, flags) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(nix::Error::EAGAIN) => return,
                Err(nix::Error::EINTR) => {}
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
        self.outgoing = Vec::new();
    }

    fn read_some(&mut self) -> nix::Result<usize> {
        let mut bytes = [0_u8; READ_BYTES];
        let (count, received) = receive(self.socket.as_fd(), &mut bytes)?;
        self.descriptors.extend(received);
        self.closed |= self.descriptors.len() > MAX_DESCRIPTORS;
        self.incoming.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn split(&mut self, requests: &mut Vec<Result<Request, String>>) {
        while let Some(end) = self.incoming.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.incoming.drain(..=end).collect();
            requests.push(serde_json::from_slice(&line).map_err(|error| error.to_string()));
        }
        if self.incoming.is_empty() {
            self.incoming = Vec::new();
        }
    }
}

/// Reads once, without waiting: the number of bytes, and the descriptors that came with them.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(bytes)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut received = Vec::new();
    for entry in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = entry {
            received.extend(fds.into_iter().map(sys::received));
        }
    }
    Ok((message.bytes, received))
}

/// Sends descriptors, with one byte that carries them.
pub fn send_descriptors(
    socket: BorrowedFd<'_>,
    descriptors: [BorrowedFd<'_>; 2],
) -> nix::Result<()> {
    let raw = descriptors.map(|descriptor| descriptor.as_raw_fd());
    let rights = [ControlMessage::ScmRights(&raw)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::empty(), None)
        .map(drop)
}
