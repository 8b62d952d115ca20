//! One thread of the DNS server, as a state machine: limits, rules, the cluster's zone, other
//! servers, in the order that `docs/dns.md` gives.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::answer::{Forward, failure};
use crate::config::{AclAction, Config, LogClass};
use crate::forward::{Output, Random, Source};
use crate::limits::Limits;
use crate::message::{CLASS_IN, Edns, HEADER_OCTETS, Query, flag, kind, rcode, rcode_name, u16_at};
use crate::rules::{access, is_client, reverse_name, rewritten, synthesised};
use crate::stats::{Answered, Snapshot, Stats};
use crate::template;
use crate::writer::{Section, Writer};
use crate::{Action, Client, Forwarder, Index, Name, Rules, Transport, answer, parse_response};

/// Lines of the log that wait to be written; further ones are left out.
const MAX_LOG_LINES: usize = 1024;

/// Who waits for an answer, in the worker's terms and in ours.
#[derive(Clone, Debug)]
pub struct Asker<C> {
    client: C,
    from: Client,
    asked_us: u64,
    query: Query,
    question_octets: usize,
    /// For DNS64: the question for IPv6 addresses, and what was answered to it.
    synthesis: Option<Box<Synthesis>>,
}

#[derive(Clone, Debug)]
struct Synthesis {
    forward: Forward,
    /// `None` until it was answered.
    plain: Option<Vec<u8>>,
}

/// A question that came.
pub struct Incoming<'a, C> {
    /// Who waits for the answer, in the worker's terms.
    pub client: C,
    /// Who asks.
    pub from: Client,
    /// The octets that came.
    pub message: &'a [u8],
}

/// What to do with a question now.
#[derive(Debug)]
pub enum Handled<C> {
    /// Send what was written into the buffer.
    Reply,
    /// Nothing.
    Drop,
    /// What the forwarder wants.
    Wait(Vec<Output<C>>),
}

/// One thread of the server.
pub struct Server<C> {
    config: Arc<Config>,
    rules: Rules,
    has_rules: bool,
    reverse_hosts: BTreeMap<Name, Vec<Name>>,
    forwarder: Forwarder<Asker<C>>,
    limits: Limits,
    stats: Stats,
    log: Vec<String>,
}

impl<C: Clone> Server<C> {
    /// A server by a configuration; `host` are the servers of the host, and `rules` what the
    /// cluster's zone needs to know beside it.
    pub fn new(config: Arc<Config>, rules: Rules, host: &[SocketAddr], random: Random) -> Self {
        let mut server = Self {
            forwarder: Forwarder::new(&config, host, random),
            limits: Limits::new(config.rate_limit),
            config: config.clone(),
            rules: rules.clone(),
            has_rules: false,
            reverse_hosts: BTreeMap::new(),
            stats: Stats::default(),
            log: vec![],
        };
        server.take(config, rules);
        server
    }

    /// Goes on by another configuration. Questions under way are answered.
    pub fn configure(
        &mut self,
        config: Arc<Config>,
        rules: Rules,
        host: &[SocketAddr],
        random: Random,
    ) {
        self.forwarder.configure(&config, host, random);
        self.limits.configure(config.rate_limit);
        self.take(config, rules);
    }

    fn take(&mut self, config: Arc<Config>, mut rules: Rules) {
        rules.ttl_s = config.kubernetes.ttl.seconds();
        rules.search_path &= config.autopath;
        rules.pods = config.kubernetes.pods.or(rules.pods);
        self.reverse_hosts.clear();
        for (name, addresses) in &config.hosts.entries {
            for reverse in addresses.iter().filter_map(|address| reverse_name(*address)) {
                self.reverse_hosts.entry(reverse).or_default().push(name.name().clone());
            }
        }
        self.has_rules = !config.acl.is_empty()
            || !config.rewrite.is_empty()
            || !config.hosts.entries.is_empty()
            || !config.template.is_empty()
            || config.dns64.is_some()
            || !config.kubernetes.fallthrough.is_empty()
            || config.log != LogClass::None;
        (self.config, self.rules) = (config, rules);
    }

    /// What the cluster's zone is answered by.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether who asks is answered at all.
    pub(crate) fn answers(&self, client: Client, index: Option<&Index>) -> bool {
        is_client(&self.config.clients, &self.rules.own_addresses, index, client.address)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn forwarder(&self) -> &Forwarder<Asker<C>> {
        &self.forwarder
    }

    /// Takes one question. What is answered at once is written into `reply`.
    pub fn question(
        &mut self,
        now_us: u64,
        incoming: Incoming<'_, C>,
        index: Option<&Index>,
        reply: &mut Vec<u8>,
        random: Random,
    ) -> Handled<C> {
        let Incoming { client, from, message } = incoming;
        if !self.limits.allows(from.address, now_us) {
            self.stats.limited += 1;
            return Handled::Drop;
        }
        if !self.answers(from, index)
            && let Ok(query) = Query::parse(message)
        {
            *self.stats.acl.entry("block").or_default() += 1;
            *reply = failure(&query, from.transport, rcode::REFUSED);
            self.count(from, message, reply, "acl");
            return Handled::Reply;
        }
        let is_hinfo = Question::of(message).is_some_and(|question| question.kind == kind::HINFO);
        // A copy of the question only for who needs one.
        let query = (self.has_rules || is_hinfo).then(|| Query::parse(message).ok()).flatten();
        let (action, plugin) = match query.filter(|query| query.class == CLASS_IN) {
            Some(query) => self.by_rules(query, from, message, index, reply),
            None => (answer(message, index, &self.rules, from, reply), "kubernetes"),
        };
        match action {
            Action::Reply => {
                self.count(from, message, reply, plugin);
                Handled::Reply
            }
            Action::Drop => Handled::Drop,
            Action::Forward(forward) => {
                let query = forward.query.clone();
                let is_aaaa = query.kind == kind::AAAA && !wants_dnssec(&query);
                let synthesis = (self.config.dns64.is_some() && is_aaaa)
                    .then(|| Box::new(Synthesis { forward: (*forward).clone(), plain: None }));
                let question_octets = message.len();
                let asker =
                    Asker { client, from, asked_us: now_us, query, question_octets, synthesis };
                let outputs =
                    self.forwarder.ask(now_us / 1000, asker, from.address, *forward, random);
                Handled::Wait(self.carry(now_us, outputs, random))
            }
        }
    }

    /// Takes what came to the socket of an exchange.
    pub fn receive(
        &mut self,
        now_us: u64,
        exchange: u64,
        from: SocketAddr,
        message: &[u8],
        random: Random,
    ) -> Vec<Output<C>> {
        let outputs = self.forwarder.receive(now_us / 1000, exchange, from, message, random);
        self.carry(now_us, outputs, random)
    }

    /// The socket of an exchange failed.
    pub fn fail(&mut self, now_us: u64, exchange: u64, random: Random) -> Vec<Output<C>> {
        let outputs = self.forwarder.fail(now_us / 1000, exchange, random);
        self.carry(now_us, outputs, random)
    }

    /// Goes on with whatever had its time.
    pub fn tick(&mut self, now_us: u64, random: Random) -> Vec<Output<C>> {
        let outputs = self.forwarder.tick(now_us / 1000, random);
        self.carry(now_us, outputs, random)
    }

    /// When [`Server::tick`] has something to do, in milliseconds.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.forwarder.next_deadline_ms()
    }

    /// Questions that wait for other servers.
    pub fn pending(&self) -> usize {
        self.forwarder.pending()
    }

    /// Lines for the log since the last call.
    pub fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    /// What this thread knows.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            stats: self.stats.clone(),
            forward: self.forwarder.counts(),
            cache_entries: self.forwarder.cache_entries(),
            cache_evictions: self.forwarder.cache_evictions(),
            plugins: self.config.plugins(),
            health: self.forwarder.health(),
            clients: self.limits.clients().collect(),
        }
    }

    fn by_rules(
        &mut self,
        query: Query,
        from: Client,
        message: &[u8],
        index: Option<&Index>,
        reply: &mut Vec<u8>,
    ) -> (Action, &'static str) {
        if query.kind == kind::HINFO
            && let Some(server) = self.forwarder.is_own_probe(&query.name)
        {
            self.note(format!(
                "the DNS server {server} sends questions back to this one and is not asked any \
                 more: take this server's own address out of its configuration, or of the host's \
                 /etc/resolv.conf"
            ));
            *reply = failure(&query, from.transport, rcode::REFUSED);
            return (Action::Reply, "loop");
        }
        let config = self.config.clone();
        // The rules of access hold for the name that was asked for and for the name that it stands
        // for: no rewrite leads around them.
        let new = rewritten(&config.rewrite, &query.name);
        let name = new.clone().unwrap_or_else(|| query.name.clone());
        for asked in [Some(&query.name), new.as_ref()].into_iter().flatten() {
            if let Some(action) = self.refuse_by_acl(&query, asked, from, reply) {
                return (action, "acl");
            }
        }
        if self.answer_from_hosts(&query, &name, from, reply) {
            return (Action::Reply, "hosts");
        }
        if self.answer_from_templates(&query, &name, from, reply) {
            return (Action::Reply, "template");
        }
        let mut action = match &new {
            None => answer(message, index, &self.rules, from, reply),
            Some(new) => {
                let asked = renamed(&query, new);
                answer(&asked, index, &self.rules, from, reply)
            }
        };
        let falls_through = action == Action::Reply
            && config.kubernetes.fallthrough.iter().any(|zone| zone.holds(&name))
            && u16_at(reply, 2).is_some_and(|flags| flags & flag::RCODE == rcode::NAME_ERROR);
        if falls_through {
            let (query, transport) = (query.clone(), from.transport);
            let (aliases, more, otherwise) = (vec![], vec![], None);
            let forward = Forward { query, transport, aliases, name, more, otherwise };
            return (Action::Forward(Box::new(forward)), "forward");
        }
        match &mut action {
            Action::Forward(forward) if new.is_some() => forward.query = query,
            Action::Reply if new.is_some() => *reply = named_back(&query, &name, from, reply),
            _ => {}
        }
        (action, "kubernetes")
    }

    fn refuse_by_acl(
        &mut self,
        query: &Query,
        name: &Name,
        from: Client,
        reply: &mut Vec<u8>,
    ) -> Option<Action> {
        if self.config.acl.is_empty() {
            return None;
        }
        let action = access(&self.config.acl, from.address, name, query.kind);
        let label = match action {
            AclAction::Allow => "allow",
            AclAction::Block => "block",
            AclAction::Filter => "filter",
            AclAction::Drop => "drop",
        };
        *self.stats.acl.entry(label).or_default() += 1;
        let rcode = match action {
            AclAction::Allow => return None,
            AclAction::Drop => return Some(Action::Drop),
            AclAction::Block => rcode::REFUSED,
            AclAction::Filter => rcode::NO_ERROR,
        };
        *reply = failure(query, from.transport, rcode);
        Some(Action::Reply)
    }

    pub(crate) fn answer_from_hosts(
        &self,
        query: &Query,
        name: &Name,
        from: Client,
        reply: &mut Vec<u8>,
    ) -> bool {
        let hosts = &self.config.hosts;
        let lower = name.to_lower();
        let mut writer = Writer::response(query, from.transport);
        writer.set_flag(flag::AUTHORITATIVE);
        let ttl_s = hosts.ttl.seconds();
        if let Some(names) = self.reverse_hosts.get(&lower).filter(|_| query.kind == kind::PTR) {
            for name in names {
                writer.record(Section::Answer, HEADER_OCTETS, kind::PTR, ttl_s, &[name.wire()]);
            }
            *reply = writer.finish();
            return true;
        }
        let entry = hosts.entries.iter().find(|(host, _)| *host.name() == lower);
        let Some((_, addresses)) = entry else { return false };
        for address in addresses {
            let owner = HEADER_OCTETS;
            match (query.kind, address) {
                (kind::A, IpAddr::V4(v4)) => {
                    writer.record(Section::Answer, owner, kind::A, ttl_s, &[&v4.octets()]);
                }
                (kind::AAAA, IpAddr::V6(v6)) => {
                    writer.record(Section::Answer, owner, kind::AAAA, ttl_s, &[&v6.octets()]);
                }
                _ => {}
            }
        }
        *reply = writer.finish();
        true
    }

    fn answer_from_templates(
        &mut self,
        query: &Query,
        name: &Name,
        from: Client,
        reply: &mut Vec<u8>,
    ) -> bool {
        let config = self.config.clone();
        let made =
            config.template.iter().find_map(|one| Some((one, template::make(one, query, name)?)));
        let Some((template, records)) = made else { return false };
        self.stats.templated(query.kind);
        let mut writer = Writer::response(query, from.transport);
        writer.set_flag(flag::AUTHORITATIVE);
        match records {
            Ok(records) => {
                writer.set_rcode(template.rcode.0);
                for (owner, kind, ttl_s, data) in records {
                    if owner.is(name) {
                        writer.record(Section::Answer, HEADER_OCTETS, kind, ttl_s, &[&data]);
                    } else {
                        writer.record_named(Section::Answer, &owner, kind, ttl_s, &[&data]);
                    }
                }
            }
            Err(()) => {
                writer.set_rcode(rcode::SERVER_FAILURE);
                self.note(format!("a template makes no record that DNS can carry for {name}"));
            }
        }
        *reply = writer.finish();
        true
    }

    /// Replies of the forwarder become replies to clients, or the second question of DNS64.
    fn carry(
        &mut self,
        now_us: u64,
        outputs: Vec<Output<Asker<C>>>,
        random: Random,
    ) -> Vec<Output<C>> {
        let mut carried = Vec::with_capacity(outputs.len());
        // Each reply leads to one more question at most, and that one to none.
        let mut waiting = std::collections::VecDeque::from(outputs);
        while let Some(output) = waiting.pop_front() {
            match output {
                Output::Send { exchange, to, transport, message } => {
                    carried.push(Output::Send { exchange, to, transport, message });
                }
                Output::Close { exchange } => carried.push(Output::Close { exchange }),
                Output::Reply { mut client, message, source } => {
                    if let Some(forward) = self.ask_for_ipv4(&mut client, &message) {
                        let from = client.from.address;
                        waiting.extend(self.forwarder.ask(
                            now_us / 1000,
                            client,
                            from,
                            forward,
                            random,
                        ));
                        continue;
                    }
                    let message = self.with_synthesis(&mut client, message);
                    self.count_forwarded(now_us, &client, &message, &source);
                    carried.push(Output::Reply { client: client.client, message, source });
                }
            }
        }
        carried
    }

    /// RFC 6147, 5.1: a name without IPv6 addresses is asked for its IPv4 addresses.
    fn ask_for_ipv4(&self, asker: &mut Asker<C>, message: &[u8]) -> Option<Forward> {
        let dns64 = self.config.dns64?;
        let synthesis = asker.synthesis.as_mut().filter(|synthesis| synthesis.plain.is_none())?;
        let response = parse_response(message)?;
        let mapped = |data: &[u8]| data.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        let has_own = response
            .answers
            .iter()
            .any(|record| record.kind == kind::AAAA && !mapped(&record.data));
        if response.rcode != rcode::NO_ERROR || (has_own && !dns64.translate_all) {
            asker.synthesis = None;
            return None;
        }
        synthesis.plain = Some(message.to_vec());
        let mut forward = synthesis.forward.clone();
        forward.query.kind = kind::A;
        Some(forward)
    }

    fn with_synthesis(&mut self, asker: &mut Asker<C>, message: Vec<u8>) -> Vec<u8> {
        let synthesis = asker.synthesis.take();
        let (Some(dns64), Some(plain)) =
            (self.config.dns64, synthesis.and_then(|synthesis| synthesis.plain))
        else {
            return message;
        };
        let Some(response) = parse_response(&message) else { return plain };
        if !response.answers.iter().any(|record| record.kind == kind::A) {
            return plain;
        }
        self.stats.synthesised += 1;
        let mut writer = Writer::response(&asker.query, asker.from.transport);
        let mut known = vec![(asker.query.name.clone(), HEADER_OCTETS)];
        let mut records = response.answers;
        for record in &mut records {
            if let (kind::A, Ok(octets)) =
                (record.kind, <[u8; 4]>::try_from(record.data.as_slice()))
            {
                record.kind = kind::AAAA;
                record.data = synthesised(&dns64, octets.into()).octets().to_vec();
            }
        }
        let records = records.iter().map(|record| (record, record.ttl_s));
        writer.records(Section::Answer, records, &mut known);
        writer.finish()
    }

    fn count_forwarded(&mut self, now_us: u64, asker: &Asker<C>, reply: &[u8], source: &Source) {
        let plugin = match source {
            Source::Cache | Source::Stale => "cache",
            Source::Upstream(_) | Source::Nobody => "forward",
        };
        let latency_us = now_us.saturating_sub(asker.asked_us);
        let rcode = u16_at(reply, 2).unwrap_or_default() & flag::RCODE;
        if rcode == rcode::SERVER_FAILURE && self.config.errors {
            let (name, kind) = (&asker.query.name, crate::message::kind_name(asker.query.kind));
            self.note(format!("no server answered {kind} {name} of {}", asker.from.address));
        }
        self.count_answer(
            asker.from,
            &Answered {
                name: asker.query.name.wire(),
                kind: asker.query.kind,
                rcode,
                transport: asker.from.transport,
                is_v4: asker.from.address.is_ipv4(),
                dnssec_ok: wants_dnssec(&asker.query),
                plugin,
                latency_us,
                question_octets: asker.question_octets,
                answer_octets: reply.len(),
            },
        );
    }

    /// Counts what was answered at once, as having taken no time: a clock that is read for each
    /// answer would cost as much as the answer.
    fn count(&mut self, from: Client, message: &[u8], reply: &[u8], plugin: &'static str) {
        let question = Question::of(message);
        // Beside the question there is seldom more than an OPT record.
        let dnssec_ok = question.as_ref().is_some_and(|question| {
            let flags = u16_at(message, question.end + 7).unwrap_or_default();
            let is_edns = message.get(question.end..question.end + 3) == Some(&[0, 0, 41]);
            is_edns && flags & 0x8000 != 0
        });
        let question = question.unwrap_or(Question::NONE);
        self.count_answer(
            from,
            &Answered {
                name: question.name,
                kind: question.kind,
                rcode: u16_at(reply, 2).unwrap_or_default() & flag::RCODE,
                transport: from.transport,
                is_v4: from.address.is_ipv4(),
                dnssec_ok,
                plugin,
                latency_us: 0,
                question_octets: message.len(),
                answer_octets: reply.len(),
            },
        );
    }

    fn count_answer(&mut self, from: Client, answered: &Answered<'_>) {
        self.stats.answered(answered);
        let Answered { name, kind, rcode, plugin, latency_us, .. } = *answered;
        if !matches!(rcode, rcode::NO_ERROR | rcode::NAME_ERROR) {
            self.limits.failed(from.address);
        }
        let is_wanted = match self.config.log {
            LogClass::None => false,
            LogClass::Error => !matches!(rcode, rcode::NO_ERROR | rcode::NAME_ERROR),
            LogClass::Denial => rcode == rcode::NAME_ERROR,
            LogClass::All => true,
        };
        if is_wanted {
            let name = Name::read(name, 0).map(|(name, _)| name.to_string());
            let proto = if from.transport == Transport::Udp { "udp" } else { "tcp" };
            self.note(format!(
                "{} \"{} IN {} {proto}\" {} {plugin} {:.6}s",
                from.address,
                crate::message::kind_name(kind),
                name.unwrap_or_default(),
                rcode_name(rcode),
                latency_us as f64 / 1e6,
            ));
        }
    }

    fn note(&mut self, line: String) {
        if self.log.len() < MAX_LOG_LINES {
            self.log.push(line);
        }
    }
}

/// Where name and type of a question stand.
struct Question<'a> {
    name: &'a [u8],
    kind: u16,
    end: usize,
}

impl<'a> Question<'a> {
    const NONE: Question<'static> = Question { name: &[0], kind: 0, end: 0 };

    /// Without a copy of the name: this is done for every question.
    fn of(message: &'a [u8]) -> Option<Self> {
        let mut at = HEADER_OCTETS;
        loop {
            let length = usize::from(*message.get(at)?);
            if length == 0 {
                break;
            }
            if length > 63 {
                return None;
            }
            at += length + 1;
        }
        let name = message.get(HEADER_OCTETS..=at)?;
        Some(Self { name, kind: u16_at(message, at + 1)?, end: at + 5 })
    }
}

fn wants_dnssec(query: &Query) -> bool {
    query.edns.is_some_and(|edns: Edns| edns.dnssec_ok)
}

/// The same question for another name.
fn renamed(query: &Query, name: &Name) -> Vec<u8> {
    let mut message = crate::query(query.id, name, query.kind, query.edns.is_some());
    let flags = query.flags.to_be_bytes();
    if let Some(place) = message.get_mut(2..4) {
        place.copy_from_slice(&flags);
    }
    message
}

/// An answer about the name that a name stands for, as one about that name.
fn named_back(query: &Query, name: &Name, from: Client, reply: &[u8]) -> Vec<u8> {
    let Some(response) = parse_response(reply) else {
        return failure(query, from.transport, rcode::SERVER_FAILURE);
    };
    let mut writer = Writer::response(query, from.transport);
    writer.set_rcode(response.rcode);
    writer.set_flag(response.flags & flag::AUTHORITATIVE);
    let mut known = vec![(query.name.clone(), HEADER_OCTETS), (name.clone(), HEADER_OCTETS)];
    let aged = |record| -> (&crate::Record, u32) {
        let record: &crate::Record = record;
        (record, record.ttl_s)
    };
    writer.records(Section::Answer, response.answers.iter().map(aged), &mut known);
    writer.records(Section::Authority, response.authority.iter().map(aged), &mut known);
    writer.finish()
}

#[cfg(test)]
mod tests;
