//! Endpoints on their way out, and none at all: KEP-1669 and kube-proxy's tables.

use model::kinds::TrafficPolicy::{Cluster, Local};

use super::scenario::{FAMILIES, Scenario};

/// S-07, S-06: what clients get at a ClusterIP under internal policy Cluster and Local, and from
/// outside at a load balancer under external policy Cluster and Local.
#[test]
fn endpoints_that_leave_are_used_without_ready_ones() {
    #[rustfmt::skip]
    let rows: [(&[&str], [&str; 4]); 18] = [
        (&["1 here ready", "2 here leaving", "3 there ready", "4 there leaving"], ["1 3", "1", "1 3", "1"]),
        (&["1 here leaving", "2 there ready"], ["2", "1", "2", "1"]),
        (&["1 here leaving", "2 there leaving"], ["1 2", "1", "1 2", "1"]),
        (&["1 here leaving"], ["1", "1", "1", "1"]),
        (&["1 there leaving"], ["1", "drop", "1", "drop"]),
        (&["1 here gone", "2 there ready"], ["2", "drop", "2", "drop"]),
        (&["1 here gone", "2 there gone"], ["reject", "reject", "reject", "reject"]),
        (&["1 here gone", "2 here leaving"], ["2", "2", "2", "2"]),
        (&["1 here unready", "2 there leaving"], ["2", "drop", "2", "drop"]),
        (&["1 here unready", "2 there unready"], ["reject", "reject", "reject", "reject"]),
        (&["1 here ready", "2 there gone"], ["1", "1", "1", "1"]),
        (&["1 nowhere leaving", "2 there unready"], ["1", "drop", "1", "drop"]),
        (&["1 here unsaid", "2 there leaving"], ["1", "1", "1", "1"]),
        (&["1 here published", "2 there ready"], ["1 2", "1", "1 2", "1"]),
        (&["1 here leaving zone:b", "2 there leaving zone:a"], ["1 2", "1", "1 2", "1"]),
        (&["1 here serving"], ["reject", "reject", "reject", "reject"]),
        (&["1 here serving", "2 there leaving"], ["2", "drop", "2", "drop"]),
        (&["1 there ready"], ["1", "drop", "1", "drop"]),
    ];
    for family in FAMILIES {
        for (endpoints, expected) in rows {
            let policies =
                [(Cluster, Cluster), (Local, Cluster), (Cluster, Cluster), (Cluster, Local)];
            for (index, ((internal, external), expected)) in
                policies.iter().zip(expected).enumerate()
            {
                let mut scenario = Scenario::new(family, endpoints).with(*internal, *external);
                scenario.zone = Some("a");
                let (from, to) =
                    if index < 2 { ("pod", "cluster IP:80") } else { ("outside", "balancer:80") };
                let got = scenario.ask(from, to);
                let got = got.strip_suffix(" masqueraded").unwrap_or(&got);
                assert_eq!(got, expected, "{family} {endpoints:?}, way {index}");
            }
        }
    }
}

/// S-08: everywhere, for every client, in every policy; S-04 at `externalIPs` too.
#[test]
fn a_service_without_endpoints_refuses_everybody() {
    for family in FAMILIES {
        for policies in [(Cluster, Cluster), (Cluster, Local), (Local, Cluster), (Local, Local)] {
            let mut scenario = Scenario::new(family, &[]).with(policies.0, policies.1);
            scenario.service.spec.external_ips = vec![scenario.address("external IP").to_string()];
            for from in ["pod", "node", "outside"] {
                for to in ["cluster IP:80", "node:30080", "balancer:80", "external IP:80"] {
                    assert_eq!(
                        scenario.ask(from, to),
                        "reject",
                        "{family} {policies:?} {from} {to}"
                    );
                }
            }
        }
    }
}
