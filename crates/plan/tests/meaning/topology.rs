//! Hints of endpoints: kube-proxy's table of topologies, KEP-2433 and KEP-3015.

use model::kinds::TrafficPolicy::{self, Cluster, Local};

use super::scenario::{FAMILIES, Scenario};

/// What it is about, the zone of this node, internal policy, endpoints, who gets a pod's packet.
type Row =
    (&'static str, Option<&'static str>, TrafficPolicy, &'static [&'static str], &'static str);

const A: Option<&str> = Some("a");
const NODE_HINTS: &[&str] = &["1 here ready node:here", "2 there ready node:there"];
const ZONE_HINTS: &[&str] = &["1 there ready zone:a", "2 there ready zone:b"];

#[rustfmt::skip]
const ROWS: [Row; 32] = [
    ("no hints", A, Cluster, &["1 here ready", "2 there ready"], "1 2"),
    ("no hints, no zone", None, Cluster, &["1 here ready", "2 there ready"], "1 2"),
    ("no hints, Local", A, Local, &["1 here ready", "2 there ready"], "1"),
    ("no endpoints", A, Cluster, &[], "reject"),
    ("zones", A, Cluster, ZONE_HINTS, "1"),
    ("zones, in the other", Some("b"), Cluster, ZONE_HINTS, "2"),
    ("zones, in none of them", Some("c"), Cluster, ZONE_HINTS, "1 2"),
    ("zones, the node without one", None, Cluster, ZONE_HINTS, "1 2"),
    ("zones, the node with an empty one", Some(""), Cluster, ZONE_HINTS, "1 2"),
    ("one for two zones", A, Cluster, &["1 there ready zone:a zone:b", "2 there ready zone:b"], "1"),
    ("all for this zone", A, Cluster, &["1 there ready zone:a", "2 here ready zone:a"], "1 2"),
    ("one ready without a hint", A, Cluster, &["1 there ready zone:a", "2 there ready"], "1 2"),
    ("one unready without a hint", A, Cluster, &["1 there ready zone:a", "2 there unready", "3 there ready zone:b"], "1"),
    ("one leaving without a hint", A, Cluster, &["1 there ready zone:a", "2 there leaving", "3 there ready zone:b"], "1"),
    ("the zone's is unready", A, Cluster, &["1 there unready zone:a", "2 there ready zone:b"], "2"),
    ("the zone's leaves", A, Cluster, &["1 there leaving zone:a", "2 there ready zone:b"], "2"),
    ("all leave", A, Cluster, &["1 there leaving zone:a", "2 there leaving zone:b"], "1 2"),
    ("all unready", A, Cluster, &["1 there unready zone:a", "2 there unready zone:b"], "reject"),
    ("zones under Local, mine elsewhere", A, Local, &["1 there ready zone:a", "2 here ready zone:b"], "2"),
    ("zones under Local, none here", A, Local, ZONE_HINTS, "drop"),
    ("nodes", None, Cluster, NODE_HINTS, "1"),
    ("nodes, none for this one", A, Cluster, &["1 there ready node:there", "2 there ready node:far"], "1 2"),
    ("nodes, one ready without", A, Cluster, &["1 here ready node:here", "2 there ready"], "1 2"),
    ("nodes, one unready without", A, Cluster, &["1 here ready node:here", "2 there unready", "3 there ready node:there"], "1"),
    ("nodes before zones", A, Cluster, &["1 here ready node:here zone:a", "2 there ready node:there zone:a"], "1"),
    ("zones when no node fits", A, Cluster, &["1 there ready node:far zone:a", "2 there ready node:far zone:b"], "1"),
    ("zones when one has no node", A, Cluster, &["1 here ready node:here zone:b", "2 there ready zone:a"], "2"),
    ("neither fits", A, Cluster, &["1 there ready node:far zone:b", "2 there ready node:far zone:c"], "1 2"),
    ("the node's is unready", A, Cluster, &["1 here unready node:here zone:a", "2 there ready node:there zone:a", "3 there ready node:there zone:b"], "2"),
    ("the node's leaves", None, Cluster, &["1 here leaving node:here", "2 there ready node:there"], "2"),
    ("nodes under Local", A, Local, &["1 there ready node:here", "2 here ready node:there"], "2"),
    ("a hint says more than the place", None, Cluster, &["1 there ready node:here", "2 here ready node:there"], "1"),
];

/// S-12.
#[test]
fn hints_keep_clients_near() {
    for family in FAMILIES {
        for (what, zone, internal, endpoints, expected) in ROWS {
            let mut scenario = Scenario::new(family, endpoints).with(internal, Cluster);
            scenario.zone = zone;
            assert_eq!(scenario.ask("pod", "cluster IP:80"), expected, "{family} {what}");
        }
    }
}

/// Clients from outside are spread by the same hints, but where a Local policy binds them.
#[test]
fn hints_count_for_clients_from_outside() {
    for family in FAMILIES {
        for (external, from, expected) in [
            (Cluster, "outside", "1 masqueraded"),
            (Local, "outside", "2"),
            (Local, "pod", "1"),
            (Local, "node", "1 masqueraded"),
        ] {
            let endpoints = ["1 there ready zone:a", "2 here ready zone:b"];
            let mut scenario = Scenario::new(family, &endpoints).with(Cluster, external);
            scenario.zone = A;
            for to in ["node:30080", "balancer:80"] {
                assert_eq!(scenario.ask(from, to), expected, "{family} {external:?} {from} {to}");
            }
        }
    }
}
