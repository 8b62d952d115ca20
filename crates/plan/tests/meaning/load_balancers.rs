//! Addresses from outside: of load balancers and `externalIPs`.

use model::kinds::{LoadBalancerIngress, ServiceType, TrafficPolicy};
use model::{Family, Protocol};

use super::scenario::{FAMILIES, Scenario};

fn balanced(family: Family) -> Scenario {
    let mut scenario = Scenario::new(family, &["1 here ready", "2 there ready"]);
    let ip = scenario.address("balancer 2").to_string();
    let ingress = LoadBalancerIngress { ip, ip_mode: Some("VIP".into()) };
    scenario.service.status.load_balancer.ingress.push(ingress);
    scenario
}

/// The half of the outside that holds `outside` and not `stranger`.
fn admitted(family: Family) -> &'static str {
    if family == Family::V4 { "203.0.113.0/25" } else { "2001:db8:113::/113" }
}

/// S-04, kube-proxy's table of load balancers: source ranges bind everybody at the load balancer's
/// addresses, and nobody elsewhere.
#[test]
fn source_ranges_are_for_the_load_balancers_addresses() {
    const BOTH: &str = "1 2 masqueraded";
    #[rustfmt::skip]
    let rows: [(&[&str], &str, &str, &str); 18] = [
        (&[], "pod", "cluster IP:80", "1 2"),
        (&[], "outside", "node:30080", BOTH),
        (&[], "stranger", "node:30080", BOTH),
        (&[], "outside", "balancer:80", BOTH),
        (&[], "outside", "balancer 2:80", BOTH),
        (&[], "stranger", "balancer:80", "drop"),
        (&[], "stranger", "balancer 2:80", "drop"),
        (&[], "pod", "balancer:80", "drop"),
        (&[], "pod", "balancer 2:80", "drop"),
        (&[], "node", "balancer:80", "drop"),
        (&["node"], "node", "balancer:80", BOTH),
        (&["node"], "balancer", "balancer:80", BOTH),
        (&[], "balancer", "balancer:80", "drop"),
        (&["pod"], "pod", "balancer:80", BOTH),
        (&["node"], "pod", "balancer:80", "drop"),
        (&["node"], "other node", "balancer 2:80", "drop"),
        (&["other node"], "other node", "balancer 2:80", BOTH),
        (&[], "pod", "external IP:80", BOTH),
    ];
    for family in FAMILIES {
        for (also, from, to, expected) in rows {
            let mut scenario = balanced(family);
            let mut ranges = vec![admitted(family).to_owned()];
            ranges.extend(also.iter().map(|word| {
                let address = scenario.address(word);
                format!(" {address}/{} ", if family == Family::V4 { 32 } else { 128 })
            }));
            scenario.service.spec.external_ips = vec![scenario.address("external IP").to_string()];
            scenario.service.spec.load_balancer_source_ranges = ranges;
            assert_eq!(scenario.ask(from, to), expected, "{family} {also:?}: {from} to {to}");
        }
    }
}

/// Source ranges that leave a family without any, or cannot be read, close the addresses
/// (invariant 7).
#[test]
fn source_ranges_fail_closed() {
    for (ranges, found) in [(&["192.0.2.0/33"][..], 1), (&["2001:db8::/32"], 0), (&["all"], 1)] {
        let mut scenario = balanced(Family::V4);
        scenario.service.spec.load_balancer_source_ranges =
            ranges.iter().map(|range| range.to_string()).collect();
        assert_eq!(scenario.ask("outside", "balancer:80"), "drop", "{ranges:?}");
        assert_eq!(scenario.ask("outside", "node:30080"), "1 2 masqueraded", "{ranges:?}");
        let (_, findings) = scenario.plan();
        assert_eq!(findings.len(), found, "{ranges:?}: {findings:?}");
    }
}

/// S-04: `ipMode: Proxy` leaves packets to the load balancer; the type decides whether the status
/// counts; foreign ports of external addresses are nobody's.
#[test]
fn addresses_count_as_type_and_mode_say() {
    let proxy = |scenario: &mut Scenario| {
        for ingress in &mut scenario.service.status.load_balancer.ingress {
            ingress.ip_mode = Some("Proxy".into());
        }
    };
    let node_port = |scenario: &mut Scenario| scenario.service.spec.kind = ServiceType::NodePort;
    let no_node_port = |scenario: &mut Scenario| scenario.service.spec.ports[0].node_port = 0;
    let named = |scenario: &mut Scenario| {
        scenario.service.status.load_balancer.ingress =
            vec![LoadBalancerIngress { ip: String::new(), ip_mode: None }];
    };
    let same = |_: &mut Scenario| {};
    const BOTH: &str = "1 2 masqueraded";
    type Change<'a> = &'a dyn Fn(&mut Scenario);
    #[rustfmt::skip]
    let rows: [(&str, Change<'_>, &str, &str); 10] = [
        ("as it is", &same, "balancer:80", BOTH),
        ("another port", &same, "balancer:81", "nothing"),
        ("another's address", &same, "nobody's:80", "nothing"),
        ("ipMode Proxy", &proxy, "balancer:80", "nothing"),
        ("ipMode Proxy", &proxy, "node:30080", BOTH),
        ("type NodePort", &node_port, "balancer:80", "nothing"),
        ("type NodePort", &node_port, "node:30080", BOTH),
        ("allocateLoadBalancerNodePorts false", &no_node_port, "balancer:80", BOTH),
        ("allocateLoadBalancerNodePorts false", &no_node_port, "node:30080", "nothing"),
        ("a load balancer with a name", &named, "balancer:80", "nothing"),
    ];
    for family in FAMILIES {
        for (what, change, to, expected) in rows {
            let mut scenario = balanced(family);
            change(&mut scenario);
            assert_eq!(scenario.ask("outside", to), expected, "{family} {what}: {to}");
        }
    }
}

/// S-04, X-06 (CVE-2020-8554): `externalIPs` count within the configured ranges alone, and never
/// take over pods, Services or loopback; statuses neither.
#[test]
fn external_addresses_take_over_nothing() {
    let rows = [
        ("external IP", "1 2 masqueraded", 0),
        ("nobody's", "nothing", 1),
        ("pod elsewhere", "nothing", 1),
        ("loopback", "drop", 1),
        ("node", "1 2 masqueraded", 0),
    ];
    for family in FAMILIES {
        for (word, expected, found) in rows {
            for is_status in [false, true] {
                let mut scenario = Scenario::new(family, &["1 here ready", "2 there ready"]);
                scenario.config.external_ip_ranges.push(scenario.address("node").into());
                let ip = scenario.address(word).to_string();
                // Who writes statuses is trusted with addresses that nobody else has.
                let (expected, found) = match (word, is_status) {
                    ("nobody's", true) => ("1 2 masqueraded", 0),
                    _ => (expected, found),
                };
                if is_status {
                    let ingress = LoadBalancerIngress { ip, ip_mode: None };
                    scenario.service.status.load_balancer.ingress = vec![ingress];
                } else {
                    scenario.service.spec.external_ips = vec![ip];
                }
                let to = format!("{word}:80");
                let what = format!("{family} {to} by status: {is_status}");
                assert_eq!(scenario.ask("outside", &to), expected, "{what}");
                let (_, findings) = scenario.plan();
                assert_eq!(findings.len(), found, "{what}: {findings:?}");
            }
        }
    }
    let mut scenario = Scenario::new(Family::V4, &["1 here ready"]);
    scenario.service.spec.external_ips = vec!["10.96.0.8".into(), "2001:db8:2::80".into()];
    scenario.config.external_ip_ranges.push("10.0.0.0/8".parse().expect("a range"));
    let (plan, findings) = scenario.plan();
    assert_eq!(plan.expect("a plan").frontends.len(), 3, "ClusterIP, load balancer, node port");
    assert!(findings[0].message.contains("range of pods or of Services"), "{findings:?}");
    assert!(findings[1].message.contains("no ClusterIP of that family"), "{findings:?}");
}

/// S-06: the health check counts ready endpoints of this node, and exists under Local alone.
#[test]
fn the_health_check_counts_ready_local_endpoints() {
    let rows: [(&[&str], usize); 6] = [
        (&[], 0),
        (&["1 here ready", "2 there ready", "3 here ready"], 2),
        (&["1 here leaving", "2 there ready"], 0),
        (&["1 here ready", "2 here leaving", "3 here unready"], 1),
        (&["1 here published"], 1),
        (&["1 nowhere ready"], 0),
    ];
    for family in FAMILIES {
        for (endpoints, expected) in rows {
            for (external, exists) in
                [(TrafficPolicy::Local, true), (TrafficPolicy::Cluster, false)]
            {
                let mut scenario = Scenario::new(family, endpoints);
                scenario = scenario.with(TrafficPolicy::Cluster, external);
                scenario.service.spec.health_check_node_port = 32_100;
                let (plan, _) = scenario.plan();
                let check = plan.expect("a plan").health_check;
                let check = check.map(|check| (check.port, check.local_endpoints));
                let expected = exists.then_some((32_100, expected));
                assert_eq!(check, expected, "{family} {external:?} {endpoints:?}");
                let facts = scenario.facts();
                let node = oracle::service::Node { name: &facts.name, addresses: &facts.addresses };
                let meant =
                    oracle::service::health_check(&scenario.world(), node, &scenario.service);
                assert_eq!(meant, expected, "{family} {external:?} {endpoints:?}");
            }
        }
    }
}

/// A ClusterIP answers pings where the cluster wants it, while an endpoint of its family is ready;
/// other addresses of the Service never.
#[test]
fn cluster_ips_answer_pings_with_ready_endpoints() {
    let rows: [(bool, &[&str], bool); 5] = [
        (true, &["1 there ready"], true),
        (true, &["1 there unready", "2 here leaving"], false),
        (true, &[], false),
        (true, &["1 nowhere unsaid"], true),
        (false, &["1 there ready"], false),
    ];
    for family in FAMILIES {
        for (configured, endpoints, expected) in rows {
            let mut scenario = Scenario::new(family, endpoints);
            scenario.config.answer_ping = configured;
            let (plan, _) = scenario.plan();
            let (world, facts) = (scenario.world(), scenario.facts());
            let node = oracle::service::Node { name: &facts.name, addresses: &facts.addresses };
            for (word, expected) in [("cluster IP", expected), ("balancer", false)] {
                let address = scenario.address(word);
                let planned =
                    plan.as_ref().is_some_and(|plan| plan.answers_ping.contains(&address));
                let meant = oracle::service::answers_ping(&world, &scenario.config, node, address);
                let what = format!("{family} {configured} {endpoints:?} {word}");
                assert_eq!((planned, meant), (expected, expected), "{what}");
            }
        }
    }
}

/// S-14, S-10: protocols are apart at every kind of address, SCTP as the others.
#[test]
fn protocols_are_apart() {
    use Protocol::{Sctp, Tcp, Udp};
    for family in FAMILIES {
        for own in [Tcp, Udp, Sctp] {
            let mut scenario = Scenario::new(family, &["1 here ready"]);
            scenario.service.spec.ports[0].protocol = own;
            scenario.slice.ports[0].protocol = own;
            for asked in [Tcp, Udp, Sctp] {
                for (to, otherwise) in [
                    ("cluster IP:80", "reject"),
                    ("balancer:80", "nothing"),
                    ("node:30080", "nothing"),
                ] {
                    let expected = if asked == own { "1 masqueraded" } else { otherwise };
                    let got = scenario.ask_by(asked, "outside", to);
                    assert_eq!(got, expected, "{family} {own}: {asked} to {to}");
                }
            }
        }
    }
}
