//! Services with ranges of ports by annotation (kubernetes/kubernetes#23864).

use model::Protocol::{self, Sctp, Tcp, Udp};
use model::kinds::{PORT_RANGES_ANNOTATION, TrafficPolicy};

use super::scenario::{FAMILIES, Scenario};

fn ranged(family: model::Family, annotation: &str) -> Scenario {
    let mut scenario = Scenario::new(family, &["1 here ready", "2 there ready"]);
    let annotations = &mut scenario.service.metadata.annotations;
    annotations.insert(PORT_RANGES_ANNOTATION.into(), annotation.into());
    scenario
}

/// Ports of a range keep their number; the listed ports keep their own way; node ports are not
/// ranged.
#[test]
fn ports_of_ranges_lead_to_the_same_port_of_endpoints() {
    #[rustfmt::skip]
    let rows: [(&str, Protocol, &str, &str, &str); 17] = [
        ("udp:5000-5010", Udp, "pod", "cluster IP:5000", "1:5000 2:5000"),
        ("udp:5000-5010", Udp, "node", "cluster IP:5010", "1:5010 2:5010 masqueraded"),
        ("udp:5000-5010", Udp, "pod", "cluster IP:5011", "reject"),
        ("udp:5000-5010", Tcp, "pod", "cluster IP:5005", "reject"),
        ("udp:5000-5010", Udp, "outside", "balancer:5005", "1:5005 2:5005 masqueraded"),
        ("udp:5000-5010", Udp, "outside", "balancer:4999", "nothing"),
        ("udp:5000-5010", Udp, "outside", "node:5005", "nothing"),
        ("tcp:1-100", Tcp, "pod", "cluster IP:80", "1 2"),
        ("tcp:1-100", Tcp, "pod", "cluster IP:79", "1:79 2:79"),
        ("tcp:1-100", Tcp, "pod", "balancer:80", "1 2 masqueraded"),
        ("all", Tcp, "pod", "cluster IP:80", "1 2"),
        ("all", Tcp, "pod", "cluster IP:65535", "1:65535 2:65535"),
        ("all", Udp, "pod", "cluster IP:80", "1:80 2:80"),
        ("all", Sctp, "pod", "balancer:1", "1:1 2:1 masqueraded"),
        ("all", Tcp, "outside", "node:22", "nothing"),
        ("all", Tcp, "outside", "node:30080", "1 2 masqueraded"),
        ("udp:5000-4000", Udp, "pod", "cluster IP:5000", "reject"),
    ];
    for family in FAMILIES {
        for (annotation, protocol, from, to, expected) in rows {
            let scenario = ranged(family, annotation);
            let got = scenario.ask_by(protocol, from, to);
            assert_eq!(got, expected, "{family} {annotation}: {protocol} {from} to {to}");
        }
    }
}

/// All-ports Services follow policies and source ranges; slices need not name the ports.
#[test]
fn ranges_follow_policies_and_source_ranges() {
    for family in FAMILIES {
        let mut scenario = ranged(family, "all");
        scenario = scenario.with(TrafficPolicy::Local, TrafficPolicy::Local);
        scenario.slice.ports.clear();
        assert_eq!(scenario.ask("pod", "cluster IP:7"), "1:7", "{family}");
        assert_eq!(scenario.ask("outside", "balancer:7"), "1:7", "{family}");
        assert_eq!(scenario.ask("pod", "balancer:7"), "1:7 2:7", "{family}");
        assert_eq!(scenario.ask("pod", "cluster IP:80"), "reject", "{family}: listed, unnamed");
        let only_node = scenario.address("node").to_string();
        let bits = if only_node.contains(':') { 128 } else { 32 };
        scenario.service.spec.load_balancer_source_ranges = vec![format!("{only_node}/{bits}")];
        assert_eq!(scenario.ask("outside", "balancer:7"), "drop", "{family}");
        assert_eq!(scenario.ask("node", "balancer:7"), "1:7 2:7 masqueraded", "{family}");
        scenario.slice.endpoints.clear();
        assert_eq!(scenario.ask("pod", "cluster IP:7"), "reject", "{family}");
    }
}

/// A range at a node's own address would take its ssh and its tunnels.
#[test]
fn ranges_leave_the_nodes_own_addresses_alone() {
    for family in FAMILIES {
        for word in ["node", "node's second", "other node"] {
            let mut scenario = ranged(family, "all");
            let ip = scenario.address(word).to_string();
            scenario.service.status.load_balancer.ingress[0].ip = ip;
            assert_eq!(scenario.ask("pod", &format!("{word}:22")), "nothing", "{family} {word}");
            let expected = "1 2 masqueraded";
            assert_eq!(scenario.ask("pod", &format!("{word}:80")), expected, "{family} {word}");
            let (_, findings) = scenario.plan();
            assert_eq!(findings.len(), 1, "{family} {word}: {findings:?}");
            assert!(findings[0].message.contains("a node's own address"), "{findings:?}");
        }
    }
}

/// Backends need no order between their look-ups.
#[test]
fn ranges_and_ports_are_disjoint() {
    for family in FAMILIES {
        let scenario = ranged(family, "tcp:1-100,tcp:50-200,udp:80,all-is-no-item");
        let (plan, findings) = scenario.plan();
        assert!(plan.expect("a plan").ranges.is_empty(), "{family}: a bad text asks for nothing");
        assert_eq!(findings.len(), 1, "{findings:?}");
        let scenario = ranged(family, "tcp:1-100,tcp:50-200,udp:80");
        let plan = scenario.plan().0.expect("a plan");
        let mut seen = Vec::new();
        for range in plan.ranges.keys() {
            seen.push((range.address, range.protocol, range.first, range.last));
        }
        let address = scenario.address("cluster IP");
        seen.retain(|(own, ..)| *own == address);
        let expected = [(address, Tcp, 1, 79), (address, Tcp, 81, 200), (address, Udp, 80, 80)];
        assert_eq!(seen, expected, "{family}");
    }
}
