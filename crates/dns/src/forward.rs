//! Asks upstream servers: a state machine that the worker drives.
//!
//! An answer is believed when it comes from the server that was asked, to the socket that asked,
//! under the number and for the exact question that were sent, letter case included (RFC 5452;
//! the case of the letters is random). What does not match is passed over and the wait goes on:
//! giving up at the first wrong datagram would hand the decision to whoever forged it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::answer::{Forward, TTL_S, failure};
use crate::cache::{Cache, Question, Resolved};
use crate::message::{CLASS_IN, HEADER_OCTETS, Query, kind, rcode};
use crate::writer::{Section, Writer, query};
use crate::{Name, Response, parse_response};

/// How long one server has for one answer, in milliseconds.
pub const ATTEMPT_TIMEOUT_MS: u64 = 1000;
/// Servers asked in turn before the client hears of failure; with [`ATTEMPT_TIMEOUT_MS`] that is
/// before the five seconds after which usual clients give up.
pub const MAX_ATTEMPTS: u32 = 4;
/// Questions that wait for upstream servers at one time; each may hold a few sockets.
pub const MAX_PENDING: usize = 256;
/// Clients that wait for the answer to one question.
const MAX_CLIENTS_PER_QUESTION: usize = 64;
/// A server that did not answer is asked last for this long, in milliseconds.
const PENALTY_MS: u64 = 5000;

/// What carries a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A stream, each message behind two octets of length.
    Tcp,
}

/// What the worker shall do. `C` names a client in its terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<C> {
    /// Send a query from a socket of its own, fresh and connected to this server.
    Send {
        /// Names the socket from now on.
        exchange: u64,
        /// The server.
        to: SocketAddr,
        /// How to send.
        transport: Transport,
        /// The message, without the length that TCP wants.
        message: Vec<u8>,
    },
    /// The socket of this exchange is no longer needed.
    Close {
        /// The name from [`Output::Send`].
        exchange: u64,
    },
    /// Answer a client.
    Reply {
        /// The client.
        client: C,
        /// The message.
        message: Vec<u8>,
    },
}

/// Random numbers, fit for secrets.
pub type Random<'a> = &'a mut dyn FnMut() -> u64;

/// The questions under way, and the cache of answers.
pub struct Forwarder<C> {
    upstreams: Vec<Upstream>,
    pending: BTreeMap<u64, Pending<C>>,
    by_question: BTreeMap<Question, u64>,
    by_exchange: BTreeMap<u64, u64>,
    cache: Cache,
    last_number: u64,
}

struct Upstream {
    address: SocketAddr,
    penalised_until_ms: u64,
}

struct Pending<C> {
    question: Question,
    clients: Vec<(C, Forward)>,
    attempts: Vec<Attempt>,
    attempts_left: u32,
    deadline_ms: u64,
    /// A server that does not know EDNS answers FORMERR to it (RFC 6891, 7).
    with_edns: bool,
    last_rcode: u16,
}

/// One query that was sent. Earlier ones stay open until the question is done: a slow answer is
/// as good as a fast one.
struct Attempt {
    exchange: u64,
    upstream: usize,
    transport: Transport,
    id: u16,
    name: Name,
}

impl<C: Clone> Forwarder<C> {
    /// A forwarder to these servers, the preferred first.
    pub fn new(upstreams: &[SocketAddr]) -> Self {
        let upstream = |address: &SocketAddr| Upstream { address: *address, penalised_until_ms: 0 };
        Self {
            upstreams: upstreams.iter().map(upstream).collect(),
            pending: BTreeMap::new(),
            by_question: BTreeMap::new(),
            by_exchange: BTreeMap::new(),
            cache: Cache::default(),
            last_number: 0,
        }
    }

    /// Takes a question on behalf of a client. Every call leads to exactly one reply for it, now
    /// or later.
    pub fn ask(
        &mut self,
        now_ms: u64,
        client: C,
        forward: Forward,
        random: Random,
    ) -> Vec<Output<C>> {
        let question = Question { name: forward.name.to_lower(), kind: forward.query.kind };
        if let Some((resolved, age_s)) = self.cache.get(&question, now_ms) {
            let message = compose(&forward, resolved, age_s);
            return vec![Output::Reply { client, message }];
        }
        if let Some(number) = self.by_question.get(&question)
            && let Some(pending) = self.pending.get_mut(number)
        {
            if pending.clients.len() >= MAX_CLIENTS_PER_QUESTION {
                return vec![refuse(client, &forward, rcode::SERVER_FAILURE)];
            }
            pending.clients.push((client, forward));
            return vec![];
        }
        if self.upstreams.is_empty() {
            return vec![refuse(client, &forward, rcode::REFUSED)];
        }
        if self.pending.len() >= MAX_PENDING {
            return vec![refuse(client, &forward, rcode::SERVER_FAILURE)];
        }
        let number = self.next_number();
        self.by_question.insert(question.clone(), number);
        let pending = Pending {
            question,
            clients: vec![(client, forward)],
            attempts: vec![],
            attempts_left: MAX_ATTEMPTS,
            deadline_ms: now_ms,
            with_edns: true,
            last_rcode: rcode::SERVER_FAILURE,
        };
        self.pending.insert(number, pending);
        self.next_attempt(now_ms, number, random)
    }

    /// Takes what came to the socket of an exchange.
    pub fn receive(
        &mut self,
        now_ms: u64,
        exchange: u64,
        from: SocketAddr,
        message: &[u8],
        random: Random,
    ) -> Vec<Output<C>> {
        let Some((number, pending, attempt)) = self.find(exchange) else { return vec![] };
        let upstream = attempt.upstream;
        let transport = attempt.transport;
        let matching = parse_response(message).filter(|response| {
            self.upstreams.get(upstream).is_some_and(|upstream| upstream.address == from)
                && response.id == attempt.id
                && response.class == CLASS_IN
                && response.kind == pending.question.kind
                && response.name.is(&attempt.name)
        });
        let Some(response) = matching else { return vec![] };
        // Some servers do not keep the letter case. Nobody forges a TCP connection blindly, so
        // there the answer counts without it.
        let same_case = response.name == attempt.name || transport == Transport::Tcp;
        if (response.is_truncated() || !same_case) && transport == Transport::Udp {
            return self.ask_over_tcp(now_ms, number, upstream, exchange, random);
        }
        if let Some(upstream) = self.upstreams.get_mut(upstream) {
            upstream.penalised_until_ms = 0;
        }
        match response.rcode {
            rcode::NO_ERROR | rcode::NAME_ERROR => self.complete(now_ms, number, response),
            other => self.next_after_rcode(now_ms, number, exchange, other, random),
        }
    }

    /// The socket of an exchange failed, such as by a port that is not open there.
    pub fn fail(&mut self, now_ms: u64, exchange: u64, random: Random) -> Vec<Output<C>> {
        let Some((number, pending, attempt)) = self.find(exchange) else { return vec![] };
        let upstream = attempt.upstream;
        let is_last = pending.attempts.last().is_some_and(|last| last.exchange == exchange);
        let mut outputs = self.close(number, exchange);
        self.penalise(now_ms, upstream);
        if is_last {
            outputs.extend(self.next_attempt(now_ms, number, random));
        }
        outputs
    }

    /// Goes on with every question whose server had its time.
    pub fn tick(&mut self, now_ms: u64, random: Random) -> Vec<Output<C>> {
        let due: Vec<(u64, Option<usize>)> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.deadline_ms <= now_ms)
            .map(|(number, pending)| (*number, pending.attempts.last().map(|last| last.upstream)))
            .collect();
        let mut outputs = Vec::new();
        for (number, upstream) in due {
            if let Some(upstream) = upstream {
                self.penalise(now_ms, upstream);
            }
            outputs.extend(self.next_attempt(now_ms, number, random));
        }
        outputs
    }

    /// When [`Forwarder::tick`] has something to do, if nothing comes before.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.pending.values().map(|pending| pending.deadline_ms).min()
    }

    fn next_attempt(&mut self, now_ms: u64, number: u64, random: Random) -> Vec<Output<C>> {
        let Some(pending) = self.pending.get_mut(&number) else { return vec![] };
        if pending.attempts_left == 0 {
            return self.give_up(number);
        }
        let made = (MAX_ATTEMPTS - pending.attempts_left) as usize;
        pending.attempts_left -= 1;
        let mut order: Vec<usize> = (0..self.upstreams.len()).collect();
        order.sort_by_key(|index| {
            self.upstreams.get(*index).is_none_or(|server| server.penalised_until_ms > now_ms)
        });
        let upstream = if made == 0 {
            order.first().copied().unwrap_or(0)
        } else {
            // Behind the one that was asked last.
            let last = pending.attempts.last().map_or(0, |attempt| attempt.upstream);
            (last + 1) % self.upstreams.len().max(1)
        };
        self.send(now_ms, number, upstream, Transport::Udp, random)
    }

    fn ask_over_tcp(
        &mut self,
        now_ms: u64,
        number: u64,
        upstream: usize,
        exchange: u64,
        random: Random,
    ) -> Vec<Output<C>> {
        let mut outputs = self.close(number, exchange);
        outputs.extend(self.send(now_ms, number, upstream, Transport::Tcp, random));
        outputs
    }

    fn send(
        &mut self,
        now_ms: u64,
        number: u64,
        upstream: usize,
        transport: Transport,
        random: Random,
    ) -> Vec<Output<C>> {
        let exchange = self.next_number();
        let (Some(pending), Some(server)) =
            (self.pending.get_mut(&number), self.upstreams.get(upstream))
        else {
            return vec![];
        };
        let id = random() as u16;
        let name = with_random_case(&pending.question.name, random);
        let message = query(id, &name, pending.question.kind, pending.with_edns);
        pending.attempts.push(Attempt { exchange, upstream, transport, id, name });
        pending.deadline_ms = now_ms + ATTEMPT_TIMEOUT_MS;
        self.by_exchange.insert(exchange, number);
        vec![Output::Send { exchange, to: server.address, transport, message }]
    }

    fn next_after_rcode(
        &mut self,
        now_ms: u64,
        number: u64,
        exchange: u64,
        rcode: u16,
        random: Random,
    ) -> Vec<Output<C>> {
        let mut outputs = self.close(number, exchange);
        if let Some(pending) = self.pending.get_mut(&number) {
            pending.last_rcode = rcode;
            if matches!(rcode, rcode::FORMAT_ERROR | rcode::NOT_IMPLEMENTED) {
                pending.with_edns = false;
            }
        }
        outputs.extend(self.next_attempt(now_ms, number, random));
        outputs
    }

    fn complete(&mut self, now_ms: u64, number: u64, response: Response) -> Vec<Output<C>> {
        let Some((pending, mut outputs)) = self.take(number) else { return vec![] };
        let resolved = Resolved::from_response(response, &pending.question);
        for (client, forward) in pending.clients {
            outputs.push(Output::Reply { client, message: compose(&forward, &resolved, 0) });
        }
        self.cache.put(pending.question, resolved, now_ms);
        outputs
    }

    fn give_up(&mut self, number: u64) -> Vec<Output<C>> {
        let Some((pending, mut outputs)) = self.take(number) else { return vec![] };
        for (client, forward) in pending.clients {
            // What a server said of our way to ask is not for the client to hear.
            let rcode = match pending.last_rcode {
                rcode::REFUSED => rcode::REFUSED,
                _ => rcode::SERVER_FAILURE,
            };
            outputs.push(refuse(client, &forward, rcode));
        }
        outputs
    }

    /// Removes a question and closes its sockets.
    fn take(&mut self, number: u64) -> Option<(Pending<C>, Vec<Output<C>>)> {
        let pending = self.pending.remove(&number)?;
        self.by_question.remove(&pending.question);
        let exchanges = pending.attempts.iter().map(|attempt| attempt.exchange);
        let closed = exchanges.filter(|exchange| self.by_exchange.remove(exchange).is_some());
        let outputs = closed.map(|exchange| Output::Close { exchange }).collect();
        Some((pending, outputs))
    }

    /// Closes one socket. Its attempt stays, so that the order of servers goes on behind it.
    fn close(&mut self, number: u64, exchange: u64) -> Vec<Output<C>> {
        match self.by_exchange.remove(&exchange) {
            Some(owner) if owner == number => vec![Output::Close { exchange }],
            _ => vec![],
        }
    }

    fn find(&self, exchange: u64) -> Option<(u64, &Pending<C>, &Attempt)> {
        let number = *self.by_exchange.get(&exchange)?;
        let pending = self.pending.get(&number)?;
        let attempt = pending.attempts.iter().find(|attempt| attempt.exchange == exchange)?;
        Some((number, pending, attempt))
    }

    fn penalise(&mut self, now_ms: u64, upstream: usize) {
        if let Some(upstream) = self.upstreams.get_mut(upstream) {
            upstream.penalised_until_ms = now_ms + PENALTY_MS;
        }
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

fn refuse<C>(client: C, forward: &Forward, rcode: u16) -> Output<C> {
    Output::Reply { client, message: failure(&forward.query, forward.transport, rcode) }
}

/// Each letter's case is one more bit that a forger must guess.
fn with_random_case(name: &Name, random: Random) -> Name {
    let mut bits = 0;
    let mut left = 0;
    let mut flip = |octet: &u8| {
        if left == 0 {
            (bits, left) = (random(), u64::BITS);
        }
        left -= 1;
        bits >>= 1;
        if bits & 1 == 1 { octet.to_ascii_uppercase() } else { *octet }
    };
    let labels: Vec<Vec<u8>> =
        name.labels().map(|label| label.iter().map(&mut flip).collect()).collect();
    // As long as the name that it was made from, so it fits.
    Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap_or_else(|_| name.clone())
}

/// The client's answer: the cluster's aliases, then what the server said.
fn compose(forward: &Forward, resolved: &Resolved, age_s: u32) -> Vec<u8> {
    let query: &Query = &forward.query;
    let mut writer = Writer::response(query, forward.transport);
    writer.set_rcode(resolved.rcode);
    let mut known = vec![(query.name.clone(), HEADER_OCTETS)];
    let mut owner_at = HEADER_OCTETS;
    let targets = forward.aliases.iter().skip(1).chain([&forward.name]);
    for target in targets.take(forward.aliases.len()) {
        let data: [&[u8]; 1] = [target.wire()];
        let written = writer.record(Section::Answer, owner_at, kind::CNAME, TTL_S, &data);
        let Some(at) = written else { return writer.finish() };
        known.push((target.clone(), at));
        owner_at = at;
    }
    let aged = |record| aged(record, age_s);
    writer.records(Section::Answer, resolved.answers.iter().map(aged), &mut known);
    writer.records(Section::Authority, resolved.authority.iter().map(aged), &mut known);
    writer.finish()
}

fn aged(record: &crate::Record, age_s: u32) -> (&crate::Record, u32) {
    (record, record.ttl_s.saturating_sub(age_s))
}

#[cfg(test)]
mod tests;
