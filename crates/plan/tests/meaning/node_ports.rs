//! At which addresses of the node its ports are open: kube-proxy's table of node ports.

use model::Family;

use super::scenario::{FAMILIES, Scenario};

/// S-03.
#[test]
fn node_ports_are_open_at_the_configured_addresses() {
    const OPEN: &str = "1 masqueraded";
    // Ranges of both families; at the node's first, second and loopback address.
    let rows: [(&str, &[&str], [&str; 2]); 7] = [
        ("no range", &[], [OPEN, OPEN]),
        ("the first", &["172.30.0.0/24", "fd00:30::/64"], [OPEN, "nothing"]),
        ("the second", &["192.168.0.0/16", "fd00:77::/64"], ["nothing", OPEN]),
        ("one address", &["192.168.7.2/32", "fd00:77::2/128"], ["nothing", OPEN]),
        ("all", &["0.0.0.0/0", "::/0"], [OPEN, OPEN]),
        ("loopback", &["127.0.0.0/8", "::1/128"], ["nothing", "nothing"]),
        ("none of ours", &["203.0.113.0/24", "2001:db8::/32"], ["nothing", "nothing"]),
    ];
    for family in FAMILIES {
        for (what, ranges, at) in rows {
            let mut scenario = Scenario::new(family, &["1 here ready"]);
            scenario.config.node_port_addresses =
                ranges.iter().map(|range| range.parse().expect("a range")).collect();
            for (word, expected) in ["node:30080", "node's second:30080"].iter().zip(at) {
                assert_eq!(scenario.ask("outside", word), expected, "{family} {what}: {word}");
            }
            assert_eq!(scenario.ask("node", "loopback:30080"), "nothing", "{family} {what}");
            assert_eq!(scenario.ask("outside", "loopback:30080"), "drop", "{family} {what}");
            assert_eq!(scenario.ask("node", "other node:30080"), "nothing", "{family} {what}");
        }
        // Ranges of the other family alone leave this one closed.
        let mut scenario = Scenario::new(family, &["1 here ready"]);
        let other = if family == Family::V4 { "::/0" } else { "0.0.0.0/0" };
        scenario.config.node_port_addresses = vec![other.parse().expect("a range")];
        assert_eq!(scenario.ask("outside", "node:30080"), "nothing", "{family}");
    }
}

/// An external address may be the node's own; its ports come before node ports.
#[test]
fn external_ports_come_before_node_ports_at_the_nodes_address() {
    for family in FAMILIES {
        let mut scenario = Scenario::new(family, &["1 here ready"]);
        let node = scenario.address("node").to_string();
        scenario.service.status.load_balancer.ingress[0].ip = node;
        let second =
            model::kinds::ServicePort { name: "second".into(), port: 30080, ..Default::default() };
        scenario.service.spec.ports.push(second);
        assert_eq!(scenario.ask("outside", "node:80"), "1 masqueraded", "{family}");
        assert_eq!(scenario.ask("outside", "node:30080"), "reject", "{family}: no such endpoints");
        assert_eq!(scenario.ask("outside", "node's second:30080"), "1 masqueraded", "{family}");
    }
}
