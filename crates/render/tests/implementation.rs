//! What `flatnet service show` prints of the kernel: for every backend the objects of that Service,
//! no others', with what was read back.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use model::{ClusterConfig, Family, NamespacedName, Protocol, ServiceBackend};
use plan::services::{
    Backends, Frontend, FrontendPlan, RangeFrontend, RangeScope, Scheduling, ServicePlan,
};
use plan::{Desired, NodeFacts};
use render::implementation::{KernelObject, of_service};
use render::{Observed, Program, diff, render};

const BACKENDS: [ServiceBackend; 4] = [
    ServiceBackend::Nftables,
    ServiceBackend::Iptables,
    ServiceBackend::Ipvs,
    ServiceBackend::Ebpf,
];

fn endpoints(of: u8) -> Backends {
    let endpoint = |number| SocketAddr::from(([10, 244, of, number], 8080));
    Backends::Endpoints([endpoint(1), endpoint(2)].into())
}

/// A Service with a ClusterIP, a node port and an address from outside, all told by `number`.
fn service(number: u8, is_special: bool) -> ServicePlan {
    let protocol = Protocol::Tcp;
    let cluster_ip =
        Frontend::ClusterIp { address: [10, 96, 1, number].into(), protocol, port: 80 };
    let external = Frontend::External { address: [192, 0, 2, number].into(), protocol, port: 80 };
    let port = 30_000 + u16::from(number);
    let node_port = Frontend::NodePort { family: Family::V4, protocol, port };
    let plain = FrontendPlan { port_name: "http".into(), ..FrontendPlan::new(endpoints(number)) };
    let mut special = plain.clone();
    if is_special {
        special.affinity_timeout_s = Some(600);
        special.source_ranges = Some(["198.51.100.0/24".parse().expect("a range")].into());
        special.outside = Some(Backends::Drop);
    }
    let range = RangeFrontend {
        scope: RangeScope::ClusterIp,
        address: [10, 96, 1, number].into(),
        protocol,
        first: 7000,
        last: 7100,
    };
    let keeps_port = |endpoint: &SocketAddr| SocketAddr::new(endpoint.ip(), 0);
    let Backends::Endpoints(all) = endpoints(number) else { panic!("endpoints") };
    let ranged = Backends::Endpoints(all.iter().map(keeps_port).collect());
    ServicePlan {
        frontends: [(cluster_ip, plain), (external, special.clone()), (node_port, special)].into(),
        ranges: [(range, FrontendPlan::new(ranged))].into(),
        ..ServicePlan::default()
    }
}

fn key(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name)
}

struct Node {
    desired: Desired,
    config: ClusterConfig,
    facts: NodeFacts,
    program: Program,
    observed: Observed,
}

impl Node {
    fn new(service_backend: ServiceBackend, desired: Desired) -> Self {
        let config = ClusterConfig { service_backend, ..ClusterConfig::default() };
        let facts = NodeFacts { addresses: vec![[172, 30, 0, 2].into()], ..NodeFacts::default() };
        let program = render(&desired, &config, &facts);
        let mut observed = Observed::default();
        for op in diff(&program, &observed) {
            observed.apply(&op).expect("an op that the kernel takes");
        }
        Self { desired, config, facts, program, observed }
    }

    fn of_service(&self, name: &str) -> Vec<KernelObject> {
        let Self { desired, config, facts, program, observed } = self;
        of_service(&key(name), desired, config, facts, (program, observed))
    }
}

fn two_services() -> Desired {
    let mut desired = Desired::default();
    desired.services.insert(key("web"), service(7, false));
    desired.services.insert(key("special"), service(8, true));
    desired
}

/// Issue 4, item 6, for each backend.
#[test]
fn the_objects_of_a_service_are_named_with_their_values_and_no_others() {
    for backend in BACKENDS {
        let node = Node::new(backend, two_services());
        for (name, own, other) in [("web", 7, 8), ("special", 8, 7)] {
            let objects = node.of_service(name);
            let text = format!("{objects:#?}");
            for part in [
                format!("10.96.1.{own}"),
                format!("192.0.2.{own}"),
                format!("3000{own}"),
                format!("10.244.{own}.1:8080"),
            ] {
                let alternative = part.replace(":8080", " . 8080");
                let is_there = text.contains(&part) || text.contains(&alternative);
                assert!(is_there, "{backend:?}: {part} is not in what implements {name}: {text}");
            }
            for part in [format!("10.96.1.{other}"), format!("10.244.{other}.")] {
                assert!(!text.contains(&part), "{backend:?}: {part} is not of {name}: {text}");
            }
            let absent: Vec<&KernelObject> = objects.iter().filter(|it| !it.present).collect();
            assert!(absent.is_empty(), "{backend:?}: {absent:?}");
        }
        assert_eq!(node.of_service("nobody"), [], "{backend:?}");
    }
}

/// Whatever the Services add to the kernel is told of one of them.
#[test]
fn nothing_that_services_add_goes_untold() {
    for backend in BACKENDS {
        let node = Node::new(backend, two_services());
        let told: BTreeSet<String> = ["web", "special"]
            .into_iter()
            .flat_map(|name| node.of_service(name))
            .map(|it| format!("{} {}", it.within, it.object))
            .collect();
        let bare = Node::new(backend, Desired::default());
        for (id, table) in &node.observed.nft.tables {
            let known = &bare.observed.nft.tables[id];
            for (name, chain) in &table.chains {
                if known.chains.get(name) != Some(chain) {
                    assert!(told.contains(&format!("nftables {id} chain {name}")), "{name}");
                }
            }
            for (name, set) in &table.sets {
                let is_told = |kind| told.contains(&format!("nftables {id} {kind} {name}"));
                let added = known.sets.get(name).is_none_or(|known| known.elements != set.elements);
                // Of clients, which packets add, there are none yet.
                if added && !set.elements.is_empty() {
                    assert!(is_told("map") || is_told("set"), "{backend:?}: {name}: {told:?}");
                }
            }
        }
        for (id, table) in &node.observed.iptables.tables {
            let known = &bare.observed.iptables.tables[id];
            for (name, rules) in &table.chains {
                if known.chains.get(name) != Some(rules) {
                    assert!(told.contains(&format!("iptables {id} chain {name}")), "{name}");
                }
            }
        }
    }
}

/// What the kernel lost is told as lost, until it is put back.
#[test]
fn what_the_kernel_has_not_is_told() {
    for backend in BACKENDS {
        let mut node = Node::new(backend, two_services());
        node.observed = Node::new(backend, Desired::default()).observed;
        let objects = node.of_service("web");
        assert!(!objects.is_empty(), "{backend:?}");
        let present: Vec<&KernelObject> = objects.iter().filter(|it| it.present).collect();
        assert!(present.is_empty(), "{backend:?}: {present:?}");
    }
}

/// The weights of endpoints show: in slots, in chances, or in the kernel's own.
#[test]
fn an_endpoint_with_twice_the_weight_shows_it() {
    for backend in BACKENDS {
        let mut desired = two_services();
        let plan = desired.services.get_mut(&key("web")).expect("a plan");
        for frontend in plan.frontends.values_mut() {
            let weights = [("10.244.7.1:8080", 2), ("10.244.7.2:8080", 1)];
            let weights = weights.map(|(one, weight)| (one.parse().expect("an endpoint"), weight));
            frontend.scheduling = Scheduling::Weighted(weights.into());
        }
        let weighted = Node::new(backend, desired).of_service("web");
        let plain = Node::new(backend, two_services()).of_service("web");
        assert_ne!(weighted, plain, "{backend:?}");
    }
}
