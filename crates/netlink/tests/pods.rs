//! What the links of pods need, against the real kernel: ports, limits, macvlan, prompt removal.
//! Needs root.

use netlink::{
    BridgeSpec, LinkChange, MacvlanMode, MacvlanSpec, Netlink, Netns, PortOptions, Route,
    TokenBucket, VethSpec, sysctl,
};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

fn namespace() -> (Netns, Netlink) {
    let namespace = Netns::create().expect("a network namespace (these tests need root)");
    let netlink = Netlink::open_in(&namespace).expect("a socket in it");
    (namespace, netlink)
}

#[test]
fn a_bridge_port_and_its_link_change_in_one_message() {
    let (_namespace, mut node) = namespace();
    let spec = BridgeSpec { name: "cni0".into(), ..BridgeSpec::default() };
    node.create_bridge(&spec).expect("a bridge");
    let bridge = node.require_link("cni0").expect("the bridge").index;
    node.create_veth(&VethSpec::new("veth1", "peer1").master(bridge)).expect("a pair");
    let port = node.require_link("veth1").expect("the port").index;
    for (hairpin, isolated) in [(true, false), (false, true)] {
        let change = LinkChange { alias: Some("flatnet:c1"), ..LinkChange::up() };
        node.set_port(port, &change, PortOptions { hairpin, isolated }).expect("changed");
        let link = node.require_link("veth1").expect("the port");
        assert_eq!((link.hairpin, link.isolated), (Some(hairpin), Some(isolated)));
        assert_eq!((link.up, link.alias.as_deref()), (true, Some("flatnet:c1")));
    }
    let peer = node.require_link("peer1").expect("no port").index;
    let refused = node.set_port(peer, &LinkChange::up(), PortOptions::default());
    assert!(refused.is_err(), "it is no port");
}

#[test]
fn properties_of_a_link_read_back_as_set() {
    let (_namespace, mut node) = namespace();
    node.create_veth(&VethSpec::new("veth1", "peer1")).expect("a pair");
    let index = node.require_link("veth1").expect("the link").index;
    for on in [true, false] {
        let change = LinkChange {
            promiscuous: Some(on),
            all_multicast: Some(on),
            transmit_queue_length: Some(77),
            ..LinkChange::default()
        };
        node.change_link(index, &change).expect("changed");
        let link = node.link_at(index).expect("an answer").expect("the link");
        assert_eq!((link.promiscuous, link.all_multicast, link.up), (on, on, false));
        assert_eq!(link.transmit_queue_length, 77);
    }
}

#[test]
fn limits_read_back_as_set_and_are_replaced_and_lifted() {
    let (_namespace, mut node) = namespace();
    node.create_veth(&VethSpec::new("veth1", "peer1")).expect("a pair");
    node.create_ifb("ifb1", 1400).expect("an ifb");
    let index = node.require_link("veth1").expect("the link").index;
    let ifb = node.require_link("ifb1").expect("the ifb");
    assert_eq!((ifb.kind.as_str(), ifb.mtu), ("ifb", 1400));
    assert_eq!(node.token_bucket(index), Ok(None));
    // The second rate needs more than 32 bits.
    for rate_bytes_per_s in [1_000_000, 12_500_000_000] {
        let bucket = TokenBucket { rate_bytes_per_s, burst_bytes: 250_000, limit_bytes: 500_000 };
        node.set_token_bucket(index, &bucket).expect("limited");
        let found = node.token_bucket(index).expect("an answer").expect("a bucket");
        assert_eq!((found.rate_bytes_per_s, found.limit_bytes), (rate_bytes_per_s, 500_000));
        assert!(found.burst_bytes.abs_diff(250_000) < 2_500, "{found:?}");
    }
    node.delete_token_bucket(index).expect("lifted");
    assert_eq!(node.token_bucket(index), Ok(None));

    assert_eq!(node.ingress_redirect(index), Ok(None));
    node.redirect_ingress(index, ifb.index).expect("redirected");
    assert_eq!(node.ingress_redirect(index), Ok(Some(ifb.index)));
    node.redirect_ingress(index, ifb.index).expect("again, in the place of the first");
    node.delete_ingress_redirect(index).expect("back");
    assert_eq!(node.ingress_redirect(index), Ok(None));
}

#[test]
fn a_macvlan_link_is_born_in_the_pod() {
    let (_namespace, mut node) = namespace();
    let (pod_namespace, mut pod) = namespace();
    node.create_veth(&VethSpec::new("up0", "up1")).expect("a lower link");
    let lower = node.require_link("up0").expect("the lower link").index;
    let mac = "0a:58:0a:f4:01:05".parse().expect("a MAC");
    let spec = MacvlanSpec {
        name: "eth0",
        lower_index: lower,
        mode: MacvlanMode::Private,
        namespace: &pod_namespace,
        mac: Some(mac),
        mtu: Some(1400),
    };
    node.create_macvlan(&spec).expect("made");
    let link = pod.require_link("eth0").expect("the link");
    assert_eq!(
        (link.kind.as_str(), link.mac, link.mtu, link.up),
        ("macvlan", Some(mac), 1400, false)
    );
    assert_eq!((link.macvlan, link.peer_index), (Some(MacvlanMode::Private), Some(lower)));
    assert!(node.create_macvlan(&spec).expect_err("twice").is_present());
    assert_eq!(node.link("eth0"), Ok(None));
}

#[test]
fn routes_of_other_tables_do_not_show_in_the_main_one() {
    let (_namespace, mut node) = namespace();
    node.create_veth(&VethSpec::new("veth1", "peer1")).expect("a pair");
    let index = node.require_link("veth1").expect("the link").index;
    node.change_link(index, &LinkChange::up()).expect("up");
    let route = Route::on_link("192.0.2.0/24".parse().expect("a prefix"), index, 102);
    for table in [100, 5000] {
        node.add_route_in(table, &route).expect("added");
        assert_eq!(node.routes_in(table, Some(102)).expect("routes"), std::slice::from_ref(&route));
    }
    assert_eq!(node.routes(Some(102)), Ok(vec![]));
    assert_eq!(node.routes_in(101, None), Ok(vec![]));
}

/// The link is one of the socket's namespace, whichever the caller is in; both ends are gone when
/// the call returns, and whoever waits for our locks and output does not wait for the kernel.
#[test]
fn a_promptly_removed_link_is_gone_in_its_own_namespace_and_nothing_is_held() {
    let (node_namespace, mut node) = namespace();
    let (pod_namespace, mut pod) = namespace();
    node.create_veth(&VethSpec::new("other", "peer")).expect("another pair");
    node.create_veth(&VethSpec::new("veth1", "eth0").peer_in(&pod_namespace)).expect("a pair");
    let far = pod.require_link("eth0").expect("the far end").index;
    let same_index_here = node.link_at(far).expect("an answer").expect("another link").name;
    let (output, held_by_us) = pipe2(OFlag::O_NONBLOCK).expect("a pipe");

    // From within the node's namespace, with a socket of the pod's.
    node_namespace.run(|| pod.delete_link_promptly(far, None)).expect("inside").expect("removed");
    assert_eq!(pod.link("eth0"), Ok(None));
    assert_eq!(node.link("veth1"), Ok(None));
    assert!(node.link(&same_index_here).expect("an answer").is_some(), "not the node's link");
    drop(held_by_us);
    let end = nix::unistd::read(&output, &mut [0; 1]);
    assert_eq!(end, Ok(0), "no child holds our output open");

    pod.delete_link_promptly(far, None).expect("gone already is no error");
    let loopback = node.delete_link_promptly(1, None).expect_err("the kernel refuses");
    assert_eq!(loopback.errno, nix::libc::EOPNOTSUPP, "{loopback}");
}

#[test]
fn parameters_of_one_directory_are_written_together_and_absent_ones_passed_over() {
    let namespace = Netns::create().expect("a namespace (these tests need root)");
    let loopback = "net/ipv4/conf/lo";
    let work = || {
        let parameters = [("forwarding", "1"), ("no_such_parameter", "1"), ("arp_ignore", "2")];
        sysctl::write_all(loopback, &parameters).expect("written");
        for (key, value) in [("forwarding", "1"), ("arp_ignore", "2")] {
            let found = sysctl::read(&format!("{loopback}/{key}")).expect("read");
            assert_eq!(found, value, "{key}");
        }
        let outside = sysctl::write_all(loopback, &[("../default/arp_ignore", "2")]);
        assert_eq!(outside.map_err(|error| error.errno), Err(libc::EINVAL));
        let absent = sysctl::write_all("net/ipv4/conf/absent", &[]);
        assert_eq!(absent.map_err(|error| error.errno), Err(libc::ENOENT));
    };
    namespace.run(work).expect("inside");
}
