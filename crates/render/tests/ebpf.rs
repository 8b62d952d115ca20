//! Laws of the eBPF half: what is applied is there, a change disturbs nobody whom it does not
//! concern, and while it is under way everybody gets what was or what will be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ebpf_abi::services::RANGE_PORT_BITS;
use ipnet::IpNet;
use model::packet::{Entry, Packet, SourceTranslation, Verdict};
use model::{ClusterConfig, Family, NamespacedName, Protocol};
use plan::network::{NetworkPlan, TunnelEnds};
use plan::services::{
    Backends, Frontend, FrontendPlan, RangeFrontend, RangeScope, Scheduling, ServicePlan,
};
use plan::{Desired, NodeFacts};
use proptest::prelude::*;
use render::ebpf::{
    Change, EbpfObserved, EbpfOp, EbpfProgram, FrontendKey, diff, diff_frontends, render, trace,
};

const SERVICES: u8 = 4;
/// Of each law: their many entries and moments make one case cost tens of milliseconds.
const CASES: u32 = 40;
const NODE_ADDRESS: &str = "172.30.0.2";

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn range(text: &str) -> IpNet {
    text.parse().expect("a range")
}

fn facts() -> NodeFacts {
    NodeFacts { addresses: vec![address(NODE_ADDRESS)], ..NodeFacts::default() }
}

/// Of one Service: its endpoints, whether clients stay with theirs, and how they are chosen.
#[derive(Clone, Debug, PartialEq)]
struct Wish {
    backends: Backends,
    sticky: bool,
    scheduling: Scheduling,
    for_some: bool,
}

type State = BTreeMap<u8, Wish>;

fn wishes() -> impl Strategy<Value = Wish> {
    let endpoint = |last: u8| SocketAddr::from(([10, 244, 1, last], 8080));
    // Some fit into the frontend's entry, some do not.
    let weighted = prop::collection::btree_map(1_u8..12, 1_u16..9, 1..10);
    let endpoints = (weighted, 0..4_u8).prop_map(move |(weights, kind)| {
        let weights: BTreeMap<SocketAddr, u16> =
            weights.into_iter().map(|(last, weight)| (endpoint(last), weight)).collect();
        let endpoints = Backends::Endpoints(weights.keys().copied().collect());
        let scheduling = match kind {
            0 => Scheduling::Weighted(weights),
            1 => Scheduling::Maglev,
            _ => Scheduling::Random,
        };
        (endpoints, scheduling)
    });
    let random = |backends| Just((backends, Scheduling::Random));
    let backends =
        prop_oneof![6 => endpoints, 1 => random(Backends::Reject), 1 => random(Backends::Drop)];
    (backends, prop::bool::weighted(0.3), prop::bool::weighted(0.3)).prop_map(
        |((backends, scheduling), sticky, for_some)| Wish {
            backends,
            sticky,
            scheduling,
            for_some,
        },
    )
}

fn states() -> impl Strategy<Value = State> {
    prop::collection::btree_map(0..SERVICES, wishes(), 0..=usize::from(SERVICES))
}

fn protocol(index: u8) -> Protocol {
    if index.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp }
}

fn ranges_of(index: u8) -> RangeFrontend {
    RangeFrontend {
        scope: RangeScope::ClusterIp,
        address: [10, 96, 1, index].into(),
        protocol: protocol(index),
        first: 1000,
        last: 1500,
    }
}

fn desired(state: &State) -> Desired {
    let mut desired = Desired { network: Some(network()), ..Desired::default() };
    for (&index, wish) in state {
        let protocol = protocol(index);
        let plan = FrontendPlan {
            affinity_timeout_s: wish.sticky.then_some(60),
            scheduling: wish.scheduling.clone(),
            ..FrontendPlan::new(wish.backends.clone())
        };
        let external = FrontendPlan {
            source_ranges: wish.for_some.then(|| [range("198.51.100.0/24")].into()),
            outside: Some(Backends::Drop),
            ..plan.clone()
        };
        let frontends = [
            (
                Frontend::ClusterIp { address: [10, 96, 1, index].into(), protocol, port: 80 },
                plan.clone(),
            ),
            (
                Frontend::NodePort {
                    family: Family::V4,
                    protocol,
                    port: 30_000 + u16::from(index),
                },
                plan.clone(),
            ),
            (
                Frontend::External { address: [203, 0, 113, index].into(), protocol, port: 80 },
                external,
            ),
        ];
        let service = ServicePlan {
            frontends: frontends.into(),
            ranges: [(ranges_of(index), with_port_kept(plan))].into(),
            ..ServicePlan::default()
        };
        desired.services.insert(NamespacedName::new("shop", format!("s{index}")), service);
    }
    desired
}

/// As the endpoints of a range are: their port is the packet's.
fn with_port_kept(plan: FrontendPlan) -> FrontendPlan {
    let keep = |endpoint: &SocketAddr| SocketAddr::new(endpoint.ip(), 0);
    let backends = match &plan.backends {
        Backends::Endpoints(endpoints) => Backends::Endpoints(endpoints.iter().map(keep).collect()),
        other => other.clone(),
    };
    let scheduling = match &plan.scheduling {
        Scheduling::Weighted(weights) => Scheduling::Weighted(
            weights.iter().map(|(endpoint, weight)| (keep(endpoint), *weight)).collect(),
        ),
        other => other.clone(),
    };
    FrontendPlan { backends, scheduling, ..plan }
}

fn network() -> NetworkPlan {
    NetworkPlan {
        pod_ranges: vec![range("10.244.1.0/24")],
        blocks: BTreeSet::new(),
        agent_chooses_addresses: false,
        gateways: vec![],
        mtu: 1500,
        promised_mtu: 1500,
        ends: TunnelEnds::default(),
        peers: BTreeMap::new(),
        dns_addresses: vec![],
        uplink: "eth0".into(),
    }
}

fn program(state: &State) -> EbpfProgram {
    render(&desired(state), &ClusterConfig::default(), &facts())
}

/// From pods, the node and outside to each frontend of a Service.
fn packets(index: u8) -> Vec<Packet> {
    let targets = [
        SocketAddr::from(([10, 96, 1, index], 80)),
        SocketAddr::from(([10, 96, 1, index], 1234)),
        SocketAddr::new(address(NODE_ADDRESS), 30_000 + u16::from(index)),
        SocketAddr::from(([203, 0, 113, index], 80)),
    ];
    let sources = [
        (Entry::Pod, "10.244.1.3"),
        (Entry::Local, NODE_ADDRESS),
        (Entry::Uplink, "198.51.100.7"),
        (Entry::Overlay, "10.244.2.9"),
    ];
    let packet = |destination, (entry, source)| Packet {
        entry,
        source: SocketAddr::new(address(source), 40_000),
        destination,
        protocol: protocol(index),
    };
    targets.iter().flat_map(|to| sources.map(|from| packet(*to, from))).collect()
}

fn verdict(observed: &EbpfObserved, packet: &Packet) -> Result<Verdict, String> {
    trace(observed, packet, &ClusterConfig::default(), &facts())
        .map_err(|error| format!("{packet:?}: {error}"))
}

fn apply_all(observed: &mut EbpfObserved, ops: &[EbpfOp]) {
    for op in ops {
        observed.apply(op).expect("the kernel takes it");
    }
}

fn settled(state: &State) -> EbpfObserved {
    let mut observed = EbpfObserved::default();
    let ops = diff(&program(state), &observed);
    apply_all(&mut observed, &ops);
    observed
}

/// Each entry of a batch is written by itself: packets pass between any two.
fn single(ops: &[EbpfOp]) -> Vec<EbpfOp> {
    fn split<K: Clone, V: Clone>(
        change: &Change<K, V>,
        make: impl Fn(Change<K, V>) -> EbpfOp,
    ) -> Vec<EbpfOp> {
        match change {
            Change::Put(entries) => {
                entries.iter().map(|entry| make(Change::Put(vec![entry.clone()]))).collect()
            }
            Change::Remove(keys) => {
                keys.iter().map(|key| make(Change::Remove(vec![key.clone()]))).collect()
            }
        }
    }
    let one = |op: &EbpfOp| match op {
        EbpfOp::Services(change) => split(change, EbpfOp::Services),
        EbpfOp::Ranges(change) => split(change, EbpfOp::Ranges),
        EbpfOp::Slots(change) => split(change, EbpfOp::Slots),
        EbpfOp::Maglev(change) => split(change, EbpfOp::Maglev),
        EbpfOp::Members(change) => split(change, EbpfOp::Members),
        EbpfOp::Sources(change) => split(change, EbpfOp::Sources),
        EbpfOp::NodeAddresses(change) => split(change, EbpfOp::NodeAddresses),
        EbpfOp::OwnPods(change) => split(change, EbpfOp::OwnPods),
        EbpfOp::DirectHosts(change) => split(change, EbpfOp::DirectHosts),
    };
    ops.iter().flat_map(one).collect()
}

/// Whether a client may see this in the middle of a change: what was, what will be, or already an
/// endpoint of the new state before the new rules of who may come, and the other way round.
fn is_between(now: &Verdict, old: &Verdict, new: &Verdict, either: &BTreeSet<SocketAddr>) -> bool {
    let passes = |verdict: &Verdict| matches!(verdict, Verdict::Pass { .. });
    match now {
        Verdict::Pass { destinations, .. } => {
            (passes(old) || passes(new)) && destinations.is_subset(either)
        }
        Verdict::Reject | Verdict::Drop => now == old || now == new,
    }
}

/// The endpoints of a Service before and after, with the port that a packet gets there.
fn endpoints(states: [&State; 2], index: u8, packet: &Packet) -> BTreeSet<SocketAddr> {
    let wishes = states.into_iter().filter_map(|state| state.get(&index));
    let of = |wish: &Wish| match &wish.backends {
        Backends::Endpoints(endpoints) => endpoints.iter().copied().collect(),
        Backends::Reject | Backends::Drop => BTreeSet::new(),
    };
    let untouched = [packet.destination];
    // A range keeps the packet's port.
    let both = |one: SocketAddr| [one, SocketAddr::new(one.ip(), packet.destination.port())];
    wishes.flat_map(of).flat_map(both).chain(untouched).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn what_is_applied_is_there_and_then_nothing_differs(one in states(), other in states()) {
        let mut observed = settled(&one);
        let ops = diff(&program(&other), &observed);
        apply_all(&mut observed, &ops);
        prop_assert_eq!(diff(&program(&other), &observed), vec![]);
        let from_scratch = settled(&other);
        for index in 0..SERVICES {
            for packet in packets(index) {
                prop_assert_eq!(verdict(&observed, &packet), verdict(&from_scratch, &packet));
            }
        }
    }

    #[test]
    fn at_every_moment_of_a_change_a_packet_gets_what_was_or_what_will_be(
        one in states(),
        other in states(),
    ) {
        let old = settled(&one);
        let ops = single(&diff(&program(&other), &old));
        let mut new = old.clone();
        apply_all(&mut new, &ops);
        // Maglev tables change in a thousand entries: look now and then.
        let stride = ops.len().div_ceil(60);
        let either = |index, packet: &Packet| endpoints([&one, &other], index, packet);
        let rows: Vec<_> = (0..SERVICES)
            .flat_map(|index| packets(index).into_iter().map(move |packet| (index, packet)))
            .map(|(index, packet)| {
                let (was, will) = (verdict(&old, &packet), verdict(&new, &packet));
                (either(index, &packet), packet, was.expect("settled"), will.expect("settled"))
            })
            .collect();
        let mut observed = old.clone();
        for (number, op) in ops.iter().enumerate() {
            apply_all(&mut observed, std::slice::from_ref(op));
            if matches!(op, EbpfOp::Maglev(_)) && number % stride != 0 {
                continue;
            }
            for (either, packet, was, will) in &rows {
                let is = verdict(&observed, packet).map_err(TestCaseError::fail)?;
                prop_assert!(
                    is_between(&is, was, will, either),
                    "after {op:?}: {packet:?} was {was}, is {is}, will be {will}"
                );
            }
        }
    }

    #[test]
    fn one_service_alone_is_as_all_of_them(one in states(), index in 0..SERVICES, wish in wishes()) {
        let observed = settled(&one);
        let mut other = one.clone();
        other.insert(index, wish);
        let program = program(&other);
        let key = NamespacedName::new("shop", format!("s{index}"));
        let service = &desired(&other).services[&key];
        let keys: BTreeSet<FrontendKey> =
            render::ebpf::render_service(service, &ClusterConfig::default(), &facts())
                .into_keys()
                .collect();
        let alone = diff_frontends(&program, &observed, &keys);
        prop_assert_eq!(alone, diff(&program, &observed));
    }
}

fn random(lasts: impl IntoIterator<Item = u8>) -> Wish {
    let endpoint = |last| SocketAddr::from(([10, 244, 1, last], 8080));
    Wish {
        backends: Backends::Endpoints(lasts.into_iter().map(endpoint).collect()),
        sticky: false,
        scheduling: Scheduling::Random,
        for_some: false,
    }
}

#[test]
fn a_changed_endpoint_is_one_entry_of_each_frontend() {
    let one: State = (0..SERVICES).step_by(2).map(|index| (index, random(1..=7))).collect();
    let changed = |wish: Wish| {
        let other = one.clone().into_iter().chain([(2, wish)]).collect();
        diff(&program(&other), &settled(&one))
    };
    let ops = changed(random([1, 2, 3, 4, 5, 7, 9]));
    let [EbpfOp::Slots(Change::Put(slots))] = ops.as_slice() else { panic!("{ops:?}") };
    // Of the ClusterIP, the range (with other ports), the node port, the external address.
    assert_eq!(slots.len(), 4);

    // The first ones lie in the frontends' entries, but for the range's.
    let ops = changed(random([1, 3, 4, 5, 6, 7, 9]));
    let [EbpfOp::Slots(Change::Put(slots)), EbpfOp::Services(Change::Put(frontends))] =
        ops.as_slice()
    else {
        panic!("{ops:?}")
    };
    assert_eq!((slots.len(), frontends.len()), (1, 3));
}

#[test]
fn a_small_service_is_one_entry_of_each_frontend() {
    let observed = settled(&[(2, random(1..=5))].into());
    assert_eq!(observed.services.len(), 3);
    // Of the range.
    assert_eq!(observed.slots.len(), 5);
    // One more in the ClusterIP, the node port, the external address, the range.
    assert_eq!(settled(&[(2, random(1..=6))].into()).slots.len(), 3 + 6);
}

/// A program reads a frontend, then entries change, then it reads a slot.
#[test]
fn who_read_a_frontend_before_a_change_still_finds_an_endpoint() {
    let sizes = || 1..=8;
    for (before, after) in sizes().flat_map(|before| sizes().map(move |after| (before, after))) {
        // Of those that were, the last ones stay: slots that lie with their frontend change hands.
        let states = [random(1..=before), random(9 - after..=8)].map(|wish| [(2, wish)].into());
        let [one, other]: [State; 2] = states;
        let old = settled(&one);
        let mut now = old.clone();
        for op in single(&diff(&program(&other), &old)) {
            apply_all(&mut now, std::slice::from_ref(&op));
            let frontends = (old.services.clone(), old.ranges.clone());
            let read = EbpfObserved { services: frontends.0, ranges: frontends.1, ..now.clone() };
            for packet in packets(2) {
                let verdict = verdict(&read, &packet).expect("an endpoint by any chance");
                let Verdict::Pass { destinations, .. } = verdict else { continue };
                let either = endpoints([&one, &other], 2, &packet);
                assert!(destinations.is_subset(&either), "{before} to {after}, after {op:?}");
            }
        }
    }
}

/// The rows of `plan::services`.
#[test]
fn each_client_gets_its_endpoints_and_its_source() {
    let backends = |lasts: &[u8]| {
        let all = lasts.iter().map(|&last| SocketAddr::from(([10, 244, 1, last], 8080)));
        Backends::Endpoints(all.collect())
    };
    let (all, local) = (backends(&[3, 5]), backends(&[5]));
    let cluster = FrontendPlan::new(all.clone());
    let local = FrontendPlan { outside: Some(local), ..FrontendPlan::new(all) };
    let hidden = FrontendPlan { outside: Some(Backends::Drop), ..cluster.clone() };
    let for_some =
        FrontendPlan { source_ranges: Some([range("198.51.100.0/24")].into()), ..cluster.clone() };
    let nobody = FrontendPlan { source_ranges: Some(BTreeSet::new()), ..cluster.clone() };
    let cluster_ip = |plan: &FrontendPlan| {
        let address = address("10.96.0.1");
        (Frontend::ClusterIp { address, protocol: Protocol::Tcp, port: 80 }, plan.clone())
    };
    let external = |plan: &FrontendPlan| {
        let address = address("203.0.113.1");
        (Frontend::External { address, protocol: Protocol::Tcp, port: 80 }, plan.clone())
    };
    let node_port = |plan: &FrontendPlan| {
        let (family, protocol) = (Family::V4, Protocol::Tcp);
        (Frontend::NodePort { family, protocol, port: 30_080 }, plan.clone())
    };
    let to = |lasts: &[u8], source| Verdict::Pass {
        destinations: lasts.iter().map(|&one| ([10, 244, 1, one], 8080).into()).collect(),
        source,
        source_ports: BTreeMap::new(),
    };
    let kept = |lasts: &[u8]| to(lasts, SourceTranslation::Kept);
    let masqueraded = |lasts: &[u8]| to(lasts, SourceTranslation::Masqueraded);
    let hairpin = || to(&[3, 5], SourceTranslation::MasqueradedTo([address("10.244.1.3")].into()));
    // What a pod, a pod that is an endpoint, the node, a pod elsewhere, and somebody outside get.
    let both = &[3, 5][..];
    let rows = [
        (
            cluster_ip(&cluster),
            [kept(both), hairpin(), masqueraded(both), masqueraded(both), masqueraded(both)],
        ),
        (external(&cluster), [0; 5].map(|_| masqueraded(both))),
        (node_port(&cluster), [0; 5].map(|_| masqueraded(both))),
        (external(&local), [kept(both), hairpin(), masqueraded(both), kept(&[5]), kept(&[5])]),
        (node_port(&local), [kept(both), hairpin(), masqueraded(both), kept(&[5]), kept(&[5])]),
        (
            node_port(&hidden),
            [kept(both), hairpin(), masqueraded(both), Verdict::Drop, Verdict::Drop],
        ),
        (
            external(&for_some),
            [Verdict::Drop, Verdict::Drop, Verdict::Drop, Verdict::Drop, masqueraded(both)],
        ),
        (external(&nobody), [0; 5].map(|_| Verdict::Drop)),
    ];
    let clients = [
        (Entry::Pod, "10.244.1.9"),
        (Entry::Pod, "10.244.1.3"),
        (Entry::Local, NODE_ADDRESS),
        (Entry::Overlay, "10.244.2.9"),
        (Entry::Uplink, "198.51.100.7"),
    ];
    for ((frontend, plan), expected) in rows {
        let service =
            ServicePlan { frontends: [(frontend, plan)].into(), ..ServicePlan::default() };
        let desired = Desired {
            network: Some(network()),
            services: [(NamespacedName::new("shop", "web"), service)].into(),
        };
        let config = ClusterConfig::default();
        let mut observed = EbpfObserved::default();
        let ops = diff(&render(&desired, &config, &facts()), &observed);
        apply_all(&mut observed, &ops);
        let destination = match frontend {
            Frontend::ClusterIp { address, port, .. }
            | Frontend::External { address, port, .. } => SocketAddr::new(address, port),
            Frontend::NodePort { port, .. } => SocketAddr::new(address(NODE_ADDRESS), port),
        };
        for ((entry, source), expected) in clients.into_iter().zip(expected) {
            let source = SocketAddr::new(address(source), 40_000);
            let packet = Packet { entry, source, destination, protocol: Protocol::Tcp };
            assert_eq!(verdict(&observed, &packet), Ok(expected), "{packet:?}");
        }
    }
}

#[test]
fn a_range_of_ports_is_covered_exactly() {
    for (first, last) in [(0, 65_535), (1, 65_535), (80, 80), (1000, 1500), (4095, 4097), (0, 0)] {
        let key = FrontendKey::Range {
            address: address("10.96.0.1"),
            protocol: Protocol::Tcp,
            first,
            last,
        };
        let keys = key.range_keys();
        assert!(keys.len() <= 30, "{first}-{last}: {} entries", keys.len());
        let covered = |port: u16| {
            let holds = |part: &&ebpf_abi::services::RangeKey| {
                let bits = part.prefix_bits - RANGE_PORT_BITS;
                bits == 0 || (port ^ part.port) >> (16 - bits) == 0
            };
            keys.iter().filter(holds).count()
        };
        for port in 0..=u16::MAX {
            let expected = usize::from((first..=last).contains(&port));
            assert_eq!(covered(port), expected, "{first}-{last} at {port}");
        }
    }
}

/// The maps have each part once, whichever Service's it is; so each look finds what the last one
/// wrote.
#[test]
fn ranges_of_several_services_that_overlap_are_written_once() {
    let all = [(81, 81), (81, 65_535), (80, 96), (80, 95), (96, 96)];
    let mut desired = Desired::default();
    for ((first, last), endpoint) in all.into_iter().zip(2..) {
        let frontend = RangeFrontend {
            scope: RangeScope::External,
            address: address("203.0.113.1"),
            protocol: Protocol::Udp,
            first,
            last,
        };
        let endpoints = [SocketAddr::from(([10, 244, 1, endpoint], 0))];
        let plan = FrontendPlan {
            source_ranges: Some([range(&format!("198.51.{endpoint}.0/24"))].into()),
            ..FrontendPlan::new(Backends::Endpoints(endpoints.into()))
        };
        let ranges = [(frontend, plan)].into();
        let name = NamespacedName::new("default", format!("web-{endpoint}"));
        desired.services.insert(name, ServicePlan { ranges, ..ServicePlan::default() });
    }
    let program = render(&desired, &ClusterConfig::default(), &facts());
    let mut observed = EbpfObserved::default();
    let ops = diff(&program, &observed);
    apply_all(&mut observed, &ops);
    assert!(observed.ranges.len() > all.len());
    assert_eq!(diff(&program, &observed), []);
}
