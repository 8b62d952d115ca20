//! Services of two families (S-14): each has endpoints of its own.

use std::sync::Arc;

use model::Family::{self, V4, V6};
use model::kinds::LoadBalancerIngress;
use model::kinds::TrafficPolicy::{Cluster, Local};
use model::world::Object;

use super::scenario::{Scenario, address};

/// A Service with the given families in this order, its slices of both, asked about `asked`.
fn of_families(families: &[Family], asked: Family) -> Scenario {
    let mut scenario = Scenario::new(V4, &["1 here ready", "2 there ready"]);
    let mut six = Scenario::new(V6, &["3 here ready", "4 there leaving"]).slice;
    six.metadata.name = "web-6".into();
    scenario.also = vec![Object::EndpointSlice(Arc::new(six))];
    scenario.service.spec.cluster_ips =
        families.iter().map(|&family| address(family, "cluster IP").to_string()).collect();
    // Load balancers may have both, whatever the Service has.
    scenario.service.status.load_balancer.ingress = [V4, V6]
        .map(|family| address(family, "balancer").to_string())
        .map(|ip| LoadBalancerIngress { ip, ip_mode: None })
        .into();
    scenario.service.spec.health_check_node_port = 32_100;
    Scenario { family: asked, ..scenario }
}

#[test]
fn each_family_of_a_service_has_its_own_endpoints() {
    let both = [&[V4, V6][..], &[V6, V4]];
    let rows = [("cluster IP:80", "1 2", "3"), ("node:30080", "1", "3"), ("balancer:80", "1", "3")];
    for families in both {
        for (to, four, six) in rows {
            for (family, expected) in [(V4, four), (V6, six)] {
                let scenario = of_families(families, family).with(Cluster, Local);
                let from = if to == "cluster IP:80" { "pod" } else { "outside" };
                assert_eq!(scenario.ask(from, to), expected, "{families:?} {family} {to}");
            }
        }
        let plan = of_families(families, V4).with(Cluster, Local).plan().0.expect("a plan");
        let check = plan.health_check.expect("a health check");
        assert_eq!(check.local_endpoints, 1, "a pod of two families is one endpoint");
    }
}

/// A family that the Service does not have is nobody's, though slices of it are still there: the
/// Service was downgraded.
#[test]
fn a_family_that_a_service_lost_is_nobodys() {
    for (own, other) in [(V4, V6), (V6, V4)] {
        for to in ["node:30080", "balancer:80"] {
            let lost = of_families(&[own], other);
            assert_eq!(lost.ask("outside", to), "nothing", "{own} alone: {other} {to}");
            let kept = of_families(&[own], own);
            assert!(kept.ask("outside", to).ends_with("masqueraded"), "{own} alone: {to}");
        }
        assert_eq!(of_families(&[own], other).ask("pod", "cluster IP:80"), "drop", "{other}");
    }
}
