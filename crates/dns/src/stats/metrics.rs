//! The metrics in the text format of Prometheus: names, types and labels are those that CoreDNS
//! gives its own (the README of each of its plugins), so that dashboards and alerts go on. There is
//! one server, one zone, the root, and no view.

use std::fmt::Write;

use super::Snapshot;
use super::histogram::{Bounds, Histogram};
use crate::Transport;
use crate::message::{kind_name, rcode_name};

/// The server, as CoreDNS writes one that listens at every address.
const SERVER: &str = "server=\"dns://:53\"";
/// The labels of most metrics.
const PLACE: &str = "server=\"dns://:53\",zone=\".\",view=\"\"";
/// Those of the cache.
const CACHE: &str = "server=\"dns://:53\",zones=\".\",view=\"\"";
/// Record types that CoreDNS counts under their names; the others are `other`.
const NAMED_TYPES: [&str; 18] = [
    "A", "AAAA", "ANY", "AXFR", "CNAME", "DNSKEY", "DS", "HTTPS", "IXFR", "MX", "NS", "NSEC",
    "NSEC3", "PTR", "RRSIG", "SOA", "SRV", "TXT",
];

impl Snapshot {
    /// All of them.
    pub fn metrics(&self) -> String {
        let mut text = Metrics::default();
        self.write_server(&mut text);
        self.write_answers(&mut text);
        self.write_sizes(&mut text);
        self.write_cache(&mut text);
        self.write_rules(&mut text);
        self.write_forward(&mut text);
        self.write_upstreams(&mut text);
        text.text
    }

    fn write_server(&self, text: &mut Metrics) {
        text.head("coredns_build_info", "gauge", "What answers: not CoreDNS.");
        let version = concat!("flatnet-", env!("CARGO_PKG_VERSION"));
        text.line(&format!("goversion=\"\",revision=\"\",version=\"{version}\""), 1);
        text.head("coredns_plugin_enabled", "gauge", "What of CoreDNS's plugins is done.");
        for plugin in &self.plugins {
            text.line(&format!("{PLACE},name=\"{plugin}\""), 1);
        }
    }

    fn write_answers(&self, text: &mut Metrics) {
        let stats = &self.stats;
        text.head("coredns_dns_requests_total", "counter", "Questions.");
        for ((transport, is_v4, kind), count) in &stats.requests {
            let proto = proto(*transport);
            let family = if *is_v4 { 1 } else { 2 };
            let kind = type_label(*kind);
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

    fn write_sizes(&self, text: &mut Metrics) {
        let stats = &self.stats;
        text.head("coredns_dns_request_duration_seconds", "histogram", "Time to answer.");
        text.histogram(PLACE, &stats.latency, 1e6);
        for (name, help, both) in [
            ("coredns_dns_request_size_bytes", "Octets of questions.", &stats.question_octets),
            ("coredns_dns_response_size_bytes", "Octets of answers.", &stats.answer_octets),
        ] {
            text.head(name, "histogram", help);
            for (transport, octets) in [Transport::Udp, Transport::Tcp].into_iter().zip(both) {
                let labels = format!("{PLACE},proto=\"{}\"", proto(transport));
                text.histogram(&labels, octets, 1.0);
            }
        }
    }

    fn write_cache(&self, text: &mut Metrics) {
        let forward = &self.forward;
        let (success, denial) = self.cache_entries;
        let hits = (forward.cache_hits, forward.cache_denials);
        for (name, kind, help, (success, denial)) in [
            ("coredns_cache_entries", "gauge", "Answers kept.", (success as u64, denial as u64)),
            ("coredns_cache_hits_total", "counter", "Answers from the cache.", hits),
            (
                "coredns_cache_evictions_total",
                "counter",
                "Answers that went for others.",
                self.cache_evictions,
            ),
        ] {
            text.head(name, kind, help);
            text.line(&format!("{CACHE},type=\"success\""), success);
            text.line(&format!("{CACHE},type=\"denial\""), denial);
        }
        let requests = hits.0 + hits.1 + forward.cache_misses;
        for (name, help, count) in [
            ("coredns_cache_requests_total", "Questions to the cache.", requests),
            ("coredns_cache_misses_total", "Questions it had no answer to.", forward.cache_misses),
            ("coredns_cache_prefetch_total", "Questions asked ahead of time.", forward.prefetches),
            ("coredns_cache_served_stale_total", "Answers that had expired.", forward.served_stale),
        ] {
            text.head(name, "counter", help);
            text.line(CACHE, count);
        }
    }

    fn write_rules(&self, text: &mut Metrics) {
        let stats = &self.stats;
        for (name, action, help) in [
            ("coredns_acl_blocked_requests_total", "block", "Refused by a rule."),
            ("coredns_acl_filtered_requests_total", "filter", "Answered empty by a rule."),
            ("coredns_acl_dropped_requests_total", "drop", "Dropped by a rule."),
        ] {
            text.head(name, "counter", help);
            text.line(PLACE, stats.acl.get(action).copied().unwrap_or(0));
        }
        text.head("coredns_acl_allowed_requests_total", "counter", "Passed by rules.");
        let allowed = stats.acl.get("allow").copied().unwrap_or(0);
        text.line(&format!("{SERVER},view=\"\""), allowed);
        text.head("coredns_template_matches_total", "counter", "Answers of templates.");
        for (kind, count) in &stats.templates {
            let kind = type_label(*kind);
            text.line(&format!("{PLACE},class=\"IN\",type=\"{kind}\""), *count);
        }
        text.head("coredns_dns64_requests_translated_total", "counter", "Made by DNS64.");
        text.line(SERVER, stats.synthesised);
        text.head("flatnet_dns_rate_limited_total", "counter", "Over their client's limit.");
        text.bare(stats.limited);
    }

    fn write_forward(&self, text: &mut Metrics) {
        let forward = &self.forward;
        for (name, help, count) in [
            (
                "coredns_forward_max_concurrent_rejects_total",
                "Questions refused since too many waited.",
                forward.rejected,
            ),
            (
                "coredns_forward_healthcheck_broken_total",
                "Questions asked of servers of which all are down.",
                forward.all_down,
            ),
            (
                "flatnet_dns_upstream_mismatches_total",
                "What came to sockets and answered no question.",
                forward.mismatches,
            ),
        ] {
            text.head(name, "counter", help);
            text.bare(count);
        }
    }

    fn write_upstreams(&self, text: &mut Metrics) {
        let upstreams = || {
            let label = |server: &str| format!("proxy_name=\"forward\",to=\"{server}\"");
            self.health.iter().map(move |health| (label(&health.server.replace('"', "")), health))
        };
        let help = "Time until a server's answer, to the millisecond.";
        text.head("coredns_proxy_request_duration_seconds", "histogram", help);
        for (place, health) in upstreams() {
            for (rcode, latency) in &health.latencies {
                let rcode = rcode_name(*rcode);
                text.histogram(&format!("{place},rcode=\"{rcode}\""), latency, 1e6);
            }
        }
        text.head("coredns_proxy_healthcheck_failures_total", "counter", "Probes without answer.");
        for (place, health) in upstreams() {
            text.line(&place, health.probes_failed_ever);
        }
        text.head("flatnet_dns_upstream_up", "gauge", "Whether a server is taken for alive.");
        for health in &self.health {
            let server = health.server.replace('"', "");
            text.line(&format!("to=\"{server}\""), u64::from(!health.is_down && !health.is_loop));
        }
    }
}

fn proto(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
    }
}

fn type_label(kind: u16) -> String {
    let name = kind_name(kind);
    if NAMED_TYPES.contains(&name.as_str()) { name } else { "other".into() }
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

    /// `scale` units of what was counted are one of the metric.
    fn histogram<B: Bounds<N>, const N: usize>(
        &mut self,
        labels: &str,
        histogram: &Histogram<B, N>,
        scale: f64,
    ) {
        for (bound, below) in histogram.cumulative() {
            let bound = bound as f64 / scale;
            self.part("_bucket", &format!("{labels},le=\"{bound}\""), below);
        }
        let (count, sum) = histogram.totals();
        self.part("_bucket", &format!("{labels},le=\"+Inf\""), count);
        self.part("_count", labels, count);
        let _ = writeln!(self.text, "{}_sum{{{labels}}} {}", self.name, sum as f64 / scale);
    }

    fn part(&mut self, suffix: &str, labels: &str, value: u64) {
        let _ = writeln!(self.text, "{}{suffix}{{{labels}}} {value}", self.name);
    }
}
