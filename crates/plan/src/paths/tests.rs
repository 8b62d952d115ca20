//! What each observation means, and what is chosen.

use std::sync::Arc;

use model::kinds::{NodeAddress, NodeSpec, NodeStatus};
use model::world::Object;
use model::{ObjectMeta, World};

use super::*;
use crate::network::{self, overlay_between};

const SUBNET: &str = "172.30.0.0/24";

fn channel(answers: bool) -> Channel {
    Channel {
        rtt_us: answers.then_some(200),
        mtu: answers.then_some(1450),
        promised_mtu: 1450,
        heard: None,
        hears: false,
    }
}

fn found(pods: Channel, nodes: Channel) -> Observation {
    Observation {
        way: Overlay::Vxlan,
        own_address: "172.30.0.2".parse().expect("an address"),
        peer_address: "172.30.0.3".parse().expect("an address"),
        pods,
        nodes,
        passes_unchecked: false,
        passes_streams: None,
        avoided_works: false,
    }
}

fn blocked(heard: Option<bool>) -> Observation {
    found(Channel { heard, ..channel(false) }, channel(true))
}

fn small(mtu: u32) -> Observation {
    let nodes = Channel { mtu: Some(mtu + 50), promised_mtu: 1500, ..channel(true) };
    found(Channel { mtu: Some(mtu), ..channel(true) }, nodes)
}

fn node(name: &str, number: u8, address: &str, detours: &str) -> Node {
    let kind = "InternalIP".to_owned();
    let range = format!("10.244.{number}.0/24").parse().expect("a range");
    let detours = (!detours.is_empty()).then(|| (DETOURS_ANNOTATION.to_owned(), detours.into()));
    Node {
        metadata: ObjectMeta {
            name: name.into(),
            annotations: detours.into_iter().collect(),
            ..ObjectMeta::default()
        },
        spec: NodeSpec { pod_cidrs: vec![range], ..NodeSpec::default() },
        status: NodeStatus {
            addresses: vec![NodeAddress { kind, address: address.into() }],
            ..NodeStatus::default()
        },
    }
}

fn facts() -> NodeFacts {
    NodeFacts {
        name: "node1".into(),
        uplink: "eth0".into(),
        uplink_mtu: 1500,
        uplink_prefixes: vec![SUBNET.parse().expect("a prefix")],
        ..NodeFacts::default()
    }
}

fn plan_of(config: &ClusterConfig, facts: &NodeFacts, nodes: &[Node]) -> NetworkPlan {
    let mut world = World::default();
    for node in nodes {
        world.set(Object::Node(Arc::new(node.clone())));
    }
    network::plan(&world, config, facts).0.expect("a plan")
}

fn one(observation: Observation) -> BTreeMap<String, Observation> {
    [("node2".to_owned(), observation)].into()
}

/// Judges one observation, between node1 and node2.
fn judged(observation: Observation, config: &ClusterConfig, detours: &str) -> Judgement {
    let nodes = [node("node1", 1, "172.30.0.2", detours), node("node2", 2, "172.30.0.3", "")];
    let plan = plan_of(config, &facts(), &nodes);
    judge("node1", config, &plan, &one(observation))
}

#[test]
fn what_was_found_names_its_cause_direction_and_remedy() {
    let unchecked = |heard| Observation { passes_unchecked: true, ..blocked(heard) };
    let hears = Channel { hears: true, ..channel(false) };
    let ipip = Observation { way: Overlay::Ipip, ..blocked(Some(false)) };
    let direct = Observation { way: Overlay::HostGw, ..blocked(Some(false)) };
    let wireguard = Observation { way: Overlay::Wireguard, ..blocked(Some(true)) };
    let inner = Channel { mtu: Some(1500), promised_mtu: 1500, ..channel(true) };
    let streams = |way| Observation {
        way,
        passes_streams: Some(false),
        ..found(channel(true), channel(true))
    };
    let only_tunnel = Observation { nodes: inner, ..small(1300) };
    let out = "from node1 (172.30.0.2) to node2 (172.30.0.3)";
    let back = "from node2 (172.30.0.3) to node1 (172.30.0.2)";
    let rows: [(Observation, State, &[&str]); 15] = [
        (found(channel(true), channel(true)), State::Works, &[]),
        // The port of the test may be closed between nodes: pods do not need it.
        (found(channel(true), channel(false)), State::Works, &[]),
        (found(channel(false), channel(false)), State::Silent, &[]),
        (blocked(Some(false)), State::BlockedOut, &["UDP port 8472 is dropped", out]),
        (blocked(Some(true)), State::BlockedIn, &["UDP port 8472 is dropped", back]),
        (ipip, State::BlockedOut, &["IP protocol 4 is dropped", out]),
        (direct, State::BlockedOut, &["traffic of pod addresses is dropped", out]),
        (wireguard, State::BlockedIn, &["UDP port 51820 is dropped", back]),
        (
            found(channel(false), hears),
            State::BlockedOut,
            &["nothing arrives", out, "asymmetric routes", "UDP port 8472"],
        ),
        (small(1350), State::SmallMtu, &[out, "up to 1350 bytes", "carries 1400 bytes", "raise"]),
        (
            streams(Overlay::Vxlan),
            State::BadSegments,
            &[out, "streams crawl", "switch off tx-udp_tnl-segmentation"],
        ),
        (streams(Overlay::HostGw), State::BadSegments, &[out, "driver", "tso and gso"]),
        (only_tunnel, State::SmallMtu, &["up to 1300 bytes", "those by vxlan do not"]),
        (unchecked(Some(true)), State::BadChecksumIn, &[back, "wrong checksums", "of node2"]),
        (unchecked(Some(false)), State::BadChecksum, &[out, "wrong checksums", "driver"]),
    ];
    for (observation, state, words) in rows {
        assert_eq!(observation.state(), state, "{observation:?}");
        let judgement = judged(observation, &ClusterConfig::default(), "");
        assert_eq!(judgement.findings.len(), usize::from(!words.is_empty()), "{state:?}");
        for finding in &judgement.findings {
            assert_eq!(finding.about, "Node node1");
            let missing = words.iter().find(|word| !finding.message.contains(**word));
            assert_eq!(missing, None, "in {}", finding.message);
        }
        let verdict = judgement.verdict.expect("a condition");
        assert_eq!(verdict.ready, !state.is_broken(), "{state:?}");
        let offloads = matches!(state, State::BadChecksum | State::BadSegments);
        assert_eq!(judgement.checksum_broken, offloads);
        assert_eq!(judgement.pod_mtu_limit.is_some(), state == State::SmallMtu);
    }
}

#[test]
fn a_detour_in_force_says_what_to_open_and_how_to_end_it() {
    let by = |overlay| ClusterConfig { overlay, ..ClusterConfig::default() };
    let rows = [
        (Overlay::Vxlan, Overlay::HostGw, "UDP port 8472"),
        (Overlay::Ipip, Overlay::HostGw, "IP protocol 4"),
        (Overlay::HostGw, Overlay::Vxlan, "traffic of pod addresses"),
    ];
    for (first, way, open) in rows {
        let own = node("node1", 1, "172.30.0.2", &format!("node2={way}"));
        let nodes = [own, node("node2", 2, "172.30.0.3", "")];
        let mut plan = plan_of(&by(first), &facts(), &nodes);
        let observed = one(Observation { way, ..found(channel(true), channel(true)) });
        let blocked = format!("{first} blocked and {way} working");
        for (has_ends, end) in [(true, "taken again by itself"), (false, "both ways; then remove")]
        {
            if !has_ends {
                plan.ends = network::TunnelEnds::default();
            }
            // The direct way needs none.
            let end = if first == Overlay::HostGw { "taken again by itself" } else { end };
            let judgement = judge("node1", &by(first), &plan, &observed);
            let [finding] = &judgement.findings[..] else { panic!("{:?}", judgement.findings) };
            for word in [&blocked, open, end, DETOURS_ANNOTATION] {
                assert!(finding.message.contains(word), "{word:?} in {}", finding.message);
            }
            assert!(judgement.rows[0].detour);
            let verdict = judgement.verdict.expect("a condition");
            assert_eq!((verdict.ready, verdict.reason), (true, "FaultsAvoided"));
        }
    }
}

#[test]
fn the_condition_stays_short_however_much_is_wrong() {
    let mut nodes = vec![node("node1", 1, "172.30.0.2", "")];
    let mut observations = BTreeMap::new();
    for number in 2..=201_u8 {
        let name = format!("node{number}");
        nodes.push(node(&name, number, &format!("172.30.1.{number}"), ""));
        observations.insert(name, blocked(Some(false)));
    }
    let config = ClusterConfig::default();
    let plan = plan_of(&config, &facts(), &nodes);
    let known = observations.len();
    let judgement = judge("node1", &config, &plan, &observations);
    let message = judgement.verdict.expect("a condition").message;
    assert!(message.len() < 1024, "{} bytes", message.len());
    assert!(message.contains(&format!("and {} more", known - 3)), "{message}");
    assert_eq!(judgement.findings.len(), 20);
    assert_eq!(judgement.rows.len(), known);
}

#[test]
fn pods_get_what_reaches_all_peers_and_tunnel_ends_keep_theirs() {
    let config = ClusterConfig::default();
    let nodes = [node("node1", 1, "172.30.0.2", ""), node("node2", 2, "172.30.0.3", "")];
    for (limit, mtu) in [(None, 1450), (Some(1354), 1354), (Some(9000), 1450), (Some(100), 576)] {
        let facts = NodeFacts { pod_mtu_limit: limit, ..facts() };
        let plan = plan_of(&config, &facts, &nodes);
        let end = plan.ends.vxlan.expect("an end");
        assert_eq!((plan.mtu, plan.promised_mtu, end.mtu), (mtu, 1450, 1450), "{limit:?}");
    }
}

/// What node1 publishes after an observation, by its own annotation before.
fn next(config: &ClusterConfig, peer_address: &str, before: &str, found: Observation) -> String {
    let nodes = [node("node1", 1, "172.30.0.2", before), node("node2", 2, peer_address, "")];
    let plan = plan_of(config, &facts(), &nodes);
    detours_text(&detours(config, &facts(), &nodes[0], &plan, &one(found)))
}

#[test]
fn a_blocked_way_is_left_for_the_next_one_that_can_be() {
    let vxlan = ClusterConfig::default();
    let ipip = ClusterConfig { overlay: Overlay::Ipip, ..ClusterConfig::default() };
    let cross = ClusterConfig { cross_subnet: true, ..ClusterConfig::default() };
    let encrypted = ClusterConfig { overlay: Overlay::Wireguard, ..ClusterConfig::default() };
    let (near, far) = ("172.30.0.3", "192.0.2.3");
    let blocked = |way| Observation { way, ..blocked(Some(false)) };
    let checksum = Observation { passes_unchecked: true, ..blocked(Overlay::Vxlan) };
    let silent = Observation { way: Overlay::Vxlan, ..found(channel(false), channel(false)) };
    let works = |way| Observation { way, ..found(channel(true), channel(true)) };
    let again = |way| Observation { avoided_works: true, ..works(way) };
    let rows = [
        (&vxlan, near, "", blocked(Overlay::Vxlan), "node2=host-gw"),
        // Without a segment in common there is nothing else.
        (&vxlan, far, "", blocked(Overlay::Vxlan), ""),
        (&ipip, far, "", blocked(Overlay::Ipip), "node2=vxlan"),
        // Within one segment it is direct from the start; the tunnel comes next.
        (&cross, near, "", blocked(Overlay::HostGw), "node2=vxlan"),
        (&vxlan, near, "node2=host-gw", works(Overlay::HostGw), "node2=host-gw"),
        (&vxlan, near, "node2=host-gw", blocked(Overlay::HostGw), "node2=host-gw"),
        (&ipip, near, "node2=host-gw", blocked(Overlay::HostGw), "node2=vxlan"),
        (&ipip, near, "node2=vxlan", blocked(Overlay::Vxlan), "node2=vxlan"),
        // What was found by the way before says nothing of this one.
        (&vxlan, near, "node2=host-gw", blocked(Overlay::Vxlan), "node2=host-gw"),
        // Wrong checksums are put right, not gone around.
        (&vxlan, near, "", checksum, ""),
        // Who is not reached by any means gets no other way.
        (&vxlan, near, "", silent, ""),
        (&vxlan, near, "", works(Overlay::Vxlan), ""),
        (&encrypted, near, "", blocked(Overlay::Wireguard), ""),
        (&vxlan, near, "node7=host-gw", works(Overlay::Vxlan), ""),
        // What works again is taken again; what was found by another way says nothing of that.
        (&vxlan, near, "node2=host-gw", again(Overlay::HostGw), ""),
        (&vxlan, near, "node2=host-gw", again(Overlay::Vxlan), "node2=host-gw"),
    ];
    for (config, address, before, found, expected) in rows {
        let text = format!("{before:?} and {found:?} at {address} in {}", config.overlay);
        assert_eq!(next(config, address, before, found), expected, "{text}");
    }
}

#[test]
fn both_ends_take_the_same_detour_whoever_found_it() {
    let ways = ["", "host-gw", "vxlan", "ipip", "wireguard", "geneve"];
    let published = |peer: &str, way: &str| match way {
        "" => String::new(),
        way => format!("other=vxlan,{peer}={way}"),
    };
    for overlay in Overlay::ALL {
        let config = ClusterConfig { overlay, ..ClusterConfig::default() };
        for one in ways {
            for two in ways {
                let nodes = [
                    node("node1", 1, "172.30.0.2", &published("node2", one)),
                    node("node2", 2, "172.30.0.3", &published("node1", two)),
                ];
                let way = overlay_between(&config, &nodes[0], &nodes[1]);
                assert_eq!(way, overlay_between(&config, &nodes[1], &nodes[0]), "{one} {two}");
                let plan = plan_of(&config, &facts(), &nodes);
                assert_eq!(plan.peers["node2"].path.overlay(), way);
                let position = |way: Overlay| DETOURS.iter().position(|known| *known == way);
                let later = [one, two].iter().filter_map(|way| position(way.parse().ok()?)).max();
                let expected = match overlay {
                    Overlay::Wireguard | Overlay::Native => overlay,
                    overlay => later.map_or(overlay, |later| DETOURS[later]),
                };
                assert_eq!(way, expected, "{one:?} {two:?} in {overlay}");
            }
        }
    }
}

#[test]
fn what_anyone_wrote_into_the_annotation_is_bounded() {
    let text: Vec<String> = (0..1000).map(|number| format!("node{number}=vxlan")).collect();
    let node = node("node1", 1, "172.30.0.2", &text.join(","));
    assert_eq!(detours_of(&node).len(), DETOURS_MAX);
    for wrong in ["=", ",,,", "node2", "node2=", "node2=wireguard", "node2=ipip", "=host-gw,"] {
        let node = self::node("node1", 1, "172.30.0.2", wrong);
        assert_eq!(detour(&node, "node2"), None, "{wrong:?}");
    }
}

#[test]
fn what_a_detour_stands_in_for_is_known_and_tried_where_that_can_be() {
    let cross = ClusterConfig { cross_subnet: true, ..ClusterConfig::default() };
    let ipip = ClusterConfig { overlay: Overlay::Ipip, ..ClusterConfig::default() };
    let rows = [
        (ClusterConfig::default(), "", None, false),
        (ClusterConfig::default(), "node2=host-gw", Some(Overlay::Vxlan), true),
        // It is no detour where it is the way anyhow.
        (ClusterConfig::default(), "node2=vxlan", None, false),
        (cross.clone(), "node2=host-gw", None, false),
        (cross, "node2=vxlan", Some(Overlay::HostGw), true),
        (ipip, "node2=host-gw", Some(Overlay::Ipip), true),
    ];
    for (config, detours, avoided, tried) in rows {
        let nodes = [node("node1", 1, "172.30.0.2", detours), node("node2", 2, "172.30.0.3", "")];
        let plan = plan_of(&config, &facts(), &nodes);
        let peer = &plan.peers["node2"];
        assert_eq!((peer.avoided, is_tried_beside(&plan, peer)), (avoided, tried), "{detours:?}");
    }
}
