//! Links of pods against the real kernel: what is made, that packets pass or do not, and that
//! nothing stays. Needs root.

mod attach;
mod lab;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use attach::{Attached, BOTH_ONE, BOTH_TWO, ONE, TWO, attach, change, config};
use cni::fault::Fault;
use cni::link;
use lab::{LabNode, PATIENCE, Pod, tcp_body, udp_echo};
use model::layout::POD_ROUTE_PROTOCOL;
use model::{Attachment, MacAddress};
use netlink::{BridgeSpec, LinkChange, Netlink, Netns, VethSpec, sysctl};
use serde_json::{Value, json};
use testkit::emulated::Feature;
use testkit::lab::probe::uninterrupted;

/// How long an answer is waited for that must not come.
const SILENCE: Duration = Duration::from_millis(300);
/// Claims of another's address that are tried.
const CLAIMS_MAX: u8 = 250;
const LARGE_BODY_BYTES: usize = 3_000_000;

fn node() -> LabNode {
    LabNode::alone("node1", Ipv4Addr::new(172, 30, 0, 2).into())
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Whether a datagram from one namespace arrives in another. One that is expected has time.
fn reaches(client: &Netns, server: &Netns, to: IpAddr, expected: bool) -> bool {
    let patience = if expected { PATIENCE } else { SILENCE };
    let server = server.run(|| UdpSocket::bind((to, 0)).expect("bound")).expect("inside");
    let address: SocketAddr = server.local_addr().expect("its address");
    let any: IpAddr = if to.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
    let client = client.run(|| UdpSocket::bind((any, 0)).expect("bound")).expect("inside");
    server.set_read_timeout(Some(patience)).expect("a timeout");
    // No route, or nobody who answers for the address, is no way either.
    client.send_to(b"hello", address).is_ok() && uninterrupted(|| server.recv(&mut [0; 16])).is_ok()
}

fn parameter(namespace: &Netns, key: &str) -> String {
    namespace.run(|| sysctl::read(key).expect(key)).expect("inside")
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Nothing but loopback and links that the test itself made.
fn names(netlink: &mut Netlink) -> Vec<String> {
    let mut names: Vec<String> =
        netlink.links().expect("links").into_iter().map(|link| link.name).collect();
    names.sort();
    names
}

/// BR: creates the bridge with its gateway's address and a stable MAC, reuses it; hairpin.
#[test]
fn a_bridge_is_made_once_with_its_gateway_and_keeps_its_mac() {
    let node = node();
    let config = config("bridge", json!({ "bridge": "cni0", "mtu": 1400 }));
    let (one, two) = (Pod::new("c1"), Pod::new("c2"));
    let first = attach(&node.namespace, &one, &config, BOTH_ONE).expect("made");
    let mut netlink = node.netlink();
    let bridge = netlink.require_link("cni0").expect("the bridge");
    let second = attach(&node.namespace, &two, &config, BOTH_TWO).expect("made");
    let near = netlink.require_link(first.near()).expect("the node's end");
    assert_eq!((near.hairpin, near.isolated, near.mtu), (Some(true), Some(false), 1400));
    assert_eq!(near.master, Some(bridge.index));
    let addresses = netlink.addresses(Some(bridge.index)).expect("addresses");
    for gateway in ["10.244.1.1/24", "fd00:10:244:1::1/64"] {
        let gateway = gateway.parse().expect("a prefix");
        assert!(addresses.iter().any(|found| found.address == gateway), "{addresses:?}");
    }
    // At once: no duplicate address detection delays the first packet.
    for (pod, addressing) in [(&one, BOTH_ONE), (&two, BOTH_TWO)] {
        for (address, gateway) in addressing {
            let address: ipnet::IpNet = address.parse().expect("a prefix");
            let seen = udp_echo(&node.namespace, &pod.namespace, address.addr(), 1000);
            assert_eq!(seen, ip(gateway));
        }
    }
    for to in ["10.244.1.3", "fd00:10:244:1::3"] {
        tcp_body(&one.namespace, &two.namespace, ip(to), LARGE_BODY_BYTES);
    }
    first.remove(&node.namespace).expect("removed");
    second.remove(&node.namespace).expect("removed");
    let after = netlink.require_link("cni0").expect("the bridge");
    assert_eq!((after.mac, after.mtu), (bridge.mac, 1400), "whatever its ports were");
    assert_eq!(names(&mut netlink), ["cni0", "lo"]);
}

/// BR: isGateway, forceAddress; a bridge of somebody else keeps its addresses.
#[test]
fn the_address_of_a_bridge_is_changed_only_where_the_configuration_says_so() {
    // What the bridge has, what the configuration says, what it has then.
    type Row = (&'static [&'static str], Value, Result<&'static [&'static str], &'static str>);
    let rows: [Row; 7] = [
        (&[], json!({}), Ok(&[])),
        (&[], json!({ "isGateway": false }), Ok(&[])),
        (&[], json!({ "isGateway": true }), Ok(&["10.244.1.1/24"])),
        (&["10.244.1.1/24"], json!({ "isGateway": true }), Ok(&["10.244.1.1/24"])),
        (
            &["10.9.0.1/24"],
            json!({ "isGateway": true }),
            Err("cni0 has the address 10.9.0.1/24 already"),
        ),
        (
            &["10.9.0.1/24"],
            json!({ "isGateway": true, "forceAddress": true }),
            Ok(&["10.244.1.1/24"]),
        ),
        (
            &["10.244.1.9/24", "fd00:9::1/64"],
            json!({ "isDefaultGateway": true, "forceAddress": true }),
            Ok(&["10.244.1.1/24", "fd00:9::1/64"]),
        ),
    ];
    for (before, keys, expected) in rows {
        let node = node();
        let mut netlink = node.netlink();
        let spec = BridgeSpec { name: "cni0".into(), ..BridgeSpec::default() };
        netlink.create_bridge(&spec).expect("somebody's bridge");
        let bridge = netlink.require_link("cni0").expect("the bridge").index;
        for address in before {
            netlink.add_address(bridge, address.parse().expect("a prefix")).expect("an address");
        }
        let pod = Pod::new("c1");
        let made = attach(&node.namespace, &pod, &config("bridge", keys.clone()), ONE);
        match (made, expected) {
            (Err(fault), Err(said)) => {
                assert!(fault.message.contains(said), "{fault}");
                assert_eq!(names(&mut netlink), ["cni0", "lo"]);
            }
            (Ok(_), Ok(after)) => {
                let found = netlink.addresses(Some(bridge)).expect("addresses");
                let mut found: Vec<String> = found
                    .iter()
                    .map(|one| one.address.to_string())
                    .filter(|one| !one.starts_with("fe80"))
                    .collect();
                found.sort();
                assert_eq!(found, after, "{before:?} with {keys}");
            }
            (Ok(_), Err(said)) => panic!("{keys}: not refused: {said}"),
            (Err(fault), Ok(_)) => panic!("{keys}: {fault}"),
        }
    }
}

/// BR: isDefaultGateway, promisc, hairpin, MAC address on request.
#[test]
fn keys_of_the_bridge_show_in_the_kernel() {
    let node = node();
    let pod = Pod::new("c1");
    let mac = "0a:00:00:00:00:77";
    let keys =
        json!({ "isDefaultGateway": true, "promiscMode": true, "runtimeConfig": { "mac": mac } });
    let attached = attach(&node.namespace, &pod, &config("bridge", keys), BOTH_ONE).expect("made");
    let mut netlink = node.netlink();
    assert!(netlink.require_link("cni0").expect("the bridge").promiscuous);
    assert_eq!(netlink.require_link(attached.near()).expect("an end").hairpin, Some(false));
    let eth0 = pod.netlink().require_link("eth0").expect("the interface");
    assert_eq!((eth0.mac, eth0.up), (mac.parse().ok(), true));
    let defaults: Vec<IpAddr> = pod
        .netlink()
        .routes(None)
        .expect("routes")
        .into_iter()
        .filter(|route| route.destination.prefix_len() == 0)
        .filter_map(|route| route.gateway)
        .collect();
    assert_eq!(defaults, [ip("10.244.1.1"), ip("fd00:10:244:1::1")]);
    assert_eq!(attached.made.routes.len(), 2, "and in the result");
}

/// BR: port isolation. Without it the same pods reach each other.
#[test]
fn isolated_ports_do_not_reach_each_other_but_the_node() {
    for isolated in [false, true] {
        let node = node();
        let config = config("bridge", json!({ "portIsolation": isolated }));
        let (one, two) = (Pod::new("c1"), Pod::new("c2"));
        let first = attach(&node.namespace, &one, &config, ONE).expect("made");
        attach(&node.namespace, &two, &config, TWO).expect("made");
        let reached = reaches(&one.namespace, &two.namespace, ip("10.244.1.3"), !isolated);
        assert_eq!(reached, !isolated, "with portIsolation {isolated}");
        udp_echo(&node.namespace, &one.namespace, ip("10.244.1.2"), 100);
        let near = node.netlink().require_link(first.near()).expect("the node's end");
        assert_eq!(near.isolated, Some(isolated));
    }
}

/// BR: layer 2 alone, without address management; disableContainerInterface.
#[test]
fn a_pod_without_addresses_is_a_port_and_no_more() {
    for disabled in [false, true] {
        let node = node();
        let pod = Pod::new("c1");
        let keys = json!({ "disableContainerInterface": disabled });
        let attached = attach(&node.namespace, &pod, &config("bridge", keys), &[]).expect("made");
        let mut inside = pod.netlink();
        let eth0 = inside.require_link("eth0").expect("the interface");
        assert_eq!(eth0.up, !disabled);
        assert_eq!((attached.made.addresses.len(), attached.made.interfaces.len()), (0, 2));
        let given = inside.addresses(Some(eth0.index)).expect("addresses");
        assert!(given.iter().all(|one| one.address.to_string().starts_with("fe80")), "{given:?}");
        let bridge = node.netlink().require_link("cni0").expect("the bridge");
        let addresses = node.netlink().addresses(Some(bridge.index)).expect("addresses");
        assert!(addresses.iter().all(|one| one.address.addr().is_ipv6()), "{addresses:?}");
        attached.check(&node.namespace).expect("as made");
    }
}

/// The keys of VLANs, and two pods that they put into VLAN 5.
fn vlan_keys() -> Value {
    json!({
        "vlan": 5, "preserveDefaultVlan": false, "isGateway": true,
        "vlanTrunk": [{ "minID": 10, "maxID": 12 }, { "id": 20 }],
    })
}

/// BR: vlan, vlanTrunk, preserveDefaultVlan.
#[test]
fn vlans_part_a_bridge() {
    if testkit::deferred!(Feature::Vlan) {
        return;
    }
    let node = node();
    let keys = vlan_keys();
    let (one, two, other) = (Pod::new("c1"), Pod::new("c2"), Pod::new("c3"));
    let first = attach(&node.namespace, &one, &config("bridge", keys.clone()), ONE).expect("made");
    attach(&node.namespace, &two, &config("bridge", keys), TWO).expect("made");
    let elsewhere = config("bridge", json!({ "vlan": 6, "isGateway": false }));
    attach(&node.namespace, &other, &elsewhere, &[("10.244.1.4/24", "10.244.1.1")]).expect("made");
    let mut netlink = node.netlink();
    let port = netlink.require_link(first.near()).expect("the port").index;
    let vlans: Vec<(u16, bool)> = netlink
        .port_vlans(port)
        .expect("VLANs")
        .into_iter()
        .map(|vlan| (vlan.first, vlan.untagged))
        .collect();
    assert_eq!(vlans, [(5, true), (10, false), (11, false), (12, false), (20, false)]);
    assert!(reaches(&one.namespace, &two.namespace, ip("10.244.1.3"), true), "in one VLAN");
    assert!(!reaches(&one.namespace, &other.namespace, ip("10.244.1.4"), false), "in another");
    udp_echo(&node.namespace, &one.namespace, ip("10.244.1.2"), 100);
    let gateway = netlink.require_link("cni0.5").expect("the gateway's link").index;
    let addresses = netlink.addresses(Some(gateway)).expect("addresses");
    assert_eq!(addresses[0].address.addr(), ip("10.244.1.1"));
}

/// BR: a kernel without VLAN filtering says so, and nothing half made stays.
#[test]
fn vlans_are_made_where_the_kernel_can_and_refused_where_it_cannot() {
    let node = node();
    let mut netlink = node.netlink();
    let spec = BridgeSpec { name: "cni0".into(), ..BridgeSpec::default() };
    netlink.create_bridge(&spec).expect("a bridge");
    let kernel_can = Feature::Vlan.is_here();
    let pod = Pod::new("c1");
    let made = attach(&node.namespace, &pod, &config("bridge", vlan_keys()), ONE);
    match made {
        Ok(_) => assert!(kernel_can),
        Err(fault) => {
            assert!(!kernel_can, "{fault}");
            assert!(fault.message.contains("cannot tell VLANs apart"), "{fault}");
            assert_eq!(names(&mut netlink), ["cni0", "lo"]);
        }
    }
}

/// A routed pod: prefixes of one address, neighbours that nobody asks for, a route on the node,
/// and packets of both families at once, between pods and with the node.
#[test]
fn routed_pods_reach_each_other_and_the_node_without_a_segment() {
    let node = node();
    let config = config("routed", json!({ "mtu": 1420 }));
    let (one, two) = (Pod::new("c1"), Pod::new("c2"));
    let first = attach(&node.namespace, &one, &config, BOTH_ONE).expect("made");
    attach(&node.namespace, &two, &config, BOTH_TWO).expect("made");
    for (address, other) in [("10.244.1.2", "10.244.1.3"), ("fd00:10:244:1::2", "fd00:10:244:1::3")]
    {
        // The node has no address of its own here but the loopback's; pods do.
        let seen = udp_echo(&one.namespace, &two.namespace, ip(other), 1000);
        assert_eq!(seen, ip(address));
        tcp_body(&two.namespace, &one.namespace, ip(address), LARGE_BODY_BYTES);
        // To itself by the node, as a Service would lead it, is no business of the link; to its
        // own address it stays inside.
        udp_echo(&one.namespace, &one.namespace, ip(address), 100);
    }
    let mut inside = one.netlink();
    let eth0 = inside.require_link("eth0").expect("the interface");
    let given: Vec<String> = inside
        .addresses(Some(eth0.index))
        .expect("addresses")
        .iter()
        .map(|one| one.address.to_string())
        .filter(|one| !one.starts_with("fe80"))
        .collect();
    assert_eq!(given, ["10.244.1.2/32", "fd00:10:244:1::2/128"]);
    let known = inside.neighbours(eth0.index).expect("neighbours");
    let mut known: Vec<IpAddr> = known.iter().map(|neighbour| neighbour.address).collect();
    known.sort();
    assert_eq!(known, [ip("169.254.1.1"), ip("fe80::1")], "permanent ones");
    let mut netlink = node.netlink();
    let near = netlink.require_link(first.near()).expect("the node's end");
    assert_eq!((near.master, near.mtu, eth0.mtu), (None, 1420, 1420));
    let routes = netlink.routes(Some(POD_ROUTE_PROTOCOL)).expect("routes");
    assert_eq!(routes.iter().filter(|route| route.link_index == Some(near.index)).count(), 2);
    let mut known: Vec<IpAddr> = netlink
        .neighbours(near.index)
        .expect("neighbours")
        .into_iter()
        .map(|neighbour| neighbour.address)
        .collect();
    known.sort();
    assert_eq!(known, [ip("10.244.1.2"), ip("fd00:10:244:1::2")]);
    first.check(&node.namespace).expect("as made");
    first.remove(&node.namespace).expect("removed");
    let routes = netlink.routes(Some(POD_ROUTE_PROTOCOL)).expect("routes");
    assert_eq!(routes.len(), 2, "only the other pod's: {routes:?}");
}

/// The node's own packets carry the gateway's address where the node has it.
#[test]
fn a_node_speaks_to_its_routed_pods_from_the_gateways_address() {
    let node = node();
    let mut netlink = node.netlink();
    netlink.change_link(1, &LinkChange::up()).expect("loopback");
    let spec = BridgeSpec { name: "cni0".into(), ..BridgeSpec::default() };
    netlink.create_bridge(&spec).expect("a link for addresses");
    let holder = netlink.require_link("cni0").expect("the link").index;
    netlink.change_link(holder, &LinkChange::up()).expect("up");
    for gateway in ["10.244.1.1/32", "fd00:10:244:1::1/128"] {
        netlink.add_address(holder, gateway.parse().expect("a prefix")).expect("an address");
    }
    let pod = Pod::new("c1");
    attach(&node.namespace, &pod, &config("routed", json!({})), BOTH_ONE).expect("made");
    for (address, gateway) in BOTH_ONE {
        let address: ipnet::IpNet = address.parse().expect("a prefix");
        let seen = udp_echo(&node.namespace, &pod.namespace, address.addr(), 100);
        assert_eq!(seen, ip(gateway));
        udp_echo(&pod.namespace, &node.namespace, ip(gateway), 100);
    }
}

/// who claims another pod's address by gratuitous ARP gets nothing in routed mode. On a
/// bridge without rules at the edge the same claim is believed.
#[test]
fn a_routed_pod_cannot_claim_the_address_of_another() {
    for (datapath, believed) in [("bridge", true), ("routed", false)] {
        let node = node();
        let (victim, thief) = (Pod::new("c1"), Pod::new("c2"));
        let config = config(datapath, json!({ "routes": [{ "dst": "0.0.0.0/0" }] }));
        attach(&node.namespace, &victim, &config, ONE).expect("made");
        attach(&node.namespace, &thief, &config, TWO).expect("made");
        let holder = node.netlink().link("cni0").expect("an answer");
        if holder.is_none() {
            give_gateway(&node);
        }
        assert!(reaches(&node.namespace, &victim.namespace, ip("10.244.1.2"), true));
        // The kernel announces addresses when their link gets another MAC address, if told to.
        let mut inside = thief.netlink();
        let eth0 = inside.require_link("eth0").expect("the interface").index;
        inside.add_address(eth0, "10.244.1.2/32".parse().expect("a prefix")).expect("a claim");
        let write = || sysctl::write("net/ipv4/conf/eth0/arp_notify", "1").expect("written");
        thief.namespace.run(write).expect("inside");
        let mut claims = 0..CLAIMS_MAX;
        let mut claim_believed = || {
            let number = claims.next().unwrap_or_default();
            let mac = Some(MacAddress([0x0a, 0, 0, 0, 1, number]));
            change(&mut inside, "eth0", &LinkChange { mac, ..LinkChange::default() });
            reaches(&node.namespace, &thief.namespace, ip("10.244.1.2"), false)
        };
        if believed {
            wait_for("the claim is believed on a bridge", claim_believed);
        } else {
            assert!(!(0..3).any(|_| claim_believed()), "never in routed mode");
        }
        let kept = reaches(&node.namespace, &victim.namespace, ip("10.244.1.2"), !believed);
        assert_eq!(kept, !believed, "{datapath}");
    }
}

/// Gives a node without a bridge an address to speak from.
fn give_gateway(node: &LabNode) {
    let mut netlink = node.netlink();
    let spec = BridgeSpec { name: "holder".into(), ..BridgeSpec::default() };
    netlink.create_bridge(&spec).expect("a link for the address");
    let holder = netlink.require_link("holder").expect("the link").index;
    netlink.change_link(holder, &LinkChange::up()).expect("up");
    netlink.add_address(holder, "10.244.1.1/32".parse().expect("a prefix")).expect("an address");
}

/// parameters of both ends, and a router advertisement from a pod that the node does not
/// believe. With the defence off it does.
#[test]
fn a_rogue_router_in_a_pod_teaches_the_node_nothing() {
    let node = node();
    let pod = Pod::new("c1");
    let attached =
        attach(&node.namespace, &pod, &config("routed", json!({})), BOTH_ONE).expect("made");
    let near = attached.near().to_owned();
    for key in ["accept_ra", "autoconf", "accept_redirects"] {
        assert_eq!(
            parameter(&node.namespace, &format!("net/ipv6/conf/{near}/{key}")),
            "0",
            "{key}"
        );
        assert_eq!(parameter(&pod.namespace, &format!("net/ipv6/conf/eth0/{key}")), "0", "{key}");
    }
    assert_eq!(parameter(&node.namespace, &format!("net/ipv4/conf/{near}/rp_filter")), "1");
    let learned = || {
        let routes = node.netlink().routes(None).expect("routes");
        routes.iter().any(|route| route.destination.prefix_len() == 0)
    };
    send_router_advertisement(&pod.namespace);
    std::thread::sleep(SILENCE); // what must not happen cannot be waited for
    assert!(!learned(), "accept_ra is 0");
    let off = || sysctl::write(&format!("net/ipv6/conf/{near}/accept_ra"), "2").expect("written");
    node.namespace.run(off).expect("inside");
    wait_for("with the defence off it learns the route", || {
        send_router_advertisement(&pod.namespace);
        learned()
    });
}

/// RFC 4861, section 4.2: a router with a lifetime of 1800 s, to all nodes.
fn send_router_advertisement(pod: &Netns) {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
    use nix::sys::socket::{SockaddrIn6, sendto, setsockopt, socket, sockopt};
    use std::os::fd::AsRawFd;
    let send = || {
        let index = Netlink::open().expect("a socket").require_link("eth0").expect("it").index;
        let raw =
            socket(AddressFamily::Inet6, SockType::Raw, SockFlag::empty(), SockProtocol::IcmpV6)
                .expect("a raw socket");
        setsockopt(&raw, sockopt::Ipv6MulticastHops, &255).expect("hops");
        let advertisement = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        let all_nodes = std::net::SocketAddrV6::new("ff02::1".parse().expect("it"), 0, 0, index);
        sendto(raw.as_raw_fd(), &advertisement, &SockaddrIn6::from(all_nodes), MsgFlags::empty())
            .expect("sent");
    };
    pod.run(send).expect("inside");
}

/// Macvlan: pods of one lower link reach each other directly or, in private mode, not at all.
#[test]
fn macvlan_pods_share_a_lower_link_as_their_mode_says() {
    for (mode, reached) in [("bridge", true), ("private", false)] {
        let node = node();
        let mut netlink = node.netlink();
        netlink.create_veth(&VethSpec::new("up0", "up1")).expect("a link below");
        for name in ["up0", "up1"] {
            change(&mut netlink, name, &LinkChange::up());
        }
        let config = config("macvlan", json!({ "master": "up0", "mode": mode, "mtu": 1300 }));
        let (one, two) = (Pod::new("c1"), Pod::new("c2"));
        let first = attach(&node.namespace, &one, &config, ONE).expect("made");
        attach(&node.namespace, &two, &config, TWO).expect("made");
        let found = reaches(&one.namespace, &two.namespace, ip("10.244.1.3"), reached);
        assert_eq!(found, reached, "{mode}");
        let eth0 = one.netlink().require_link("eth0").expect("the interface");
        assert_eq!((eth0.kind.as_str(), eth0.mtu, eth0.up), ("macvlan", 1300, true));
        assert_eq!(eth0.mac, Some(MacAddress::of_pod_address(ip("10.244.1.2"))));
        assert_eq!(first.made.interfaces.len(), 1);
        assert_eq!(first.made.addresses[0].interface_index, Some(0));
        first.check(&node.namespace).expect("as made");
        first.remove(&node.namespace).expect("removed");
        assert_eq!(one.netlink().link("eth0").expect("an answer"), None);
        first.remove(&node.namespace).expect("again");
        assert!(two.netlink().link("eth0").expect("an answer").is_some());
    }
}

/// Macvlan: a lower link that is not there, none that the default route could name; passthru
/// keeps the lower link's MAC address.
#[test]
fn macvlan_finds_its_lower_link_or_says_that_there_is_none() {
    let node = node();
    let pod = Pod::new("c1");
    let refused = |keys: Value| -> Fault {
        attach(&node.namespace, &pod, &config("macvlan", keys), ONE).err().expect("refused")
    };
    assert!(refused(json!({ "master": "up0" })).message.contains("no link \"up0\""));
    assert!(refused(json!({})).message.contains("no default route"));
    assert!(refused(json!({ "mode": "loud" })).message.contains("invalid mode"));
    let mut netlink = node.netlink();
    netlink.create_veth(&VethSpec::new("up0", "up1")).expect("a link below");
    for name in ["up0", "up1"] {
        change(&mut netlink, name, &LinkChange::up());
    }
    let up0 = netlink.require_link("up0").expect("the link");
    let default = netlink::Route::on_link("0.0.0.0/0".parse().expect("it"), up0.index, 4);
    netlink.add_route(&default).expect("a default route");
    let attached =
        attach(&node.namespace, &pod, &config("macvlan", json!({ "mode": "passthru" })), ONE)
            .expect("made");
    assert_eq!(Some(attached.attachment.mac), up0.mac);
    assert_eq!(pod.netlink().require_link("eth0").expect("it").mac, up0.mac);
}

/// MTU: a running pod is brought to another one on all its ends or on none; a pod that is gone is
/// none.
#[test]
fn a_running_pod_gets_a_changed_mtu_and_keeps_its_connections() {
    for datapath in ["bridge", "routed"] {
        let node = node();
        let pod = Pod::new("c1");
        let keys =
            json!({ "mtu": 1500, "egressRate": 1_000_000_000_u64, "egressBurst": 8_000_000 });
        let attached =
            attach(&node.namespace, &pod, &config(datapath, keys), BOTH_ONE).expect("made");
        let set = |mtu: u32| {
            node.namespace.run(|| link::set_mtu(&attached.attachment, mtu)).expect("inside")
        };
        for mtu in [1400, 1450] {
            assert_eq!(set(mtu), Ok(true), "{datapath}");
            assert_eq!(set(mtu), Ok(false), "nothing to do");
            let ends: Vec<u32> = node
                .netlink()
                .links()
                .expect("links")
                .into_iter()
                .filter(|link| link.kind == "veth" || link.kind == "ifb")
                .map(|link| link.mtu)
                .collect();
            assert_eq!(ends, [mtu, mtu], "{datapath}: the node's end and its ifb");
            assert_eq!(pod.netlink().require_link("eth0").expect("it").mtu, mtu);
        }
        let gone =
            Attachment { namespace: "/proc/1/fd/99999".into(), ..attached.attachment.clone() };
        let fault = node.namespace.run(|| link::set_mtu(&gone, 1300)).expect("inside");
        assert!(fault.is_err(), "its end is there, and it cannot be entered");
        assert_eq!(pod.netlink().require_link("eth0").expect("it").mtu, 1450);
        let name = attached.attachment.link.node_end().expect("an end");
        let near = node.netlink().require_link(name).expect("it");
        assert_eq!(
            near.mtu, 1450,
            "no end is smaller than the other: it would drop without a word"
        );
        attached.remove(&node.namespace).expect("removed");
        assert_eq!(set(1500), Ok(false));
    }
}

/// TU: promisc, allmulti, txqlen and parameters of the pod's namespace.
#[test]
fn tuning_changes_the_pods_interface_and_its_namespace_only() {
    let node = node();
    let pod = Pod::new("c1");
    let keys = json!({
        "promisc": true, "allmulti": true, "txQLen": 777,
        "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "321" },
    });
    let attached = attach(&node.namespace, &pod, &config("bridge", keys), ONE).expect("made");
    let eth0 = pod.netlink().require_link("eth0").expect("the interface");
    assert_eq!(
        (eth0.promiscuous, eth0.all_multicast, eth0.transmit_queue_length),
        (true, true, 777)
    );
    assert_eq!(parameter(&pod.namespace, "net/ipv4/conf/eth0/arp_filter"), "1");
    assert_eq!(parameter(&pod.namespace, "net/core/somaxconn"), "321");
    assert_ne!(parameter(&node.namespace, "net/core/somaxconn"), "321");
    attached.check(&node.namespace).expect("as made");
    let write = || sysctl::write("net/core/somaxconn", "5").expect("written");
    pod.namespace.run(write).expect("inside");
    let fault = attached.check(&node.namespace).expect_err("changed");
    assert!(fault.message.contains("net/core/somaxconn is 5"), "{fault}");

    let refused = json!({ "sysctl": { "net.ipv4.no_such_parameter": "1" } });
    let other = Pod::new("c2");
    let fault =
        attach(&node.namespace, &other, &config("bridge", refused), TWO).err().expect("refused");
    assert!(fault.details.contains("no_such_parameter"), "{fault}");
    assert_eq!(other.netlink().link("eth0").expect("an answer"), None);
}

/// TU: an interface of another plugin gets back, on DEL, what it was.
#[test]
fn what_was_changed_of_another_plugins_interface_is_put_back() {
    let node = node();
    let pod = Pod::new("c1");
    let mut netlink = node.netlink();
    netlink.create_veth(&VethSpec::new("theirs", "eth0").peer_in(&pod.namespace)).expect("a pair");
    change(&mut netlink, "theirs", &LinkChange::up());
    let before = pod.netlink().require_link("eth0").expect("the interface");
    let keys = json!({
        "mac": "0a:00:00:00:00:01", "mtu": 1280, "promisc": true, "allmulti": true, "txQLen": 55,
        "ingressRate": 8_000_000, "ingressBurst": 800_000,
        "egressRate": 8_000_000, "egressBurst": 800_000,
    });
    let request = attach::request(&pod, "");
    let options = link::options::LinkOptions::parse(&config("bridge", keys), &request).expect("it");
    let work = || {
        let chained = link::find_chained(&pod.namespace, "eth0")?;
        assert_eq!((chained.node_end(), chained.bridge()), (Some("theirs"), None));
        let attachment = Attachment {
            container_id: "c1".into(),
            interface: "eth0".into(),
            namespace: pod.path(),
            link: chained,
            bandwidth: options.bandwidth,
            original: Some(link::adopt(&pod.namespace, "eth0")?),
            ..Attachment::default()
        };
        let tuned = link::tune(&request, &options, &pod.namespace, &attachment)?;
        Ok::<_, Fault>((attachment, tuned))
    };
    let (attachment, tuned) = node.namespace.run(work).expect("inside").expect("tuned");
    assert_eq!((tuned.mac, tuned.mtu), ("0a:00:00:00:00:01".parse().ok(), 1280));
    assert_eq!(
        (tuned.promiscuous, tuned.all_multicast, tuned.transmit_queue_length),
        (true, true, 55)
    );
    let near = netlink.require_link("theirs").expect("it").index;
    assert!(netlink.token_bucket(near).expect("an answer").is_some());
    assert!(netlink.ingress_redirect(near).expect("an answer").is_some());
    for attempt in ["once", "twice"] {
        node.namespace.run(|| link::remove(&attachment, None)).expect("inside").expect(attempt);
        assert_eq!(pod.netlink().require_link("eth0").expect("it"), before, "{attempt}");
        assert_eq!(netlink.token_bucket(near), Ok(None));
        assert_eq!(netlink.ingress_redirect(near), Ok(None));
    }
    assert_eq!(names(&mut netlink), ["lo", "theirs"]);
}

/// DEL: gone when it returns, also with limits; a foreign link stays; twice is no error.
#[test]
fn a_removed_link_is_gone_when_the_call_returns() {
    let node = node();
    for datapath in ["bridge", "routed"] {
        let pod = Pod::new("c1");
        let keys = json!({ "egressRate": 8_000_000, "egressBurst": 800_000 });
        let attached = attach(&node.namespace, &pod, &config(datapath, keys), ONE).expect("made");
        let mut inside = pod.netlink();
        attached.remove(&node.namespace).expect("removed");
        assert_eq!(inside.link("eth0").expect("an answer"), None, "{datapath}");
        assert_eq!(names(&mut node.netlink()), ["cni0", "lo"], "{datapath}");
        attached.remove(&node.namespace).expect("again");
        let unrecorded = link::unrecorded("c1", "eth0");
        node.namespace.run(|| link::remove(&unrecorded, None)).expect("inside").expect("no record");
    }
}

/// Changes one thing that CHECK looks at.
type Damage = fn(&LabNode, &Pod, &Attached);

/// CNI-18, the parts that concern links.
#[test]
fn check_names_each_damage_of_a_routed_pod() {
    let rows: [(&str, Damage); 5] = [
        ("is down", |node, _, attached| {
            let down = LinkChange { up: Some(false), ..LinkChange::default() };
            change(&mut node.netlink(), attached.near(), &down);
        }),
        ("node's route to 10.244.1.2/32", |node, _, _| {
            let mut netlink = node.netlink();
            let route = netlink.routes(Some(POD_ROUTE_PROTOCOL)).expect("routes").remove(0);
            netlink.delete_route(&route).expect("removed");
        }),
        ("neighbour 10.244.1.2", |node, _, attached| {
            let mut netlink = node.netlink();
            let index = netlink.require_link(attached.near()).expect("it").index;
            netlink.delete_neighbour(index, ip("10.244.1.2")).expect("removed");
        }),
        ("route to 0.0.0.0/0", |_, pod, _| {
            let mut netlink = pod.netlink();
            let default = netlink.routes(None).expect("routes").remove(0);
            netlink.delete_route(&default).expect("removed");
        }),
        ("has the MTU 1300", |_, pod, _| {
            let small = LinkChange { mtu: Some(1300), ..LinkChange::default() };
            change(&mut pod.netlink(), "eth0", &small);
        }),
    ];
    for (said, damage) in rows {
        let node = node();
        let pod = Pod::new("c1");
        let config = config("routed", json!({ "mtu": 1400 }));
        let attached = attach(&node.namespace, &pod, &config, BOTH_ONE).expect("made");
        attached.check(&node.namespace).expect("as made");
        damage(&node, &pod, &attached);
        let fault = attached.check(&node.namespace).expect_err(said);
        assert!(fault.message.contains(said), "{fault} should say {said:?}");
    }
}

/// what is missing on the node's side comes back; nothing is written where nothing is.
#[test]
fn damage_to_a_routed_pods_node_side_is_repaired_and_told() {
    let rows: [(&[&str], Damage); 4] = [
        (&["was down", "neighbour 10.244.1.2", "route to 10.244.1.2/32"], |node, _, attached| {
            let down = LinkChange { up: Some(false), ..LinkChange::default() };
            change(&mut node.netlink(), attached.near(), &down);
        }),
        (&["route to 10.244.1.2/32"], |node, _, _| {
            let mut netlink = node.netlink();
            let route = netlink.routes(Some(POD_ROUTE_PROTOCOL)).expect("routes").remove(0);
            netlink.delete_route(&route).expect("removed");
        }),
        (&["neighbour 10.244.1.2"], |node, _, attached| {
            let mut netlink = node.netlink();
            let index = netlink.require_link(attached.near()).expect("it").index;
            netlink.delete_neighbour(index, ip("10.244.1.2")).expect("removed");
        }),
        (&["egress limit"], |node, _, attached| {
            let mut netlink = node.netlink();
            let index = netlink.require_link(attached.near()).expect("it").index;
            netlink.delete_ingress_redirect(index).expect("removed");
        }),
    ];
    for (said, damage) in rows {
        let node = node();
        let pod = Pod::new("c1");
        let keys = json!({ "egressRate": 80_000_000, "egressBurst": 800_000 });
        let attached = attach(&node.namespace, &pod, &config("routed", keys), ONE).expect("made");
        give_gateway(&node);
        let records = [attached.attachment.clone()];
        let look = || node.namespace.run(|| link::damages(&records)).expect("inside");
        let repair = || node.namespace.run(|| link::repair(&records)).expect("inside");
        assert_eq!((look(), repair()), (Ok(vec![]), Ok(vec![])), "nothing to do");
        damage(&node, &pod, &attached);
        let seen = look().expect("seen");
        let damages = repair().expect("repaired");
        assert_eq!(seen, damages, "who looks sees what who writes mends");
        assert_eq!(damages.len(), said.len(), "{damages:?}");
        for (found, said) in damages.iter().zip(said) {
            assert!(found.contains(said), "{found} should say {said}");
        }
        assert_eq!(repair(), Ok(vec![]), "once is enough");
        attached.check(&node.namespace).expect("as made");
        udp_echo(&node.namespace, &pod.namespace, ip("10.244.1.2"), 100);
        attached.remove(&node.namespace).expect("removed");
        assert_eq!(look(), Ok(vec![]), "what is gone is no damage");
    }
}
