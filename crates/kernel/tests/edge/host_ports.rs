//! Ports of the node (PM), the attacks on them (X-01, X-04), and what is forgotten with a pod
//! (X-14).

use kernel::edge::Edge;
use kernel::nft::NftDriver;
use model::Protocol;
use model::attachment::{HostPortCondition, PortMapping, Side};
use netlink::sysctl;
use render::nft::NftObserved;
use render::nft::language::{Rule, Statement};

use crate::clients::{Server, UdpClient, ask_tcp, is_silent};
use crate::lab::{FAR, GATEWAY, Lab, NODE, OUTSIDE, Pod, attach};

fn mapping(protocol: Protocol, host_port: u16) -> PortMapping {
    PortMapping {
        host_port,
        container_port: 80,
        protocol,
        host_ip: None,
        snat: true,
        masquerade_all: false,
    }
}

fn answer(name: &str, client: impl ToString) -> Option<String> {
    Some(format!("{name} {}", client.to_string()))
}

fn with_ports(pod: &Pod, ports: &[PortMapping]) -> model::Attachment {
    let mut attachment = pod.attachment.clone();
    attachment.edge.host_ports = ports.to_vec();
    attachment
}

#[test]
fn a_port_of_the_node_leads_to_the_pod_from_everywhere() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let _a = Server::start(&lab.a.namespace, "a", 80);
    let _r = Server::start(&lab.routed.namespace, "r", 80);
    let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| mapping(protocol, 8080));
    attach(&mut edge, &with_ports(&lab.a, &ports));
    let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| mapping(protocol, 8081));
    let routed = with_ports(&lab.routed, &ports);
    let a = with_ports(&lab.a, &[]);
    edge.attach(&routed, || vec![a.clone(), routed.clone()]).expect("rules");
    // Repair of the first pod's record without ports took them away: as its record says.
    attach_both(&mut edge, &lab);

    let node = |port: u16| format!("{NODE}:{port}");
    // The client's source is kept, but for one that would be answered past the node.
    for (name, from, port, expected) in [
        ("outside", &lab.outside, 8080, answer("a", OUTSIDE)),
        ("outside, routed pod", &lab.outside, 8081, answer("r", OUTSIDE)),
        ("the node", &lab.node, 8080, answer("a", NODE)),
        ("a neighbour", &lab.b.namespace, 8080, answer("a", GATEWAY)),
        ("itself", &lab.a.namespace, 8080, answer("a", GATEWAY)),
        ("a routed pod itself", &lab.routed.namespace, 8081, answer("r", "169.254.1.1")),
        ("a pod of another link", &lab.routed.namespace, 8080, answer("a", lab.routed.address())),
    ] {
        assert_eq!(ask_tcp(from, &node(port)), expected, "TCP from {name}");
    }
    let client = UdpClient::open(&lab.outside, "0.0.0.0:0");
    assert_eq!(client.ask(&node(8080)), answer("a", OUTSIDE));
    // The other family of the same mapping, and another address of the node.
    assert_eq!(ask_tcp(&lab.outside, "[fd31::2]:8080"), answer("a", "fd31::9"));
    assert_eq!(ask_tcp(&lab.outside, &format!("{GATEWAY}:8080")), answer("a", OUTSIDE));
}

fn attach_both(edge: &mut Edge, lab: &Lab) {
    let both = [Protocol::Tcp, Protocol::Udp];
    let a = with_ports(&lab.a, &both.map(|protocol| mapping(protocol, 8080)));
    let routed = with_ports(&lab.routed, &both.map(|protocol| mapping(protocol, 8081)));
    let damages = edge.repair(&[a, routed]).expect("repair");
    assert!(!damages.is_empty());
}

#[test]
fn only_what_is_for_the_node_is_translated() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let _a = Server::start(&lab.a.namespace, "a", 80);
    let _far = Server::start(&lab.outside, "far", 443);
    let _loopback = Server::start(&lab.node, "loopback", 443);
    attach(&mut edge, &with_ports(&lab.a, &[mapping(Protocol::Tcp, 443)]));
    // CVE-2025-67499: transit to somebody else's port is not ours.
    let far = format!("{FAR}:443");
    assert_eq!(ask_tcp(&lab.b.namespace, &far), answer("far", lab.b.address()));
    assert_eq!(ask_tcp(&lab.a.namespace, &far), answer("far", lab.a.address()));
    assert_eq!(ask_tcp(&lab.node, &far), answer("far", NODE));
    assert_eq!(ask_tcp(&lab.outside, &format!("{NODE}:443")), answer("a", OUTSIDE));
    without_the_condition(&lab, &mut edge, || {
        let answer_of_pod = answer("a", GATEWAY);
        assert_eq!(ask_tcp(&lab.b.namespace, &far), answer_of_pod, "the attack does not work");
    });
    assert_eq!(ask_tcp(&lab.b.namespace, &far), answer("far", lab.b.address()));
    // The loopback is the node's own, and route_localnet stays off (CVE-2020-8558).
    assert_eq!(ask_tcp(&lab.node, "127.0.0.1:443"), answer("loopback", "127.0.0.1"));
    assert_eq!(ask_tcp(&lab.node, "[::1]:443"), answer("loopback", "::1"));
    for link in ["all", "cni0", "eth0", "veth-a"] {
        let key = format!("net/ipv4/conf/{link}/route_localnet");
        let value = lab.node.run(|| sysctl::read(&key)).expect("node").expect("a switch");
        assert_eq!(value.trim(), "0", "{link}");
    }
}

/// Runs with host ports that match whatever the destination, and repairs them.
fn without_the_condition(lab: &Lab, edge: &mut Edge, work: impl FnOnce()) {
    let records = [with_ports(&lab.a, &[mapping(Protocol::Tcp, 443)])];
    let mut program = render::edge::program(&records, &NftObserved::default());
    for (id, table) in &mut program.tables {
        for rule in table.table.chains.values_mut().flat_map(|chain| &mut chain.rules) {
            let kept = rule.statements().unwrap_or_default().iter();
            let kept = kept.filter(|one| **one != Statement::ToThisNode).cloned().collect();
            *rule = Rule::new(id.family, kept);
        }
    }
    let ops = render::nft::diff(&program, &edge.observe().expect("observe"));
    assert!(!ops.is_empty());
    let mut driver = lab.node.run(|| NftDriver::open().expect("a driver")).expect("node");
    for op in &ops {
        driver.apply(op).expect("rules");
    }
    work();
    assert!(!edge.repair(&records).expect("repair").is_empty());
}

#[test]
fn one_address_of_the_node_can_be_mapped_alone_and_every_source_hidden() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let (_a, _b) =
        (Server::start(&lab.a.namespace, "a", 80), Server::start(&lab.b.namespace, "b", 80));
    let bound = PortMapping {
        host_ip: Some(NODE.parse().expect("address")),
        ..mapping(Protocol::Tcp, 8080)
    };
    let unspecified = PortMapping {
        host_ip: Some("0.0.0.0".parse().expect("address")),
        masquerade_all: true,
        ..mapping(Protocol::Tcp, 8080)
    };
    let a = with_ports(&lab.a, &[bound]);
    let b = with_ports(&lab.b, &[unspecified]);
    attach(&mut edge, &a);
    edge.attach(&b, || vec![a.clone(), b.clone()]).expect("rules");
    assert_eq!(ask_tcp(&lab.outside, &format!("{NODE}:8080")), answer("a", OUTSIDE));
    assert_eq!(ask_tcp(&lab.outside, &format!("{GATEWAY}:8080")), answer("b", GATEWAY));
    // 0.0.0.0 is no address of IPv6.
    assert_eq!(ask_tcp(&lab.outside, "[fd31::2]:8080"), None);
}

/// PM snat: without it every client that could be answered is, under its own address. One on the
/// pod's own link is answered past the node, by somebody whom it never asked.
#[test]
fn without_snat_every_source_stays_and_neighbours_are_not_served() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let _a = Server::start(&lab.a.namespace, "a", 80);
    let port = PortMapping { snat: false, ..mapping(Protocol::Tcp, 8080) };
    attach(&mut edge, &with_ports(&lab.a, &[port]));
    let to = format!("{NODE}:8080");
    assert_eq!(ask_tcp(&lab.outside, &to), answer("a", OUTSIDE));
    assert_eq!(ask_tcp(&lab.routed.namespace, &to), answer("a", lab.routed.address()));
    assert!(is_silent(&lab.b.namespace, &to));
    assert!(is_silent(&lab.a.namespace, &to));
}

/// PM conditionsV4, conditionsV6: who does not fulfil all of a family's is not led to the pod.
#[test]
fn conditions_decide_who_is_led_to_a_pod() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let _a = Server::start(&lab.a.namespace, "a", 80);
    let _node = Server::start(&lab.node, "node", 8080);
    let condition = |side, range: &str, outside| HostPortCondition {
        side,
        range: crate::lab::net(range),
        outside,
    };
    let bound = PortMapping {
        host_ip: Some(NODE.parse().expect("address")),
        ..mapping(Protocol::Tcp, 8080)
    };
    let to = [format!("{NODE}:8080"), format!("{GATEWAY}:8080"), "[fd31::2]:8080".to_owned()];
    let outside4 = format!("{OUTSIDE}/32");
    // What the conditions are, and who answers at the node's address, its other one, and in IPv6.
    for (port, conditions, expected) in [
        (mapping(Protocol::Tcp, 8080), vec![], ["a", "a", "a"]),
        (
            mapping(Protocol::Tcp, 8080),
            vec![condition(Side::Source, &outside4, false)],
            ["a", "a", "a"],
        ),
        (
            mapping(Protocol::Tcp, 8080),
            vec![condition(Side::Source, &outside4, true)],
            ["node", "node", "a"],
        ),
        (
            mapping(Protocol::Tcp, 8080),
            vec![
                condition(Side::Destination, &format!("{NODE}/32"), true),
                condition(Side::Source, "172.31.0.0/16", false),
                condition(Side::Source, "fd31::9/128", true),
            ],
            ["node", "a", "node"],
        ),
        (bound, vec![condition(Side::Source, "10.0.0.0/8", false)], ["node", "node", "node"]),
    ] {
        let mut attachment = with_ports(&lab.a, &[port]);
        attachment.edge.host_port_conditions = conditions;
        attach(&mut edge, &attachment);
        for (to, name) in to.iter().zip(expected) {
            let seen = if to.starts_with('[') { "fd31::9" } else { OUTSIDE };
            let conditions = &attachment.edge.host_port_conditions;
            assert_eq!(ask_tcp(&lab.outside, to), answer(name, seen), "{to}: {conditions:?}");
        }
        assert_eq!(edge.check(&attachment).expect("check"), [""; 0]);
        edge.detach(&attachment).expect("detach");
    }
}

#[test]
fn what_cannot_be_served_is_refused_and_takes_nothing_away() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let _a = Server::start(&lab.a.namespace, "a", 80);
    let holder = with_ports(&lab.a, &[mapping(Protocol::Tcp, 8080)]);
    attach(&mut edge, &holder);
    let port = mapping(Protocol::Tcp, 8080);
    let loopback =
        PortMapping { host_ip: Some("127.0.0.1".parse().expect("address")), ..port.clone() };
    for (name, ports, words) in [
        ("a duplicate", vec![port.clone()], "hostPort 8080/tcp leads to pod shop/a already"),
        ("twice the same", vec![mapping(Protocol::Udp, 9), mapping(Protocol::Udp, 9)], "twice"),
        ("port 0", vec![mapping(Protocol::Tcp, 0)], "port 0"),
        ("loopback", vec![loopback], "route_localnet"),
    ] {
        let refused = with_ports(&lab.b, &ports);
        let records = || vec![holder.clone(), refused.clone()];
        let error = edge.attach(&refused, records).expect_err(name);
        assert!(error.message.contains(words), "{name}: {error}");
        // What the plugin does then.
        edge.detach(&refused).expect(name);
        let node = format!("{NODE}:8080");
        assert_eq!(ask_tcp(&lab.outside, &node), answer("a", OUTSIDE), "after {name}");
    }
    assert_eq!(edge.check(&holder).expect("check"), [""; 0]);
}

#[test]
fn a_udp_client_moves_with_the_port_and_none_stays_with_an_address() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let (_a, _b) =
        (Server::start(&lab.a.namespace, "a", 80), Server::start(&lab.b.namespace, "b", 80));
    let [a, b] = [&lab.a, &lab.b].map(|pod| with_ports(pod, &[mapping(Protocol::Udp, 8080)]));
    let client = UdpClient::open(&lab.outside, "0.0.0.0:40000");
    let to = format!("{NODE}:8080");
    // Asked while nobody has the port: tracked as the node's own, which answers by ICMP.
    assert_eq!(client.ask(&to), None);
    attach(&mut edge, &a);
    assert_eq!(client.ask(&to).or_else(|| client.ask(&to)), answer("a", OUTSIDE));
    edge.detach(&a).expect("detach");
    edge.attach(&b, || vec![b.clone()]).expect("attach");
    assert_eq!(client.ask(&to), answer("b", OUTSIDE), "the flow stayed with the first pod");

    // X-14: flows of an address, both ways, translated or not.
    let direct = UdpClient::open(&lab.outside, "0.0.0.0:40001");
    assert_eq!(direct.ask(&format!("{}:80", lab.b.address())), answer("b", OUTSIDE));
    let server = Server::start(&lab.outside, "far", 90);
    let of_pod = UdpClient::open(&lab.b.namespace, "0.0.0.0:40002");
    assert_eq!(of_pod.ask(&format!("{FAR}:90")), answer("far", lab.b.address()));
    drop(server);
    assert!(tracked(&lab, &lab.b) >= 3, "the flows to forget are not there");
    edge.detach(&b).expect("detach");
    assert_eq!(tracked(&lab, &lab.b), 0);
}

/// How many tracked flows name a pod's address.
fn tracked(lab: &Lab, pod: &Pod) -> usize {
    let needle = format!("={} ", pod.address());
    let flows = lab.node.run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"));
    let flows = flows.expect("node").expect("the tracked flows");
    flows.lines().filter(|line| line.contains(&needle)).count()
}
