//! Clients over TCP (RFC 7766): several questions on one connection, answered as they are ready.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use crate::exchanges::{framed, take_framed};

/// Connections at one time; a new one takes the place of the one that was idle longest.
const MAX_CLIENTS: usize = 128;
/// A connection without traffic is closed after this time, in milliseconds.
const IDLE_MS: u64 = 10_000;
/// And after this time when the worker ends: a client that is about to ask has done so by then.
const ENDING_IDLE_MS: u64 = 250;
/// Questions of one connection that may wait for upstream servers; then it is not read.
const MAX_WAITING: usize = 16;
/// Octets of answers that a client has not taken yet; beyond, it is not read.
const MAX_UNSENT_OCTETS: usize = 256 << 10;
/// Octets read at once.
const READ_OCTETS: usize = 4096;

/// All connections, by number.
#[derive(Default)]
pub(crate) struct Clients {
    open: BTreeMap<u64, Client>,
    last_number: u64,
    is_ending: bool,
}

struct Client {
    stream: TcpStream,
    address: IpAddr,
    received: Vec<u8>,
    unsent: Vec<u8>,
    waiting: usize,
    has_ended: bool,
    idle_since_ms: u64,
}

/// What to watch a connection for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interest {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Clients {
    /// Takes a new connection and returns its number.
    pub(crate) fn add(&mut self, stream: TcpStream, now_ms: u64) -> io::Result<u64> {
        stream.set_nonblocking(true)?;
        if self.open.len() >= MAX_CLIENTS {
            let idle = self.open.iter().min_by_key(|(_, client)| client.idle_since_ms);
            if let Some(number) = idle.map(|(number, _)| *number) {
                self.open.remove(&number);
            }
        }
        self.last_number += 1;
        let address = stream.peer_addr()?.ip();
        let client = Client {
            stream,
            address,
            received: vec![],
            unsent: vec![],
            waiting: 0,
            has_ended: false,
            idle_since_ms: now_ms,
        };
        self.open.insert(self.last_number, client);
        Ok(self.last_number)
    }

    /// Reads what there is and returns one question and who asks, if a whole one came.
    pub(crate) fn next_question(&mut self, number: u64, now_ms: u64) -> Option<(Vec<u8>, IpAddr)> {
        let client = self.open.get_mut(&number)?;
        loop {
            if !client.may_ask() {
                return None;
            }
            if let Some(question) = take_framed(&mut client.received) {
                client.idle_since_ms = now_ms;
                client.waiting += 1;
                return Some((question, client.address));
            }
            if client.has_ended {
                return None;
            }
            let mut buffer = [0; READ_OCTETS];
            match client.stream.read(&mut buffer) {
                // Questions that were sent before are still answered.
                Ok(0) => client.has_ended = true,
                Ok(count) => {
                    client.received.extend_from_slice(buffer.get(..count).unwrap_or_default());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.open.remove(&number);
                    return None;
                }
            }
        }
    }

    /// The last question was taken and gets no answer.
    pub(crate) fn drop_question(&mut self, number: u64) {
        if let Some(client) = self.open.get_mut(&number) {
            client.waiting = client.waiting.saturating_sub(1);
        }
    }

    /// Answers one question, of a connection that may be gone.
    pub(crate) fn reply(&mut self, number: u64, message: &[u8], now_ms: u64) {
        self.drop_question(number);
        if let Some(client) = self.open.get_mut(&number) {
            client.idle_since_ms = now_ms;
            client.unsent.extend(framed(message));
        }
        self.flush(number);
    }

    /// Sends what the client takes.
    pub(crate) fn flush(&mut self, number: u64) {
        let Some(client) = self.open.get_mut(&number) else { return };
        while !client.unsent.is_empty() {
            match client.stream.write(&client.unsent) {
                Ok(count) => drop(client.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.open.remove(&number);
                    return;
                }
            }
        }
        client.unsent.shrink_to(READ_OCTETS);
    }

    /// What to watch a connection for; closes it when all is said. `None` when it is closed.
    pub(crate) fn interest(&mut self, number: u64) -> Option<(BorrowedFd<'_>, Interest)> {
        let client = self.open.get(&number)?;
        if client.has_ended && client.waiting == 0 && client.unsent.is_empty() {
            self.open.remove(&number);
            return None;
        }
        let client = self.open.get(&number)?;
        let read = client.may_ask() && !client.has_ended;
        Some((client.stream.as_fd(), Interest { read, write: !client.unsent.is_empty() }))
    }

    /// Nobody comes any more; who is here may finish. A connection that were closed at once might
    /// have a question on its way (RFC 7766, section 6.2.4).
    pub(crate) fn end(&mut self) {
        self.is_ending = true;
    }

    /// Whether all have gone.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Closes what was idle for too long.
    pub(crate) fn close_idle(&mut self, now_ms: u64) {
        let is_ending = self.is_ending;
        self.open.retain(|_, client| client.closes_at_ms(is_ending) > now_ms);
    }

    /// When to call [`Clients::close_idle`], if there is anybody.
    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        self.open.values().map(|client| client.closes_at_ms(self.is_ending)).min()
    }
}

impl Client {
    fn closes_at_ms(&self, is_ending: bool) -> u64 {
        let is_idle = self.waiting == 0 && self.unsent.is_empty();
        self.idle_since_ms + if is_ending && is_idle { ENDING_IDLE_MS } else { IDLE_MS }
    }

    fn may_ask(&self) -> bool {
        self.waiting < MAX_WAITING && self.unsent.len() < MAX_UNSENT_OCTETS
    }
}
