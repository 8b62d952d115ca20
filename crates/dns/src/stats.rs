//! What a DNS server counts, and how it is told: in the metrics' names of CoreDNS, and as a table
//! of the names and clients that ask most.

mod histogram;
mod metrics;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::limits::ClientCounts;
use crate::search::Buffer;
use crate::{ForwardCounts, Health, Name, Transport};

pub(crate) use histogram::{Latency, Octets};

/// Names that are counted; further ones take the place of the rarest.
const MAX_NAMES: usize = 256;
/// Of busy servers, one question in so many is looked at for its name.
const NAME_SAMPLE: u64 = 16;
/// Questions from which on a server is busy.
const BUSY_AFTER: u64 = 10_000;
/// Record types and response codes that are counted one by one; others count as `other`.
const MAX_LABELS: usize = 64;

/// One answered question.
pub(crate) struct Answered<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) kind: u16,
    pub(crate) rcode: u16,
    pub(crate) transport: Transport,
    pub(crate) is_v4: bool,
    pub(crate) dnssec_ok: bool,
    pub(crate) plugin: &'static str,
    pub(crate) latency_us: u64,
    pub(crate) question_octets: usize,
    pub(crate) answer_octets: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct NameCounts {
    asked: u64,
    /// What this place may have counted of names that had it before.
    at_most_too_many: u64,
    failed: u64,
    missing: u64,
    latency_us: u64,
    slowest_us: u64,
}

/// All counts of one server.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    requests: BTreeMap<(Transport, bool, u16), u64>,
    responses: BTreeMap<(u16, &'static str), u64>,
    latency: Latency,
    /// Octets of questions and of answers: over UDP, then over TCP.
    question_octets: [Octets; 2],
    answer_octets: [Octets; 2],
    answered: u64,
    dnssec_ok: u64,
    names: BTreeMap<Vec<u8>, NameCounts>,
    /// Questions refused or passed over by rules, by the action of the rule.
    pub(crate) acl: BTreeMap<&'static str, u64>,
    /// Questions over a client's limit.
    pub(crate) limited: u64,
    /// Answers of templates, by the type asked for.
    templates: BTreeMap<u16, u64>,
    /// Answers made by DNS64.
    pub(crate) synthesised: u64,
}

impl Stats {
    pub(crate) fn answered(&mut self, answered: &Answered<'_>) {
        let kind = if self.requests.len() < MAX_LABELS { answered.kind } else { 0 };
        *self.requests.entry((answered.transport, answered.is_v4, kind)).or_default() += 1;
        *self.responses.entry((answered.rcode, answered.plugin)).or_default() += 1;
        self.latency.record(answered.latency_us);
        let [over_udp, over_tcp] = &mut self.question_octets;
        let [answers_udp, answers_tcp] = &mut self.answer_octets;
        let (questions, answers) = match answered.transport {
            Transport::Udp => (over_udp, answers_udp),
            Transport::Tcp => (over_tcp, answers_tcp),
        };
        questions.record(answered.question_octets as u64);
        answers.record(answered.answer_octets as u64);
        self.dnssec_ok += u64::from(answered.dnssec_ok);
        self.answered += 1;
        if self.answered <= BUSY_AFTER {
            self.count_name(answered, 1);
        } else if self.answered.is_multiple_of(NAME_SAMPLE) {
            self.count_name(answered, NAME_SAMPLE);
        }
    }

    /// A template's answer to a question of this type.
    pub(crate) fn templated(&mut self, kind: u16) {
        let kind = if self.templates.len() < MAX_LABELS { kind } else { 0 };
        *self.templates.entry(kind).or_default() += 1;
    }

    /// The space-saving algorithm: what is frequent stays, and its count is too high by no more
    /// than what its place had counted before.
    fn count_name(&mut self, answered: &Answered<'_>, weight: u64) {
        let lower = Buffer::lower(answered.name);
        let name = lower.wire();
        if !self.names.contains_key(name) && self.names.len() >= MAX_NAMES {
            let rarest = self.names.iter().min_by_key(|(_, counts)| counts.asked);
            let Some((rarest, asked)) = rarest.map(|(name, counts)| (name.clone(), counts.asked))
            else {
                return;
            };
            self.names.remove(&rarest);
            let inherited = NameCounts { asked, at_most_too_many: asked, ..NameCounts::default() };
            self.names.insert(name.to_vec(), inherited);
        }
        let counts = match self.names.get_mut(name) {
            Some(counts) => counts,
            None => self.names.entry(name.to_vec()).or_default(),
        };
        counts.asked += weight;
        match answered.rcode {
            crate::message::rcode::NO_ERROR => {}
            crate::message::rcode::NAME_ERROR => counts.missing += weight,
            _ => counts.failed += weight,
        }
        counts.latency_us = counts.latency_us.saturating_add(answered.latency_us * weight);
        counts.slowest_us = counts.slowest_us.max(answered.latency_us);
    }

    /// Adds what another thread counted.
    pub fn add(&mut self, other: &Self) {
        for (key, count) in &other.requests {
            *self.requests.entry(*key).or_default() += count;
        }
        for (key, count) in &other.responses {
            *self.responses.entry(*key).or_default() += count;
        }
        for (key, count) in &other.acl {
            *self.acl.entry(key).or_default() += count;
        }
        for (kind, count) in &other.templates {
            *self.templates.entry(*kind).or_default() += count;
        }
        self.latency.add(&other.latency);
        let octets = self.question_octets.iter_mut().chain(&mut self.answer_octets);
        for (sum, more) in octets.zip(other.question_octets.iter().chain(&other.answer_octets)) {
            sum.add(more);
        }
        self.answered += other.answered;
        self.dnssec_ok += other.dnssec_ok;
        self.limited += other.limited;
        self.synthesised += other.synthesised;
        for (name, more) in &other.names {
            let counts = self.names.entry(name.clone()).or_default();
            counts.asked += more.asked;
            counts.at_most_too_many += more.at_most_too_many;
            counts.failed += more.failed;
            counts.missing += more.missing;
            counts.latency_us = counts.latency_us.saturating_add(more.latency_us);
            counts.slowest_us = counts.slowest_us.max(more.slowest_us);
        }
    }
}

/// What one thread of the server knows, to be told together with that of the others.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts of answers.
    pub stats: Stats,
    /// Counts of questions to servers.
    pub forward: ForwardCounts,
    /// Entries of the cache: with records, and absences.
    pub cache_entries: (usize, usize),
    /// Entries that went for others: with records, and absences.
    pub cache_evictions: (u64, u64),
    /// What of CoreDNS's plugins is done, by their names.
    pub plugins: BTreeSet<&'static str>,
    /// The health of the servers.
    pub health: Vec<Health>,
    /// The clients.
    pub clients: BTreeMap<IpAddr, ClientCounts>,
}

impl Snapshot {
    /// Adds what another thread knows.
    pub fn add(&mut self, other: &Self) {
        self.stats.add(&other.stats);
        let (sum, more) = (&mut self.forward, &other.forward);
        for (sum, more) in [
            (&mut sum.cache_hits, more.cache_hits),
            (&mut sum.cache_denials, more.cache_denials),
            (&mut sum.cache_misses, more.cache_misses),
            (&mut sum.served_stale, more.served_stale),
            (&mut sum.prefetches, more.prefetches),
            (&mut sum.rejected, more.rejected),
            (&mut sum.all_down, more.all_down),
            (&mut sum.mismatches, more.mismatches),
        ] {
            *sum += more;
        }
        self.cache_entries.0 += other.cache_entries.0;
        self.cache_entries.1 += other.cache_entries.1;
        self.cache_evictions.0 += other.cache_evictions.0;
        self.cache_evictions.1 += other.cache_evictions.1;
        self.plugins.extend(&other.plugins);
        for health in &other.health {
            match self.health.iter_mut().find(|known| known.server == health.server) {
                Some(known) => {
                    known.is_down |= health.is_down;
                    known.is_loop |= health.is_loop;
                    known.failed_probes = known.failed_probes.max(health.failed_probes);
                    known.probes_failed_ever += health.probes_failed_ever;
                    for (rcode, more) in &health.latencies {
                        known.latencies.entry(*rcode).or_default().add(more);
                    }
                }
                None => self.health.push(health.clone()),
            }
        }
        for (client, more) in &other.clients {
            let counts = self.clients.entry(*client).or_default();
            counts.asked += more.asked;
            counts.limited += more.limited;
            counts.failed += more.failed;
        }
    }

    /// What asks most, the most first.
    pub fn top(&self, count: usize) -> Top {
        let mut names: Vec<TopName> = self.stats.names.iter().map(top_name).collect();
        names.sort_by(|a, b| b.asked.cmp(&a.asked).then_with(|| a.name.cmp(&b.name)));
        names.truncate(count);
        let mut clients: Vec<TopClient> = self
            .clients
            .iter()
            .map(|(client, counts)| TopClient {
                client: *client,
                asked: counts.asked,
                limited: counts.limited,
                failed: counts.failed,
            })
            .collect();
        clients.sort_by(|a, b| b.asked.cmp(&a.asked).then_with(|| a.client.cmp(&b.client)));
        clients.truncate(count);
        let servers = self.health.iter().map(|health| TopServer {
            server: health.server.clone(),
            is_down: health.is_down,
            is_loop: health.is_loop,
        });
        Top { answered: self.stats.answered, names, clients, servers: servers.collect() }
    }
}

fn top_name((name, counts): (&Vec<u8>, &NameCounts)) -> TopName {
    let text = Name::read(name, 0).map(|(name, _)| name.to_string());
    let counted = counts.asked - counts.at_most_too_many;
    TopName {
        name: text.unwrap_or_default(),
        asked: counts.asked,
        at_most_too_many: counts.at_most_too_many,
        failed: counts.failed,
        missing: counts.missing,
        mean_us: counts.latency_us / counted.max(1),
        slowest_us: counts.slowest_us,
    }
}

/// What asks most at one server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Top {
    /// Questions answered.
    pub answered: u64,
    /// Names.
    pub names: Vec<TopName>,
    /// Clients.
    pub clients: Vec<TopClient>,
    /// The servers for other names.
    pub servers: Vec<TopServer>,
}

/// One name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopName {
    /// The name.
    pub name: String,
    /// How often it was asked for.
    pub asked: u64,
    /// What of that may be others' questions, since only so many names are counted.
    pub at_most_too_many: u64,
    /// Answers that said failure.
    pub failed: u64,
    /// Answers that said that there is no such name.
    pub missing: u64,
    /// The mean time to answer, in microseconds.
    pub mean_us: u64,
    /// The longest time to answer, in microseconds.
    pub slowest_us: u64,
}

/// One client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopClient {
    /// Its address.
    pub client: IpAddr,
    /// Its questions.
    pub asked: u64,
    /// Those over its limit.
    pub limited: u64,
    /// Answers that said failure.
    pub failed: u64,
}

/// One server for other names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopServer {
    /// The server.
    pub server: String,
    /// Whether it is taken for down.
    pub is_down: bool,
    /// Whether it sends our questions back to us.
    pub is_loop: bool,
}
