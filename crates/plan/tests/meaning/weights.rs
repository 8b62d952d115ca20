//! Weights of endpoints and other ways to choose them, by annotation.

use model::kinds::{SCHEDULING_ANNOTATION, TrafficPolicy, WEIGHTS_ANNOTATION};
use plan::services::{Frontend, FrontendPlan, Scheduling};

use super::scenario::{FAMILIES, Scenario};

/// Weights, scheduling, endpoints; who gets a pod's packet, and one from outside under Local.
type Row =
    (&'static str, Option<&'static str>, &'static [&'static str], &'static str, &'static str);

fn annotated(scenario: &mut Scenario, weights: Option<&str>, scheduling: Option<&str>) {
    let annotations = &mut scenario.service.metadata.annotations;
    let given = [(WEIGHTS_ANNOTATION, weights), (SCHEDULING_ANNOTATION, scheduling)];
    for (name, text) in given {
        annotations.extend(text.map(|text| (name.to_owned(), text.to_owned())));
    }
}

/// An endpoint of weight 0 gets no new clients, as one that is not ready; hints and health checks
/// see it so too.
#[test]
fn weight_0_takes_an_endpoint_out() {
    #[rustfmt::skip]
    let rows: [Row; 11] = [
        ("web-1=0", None, &["1 here ready", "2 there ready"], "2", "drop"),
        ("web-2=0", None, &["1 here ready", "2 there ready"], "1", "1"),
        ("web-*=0", None, &["1 here ready", "2 there ready"], "reject", "reject"),
        ("web-2=5,web-*=0", None, &["1 here ready", "2 there ready"], "2", "drop"),
        ("web-1=0", None, &["1 here ready", "2 here leaving"], "2", "2"),
        ("web-1=0", None, &["1 here ready zone:a", "2 there ready zone:b"], "2", "drop"),
        ("web-1=0", None, &["1 here ready", "2 there ready zone:b", "3 there ready zone:a"], "3", "drop"),
        ("web-1=0", Some("maglev"), &["1 here ready", "2 there ready"], "1 2", "1"),
        ("web-1=0", Some("fastest"), &["1 here ready", "2 there ready"], "2", "drop"),
        ("web-1", None, &["1 here ready", "2 there ready"], "1 2", "1"),
        ("db=0", None, &["1 here ready", "2 there ready"], "1 2", "1"),
    ];
    for family in FAMILIES {
        for (weights, scheduling, endpoints, everywhere, here) in rows {
            let mut scenario = Scenario::new(family, endpoints);
            scenario = scenario.with(TrafficPolicy::Cluster, TrafficPolicy::Local);
            scenario.zone = Some("a");
            annotated(&mut scenario, Some(weights), scheduling);
            let what = format!("{family} {weights} {scheduling:?} {endpoints:?}");
            assert_eq!(scenario.ask("pod", "cluster IP:80"), everywhere, "{what}");
            assert_eq!(scenario.ask("outside", "balancer:80"), here, "{what}");
        }
    }
}

/// What a backend is asked for, and what the operator is told.
#[test]
fn annotations_say_how_endpoints_are_chosen() {
    let weighted = |frontend: &FrontendPlan| match &frontend.scheduling {
        Scheduling::Weighted(weights) => {
            assert!(frontend.backends.endpoints().all(|endpoint| weights.contains_key(endpoint)));
            format!("{:?}", weights.values().collect::<Vec<_>>())
        }
        other => format!("{other:?}"),
    };
    let rows = [
        (None, None, "Random", 0),
        (None, Some("random"), "Random", 0),
        (None, Some("least-connection"), "LeastConnection", 0),
        (None, Some(" maglev"), "Maglev", 0),
        (None, Some("Maglev"), "Random", 1),
        (Some("web-1=3"), None, "[3, 1]", 0),
        (Some("web-1=3,web-2=3"), None, "Random", 0),
        (Some("web-1=3,web-*=65535"), Some("random"), "[3, 65535]", 0),
        (Some("web-1=65536"), None, "Random", 1),
        (Some("web-1=3"), Some("maglev"), "Maglev", 1),
    ];
    for family in FAMILIES {
        for (weights, scheduling, expected, found) in rows {
            let mut scenario = Scenario::new(family, &["1 here ready", "2 there ready"]);
            annotated(&mut scenario, weights, scheduling);
            let (plan, findings) = scenario.plan();
            let what = format!("{family} {weights:?} {scheduling:?}: {findings:?}");
            for (frontend, planned) in &plan.expect("a plan").frontends {
                assert_eq!(weighted(planned), expected, "{frontend:?} {what}");
            }
            assert_eq!(findings.len(), found, "{what}");
        }
    }
}

/// The weights of a frontend are of its own endpoints: of those from outside too.
#[test]
fn weights_cover_every_endpoint_of_the_frontend() {
    for family in FAMILIES {
        let endpoints = ["1 here leaving", "2 there ready", "3 there ready"];
        let mut scenario = Scenario::new(family, &endpoints);
        scenario = scenario.with(TrafficPolicy::Cluster, TrafficPolicy::Local);
        annotated(&mut scenario, Some("web-2=2,web-3=3,web-1=9"), None);
        let plan = scenario.plan().0.expect("a plan");
        for (frontend, planned) in &plan.frontends {
            let Scheduling::Weighted(weights) = &planned.scheduling else { panic!("{planned:?}") };
            let weights: Vec<u16> = weights.values().copied().collect();
            let is_inside = matches!(frontend, Frontend::ClusterIp { .. });
            let expected: &[u16] = if is_inside { &[2, 3] } else { &[9, 2, 3] };
            assert_eq!(weights, expected, "{family} {frontend:?}");
        }
    }
}
