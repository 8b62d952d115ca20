//! The iptables half: text, what the programs refuse, the order of changes, and that its rules mean
//! what the nftables rules mean (invariant 13).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use model::packet::{Entry, Packet, Verdict};
use model::{ClusterConfig, Family, FlatSet, NamespacedName, PortRange, Protocol};
use plan::services::{
    Backends, Frontend, FrontendPlan, RangeFrontend, RangeScope, Scheduling, ServicePlan,
};
use plan::{Desired, NodeFacts};
use proptest::prelude::*;
use render::iptables::language::{
    CHANCE_ONE, ChainName, Comment, Fixed, Hook, Kind, Match, Rule, TableId, TableName, Target,
};
use render::iptables::{
    Command, IptablesObserved, IptablesOp, Transaction, diff, render, text, trace,
};
use render::nft;

const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 30, 0, 2));
/// Every pair of Services has frontends of its own.
const SERVICES: u8 = 4;

/// What operators of kube-proxy know: the letters of a Service port and of its endpoint.
#[test]
fn chains_have_the_letters_that_kube_proxy_gives_them() {
    for (kind, name, text) in [
        (Kind::Service, "ns1/svc1:p80tcp", "FLATNET-SVC-XPGD46QRK7WJZT7O"),
        (Kind::External, "ns1/svc1:p80tcp", "FLATNET-EXT-XPGD46QRK7WJZT7O"),
        (Kind::Firewall, "ns1/svc1:p80tcp", "FLATNET-FW-XPGD46QRK7WJZT7O"),
        (Kind::Endpoint, "ns1/svc1:p80tcp10.180.0.1:80", "FLATNET-SEP-SXIVWICOYRO3J4NJ"),
    ] {
        let chain = ChainName::keyed(kind, name);
        assert_eq!(chain.to_string(), text);
        assert_eq!(ChainName::parse(text), Some(chain));
    }
    assert_eq!(ChainName::parse("KUBE-SVC-XPGD46QRK7WJZT7O"), None);
    for foreign in ["FLATNET-SVC-XPGD46QRK7WJZT7", "FLATNET-SVC-xpgd46qrk7wjzt7o", "FLATNET-NEW"] {
        assert_eq!(ChainName::parse(foreign), Some(ChainName::Other(foreign.into())));
    }
}

#[test]
fn rules_are_printed_as_they_are_saved() {
    for (family, matches, target, words) in frequent_rules().into_iter().chain(other_rules()) {
        let rule = Rule::new(matches, target);
        assert_eq!(text::print(family, &rule), words);
        assert_eq!(text::parse(family, &words), Some(rule), "{words}");
    }
}

type Printed = (Family, Vec<Match>, Target, String);

fn frequent_rules() -> Vec<Printed> {
    let range = |text: &str| text.parse::<ipnet::IpNet>().expect("a range");
    let sep = ChainName::keyed(Kind::Endpoint, "ns1/svc1:p80tcp10.180.0.1:80");
    let tcp = || Match::Protocol(Protocol::Tcp);
    let port = |first, last| Match::Ports { first, last };
    let v6 = |text: &str| text.parse::<IpAddr>().expect("an address");
    vec![
        (
            Family::V4,
            vec![
                Match::Destination(range("10.96.0.7/32")),
                tcp(),
                port(80, 80),
                Match::Comment(Comment::new("shop/web:http")),
            ],
            sep.clone().into(),
            "-d 10.96.0.7/32 -p tcp -m tcp --dport 80 -m comment --comment \"shop/web:http\" -j \
             FLATNET-SEP-SXIVWICOYRO3J4NJ"
                .into(),
        ),
        (
            Family::V6,
            vec![Match::Source(range("fd00::/64")), Match::Protocol(Protocol::Sctp), port(1, 9)],
            Target::Translate { address: v6("fd00::5"), port: Some(80) },
            "-s fd00::/64 -p sctp -m sctp --dport 1:9 -j DNAT --to-destination [fd00::5]:80".into(),
        ),
        (
            Family::V6,
            vec![Match::FromThisNode],
            Target::Translate { address: v6("fd00::5"), port: None },
            "-m addrtype --src-type LOCAL -j DNAT --to-destination fd00::5".into(),
        ),
        (
            Family::V4,
            vec![Match::FromThisNode],
            Target::Accept,
            "-m addrtype --src-type LOCAL -j ACCEPT".into(),
        ),
        (
            Family::V4,
            vec![Match::Chance(CHANCE_ONE / 3 + 1)],
            Target::Return,
            "-m statistic --mode random --probability 0.33333333349 -j RETURN".into(),
        ),
    ]
}

fn other_rules() -> Vec<Printed> {
    let sep = ChainName::keyed(Kind::Endpoint, "ns1/svc1:p80tcp10.180.0.1:80");
    let tcp = || Match::Protocol(Protocol::Tcp);
    let masks = ["255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];
    let list = |mask| format!("--name FLATNET-SEP-SXIVWICOYRO3J4NJ --mask {mask} --rsource");
    vec![
        (
            Family::V4,
            vec![Match::Remembered { endpoint: sep.clone(), timeout_s: 10_800 }],
            Target::Drop,
            format!("-m recent --rcheck --seconds 10800 --reap {} -j DROP", list(masks[0])),
        ),
        (
            Family::V6,
            vec![Match::Remember { endpoint: sep }],
            Target::SetMark(0x4000),
            format!("-m recent --set {} -j MARK --set-xmark 0x4000/0x4000", list(masks[1])),
        ),
        (
            Family::V4,
            vec![Match::WithoutMark(0x4000)],
            Target::ClearMark(0x4000),
            "-m mark ! --mark 0x4000/0x4000 -j MARK --set-xmark 0x0/0x4000".into(),
        ),
        (
            Family::V4,
            vec![Match::NewFlow, tcp()],
            Target::Drop,
            "-m conntrack --ctstate NEW -p tcp -j DROP".into(),
        ),
        (
            Family::V4,
            vec![],
            Target::Masquerade { ports: None },
            "-j MASQUERADE --random-fully".into(),
        ),
        (
            Family::V6,
            vec![tcp()],
            Target::Masquerade { ports: PortRange::new(40_000, 49_999) },
            "-p tcp -j MASQUERADE --to-ports 40000-49999 --random-fully".into(),
        ),
        (
            Family::V4,
            vec![tcp()],
            Target::Masquerade { ports: PortRange::new(40_000, 40_000) },
            "-p tcp -j MASQUERADE --to-ports 40000 --random-fully".into(),
        ),
    ]
}

/// What we do not write is never taken for something that we do.
#[test]
fn other_rules_are_not_understood() {
    for words in [
        "",
        "-j",
        "-p icmp -j DROP",
        "-p tcp -j REJECT --reject-with tcp-reset",
        "-p tcp -j KUBE-SERVICES",
        "-i eth0 -j DROP",
        "! -s 10.0.0.0/8 -j DROP",
        "-s fd00::/64 -j DROP",
        "-m mark --mark 0x4000/0x4000 -j DROP",
        "-m mark ! --mark 0x4000/0x8000 -j DROP",
        "-m tcp --sport 80 -j DROP",
        "-m tcp --dport 80:99999 -j DROP",
        "-m conntrack --ctstate NEW,INVALID -j DROP",
        "-m statistic --mode random --probability 1.5 -j DROP",
        "-m recent --rcheck --seconds 9 --name FLATNET-SERVICES --mask 255.255.255.255 --rsource -j DROP",
        "-j MARK --set-xmark 0x4000/0xffffffff",
        "-j DNAT --to-destination 10.0.0.1-10.0.0.9",
        "-j DNAT --to-destination 10.0.0.1 --random",
        "-j MASQUERADE",
        "-p tcp -j MASQUERADE --to-ports 50000-40000 --random-fully",
        "-p tcp -j MASQUERADE --to-ports 40000-50000",
        "-j DROP -j DROP",
        "-m comment --comment \"no end",
    ] {
        assert_eq!(text::parse(Family::V4, words), None, "{words}");
    }
}

#[test]
fn of_a_saved_table_only_ours_is_read() {
    let saved = "# Generated\n*mangle\n:FLATNET-SERVICES - [0:0]\nCOMMIT\n*nat\n\
        :PREROUTING ACCEPT [12:34]\n:KUBE-SERVICES - [0:0]\n:FLATNET-SERVICES - [0:0]\n\
        :FLATNET-NODEPORTS - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n\
        -A PREROUTING -j FLATNET-SERVICES\n-A PREROUTING -i eth0 -j FLATNET-SERVICES\n\
        -A KUBE-SERVICES -j FLATNET-NODEPORTS\n-A FLATNET-SERVICES -o eth0 -j RETURN\nCOMMIT\n";
    let mut observed = IptablesObserved::default();
    text::read(&mut observed, Family::V4, saved);
    let [(id, table)] = observed.tables.iter().collect::<Vec<_>>()[..] else {
        panic!("{observed:?}");
    };
    assert_eq!(*id, TableId { family: Family::V4, name: TableName::Nat });
    let ours = Rule::new([], Fixed::Services);
    assert_eq!(table.hooks, BTreeMap::from([(Hook::Prerouting, vec![ours])]));
    let unknown = Rule::new([], Target::Unknown("-o eth0 -j RETURN".into()));
    let chains = [(Fixed::Services, vec![unknown]), (Fixed::NodePorts, vec![])];
    assert_eq!(table.chains, chains.map(|(chain, rules)| (chain.into(), rules)).into());
}

#[test]
fn the_model_of_the_kernel_refuses_what_the_programs_refuse() {
    let services = || ChainName::from(Fixed::Services);
    let ports = || ChainName::from(Fixed::NodePorts);
    let append = |rule| Command::Append(services(), rule);
    let drop = || Rule::new([], Target::Drop);
    let translate = Target::Translate { address: NODE, port: Some(1) };
    let port = Match::Ports { first: 1, last: 1 };
    let (nat, filter) = (TableName::Nat, TableName::Filter);
    let rows: Vec<(&str, TableName, Vec<Command>)> = vec![
        ("no such chain", filter, vec![Command::Append(ports(), drop())]),
        ("which does not exist", filter, vec![append(Rule::new([], Fixed::NodePorts))]),
        ("no such chain", filter, vec![Command::Delete(ports())]),
        ("has rules", filter, vec![append(drop()), Command::Delete(services())]),
        (
            "still goes there",
            filter,
            vec![
                Command::Write(ports()),
                append(Rule::new([], Fixed::NodePorts)),
                Command::Delete(ports()),
            ],
        ),
        ("nat table only", filter, vec![append(Rule::new([], Target::Masquerade { ports: None }))]),
        ("filters nothing", nat, vec![append(drop())]),
        ("needs a protocol", nat, vec![append(Rule::new([], translate))]),
        ("need a protocol", nat, vec![append(Rule::new([port], Target::Return))]),
        (
            "needs a protocol",
            nat,
            vec![append(Rule::new([], Target::Masquerade { ports: PortRange::new(1, 2) }))],
        ),
        (
            "has no chain",
            filter,
            vec![Command::InsertHook(Hook::Prerouting, Rule::new([], Fixed::Services))],
        ),
        (
            "no such rule",
            filter,
            vec![Command::DeleteHook(Hook::Input, Rule::new([], Fixed::Services))],
        ),
        ("longer than", nat, vec![Command::Write(ChainName::Other("F".repeat(29).into()))]),
        ("no rule of ours", nat, vec![append(Rule::new([], Target::Unknown("-j X".into())))]),
    ];
    for (reason, name, commands) in rows {
        let table = TableId { family: Family::V4, name };
        let mut observed = IptablesObserved::default();
        let first = vec![Command::Write(services())];
        let op = |commands| IptablesOp::Transaction(Transaction { table, commands });
        observed.apply(&op(first)).expect("a chain");
        let before = observed.clone();
        let error = observed.apply(&op(commands)).expect_err(reason);
        assert!(error.message.contains(reason), "{reason}: {error}");
        assert_eq!(observed, before, "{reason}");
    }
}

/// Each endpoint's share of all connections, from the chances in the order that they are thrown.
#[test]
fn chances_amount_to_the_weights() {
    for weights in [vec![1], vec![1, 1], vec![1; 1000], vec![9, 1], vec![1, 65_535], vec![5, 3, 2]]
    {
        let all: Vec<SocketAddr> =
            (1_u16..).zip(&weights).map(|(port, _)| SocketAddr::new(NODE, port)).collect();
        let plan = FrontendPlan {
            scheduling: Scheduling::Weighted(all.iter().copied().zip(weights.clone()).collect()),
            ..FrontendPlan::new(Backends::Endpoints(all.into_iter().collect()))
        };
        let program = render(&desired([(0, service(0, &plan))].into()), &config(), &facts());
        let nat = &program.tables[&TableId { family: Family::V4, name: TableName::Nat }];
        let choice = &nat.chains[&ChainName::keyed(Kind::Service, "shop/s0tcp")];
        let mut left = 1.0;
        let total: f64 = weights.iter().copied().map(f64::from).sum();
        let shares = choice
            .iter()
            .filter(|rule| matches!(rule.jump(), Some(ChainName::Keyed(Kind::Endpoint, _))));
        let mut count = 0;
        for (rule, weight) in shares.zip(&weights) {
            let chance = match rule.matches.as_slice() {
                [Match::Chance(chance)] => f64::from(*chance) / f64::from(CHANCE_ONE),
                _ => 1.0,
            };
            let (share, wanted) = (left * chance, f64::from(*weight) / total);
            assert!((share - wanted).abs() < 1e-6, "{weights:?}: {share} for {wanted}");
            left -= share;
            count += 1;
        }
        assert_eq!(count, weights.len());
        assert!(left < 1e-9, "{weights:?}");
    }
}

/// S-10: which UDP flows are forgotten when endpoints change.
#[test]
fn udp_flows_to_lost_endpoints_are_forgotten() {
    let vip = SocketAddr::from(([10, 96, 1, 1], 80));
    let node_port = SocketAddr::new(NODE, 30_001);
    let rows: [(&[u8], &[u8], bool); 6] = [
        (&[1], &[1, 2], false),
        (&[1, 2], &[1], true),
        (&[1], &[2], true),
        (&[], &[1], true),
        (&[1], &[], true),
        (&[1], &[1], false),
    ];
    for (before, after, forgotten) in rows {
        let of = |lasts: &[u8]| desired([(1, service(1, &endpoints(lasts)))].into());
        let mut observed = IptablesObserved::default();
        bring(&mut observed, &of(before));
        let ops = bring(&mut observed, &of(after));
        let stale = ops.iter().find_map(|op| match op {
            IptablesOp::ForgetFlows(stale) => Some(stale),
            IptablesOp::Transaction(_) => None,
        });
        assert_eq!(stale.is_some(), forgotten, "{before:?} {after:?}");
        let Some(stale) = stale else { continue };
        let left: BTreeSet<SocketAddr> =
            after.iter().map(|&last| SocketAddr::from(([10, 244, 0, last], 8080))).collect();
        assert_eq!(stale.frontends, [(vip, left.clone()), (node_port, left)].into());
    }
}

fn config() -> ClusterConfig {
    ClusterConfig::default()
}

fn facts() -> NodeFacts {
    NodeFacts {
        name: "node1".into(),
        uplink: "eth0".into(),
        uplink_mtu: 1500,
        addresses: vec![NODE],
        ..NodeFacts::default()
    }
}

fn endpoints(lasts: &[u8]) -> FrontendPlan {
    let all: FlatSet<SocketAddr> =
        lasts.iter().map(|&last| SocketAddr::from(([10, 244, 0, last], 8080))).collect();
    FrontendPlan::new(if all.is_empty() { Backends::Reject } else { Backends::Endpoints(all) })
}

fn protocol(index: u8) -> Protocol {
    if index.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp }
}

/// A ClusterIP and a node port.
fn service(index: u8, plan: &FrontendPlan) -> ServicePlan {
    let protocol = protocol(index);
    let address = [10, 96, 1, index].into();
    let cluster_ip = Frontend::ClusterIp { address, protocol, port: 80 };
    let port = 30_000 + u16::from(index);
    let node_port = Frontend::NodePort { family: Family::V4, protocol, port };
    let internal = FrontendPlan { outside: None, source_ranges: None, ..plan.clone() };
    let external = FrontendPlan { source_ranges: None, ..plan.clone() };
    let frontends = [(cluster_ip, internal), (node_port, external)].into();
    ServicePlan { frontends, ..ServicePlan::default() }
}

fn desired(services: BTreeMap<u8, ServicePlan>) -> Desired {
    let mut node = model::kinds::Node::default();
    node.metadata.name = "node1".into();
    node.spec.pod_cidrs = vec!["10.244.0.0/25".parse().expect("a range")];
    let mut world = model::World::default();
    world.set(model::world::Object::Node(node.into()));
    let (mut desired, _) = plan::node(&world, &config(), &facts());
    let named = services
        .into_iter()
        .map(|(index, plan)| (NamespacedName::new("shop", format!("s{index}")), plan));
    desired.services.extend(named);
    desired
}

fn bring(observed: &mut IptablesObserved, desired: &Desired) -> Vec<IptablesOp> {
    let program = render(desired, &config(), &facts());
    let ops = diff(&program, observed);
    for op in &ops {
        observed.apply(op).unwrap_or_else(|error| panic!("{error}"));
    }
    assert_eq!(diff(&program, observed), [], "a second diff is empty");
    ops
}

/// A Service with every kind of frontend that a plan has.
fn services() -> impl Strategy<Value = ServicePlan> {
    let some = prop::collection::btree_set(1_u8..6, 1..4);
    let local = prop::collection::btree_set(1_u8..6, 0..3);
    let ranges =
        prop::sample::subsequence(vec!["10.244.0.0/25", "172.30.0.9/32", "0.0.0.0/0"], 0..=2);
    let options = (
        prop::option::weighted(0.8, some),
        prop::option::of(local),
        prop::option::weighted(0.3, 1_u32..100),
        prop::option::of(ranges),
        any::<bool>(),
        0..SERVICES,
    );
    options.prop_map(|(some, local, affinity_timeout_s, ranges, internal_local, index)| {
        let base =
            |lasts: &BTreeSet<u8>| endpoints(&lasts.iter().copied().collect::<Vec<_>>()).backends;
        let everywhere = some.as_ref().map_or(Backends::Reject, base);
        let local = local.map(|local| match &everywhere {
            Backends::Endpoints(_) if local.is_empty() => Backends::Drop,
            Backends::Endpoints(_) => base(&local),
            _ => Backends::Reject,
        });
        let parsed = |ranges: Vec<&str>| {
            ranges.into_iter().map(|range| range.parse().expect("a range")).collect()
        };
        let plan = FrontendPlan {
            outside: local.clone(),
            affinity_timeout_s,
            source_ranges: ranges.map(parsed),
            ..FrontendPlan::new(everywhere)
        };
        let mut service = service(index, &plan);
        let protocol = protocol(index);
        // At an address of its own, and at the node's: there also where another has a node port.
        let neighbour = 30_000 + u16::from((index + 2) % SERVICES);
        for (address, port) in
            [(IpAddr::from([198, 51, 100, index]), 80), (NODE, neighbour), (NODE, 90)]
        {
            let external = Frontend::External { address, protocol, port };
            service.frontends.insert(external, plan.clone());
        }
        add_ranges(&mut service, index, &plan);
        if let Some(local) = local.filter(|_| internal_local) {
            let address = [10, 96, 1, index].into();
            let cluster_ip = Frontend::ClusterIp { address, protocol, port: 80 };
            let plan = service.frontends.get_mut(&cluster_ip).expect("a ClusterIP");
            plan.backends = local;
        }
        service
    })
}

/// Ports 100 to 200 of both addresses, which endpoints see unchanged.
fn add_ranges(service: &mut ServicePlan, index: u8, plan: &FrontendPlan) {
    let protocol = protocol(index);
    let keeps = |backends: &Backends| match backends {
        Backends::Endpoints(all) => Backends::Endpoints(
            all.iter().map(|endpoint| SocketAddr::new(endpoint.ip(), 0)).collect(),
        ),
        other => other.clone(),
    };
    for scope in [RangeScope::ClusterIp, RangeScope::External] {
        let address = match scope {
            RangeScope::ClusterIp => [10, 96, 1, index],
            RangeScope::External => [198, 51, 100, index],
        };
        let range =
            RangeFrontend { scope, address: address.into(), protocol, first: 100, last: 200 };
        let is_external = scope == RangeScope::External;
        let plan = FrontendPlan {
            backends: keeps(&plan.backends),
            outside: plan.outside.as_ref().filter(|_| is_external).map(keeps),
            source_ranges: plan.source_ranges.clone().filter(|_| is_external),
            ..plan.clone()
        };
        service.ranges.insert(range, plan);
    }
}

fn states() -> impl Strategy<Value = BTreeMap<u8, ServicePlan>> {
    let slots = prop::collection::vec(prop::option::weighted(0.7, services()), 2);
    // Two Services at most, each with frontends of its own: even and odd numbers.
    slots.prop_map(|slots| {
        let mut all = BTreeMap::new();
        for (slot, service) in (0_u8..).zip(slots) {
            let Some(service) = service else { continue };
            let index = service.frontends.keys().find_map(|frontend| match frontend {
                Frontend::ClusterIp { address: IpAddr::V4(address), .. } => {
                    Some(address.octets()[3])
                }
                _ => None,
            });
            let index = index.expect("a ClusterIP");
            if index % 2 == slot {
                all.insert(index, service);
            }
        }
        all
    })
}

fn packets() -> Vec<Packet> {
    let clients = [
        (Entry::Pod, [10, 244, 0, 1]),
        (Entry::Local, [172, 30, 0, 2]),
        (Entry::Uplink, [172, 30, 0, 9]),
        (Entry::Uplink, [172, 30, 0, 7]),
        (Entry::Overlay, [10, 244, 1, 1]),
    ];
    let mut packets = Vec::new();
    for index in 0..SERVICES {
        let addresses = [
            ([10, 96, 1, index], vec![80, 81, 100, 200, 201]),
            ([198, 51, 100, index], vec![80, 150]),
            ([172, 30, 0, 2], vec![30_000 + u16::from(index), 90]),
            ([10, 96, 9, index], vec![80]),
        ];
        for (address, ports) in addresses {
            for port in ports {
                packets.extend(clients.iter().map(|&(entry, source)| Packet {
                    entry,
                    source: SocketAddr::from((source, 40_000)),
                    destination: SocketAddr::from((address, port)),
                    protocol: protocol(index),
                }));
            }
        }
    }
    packets
}

/// The nftables table masquerades what leaves the cluster; that is not of Services.
fn leaves_the_cluster(packet: &Packet) -> bool {
    packet.entry != Entry::Local
        && packet.source.ip().to_string().starts_with("10.244.")
        && packet.destination.ip().to_string().starts_with("198.51.100.")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Invariant 13, with what was there before: both converge to the same verdicts.
    #[test]
    fn the_rules_mean_what_the_nftables_rules_mean(states in prop::collection::vec(states(), 1..4)) {
        let mut observed = IptablesObserved::default();
        for state in states {
            let desired = desired(state);
            bring(&mut observed, &desired);
            let [beside, rules] = [nft::Role::Beside, nft::Role::Backend].map(|role| {
                let program = nft::render_as(role, &desired, &config(), &facts());
                let mut rules = nft::NftObserved::default();
                for op in nft::diff(&program, &rules.clone()) {
                    rules.apply(&op).expect("nftables");
                }
                rules
            });
            for packet in packets() {
                let by_nft = |rules| {
                    let traced = nft::trace(rules, &packet, &config(), &facts());
                    traced.expect("a verdict")
                };
                let ours = trace(&observed, &packet, &config(), &facts()).expect("a verdict");
                // What is not translated the table beside refuses, or lets pass.
                let ours = match &ours {
                    Verdict::Pass { destinations, .. }
                        if destinations.contains(&packet.destination) => by_nft(&beside),
                    _ => ours,
                };
                let theirs = by_nft(&rules);
                let untouched = matches!(
                    &theirs,
                    Verdict::Pass { destinations, .. } if destinations.contains(&packet.destination)
                );
                if leaves_the_cluster(&packet) && untouched {
                    continue;
                }
                prop_assert_eq!(ours, theirs, "{:?}", packet);
            }
        }
    }

    /// While a change is under way, who is not concerned notices nothing, and a source that neither
    /// the old nor the new rules serve is never served (invariant 7).
    #[test]
    fn a_change_in_steps_lets_nobody_pass_by(before in states(), after in states()) {
        let mut observed = IptablesObserved::default();
        bring(&mut observed, &desired(before));
        let told = |observed: &IptablesObserved| -> Vec<Verdict> {
            let all = packets();
            let traced = all.iter().map(|packet| trace(observed, packet, &config(), &facts()));
            traced.map(|verdict| verdict.expect("a verdict")).collect()
        };
        let old = told(&observed);
        let program = render(&desired(after), &config(), &facts());
        let ops = diff(&program, &observed);
        let mut steps = vec![];
        for op in &ops {
            observed.apply(op).expect("applied");
            steps.push(told(&observed));
        }
        let new = told(&observed);
        for step in steps {
            for (((packet, old), new), now) in packets().iter().zip(&old).zip(&new).zip(&step) {
                let passes = |verdict: &Verdict| matches!(verdict, Verdict::Pass { .. });
                if passes(old) && old == new {
                    prop_assert_eq!(now, old, "{:?}", packet);
                }
                if !passes(old) && !passes(new) {
                    let story = format!("{packet:?}: {old} then {now} then {new}");
                    prop_assert!(!passes(now), "{}", story);
                }
            }
        }
    }

    /// Whatever a program printed, reading it panics at nothing.
    #[test]
    fn any_text_can_be_read(text in "(\\*nat\n)?([-:#A-Z \"\\\\0-9a-z./=!]{0,60}\n){0,6}") {
        let mut observed = IptablesObserved::default();
        text::read(&mut observed, Family::V4, &text);
        for line in text.lines() {
            let _ = text::parse(Family::V6, line);
        }
    }
}
