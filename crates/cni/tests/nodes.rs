//! Pods on several nodes: the planned network in the real kernel, pods added by the real plugin.

mod lab;

use kernel::net::NetDriver;
use lab::{Lab, node_object, node_with_ranges, tcp_body, udp_echo};
use model::layout::{BRIDGE, UPLINK, VXLAN_LINK};
use model::world::Kind;
use model::{NamespacedName, Overlay};
use netlink::LinkChange;
use render::net::{LinkKind, LinkState, NetOp, RouteState};
use testkit::lab::probe::uninterrupted;

const LARGE_DATAGRAM_BYTES: usize = 3000;
const LARGE_BODY_BYTES: usize = 10_000_000;

fn pods_reach_each_other(overlay: Overlay, expected_link: &str) {
    let lab = Lab::new(2, overlay);
    lab.reconcile();
    lab.enforce();
    let one = lab.add_pod(0, "one");
    let neighbour = lab.add_pod(0, "neighbour");
    let remote = lab.add_pod(1, "remote");

    let routes = lab.nodes[0].netlink().routes(Some(render::owned::ROUTE_PROTOCOL));
    let routes = routes.expect("routes");
    let link = lab.nodes[0].netlink().require_link(expected_link).expect("the link").index;
    assert_eq!(routes.iter().map(|route| route.link_index).collect::<Vec<_>>(), [Some(link)]);

    for to in [&neighbour, &remote] {
        let seen = udp_echo(&one.namespace, &to.namespace, to.address, 64);
        assert_eq!(seen, one.address, "the server sees the pod itself");
        let seen = udp_echo(&one.namespace, &to.namespace, to.address, LARGE_DATAGRAM_BYTES);
        assert_eq!(seen, one.address);
        let seen = tcp_body(&one.namespace, &to.namespace, to.address, LARGE_BODY_BYTES);
        assert_eq!(seen, one.address);
    }
    let node = &lab.nodes[0].namespace;
    let gateway: std::net::IpAddr = "10.244.1.1".parse().expect("an address");
    for to in [&one, &remote] {
        let seen = udp_echo(node, &to.namespace, to.address, LARGE_DATAGRAM_BYTES);
        assert_eq!(seen, gateway, "a node's own traffic carries an address of its pod range");
    }
    let seen = udp_echo(&remote.namespace, &one.namespace, one.address, LARGE_DATAGRAM_BYTES);
    assert_eq!(seen, remote.address, "and the other way round");
    let there = &lab.nodes[1];
    let seen = udp_echo(&one.namespace, &there.namespace, there.address, LARGE_DATAGRAM_BYTES);
    assert_eq!(seen, one.address, "the other node answers a pod from the address that it asked");
}

#[test]
fn pods_on_two_nodes_reach_each_other_through_vxlan() {
    pods_reach_each_other(Overlay::Vxlan, VXLAN_LINK);
}

#[test]
fn pods_on_two_nodes_reach_each_other_by_direct_routes() {
    pods_reach_each_other(Overlay::HostGw, UPLINK);
}

#[test]
fn a_machine_on_the_node_network_reaches_all_pods_through_one_node() {
    let lab = Lab::new(2, Overlay::Vxlan);
    lab.reconcile();
    lab.enforce();
    let remote = lab.add_pod(1, "remote");
    let machine = lab.stranger(77);
    let mut netlink = netlink::Netlink::open_in(&machine).expect("a socket");
    let uplink = netlink.require_link(UPLINK).expect("the uplink").index;
    let pods = lab.config.pod_cidrs[0];
    let route = netlink::Route::via(pods, lab.nodes[0].address, uplink, 4);
    netlink.add_route(&route).expect("a route");
    let seen = udp_echo(&machine, &remote.namespace, remote.address, 1200);
    assert_eq!(seen.to_string(), "172.30.0.77");
    let seen = udp_echo(&remote.namespace, &machine, seen, 1200);
    assert_eq!(seen, remote.address);
}

#[test]
fn pods_with_addresses_of_both_families_reach_each_other_by_both() {
    let mut lab = Lab::new(2, Overlay::Vxlan);
    for range in ["10.244.0.0/16", "fd00:10:244::/48"] {
        lab.config.pod_cidrs.push(range.parse().expect("a range"));
    }
    for (number, name, address) in [(1, "node1", "172.30.0.2"), (2, "node2", "172.30.0.3")] {
        let ranges = [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")];
        lab.world.set(node_with_ranges(name, address, &[&ranges[0], &ranges[1]]));
    }
    lab.reconcile();
    lab.enforce();
    let (one, near, remote) =
        (lab.add_pod(0, "one"), lab.add_pod(0, "near"), lab.add_pod(1, "two"));
    assert_eq!(one.addresses.len(), 2);
    for to in [&near, &remote] {
        for (own, address) in one.addresses.iter().zip(&to.addresses) {
            let seen = udp_echo(&one.namespace, &to.namespace, *address, LARGE_DATAGRAM_BYTES);
            assert_eq!(seen, *own);
            assert_eq!(tcp_body(&one.namespace, &to.namespace, *address, 100_000), *own);
        }
    }
    let seen = udp_echo(&lab.nodes[0].namespace, &remote.namespace, remote.addresses[1], 64);
    assert_eq!(seen, "fd00:10:244:1::1".parse::<std::net::IpAddr>().expect("an address"));
}

#[test]
fn every_refused_datagram_is_answered_however_fast_they_come() {
    let lab = Lab::new(1, Overlay::Vxlan);
    lab.reconcile();
    let pod = lab.add_pod(0, "one");
    // More than the kernel answers by default: 6 at once and 1 a second a client, 50 in all.
    let attempts = 200_usize;
    let work = || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("bound");
        socket.connect("10.244.1.1:9").expect("connected");
        socket.set_read_timeout(Some(lab::PATIENCE)).expect("a timeout");
        let refused = |_: &usize| {
            // A refusal is told by whichever call comes next.
            let error = socket
                .send(b"x")
                .and_then(|_| uninterrupted(|| socket.recv(&mut [0; 1])))
                .expect_err("none");
            error.kind() == std::io::ErrorKind::ConnectionRefused
        };
        (0..attempts).take_while(refused).count()
    };
    assert_eq!(pod.namespace.run(work).expect("inside"), attempts);
}

#[test]
fn a_restart_with_nothing_changed_writes_nothing() {
    for overlay in [Overlay::Vxlan, Overlay::HostGw] {
        let lab = Lab::new(2, overlay);
        assert!(lab.reconcile().iter().all(|ops| !ops.is_empty()));
        let _pod = lab.add_pod(0, "one");
        assert!(lab.reconcile().iter().all(Vec::is_empty), "a fresh driver has nothing to do");
    }
}

#[test]
fn a_node_that_leaves_takes_its_entries_along_and_no_others() {
    for overlay in [Overlay::Vxlan, Overlay::HostGw] {
        let mut lab = Lab::new(3, overlay);
        lab.reconcile();
        lab.world.remove(Kind::Node, &NamespacedName::new("", "node3"));
        lab.nodes.pop();
        for ops in lab.reconcile() {
            let removals = |op: &NetOp| {
                matches!(
                    op,
                    NetOp::DeleteRoute { .. }
                        | NetOp::DeleteNeighbour { .. }
                        | NetOp::DeleteForwarding { .. }
                )
            };
            assert!(ops.iter().all(removals) && !ops.is_empty(), "{ops:?}");
        }
        let (one, two) = (lab.add_pod(0, "one"), lab.add_pod(1, "two"));
        assert_eq!(udp_echo(&one.namespace, &two.namespace, two.address, 64), one.address);
    }
}

#[test]
fn the_overlay_can_change_under_running_pods() {
    let mut lab = Lab::new(2, Overlay::Vxlan);
    lab.reconcile();
    let (one, two) = (lab.add_pod(0, "one"), lab.add_pod(1, "two"));
    for overlay in [Overlay::HostGw, Overlay::Vxlan] {
        lab.config.overlay = overlay;
        lab.reconcile();
        let tunnel = lab.nodes[0].netlink().link(VXLAN_LINK).expect("an answer");
        assert_eq!(tunnel.is_some(), overlay == Overlay::Vxlan);
        let seen = udp_echo(&one.namespace, &two.namespace, two.address, 1200);
        assert_eq!(seen, one.address, "over {overlay}");
    }
}

#[test]
fn a_node_whose_address_changes_moves_its_tunnel() {
    let mut lab = Lab::new(2, Overlay::Vxlan);
    lab.reconcile();
    let (one, two) = (lab.add_pod(0, "one"), lab.add_pod(1, "two"));
    let mut netlink = lab.nodes[1].netlink();
    let uplink = netlink.require_link(UPLINK).expect("the uplink").index;
    netlink.delete_address(uplink, "172.30.0.3/24".parse().expect("a prefix")).expect("removed");
    netlink.add_address(uplink, "172.30.0.99/24".parse().expect("a prefix")).expect("added");
    lab.nodes[1].address = "172.30.0.99".parse().expect("an address");
    lab.world.set(node_object("node2", "172.30.0.99", 2));
    lab.reconcile();
    assert_eq!(udp_echo(&one.namespace, &two.namespace, two.address, 64), one.address);
}

#[test]
fn what_others_remove_is_put_back() {
    let lab = Lab::new(2, Overlay::Vxlan);
    lab.reconcile();
    let (one, two) = (lab.add_pod(0, "one"), lab.add_pod(1, "two"));
    let near = lab.add_pod(0, "near");
    for name in [VXLAN_LINK, BRIDGE] {
        let mut netlink = lab.nodes[0].netlink();
        let link = netlink.require_link(name).expect("the link").index;
        netlink
            .change_link(link, &LinkChange { up: Some(false), ..LinkChange::default() })
            .expect("down");
        lab.reconcile();
        assert_eq!(udp_echo(&one.namespace, &two.namespace, two.address, 64), one.address);
        netlink.delete_link(link).expect("removed");
        lab.reconcile();
        assert_eq!(udp_echo(&one.namespace, &two.namespace, two.address, 64), one.address);
        assert_eq!(udp_echo(&one.namespace, &near.namespace, near.address, 64), one.address);
    }
}

#[test]
fn a_foreign_route_or_link_is_reported_and_left_alone() {
    let lab = Lab::new(2, Overlay::HostGw);
    let node = &lab.nodes[0];
    let mut netlink = node.netlink();
    let uplink = netlink.require_link(UPLINK).expect("the uplink").index;
    let destination = "10.244.2.0/24".parse().expect("a prefix");
    let foreign =
        netlink::Route::via(destination, "172.30.0.77".parse().expect("an address"), uplink, 4);
    netlink.add_route(&foreign).expect("a foreign route");
    let (desired, _) = plan::node(&lab.world, &lab.config, &node.facts());
    let program = render::net::render(&desired, &lab.config, &node.facts());
    let errors: Vec<String> = node
        .namespace
        .run(|| {
            let mut driver = NetDriver::open().expect("the driver");
            let observed = driver.observe().expect("what is there");
            let ops = render::net::diff(&program, &observed);
            let results = ops.iter().map(|op| driver.apply(op));
            results.filter_map(Result::err).map(|error| error.message).collect()
        })
        .expect("inside");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("10.244.2.0/24") && errors[0].contains("ip route"), "{errors:?}");
    let kept = netlink.routes(Some(4)).expect("routes");
    assert_eq!(kept[0].gateway, foreign.gateway);
}

#[test]
fn the_honest_fake_refuses_what_linux_refuses() {
    let lab = Lab::new(2, Overlay::Vxlan);
    lab.reconcile();
    let prefix = |text: &str| text.parse::<ipnet::IpNet>().expect("a prefix");
    let address = |text: &str| text.parse::<std::net::IpAddr>().expect("an address");
    let (bridge, tunnel) = (BRIDGE.to_owned(), VXLAN_LINK.to_owned());
    let destination = prefix("10.244.7.0/24");
    let route = |gateway: &str, source: &str, onlink| RouteState {
        gateway: Some(address(gateway)),
        link: VXLAN_LINK.into(),
        source: Some(address(source)),
        onlink,
        mtu: None,
    };
    let add = |route| NetOp::AddRoute { destination, route };
    let mac = "0e:66:00:00:00:09".parse().expect("a MAC");
    let observe = || {
        let work = || NetDriver::open().expect("the driver").observe().expect("what is there");
        lab.nodes[0].namespace.run(work).expect("inside")
    };
    let LinkState { kind, mtu, .. } = observe().state.links[VXLAN_LINK].clone();
    let rows = [
        NetOp::SetUp { link: "none".into() },
        NetOp::SetMtu { link: "none".into(), mtu: 1400 },
        NetOp::DeleteLink { name: "none".into() },
        NetOp::AttachPort { port: "none".into(), bridge: bridge.clone() },
        NetOp::AddLink { name: bridge.clone(), kind: LinkKind::Bridge, mac, mtu: 1450 },
        NetOp::AddLink { name: "flatnet.2".into(), kind, mac, mtu },
        NetOp::AddAddress { link: bridge.clone(), address: prefix("10.244.1.1/24") },
        NetOp::AddAddress { link: "none".into(), address: prefix("10.244.1.1/24") },
        NetOp::DeleteAddress { link: bridge.clone(), address: prefix("10.9.9.9/24") },
        add(route("10.244.7.0", "10.244.1.1", false)),
        add(route("10.244.7.0", "10.9.9.9", true)),
        NetOp::ReplaceRoute { destination, route: route("10.244.7.0", "10.244.1.1", true) },
        NetOp::AddRoute {
            destination: prefix("10.244.2.0/24"),
            route: route("10.244.2.0", "10.244.1.1", true),
        },
        NetOp::DeleteRoute { destination, link: tunnel.clone() },
        NetOp::DeleteNeighbour { link: tunnel.clone(), address: address("10.244.7.0") },
        NetOp::DeleteForwarding { link: tunnel.clone(), mac },
        NetOp::SetNeighbour { link: "none".into(), address: address("10.244.7.0"), mac },
        NetOp::SetSysctl { key: "net/ipv4/conf/flatnet.9/rp_filter".into(), value: "2".into() },
    ];
    for op in rows {
        let before = observe();
        let apply = || NetDriver::open().expect("the driver").apply(&op);
        let linux = lab.nodes[0].namespace.run(apply).expect("inside");
        let mut fake = before.clone();
        let refused = fake.apply(&op).map_err(|error| error.errno);
        assert_eq!(linux.map_err(|error| error.errno), refused, "{op:?}");
        assert!(refused.is_err(), "{op:?}");
        assert_eq!((&fake, observe()), (&before, before.clone()), "nothing changed: {op:?}");
    }
}
