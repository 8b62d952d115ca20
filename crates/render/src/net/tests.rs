//! Laws of the pod network's ops, over plans that differ in everything that can change.

use std::collections::BTreeMap;

use model::layout::{BRIDGE, UPLINK, VXLAN_LINK};
use model::{ClusterConfig, MacAddress, Overlay};
use plan::network::{NetworkPlan, Peer, Tunnel, gateway};
use plan::{Desired, NodeFacts};

use super::*;

/// The plan of a node with pod range `10.244.OWN.0/24` at `172.30.0.OWN`, and of its peers.
fn network(own: u8, overlay: Overlay, mtu: u32, peers: &[(u8, u8)]) -> NetworkPlan {
    let range = |number: u8| -> IpNet { format!("10.244.{number}.0/24").parse().expect("a range") };
    let address = |number: u8| -> IpAddr { [172, 30, 0, number].into() };
    let peer = |(ranges, node): &(u8, u8)| {
        let address = address(*node);
        let vtep_mac = MacAddress::of_vtep(address);
        (format!("node{ranges}"), Peer { address, vtep_mac, pod_ranges: vec![range(*ranges)] })
    };
    NetworkPlan {
        pod_ranges: vec![range(own)],
        gateways: gateway(&range(own)).into_iter().collect(),
        mtu,
        tunnel: (overlay == Overlay::Vxlan).then(|| Tunnel {
            local: address(own),
            mac: MacAddress::of_vtep(address(own)),
            addresses: vec![IpNet::from(range(own).network())],
        }),
        peers: peers.iter().map(peer).collect(),
        dns_addresses: vec![[10, 96, 0, 10].into()],
        uplink: UPLINK.into(),
    }
}

fn program(network: Option<NetworkPlan>) -> NetProgram {
    let desired = Desired { network, services: BTreeMap::new() };
    let facts = NodeFacts {
        name: "node1".into(),
        uplink: UPLINK.into(),
        uplink_mtu: 1500,
        ..NodeFacts::default()
    };
    render(&desired, &ClusterConfig::default(), &facts)
}

/// Plans that differ in overlay, MTU, own range, and in number, ranges and addresses of peers.
fn programs() -> Vec<NetProgram> {
    let peers: [&[(u8, u8)]; 5] =
        [&[], &[(2, 12)], &[(2, 12), (3, 13)], &[(2, 13), (3, 12)], &[(3, 13), (4, 14)]];
    let mut programs = Vec::new();
    for overlay in [Overlay::Vxlan, Overlay::HostGw] {
        for peers in peers {
            for (own, mtu) in [(1, 1450), (1, 1400), (9, 1450)] {
                programs.push(program(Some(network(own, overlay, mtu, peers))));
            }
        }
    }
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
fn from_any_state_to_any_other_no_op_is_refused_and_nothing_is_left_to_do() {
    for before in programs() {
        let start = from_nothing(&before);
        assert_eq!(diff(&before, &start), [], "the same again is nothing to do");
        for after in programs() {
            let end = carried_out(&diff(&after, &start), &start);
            assert_eq!(diff(&after, &end), []);
            let wanted = after.state.expect("a state");
            let NetState { links, addresses, neighbours, forwarding, routes, .. } = end.state;
            assert_eq!(links, wanted.links);
            assert_eq!(
                (addresses, neighbours, forwarding, routes),
                (wanted.addresses, wanted.neighbours, wanted.forwarding, wanted.routes)
            );
        }
    }
}

#[test]
fn no_prefix_of_the_ops_has_a_route_without_its_neighbour_and_forwarding_entry() {
    for before in programs() {
        let start = from_nothing(&before);
        for after in programs() {
            let mut state = start.clone();
            for op in diff(&after, &start) {
                state.apply(&op).expect("not refused");
                for route in state.state.routes.values().filter(|route| route.link == VXLAN_LINK) {
                    let next_hop = route.gateway.expect("a next hop");
                    let mac = state.state.neighbours.get(&(VXLAN_LINK.to_owned(), next_hop));
                    let mac = *mac.unwrap_or_else(|| panic!("{next_hop} has no MAC after {op:?}"));
                    let known = state.state.forwarding.contains_key(&(VXLAN_LINK.to_owned(), mac));
                    assert!(known, "{mac} is behind no node after {op:?}");
                }
            }
        }
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

#[test]
fn drift_is_repaired_by_the_ops_that_it_needs_and_no_others() {
    let wanted = program(Some(network(1, Overlay::Vxlan, 1450, &[(2, 12)])));
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
        (|observed, _| link(observed, VXLAN_LINK).tx_checksum = Some(true), "SetTxChecksum"),
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
    let network = network(1, Overlay::Vxlan, 1450, &[]);
    let list: serde_json::Value = serde_json::from_str(&conflist(&network)).expect("JSON");
    let expected = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "flatnet",
        "plugins": [{
            "type": "flatnet",
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
