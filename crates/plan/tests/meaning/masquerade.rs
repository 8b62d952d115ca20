//! Who gets which endpoints, and whose source is masqueraded: kube-proxy's table
//! "internal/external masquerade". Its rows without a detector of local traffic have no meaning
//! here: flatnet always knows the pods of its node.

use model::kinds::TrafficPolicy::{self, Cluster, Local};

use super::scenario::{FAMILIES, Scenario};

const CLUSTER_IP: &str = "cluster IP:80";
const NODE_PORT: &str = "node:30080";
const BALANCER: &str = "balancer:80";

/// Internal and external policy, client, destination, what becomes of it.
type Row = (TrafficPolicy, TrafficPolicy, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const ROWS: [Row; 36] = [
    (Cluster, Cluster, "pod", CLUSTER_IP, "1 2"),
    (Cluster, Cluster, "pod", NODE_PORT, "1 2 masqueraded"),
    (Cluster, Cluster, "pod", BALANCER, "1 2 masqueraded"),
    (Cluster, Cluster, "node", CLUSTER_IP, "1 2 masqueraded"),
    (Cluster, Cluster, "node", NODE_PORT, "1 2 masqueraded"),
    (Cluster, Cluster, "node", BALANCER, "1 2 masqueraded"),
    (Cluster, Cluster, "outside", CLUSTER_IP, "1 2 masqueraded"),
    (Cluster, Cluster, "outside", NODE_PORT, "1 2 masqueraded"),
    (Cluster, Cluster, "outside", BALANCER, "1 2 masqueraded"),

    (Cluster, Local, "pod", CLUSTER_IP, "1 2"),
    (Cluster, Local, "pod", NODE_PORT, "1 2"),
    (Cluster, Local, "pod", BALANCER, "1 2"),
    (Cluster, Local, "node", CLUSTER_IP, "1 2 masqueraded"),
    (Cluster, Local, "node", NODE_PORT, "1 2 masqueraded"),
    (Cluster, Local, "node", BALANCER, "1 2 masqueraded"),
    (Cluster, Local, "outside", CLUSTER_IP, "1 2 masqueraded"),
    (Cluster, Local, "outside", NODE_PORT, "1"),
    (Cluster, Local, "outside", BALANCER, "1"),

    (Local, Cluster, "pod", CLUSTER_IP, "1"),
    (Local, Cluster, "pod", NODE_PORT, "1 2 masqueraded"),
    (Local, Cluster, "pod", BALANCER, "1 2 masqueraded"),
    (Local, Cluster, "node", CLUSTER_IP, "1 masqueraded"),
    (Local, Cluster, "node", NODE_PORT, "1 2 masqueraded"),
    (Local, Cluster, "node", BALANCER, "1 2 masqueraded"),
    (Local, Cluster, "outside", CLUSTER_IP, "1 masqueraded"),
    (Local, Cluster, "outside", NODE_PORT, "1 2 masqueraded"),
    (Local, Cluster, "outside", BALANCER, "1 2 masqueraded"),

    (Local, Local, "pod", CLUSTER_IP, "1"),
    (Local, Local, "pod", NODE_PORT, "1 2"),
    (Local, Local, "pod", BALANCER, "1 2"),
    (Local, Local, "node", CLUSTER_IP, "1 masqueraded"),
    (Local, Local, "node", NODE_PORT, "1 2 masqueraded"),
    (Local, Local, "node", BALANCER, "1 2 masqueraded"),
    (Local, Local, "outside", CLUSTER_IP, "1 masqueraded"),
    (Local, Local, "outside", NODE_PORT, "1"),
    (Local, Local, "outside", BALANCER, "1"),
];

/// S-06.
#[test]
fn policies_and_clients_decide_endpoints_and_source() {
    for family in FAMILIES {
        for (internal, external, from, to, expected) in ROWS {
            let scenario = Scenario::new(family, &["1 here ready", "2 there ready"]);
            let scenario = scenario.with(internal, external);
            let what = format!("{family}, internal {internal:?}, external {external:?}");
            assert_eq!(scenario.ask(from, to), expected, "{what}: {from} to {to}");
        }
    }
}

/// `masquerade_all` changes what pods send to ClusterIPs, and nothing else.
#[test]
fn masquerade_all_is_for_pods_at_cluster_ips() {
    for family in FAMILIES {
        for (internal, external, from, to, expected) in ROWS {
            let mut scenario = Scenario::new(family, &["1 here ready", "2 there ready"]);
            scenario = scenario.with(internal, external);
            scenario.config.masquerade_all = true;
            let expected = match (from, to) {
                ("pod", CLUSTER_IP) => format!("{expected} masqueraded"),
                _ => expected.to_owned(),
            };
            let what = format!("{family}, internal {internal:?}, external {external:?}");
            assert_eq!(scenario.ask(from, to), expected, "{what}: {from} to {to}");
        }
    }
}

/// Another node's pod is no pod of this node; S-01: an endpoint that reaches itself.
#[test]
fn pods_elsewhere_are_strangers_and_pods_reach_themselves() {
    #[rustfmt::skip]
    let rows: [Row; 9] = [
        (Cluster, Cluster, "pod elsewhere", CLUSTER_IP, "1 2 masqueraded"),
        (Local, Cluster, "pod elsewhere", CLUSTER_IP, "1 masqueraded"),
        (Cluster, Local, "pod elsewhere", NODE_PORT, "1"),
        (Cluster, Local, "other node", BALANCER, "1"),
        (Cluster, Cluster, "1", CLUSTER_IP, "1 2 hairpin"),
        (Local, Cluster, "1", CLUSTER_IP, "1 hairpin"),
        (Cluster, Cluster, "1", BALANCER, "1 2 masqueraded"),
        (Cluster, Local, "1", BALANCER, "1 2 hairpin"),
        (Cluster, Local, "1", NODE_PORT, "1 2 hairpin"),
    ];
    for family in FAMILIES {
        for (internal, external, from, to, expected) in rows {
            let scenario = Scenario::new(family, &["1 here ready", "2 there ready"]);
            let scenario = scenario.with(internal, external);
            assert_eq!(scenario.ask(from, to), expected, "{family} {from} to {to}");
        }
    }
}
