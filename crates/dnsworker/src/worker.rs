//! The loop: waits for sockets and deadlines, carries bytes to the core and back.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::BorrowedFd;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use dns::{Action, Client as Asker, Forwarder, Index, Output, Rules, Transport, answer};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::Options;
use crate::clients::{Clients, Interest};
use crate::exchanges::{Event, Exchanges};
use crate::feed::{Feed, ZoneFile};
use crate::sockets::Inherited;

/// Events taken from the kernel at once.
const MAX_EVENTS: usize = 64;
/// Questions, or connections, taken from one socket before others have their turn.
const MAX_BATCH: usize = 64;
/// The largest question taken over UDP, in octets; real ones take a tenth.
const QUESTION_OCTETS: usize = 2048;

/// Who asked, for the forwarder.
#[derive(Clone, Copy, Debug)]
enum Client {
    Udp { socket: usize, address: SocketAddr },
    Tcp { number: u64 },
}

/// What an event is about. In the kernel's 64 bits: a kind in the upper byte, a number below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Udp(usize),
    Listener(usize),
    Client(u64),
    Exchange(u64),
    Feed,
}

/// All state of the worker.
pub(crate) struct Worker {
    epoll: Epoll,
    udp: Vec<UdpSocket>,
    listeners: Vec<TcpListener>,
    clients: Clients,
    exchanges: Exchanges,
    forwarder: Forwarder<Client>,
    index: Option<Index>,
    rules: Rules,
    /// The answer that is being written.
    reply: Vec<u8>,
    feed: Feed,
    zone_file: Option<ZoneFile>,
    randomness: Randomness,
    /// Connections with questions that were read but not answered yet: no event tells of them.
    unfinished: BTreeSet<u64>,
    started: Instant,
}

impl Worker {
    pub(crate) fn new(options: &Options, inherited: Inherited) -> Result<Self> {
        let upstreams = without_loops(&options.upstreams, &inherited.udp)?;
        let mut worker = Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            udp: inherited.udp,
            listeners: inherited.tcp,
            clients: Clients::default(),
            exchanges: Exchanges::default(),
            forwarder: Forwarder::new(&upstreams),
            index: None,
            rules: Rules::default(),
            reply: Vec::new(),
            feed: Feed::new(&options.feed_socket),
            zone_file: options.cache_file.as_deref().map(ZoneFile::new),
            randomness: Randomness::default(),
            unfinished: BTreeSet::new(),
            started: Instant::now(),
        };
        for (index, socket) in worker.udp.iter().enumerate() {
            worker.epoll.add(socket, Token::Udp(index).readable())?;
        }
        for (index, listener) in worker.listeners.iter().enumerate() {
            worker.epoll.add(listener, Token::Listener(index).readable())?;
        }
        if let Some(json) = worker.zone_file.as_ref().and_then(ZoneFile::load) {
            worker.set_zone(&json);
        }
        Ok(worker)
    }

    pub(crate) fn run(mut self) -> Result<Infallible> {
        let mut events = [EpollEvent::empty(); MAX_EVENTS];
        loop {
            self.meet_deadlines()?;
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("waiting for DNS questions"),
            };
            for event in events.iter().take(count) {
                self.handle(Token::of(event.data()))?;
            }
            for number in std::mem::take(&mut self.unfinished) {
                self.serve_client(number)?;
            }
        }
    }

    fn handle(&mut self, token: Token) -> Result<()> {
        match token {
            Token::Udp(socket) => self.answer_datagrams(socket),
            Token::Listener(listener) => {
                self.accept(listener);
                Ok(())
            }
            Token::Client(number) => self.serve_client(number),
            Token::Exchange(number) => self.advance_exchange(number),
            Token::Feed => {
                self.read_feed();
                Ok(())
            }
        }
    }

    fn answer_datagrams(&mut self, socket: usize) -> Result<()> {
        let mut buffer = [0; QUESTION_OCTETS];
        for _ in 0..MAX_BATCH {
            let Some(udp) = self.udp.get(socket) else { return Ok(()) };
            let (length, address) = match udp.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // Such as the ICMP error of an earlier answer, to a client that went.
                Err(_) => continue,
            };
            let message = buffer.get(..length).unwrap_or_default();
            let asker = Asker { transport: Transport::Udp, address: address.ip() };
            match answer(message, self.index.as_ref(), &self.rules, asker, &mut self.reply) {
                // A client whose answer does not fit into the socket asks again.
                Action::Reply => drop(udp.send_to(&self.reply, address)),
                Action::Forward(forward) => {
                    let now_ms = self.now_ms();
                    let client = Client::Udp { socket, address };
                    let randomness = &mut self.randomness;
                    let outputs =
                        self.forwarder.ask(now_ms, client, *forward, &mut || randomness.next());
                    self.perform(outputs)?;
                }
                Action::Drop => {}
            }
        }
        Ok(())
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

    fn serve_client(&mut self, number: u64) -> Result<()> {
        let now_ms = self.now_ms();
        self.clients.flush(number);
        for taken in 0.. {
            if taken == MAX_BATCH {
                self.unfinished.insert(number);
                break;
            }
            let Some(question) = self.clients.next_question(number, now_ms) else { break };
            let Some(address) = self.clients.address(number) else { break };
            let asker = Asker { transport: Transport::Tcp, address };
            match answer(&question, self.index.as_ref(), &self.rules, asker, &mut self.reply) {
                Action::Reply => self.clients.reply(number, &self.reply, now_ms),
                Action::Forward(forward) => {
                    let client = Client::Tcp { number };
                    let randomness = &mut self.randomness;
                    let outputs =
                        self.forwarder.ask(now_ms, client, *forward, &mut || randomness.next());
                    self.perform(outputs)?;
                }
                Action::Drop => self.clients.drop_question(number),
            }
        }
        self.watch_client(number);
        Ok(())
    }

    fn advance_exchange(&mut self, number: u64) -> Result<()> {
        let Some((server, event)) = self.exchanges.advance(number) else { return Ok(()) };
        let now_ms = self.now_ms();
        match event {
            Event::Messages(messages) => {
                for message in messages {
                    let randomness = &mut self.randomness;
                    let outputs =
                        self.forwarder
                            .receive(now_ms, number, server, &message, &mut || randomness.next());
                    self.perform(outputs)?;
                }
                if let Some((socket, wants_room)) = self.exchanges.interest(number) {
                    let token = Token::Exchange(number);
                    watch(&self.epoll, socket, token, Interest { read: true, write: wants_room });
                }
                Ok(())
            }
            Event::Failed(error) => {
                tracing::debug!("the DNS server {server} cannot be asked: {error}");
                let randomness = &mut self.randomness;
                let outputs = self.forwarder.fail(now_ms, number, &mut || randomness.next());
                self.perform(outputs)
            }
        }
    }

    fn read_feed(&mut self) {
        let now_ms = self.now_ms();
        let Some(json) = self.feed.read(now_ms) else { return };
        if self.set_zone(&json)
            && let Some(file) = &mut self.zone_file
        {
            file.keep(json, now_ms);
        }
    }

    /// Serves a zone from now on. One that cannot be read leaves the one before in place.
    fn set_zone(&mut self, json: &[u8]) -> bool {
        match dns::feed::decode(json) {
            Ok(zone) => {
                let services: usize = zone.namespaces.values().map(|services| services.len()).sum();
                let previous = self.index.as_ref().map(Index::serial);
                if previous.is_none() {
                    tracing::info!("serving {} with {services} Services", zone.domain);
                }
                let serial = unix_seconds().max(previous.map_or(0, |serial| serial + 1));
                self.index = Some(Index::new(zone, serial));
                true
            }
            Err(error) => {
                tracing::warn!("{error}");
                false
            }
        }
    }

    /// Does what the forwarder wants, and what follows from that.
    fn perform(&mut self, outputs: Vec<Output<Client>>) -> Result<()> {
        self.randomness.check()?;
        let now_ms = self.now_ms();
        let mut outputs = VecDeque::from(outputs);
        while let Some(output) = outputs.pop_front() {
            match output {
                Output::Send { exchange, to, transport, message } => {
                    if let Err(error) = self.open_exchange(exchange, to, transport, &message) {
                        tracing::debug!("the DNS server {to} cannot be asked: {error}");
                        self.exchanges.close(exchange);
                        let randomness = &mut self.randomness;
                        outputs.extend(
                            self.forwarder.fail(now_ms, exchange, &mut || randomness.next()),
                        );
                        self.randomness.check()?;
                    }
                }
                Output::Close { exchange } => self.exchanges.close(exchange),
                Output::Reply { client: Client::Udp { socket, address }, message } => {
                    if let Some(socket) = self.udp.get(socket) {
                        let _ = socket.send_to(&message, address);
                    }
                }
                Output::Reply { client: Client::Tcp { number }, message } => {
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

    fn meet_deadlines(&mut self) -> Result<()> {
        let now_ms = self.now_ms();
        if let Some(socket) = self.feed.connect(now_ms) {
            self.epoll.add(socket, Token::Feed.readable())?;
        }
        if let Some(file) = &mut self.zone_file {
            file.write_when_due(now_ms);
        }
        self.clients.close_idle(now_ms);
        let randomness = &mut self.randomness;
        let outputs = self.forwarder.tick(now_ms, &mut || randomness.next());
        self.perform(outputs)
    }

    fn timeout(&self) -> EpollTimeout {
        if !self.unfinished.is_empty() {
            return EpollTimeout::ZERO;
        }
        let deadlines = [
            self.forwarder.next_deadline_ms(),
            self.feed.next_deadline_ms(),
            self.zone_file.as_ref().and_then(ZoneFile::next_deadline_ms),
            self.clients.next_deadline_ms(),
        ];
        match deadlines.into_iter().flatten().min() {
            Some(deadline_ms) => {
                let wait_ms = deadline_ms.saturating_sub(self.now_ms());
                EpollTimeout::try_from(wait_ms).unwrap_or(EpollTimeout::MAX)
            }
            None => EpollTimeout::NONE,
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
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
            _ => Self::Feed,
        }
    }

    fn data(self) -> u64 {
        let (kind, number) = match self {
            Self::Udp(index) => (0, index as u64),
            Self::Listener(index) => (1, index as u64),
            Self::Client(number) => (2, number),
            Self::Exchange(number) => (3, number),
            Self::Feed => (4, 0),
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

/// Random numbers of the kernel, fetched in handfuls.
#[derive(Default)]
struct Randomness {
    numbers: Vec<u64>,
    error: Option<getrandom::Error>,
}

impl Randomness {
    /// Numbers fetched at once.
    const HANDFUL: usize = 32;

    fn next(&mut self) -> u64 {
        if self.numbers.is_empty() {
            let mut octets = [0; Self::HANDFUL * 8];
            self.error = getrandom::fill(&mut octets).err().or(self.error);
            let numbers = octets.as_chunks::<8>().0.iter().map(|one| u64::from_ne_bytes(*one));
            self.numbers.extend(numbers);
        }
        self.numbers.pop().unwrap_or_default()
    }

    /// Nothing is sent under a number that can be guessed.
    fn check(&self) -> Result<()> {
        match &self.error {
            Some(error) => bail!("the kernel gives no random numbers: {error}"),
            None => Ok(()),
        }
    }
}

/// An upstream server that is ourselves would be asked without end.
fn without_loops(upstreams: &[SocketAddr], own: &[UdpSocket]) -> Result<Vec<SocketAddr>> {
    let mut kept = upstreams.to_vec();
    for socket in own {
        let own = socket.local_addr().context("reading the address of an inherited socket")?;
        if upstreams.contains(&own) {
            tracing::warn!(
                "{own} is this DNS worker's own address and not asked as upstream server"
            );
        }
        kept.retain(|upstream| *upstream != own);
    }
    Ok(kept)
}

fn unix_seconds() -> u32 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(elapsed.as_secs()).unwrap_or(u32::MAX)
}
