//! The ways between nodes with real packets: each overlay in each family, guards, changes. What
//! this kernel lacks runs in the emulated one.

mod change;
mod guards;
mod lab;
mod packets;

use std::net::SocketAddr;

use lab::{Families, Lab, PATIENCE, Pod, tcp_body, udp, udp_echo};
use model::layout::{IPIP_LINK, IPIP6_LINK, UPLINK, VXLAN_LINK, WIREGUARD_LINK};
use model::{Family, Overlay};
use netlink::Netns;
use testkit::deferred;
use testkit::emulated::Feature;
use testkit::lab::probe::uninterrupted;

const LARGE_DATAGRAM_BYTES: usize = 3000;
const BODY_BYTES: usize = 300_000;

#[test]
fn vxlan_carries_both_families() {
    for families in [Families::V4, Families::V6, Families::Both] {
        pods_reach_each_other(Overlay::Vxlan, families, &[0, 0]);
    }
}

#[test]
fn vxlan_crosses_a_router() {
    for families in [Families::V4, Families::V6] {
        pods_reach_each_other(Overlay::Vxlan, families, &[0, 1]);
    }
}

#[test]
fn direct_routes_carry_both_families() {
    for families in [Families::V4, Families::V6, Families::Both] {
        pods_reach_each_other(Overlay::HostGw, families, &[0, 0]);
    }
}

#[test]
fn ipip_carries_ipv4() {
    if deferred!(Feature::Ipip) {
        return;
    }
    pods_reach_each_other(Overlay::Ipip, Families::V4, &[0, 1]);
}

#[test]
fn ipip_carries_ipv6() {
    if deferred!(Feature::Ip6Tunnel) {
        return;
    }
    pods_reach_each_other(Overlay::Ipip, Families::V6, &[0, 1]);
}

#[test]
fn ipip_carries_each_family_within_its_own() {
    if deferred!(Feature::Ipip, Feature::Ip6Tunnel) {
        return;
    }
    pods_reach_each_other(Overlay::Ipip, Families::Both, &[0, 0]);
}

#[test]
fn wireguard_carries_both_families() {
    if deferred!(Feature::WireGuard) {
        return;
    }
    for families in [Families::V4, Families::V6, Families::Both] {
        pods_reach_each_other(Overlay::Wireguard, families, &[0, 1]);
    }
}

/// From pod to pod, pod to node and node to pod: small, fragmented, in streams, and with the
/// largest packet that the MTU allows. All keep their source.
fn pods_reach_each_other(overlay: Overlay, families: Families, segments: &[u8]) {
    let mut lab = Lab::new(overlay, families, segments);
    lab.publish_keys();
    lab.turn();
    let (one, two) = (lab.add_pod(0, 10), lab.add_pod(1, 20));
    let mtu = lab.desired(0).network.expect("a plan").mtu;
    let routes = lab.nodes[0].netlink().routes(Some(render::owned::ROUTE_PROTOCOL));
    for route in routes.expect("routes") {
        let expected = link_of(overlay, Family::of(&route.destination.addr()));
        let index = lab.nodes[0].netlink().require_link(expected).expect("the link").index;
        assert_eq!(route.link_index, Some(index), "{overlay}: {route:?}");
    }
    for ((own, to), range) in one.addresses.iter().zip(&two.addresses).zip(&lab.nodes[0].pod_ranges)
    {
        let what = format!("{overlay} {families:?} {own} to {to}");
        let echo = |from: &Netns, bytes| udp_echo(from, &two.namespace, *to, bytes, PATIENCE);
        assert_eq!(echo(&one.namespace, 64), Some(*own), "{what}");
        assert_eq!(echo(&one.namespace, LARGE_DATAGRAM_BYTES), Some(*own), "{what}");
        assert_eq!(tcp_body(&one.namespace, &two.namespace, *to, BODY_BYTES), *own, "{what}");
        let gateway = plan::network::gateway(range).expect("a gateway").addr();
        assert_eq!(echo(&lab.nodes[0].namespace, 64), Some(gateway), "a node's own: {what}");
        largest_packet_passes(&one, &two, SocketAddr::new(*to, 0), mtu);
    }
    for (address, own) in lab.nodes[1].addresses.iter().zip(&one.addresses) {
        let node = &lab.nodes[1].namespace;
        let seen = udp_echo(&one.namespace, node, address.addr(), LARGE_DATAGRAM_BYTES, PATIENCE);
        assert_eq!(seen, Some(*own), "the other node answers a pod under {overlay}");
    }
}

fn link_of(overlay: Overlay, family: Family) -> &'static str {
    match (overlay, family) {
        (Overlay::Vxlan, _) => VXLAN_LINK,
        (Overlay::Ipip, Family::V4) => IPIP_LINK,
        (Overlay::Ipip, Family::V6) => IPIP6_LINK,
        (Overlay::Wireguard, _) => WIREGUARD_LINK,
        (Overlay::HostGw | Overlay::Native, _) => UPLINK,
    }
}

/// A packet of the whole MTU passes. Linux marks it not to be fragmented: if any link of the way
/// were narrower, it would be lost.
fn largest_packet_passes(one: &Pod, two: &Pod, to: SocketAddr, mtu: u32) {
    let headers = if to.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let payload = mtu as usize - headers;
    let server = udp(&two.namespace, to, PATIENCE);
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = udp(&one.namespace, any.parse().expect("an address"), PATIENCE);
    let to = server.local_addr().expect("its address");
    client.send_to(&vec![1; payload], to).expect("sent");
    let (length, _) =
        uninterrupted(|| server.recv_from(&mut [0; 65536])).expect("the largest packet arrives");
    assert_eq!(length, payload);
}

#[test]
fn within_a_segment_directly_and_across_by_the_tunnel() {
    for families in [Families::V4, Families::V6] {
        let mut lab = Lab::new(Overlay::Vxlan, families, &[0, 0, 1]);
        lab.config.cross_subnet = true;
        lab.turn();
        let pods = [lab.add_pod(0, 10), lab.add_pod(1, 20), lab.add_pod(2, 30)];
        let mut net = lab.nodes[0].netlink();
        let routes = net.routes(Some(render::owned::ROUTE_PROTOCOL)).expect("routes");
        let links = [UPLINK, VXLAN_LINK].map(|name| net.require_link(name).expect("it").index);
        for (to, link) in pods[1..].iter().zip(links) {
            let address = to.addresses[0];
            let route = routes.iter().find(|route| route.destination.contains(&address));
            assert_eq!(route.and_then(|route| route.link_index), Some(link), "to {address}");
            for bytes in [64, LARGE_DATAGRAM_BYTES] {
                let seen = udp_echo(&pods[0].namespace, &to.namespace, address, bytes, PATIENCE);
                assert_eq!(seen, Some(pods[0].addresses[0]));
            }
            tcp_body(&pods[0].namespace, &to.namespace, address, BODY_BYTES);
        }
    }
}

#[test]
fn native_routing_makes_nothing_between_nodes() {
    let lab = Lab::new(Overlay::Native, Families::Both, &[0, 0]);
    lab.turn();
    let routes = lab.nodes[0].netlink().routes(Some(render::owned::ROUTE_PROTOCOL));
    assert_eq!(routes.expect("routes"), []);
    let (one, two) = (lab.add_pod(0, 10), lab.add_pod(1, 20));
    // Someone else's routes are all that is missing.
    for (from, to) in [(0, 1), (1, 0)] {
        let mut net = lab.nodes[from].netlink();
        let uplink = net.require_link(UPLINK).expect("the uplink").index;
        for (range, hop) in lab.nodes[to].pod_ranges.iter().zip(&lab.nodes[to].addresses) {
            net.add_route(&netlink::Route::via(*range, hop.addr(), uplink, 186)).expect("BGP's");
        }
    }
    assert!(lab.turn_of(0).is_empty(), "they are left alone");
    for (own, to) in one.addresses.iter().zip(&two.addresses) {
        let seen = udp_echo(&one.namespace, &two.namespace, *to, 64, PATIENCE);
        assert_eq!(seen, Some(*own), "pods keep their addresses");
    }
}
