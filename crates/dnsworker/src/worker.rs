//! One thread of the worker: waits for sockets and deadlines, carries bytes to its server and back.

use std::collections::{BTreeSet, VecDeque};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use dns::config::Carrier;
use dns::{Client, Handled, Incoming, Output, Server, Transport};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::batch::{Batch, MAX_BATCH};
use crate::clients::{Clients, Interest};
use crate::exchanges::{Event, Exchanges};
use crate::random::Randomness;
use crate::secure::{Inbox, Secure};
use crate::shared::{Shared, Waiting};
use crate::sockets::Inherited;

/// Events taken from the kernel at once.
const MAX_EVENTS: usize = 64;

/// What an event is about. In the kernel's 64 bits: a kind in the upper byte, a number below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Udp(usize),
    Listener(usize),
    Client(u64),
    Exchange(u64),
    Inbox,
    Ending,
}

/// All state of the thread that others do not look at.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    thread: usize,
    epoll: Epoll,
    udp: Vec<UdpSocket>,
    listeners: Vec<TcpListener>,
    clients: Clients,
    exchanges: Exchanges,
    secure: Secure,
    inbox: Inbox,
    batch: Batch,
    randomness: Randomness,
    /// Connections with questions that were read but not answered yet: no event tells of them.
    unfinished: BTreeSet<u64>,
    reply: Vec<u8>,
    /// Whether only what was asked already is answered.
    is_ending: bool,
}

impl Worker {
    pub(crate) fn new(
        shared: Arc<Shared>,
        thread: usize,
        inherited: Inherited,
        secure: Secure,
    ) -> Result<Self> {
        let worker = Self {
            shared,
            thread,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            udp: inherited.udp,
            listeners: inherited.tcp,
            clients: Clients::default(),
            exchanges: Exchanges::default(),
            secure,
            inbox: Inbox::new()?,
            batch: Batch::new(),
            randomness: Randomness::default(),
            unfinished: BTreeSet::new(),
            reply: Vec::new(),
            is_ending: false,
        };
        for (index, socket) in worker.udp.iter().enumerate() {
            worker.epoll.add(socket, Token::Udp(index).readable())?;
        }
        for (index, listener) in worker.listeners.iter().enumerate() {
            worker.epoll.add(listener, Token::Listener(index).readable())?;
        }
        worker.epoll.add(worker.inbox.event(), Token::Inbox.readable())?;
        worker.epoll.add(worker.shared.ending(), Token::Ending.readable())?;
        Ok(worker)
    }

    pub(crate) fn run(mut self) -> Result<()> {
        let shared = self.shared.clone();
        let mut events = [EpollEvent::empty(); MAX_EVENTS];
        loop {
            let timeout = self.meet_deadlines(&shared)?;
            if self.is_done(&shared) {
                return Ok(());
            }
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("waiting for DNS questions"),
            };
            let Some(mut server) = shared.server(self.thread) else { continue };
            for event in events.iter().take(count) {
                self.handle(Token::of(event.data()), &shared, &mut server)?;
            }
            for number in std::mem::take(&mut self.unfinished) {
                self.serve_client(number, &shared, &mut server)?;
            }
            let log = server.take_log();
            drop(server);
            for line in log {
                tracing::info!(target: "dns", "{line}");
            }
        }
    }

    /// Whether the end was asked for, and all who asked before have their answers.
    fn is_done(&self, shared: &Shared) -> bool {
        let is_idle = || shared.server(self.thread).is_none_or(|server| server.pending() == 0);
        self.is_ending && self.clients.is_empty() && is_idle()
    }

    fn handle(
        &mut self,
        token: Token,
        shared: &Shared,
        server: &mut Server<Waiting>,
    ) -> Result<()> {
        match token {
            Token::Udp(socket) => self.answer_datagrams(socket, shared, server),
            Token::Listener(listener) => {
                self.accept(listener);
                Ok(())
            }
            Token::Client(number) => self.serve_client(number, shared, server),
            Token::Exchange(number) => self.advance_exchange(number, server),
            Token::Inbox => self.read_inbox(server),
            Token::Ending => self.begin_to_end(shared),
        }
    }

    /// Leaves what comes from now on to a successor on the same sockets.
    fn begin_to_end(&mut self, shared: &Shared) -> Result<()> {
        for socket in &self.udp {
            self.epoll.delete(socket)?;
        }
        for listener in &self.listeners {
            self.epoll.delete(listener)?;
        }
        self.epoll.delete(shared.ending())?;
        self.clients.end();
        self.is_ending = true;
        Ok(())
    }

    fn answer_datagrams(
        &mut self,
        socket: usize,
        shared: &Shared,
        server: &mut Server<Waiting>,
    ) -> Result<()> {
        let Some(udp) = self.udp.get(socket) else { return Ok(()) };
        // Nothing, or the ICMP error of an earlier answer, to a client that went.
        let Ok(count) = self.batch.receive(udp) else { return Ok(()) };
        let now_us = shared.now_us();
        let mut outputs = Vec::new();
        {
            let index = shared.index();
            let Self { batch, randomness, .. } = self;
            for place in 0..count.min(MAX_BATCH) {
                let Some((question, address, reply)) = batch.question(place) else { continue };
                let from = Client { transport: Transport::Udp, address: address.ip() };
                let client = Waiting::Udp { socket, address };
                let incoming = Incoming { client, from, message: question };
                let random = &mut || randomness.next();
                match server.question(now_us, incoming, index.as_ref(), reply, random) {
                    Handled::Reply => {}
                    Handled::Drop => reply.clear(),
                    Handled::Wait(more) => {
                        reply.clear();
                        outputs.extend(more);
                    }
                }
            }
        }
        self.batch.send(udp, count);
        self.perform(outputs, server)
    }

    fn accept(&mut self, listener: usize) {
        let now_ms = self.now_ms();
        for _ in 0..MAX_BATCH {
            let Some(listener) = self.listeners.get(listener) else { return };
            let Ok((stream, _)) = listener.accept() else { return };
            let Ok(number) = self.clients.add(stream, now_ms) else { continue };
            if let Some((stream, _)) = self.clients.interest(number) {
                // A connection that cannot be watched is closed as idle.
                let _ = self.epoll.add(stream, Token::Client(number).readable());
            }
        }
    }

    fn serve_client(
        &mut self,
        number: u64,
        shared: &Shared,
        server: &mut Server<Waiting>,
    ) -> Result<()> {
        let now_ms = self.now_ms();
        self.clients.flush(number);
        for taken in 0.. {
            if taken == MAX_BATCH {
                self.unfinished.insert(number);
                break;
            }
            let Some((question, address)) = self.clients.next_question(number, now_ms) else {
                break;
            };
            let from = Client { transport: Transport::Tcp, address };
            let (client, now_us) = (Waiting::Tcp { number }, shared.now_us());
            let incoming = Incoming { client, from, message: &question };
            let handled = {
                let index = shared.index();
                let Self { randomness, reply, .. } = self;
                reply.clear();
                let random = &mut || randomness.next();
                server.question(now_us, incoming, index.as_ref(), reply, random)
            };
            match handled {
                Handled::Reply => self.clients.reply(number, &self.reply, now_ms),
                Handled::Drop => self.clients.drop_question(number),
                Handled::Wait(outputs) => self.perform(outputs, server)?,
            }
        }
        self.watch_client(number);
        Ok(())
    }

    fn advance_exchange(&mut self, number: u64, server: &mut Server<Waiting>) -> Result<()> {
        let Some((address, event)) = self.exchanges.advance(number) else { return Ok(()) };
        match event {
            Event::Messages(messages) => {
                for message in messages {
                    self.receive(number, address, &message, server)?;
                }
                if let Some((socket, wants_room)) = self.exchanges.interest(number) {
                    let token = Token::Exchange(number);
                    watch(&self.epoll, socket, token, Interest { read: true, write: wants_room });
                }
                Ok(())
            }
            Event::Failed(error) => {
                tracing::debug!("the DNS server {address} cannot be asked: {error}");
                self.fail(number, server)
            }
        }
    }

    /// Takes what came over TLS.
    fn read_inbox(&mut self, server: &mut Server<Waiting>) -> Result<()> {
        for arrived in self.inbox.take() {
            match arrived.message {
                Ok(message) => self.receive(arrived.exchange, arrived.from, &message, server)?,
                Err(error) => {
                    tracing::debug!("the DNS server {} cannot be asked: {error}", arrived.from);
                    self.fail(arrived.exchange, server)?;
                }
            }
        }
        Ok(())
    }

    fn receive(
        &mut self,
        exchange: u64,
        from: SocketAddr,
        message: &[u8],
        server: &mut Server<Waiting>,
    ) -> Result<()> {
        let randomness = &mut self.randomness;
        let now_us = self.shared.now_us();
        let outputs = server.receive(now_us, exchange, from, message, &mut || randomness.next());
        self.perform(outputs, server)
    }

    fn fail(&mut self, exchange: u64, server: &mut Server<Waiting>) -> Result<()> {
        let randomness = &mut self.randomness;
        let outputs = server.fail(self.shared.now_us(), exchange, &mut || randomness.next());
        self.perform(outputs, server)
    }

    /// Does what the server wants, and what follows from that.
    fn perform(
        &mut self,
        outputs: Vec<Output<Waiting>>,
        server: &mut Server<Waiting>,
    ) -> Result<()> {
        self.randomness.check()?;
        let now_ms = self.now_ms();
        let mut outputs = VecDeque::from(outputs);
        while let Some(output) = outputs.pop_front() {
            match output {
                Output::Send { exchange, to, transport, message } => {
                    if to.carrier != Carrier::Plain {
                        self.secure.send(&self.inbox, exchange, to, message);
                    } else if let Err(error) =
                        self.open_exchange(exchange, to.address, transport, &message)
                    {
                        tracing::debug!("the DNS server {to} cannot be asked: {error}");
                        self.exchanges.close(exchange);
                        let randomness = &mut self.randomness;
                        let now_us = self.shared.now_us();
                        outputs.extend(server.fail(now_us, exchange, &mut || randomness.next()));
                        self.randomness.check()?;
                    }
                }
                Output::Close { exchange } => self.exchanges.close(exchange),
                Output::Reply { client: Waiting::Udp { socket, address }, message, .. } => {
                    if let Some(socket) = self.udp.get(socket) {
                        let _ = socket.send_to(&message, address);
                    }
                }
                Output::Reply { client: Waiting::Tcp { number }, message, .. } => {
                    self.clients.reply(number, &message, now_ms);
                    self.unfinished.insert(number);
                }
            }
        }
        Ok(())
    }

    fn open_exchange(
        &mut self,
        number: u64,
        to: SocketAddr,
        transport: Transport,
        message: &[u8],
    ) -> Result<()> {
        let exchange = self.exchanges.open(number, to, transport, message)?;
        let (socket, wants_room) = exchange.interest();
        let interest = Interest { read: true, write: wants_room };
        Ok(self.epoll.add(socket, Token::Exchange(number).event(interest))?)
    }

    fn watch_client(&mut self, number: u64) {
        if let Some((stream, interest)) = self.clients.interest(number) {
            watch(&self.epoll, stream, Token::Client(number), interest);
        }
    }

    fn meet_deadlines(&mut self, shared: &Shared) -> Result<EpollTimeout> {
        let now_ms = self.now_ms();
        self.clients.close_idle(now_ms);
        let Some(mut server) = shared.server(self.thread) else { return Ok(EpollTimeout::NONE) };
        let randomness = &mut self.randomness;
        let outputs = server.tick(shared.now_us(), &mut || randomness.next());
        self.perform(outputs, &mut server)?;
        if !self.unfinished.is_empty() {
            return Ok(EpollTimeout::ZERO);
        }
        let deadlines = [server.next_deadline_ms(), self.clients.next_deadline_ms()];
        Ok(match deadlines.into_iter().flatten().min() {
            Some(deadline_ms) => {
                let wait_ms = deadline_ms.saturating_sub(self.now_ms());
                EpollTimeout::try_from(wait_ms).unwrap_or(EpollTimeout::MAX)
            }
            None => EpollTimeout::NONE,
        })
    }

    fn now_ms(&self) -> u64 {
        self.shared.now_us() / 1000
    }
}

impl Token {
    const NUMBER_BITS: u32 = 56;

    fn of(data: u64) -> Self {
        let number = data & ((1 << Self::NUMBER_BITS) - 1);
        match data >> Self::NUMBER_BITS {
            0 => Self::Udp(number as usize),
            1 => Self::Listener(number as usize),
            2 => Self::Client(number),
            3 => Self::Exchange(number),
            4 => Self::Inbox,
            _ => Self::Ending,
        }
    }

    fn data(self) -> u64 {
        let (kind, number) = match self {
            Self::Udp(index) => (0, index as u64),
            Self::Listener(index) => (1, index as u64),
            Self::Client(number) => (2, number),
            Self::Exchange(number) => (3, number),
            Self::Inbox => (4, 0),
            Self::Ending => (5, 0),
        };
        kind << Self::NUMBER_BITS | number
    }

    fn readable(self) -> EpollEvent {
        EpollEvent::new(EpollFlags::EPOLLIN, self.data())
    }

    fn event(self, interest: Interest) -> EpollEvent {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, interest.read);
        flags.set(EpollFlags::EPOLLOUT, interest.write);
        EpollEvent::new(flags, self.data())
    }
}

/// Changes what a socket is watched for. One that the kernel does not know any more is on its way
/// out by its deadline.
fn watch(epoll: &Epoll, socket: BorrowedFd<'_>, token: Token, interest: Interest) {
    let _ = epoll.modify(socket, &mut token.event(interest));
}
