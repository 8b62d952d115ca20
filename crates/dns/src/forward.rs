//! Asks upstream servers: a state machine that the worker drives.
//!
//! An answer is believed when it comes from the server that was asked, to the socket that asked,
//! under the number and for the exact question that were sent, letter case included (RFC 5452;
//! the case of the letters is random). What does not match is passed over and the wait goes on:
//! giving up at the first wrong datagram would hand the decision to whoever forged it.

mod compose;
mod servers;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::answer::Forward;
use crate::cache::{Cache, Lookup, Question, Resolved};
use crate::config::{CacheOptions, Carrier, Config, ForwardRule, RefreshMode, Server};
use crate::message::{CLASS_IN, flag, rcode};
use crate::{Name, Response, parse_response, query};
use compose::{compose, failed, with_random_case};
use servers::{Group, Servers};

pub use servers::Health;

/// How long one server has for one answer, in milliseconds.
pub const ATTEMPT_TIMEOUT_MS: u64 = 1000;
/// Servers asked in turn before the client hears of failure; with [`ATTEMPT_TIMEOUT_MS`] that is
/// before the five seconds after which usual clients give up.
pub const MAX_ATTEMPTS: usize = 4;
/// Questions that wait for upstream servers at one time; each may hold a few sockets.
pub const MAX_PENDING: usize = 512;
/// Of these, those of one client: nobody takes the places of all.
pub const MAX_PENDING_PER_CLIENT: usize = 128;
/// Clients that wait for the answer to one question.
const MAX_CLIENTS_PER_QUESTION: usize = 64;
/// A client that waited so long gets an answer that expired, if there is one, in milliseconds
/// (RFC 8767, 5).
const STALE_AFTER_MS: u64 = 1800;
/// After a failure, an answer that expired is given at once for this long, in milliseconds.
const STALE_AT_ONCE_MS: u64 = 5000;

/// What carries a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A stream, each message behind two octets of length.
    Tcp,
}

/// Where an answer is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A server, just now.
    Upstream(Server),
    /// The cache.
    Cache,
    /// The cache, expired: no server answered.
    Stale,
    /// Nowhere: it says that nobody answered.
    Nobody,
}

/// What the worker shall do. `C` names a client in its terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<C> {
    /// Send a query from a socket of its own, fresh and connected to this server.
    Send {
        /// Names the socket from now on.
        exchange: u64,
        /// The server.
        to: Server,
        /// How to send to a [`Carrier::Plain`] one.
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
        /// Where it is from.
        source: Source,
    },
}

/// Random numbers, fit for secrets.
pub type Random<'a> = &'a mut dyn FnMut() -> u64;

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForwardCounts {
    /// Answers with records from the cache.
    pub cache_hits: u64,
    /// Absences from the cache.
    pub cache_denials: u64,
    /// Questions that the cache did not answer.
    pub cache_misses: u64,
    /// Answers that expired, given because nobody answered.
    pub served_stale: u64,
    /// Questions asked again before their answer expired.
    pub prefetches: u64,
    /// Questions refused since too many waited.
    pub rejected: u64,
    /// Questions for servers of which all are down: they are asked all the same.
    pub all_down: u64,
    /// Octets that came to a socket and were not the answer waited for.
    pub mismatches: u64,
}

/// The questions under way, and the cache of answers.
pub struct Forwarder<C> {
    servers: Servers,
    pending: BTreeMap<u64, Pending<C>>,
    by_question: BTreeMap<Question, u64>,
    by_exchange: BTreeMap<u64, Owner>,
    by_client: BTreeMap<IpAddr, usize>,
    cache: Cache,
    cached_by: CachedBy,
    counts: ForwardCounts,
    last_number: u64,
}

/// What decides which answers are in the cache: under others they may not be right.
#[derive(PartialEq, Eq)]
struct CachedBy {
    rules: Vec<ForwardRule>,
    host: Vec<SocketAddr>,
    options: CacheOptions,
}

impl CachedBy {
    fn new(config: &Config, host: &[SocketAddr]) -> Self {
        Self { rules: config.forward.clone(), host: host.to_vec(), options: config.cache }
    }
}

/// Whose socket it is.
#[derive(Clone, Copy)]
enum Owner {
    Question(u64),
    Probe(u32),
}

/// A client and what it asked.
struct Waiting<C> {
    client: C,
    from: IpAddr,
    forward: Forward,
}

struct Pending<C> {
    question: Question,
    clients: Vec<Waiting<C>>,
    /// Who asked first, and so holds a place; nobody, when it is asked ahead of time.
    on_behalf_of: Option<IpAddr>,
    group: Arc<Group>,
    order: Vec<u32>,
    attempts: Vec<Attempt>,
    made: usize,
    deadline_ms: u64,
    /// An answer that expired, and when waiting clients get it.
    stale: Option<(Arc<Resolved>, u64)>,
    /// A server that does not know EDNS answers FORMERR to it (RFC 6891, 7).
    with_edns: bool,
    last_rcode: u16,
}

/// One query that was sent. Earlier ones stay open until the question is done: a slow answer is
/// as good as a fast one.
struct Attempt {
    exchange: u64,
    upstream: u32,
    transport: Transport,
    id: u16,
    name: Name,
    sent_ms: u64,
}

impl<C: Clone> Forwarder<C> {
    /// A forwarder by the rules of a configuration; `host` are the servers of the host.
    pub fn new(config: &Config, host: &[SocketAddr], random: Random) -> Self {
        let mut servers = Servers::default();
        servers.configure(config, host, &[], random);
        Self {
            servers,
            pending: BTreeMap::new(),
            by_question: BTreeMap::new(),
            by_exchange: BTreeMap::new(),
            by_client: BTreeMap::new(),
            cache: Cache::new(config.cache),
            cached_by: CachedBy::new(config, host),
            counts: ForwardCounts::default(),
            last_number: 0,
        }
    }

    /// Goes on by other rules. Questions under way end with the servers that they began with. The
    /// cache stays unless its own rules or those of forwarding changed: other servers may say other
    /// things.
    pub fn configure(&mut self, config: &Config, host: &[SocketAddr], random: Random) {
        let attempts = self.pending.values().flat_map(|pending| &pending.order);
        let in_use: Vec<u32> = attempts.copied().collect();
        self.servers.configure(config, host, &in_use, random);
        let cached_by = CachedBy::new(config, host);
        if self.cached_by != cached_by {
            self.cache = Cache::new(config.cache);
            self.cached_by = cached_by;
        }
    }

    /// Takes a question on behalf of a client, whose address is `from`. Every call leads to
    /// exactly one reply for it, now or later.
    pub fn ask(
        &mut self,
        now_ms: u64,
        client: C,
        from: IpAddr,
        forward: Forward,
        random: Random,
    ) -> Vec<Output<C>> {
        self.ask_for(now_ms, Waiting { client, from, forward }, random)
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
        if let Some(Owner::Probe(id)) = self.by_exchange.get(&exchange).copied() {
            let answer = parse_response(message);
            if answer.is_some_and(|answer| self.servers.is_probe_answered(id, from, answer.id)) {
                return self.server_is_alive(id);
            }
            return vec![];
        }
        let Some((number, pending, attempt)) = self.find(exchange) else { return vec![] };
        let (upstream, transport) = (attempt.upstream, attempt.transport);
        let server = self.servers.get(upstream).map(|upstream| upstream.server.clone());
        let (Some(server), Some(response)) = (server, parse_response(message)) else {
            self.counts.mismatches += 1;
            return vec![];
        };
        // RFC 5452, 9.1.
        let is_ours = server.address == from
            && response.id == attempt.id
            && response.class == CLASS_IN
            && response.kind == pending.question.kind
            && response.name.is(&attempt.name);
        let same_case = response.name == attempt.name;
        let took_ms = now_ms.saturating_sub(attempt.sent_ms);
        if !is_ours {
            self.counts.mismatches += 1;
            return vec![];
        }
        self.servers.answered(upstream, response.rcode, took_ms);
        // Some servers do not keep the letter case. Nobody forges a TCP connection blindly, so
        // there the answer counts without it.
        if (response.is_truncated() || !same_case) && transport == Transport::Udp {
            let mut outputs = self.close(exchange);
            outputs.extend(self.send(now_ms, number, upstream, Transport::Tcp, random));
            return outputs;
        }
        let mut outputs = self.server_is_alive(upstream);
        outputs.extend(match response.rcode {
            rcode::NO_ERROR | rcode::NAME_ERROR => {
                self.complete(now_ms, number, response, server, random)
            }
            other => self.next_after_rcode(now_ms, number, exchange, other, random),
        });
        outputs
    }

    /// The socket of an exchange failed, such as by a port that is not open there.
    pub fn fail(&mut self, now_ms: u64, exchange: u64, random: Random) -> Vec<Output<C>> {
        if let Some(Owner::Probe(id)) = self.by_exchange.get(&exchange).copied() {
            self.servers.probe_failed(id, now_ms);
            return self.close(exchange);
        }
        let Some((number, pending, attempt)) = self.find(exchange) else { return vec![] };
        let upstream = attempt.upstream;
        let is_last = pending.attempts.last().is_some_and(|last| last.exchange == exchange);
        let mut outputs = self.close(exchange);
        self.servers.suspect(upstream, now_ms);
        if is_last {
            outputs.extend(self.next_attempt(now_ms, number, random));
        }
        outputs
    }

    /// Goes on with every question whose server had its time, and with probes of servers.
    pub fn tick(&mut self, now_ms: u64, random: Random) -> Vec<Output<C>> {
        let mut outputs = self.serve_stale(now_ms, random);
        let due: Vec<(u64, Option<u32>)> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.deadline_ms <= now_ms)
            .map(|(number, pending)| (*number, pending.attempts.last().map(|last| last.upstream)))
            .collect();
        for (number, upstream) in due {
            if let Some(upstream) = upstream {
                self.servers.suspect(upstream, now_ms);
            }
            outputs.extend(self.next_attempt(now_ms, number, random));
        }
        for (_, exchange) in self.servers.late_probes(now_ms) {
            outputs.extend(self.fail(now_ms, exchange, random));
        }
        let Self { servers, by_exchange, last_number, .. } = self;
        let probes = servers.probes(now_ms, random, |server| {
            *last_number += 1;
            by_exchange.insert(*last_number, Owner::Probe(server));
            *last_number
        });
        outputs.extend(probes.into_iter().map(|probe| Output::Send {
            exchange: probe.exchange,
            to: probe.server,
            transport: Transport::Udp,
            message: probe.message,
        }));
        outputs
    }

    /// When [`Forwarder::tick`] has something to do, if nothing comes before.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let pending = self.pending.values().map(|pending| {
            let stale_ms = pending.stale.as_ref().filter(|_| !pending.clients.is_empty());
            stale_ms.map_or(pending.deadline_ms, |(_, at_ms)| pending.deadline_ms.min(*at_ms))
        });
        pending.min().into_iter().chain(self.servers.next_deadline_ms()).min()
    }

    /// Says whether a question is one that this forwarder itself sent to a server: the server that
    /// brought it back to us is not asked any more.
    pub fn is_own_probe(&mut self, name: &Name) -> Option<String> {
        self.servers.is_own_probe(name)
    }

    /// What is kept of a question, and who is asked, in words.
    pub(crate) fn explain(&self, name: &Name, kind: u16, now_ms: u64) -> Vec<String> {
        let name = name.to_lower();
        let question =
            Question { name: name.clone(), kind, dnssec_ok: false, checking_disabled: false };
        let kept = match self.cache.peek(&question, now_ms) {
            None => format!("cache: nothing for {name}"),
            Some(0) => format!("cache: an answer for {name} that expired, if nobody has another"),
            Some(left_s) => format!("cache: an answer for {name} for {left_s} s more"),
        };
        vec![kept, self.servers.explain(&name)]
    }

    /// What happened so far.
    pub fn counts(&self) -> ForwardCounts {
        self.counts
    }

    /// The health of the servers.
    pub fn health(&self) -> Vec<Health> {
        self.servers.health()
    }

    /// Entries of the cache: with records, and absences.
    pub fn cache_entries(&self) -> (usize, usize) {
        self.cache.entries()
    }

    /// Entries of the cache that went for others: with records, and absences.
    pub fn cache_evictions(&self) -> (u64, u64) {
        self.cache.evictions()
    }

    /// Questions that wait.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    fn ask_for(&mut self, now_ms: u64, waiting: Waiting<C>, random: Random) -> Vec<Output<C>> {
        let question = question_of(&waiting.forward);
        let (stale, at_once) = match self.cache.get(&question, now_ms) {
            Lookup::Fresh { resolved, age_s, is_worth_asking } => {
                let counts = &mut self.counts;
                let hits = match resolved.is_found {
                    true => &mut counts.cache_hits,
                    false => &mut counts.cache_denials,
                };
                *hits += 1;
                let mut outputs =
                    self.reply(now_ms, waiting, &resolved, age_s, Source::Cache, random);
                if is_worth_asking {
                    outputs.extend(self.ask_ahead(now_ms, question, None, random));
                }
                return outputs;
            }
            Lookup::Stale(resolved) => {
                let mode = self.cache.options().serve_stale.refresh_mode;
                let failed = self.cache.has_failed(&question, now_ms, STALE_AT_ONCE_MS);
                (Some(resolved), mode == RefreshMode::Immediate || failed)
            }
            Lookup::Nothing => (None, false),
        };
        self.counts.cache_misses += 1;
        if let (Some(resolved), true) = (&stale, at_once) {
            self.counts.served_stale += 1;
            let resolved = resolved.clone();
            let mut outputs =
                self.reply(now_ms, waiting, &resolved, u32::MAX, Source::Stale, random);
            outputs.extend(self.ask_ahead(now_ms, question, Some(resolved), random));
            return outputs;
        }
        if let Some(number) = self.by_question.get(&question)
            && let Some(pending) = self.pending.get_mut(number)
        {
            if pending.clients.len() >= MAX_CLIENTS_PER_QUESTION {
                self.counts.rejected += 1;
                return vec![failed(waiting.client, waiting.forward, rcode::SERVER_FAILURE)];
            }
            pending.clients.push(waiting);
            return vec![];
        }
        match self.begin(now_ms, question, Some(waiting.from), stale, random) {
            Ok(number) => {
                if let Some(pending) = self.pending.get_mut(&number) {
                    pending.clients.push(waiting);
                }
                self.next_attempt(now_ms, number, random)
            }
            Err(rcode) => vec![failed(waiting.client, waiting.forward, rcode)],
        }
    }

    /// Asks for what nobody waits for yet.
    fn ask_ahead(
        &mut self,
        now_ms: u64,
        question: Question,
        stale: Option<Arc<Resolved>>,
        random: Random,
    ) -> Vec<Output<C>> {
        if self.by_question.contains_key(&question) {
            return vec![];
        }
        self.counts.prefetches += 1;
        match self.begin(now_ms, question, None, stale, random) {
            Ok(number) => self.next_attempt(now_ms, number, random),
            Err(_) => vec![],
        }
    }

    /// Makes room for a question.
    fn begin(
        &mut self,
        now_ms: u64,
        question: Question,
        on_behalf_of: Option<IpAddr>,
        stale: Option<Arc<Resolved>>,
        random: Random,
    ) -> Result<u64, u16> {
        let Some(group) = self.servers.group_of(&question.name) else {
            return Err(rcode::REFUSED);
        };
        let order = self.servers.order(&group, random);
        if order.is_empty() {
            return Err(rcode::SERVER_FAILURE);
        }
        let of_group =
            || self.pending.values().filter(|pending| Arc::ptr_eq(&pending.group, &group)).count();
        let held = on_behalf_of.and_then(|from| self.by_client.get(&from)).copied();
        if self.pending.len() >= MAX_PENDING
            || held.unwrap_or(0) >= MAX_PENDING_PER_CLIENT
            || (group.max_concurrent > 0 && of_group() >= group.max_concurrent)
        {
            self.counts.rejected += 1;
            return Err(rcode::SERVER_FAILURE);
        }
        self.counts.all_down += u64::from(self.servers.are_down(&order));
        if let Some(from) = on_behalf_of {
            *self.by_client.entry(from).or_default() += 1;
        }
        let number = self.next_number();
        self.by_question.insert(question.clone(), number);
        let pending = Pending {
            question,
            clients: vec![],
            on_behalf_of,
            group,
            order,
            attempts: vec![],
            made: 0,
            deadline_ms: now_ms,
            stale: stale.map(|stale| (stale, now_ms + STALE_AFTER_MS)),
            with_edns: true,
            last_rcode: rcode::SERVER_FAILURE,
        };
        self.pending.insert(number, pending);
        Ok(number)
    }

    fn next_attempt(&mut self, now_ms: u64, number: u64, random: Random) -> Vec<Output<C>> {
        let Some(pending) = self.pending.get_mut(&number) else { return vec![] };
        let turn = pending.made % pending.order.len().max(1);
        let Some(upstream) =
            pending.order.get(turn).copied().filter(|_| pending.made < MAX_ATTEMPTS)
        else {
            return self.give_up(now_ms, number, random);
        };
        pending.made += 1;
        let transport = if pending.group.force_tcp { Transport::Tcp } else { Transport::Udp };
        self.send(now_ms, number, upstream, transport, random)
    }

    fn send(
        &mut self,
        now_ms: u64,
        number: u64,
        upstream: u32,
        transport: Transport,
        random: Random,
    ) -> Vec<Output<C>> {
        let exchange = self.next_number();
        let (Some(pending), Some(server)) =
            (self.pending.get_mut(&number), self.servers.get(upstream))
        else {
            return vec![];
        };
        let to = server.server.clone();
        // Within TLS nobody forges, as over TCP.
        let transport = if to.carrier == Carrier::Plain { transport } else { Transport::Tcp };
        let id = random() as u16;
        let name = with_random_case(&pending.question.name, random);
        let question = &pending.question;
        let mut message = query(id, &name, question.kind, pending.with_edns);
        compose::ask_for_dnssec(&mut message, question, pending.with_edns);
        pending.attempts.push(Attempt { exchange, upstream, transport, id, name, sent_ms: now_ms });
        pending.deadline_ms = now_ms + ATTEMPT_TIMEOUT_MS;
        self.by_exchange.insert(exchange, Owner::Question(number));
        vec![Output::Send { exchange, to, transport, message }]
    }

    fn next_after_rcode(
        &mut self,
        now_ms: u64,
        number: u64,
        exchange: u64,
        rcode: u16,
        random: Random,
    ) -> Vec<Output<C>> {
        let mut outputs = self.close(exchange);
        if let Some(pending) = self.pending.get_mut(&number) {
            pending.last_rcode = rcode;
            if matches!(rcode, rcode::FORMAT_ERROR | rcode::NOT_IMPLEMENTED) && pending.with_edns {
                // The same server again, as it wants to be asked.
                pending.with_edns = false;
                pending.made =
                    pending.made.saturating_sub(usize::from(pending.made < MAX_ATTEMPTS));
            }
        }
        outputs.extend(self.next_attempt(now_ms, number, random));
        outputs
    }

    fn complete(
        &mut self,
        now_ms: u64,
        number: u64,
        response: Response,
        server: Server,
        random: Random,
    ) -> Vec<Output<C>> {
        let Some((pending, mut outputs)) = self.take(number) else { return vec![] };
        let options = self.cache.options();
        let resolved = Arc::new(Resolved::from_response(response, &pending.question, options));
        self.cache.put(pending.question, resolved.clone(), now_ms);
        for waiting in pending.clients {
            let source = Source::Upstream(server.clone());
            outputs.extend(self.reply(now_ms, waiting, &resolved, 0, source, random));
        }
        outputs
    }

    /// Answers one client, or asks for the next name of its search path.
    fn reply(
        &mut self,
        now_ms: u64,
        mut waiting: Waiting<C>,
        resolved: &Resolved,
        age_s: u32,
        source: Source,
        random: Random,
    ) -> Vec<Output<C>> {
        let is_absent = resolved.rcode == rcode::NAME_ERROR;
        if is_absent && !waiting.forward.more.is_empty() {
            waiting.forward.name = waiting.forward.more.remove(0);
            return self.ask_for(now_ms, waiting, random);
        }
        let message = match waiting.forward.otherwise.take().filter(|_| is_absent) {
            Some(otherwise) => otherwise,
            None => compose(&waiting.forward, resolved, age_s),
        };
        vec![Output::Reply { client: waiting.client, message, source }]
    }

    fn give_up(&mut self, now_ms: u64, number: u64, random: Random) -> Vec<Output<C>> {
        let Some((pending, mut outputs)) = self.take(number) else { return vec![] };
        // What a server said of our way to ask is not for the client to hear.
        let rcode = match pending.last_rcode {
            rcode::REFUSED => rcode::REFUSED,
            _ => rcode::SERVER_FAILURE,
        };
        if let Some((stale, _)) = pending.stale {
            self.cache.failed(&pending.question, now_ms);
            outputs.extend(self.reply_stale(now_ms, pending.clients, &stale, random));
        } else {
            let replies = pending.clients.into_iter();
            outputs.extend(replies.map(|one| failed(one.client, one.forward, rcode)));
        }
        outputs
    }

    /// Clients that waited long get what expired; the question goes on without them.
    fn serve_stale(&mut self, now_ms: u64, random: Random) -> Vec<Output<C>> {
        let mut served = Vec::new();
        for pending in self.pending.values_mut() {
            if let Some((stale, at_ms)) = &pending.stale
                && *at_ms <= now_ms
                && !pending.clients.is_empty()
            {
                served.push((
                    pending.question.clone(),
                    std::mem::take(&mut pending.clients),
                    stale.clone(),
                ));
            }
        }
        let mut outputs = Vec::new();
        for (question, clients, stale) in served {
            self.cache.failed(&question, now_ms);
            outputs.extend(self.reply_stale(now_ms, clients, &stale, random));
        }
        outputs
    }

    fn reply_stale(
        &mut self,
        now_ms: u64,
        clients: Vec<Waiting<C>>,
        stale: &Resolved,
        random: Random,
    ) -> Vec<Output<C>> {
        let mut outputs = Vec::new();
        for waiting in clients {
            self.counts.served_stale += 1;
            outputs.extend(self.reply(now_ms, waiting, stale, u32::MAX, Source::Stale, random));
        }
        outputs
    }

    /// Removes a question and closes its sockets.
    fn take(&mut self, number: u64) -> Option<(Pending<C>, Vec<Output<C>>)> {
        let pending = self.pending.remove(&number)?;
        self.by_question.remove(&pending.question);
        if let Some(from) = pending.on_behalf_of
            && let Some(held) = self.by_client.get_mut(&from)
        {
            *held = held.saturating_sub(1);
            if *held == 0 {
                self.by_client.remove(&from);
            }
        }
        let exchanges = pending.attempts.iter().map(|attempt| attempt.exchange);
        let closed = exchanges.filter(|exchange| self.by_exchange.remove(exchange).is_some());
        let outputs = closed.map(|exchange| Output::Close { exchange }).collect();
        Some((pending, outputs))
    }

    fn close(&mut self, exchange: u64) -> Vec<Output<C>> {
        match self.by_exchange.remove(&exchange) {
            Some(_) => vec![Output::Close { exchange }],
            None => vec![],
        }
    }

    fn server_is_alive(&mut self, server: u32) -> Vec<Output<C>> {
        match self.servers.is_alive(server) {
            Some(probe) => self.close(probe),
            None => vec![],
        }
    }

    fn find(&self, exchange: u64) -> Option<(u64, &Pending<C>, &Attempt)> {
        let Owner::Question(number) = *self.by_exchange.get(&exchange)? else { return None };
        let pending = self.pending.get(&number)?;
        let attempt = pending.attempts.iter().find(|attempt| attempt.exchange == exchange)?;
        Some((number, pending, attempt))
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

fn question_of(forward: &Forward) -> Question {
    let query = &forward.query;
    Question {
        name: forward.name.to_lower(),
        kind: query.kind,
        dnssec_ok: query.edns.is_some_and(|edns| edns.dnssec_ok),
        checking_disabled: query.flags & flag::CHECKING_DISABLED != 0,
    }
}

#[cfg(test)]
mod tests;
