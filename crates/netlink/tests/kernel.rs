//! Against the real kernel, in network namespaces that each test makes. Needs root.

use netlink::{
    BridgeSpec, FdbEntry, LinkChange, Monitor, Neighbour, Netlink, Netns, Notices, Route, VethSpec,
    VxlanSpec, offload, sysctl,
};

fn namespace() -> (Netns, Netlink) {
    let namespace = Netns::create().expect("a network namespace (these tests need root)");
    let netlink = Netlink::open_in(&namespace).expect("a socket in it");
    (namespace, netlink)
}

/// Stands for any link: every kernel with pods has bridges, not every one has dummies.
fn bridge(name: &str) -> BridgeSpec {
    BridgeSpec { name: name.into(), ..BridgeSpec::default() }
}

#[test]
fn a_veth_peer_is_born_in_the_other_namespace_down_with_its_address() {
    let (_node, mut node) = namespace();
    let (pod_namespace, mut pod) = namespace();
    node.create_bridge(&BridgeSpec { mtu: Some(1450), ..bridge("cni0") }).expect("a bridge");
    let bridge = node.require_link("cni0").expect("the bridge");
    let mac = "0a:58:0a:f4:01:05".parse().expect("a MAC");
    let spec = VethSpec::new("veth1", "eth0")
        .peer_in(&pod_namespace)
        .peer_mac(mac)
        .mtu(1450)
        .master(bridge.index);
    node.create_veth(&spec).expect("a pair");

    assert_eq!(node.link("eth0").expect("an answer"), None);
    let near = node.require_link("veth1").expect("the near end");
    assert_eq!((near.kind.as_str(), near.master, near.up), ("veth", Some(bridge.index), false));
    let eth0 = pod.require_link("eth0").expect("the peer");
    assert_eq!((eth0.mac, eth0.mtu, eth0.up), (Some(mac), 1450, false));
    assert_eq!(near.peer_index, Some(eth0.index));

    let change = LinkChange { alias: Some("flatnet:c1"), ..LinkChange::up() };
    node.change_link(near.index, &change).expect("alias and up");
    node.set_hairpin(near.index, true).expect("hairpin");
    let near = node.require_link("veth1").expect("the near end");
    assert_eq!(
        (near.alias.as_deref(), near.hairpin, near.up),
        (Some("flatnet:c1"), Some(true), true)
    );

    node.delete_link(near.index).expect("removed");
    assert_eq!(pod.link("eth0").expect("an answer"), None, "the peer goes along");
    assert!(node.delete_link(near.index).expect_err("gone").is_absent());
}

#[test]
fn taken_names_are_refused_and_nothing_is_made() {
    let (_node, mut node) = namespace();
    let (pod_namespace, mut pod) = namespace();
    pod.create_bridge(&bridge("eth0")).expect("a link");
    let error = node
        .create_veth(&VethSpec::new("veth1", "eth0").peer_in(&pod_namespace))
        .expect_err("the peer's name is taken");
    assert!(error.is_present(), "{error}");
    assert_eq!(node.link("veth1").expect("an answer"), None);
    let error = node.create_bridge(&bridge("a-name-of-seventeen")).expect_err("too long");
    assert!(error.to_string().contains("1 to 15 bytes"), "{error}");
}

#[test]
fn a_vxlan_link_reads_back_as_made_with_static_entries() {
    let (namespace, mut node) = namespace();
    node.create_bridge(&bridge("eth0")).expect("an uplink");
    let uplink = node.require_link("eth0").expect("the uplink");
    let spec = VxlanSpec {
        name: "flatnet.1".into(),
        vni: 1,
        port: 8472,
        local: "172.30.0.2".parse().expect("an address"),
        uplink_index: uplink.index,
        mac: "0e:66:ac:1e:00:02".parse().expect("a MAC"),
        mtu: 1450,
    };
    node.create_vxlan(&spec).expect("a VXLAN link");
    assert!(node.create_vxlan(&spec).expect_err("twice").is_present());
    let link = node.require_link("flatnet.1").expect("the link");
    assert_eq!((link.mac, link.mtu), (Some(spec.mac), 1450));
    let vxlan = link.vxlan.expect("its parameters");
    assert_eq!((vxlan.vni, vxlan.port, vxlan.learning), (1, 8472, false));
    assert_eq!((vxlan.local, vxlan.uplink_index), (Some(spec.local), Some(uplink.index)));

    let switched = namespace
        .run(|| {
            offload::set_tx_checksum("flatnet.1", false)?;
            offload::tx_checksum("flatnet.1")
        })
        .expect("the namespace")
        .expect("the switch");
    assert!(!switched);

    let fdb = FdbEntry {
        link_index: link.index,
        mac: "0e:66:ac:1e:00:03".parse().expect("a MAC"),
        destination: "172.30.0.3".parse().expect("an address"),
    };
    let moved = FdbEntry { destination: "172.30.0.4".parse().expect("an address"), ..fdb };
    node.set_fdb(&fdb).expect("an entry");
    node.set_fdb(&moved).expect("changed in place");
    assert_eq!(node.fdb(link.index).expect("entries"), [moved]);
    let neighbour = Neighbour {
        link_index: link.index,
        address: "10.244.2.0".parse().expect("an address"),
        mac: fdb.mac,
    };
    node.set_neighbour(&neighbour).expect("a neighbour");
    assert_eq!(node.neighbours(link.index).expect("neighbours"), [neighbour]);
    node.delete_neighbour(link.index, neighbour.address).expect("removed");
    assert!(node.delete_neighbour(link.index, neighbour.address).expect_err("gone").is_absent());
    node.delete_fdb(link.index, fdb.mac).expect("removed");
    assert!(node.delete_fdb(link.index, fdb.mac).expect_err("gone").is_absent());
    assert_eq!(node.fdb(link.index).expect("entries"), []);
}

#[test]
fn routes_keep_protocol_source_and_onlink_and_are_filtered_by_protocol() {
    let (_namespace, mut node) = namespace();
    for name in ["cni0", "flatnet.1"] {
        node.create_bridge(&bridge(name)).expect("a link");
        let link = node.require_link(name).expect("the link");
        node.change_link(link.index, &LinkChange::up()).expect("up");
    }
    let cni0 = node.require_link("cni0").expect("the link").index;
    let tunnel = node.require_link("flatnet.1").expect("the link").index;
    let gateway = "10.244.1.1/24".parse().expect("a prefix");
    node.add_address(cni0, gateway).expect("an address");
    assert!(node.add_address(cni0, gateway).expect_err("twice").is_present());
    let addresses = node.addresses(Some(cni0)).expect("addresses");
    assert!(addresses.iter().any(|found| found.address == gateway));
    assert!(addresses.iter().all(|found| found.link_index == cni0));

    let destination = "10.244.2.0/24".parse().expect("a prefix");
    let next_hop = "10.244.2.0".parse().expect("an address");
    let mut route = Route::via(destination, next_hop, tunnel, 102);
    let unreachable = node.add_route(&route).expect_err("the gateway is on no link");
    assert_eq!(unreachable.errno, libc::ENETUNREACH);
    assert!(unreachable.reason.is_some(), "the kernel's words: {unreachable}");
    route.onlink = true;
    route.source = Some(gateway.addr());
    node.add_route(&route).expect("a route");
    assert!(node.add_route(&route).expect_err("twice").is_present());
    let ours = node.routes(Some(102)).expect("routes");
    assert_eq!(ours.len(), 1);
    assert_eq!(
        (ours[0].source, ours[0].onlink, ours[0].gateway),
        (route.source, true, Some(next_hop))
    );
    assert!(node.routes(None).expect("routes").len() > 1, "the kernel's own one is there too");

    let direct = Route::on_link(destination, cni0, 102);
    node.replace_route(&direct).expect("replaced");
    assert_eq!(node.routes(Some(102)).expect("routes")[0].link_index, Some(cni0));
    let any_scope = Route { scope: netlink::RouteScope::Universe, ..direct.clone() };
    node.delete_route(&any_scope).expect("removed, whatever its scope");
    assert!(node.delete_route(&direct).expect_err("gone").is_absent());
    assert!(node.replace_route(&direct).expect_err("nothing to replace").is_absent());
}

#[test]
fn addresses_keep_the_number_of_their_maker() {
    let (_namespace, mut node) = namespace();
    node.create_bridge(&bridge("cni0")).expect("a link");
    let cni0 = node.require_link("cni0").expect("the link").index;
    let rows = [("192.0.2.1/32", 0), ("192.0.2.2/32", 102), ("fd00:10::1/128", 102)];
    for (address, protocol) in rows {
        let address = address.parse().expect("a prefix");
        node.add_address_of(cni0, address, protocol).expect("an address");
        let found = node.addresses(Some(cni0)).expect("addresses");
        let found = found.into_iter().find(|found| found.address == address);
        assert_eq!(found.map(|found| found.protocol), Some(protocol), "{address}");
    }
}

#[test]
fn ipv6_addresses_are_usable_at_once() {
    let (_namespace, mut node) = namespace();
    node.create_bridge(&bridge("cni0")).expect("a link");
    let cni0 = node.require_link("cni0").expect("the link").index;
    node.change_link(cni0, &LinkChange::up()).expect("up");
    node.add_address(cni0, "fd00:10:244:1::1/64".parse().expect("a prefix")).expect("an address");
    let destination = "fd00:10:244:2::/64".parse().expect("a prefix");
    let mut route =
        Route::via(destination, "fd00:10:244:2::".parse().expect("an address"), cni0, 102);
    route.onlink = true;
    route.source = "fd00:10:244:1::1".parse().ok();
    node.add_route(&route).expect("a route whose source is the new address");
    assert_eq!(node.routes(Some(102)).expect("routes").len(), 1);
}

#[test]
fn long_dumps_arrive_whole() {
    let (_namespace, mut node) = namespace();
    node.create_bridge(&bridge("cni0")).expect("a link");
    let cni0 = node.require_link("cni0").expect("the link").index;
    node.change_link(cni0, &LinkChange::up()).expect("up");
    for number in 0..2000_u32 {
        let address = std::net::Ipv4Addr::from(0x0af4_0000 + number);
        let route = Route::on_link(ipnet::Ipv4Net::from(address).into(), cni0, 102);
        node.add_route(&route).expect("a route");
    }
    let routes = node.routes(Some(102)).expect("routes");
    assert_eq!(routes.len(), 2000);
}

#[test]
fn a_named_namespace_lives_at_its_path_until_it_is_deleted() {
    let directory = std::env::temp_dir().join(format!("flatnet-netns-{}", std::process::id()));
    let path = directory.join("pod");
    let made = Netns::create_at(&path).expect("a namespace");
    let opened = Netns::open(&path).expect("the same");
    assert_eq!(made.identity().expect("an identity"), opened.identity().expect("an identity"));
    let taken = Netns::create_at(&path).expect_err("the path is taken");
    assert!(taken.is_present(), "{taken}");
    assert_eq!(
        Netns::open(&path).expect("still there").identity().expect("an identity"),
        made.identity().expect("an identity"),
        "a refused creation leaves the old one alone"
    );
    Netns::delete_at(&path).expect("removed");
    Netns::delete_at(&path).expect("absent is no error");
    assert!(Netns::open(&path).expect_err("gone").is_absent());
    std::fs::write(&path, "").expect("a plain file");
    assert_eq!(Netns::open(&path).expect_err("no namespace").errno, libc::EINVAL);
    std::fs::remove_dir_all(&directory).expect("cleaned up");
}

#[test]
fn entering_a_namespace_leaves_the_caller_where_it_was() {
    let (namespace, _) = namespace();
    let before = Netns::current().expect("own").identity().expect("an identity");
    let (inside, forwarding) = namespace
        .run(|| {
            sysctl::write("net/ipv4/ip_forward", "1").expect("written");
            let inside = Netns::current().expect("inside").identity().expect("an identity");
            (inside, sysctl::read("net/ipv4/ip_forward").expect("read"))
        })
        .expect("the namespace");
    assert_eq!(inside, namespace.identity().expect("an identity"));
    assert_eq!(forwarding, "1");
    assert_eq!(Netns::current().expect("own").identity().expect("an identity"), before);
}

/// damage is heard of at once, and one's own changes can be told from others'.
#[test]
fn a_monitor_hears_who_changed_what() {
    let (namespace, mut node) = namespace();
    let open = || {
        let groups = [libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_ROUTE];
        Monitor::open(libc::NETLINK_ROUTE, &groups)
    };
    let mut monitor = namespace.run(open).expect("the namespace").expect("a monitor");
    assert_eq!(monitor.read().expect("silence"), Notices::default());
    node.create_bridge(&bridge("cni0")).expect("a link");
    let cni0 = node.require_link("cni0").expect("the link").index;
    node.change_link(cni0, &LinkChange::up()).expect("up");
    let route = Route::on_link("10.9.0.0/16".parse().expect("a prefix"), cni0, 102);
    node.add_route(&route).expect("a route");
    let heard = monitor.read().expect("notices");
    assert!(!heard.lost);
    let link = heard.notices.iter().find(|notice| notice.kind == libc::RTM_NEWLINK);
    assert_eq!(link.and_then(|link| link.attributes(16).text(3)).as_deref(), Some("cni0"));
    let added = heard.notices.iter().find(|notice| notice.kind == libc::RTM_NEWROUTE);
    assert_eq!(added.map(|added| added.port_id), Some(node.port_id()));
    let mut other = Netlink::open_in(&namespace).expect("another socket");
    other.delete_route(&route).expect("removed");
    let heard = monitor.read().expect("notices").notices;
    let gone = heard.iter().find(|notice| notice.kind == libc::RTM_DELROUTE).expect("told");
    assert_eq!(gone.port_id, other.port_id());
    assert_ne!(gone.port_id, node.port_id());
}

#[test]
fn a_monitor_that_was_too_slow_says_so() {
    let (namespace, mut node) = namespace();
    let open = || Monitor::open(libc::NETLINK_ROUTE, &[libc::RTNLGRP_IPV4_ROUTE]);
    let mut monitor = namespace.run(open).expect("the namespace").expect("a monitor");
    node.create_bridge(&bridge("cni0")).expect("a link");
    let cni0 = node.require_link("cni0").expect("the link").index;
    node.change_link(cni0, &LinkChange::up()).expect("up");
    for number in 0..20_000_u32 {
        let address = std::net::Ipv4Addr::from(0x0af4_0000 + number);
        let route = Route::on_link(ipnet::Ipv4Net::from(address).into(), cni0, 102);
        node.add_route(&route).expect("a route");
    }
    assert!(monitor.read().expect("what is left").lost);
}
