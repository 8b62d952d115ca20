//! What a DNS server counts, and how it is told: in the metrics' names of CoreDNS, and as a table
//! of the names and clients that ask most.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::limits::ClientCounts;
use crate::message::{kind_name, rcode_name};
use crate::search::Buffer;
use crate::{ForwardCounts, Health, Name, Transport};

/// Names that are counted; further ones take the place of the rarest.
const MAX_NAMES: usize = 256;
/// Of busy servers, one question in so many is looked at for its name.
const NAME_SAMPLE: u64 = 16;
/// Questions from which on a server is busy.
const BUSY_AFTER: u64 = 10_000;
/// Record types and response codes that are counted one by one; others count as `other`.
const MAX_LABELS: usize = 64;
/// Upper bounds of the buckets of latency, in microseconds, as CoreDNS has them.
const LATENCY_BUCKETS_US: [u64; 16] = [
    250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000, 256_000, 512_000, 1_024_000,
    2_048_000, 4_096_000, 8_192_000,
];

/// The labels of one server, zone and view, which CoreDNS's metrics have.
const PLACE: &str = "server=\"dns://.:53\",zone=\".\",view=\"\"";

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
    latency: [u64; LATENCY_BUCKETS_US.len()],
    latency_sum_us: u64,
    answered: u64,
    dnssec_ok: u64,
    names: BTreeMap<Vec<u8>, NameCounts>,
    /// Questions refused or passed over by rules, by the action of the rule.
    pub(crate) acl: BTreeMap<&'static str, u64>,
    /// Questions over a client's limit.
    pub(crate) limited: u64,
    /// Answers of templates.
    pub(crate) templates: u64,
    /// Answers made by DNS64.
    pub(crate) synthesised: u64,
}

impl Stats {
    pub(crate) fn answered(&mut self, answered: &Answered<'_>) {
        let kind = if self.requests.len() < MAX_LABELS { answered.kind } else { 0 };
        *self.requests.entry((answered.transport, answered.is_v4, kind)).or_default() += 1;
        *self.responses.entry((answered.rcode, answered.plugin)).or_default() += 1;
        let bucket = LATENCY_BUCKETS_US.iter().position(|bound| answered.latency_us <= *bound);
        if let Some(count) = bucket.and_then(|bucket| self.latency.get_mut(bucket)) {
            *count += 1;
        }
        self.latency_sum_us = self.latency_sum_us.saturating_add(answered.latency_us);
        self.dnssec_ok += u64::from(answered.dnssec_ok);
        self.answered += 1;
        if self.answered <= BUSY_AFTER {
            self.count_name(answered, 1);
        } else if self.answered.is_multiple_of(NAME_SAMPLE) {
            self.count_name(answered, NAME_SAMPLE);
        }
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
        for (count, more) in self.latency.iter_mut().zip(other.latency) {
            *count += more;
        }
        self.latency_sum_us = self.latency_sum_us.saturating_add(other.latency_sum_us);
        self.answered += other.answered;
        self.dnssec_ok += other.dnssec_ok;
        self.limited += other.limited;
        self.templates += other.templates;
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
            (&mut sum.cache_misses, more.cache_misses),
            (&mut sum.served_stale, more.served_stale),
            (&mut sum.prefetches, more.prefetches),
            (&mut sum.rejected, more.rejected),
            (&mut sum.failed_probes, more.failed_probes),
            (&mut sum.mismatches, more.mismatches),
        ] {
            *sum += more;
        }
        self.cache_entries.0 += other.cache_entries.0;
        self.cache_entries.1 += other.cache_entries.1;
        for health in &other.health {
            match self.health.iter_mut().find(|known| known.server == health.server) {
                Some(known) => {
                    known.is_down |= health.is_down;
                    known.is_loop |= health.is_loop;
                    known.failed_probes = known.failed_probes.max(health.failed_probes);
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

    /// The metrics in the text format of Prometheus, under CoreDNS's names.
    pub fn metrics(&self) -> String {
        let mut text = Metrics::default();
        self.write_answers(&mut text);
        self.write_latency(&mut text);
        self.write_cache(&mut text);
        self.write_rules(&mut text);
        self.write_servers(&mut text);
        text.text
    }

    fn write_answers(&self, text: &mut Metrics) {
        let stats = &self.stats;
        text.head("coredns_dns_requests_total", "counter", "Questions.");
        for ((transport, is_v4, kind), count) in &stats.requests {
            let proto = if *transport == Transport::Udp { "udp" } else { "tcp" };
            let family = if *is_v4 { 1 } else { 2 };
            let kind = if *kind == 0 { "other".to_owned() } else { type_label(*kind) };
            let labels = format!("{PLACE},proto=\"{proto}\",family=\"{family}\",type=\"{kind}\"");
            text.line(&labels, *count);
        }
        text.head("coredns_dns_responses_total", "counter", "Answers.");
        for ((rcode, plugin), count) in &stats.responses {
            let rcode = rcode_name(*rcode);
            text.line(&format!("{PLACE},rcode=\"{rcode}\",plugin=\"{plugin}\""), *count);
        }
        text.head("coredns_dns_do_requests_total", "counter", "Questions with DNSSEC.");
        text.line(PLACE, stats.dnssec_ok);
    }

    fn write_cache(&self, text: &mut Metrics) {
        let (forward, entries) = (&self.forward, self.cache_entries);
        let place = "server=\"dns://.:53\",zones=\".\",view=\"\"";
        text.head("coredns_cache_entries", "gauge", "Answers kept.");
        text.line(&format!("{place},type=\"success\""), entries.0 as u64);
        text.line(&format!("{place},type=\"denial\""), entries.1 as u64);
        for (name, help, count) in [
            ("coredns_cache_hits_total", "Answers from the cache.", forward.cache_hits),
            ("coredns_cache_misses_total", "Questions it had no answer to.", forward.cache_misses),
            ("coredns_cache_prefetch_total", "Questions asked ahead of time.", forward.prefetches),
            ("coredns_cache_served_stale_total", "Answers that had expired.", forward.served_stale),
        ] {
            text.head(name, "counter", help);
            text.line(place, count);
        }
    }

    fn write_rules(&self, text: &mut Metrics) {
        let stats = &self.stats;
        let by_acl = |action: &str| stats.acl.get(action).copied().unwrap_or(0);
        for (name, help, count) in [
            ("coredns_acl_blocked_requests_total", "Refused by a rule.", by_acl("block")),
            ("coredns_acl_filtered_requests_total", "Answered empty by a rule.", by_acl("filter")),
            ("coredns_acl_dropped_requests_total", "Dropped by a rule.", by_acl("drop")),
            ("coredns_acl_allowed_requests_total", "Passed by rules.", by_acl("allow")),
            ("coredns_template_matches_total", "Answers of templates.", stats.templates),
            ("coredns_dns64_requests_translated_total", "Made by DNS64.", stats.synthesised),
            ("flatnet_dns_rate_limited_total", "Over their client's limit.", stats.limited),
        ] {
            text.head(name, "counter", help);
            text.bare(count);
        }
    }

    fn write_servers(&self, text: &mut Metrics) {
        let forward = &self.forward;
        text.head(
            "coredns_forward_max_concurrent_rejects_total",
            "counter",
            "Questions refused since too many waited.",
        );
        text.bare(forward.rejected);
        text.head(
            "flatnet_dns_upstream_mismatches_total",
            "counter",
            "What came to sockets and answered no question.",
        );
        text.bare(forward.mismatches);
        text.head("coredns_proxy_healthcheck_failures_total", "counter", "Probes without answer.");
        text.line("proxy_name=\"forward\"", forward.failed_probes);
        text.head("flatnet_dns_upstream_up", "gauge", "Whether a server is taken for alive.");
        for health in &self.health {
            let server = health.server.replace('"', "");
            text.line(&format!("to=\"{server}\""), u64::from(!health.is_down && !health.is_loop));
        }
    }

    fn write_latency(&self, text: &mut Metrics) {
        let place = PLACE;
        let stats = &self.stats;
        text.head("coredns_dns_request_duration_seconds", "histogram", "Time to answer.");
        let mut sum = 0;
        for (bound_us, count) in LATENCY_BUCKETS_US.iter().zip(stats.latency) {
            sum += count;
            let bound = *bound_us as f64 / 1e6;
            text.part("_bucket", &format!("{place},le=\"{bound}\""), sum);
        }
        text.part("_bucket", &format!("{place},le=\"+Inf\""), stats.answered);
        text.part("_count", place, stats.answered);
        let name = text.name;
        let seconds = stats.latency_sum_us as f64 / 1e6;
        let _ = writeln!(text.text, "{name}_sum{{{place}}} {seconds}");
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

fn type_label(kind: u16) -> String {
    let name = kind_name(kind);
    if name.starts_with("TYPE") { "other".into() } else { name }
}

/// Text in the making.
#[derive(Default)]
struct Metrics {
    text: String,
    name: &'static str,
}

impl Metrics {
    fn head(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, labels: &str, value: u64) {
        self.part("", labels, value);
    }

    fn bare(&mut self, value: u64) {
        let _ = writeln!(self.text, "{} {value}", self.name);
    }

    fn part(&mut self, suffix: &str, labels: &str, value: u64) {
        let _ = writeln!(self.text, "{}{suffix}{{{labels}}} {value}", self.name);
    }
}
