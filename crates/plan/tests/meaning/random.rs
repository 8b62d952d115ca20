//! The plan agrees with the oracle on random clusters, for every packet that the words can say.

use std::sync::Arc;

use model::kinds::{
    EndpointPort, EndpointSlice, PORT_RANGES_ANNOTATION, SCHEDULING_ANNOTATION, SERVICE_NAME_LABEL,
    Service, ServicePort, ServiceType, SessionAffinity, TrafficPolicy, WEIGHTS_ANNOTATION,
};
use model::world::Object;
use model::{Family, Protocol};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::scenario::{FAMILIES, Scenario};

const ENDPOINTS: [&str; 13] = [
    "1 here ready",
    "1 here leaving",
    "1 here ready zone:a node:here",
    "2 here ready zone:b",
    "2 here unready zone:a",
    "3 there ready zone:a node:there",
    "3 there leaving",
    "4 there ready zone:b node:here",
    "5 nowhere unsaid",
    "6 there gone node:here",
    "7 here published zone:a",
    "8 here leaving node:there",
    "9 here serving zone:a",
];

const CLIENTS: [&str; 9] =
    ["pod", "pod elsewhere", "node", "other node", "outside", "stranger", "balancer", "1", "2"];

const TARGETS: [&str; 9] = [
    "cluster IP",
    "node",
    "node's second",
    "other node",
    "balancer",
    "balancer 2",
    "external IP",
    "nobody's",
    "pod elsewhere",
];

const PORTS: [u16; 8] = [80, 81, 53, 30080, 30081, 1, 5005, 65535];

/// Half of a Service's wishes: whether each optional part is there.
#[derive(Clone, Debug)]
struct Choice {
    endpoints: Vec<&'static str>,
    kind: ServiceType,
    policies: (TrafficPolicy, TrafficPolicy),
    node_port: u16,
    addresses: Vec<&'static str>,
    external_ips: Vec<&'static str>,
    source_ranges: Vec<&'static str>,
    annotations: Vec<(&'static str, &'static str)>,
    sticky: bool,
    slice_ports: Vec<(&'static str, Option<u16>, Protocol)>,
}

fn choices() -> impl Strategy<Value = Choice> {
    let policy = || select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]);
    let kinds = vec![ServiceType::LoadBalancer, ServiceType::NodePort, ServiceType::ClusterIP];
    let words = |words: &[&'static str]| subsequence(words.to_vec(), 0..=words.len().min(3));
    let addresses = words(&["balancer", "balancer 2", "node", "cluster IP", "external IP"]);
    let external_ips = words(&["external IP", "balancer", "nobody's", "pod elsewhere"]);
    let ranges = words(&[
        "203.0.113.0/25",
        "2001:db8:113::/113",
        "172.30.0.2/32",
        "fd00:30::/64",
        "10.244.1.0/24",
        "::/0",
        "none",
    ]);
    let annotations = subsequence(
        vec![
            (PORT_RANGES_ANNOTATION, "all"),
            (PORT_RANGES_ANNOTATION, "tcp:1-100,udp:5000-5010,sctp:53"),
            (PORT_RANGES_ANNOTATION, "tcp:80"),
            (WEIGHTS_ANNOTATION, "web-1=0,web-3=7"),
            (WEIGHTS_ANNOTATION, "10.244.1.2=0,web-*=3,fd00:244:2::4=0"),
            (WEIGHTS_ANNOTATION, "web-1=0,,"),
            (SCHEDULING_ANNOTATION, "maglev"),
            (SCHEDULING_ANNOTATION, "round robin"),
        ],
        0..=3,
    );
    let slice_ports = subsequence(
        vec![
            ("", Some(8080), Protocol::Tcp),
            ("", Some(8081), Protocol::Udp),
            ("dns", Some(53), Protocol::Udp),
            ("", Some(9090), Protocol::Tcp),
            ("", None, Protocol::Sctp),
        ],
        0..=4,
    );
    let first =
        (words_of_endpoints(), select(kinds), (policy(), policy()), select(vec![0, 30080, 30081]));
    let second = (addresses, external_ips, ranges, annotations, any::<bool>(), slice_ports);
    (first, second).prop_map(|((endpoints, kind, policies, node_port), second)| {
        let (addresses, external_ips, source_ranges, annotations, sticky, slice_ports) = second;
        Choice {
            endpoints,
            kind,
            policies,
            node_port,
            addresses,
            external_ips,
            source_ranges,
            annotations,
            sticky,
            slice_ports,
        }
    })
}

fn words_of_endpoints() -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(ENDPOINTS.to_vec(), 0..=5)
}

/// A Service and its slice as chosen.
fn scenario_of(family: Family, choice: &Choice) -> Scenario {
    let mut scenario = Scenario::new(family, &choice.endpoints);
    scenario = scenario.with(choice.policies.0, choice.policies.1);
    let addresses = |words: &[&str]| -> Vec<String> {
        words.iter().map(|word| super::scenario::address(family, word).to_string()).collect()
    };
    let spec = &mut scenario.service.spec;
    spec.kind = choice.kind;
    spec.external_ips = addresses(&choice.external_ips);
    spec.load_balancer_source_ranges =
        choice.source_ranges.iter().map(|range| range.to_string()).collect();
    if choice.sticky {
        spec.session_affinity = SessionAffinity::ClientIP;
    }
    spec.ports[0].node_port = choice.node_port;
    let dns = ServicePort {
        name: "dns".into(),
        port: 53,
        protocol: Protocol::Udp,
        ..ServicePort::default()
    };
    spec.ports.push(dns);
    let ingress = addresses(&choice.addresses)
        .into_iter()
        .map(|ip| model::kinds::LoadBalancerIngress { ip, ip_mode: None });
    scenario.service.status.load_balancer.ingress = ingress.collect();
    let annotations = choice.annotations.iter();
    scenario.service.metadata.annotations =
        annotations.map(|&(name, text)| (name.to_owned(), text.to_owned())).collect();
    let ports = choice.slice_ports.iter().map(|&(name, port, protocol)| EndpointPort {
        name: name.into(),
        port,
        protocol,
    });
    scenario.slice.ports = ports.collect();
    scenario
}

/// A second slice of `web`, and a Service `zoo` that claims some of the same addresses.
fn others(family: Family, more: &Choice, zoo: &Choice) -> Vec<Object> {
    let mut slice: EndpointSlice = scenario_of(family, more).slice;
    slice.metadata.name = "web-2".into();
    let Scenario { service, slice: zoo_slice, .. } = scenario_of(family, zoo);
    let mut service: Service = service;
    service.metadata.name = "zoo".into();
    service.spec.cluster_ips =
        vec![if family == Family::V4 { "10.96.0.8" } else { "fd00:96::8" }.to_owned()];
    let mut zoo_slice = zoo_slice;
    zoo_slice.metadata.name = "zoo-1".into();
    zoo_slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), "zoo".into());
    vec![
        Object::EndpointSlice(Arc::new(slice)),
        Object::Service(Arc::new(service)),
        Object::EndpointSlice(Arc::new(zoo_slice)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Invariant 13, before any backend.
    #[test]
    fn plan_and_oracle_agree_on_every_packet(
        web in choices(),
        more in choices(),
        zoo in choices(),
        zone in select(vec![None, Some("a"), Some("b"), Some("")]),
        masquerade_all in any::<bool>(),
        node_ports_at_second in any::<bool>(),
    ) {
        for family in FAMILIES {
            let mut scenario = scenario_of(family, &web);
            scenario.also = others(family, &more, &zoo);
            scenario.zone = zone;
            scenario.config.masquerade_all = masquerade_all;
            if node_ports_at_second {
                let second = scenario.address("node's second");
                scenario.config.node_port_addresses = vec![second.into()];
            }
            let node = scenario.address("node");
            scenario.config.external_ip_ranges.push(node.into());
            let cluster = scenario.cluster();
            for from in CLIENTS {
                for (index, to) in TARGETS.iter().enumerate() {
                    for (offset, port) in PORTS.iter().enumerate() {
                        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
                        let protocol = protocols[(index + offset) % protocols.len()];
                        let packet = scenario.packet(protocol, from, &format!("{to}:{port}"));
                        let (meant, planned) = cluster.verdicts(&packet);
                        prop_assert_eq!(
                            &planned, &meant.map_err(|_| ()),
                            "{:?} in {:#?}", packet, scenario
                        );
                    }
                }
            }
        }
    }
}
