//! Services and slices that are not for proxies, or for another one.

use model::kinds::{Service, ServiceType};
use plan::services::{HEADLESS_LABEL, SERVICE_PROXY_NAME_LABEL};

use super::scenario::{FAMILIES, Scenario};

/// S-08 (KEP-2447): nothing of such a Service is in the kernel.
#[test]
fn services_of_others_have_no_frontends() {
    type Change = fn(&mut Service);
    let rows: [(&str, Change); 4] = [
        ("headless", |service| service.spec.cluster_ips = vec!["None".into()]),
        ("ExternalName", |service| {
            service.spec.kind = ServiceType::ExternalName;
            service.spec.cluster_ips.clear();
        }),
        ("headless by label", |service| {
            service.metadata.labels.insert(HEADLESS_LABEL.into(), String::new());
        }),
        ("another proxy's", |service| {
            service.metadata.labels.insert(SERVICE_PROXY_NAME_LABEL.into(), "other".into());
        }),
    ];
    for family in FAMILIES {
        for (what, change) in rows {
            let mut scenario = Scenario::new(family, &["1 here ready"]);
            change(&mut scenario.service);
            // Nobody's Service address swallows packets.
            assert_eq!(scenario.ask("pod", "cluster IP:80"), "drop", "{family} {what}");
            assert_eq!(scenario.ask("outside", "node:30080"), "nothing", "{family} {what}");
            assert_eq!(scenario.ask("outside", "balancer:80"), "nothing", "{family} {what}");
        }
    }
}

/// The slice controller copies the Service's labels: a slice with one is no proxy's either.
#[test]
fn slices_of_others_have_no_endpoints() {
    for family in FAMILIES {
        for label in [HEADLESS_LABEL, SERVICE_PROXY_NAME_LABEL] {
            let mut scenario = Scenario::new(family, &["1 here ready"]);
            scenario.slice.metadata.labels.insert(label.into(), String::new());
            assert_eq!(scenario.ask("pod", "cluster IP:80"), "reject", "{family} {label}");
        }
    }
}
