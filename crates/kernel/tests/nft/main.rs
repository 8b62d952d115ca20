//! The nftables driver and the rendered rules on this machine's kernel, with real packets, in
//! network namespaces that each test makes. Needs root.

mod flows;
mod handshakes;
mod invalid;
mod lab;
mod ping;
mod services;
mod source_ports;

use std::time::Duration;

use lab::{
    Answer, DEADLINE, INTERNET, Lab, NODE, OUTSIDE, POD1, POD2, Server, answered, ask_tcp, ask_udp,
    ask_udp_with, service, socket, udp_socket,
};
use model::Protocol;
use model::kinds::{SessionAffinity, TrafficPolicy};
use render::nft::language::{Datum, TableId, Value};
use render::nft::{Command, NftObserved, NftOp, Transaction};

const VIP: &str = "10.96.0.20";
/// How long to wait for an answer that shall not come.
const SILENCE: Duration = Duration::from_millis(600);

fn endpoints(addresses: &[&str]) -> Vec<std::net::SocketAddr> {
    addresses.iter().map(|address| socket(address, 8080)).collect()
}

#[test]
fn what_is_written_is_read_back_and_a_second_diff_is_empty() {
    let mut lab = Lab::new();
    let mut web = service("web", VIP, Protocol::Tcp, 80, 30080);
    web.spec.external_traffic_policy = TrafficPolicy::Local;
    lab.set_service(web, &endpoints(&[POD1, POD2]));
    let mut sticky = service("sticky", "10.96.0.21", Protocol::Udp, 53, 30053);
    sticky.spec.session_affinity = SessionAffinity::ClientIP;
    lab.set_service(sticky, &endpoints(&[POD1]));
    lab.set_service(service("empty", "10.96.0.22", Protocol::Sctp, 80, 0), &[]);

    let mut believed = NftObserved::default();
    let mut driver = lab.driver();
    assert_eq!(driver.observe().expect("observe"), believed);
    for op in lab.converge(&mut driver) {
        believed.apply(&op).expect("the model of the kernel agrees");
    }
    assert_eq!(driver.observe().expect("observe"), believed);

    // A fresh process recognises everything and writes nothing (invariant 14).
    let mut restarted = lab.driver();
    assert_eq!(lab.converge(&mut restarted), []);
}

#[test]
fn the_kernel_takes_the_table_of_ipv6_too() {
    let mut lab = Lab::new();
    let range = |text: &str| text.parse().expect("a range");
    lab.config.pod_cidrs.push(range("fd00:244::/48"));
    lab.config.service_cidrs.push(range("fd00:96::/108"));
    lab.config.node_cidrs.push(range("fd00:30::/64"));
    lab.facts.addresses.push("fd00:30::2".parse().expect("address"));
    let mut web = service("web", "fd00:96::7", Protocol::Tcp, 80, 30080);
    lab.set_service(web.clone(), &[socket("fd00:244::5", 8080), socket("fd00:244::6", 8080)]);
    web.metadata.name = "sticky".into();
    web.spec.cluster_ips = vec!["fd00:96::8".into()];
    web.spec.ports[0].node_port = 30081;
    web.spec.session_affinity = SessionAffinity::ClientIP;
    lab.set_service(web, &[socket("fd00:244::5", 8080)]);
    let mut driver = lab.driver();
    let mut believed = NftObserved::default();
    for op in lab.converge(&mut driver) {
        believed.apply(&op).expect("the model of the kernel agrees");
    }
    assert!(believed.tables.contains_key(&TableId::services(model::Family::V6)));
    assert_eq!(driver.observe().expect("observe"), believed);
    assert_eq!(lab.converge(&mut lab.driver()), []);
}

#[test]
fn changes_leave_nothing_behind() {
    let mut lab = Lab::new();
    let mut driver = lab.driver();
    lab.converge(&mut driver);
    let empty = driver.observe().expect("observe");
    for count in [3, 1, 2, 0, 3] {
        let all = [socket(POD1, 8080), socket(POD2, 8080), socket(POD1, 8081)];
        let mut web = service("web", VIP, Protocol::Tcp, 80, 30080);
        if count == 2 {
            web.spec.session_affinity = SessionAffinity::ClientIP;
        }
        lab.set_service(web, &all[..count]);
        lab.converge(&mut driver);
        assert_eq!(lab.converge(&mut driver), [], "with {count} endpoints");
    }
    lab.world.remove(model::world::Kind::Service, &model::NamespacedName::new("shop", "web"));
    lab.converge(&mut driver);
    assert_eq!(driver.observe().expect("observe"), empty);
}

#[test]
fn tcp_reaches_an_endpoint_and_a_pod_keeps_its_address() {
    let mut lab = Lab::new();
    lab.set_service(service("web", VIP, Protocol::Tcp, 80, 30080), &endpoints(&[POD2]));
    lab.converge(&mut lab.driver());
    let _server = Server::start(&lab.pod2, "pod2", 8080);
    let vip = socket(VIP, 80);
    assert_eq!(ask_tcp(&lab.pod1, vip, DEADLINE), answered("pod2", POD1));
    // The node and strangers come with an address of the node towards the pod.
    assert_eq!(ask_tcp(&lab.node, vip, DEADLINE), answered("pod2", "10.244.0.5"));
    assert_eq!(ask_tcp(&lab.outside, vip, DEADLINE), answered("pod2", "10.244.0.5"));
    let node_port = socket(NODE, 30080);
    assert_eq!(ask_tcp(&lab.outside, node_port, DEADLINE), answered("pod2", "10.244.0.5"));
    assert_eq!(ask_tcp(&lab.node, node_port, DEADLINE), answered("pod2", "10.244.0.5"));
    assert_eq!(ask_tcp(&lab.pod1, node_port, DEADLINE), answered("pod2", "10.244.0.5"));
}

#[test]
fn udp_is_spread_over_all_endpoints() {
    let mut lab = Lab::new();
    lab.set_service(service("dns", VIP, Protocol::Udp, 53, 0), &endpoints(&[POD1, POD2]));
    lab.converge(&mut lab.driver());
    let _servers = [Server::start(&lab.pod1, "pod1", 8080), Server::start(&lab.pod2, "pod2", 8080)];
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..64 {
        match ask_udp(&lab.outside, socket(VIP, 53), DEADLINE) {
            Answer::From(name, _) => seen.insert(name),
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["pod1", "pod2"]);
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let mut lab = Lab::new();
    lab.set_service(service("web", VIP, Protocol::Tcp, 80, 0), &endpoints(&[POD1]));
    lab.converge(&mut lab.driver());
    let _server = Server::start(&lab.pod1, "pod1", 8080);
    assert_eq!(ask_tcp(&lab.pod1, socket(VIP, 80), DEADLINE), answered("pod1", "10.244.0.1"));
}

#[test]
fn without_endpoints_clients_are_refused_at_once() {
    let mut lab = Lab::new();
    lab.set_service(service("web", VIP, Protocol::Tcp, 80, 30080), &[]);
    lab.set_service(service("dns", "10.96.0.21", Protocol::Udp, 53, 30053), &[]);
    lab.converge(&mut lab.driver());
    for client in [&lab.pod1, &lab.outside, &lab.node] {
        assert_eq!(ask_tcp(client, socket(VIP, 80), DEADLINE), Answer::Refused);
        assert_eq!(ask_tcp(client, socket(NODE, 30080), DEADLINE), Answer::Refused);
        assert_eq!(ask_udp(client, socket("10.96.0.21", 53), DEADLINE), Answer::Refused);
        assert_eq!(ask_udp(client, socket(NODE, 30053), DEADLINE), Answer::Refused);
        // A port that the Service does not have; an address without a Service.
        assert_eq!(ask_tcp(client, socket(VIP, 81), DEADLINE), Answer::Refused);
    }
    assert_eq!(ask_tcp(&lab.pod1, socket("10.96.7.7", 80), SILENCE), Answer::Nothing);
}

#[test]
fn external_policy_local_keeps_the_source_or_drops() {
    let mut lab = Lab::new();
    let mut web = service("web", VIP, Protocol::Tcp, 80, 30080);
    web.spec.external_traffic_policy = TrafficPolicy::Local;
    lab.set_service(web, &endpoints(&[POD2]));
    let mut driver = lab.driver();
    lab.converge(&mut driver);
    let _server = Server::start(&lab.pod2, "pod2", 8080);
    let node_port = socket(NODE, 30080);
    assert_eq!(ask_tcp(&lab.outside, node_port, DEADLINE), answered("pod2", OUTSIDE));
    assert_eq!(ask_tcp(&lab.pod1, node_port, DEADLINE), answered("pod2", POD1));

    // The same endpoint, now said to be elsewhere: nothing for strangers.
    lab.facts.name = "node2".into();
    lab.world.set(model::world::Object::Node(std::sync::Arc::new({
        let mut node = model::kinds::Node::default();
        node.metadata.name = "node2".into();
        node.spec.pod_cidrs = vec!["10.244.0.0/24".parse().expect("cidr")];
        node
    })));
    lab.world.remove(model::world::Kind::Node, &model::NamespacedName::new("", "node1"));
    lab.converge(&mut driver);
    assert_eq!(ask_tcp(&lab.outside, node_port, SILENCE), Answer::Nothing);
    assert_eq!(ask_tcp(&lab.pod1, node_port, DEADLINE), answered("pod2", POD1));
}

#[test]
fn an_affine_client_stays_until_its_endpoint_goes() {
    let mut lab = Lab::new();
    let mut web = service("web", VIP, Protocol::Tcp, 80, 0);
    web.spec.session_affinity = SessionAffinity::ClientIP;
    lab.set_service(web.clone(), &endpoints(&[POD1, POD2]));
    let mut driver = lab.driver();
    lab.converge(&mut driver);
    let _servers = [Server::start(&lab.pod1, "pod1", 8080), Server::start(&lab.pod2, "pod2", 8080)];
    let ask = || match ask_tcp(&lab.outside, socket(VIP, 80), DEADLINE) {
        Answer::From(name, _) => name,
        other => panic!("{other:?}"),
    };
    let first = ask();
    for _ in 0..20 {
        assert_eq!(ask(), first);
    }
    let (gone, left) = if first == "pod1" { (POD1, "pod2") } else { (POD2, "pod1") };
    let remaining: Vec<_> = endpoints(&[POD1, POD2])
        .into_iter()
        .filter(|endpoint| endpoint.ip().to_string() != gone)
        .collect();
    lab.set_service(web.clone(), &remaining);
    lab.converge(&mut driver);
    let stays = |lab: &Lab| {
        let answer = ask_tcp(&lab.outside, socket(VIP, 80), DEADLINE);
        assert!(matches!(&answer, Answer::From(name, _) if name == left), "{answer:?}");
    };
    stays(&lab);
    // Back again: the client has a new endpoint and stays there.
    lab.set_service(web, &endpoints(&[POD1, POD2]));
    lab.converge(&mut driver);
    for _ in 0..20 {
        stays(&lab);
    }
}

#[test]
fn a_udp_client_with_a_fixed_port_follows_the_endpoints() {
    let mut lab = Lab::new();
    let dns = || service("dns", VIP, Protocol::Udp, 53, 0);
    let mut driver = lab.driver();
    lab.converge(&mut driver);
    let _servers = [Server::start(&lab.pod1, "pod1", 8080), Server::start(&lab.pod2, "pod2", 8080)];
    let client = udp_socket(&lab.outside);
    let vip = socket(VIP, 53);
    // Before the Service exists its packets are dropped.
    assert_eq!(ask_udp_with(&client, vip, SILENCE), Answer::Nothing);
    for (pod, name) in [(POD1, "pod1"), (POD2, "pod2"), (POD1, "pod1")] {
        lab.set_service(dns(), &endpoints(&[pod]));
        lab.converge(&mut driver);
        let answer = ask_udp_with(&client, vip, DEADLINE);
        assert!(matches!(&answer, Answer::From(found, _) if found == name), "{answer:?}");
    }
    lab.set_service(dns(), &[]);
    lab.converge(&mut driver);
    assert_eq!(ask_udp_with(&client, vip, DEADLINE), Answer::Refused);
}

#[test]
fn pods_are_masqueraded_to_the_outside_only() {
    let lab = Lab::new();
    lab.converge(&mut lab.driver());
    let _servers =
        [Server::start(&lab.outside, "outside", 8080), Server::start(&lab.pod2, "pod2", 8080)];
    let ask = |to: &str| ask_tcp(&lab.pod1, socket(to, 8080), DEADLINE);
    assert_eq!(ask(INTERNET), answered("outside", NODE));
    assert_eq!(ask(OUTSIDE), answered("outside", POD1));
    assert_eq!(ask(POD2), answered("pod2", POD1));
}

#[test]
fn the_dns_address_answers_port_53_only() {
    let lab = Lab::new();
    let mut driver = lab.driver();
    lab.converge(&mut driver);
    let dns = "10.96.0.10";
    lab.node
        .run(|| {
            let mut netlink = netlink::Netlink::open().expect("netlink");
            let lo = netlink.require_link("lo").expect("lo").index;
            netlink.add_address(lo, "10.96.0.10/32".parse().expect("cidr")).expect("address");
        })
        .expect("node");
    let _servers = [
        Server::start_at(&lab.node, "dns", socket(dns, 53)),
        Server::start(&lab.node, "exposed", 8080),
    ];
    for client in [&lab.pod1, &lab.node] {
        assert!(matches!(ask_udp(client, socket(dns, 53), DEADLINE), Answer::From(..)));
        assert!(matches!(ask_tcp(client, socket(dns, 53), DEADLINE), Answer::From(..)));
        assert_eq!(ask_tcp(client, socket(dns, 8080), DEADLINE), Answer::Refused);
        assert_eq!(ask_udp(client, socket(dns, 8080), DEADLINE), Answer::Refused);
    }
    assert!(matches!(ask_tcp(&lab.pod1, socket(NODE, 8080), DEADLINE), Answer::From(..)));
}

#[test]
fn neighbours_do_not_reach_the_loopback_of_the_node() {
    let lab = Lab::new();
    lab.node
        .run(|| {
            for link in ["all", "pod1", "lo"] {
                let key = format!("net/ipv4/conf/{link}/route_localnet");
                netlink::sysctl::write(&key, "1").expect("the unsafe switch of another tool");
            }
        })
        .expect("node");
    let _server = Server::start_at(&lab.node, "secret", socket("127.0.0.1", 8080));
    lab.pod1
        .run(|| {
            netlink::sysctl::write("net/ipv4/conf/all/route_localnet", "1").expect("sysctl");
            netlink::sysctl::write("net/ipv4/conf/eth0/route_localnet", "1").expect("sysctl");
            let mut netlink = netlink::Netlink::open().expect("netlink");
            let lo = netlink.require_link("lo").expect("lo").index;
            let own = "127.0.0.1/8".parse().expect("cidr");
            netlink.delete_address(lo, own).expect("loopback addresses out of the way");
            let link = netlink.require_link("eth0").expect("eth0").index;
            let gateway = "10.244.0.1".parse().expect("address");
            let loopback = "127.0.0.0/8".parse().expect("cidr");
            netlink.add_route(&netlink::Route::via(loopback, gateway, link, 4)).expect("route");
        })
        .expect("pod1");
    let attack = |patience| {
        lab.pod1
            .run(|| {
                let socket = std::net::UdpSocket::bind("10.244.0.2:0").expect("a socket");
                ask_udp_with(&socket, lab::socket("127.0.0.1", 8080), patience)
            })
            .expect("pod1")
    };
    assert!(matches!(attack(DEADLINE), Answer::From(..)), "the attack works without our rules");
    lab.converge(&mut lab.driver());
    assert_eq!(attack(SILENCE), Answer::Nothing);
}

#[test]
fn the_tracer_can_walk_what_the_kernel_holds() {
    let mut lab = Lab::new();
    lab.set_service(service("web", VIP, Protocol::Tcp, 80, 0), &endpoints(&[POD1, POD2]));
    let mut driver = lab.driver();
    lab.converge(&mut driver);
    let packet = model::packet::Packet {
        entry: model::packet::Entry::Pod,
        source: socket(POD1, 40000),
        destination: socket(VIP, 80),
        protocol: Protocol::Tcp,
    };
    let observed = lab.observe(&mut driver);
    let verdict = render::nft::trace(&observed, &packet, &lab.config, &lab.facts);
    let destinations = endpoints(&[POD1, POD2]).into_iter().collect();
    let itself = [POD1.parse().expect("address")].into();
    let source = model::packet::SourceTranslation::MasqueradedTo(itself);
    let source_ports = std::collections::BTreeMap::new();
    let expected = model::packet::Verdict::Pass { destinations, source, source_ports };
    assert_eq!(verdict, Ok(expected));
}

#[test]
fn what_others_change_in_our_table_is_put_back() {
    let mut lab = Lab::new();
    lab.set_service(service("web", VIP, Protocol::Tcp, 80, 0), &endpoints(&[POD1]));
    let mut driver = lab.driver();
    lab.converge(&mut driver);
    let wanted = driver.observe().expect("observe");
    for vandalism in [
        "flush table ip flatnet",
        "delete table ip flatnet",
        "flush ruleset",
        "flush map ip flatnet cluster-ip-endpoints",
        "flush chain ip flatnet nat-prerouting",
        "add rule ip flatnet refuse counter",
        "insert rule ip flatnet nat-postrouting counter accept",
        "add chain ip flatnet stray { type route hook output priority 0; }",
        "add set ip flatnet stray { type ether_addr; elements = { 00:00:00:00:00:01 }; }",
    ] {
        let status = lab
            .node
            .run(|| std::process::Command::new("nft").arg(vandalism).status())
            .expect("node")
            .expect("the nft program");
        assert!(status.success(), "{vandalism}");
        lab.converge(&mut driver);
        assert_eq!(driver.observe().expect("observe"), wanted, "after {vandalism}");
        assert_eq!(lab.converge(&mut driver), [], "after {vandalism}");
    }
}

#[test]
fn a_refused_transaction_changes_nothing_and_names_its_command() {
    let lab = Lab::new();
    let mut driver = lab.driver();
    lab.converge(&mut driver);
    let before = lab.observe(&mut driver);
    let mut fake = before.clone();
    let goto = |chain: &str| Datum::Verdict(render::nft::language::Verdict::Goto(chain.into()));
    let class = |number| vec![Value::Number(number)];
    let element = |number, chain: &str| {
        Command::AddElements("cluster-ip-classes".into(), vec![(class(number), goto(chain))])
    };
    let good = Command::AddChain("extra".into(), None);
    let refused = [
        ("a missing chain", element(7, "nowhere"), libc::ENOENT),
        ("an element that is there", element(0x8000_0002, "refuse"), libc::EEXIST),
        (
            "an element that is not there",
            Command::DeleteElements("cluster-ip-classes".into(), vec![class(9)]),
            libc::ENOENT,
        ),
        ("a chain in use", Command::DeleteChain("refuse".into()), libc::EBUSY),
        ("a set in use", Command::DeleteSet("hairpin".into()), libc::EBUSY),
        ("a chain that is there", Command::AddChain("refuse".into(), None), libc::EEXIST),
        ("a chain that is not there", Command::DeleteChain("nowhere".into()), libc::ENOENT),
    ];
    for (what, command, errno) in refused {
        let text = command.to_string();
        let commands = vec![good.clone(), command];
        let op = NftOp::Transaction(Transaction {
            table: TableId::services(model::Family::V4),
            commands,
        });
        let error = driver.apply(&op).expect_err(what);
        assert_eq!(error.errno, errno, "{what}: {error}");
        assert!(error.message.contains(&text), "{error}");
        assert_eq!(driver.observe().expect("observe"), before, "{what}");
        // The model of the kernel refuses the same with the same errno.
        assert_eq!(fake.apply(&op).expect_err(what).errno, errno, "{what}");
        assert_eq!(fake, before, "{what}");
    }
}

#[test]
fn people_can_list_our_table_with_nft() {
    let mut lab = Lab::new();
    let mut web = service("web", VIP, Protocol::Tcp, 80, 30080);
    web.spec.external_traffic_policy = TrafficPolicy::Local;
    lab.set_service(web, &endpoints(&[POD1, POD2]));
    let mut sticky = service("sticky", "10.96.0.21", Protocol::Udp, 53, 30053);
    sticky.spec.session_affinity = SessionAffinity::ClientIP;
    lab.set_service(sticky, &endpoints(&[POD1]));
    let mut ranged = services::balanced(Protocol::Udp);
    ranged.metadata.name = "ranged".into();
    ranged.spec.cluster_ips = vec!["10.96.0.22".into()];
    ranged.spec.ports[0].node_port = 30090;
    ranged.spec.load_balancer_source_ranges = vec!["172.16.0.0/12".into()];
    let ranges = "udp:9000-9100".to_owned();
    ranged.metadata.annotations.insert(model::kinds::PORT_RANGES_ANNOTATION.into(), ranges);
    lab.config.answer_ping = true;
    lab.set_service(ranged, &endpoints(&[POD1, POD2]));
    lab.converge(&mut lab.driver());
    let list =
        || std::process::Command::new("nft").args(["list", "table", "ip", "flatnet"]).output();
    let output = lab.node.run(list).expect("node").expect("the nft program");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    for words in [
        "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @cluster-ip-endpoints",
        "10.96.0.20 . tcp . 80 . 0x00000001 : 10.244.0.6 . 8080",
        "0x01000002 : goto cluster-ip-n2",
        "{ ip saddr timeout 3h } dnat to 10.244.0.2:8080",
        "ip daddr . meta l4proto . th dport map @cluster-ip-frontends vmap @cluster-ip-classes",
        "10.96.0.22 . udp . 9000-9100 : goto ranges-10.96.0.22-udp-9000-9100",
        "udp . 172.16.0.0/12",
        "meta l4proto . ip saddr != @external-own-198.51.100.7-udp-80-sources drop",
        "ip daddr @answers-ping dnat to 172.30.0.2",
    ] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
}

#[test]
fn the_guard_of_the_tunnel_is_read_back_and_people_can_list_it() {
    // Inner packets of both families, within outer ones of either.
    for outer in ["172.30.0", "fd00:172:30:"] {
        let mut lab = Lab::new();
        lab.config.pod_cidrs.push("fd00:10:244::/48".parse().expect("cidr"));
        lab.config.node_cidrs.push("fd00:172:30::/64".parse().expect("cidr"));
        for number in 1..=3_u8 {
            let separator = if outer.contains(':') { ':' } else { '.' };
            let mut node = model::kinds::Node::default();
            node.metadata.name = format!("node{number}");
            node.spec.pod_cidrs =
                [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")]
                    .map(|range| range.parse().expect("cidr"))
                    .into();
            node.status.addresses = vec![model::kinds::NodeAddress {
                kind: "InternalIP".into(),
                address: format!("{outer}{separator}{}", number + 1),
            }];
            lab.world.set(model::world::Object::Node(std::sync::Arc::new(node)));
        }
        let mut driver = lab.driver();
        let mut believed = NftObserved::default();
        for op in lab.converge(&mut driver) {
            believed.apply(&op).expect("the model of the kernel agrees");
        }
        assert_eq!(driver.observe().expect("observe"), believed);
        assert_eq!(lab.converge(&mut lab.driver()), []);

        let (table, words) = match outer.contains(':') {
            false => ("ip", ["172.30.0.3 . 10.244.2.0", "172.30.0.3 . fd00:10:244:2::"]),
            true => ("ip6", ["fd00:172:30::3 . 10.244.2.0", "fd00:172:30::3 . fd00:10:244:2::"]),
        };
        let list =
            || std::process::Command::new("nft").args(["list", "table", table, "flatnet"]).output();
        let output = lab.node.run(list).expect("node").expect("the nft program");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
        for words in words.into_iter().chain(["udp dport 8472 vxlan vni 1 goto tunnel-guard"]) {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
    }
}

#[test]
fn ten_thousand_services_load_and_one_changes_alone() {
    let mut lab = Lab::new();
    for index in 0..10_000_u32 {
        let [.., high, low] = index.to_be_bytes();
        let address = format!("10.96.{}.{low}", 16 + high);
        let all: Vec<_> = (0..3)
            .map(|pod| socket(&format!("10.244.{pod}.{low}"), 8080 + u16::from(high)))
            .collect();
        lab.set_service(service(&format!("s{index}"), &address, Protocol::Tcp, 80, 0), &all);
    }
    let mut driver = lab.driver();
    let loaded = lab.converge(&mut driver);
    assert!(loaded.len() > 5, "a load is split into several transactions");
    assert_eq!(lab.converge(&mut driver), []);

    lab.set_service(service("s77", "10.96.16.77", Protocol::Tcp, 80, 0), &endpoints(&[POD2]));
    let changed = lab.converge(&mut driver);
    let commands: usize = changed
        .iter()
        .map(|op| match op {
            NftOp::Transaction(transaction) => transaction.commands.len(),
            NftOp::ForgetFlows(_) => 0,
        })
        .sum();
    assert!(commands < 12, "a chain, a class, a slot, two slots less: {changed:?}");
    let _server = Server::start(&lab.pod2, "pod2", 8080);
    assert_eq!(ask_tcp(&lab.pod1, socket("10.96.16.77", 80), DEADLINE), answered("pod2", POD1));
}
