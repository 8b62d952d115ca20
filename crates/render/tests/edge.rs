//! Laws of the rules at pods' edges: pods that come and go one by one leave what all of them
//! together would make, whatever they need; what cannot be served is said before.

use ipnet::IpNet;
use model::attachment::{
    Firewall, HostPortCondition, IngressPolicy, Masquerade, NodePort, PodLink, PortMapping, Side,
};
use model::{Attachment, MacAddress, NamespacedName, Protocol};
use proptest::prelude::*;
use render::edge::{additions, conflict, damages, diff, program, refusal, removals};
use render::nft::language::{Datum, TableFamily, Value};
use render::nft::{NftObserved, NftOp};

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn mapping(host_port: u16, protocol: Protocol) -> PortMapping {
    PortMapping {
        host_port,
        container_port: 80,
        protocol,
        host_ip: None,
        snat: true,
        masquerade_all: false,
    }
}

/// A pod whose number makes it unlike all others.
fn pod(number: u8) -> Attachment {
    let address = net(&format!("10.50.0.{number}/24"));
    let name = format!("veth{number}");
    Attachment {
        container_id: format!("container-{number}"),
        interface: "eth0".into(),
        pod: Some(NamespacedName::new("shop", format!("web-{number}"))),
        link: PodLink::Bridge { name, bridge: "cni0".into() },
        mac: MacAddress::of_pod_address(address.addr()),
        addresses: vec![address],
        ..Attachment::default()
    }
}

prop_compose! {
    fn pods()(needs in prop::collection::vec((any::<u8>(), 0_u8..4), 1..8)) -> Vec<Attachment> {
        (1_u8..).zip(needs).map(|(number, (needs, link))| {
            let mut pod = pod(number);
            let name = format!("veth{number}");
            let wants = |bit: u8| needs & 1 << bit != 0;
            pod.link = match link {
                0 => pod.link,
                1 => PodLink::Routed { name },
                2 => PodLink::Chained { name: Some(name), bridge: wants(6).then(|| "br0".into()) },
                _ => PodLink::Macvlan { parent: "eth0".into() },
            };
            if wants(0) {
                pod.addresses.push(net(&format!("fd50::{number}/64")));
            }
            pod.edge.anti_spoofing = wants(1);
            if wants(2) {
                pod.edge.extra_sources = vec![net("203.0.113.0/29"), net("fd99::/64")];
            }
            if wants(3) {
                let except = vec![net("10.50.0.0/24"), net("fd50::/64")];
                pod.edge.masquerade = Some(Masquerade { except });
            }
            if wants(4) {
                pod.edge.host_ports = vec![
                    mapping(8000 + u16::from(number), Protocol::Tcp),
                    mapping(8000 + u16::from(number), Protocol::Sctp),
                ];
                let range = net("198.51.100.0/24");
                let condition = HostPortCondition { side: Side::Source, range, outside: wants(6) };
                pod.edge.host_port_conditions.extend(wants(7).then_some(condition));
            }
            if wants(5) {
                let ingress_policy =
                    if wants(6) { IngressPolicy::Isolated } else { IngressPolicy::SameBridge };
                pod.edge.firewall = Some(Firewall { ingress_policy });
            }
            if wants(7) {
                pod.edge.node_ports = Some(vec![NodePort { protocol: Protocol::Udp, port: 53 }]);
                pod.edge.metadata_blocked = true;
            }
            pod
        }).collect()
    }
}

fn apply(observed: &mut NftObserved, ops: &[NftOp]) {
    for op in ops {
        observed.apply(op).unwrap_or_else(|error| panic!("{error}"));
    }
}

proptest! {
    #[test]
    fn one_by_one_is_what_all_together_make(pods in pods()) {
        let mut together = NftObserved::default();
        apply(&mut together, &diff(&pods, &NftObserved::default()));
        prop_assert_eq!(diff(&pods, &together), vec![]);
        prop_assert_eq!(damages(&diff(&pods, &together)), vec![""; 0]);

        // The tables are there; the elements come pod by pod.
        let mut observed = together.clone();
        for pod in &pods {
            for removal in removals(pod) {
                observed.apply(&NftOp::Transaction(removal)).expect("they are there");
            }
        }
        let left = observed.tables.values().flat_map(|table| table.sets.values());
        prop_assert_eq!(left.map(|set| set.elements.len()).sum::<usize>(), 0);
        for pod in &pods {
            for addition in additions(pod) {
                observed.apply(&NftOp::Transaction(addition)).expect("nobody has them");
            }
        }
        prop_assert_eq!(&observed, &together);
        apply(&mut observed, &diff(&[], &together));
        prop_assert_eq!(observed, NftObserved::default());
    }

    #[test]
    fn a_pod_that_is_gone_leaves_nothing_of_its_own(pods in pods()) {
        let mut observed = NftObserved::default();
        apply(&mut observed, &diff(&pods, &NftObserved::default()));
        let rest = &pods[1..];
        let ops = diff(rest, &observed);
        apply(&mut observed, &ops);
        prop_assert_eq!(diff(rest, &observed), vec![]);
        let own = Value::Address(pods[0].addresses[0].addr());
        for set in observed.tables.values().flat_map(|table| table.sets.values()) {
            for (key, datum) in set.elements.iter() {
                let leads = matches!(datum, Datum::Values(values) if values.contains(&own));
                prop_assert!(!leads && !key.contains(&own), "{:?}", key);
            }
        }
    }
}

#[test]
fn only_the_tables_that_a_pod_needs_are_made() {
    let families = |pod: &Attachment| -> Vec<TableFamily> {
        program(std::slice::from_ref(pod), &NftObserved::default())
            .tables
            .into_keys()
            .map(|id| id.family)
            .collect()
    };
    let plain = pod(1);
    assert_eq!(families(&plain), [TableFamily::Bridge]);
    let routed = Attachment { link: PodLink::Routed { name: "veth1".into() }, ..pod(1) };
    let ip = |family| TableFamily::Ip(family);
    use model::Family::{V4, V6};
    assert_eq!(families(&routed), [ip(V4), ip(V6), TableFamily::Arp]);
    let mut trusted = pod(1);
    trusted.edge.anti_spoofing = false;
    assert_eq!(families(&trusted), []);
    // A table that is there stays for the next pod.
    let mut observed = NftObserved::default();
    let ops = diff(&[pod(1), routed.clone()], &observed);
    apply(&mut observed, &ops);
    assert_eq!(damages(&diff(&[routed], &observed)).len(), 3, "elements only");
}

#[test]
fn ports_that_cannot_be_served_are_refused_with_the_reason() {
    let at = |address: &str, mapping: PortMapping| PortMapping {
        host_ip: Some(address.parse().expect("an address")),
        ..mapping
    };
    let tcp = || mapping(80, Protocol::Tcp);
    for (name, ports, reason) in [
        ("one", vec![tcp()], None),
        ("both protocols", vec![tcp(), mapping(80, Protocol::Udp)], None),
        ("two addresses", vec![at("192.0.2.1", tcp()), at("192.0.2.2", tcp())], None),
        ("one of two families", vec![at("0.0.0.0", tcp()), at("::", tcp())], None),
        ("no port", vec![mapping(0, Protocol::Tcp)], Some("port 0")),
        ("twice", vec![tcp(), tcp()], Some("mapped twice")),
        ("twice, once in words", vec![tcp(), at("0.0.0.0", tcp())], Some("mapped twice")),
        ("loopback", vec![at("127.0.0.1", tcp())], Some("route_localnet")),
        ("loopback of IPv6", vec![at("::1", tcp())], Some("route_localnet")),
    ] {
        let mut pod = pod(1);
        pod.edge.host_ports = ports;
        let refused = refusal(&pod);
        match reason {
            None => assert_eq!(refused, None, "{name}"),
            Some(words) => assert!(refused.is_some_and(|it| it.contains(words)), "{name}"),
        }
    }
}

#[test]
fn a_port_has_one_holder_for_each_address_and_protocol() {
    let at = |address: &str| PortMapping {
        host_ip: Some(address.parse().expect("an address")),
        ..mapping(80, Protocol::Tcp)
    };
    for (name, held, wanted, clash) in [
        ("the same", mapping(80, Protocol::Tcp), mapping(80, Protocol::Tcp), true),
        ("all in two ways", mapping(80, Protocol::Tcp), at("0.0.0.0"), true),
        ("one address", at("192.0.2.1"), at("192.0.2.1"), true),
        ("another address", at("192.0.2.1"), at("192.0.2.2"), false),
        ("one and all", at("192.0.2.1"), mapping(80, Protocol::Tcp), false),
        ("another protocol", mapping(80, Protocol::Udp), mapping(80, Protocol::Tcp), false),
        ("another port", mapping(81, Protocol::Tcp), mapping(80, Protocol::Tcp), false),
        ("another family, which no pod has", at("::"), at("::"), false),
    ] {
        let (mut holder, mut pod) = (pod(1), pod(2));
        holder.edge.host_ports = vec![held];
        pod.edge.host_ports = vec![wanted];
        let found = conflict(&[holder, pod.clone()], &pod);
        assert_eq!(found.is_some(), clash, "{name}: {found:?}");
        assert!(found.is_none_or(|it| it.contains("pod shop/web-1")), "{name}");
    }
}
