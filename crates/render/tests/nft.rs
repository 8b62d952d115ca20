//! Laws of the nftables half: what is applied is there, a change disturbs nobody whom it does not
//! concern, and not even those whom it does while it is under way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use model::packet::{Entry, Packet, SourceTranslation, Verdict};
use model::{ClusterConfig, Family, NamespacedName, PortRange, Protocol};
use plan::services::{Backends, Frontend, FrontendPlan, ServicePlan};
use plan::{Desired, NodeFacts};
use proptest::prelude::*;
use render::nft::text::TableText;
use render::nft::{NftObserved, NftOp, NftProgram, diff, render, trace};

const SERVICES: u8 = 4;

fn facts() -> NodeFacts {
    NodeFacts {
        name: "node1".into(),
        uplink: "eth0".into(),
        uplink_mtu: 1500,
        addresses: vec!["172.30.0.2".parse().expect("an address")],
        ..NodeFacts::default()
    }
}

/// The endpoints of each Service; a Service without any is absent, refused or dropping.
#[derive(Clone, Debug)]
struct State {
    services: BTreeMap<u8, (Backends, bool)>,
}

fn states() -> impl Strategy<Value = State> {
    let endpoints = prop::collection::btree_set(1_u8..9, 1..6).prop_map(|lasts| {
        let all = lasts.iter().map(|&last| SocketAddr::from(([10, 244, 0, last], 8080)));
        Backends::Endpoints(all.collect())
    });
    let backends =
        prop_oneof![5 => endpoints, 1 => Just(Backends::Reject), 1 => Just(Backends::Drop)];
    let service = (backends, prop::bool::weighted(0.3));
    prop::collection::btree_map(0..SERVICES, service, 0..=usize::from(SERVICES))
        .prop_map(|services| State { services })
}

fn frontends(index: u8) -> [Frontend; 2] {
    let protocol = if index.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp };
    let address = [10, 96, 1, index].into();
    [
        Frontend::ClusterIp { address, protocol, port: 80 },
        Frontend::NodePort { family: Family::V4, protocol, port: 30_000 + u16::from(index) },
    ]
}

fn desired(state: &State) -> Desired {
    let mut desired = Desired::default();
    for (&index, (backends, sticky)) in &state.services {
        let affinity_timeout_s = sticky.then_some(60);
        let plan = FrontendPlan { affinity_timeout_s, ..FrontendPlan::new(backends.clone()) };
        let frontends = frontends(index).map(|frontend| (frontend, plan.clone()));
        let service = ServicePlan { frontends: frontends.into(), ..ServicePlan::default() };
        desired.services.insert(NamespacedName::new("shop", format!("s{index}")), service);
    }
    desired
}

fn program(state: &State) -> NftProgram {
    render(&desired(state), &ClusterConfig::default(), &facts())
}

fn packets(index: u8) -> Vec<Packet> {
    let facts = facts();
    frontends(index)
        .into_iter()
        .map(|frontend| {
            let destination = match frontend {
                Frontend::ClusterIp { address, port, .. }
                | Frontend::External { address, port, .. } => SocketAddr::new(address, port),
                Frontend::NodePort { port, .. } => SocketAddr::new(facts.addresses[0], port),
            };
            Packet {
                entry: Entry::Uplink,
                source: SocketAddr::from(([172, 30, 0, 9], 40_000)),
                destination,
                protocol: frontend.protocol(),
            }
        })
        .collect()
}

fn traced(observed: &NftObserved, packet: &Packet) -> Verdict {
    trace(observed, packet, &ClusterConfig::default(), &facts())
        .unwrap_or_else(|error| panic!("{packet:?}: {error}\n{}", text(observed)))
}

fn text(observed: &NftObserved) -> String {
    observed.tables.iter().map(|(id, table)| TableText(id, table).to_string()).collect()
}

fn apply(observed: &mut NftObserved, ops: &[NftOp]) {
    for op in ops {
        observed.apply(op).unwrap_or_else(|error| panic!("{error}\n{}", text(observed)));
    }
}

fn converge(observed: &mut NftObserved, program: &NftProgram) {
    let ops = diff(program, observed);
    apply(observed, &ops);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_applied_is_there_and_says_what_was_planned(steps in prop::collection::vec(states(), 1..4)) {
        let mut observed = NftObserved::default();
        for state in &steps {
            let program = program(state);
            converge(&mut observed, &program);
            prop_assert_eq!(diff(&program, &observed), vec![]);
        }
        let state = steps.last().expect("a state");
        for index in 0..SERVICES {
            for packet in packets(index) {
                let at_node = packet.destination.ip() == facts().addresses[0];
                let expected = match state.services.get(&index).map(|(backends, _)| backends) {
                    Some(Backends::Endpoints(endpoints)) => Verdict::Pass {
                        destinations: endpoints.iter().copied().collect(),
                        source: SourceTranslation::Masqueraded,
                        source_ports: BTreeMap::new(),
                    },
                    Some(Backends::Reject) => Verdict::Reject,
                    Some(Backends::Drop) => Verdict::Drop,
                    None if at_node => Verdict::Pass {
                        destinations: [packet.destination].into(),
                        source: SourceTranslation::Kept,
                        source_ports: BTreeMap::new(),
                    },
                    None => Verdict::Drop,
                };
                prop_assert_eq!(traced(&observed, &packet), expected);
            }
        }
    }

    #[test]
    fn a_service_with_endpoints_before_and_after_is_never_refused(before in states(), after in states()) {
        let mut observed = NftObserved::default();
        converge(&mut observed, &program(&before));
        for op in diff(&program(&after), &observed) {
            observed.apply(&op).expect("the op is valid");
            for index in 0..SERVICES {
                let of = |state: &State| match state.services.get(&index) {
                    Some((Backends::Endpoints(endpoints), _)) => Some(endpoints.clone()),
                    _ => None,
                };
                let (Some(old), Some(new)) = (of(&before), of(&after)) else { continue };
                for packet in packets(index) {
                    let Verdict::Pass { destinations, .. } = traced(&observed, &packet) else {
                        panic!("{packet:?} is lost after {op:?}\n{}", text(&observed));
                    };
                    let either: BTreeSet<SocketAddr> = old.iter().chain(&new).copied().collect();
                    prop_assert!(destinations.is_subset(&either));
                }
            }
        }
    }

    #[test]
    fn after_a_crash_at_any_op_a_fresh_process_finishes(before in states(), after in states(), stop in 0_usize..8) {
        let mut observed = NftObserved::default();
        converge(&mut observed, &program(&before));
        let wanted = program(&after);
        let ops = diff(&wanted, &observed);
        apply(&mut observed, &ops[..stop.min(ops.len())]);
        converge(&mut observed, &wanted);
        prop_assert_eq!(diff(&wanted, &observed), vec![]);
    }
}

#[test]
fn a_change_of_one_endpoint_touches_one_slot() {
    let with = |lasts: &[u8]| {
        let endpoints = lasts.iter().map(|&last| ([10, 244, 0, last], 8080).into()).collect();
        State { services: [(0, (Backends::Endpoints(endpoints), false))].into() }
    };
    let mut observed = NftObserved::default();
    converge(&mut observed, &program(&with(&[1, 2, 3])));
    let ops = diff(&program(&with(&[1, 3, 4])), &observed);
    let [NftOp::Transaction(transaction)] = ops.as_slice() else { panic!("{ops:?}") };
    // The same slot in the maps of the two frontends: deleted and added.
    assert_eq!(transaction.commands.len(), 4, "{transaction:?}");
}

/// Whom the old ranges let in reaches no new endpoint, and whom the new ones let in no old one.
#[test]
fn source_ranges_and_endpoints_that_change_together_change_at_once() {
    let destination = SocketAddr::from(([198, 51, 100, 21], 80));
    let protocol = Protocol::Tcp;
    let frontend = Frontend::External { address: destination.ip(), protocol, port: 80 };
    let packet = |third: u8| Packet {
        entry: Entry::Uplink,
        source: SocketAddr::from(([192, 0, third, 9], 40_000)),
        destination,
        protocol,
    };
    let wanted = |endpoint: u8, ranges: &[&str]| {
        let endpoint = SocketAddr::from(([10, 244, 0, endpoint], 8080));
        let source_ranges = ranges.iter().map(|range| range.parse().expect("a range")).collect();
        let plan = FrontendPlan {
            source_ranges: Some(source_ranges),
            ..FrontendPlan::new(Backends::Endpoints([endpoint].into_iter().collect()))
        };
        let service =
            ServicePlan { frontends: [(frontend, plan)].into(), ..ServicePlan::default() };
        let services = [(NamespacedName::new("shop", "web"), service)].into();
        let desired = Desired { services, ..Desired::default() };
        render(&desired, &ClusterConfig::default(), &facts())
    };
    for (ranges, then) in
        [(["192.0.2.0/24"], ["192.0.3.0/24"]), (["192.0.2.0/23"], ["192.0.3.0/24"])]
    {
        let mut observed = NftObserved::default();
        converge(&mut observed, &wanted(1, &ranges));
        let verdicts =
            |observed: &NftObserved| [2, 3].map(|third| traced(observed, &packet(third)));
        let before = verdicts(&observed);
        let ops = diff(&wanted(2, &then), &observed);
        let mut seen = Vec::new();
        for op in &ops {
            observed.apply(op).expect("the op is valid");
            seen.push(verdicts(&observed));
        }
        let after = verdicts(&observed);
        assert!(matches!(&after[..], [Verdict::Drop, Verdict::Pass { .. }]), "{after:?}");
        assert!(seen.iter().all(|now| *now == before || *now == after), "{before:?} {seen:?}");
    }
}

#[test]
fn udp_flows_to_what_is_gone_are_forgotten_and_only_those() {
    let with = |lasts: &[u8]| {
        let endpoints = lasts.iter().map(|&last| ([10, 244, 0, last], 8080).into()).collect();
        // 0 is TCP, 1 is UDP.
        let one = (Backends::Endpoints(endpoints), false);
        State { services: [(0, one.clone()), (1, one)].into() }
    };
    let mut observed = NftObserved::default();
    converge(&mut observed, &program(&with(&[1, 2])));
    let forgotten = |state: &State| -> Vec<_> {
        let ops = diff(&program(state), &observed);
        let stale = ops.into_iter().filter_map(|op| match op {
            NftOp::ForgetFlows(stale) => Some(stale.frontends),
            NftOp::Transaction(_) => None,
        });
        stale.collect()
    };
    let left: BTreeSet<SocketAddr> = [([10, 244, 0, 1], 8080).into()].into();
    let frontends = [([10, 96, 1, 1], 80).into(), ([172, 30, 0, 2], 30_001).into()];
    let expected = frontends.map(|frontend: SocketAddr| (frontend, left.clone())).into();
    assert_eq!(forgotten(&with(&[1])), [expected]);
    // One more endpoint makes nothing stale.
    assert_eq!(forgotten(&with(&[1, 2, 3])), []);
}

#[test]
fn an_unknown_rule_is_refused_by_the_tracer_until_it_is_recognised() {
    let state = State { services: [(0, (Backends::Reject, false))].into() };
    let mut observed = NftObserved::default();
    converge(&mut observed, &program(&state));
    for table in observed.tables.values_mut() {
        for rule in table.chains.values_mut().flat_map(|chain| &mut chain.rules) {
            *rule = render::nft::language::Rule::observed(rule.fingerprint());
        }
    }
    assert_eq!(diff(&program(&state), &observed), []);
    let packet = &packets(0)[0];
    let config = ClusterConfig::default();
    assert!(trace(&observed, packet, &config, &facts()).is_err());
    observed.recognise(&program(&state));
    assert_eq!(trace(&observed, packet, &config, &facts()), Ok(Verdict::Reject));
}

#[test]
fn other_source_ports_are_one_change_of_one_chain() {
    let config = |ports: Option<(u16, u16)>| ClusterConfig {
        masquerade_ports: ports.and_then(|(first, last)| PortRange::new(first, last)),
        ..ClusterConfig::default()
    };
    let program = |config: &ClusterConfig| render(&Desired::default(), config, &facts());
    let outside = Packet {
        entry: Entry::Pod,
        source: "10.244.1.9:40000".parse().expect("a source"),
        destination: "192.0.2.10:443".parse().expect("a destination"),
        protocol: Protocol::Tcp,
    };
    let mut observed = NftObserved::default();
    converge(&mut observed, &program(&config(None)));
    for ports in [Some((40_000, 40_999)), Some((50_000, 50_999)), None] {
        let config = config(ports);
        let ops = diff(&program(&config), &observed);
        let text = format!("{ops:?}");
        let rewritten = ["FlushChain(", "FlushChain(\"nat-postrouting\")"];
        let rewritten = rewritten.map(|command| text.matches(command).count());
        assert_eq!((ops.len(), rewritten), (1, [1, 1]), "{text}");
        converge(&mut observed, &program(&config));
        let ports = config.masquerade_ports.map(|ports| (outside.destination.ip(), ports));
        let expected = Verdict::Pass {
            destinations: [outside.destination].into(),
            source: SourceTranslation::MasqueradedTo([outside.destination.ip()].into()),
            source_ports: ports.into_iter().collect(),
        };
        assert_eq!(trace(&observed, &outside, &config, &facts()), Ok(expected));
    }
}

#[test]
fn both_families_have_a_table_of_the_same_form() {
    let range = |text: &str| text.parse().expect("a range");
    let mut config = ClusterConfig::default();
    config.pod_cidrs.push(range("fd00:244::/48"));
    config.service_cidrs.push(range("fd00:96::/108"));
    config.node_cidrs.push(range("fd00:30::/64"));
    let endpoint: SocketAddr = "[fd00:244::5]:8080".parse().expect("an endpoint");
    let address = "fd00:96::7".parse().expect("an address");
    let frontend = Frontend::ClusterIp { address, protocol: Protocol::Tcp, port: 80 };
    let plan = FrontendPlan::new(Backends::Endpoints([endpoint].into()));
    let service = ServicePlan {
        frontends: [(frontend, plan)].into(),
        local_addresses: [endpoint.ip()].into(),
        ..ServicePlan::default()
    };
    let mut desired = Desired::default();
    desired.services.insert(NamespacedName::new("shop", "web"), service);
    let program = render(&desired, &config, &facts());
    let mut observed = NftObserved::default();
    converge(&mut observed, &program);
    let packet = Packet {
        entry: Entry::Uplink,
        source: "[fd00:30::9]:40000".parse().expect("a source"),
        destination: SocketAddr::new(address, 80),
        protocol: Protocol::Tcp,
    };
    let verdict = trace(&observed, &packet, &config, &facts());
    let source = SourceTranslation::Masqueraded;
    let (destinations, source_ports) = ([endpoint].into(), BTreeMap::new());
    assert_eq!(verdict, Ok(Verdict::Pass { destinations, source, source_ports }));
}
