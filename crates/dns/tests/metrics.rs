//! What monitoring of CoreDNS finds here: its metrics by name, type and labels.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use dns::message::kind;
use dns::{
    Client, Config, Handled, Incoming, Index, Output, Rules, Server, Transport, parse_response,
    query,
};
use plan::zone::{ServiceRecords, Zone};

/// Name, type and labels, as CoreDNS has them: `plugin/metrics/vars`, `plugin/pkg/proxy` and the
/// `metrics.go` of the plugins in coredns/coredns. The labels of one without any are empty.
const COREDNS: &[(&str, &str, &str)] = &[
    ("coredns_build_info", "gauge", "goversion revision version"),
    ("coredns_plugin_enabled", "gauge", "name server view zone"),
    ("coredns_dns_requests_total", "counter", "family proto server type view zone"),
    ("coredns_dns_request_duration_seconds", "histogram", "server view zone"),
    ("coredns_dns_request_size_bytes", "histogram", "proto server view zone"),
    ("coredns_dns_response_size_bytes", "histogram", "proto server view zone"),
    ("coredns_dns_do_requests_total", "counter", "server view zone"),
    ("coredns_dns_responses_total", "counter", "plugin rcode server view zone"),
    ("coredns_cache_entries", "gauge", "server type view zones"),
    ("coredns_cache_hits_total", "counter", "server type view zones"),
    ("coredns_cache_misses_total", "counter", "server view zones"),
    ("coredns_cache_requests_total", "counter", "server view zones"),
    ("coredns_cache_prefetch_total", "counter", "server view zones"),
    ("coredns_cache_served_stale_total", "counter", "server view zones"),
    ("coredns_cache_evictions_total", "counter", "server type view zones"),
    ("coredns_forward_max_concurrent_rejects_total", "counter", ""),
    ("coredns_forward_healthcheck_broken_total", "counter", ""),
    ("coredns_proxy_request_duration_seconds", "histogram", "proxy_name rcode to"),
    ("coredns_proxy_healthcheck_failures_total", "counter", "proxy_name to"),
    ("coredns_acl_blocked_requests_total", "counter", "server view zone"),
    ("coredns_acl_filtered_requests_total", "counter", "server view zone"),
    ("coredns_acl_dropped_requests_total", "counter", "server view zone"),
    ("coredns_acl_allowed_requests_total", "counter", "server view"),
    ("coredns_template_matches_total", "counter", "class server type view zone"),
    ("coredns_dns64_requests_translated_total", "counter", "server"),
];

/// The configuration under which all of them have something to tell.
const CONFIG: &str = "
loop: false
forward: [{to: [192.0.2.53]}]
cache: {success: {capacity: 1, ttl: 1h}}
template: [{zones: [made.example], type: A, answer: ['{{ .Name }} 60 IN A 192.0.2.7']}]
";

struct Lab {
    server: Server<()>,
    index: Index,
    now_us: u64,
}

impl Lab {
    fn new() -> Self {
        let config = Arc::new(Config::parse(CONFIG).expect("a configuration"));
        let server = Server::new(config, Rules::default(), &[], &mut || 7);
        let mut zone = Zone { domain: "cluster.local".into(), ..Zone::default() };
        let addresses = vec!["10.96.1.1".parse().expect("an address")];
        let web = ServiceRecords::ClusterIp { addresses, ports: vec![] };
        zone.namespaces.entry("shop".into()).or_default().insert("web".into(), web);
        Self { server, index: Index::new(zone, 1), now_us: 0 }
    }

    /// Asks, and has the server of other names answer within 3 ms.
    fn ask(&mut self, name: &str, transport: Transport) -> usize {
        let message = query(7, &name.parse().expect("a name"), kind::A, true);
        let from = Client { transport, address: Ipv4Addr::LOCALHOST.into() };
        let incoming = Incoming { client: (), from, message: &message };
        let mut reply = Vec::new();
        let handled =
            self.server.question(self.now_us, incoming, Some(&self.index), &mut reply, &mut || 7);
        let outputs = match handled {
            Handled::Reply => return message.len(),
            Handled::Drop => panic!("{name} is dropped"),
            Handled::Wait(outputs) => outputs,
        };
        for output in outputs {
            if let Output::Send { exchange, to, message, .. } = output {
                self.now_us += 3000;
                let answer = answer(&message);
                self.server.receive(self.now_us, exchange, to.address, &answer, &mut || 7);
            }
        }
        message.len()
    }
}

/// One address for a minute.
fn answer(question: &[u8]) -> Vec<u8> {
    let end = 12 + question[12..].iter().position(|octet| *octet == 0).expect("a name") + 5;
    let mut answer = question[..end].to_vec();
    answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend_from_slice(b"\xC0\x0C\0\x01\0\x01\0\0\0\x3C\0\x04\xC0\0\x02\x50");
    assert!(parse_response(&answer).is_some());
    answer
}

/// Types by family, and labels and values by line.
#[derive(Default)]
struct Told {
    kinds: BTreeMap<String, String>,
    labels: BTreeMap<String, BTreeSet<String>>,
    values: BTreeMap<String, f64>,
}

fn told(text: &str) -> Told {
    let mut told = Told::default();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            let before = told.kinds.insert(name.into(), kind.into());
            assert!(before.is_none(), "{name} is told twice");
        }
        if line.starts_with('#') {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let of_histogram = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| {
            let family = name.strip_suffix(suffix)?;
            (told.kinds.get(family).map(String::as_str) == Some("histogram")).then_some(family)
        });
        let family = of_histogram.unwrap_or(name);
        assert!(told.kinds.contains_key(family), "{line} has no type");
        let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        let mut names: Vec<&str> =
            labels.map(|label| label.split('=').next().unwrap_or(label)).collect();
        names.retain(|name| *name != "le");
        names.sort_unstable();
        told.labels.entry(family.into()).or_default().insert(names.join(" "));
        let before = told.values.insert(series.into(), value.parse().expect("a number"));
        assert!(before.is_none(), "{series} is told twice");
    }
    told
}

/// Issue 5, item 7.
#[test]
fn metrics_have_names_types_and_labels_of_corednss() {
    let mut lab = Lab::new();
    for name in ["web.shop.svc.cluster.local", "www.example", "one.made.example"] {
        lab.ask(name, Transport::Udp);
    }
    let mut told = told(&lab.server.snapshot().metrics());
    for (name, kind, labels) in COREDNS {
        assert_eq!(told.kinds.remove(*name).as_deref(), Some(*kind), "{name}");
        let expected = BTreeSet::from([(*labels).to_owned()]);
        assert_eq!(told.labels.remove(*name), Some(expected), "{name}");
    }
    let of_coredns = told.kinds.keys().filter(|name| name.starts_with("coredns_"));
    assert_eq!(of_coredns.count(), 0, "CoreDNS has none of {:?}", told.kinds);
}

#[test]
fn metrics_count_what_happened() {
    let mut lab = Lab::new();
    let octets = lab.ask("web.shop.svc.cluster.local", Transport::Udp)
        + lab.ask("web.shop.svc.cluster.local", Transport::Udp);
    let over_tcp = lab.ask("www.example", Transport::Tcp);
    lab.ask("www.example", Transport::Tcp);
    lab.ask("mail.example", Transport::Tcp);
    lab.ask("one.made.example", Transport::Udp);
    let told = told(&lab.server.snapshot().metrics());
    let place = "server=\"dns://:53\",zone=\".\",view=\"\"";
    let cache = "server=\"dns://:53\",zones=\".\",view=\"\"";
    let to = "proxy_name=\"forward\",to=\"192.0.2.53:53\",rcode=\"NOERROR\"";
    assert!(over_tcp < 100 && octets < 200, "the buckets below");
    for (series, expected) in [
        (format!("coredns_plugin_enabled{{{place},name=\"template\"}}"), 1.0),
        (format!("coredns_dns_request_size_bytes_count{{{place},proto=\"udp\"}}"), 3.0),
        (format!("coredns_dns_request_size_bytes_bucket{{{place},proto=\"udp\",le=\"0\"}}"), 0.0),
        (format!("coredns_dns_request_size_bytes_bucket{{{place},proto=\"tcp\",le=\"100\"}}"), 3.0),
        (format!("coredns_dns_response_size_bytes_count{{{place},proto=\"tcp\"}}"), 3.0),
        (format!("coredns_dns_request_duration_seconds_count{{{place}}}"), 6.0),
        (format!("coredns_dns_request_duration_seconds_sum{{{place}}}"), 0.006),
        (format!("coredns_cache_requests_total{{{cache}}}"), 3.0),
        (format!("coredns_cache_hits_total{{{cache},type=\"success\"}}"), 1.0),
        (format!("coredns_cache_hits_total{{{cache},type=\"denial\"}}"), 0.0),
        (format!("coredns_cache_evictions_total{{{cache},type=\"success\"}}"), 1.0),
        (format!("coredns_proxy_request_duration_seconds_bucket{{{to},le=\"0.002\"}}"), 0.0),
        (format!("coredns_proxy_request_duration_seconds_bucket{{{to},le=\"0.004\"}}"), 2.0),
        (format!("coredns_proxy_request_duration_seconds_sum{{{to}}}"), 0.006),
        (format!("coredns_template_matches_total{{{place},class=\"IN\",type=\"A\"}}"), 1.0),
    ] {
        assert_eq!(told.values.get(&series), Some(&expected), "{series}");
    }
}
