//! Which way packets take between nodes, and what it costs them.

use super::*;

const KEY1: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const KEY2: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

const V6_1: Row<'_> = ("node1", "fd00:172:30::2", &["fd00:10:244:1::/64"], 100);
const V6_2: Row<'_> = ("node2", "fd00:172:30::3", &["fd00:10:244:2::/64"], 200);
const DUAL1: Row<'_> =
    ("node1", "172.30.0.2 fd00:172:30::2", &["10.244.1.0/24", "fd00:10:244:1::/64"], 100);
const DUAL2: Row<'_> =
    ("node2", "172.30.0.3 fd00:172:30::3", &["10.244.2.0/24", "fd00:10:244:2::/64"], 200);

fn config(overlay: Overlay) -> ClusterConfig {
    let mut config = ClusterConfig { overlay, ..ClusterConfig::default() };
    config.pod_cidrs.push("fd00:10:244::/56".parse().expect("a range"));
    config.node_cidrs.push("fd00:172:30::/64".parse().expect("a range"));
    config
}

/// The plan of the first node.
fn plan_of(config: &ClusterConfig, nodes: &[Node]) -> (NetworkPlan, Vec<Finding>) {
    let mut world = World::default();
    for node in nodes {
        world.set(Object::Node(Arc::new(node.clone())));
    }
    let facts = NodeFacts { name: nodes[0].name().into(), ..facts(1500) };
    let (plan, findings) = plan(&world, config, &facts);
    (plan.expect("a plan"), findings)
}

fn with_keys(rows: [&Row<'_>; 2]) -> [Node; 2] {
    let [one, two] = rows;
    [node(one, &[(WIREGUARD_KEY_ANNOTATION, KEY1)]), node(two, &[(WIREGUARD_KEY_ANNOTATION, KEY2)])]
}

#[test]
fn the_mtu_leaves_room_for_the_way() {
    use Overlay::{HostGw, Ipip, Native, Vxlan, Wireguard};
    let rows = [
        (Vxlan, [NODE1, NODE2], 1450),
        (Vxlan, [V6_1, V6_2], 1430),
        (Vxlan, [DUAL1, DUAL2], 1450),
        (Ipip, [NODE1, NODE2], 1480),
        (Ipip, [V6_1, V6_2], 1460),
        (Ipip, [DUAL1, DUAL2], 1460),
        (Wireguard, [NODE1, NODE2], 1440),
        (Wireguard, [V6_1, V6_2], 1420),
        (HostGw, [NODE1, NODE2], 1500),
        (HostGw, [DUAL1, DUAL2], 1500),
        (Native, [NODE1, NODE2], 1500),
    ];
    for (overlay, [one, two], mtu) in rows {
        let (plan, findings) = plan_of(&config(overlay), &with_keys([&one, &two]));
        assert_eq!((plan.mtu, findings), (mtu, vec![]), "{overlay} {one:?}");
    }
}

#[test]
fn the_narrowest_way_in_use_decides_the_mtu_of_pods_and_each_link_has_its_own() {
    // While a cluster changes, both ways are in use.
    let mut config = config(Overlay::HostGw);
    assert_eq!(plan_of(&config, &[node(&NODE1, &[]), node(&NODE2, &[])]).0.mtu, 1500);
    config.also_receive.insert(Overlay::Vxlan);
    assert_eq!(plan_of(&config, &[node(&NODE1, &[]), node(&NODE2, &[])]).0.mtu, 1450);
    config.also_receive.insert(Overlay::Ipip);
    let (plan, _) = plan_of(&config, &[node(&DUAL1, &[]), node(&DUAL2, &[])]);
    let ipip: Vec<u32> = plan.ends.ipip.iter().map(|end| end.mtu).collect();
    assert_eq!(
        (plan.mtu, plan.ends.vxlan.expect("an end").mtu, ipip),
        (1450, 1450, vec![1480, 1460])
    );
    // One peer that asks for another way.
    config.also_receive.clear();
    let wish = [(OVERLAY_ANNOTATION, "vxlan")];
    assert_eq!(plan_of(&config, &[node(&NODE1, &[]), node(&NODE2, &wish)]).0.mtu, 1450);
}

#[test]
fn an_mtu_that_is_too_small_is_said_with_what_is_needed() {
    let rows = [(NODE1, 620, true), (NODE1, 626, false), (V6_1, 1340, true), (V6_1, 1350, false)];
    for (row, uplink_mtu, said) in rows {
        let (_, findings) = plan(&world(&[row]), &config(Overlay::Vxlan), &facts(uplink_mtu));
        assert_eq!(findings.len(), usize::from(said), "{uplink_mtu}: {findings:?}");
        assert!(findings.iter().all(|found| found.message.contains("raise the uplink's MTU")));
    }
}

#[test]
fn both_nodes_choose_the_same_way_whatever_they_wish() {
    // The law of symmetry, over all wishes and clusters, wrong ones among them.
    let wishes: Vec<Option<&str>> = [None, Some("geneve"), Some("")]
        .into_iter()
        .chain(Overlay::ALL.map(|overlay| Some(overlay.as_str())))
        .collect();
    let with = |row, wish: Option<&str>| match wish {
        Some(wish) => node(row, &[(OVERLAY_ANNOTATION, wish)]),
        None => node(row, &[]),
    };
    for overlay in Overlay::ALL {
        let config = config(overlay);
        for one in &wishes {
            for two in &wishes {
                let nodes = [with(&NODE1, *one), with(&NODE2, *two)];
                let way = overlay_between(&config, &nodes[0], &nodes[1]);
                assert_eq!(way, overlay_between(&config, &nodes[1], &nodes[0]), "{one:?} {two:?}");
                let wished = [one, two].map(|wish| wish.and_then(|text| text.parse().ok()));
                let known = wished.contains(&Some(way)) || way == overlay;
                assert!(known, "{way} was asked for by nobody");
                let encrypted =
                    overlay == Overlay::Wireguard || wished.contains(&Some(Overlay::Wireguard));
                assert_eq!(way == Overlay::Wireguard, encrypted, "{one:?} {two:?} in {overlay}");
            }
        }
    }
}

#[test]
fn a_wish_that_cannot_be_is_named() {
    let rows = [
        (Overlay::Vxlan, "geneve", "\"geneve\", which is no overlay"),
        (Overlay::Wireguard, "host-gw", "but the cluster is encrypted"),
    ];
    for (overlay, wish, expected) in rows {
        let mut nodes = with_keys([&NODE1, &NODE2]);
        let wish = (OVERLAY_ANNOTATION.to_owned(), wish.to_owned());
        nodes[1].metadata.annotations.extend([wish]);
        let (plan, findings) = plan_of(&config(overlay), &nodes);
        assert_eq!(plan.peers["node2"].path.overlay(), overlay);
        let [found] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!(found.about, "Node node2");
        assert!(found.message.contains(expected), "{}", found.message);
    }
}

#[test]
fn across_subnets_a_tunnel_and_within_one_none() {
    let far = ("node3", "192.0.2.3", &["10.244.3.0/24"][..], 300);
    let far_v6 = ("node3", "172.30.0.9 2001:db8::9", DUAL2.2, 300);
    for tunnel in [Overlay::Vxlan, Overlay::Ipip] {
        let config = ClusterConfig { cross_subnet: true, ..config(tunnel) };
        let path = |rows: &[Row<'_>]| {
            let nodes: Vec<Node> = rows.iter().map(|row| node(row, &[])).collect();
            let (plan, findings) = plan_of(&config, &nodes);
            assert_eq!(findings, []);
            assert_eq!(
                plan.mtu,
                1500 - tunnel.overhead(Family::V4).max(match rows[0].2.len() {
                    2 if tunnel == Overlay::Ipip => 40,
                    _ => 0,
                })
            );
            plan.peers.values().map(|peer| peer.path.overlay()).collect::<Vec<_>>()
        };
        assert_eq!(path(&[NODE1, NODE2, far]), [Overlay::HostGw, tunnel]);
        assert_eq!(path(&[DUAL1, DUAL2]), [Overlay::HostGw]);
        // Directly for all of its pods, or for none.
        assert_eq!(path(&[DUAL1, far_v6]), [tunnel]);
    }
    let encrypted = ClusterConfig { cross_subnet: true, ..config(Overlay::Wireguard) };
    let (plan, _) = plan_of(&encrypted, &with_keys([&NODE1, &NODE2]));
    assert_eq!(plan.peers["node2"].path.overlay(), Overlay::Wireguard, "never in plain");
}

#[test]
fn outer_packets_are_of_one_family_in_the_whole_cluster() {
    // Whatever order the nodes report their addresses in.
    let reversed = ("node2", "fd00:172:30::3 172.30.0.3", DUAL2.2, 200);
    let mut config = config(Overlay::Vxlan);
    for (v6_first, expected) in [(false, "172.30.0.3"), (true, "fd00:172:30::3")] {
        if v6_first {
            config.node_cidrs.reverse();
        }
        let (plan, _) = plan_of(&config, &[node(&DUAL1, &[]), node(&reversed, &[])]);
        assert_eq!(plan.peers["node2"].address.to_string(), expected);
        let local = plan.ends.vxlan.expect("an end").local;
        assert_eq!(local.is_ipv6(), v6_first);
    }
}

#[test]
fn ways_that_keep_the_family_name_the_address_that_is_missing() {
    let v4_only = ("node2", "172.30.0.3", DUAL2.2, 200);
    for overlay in Overlay::ALL {
        let mut nodes = with_keys([&DUAL1, &v4_only]);
        let (plan, findings) = plan_of(&config(overlay), &nodes);
        assert_eq!(plan.peers.len(), 1);
        let expected = usize::from(overlay.keeps_family());
        assert_eq!(findings.len(), expected, "{overlay}: {findings:?}");
        assert!(findings.iter().all(|found| found.about == "Node node2"));
        nodes.reverse();
        let (_, findings) = plan_of(&config(overlay), &nodes);
        assert_eq!(findings.len(), expected, "seen from the other side");
        assert!(findings.iter().all(|found| found.about == "Node node2"));
    }
}

#[test]
fn without_a_key_nothing_is_planned_and_the_node_is_named() {
    let [one, two] = with_keys([&NODE1, &NODE2]);
    let bare = |row| node(row, &[]);
    let bad = node(&NODE2, &[(WIREGUARD_KEY_ANNOTATION, "AAAA")]);
    let same = node(&NODE2, &[(WIREGUARD_KEY_ANNOTATION, KEY1)]);
    let key = |text: &str| text.parse::<WireguardKey>().ok();
    let rows = [
        ([one.clone(), two.clone()], key(KEY1), key(KEY2), None),
        (
            [one.clone(), bare(&NODE2)],
            key(KEY1),
            None,
            Some(("node2", "publishes no WireGuard key")),
        ),
        (
            [one.clone(), bad],
            key(KEY1),
            None,
            Some(("node2", "\"AAAA\", which is no WireGuard key")),
        ),
        ([bare(&NODE1), two], None, key(KEY2), Some(("node1", "publishes no WireGuard key"))),
        ([one, same], key(KEY1), None, Some(("node2", "is that of the older node node1"))),
    ];
    for (nodes, own, peer, said) in rows {
        let (plan, findings) = plan_of(&config(Overlay::Wireguard), &nodes);
        assert_eq!(plan.ends.wireguard.map(|end| end.public_key), own);
        let found = &plan.peers["node2"];
        assert_eq!((&found.path, found.wireguard_key), (&Path::Wireguard, peer));
        assert_eq!(findings.len(), usize::from(said.is_some()), "{findings:?}");
        for (found, (about, message)) in findings.iter().zip(said) {
            assert_eq!(found.about, format!("Node {about}"));
            assert!(found.message.contains(message), "{}", found.message);
        }
    }
}

#[test]
fn before_a_cluster_changes_to_encryption_the_peers_are_known_by_their_keys() {
    let mut config = config(Overlay::Vxlan);
    let nodes = with_keys([&NODE1, &NODE2]);
    assert_eq!(plan_of(&config, &nodes).0.peers["node2"].wireguard_key, None);
    config.also_receive.insert(Overlay::Wireguard);
    let (plan, _) = plan_of(&config, &nodes);
    assert_eq!(plan.peers["node2"].path.overlay(), Overlay::Vxlan, "it still sends as before");
    assert_eq!(plan.peers["node2"].wireguard_key, KEY2.parse().ok());
    assert!(plan.ends.wireguard.is_some());
}

#[test]
fn tunnel_parameters_and_known_faults_reach_the_link() {
    let mut config = config(Overlay::Vxlan);
    config.tunnels.vxlan_vni = 4096;
    config.tunnels.vxlan_port = 4789;
    for broken in [false, true] {
        let facts = NodeFacts { tunnel_checksum_broken: broken, ..facts(1500) };
        let (plan, _) = plan(&world(&[NODE1]), &config, &facts);
        let end = plan.and_then(|plan| plan.ends.vxlan).expect("an end");
        assert_eq!((end.vni, end.port, end.tx_checksum), (4096, 4789, !broken));
    }
}
