//! Laws of the pod network's ops, over plans that differ in everything that can change.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::kinds::{NodeAddress, NodeSpec, NodeStatus};
use model::layout::{BRIDGE, IPIP_LINK, IPIP6_LINK, UPLINK, VXLAN_LINK, WIREGUARD_LINK};
use model::overlay::WIREGUARD_KEY_ANNOTATION;
use model::world::Object;
use model::{
    ClusterConfig, ConntrackConfig, MacAddress, Node, ObjectMeta, Overlay, ServiceBackend, World,
};
use plan::network::NetworkPlan;
use plan::{Desired, NodeFacts};

use super::*;

/// Which families pods and nodes have.
#[derive(Clone, Copy)]
enum Families {
    V4,
    V6,
    Both,
}

/// Node number `address`, whose pod range has the number `range`, with a key of its own.
fn node(families: Families, range: u8, address: u8) -> Node {
    let (ranges, addresses) = match families {
        Families::V4 => (vec![format!("10.244.{range}.0/24")], vec![format!("172.30.0.{address}")]),
        Families::V6 => {
            (vec![format!("fd00:10:244:{range}::/64")], vec![format!("fd00:172:30::{address}")])
        }
        Families::Both => (
            vec![format!("10.244.{range}.0/24"), format!("fd00:10:244:{range}::/64")],
            vec![format!("172.30.0.{address}"), format!("fd00:172:30::{address}")],
        ),
    };
    let kind = "InternalIP".to_owned();
    let key = WireguardKey([address; 32]).to_string();
    Node {
        metadata: ObjectMeta {
            name: format!("node{range}"),
            annotations: BTreeMap::from([(WIREGUARD_KEY_ANNOTATION.to_owned(), key)]),
            ..ObjectMeta::default()
        },
        spec: NodeSpec {
            pod_cidrs: ranges.iter().map(|range| range.parse().expect("a range")).collect(),
            ..NodeSpec::default()
        },
        status: NodeStatus {
            addresses: addresses
                .into_iter()
                .map(|address| NodeAddress { kind: kind.clone(), address })
                .collect(),
            ..NodeStatus::default()
        },
    }
}

fn config(overlay: Overlay) -> ClusterConfig {
    let mut config = ClusterConfig { overlay, ..ClusterConfig::default() };
    config.pod_cidrs.push("fd00:10:244::/48".parse().expect("a range"));
    config
}

/// The plan of the node with pod range number `own`, and of peers as range and node number.
fn network(
    config: &ClusterConfig,
    families: Families,
    own: u8,
    uplink_mtu: u32,
    peers: &[(u8, u8)],
) -> NetworkPlan {
    let mut world = World::default();
    for &(range, address) in [(own, own)].iter().chain(peers) {
        world.set(Object::Node(Arc::new(node(families, range, address))));
    }
    let facts = NodeFacts {
        name: format!("node{own}"),
        uplink: UPLINK.into(),
        uplink_mtu,
        tunnel_checksum_broken: own == 9,
        pod_mtu_limit: (own == 9).then_some(1300),
        ..NodeFacts::default()
    };
    let (plan, findings) = plan::network::plan(&world, config, &facts);
    assert_eq!(findings, []);
    plan.expect("a plan")
}

/// The same, of IPv4 nodes with an uplink of 1500 bytes.
fn network_v4(overlay: Overlay, peers: &[(u8, u8)]) -> NetworkPlan {
    network(&config(overlay), Families::V4, 1, 1500, peers)
}

fn program(network: Option<NetworkPlan>) -> NetProgram {
    let desired = Desired { network, services: BTreeMap::new() };
    render(&desired, &ClusterConfig::default(), &NodeFacts::default())
}

/// Plans that differ in overlay, families, MTU, own range, in what the path self-test found, and in
/// number, ranges and addresses of peers.
fn programs() -> Vec<NetProgram> {
    let peers: [&[(u8, u8)]; 4] = [&[], &[(2, 12), (3, 13)], &[(2, 13), (3, 12)], &[(4, 14)]];
    let mut programs = Vec::new();
    for overlay in Overlay::ALL {
        for peers in peers {
            for (own, mtu) in [(1, 1500), (1, 1400), (9, 1500)] {
                let plan = network(&config(overlay), Families::V4, own, mtu, peers);
                programs.push(program(Some(plan)));
            }
        }
        for families in [Families::V6, Families::Both] {
            let plan = network(&config(overlay), families, 1, 1500, &[(2, 12), (3, 13)]);
            programs.push(program(Some(plan)));
        }
    }
    let mut changing = config(Overlay::HostGw);
    changing.also_receive.extend([Overlay::Vxlan, Overlay::Ipip, Overlay::Wireguard]);
    let plan = network(&changing, Families::Both, 1, 1500, &[(2, 12)]);
    programs.push(program(Some(plan)));
    programs
}

fn carried_out(ops: &[NetOp], start: &NetObserved) -> NetObserved {
    let mut state = start.clone();
    for op in ops {
        state.apply(op).unwrap_or_else(|error| panic!("{error} (errno {})", error.errno));
    }
    state
}

fn from_nothing(program: &NetProgram) -> NetObserved {
    carried_out(&diff(program, &NetObserved::default()), &NetObserved::default())
}

#[test]
fn routes_say_a_size_where_less_arrives_than_links_promise() {
    for (own, pods, route) in [(1, 1450, None), (9, 1300, Some(1300))] {
        let plan = network(&config(Overlay::Vxlan), Families::V4, own, 1500, &[(2, 12)]);
        let state = program(Some(plan)).state.expect("a state");
        let sizes: Vec<Option<u32>> = state.routes.values().map(|route| route.mtu).collect();
        assert_eq!((state.links["cni0"].mtu, sizes), (pods, vec![route]));
        assert_eq!(state.links["flatnet.1"].mtu, 1450, "larger ones can be tried");
    }
}

#[test]
fn from_any_state_to_any_other_no_op_is_refused_and_nothing_is_left_to_do() {
    for before in programs() {
        let start = from_nothing(&before);
        assert_eq!(diff(&before, &start), [], "the same again is nothing to do");
        for after in programs() {
            let end = carried_out(&diff(&after, &start), &start);
            assert_eq!(diff(&after, &end), []);
            let mut wanted = after.state.expect("a state");
            let NetState { links, mut addresses, neighbours, forwarding, routes, .. } = end.state;
            // On loopback what is not wanted is someone else's.
            for addresses in [&mut addresses, &mut wanted.addresses] {
                addresses.retain(|(link, _)| link != LOOPBACK);
            }
            assert_eq!(links, wanted.links);
            assert_eq!(end.state.wireguard, wanted.wireguard);
            assert_eq!(end.state.wireguard_peers, wanted.wireguard_peers);
            assert_eq!(
                (addresses, neighbours, forwarding, routes),
                (wanted.addresses, wanted.neighbours, wanted.forwarding, wanted.routes)
            );
        }
    }
}

#[test]
fn no_prefix_of_the_ops_has_a_route_that_leads_nowhere() {
    for before in programs() {
        let start = from_nothing(&before);
        for after in programs() {
            let mut state = start.clone();
            for op in diff(&after, &start) {
                state.apply(&op).expect("not refused");
                for (range, route) in &state.state.routes {
                    // Ranges that two peers exchange change hands one after the other: of what was
                    // there before, only new routes are asked.
                    let is_new = matches!(&op, NetOp::AddRoute { destination, .. }
                        | NetOp::ReplaceRoute { destination, .. } if destination == range);
                    let whole = (route.link == WIREGUARD_LINK && !is_new)
                        || leads_somewhere(&state.state, range, route);
                    assert!(whole, "{range} by {route:?} after {op:?}");
                }
            }
        }
    }
}

/// Whether what a route's packets need beyond the link is there.
fn leads_somewhere(state: &NetState, range: &IpNet, route: &RouteState) -> bool {
    match route.link.as_str() {
        VXLAN_LINK => {
            let next_hop = route.gateway.expect("a next hop");
            let mac = state.neighbours.get(&(VXLAN_LINK.to_owned(), next_hop));
            mac.is_some_and(|mac| state.forwarding.contains_key(&(VXLAN_LINK.to_owned(), *mac)))
        }
        WIREGUARD_LINK => {
            let mut peers = state.wireguard_peers.values();
            state.wireguard.contains_key(WIREGUARD_LINK)
                && peers.any(|peer| peer.allowed.contains(range))
        }
        _ => true,
    }
}

#[test]
fn while_the_way_changes_no_range_is_without_a_route() {
    // Invariant 5: the new way is whole before the old one goes, and the route is replaced.
    let peers = [(2, 12), (3, 13)];
    for before in Overlay::ALL {
        for after in Overlay::ALL {
            if [before, after].contains(&Overlay::Native) {
                continue;
            }
            let of = |overlay| network(&config(overlay), Families::Both, 1, 1500, &peers);
            let mut state = from_nothing(&program(Some(of(before))));
            let routes = state.state.routes.len();
            assert_eq!(routes, 4, "two peers of two families");
            for op in diff(&program(Some(of(after))), &state.clone()) {
                state.apply(&op).expect("not refused");
                assert_eq!(state.state.routes.len(), routes, "{before} to {after}: {op:?}");
            }
        }
    }
}

#[test]
fn each_way_has_its_link_next_hops_and_entries() {
    use Overlay::{HostGw, Ipip, Native, Vxlan, Wireguard};
    let (v4_hop, v6_hop) = ("172.30.0.12", "fd00:172:30::12");
    let (v4_net, v6_net) = ("10.244.2.0", "fd00:10:244:2::");
    let MacAddress(mac) = MacAddress::of_vtep([172, 30, 0, 12].into());
    let v6_end = format!(
        "fe80::{:02x}{:02x}:{:02x}ff:fe{:02x}:{:02x}{:02x}",
        mac[0] ^ 2,
        mac[1],
        mac[2],
        mac[3],
        mac[4],
        mac[5]
    );
    // Overlay; link and next hop of the IPv4 and the IPv6 range; how many tunnel links.
    type Way<'a> = Option<(&'a str, Option<&'a str>)>;
    let rows: [(Overlay, [Way<'_>; 2], usize); 5] = [
        (Vxlan, [Some((VXLAN_LINK, Some(v4_net))), Some((VXLAN_LINK, Some(&v6_end)))], 1),
        (HostGw, [Some((UPLINK, Some(v4_hop))), Some((UPLINK, Some(v6_hop)))], 0),
        (Ipip, [Some((IPIP_LINK, Some(v4_hop))), Some((IPIP6_LINK, Some(v6_hop)))], 2),
        (Wireguard, [Some((WIREGUARD_LINK, None)), Some((WIREGUARD_LINK, None))], 1),
        (Native, [None, None], 0),
    ];
    for (overlay, expected, tunnels) in rows {
        let plan = network(&config(overlay), Families::Both, 1, 1500, &[(2, 12)]);
        let state = program(Some(plan)).state.expect("a state");
        for (range, expected) in ["10.244.2.0/24", "fd00:10:244:2::/64"].iter().zip(expected) {
            let route = state.routes.get(&range.parse::<IpNet>().expect("a range"));
            let found = route.map(|route| (route.link.as_str(), route.gateway));
            let hop = |hop: &str| hop.parse::<IpAddr>().expect("an address");
            assert_eq!(
                found,
                expected.map(|(link, gateway)| (link, gateway.map(hop))),
                "{overlay}"
            );
        }
        assert!(state.links.contains_key(BRIDGE), "own pods have their bridge under {overlay}");
        assert_eq!(state.links.len(), 1 + tunnels, "{overlay}");
        assert_eq!(state.neighbours.len(), if overlay == Vxlan { 2 } else { 0 });
        let peers: Vec<&WireguardPeer> = state.wireguard_peers.values().collect();
        assert_eq!(peers.len(), usize::from(overlay == Wireguard));
        for peer in peers {
            // X-09: exactly its pods and itself.
            let allowed = [format!("{v4_net}/24"), format!("{v4_hop}/32")];
            let allowed_v6 = [format!("{v6_net}/64"), format!("{v6_hop}/128")];
            let expected = allowed.iter().chain(&allowed_v6);
            let expected: BTreeSet<IpNet> =
                expected.map(|range| range.parse().expect("it")).collect();
            assert_eq!(
                (&peer.allowed, peer.endpoint),
                (&expected, "172.30.0.12:51820".parse().ok())
            );
        }
    }
}

#[test]
fn a_peer_that_changes_its_key_is_never_without_one() {
    // Rotation: the new key takes the addresses over, then the old one goes.
    let of = |key| {
        let mut plan = network_v4(Overlay::Wireguard, &[(2, 12)]);
        let peer = plan.peers.get_mut("node2").expect("the peer");
        peer.wireguard_key = Some(WireguardKey([key; 32]));
        program(Some(plan))
    };
    let mut state = from_nothing(&of(12));
    let ops = diff(&of(99), &state);
    assert_eq!(ops.len(), 2, "{ops:?}");
    let range: IpNet = "10.244.2.0/24".parse().expect("a range");
    for op in &ops {
        state.apply(op).expect("not refused");
        let holders =
            state.state.wireguard_peers.values().filter(|peer| peer.allowed.contains(&range));
        assert_eq!(holders.count(), 1, "after {op:?}");
    }
}

#[test]
fn stopped_after_any_op_the_next_turn_ends_at_the_same_state() {
    let programs = programs();
    for (index, before) in programs.iter().enumerate() {
        let after = &programs[(index + 7) % programs.len()];
        let start = from_nothing(before);
        let ops = diff(after, &start);
        let whole = carried_out(&ops, &start);
        for stop in 0..ops.len() {
            let halfway = carried_out(&ops[..stop], &start);
            let end = carried_out(&diff(after, &halfway), &halfway);
            assert_eq!(end, whole, "stopped after {stop} ops");
        }
    }
}

#[test]
fn without_a_plan_nothing_that_exists_changes() {
    let start = from_nothing(&programs()[0]);
    assert_eq!(diff(&program(None), &start), []);
}

#[test]
fn foreign_addresses_on_loopback_stay() {
    let wanted = &programs()[0];
    let mut observed = from_nothing(wanted);
    let foreign = (LOOPBACK.to_owned(), "192.0.2.7/32".parse().expect("a prefix"));
    observed.state.addresses.insert(foreign);
    assert_eq!(diff(wanted, &observed), []);
}

/// Another address for names beside the Service's: what was there before us has no mark, and stays.
#[test]
fn an_address_on_loopback_that_we_put_there_goes_when_it_is_not_wanted() {
    let wanted = &programs()[0];
    let mut observed = from_nothing(wanted);
    let former: IpNet = "169.254.20.11/32".parse().expect("a prefix");
    observed.state.addresses.insert((LOOPBACK.to_owned(), former));
    assert_eq!(diff(wanted, &observed), []);
    observed.marked_addresses.insert(former);
    let removal = NetOp::DeleteAddress { link: LOOPBACK.to_owned(), address: former };
    assert_eq!(diff(wanted, &observed), [removal]);
}

#[test]
fn drift_is_repaired_by_the_ops_that_it_needs_and_no_others() {
    let wanted = program(Some(network_v4(Overlay::Vxlan, &[(2, 12)])));
    let key = (VXLAN_LINK.to_owned(), MacAddress::of_vtep([172, 30, 0, 12].into()));
    type Drift = fn(&mut NetObserved, &(String, MacAddress));
    let rows: [(Drift, &str); 7] = [
        (
            |observed, key| observed.state.forwarding.retain(|found, _| found != key),
            "SetForwarding",
        ),
        (|observed, _| observed.state.neighbours.clear(), "SetNeighbour"),
        (|observed, _| observed.state.routes.clear(), "AddRoute"),
        (|observed, _| link(observed, BRIDGE).up = false, "SetUp"),
        (|observed, _| link(observed, VXLAN_LINK).mtu = 1500, "SetMtu"),
        (|observed, _| link(observed, VXLAN_LINK).tx_checksum = Some(false), "SetTxChecksum"),
        (|observed, _| observed.detached_ports.extend(["veth1".to_owned()]), "AttachPort"),
    ];
    for (drift, expected) in rows {
        let mut observed = from_nothing(&wanted);
        drift(&mut observed, &key);
        let ops = diff(&wanted, &observed);
        assert_eq!(ops.len(), 1, "{ops:?}");
        assert!(format!("{ops:?}").contains(expected), "{ops:?}: {expected}");
    }
}

fn link<'a>(observed: &'a mut NetObserved, name: &str) -> &'a mut LinkState {
    observed.state.links.get_mut(name).expect("the link")
}

#[test]
fn the_configuration_list_says_the_plan() {
    let network = network_v4(Overlay::Vxlan, &[]);
    let list: serde_json::Value = serde_json::from_str(&conflist(&network)).expect("JSON");
    let expected = serde_json::json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "flatnet",
        "plugins": [{
            "type": "flatnet",
            "capabilities": { "portMappings": true, "bandwidth": true, "ips": true, "mac": true },
            "bridge": "cni0",
            "mtu": 1450,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.244.1.0/24", "gateway": "10.244.1.1" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    });
    assert_eq!(list, expected);
}

#[test]
fn blocks_of_pools_are_not_in_the_list_for_the_agent_gives_them_out() {
    let block: IpNet = "10.244.200.0/28".parse().expect("a block");
    let mut network = network_v4(Overlay::Vxlan, &[]);
    let ranges = |network: &NetworkPlan| {
        let list: serde_json::Value = serde_json::from_str(&conflist(network)).expect("JSON");
        list["plugins"][0]["ipam"].clone()
    };
    let before = ranges(&network);
    network.pod_ranges.push(block);
    network.blocks.insert(block);
    network.agent_chooses_addresses = true;
    let after = ranges(&network);
    assert_eq!((&after["ranges"], &after["routes"]), (&before["ranges"], &before["routes"]));
    assert_eq!(after["agentSocket"], "/run/flatnet/agent.sock");
    assert_eq!(after["type"], "flatnet");
}

/// S-11: the limit of tracked flows is raised, with its buckets, never lowered, and left where it is
/// another's.
#[test]
fn tracked_flows_are_given_room_where_this_node_may_and_none_is_taken() {
    let program = NetProgram {
        state: Some(NetState::default()),
        conntrack: Some(ConntrackConfig::default()),
    };
    let limit = |entries_max, buckets, processors| {
        Some(ConntrackLimit { entries_max, buckets, processors })
    };
    let rows = [
        (limit(65_536, 16_384, 2), limit(131_072, 32_768, 2)),
        (limit(262_144, 65_536, 2), limit(262_144, 65_536, 2)),
        (limit(262_144, 262_144, 64), limit(2_097_152, 524_288, 64)),
        (limit(131_072, 131_072, 8), limit(262_144, 131_072, 8)),
        (None, None),
    ];
    for (before, after) in rows {
        let observed = NetObserved { conntrack: before, ..NetObserved::default() };
        let ops = diff(&program, &observed);
        let changed = carried_out(&ops, &observed);
        assert_eq!(changed.conntrack, after, "{ops:?}");
        assert_eq!(diff(&program, &changed), [], "{before:?}");
        let left = NetProgram { conntrack: None, ..program.clone() };
        assert_eq!(diff(&left, &observed), [], "who goes raises nothing");
    }
}

/// S-11: kube-proxy's defaults, and what the configuration says.
#[test]
fn times_of_connection_tracking_are_the_configurations() {
    let plan = network_v4(Overlay::Vxlan, &[(2, 12)]);
    let times = |config: &ClusterConfig| -> BTreeMap<String, String> {
        let state = super::program::state(&plan, config);
        let tracked = state.sysctls.into_iter();
        let tracked = tracked.filter_map(|(key, value)| {
            Some((key.strip_prefix(CONNTRACK_PREFIX)?.to_owned(), value))
        });
        tracked.collect()
    };
    let named = |rows: &[(&str, &str)]| -> BTreeMap<String, String> {
        rows.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let mut config = ClusterConfig::default();
    let usual = [("tcp_timeout_close_wait", "3600"), ("tcp_timeout_established", "86400")];
    assert_eq!(times(&config), named(&usual));
    let text = r#"{"tcpEstablishedTimeout": "2h", "tcpCloseWaitTimeout": "0s", "udpTimeout": "10s",
        "udpStreamTimeout": "1m", "tcpBeLiberal": true}"#;
    config.conntrack = serde_json::from_str(text).expect("read");
    let own = [
        ("tcp_be_liberal", "1"),
        ("tcp_timeout_established", "7200"),
        ("udp_timeout", "10"),
        ("udp_timeout_stream", "60"),
    ];
    assert_eq!(times(&config), named(&own));
    config.conntrack = ConntrackConfig::default();
    config.service_backend = ServiceBackend::Ebpf;
    assert_eq!(times(&config)["tcp_be_liberal"], "1");
    for key in times(&config).keys() {
        assert!(owned_sysctls().any(|owned| owned == format!("{CONNTRACK_PREFIX}{key}")), "{key}");
    }
}
