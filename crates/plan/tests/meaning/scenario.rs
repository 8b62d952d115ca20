//! A cluster in a few words, and questions about packets.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::kinds::{
    Conditions, Endpoint, EndpointHints, EndpointPort, EndpointSlice, ForName, LoadBalancerIngress,
    SERVICE_NAME_LABEL, Service, ServicePort, ServiceType, TargetReference, TrafficPolicy,
    ZONE_LABEL,
};
use model::packet::{Entry, Packet, SourceTranslation, Verdict};
use model::world::Object;
use model::{ClusterConfig, Family, NamespacedName, Node, Protocol, World};
use oracle::service::{Decision, Rule};
use plan::services::{self, ServicePlan};
use plan::{Desired, Finding, NodeFacts};

use super::of_plan;

/// Addresses by the words that tables use. `{}` is the family's beginning.
const ADDRESSES: &[(&str, &str, &str)] = &[
    ("pod", "10.244.1.9", "fd00:244:1::9"),
    ("pod elsewhere", "10.244.2.9", "fd00:244:2::9"),
    ("node", "172.30.0.2", "fd00:30::2"),
    ("node's second", "192.168.7.2", "fd00:77::2"),
    ("other node", "172.30.0.3", "fd00:30::3"),
    ("outside", "203.0.113.7", "2001:db8:113::7"),
    ("stranger", "203.0.113.207", "2001:db8:113::f007"),
    ("cluster IP", "10.96.0.7", "fd00:96::7"),
    ("balancer", "198.51.100.1", "2001:db8:51::1"),
    ("balancer 2", "198.51.100.2", "2001:db8:51::2"),
    ("external IP", "192.0.2.80", "2001:db8:2::80"),
    ("loopback", "127.0.0.1", "::1"),
    ("nobody's", "198.51.100.99", "2001:db8:51::99"),
];

/// One Service `shop/web` of one family, its endpoints, and the node `here`.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub family: Family,
    pub service: Service,
    pub slice: EndpointSlice,
    pub config: ClusterConfig,
    pub zone: Option<&'static str>,
    /// Other objects of the cluster.
    pub also: Vec<Object>,
}

impl Scenario {
    /// A Service with a ClusterIP, node port and load balancer, for the port 80. Endpoints are
    /// `NUMBER PLACE STATE [HINT…]`: `here`, `there` or `nowhere`; `ready`, `unready`, `leaving`,
    /// `gone`, …; `zone:a` or `node:here`.
    pub fn new(family: Family, endpoints: &[&str]) -> Self {
        let mut service = Service::default();
        service.metadata.namespace = "shop".into();
        service.metadata.name = "web".into();
        service.spec.kind = ServiceType::LoadBalancer;
        service.spec.cluster_ips = vec![address(family, "cluster IP").to_string()];
        service.spec.ports = vec![ServicePort { port: 80, node_port: 30080, ..Default::default() }];
        let ip = address(family, "balancer").to_string();
        let ingress = LoadBalancerIngress { ip, ip_mode: None };
        service.status.load_balancer.ingress = vec![ingress];
        let mut slice =
            EndpointSlice { address_type: family.to_string(), ..EndpointSlice::default() };
        slice.metadata.namespace = "shop".into();
        slice.metadata.name = "web-1".into();
        slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), "web".into());
        slice.ports = vec![EndpointPort { port: Some(8080), ..EndpointPort::default() }];
        slice.endpoints = endpoints.iter().map(|words| endpoint(family, words)).collect();
        let range = |text: &str| text.parse().expect("a range");
        let config = ClusterConfig {
            pod_cidrs: vec![range("10.244.0.0/16"), range("fd00:244::/32")],
            service_cidrs: vec![range("10.96.0.0/16"), range("fd00:96::/112")],
            node_cidrs: vec![range("172.30.0.0/24"), range("fd00:30::/64")],
            external_ip_ranges: vec![range("192.0.2.0/24"), range("2001:db8:2::/64")],
            ..ClusterConfig::default()
        };
        Self { family, service, slice, config, zone: None, also: vec![] }
    }

    /// The same with policies: internal, then external.
    pub fn with(mut self, internal: TrafficPolicy, external: TrafficPolicy) -> Self {
        self.service.spec.internal_traffic_policy = internal;
        self.service.spec.external_traffic_policy = external;
        self
    }

    /// An address by its word.
    pub fn address(&self, word: &str) -> IpAddr {
        address(self.family, word)
    }

    /// What becomes of a packet, in words: `1 2`, `1 masqueraded`, `drop`, `reject`, `nothing`.
    /// Oracle and plan must agree.
    pub fn ask(&self, from: &str, to: &str) -> String {
        self.ask_by(Protocol::Tcp, from, to)
    }

    /// The same for a protocol.
    pub fn ask_by(&self, protocol: Protocol, from: &str, to: &str) -> String {
        let packet = self.packet(protocol, from, to);
        let (meant, planned) = self.cluster().verdicts(&packet);
        assert_eq!(planned, meant.clone().map_err(|_| ()), "{from} to {to}: plan and oracle");
        in_words(&meant.unwrap_or_else(|other| other), &packet)
    }

    /// The same as objects and plans, for many questions.
    pub fn cluster(&self) -> Cluster {
        let (world, facts) = (self.world(), self.facts());
        let (desired, _) = plan::node(&world, &self.config, &facts);
        Cluster { world, facts, config: self.config.clone(), desired }
    }

    /// The plan of the Service and what was found.
    pub fn plan(&self) -> (Option<ServicePlan>, Vec<Finding>) {
        let key = NamespacedName::new("shop", "web");
        services::plan(&self.world(), &self.config, &self.facts(), &key)
    }

    /// The API's objects.
    pub fn world(&self) -> World {
        let mut world = World::default();
        let mut node = Node::default();
        node.metadata.name = "here".into();
        if let Some(zone) = self.zone {
            node.metadata.labels.insert(ZONE_LABEL.into(), zone.into());
        }
        world.set(Object::Node(Arc::new(node)));
        world.set(Object::Service(Arc::new(self.service.clone())));
        world.set(Object::EndpointSlice(Arc::new(self.slice.clone())));
        for object in &self.also {
            world.set(object.clone());
        }
        world
    }

    /// What the node knows of itself.
    pub fn facts(&self) -> NodeFacts {
        let addresses = vec![self.address("node"), self.address("node's second")];
        NodeFacts { name: "here".into(), addresses, ..NodeFacts::default() }
    }

    /// A packet by the words of the tables.
    pub fn packet(&self, protocol: Protocol, from: &str, to: &str) -> Packet {
        let (source, entry) = match from {
            "pod" => (self.address(from), Entry::Pod),
            "node" | "balancer" => (self.address(from), Entry::Local),
            "pod elsewhere" => (self.address(from), Entry::Overlay),
            "outside" | "stranger" | "other node" => (self.address(from), Entry::Uplink),
            number => (endpoint_address(self.family, number, "here"), Entry::Pod),
        };
        let (to, port) = to.rsplit_once(':').expect("an address and a port");
        let destination = SocketAddr::new(self.address(to), port.parse().expect("a port"));
        Packet { entry, source: SocketAddr::new(source, 40_000), destination, protocol }
    }
}

/// Objects and what is planned of them.
pub struct Cluster {
    world: World,
    facts: NodeFacts,
    config: ClusterConfig,
    desired: Desired,
}

impl Cluster {
    /// What the oracle and the plans say: `Err` of what is for no port of any Service, which is
    /// not the plans' business.
    pub fn verdicts(&self, packet: &Packet) -> (Result<Verdict, Verdict>, Result<Verdict, ()>) {
        let node =
            oracle::service::Node { name: &self.facts.name, addresses: &self.facts.addresses };
        let Decision { verdict, rule } =
            oracle::service::decide(&self.world, &self.config, node, packet);
        let meant = match rule {
            Rule::ClusterIp(..)
            | Rule::External(..)
            | Rule::NodePort(..)
            | Rule::PortRange(..)
            | Rule::SourceRanges(..) => Ok(verdict),
            _ => Err(verdict),
        };
        let plans = self.desired.services.values();
        let planned = of_plan::verdict(plans, &self.config, &self.facts, packet);
        (meant, planned.ok_or(()))
    }
}

/// The two families.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// An address by its word.
pub fn address(family: Family, word: &str) -> IpAddr {
    let found = ADDRESSES.iter().find(|(known, ..)| *known == word);
    let (_, v4, v6) = found.unwrap_or_else(|| panic!("{word:?} is no known address"));
    let text = if family == Family::V4 { v4 } else { v6 };
    text.parse().expect("an address")
}

fn endpoint(family: Family, words: &str) -> Endpoint {
    let mut words = words.split(' ');
    let mut word = || words.next().expect("NUMBER PLACE STATE");
    let (number, place, state) = (word(), word(), word());
    let (ready, serving, terminating) = match state {
        "ready" => (Some(true), Some(true), Some(false)),
        "unready" => (Some(false), Some(false), Some(false)),
        "leaving" => (Some(false), Some(true), Some(true)),
        "gone" => (Some(false), Some(false), Some(true)),
        // Neither ready nor on its way out: serving alone does not count (KEP-1669).
        "serving" => (Some(false), Some(true), Some(false)),
        // The API's defaults: ready, serving as ready, not terminating.
        "unsaid" => (None, None, None),
        // publishNotReadyAddresses: the controller calls it ready, whatever it is.
        "published" => (Some(true), Some(false), Some(true)),
        other => panic!("{other:?} is no state"),
    };
    let mut hints = EndpointHints::default();
    for hint in words {
        let name = |name: &str| ForName { name: name.into() };
        match hint.split_once(':') {
            Some(("zone", zone)) => hints.for_zones.push(name(zone)),
            Some(("node", node)) => hints.for_nodes.push(name(node)),
            _ => panic!("{hint:?} is no hint"),
        }
    }
    Endpoint {
        addresses: vec![endpoint_address(family, number, place).to_string()],
        conditions: Conditions { ready, serving, terminating },
        node_name: if place == "nowhere" { String::new() } else { place.into() },
        hints: (hints != EndpointHints::default()).then(|| hints.into()),
        target_ref: Some(TargetReference { name: format!("web-{number}") }.into()),
        ..Endpoint::default()
    }
}

fn endpoint_address(family: Family, number: &str, place: &str) -> IpAddr {
    let range = ["nowhere", "here", "there"].iter().position(|known| *known == place);
    let range = range.unwrap_or_else(|| panic!("{place:?} is no place"));
    let number: u8 = number.parse().expect("an endpoint's number");
    let text = match family {
        Family::V4 => format!("10.244.{range}.{number}"),
        Family::V6 => format!("fd00:244:{range}::{number}"),
    };
    text.parse().expect("an address")
}

fn in_words(verdict: &Verdict, packet: &Packet) -> String {
    let (destinations, source) = match verdict {
        Verdict::Drop => return "drop".into(),
        Verdict::Reject => return "reject".into(),
        Verdict::Pass { destinations, .. } if *destinations == [packet.destination].into() => {
            return "nothing".into();
        }
        Verdict::Pass { destinations, source, .. } => (destinations, source),
    };
    let number = |endpoint: &SocketAddr| {
        let number = match endpoint.ip() {
            IpAddr::V4(address) => address.octets()[3].into(),
            IpAddr::V6(address) => address.segments()[7],
        };
        match endpoint.port() {
            8080 => number.to_string(),
            port => format!("{number}:{port}"),
        }
    };
    let mut words: Vec<String> = destinations.iter().map(number).collect();
    words.sort();
    words.extend(match source {
        SourceTranslation::Kept => None,
        SourceTranslation::Masqueraded => Some("masqueraded".to_owned()),
        SourceTranslation::MasqueradedTo(_) => Some("hairpin".to_owned()),
    });
    words.join(" ")
}
