//! Ranges of Service addresses (ServiceCIDR, KEP-1880): a range that is being deleted stays as
//! long as addresses of it are in use that no other range holds.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::json;

use crate::conditions;
use crate::controller::Input;
use crate::kind::{Kind, ObjectKey};
use crate::object::{Condition, Object, ServiceCidr};
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step, list_or_null};

/// Holds the object until its addresses are free.
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    let Some(object) = change.latest() else { return };
    match object.kind {
        Kind::ServiceCidr => {
            // Another range may hold this one's addresses, or no longer.
            keys.insert(object.key());
            keys.extend(going(snapshot));
        }
        Kind::IpAddress => keys.extend(going(snapshot)),
        _ => {}
    }
}

fn going(snapshot: &Snapshot) -> impl Iterator<Item = ObjectKey> {
    let all = snapshot.all(Kind::ServiceCidr);
    all.filter(|object| object.is_terminating()).map(|object| object.key())
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    let Some(object) = snapshot.get(Kind::ServiceCidr, &key.name) else { return outcome };
    let Some(view) = object.service_cidr() else { return outcome };
    if !object.is_terminating() {
        if !object.has_finalizer(FINALIZER) {
            let mut finalizers = object.meta.finalizers.clone();
            finalizers.push(FINALIZER.to_owned());
            let body = json!({"metadata": {"finalizers": finalizers}});
            outcome.push(Step::quiet(object.patch_unchanged(body)));
        }
        let message = "Kubernetes Service CIDR is ready".to_owned();
        let ready = conditions::new("Ready", true, "", message, input.now);
        set_ready(object, view, ready, &mut outcome);
    } else if object.has_finalizer(FINALIZER) {
        if is_in_use(object, view, snapshot) {
            let message = "There are still IPAddresses referencing the ServiceCIDR, please remove \
                           them or create a new ServiceCIDR"
                .to_owned();
            let ready = conditions::new("Ready", false, "Terminating", message, input.now);
            set_ready(object, view, ready, &mut outcome);
        } else {
            let mut finalizers = object.meta.finalizers.clone();
            finalizers.retain(|name| name != FINALIZER);
            let body = json!({"metadata": {"finalizers": list_or_null(&finalizers)}});
            outcome.push(Step::quiet(object.patch_unchanged(body)));
        }
    }
    outcome
}

fn set_ready(object: &Object, view: &ServiceCidr, ready: Condition, outcome: &mut Outcome) {
    let mut wanted = view.status.conditions.clone();
    conditions::set(&mut wanted, ready);
    if wanted != view.status.conditions {
        outcome.push(Step::quiet(object.patch_status(json!({"conditions": wanted}))));
    }
}

/// Whether an address of these ranges is in use that no other range, which stays, holds as well.
fn is_in_use(object: &Object, view: &ServiceCidr, snapshot: &Snapshot) -> bool {
    let others: Vec<IpNet> = snapshot
        .all(Kind::ServiceCidr)
        .filter(|other| other.meta.name != object.meta.name && !other.is_terminating())
        .filter_map(|other| other.service_cidr())
        .flat_map(ranges)
        .collect();
    let own: Vec<IpNet> = ranges(view).collect();
    snapshot.all(Kind::IpAddress).any(|address: &Arc<Object>| {
        let parsed = address.meta.name.parse::<IpAddr>();
        parsed.is_ok_and(|address| {
            own.iter().any(|range| range.contains(&address))
                && !others.iter().any(|range| range.contains(&address))
        })
    })
}

fn ranges(view: &ServiceCidr) -> impl Iterator<Item = IpNet> {
    view.spec.cidrs.iter().filter_map(|text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::fixtures::{key, snapshot, with_input, writes};

    fn range(name: &str, cidr: &str, terminating: bool) -> (Kind, Value) {
        let mut value = json!({
            "metadata": {"name": name, "finalizers": [FINALIZER]},
            "spec": {"cidrs": [cidr]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        if terminating {
            value["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
        }
        (Kind::ServiceCidr, value)
    }

    fn address(name: &str) -> (Kind, Value) {
        (Kind::IpAddress, json!({"metadata": {"name": name}}))
    }

    fn reconcile(objects: Vec<(Kind, Value)>) -> Vec<(String, Value)> {
        let snapshot = snapshot(objects);
        with_input(None, |input| {
            writes(&super::reconcile(&key(Kind::ServiceCidr, "r"), &snapshot, input))
        })
    }

    #[test]
    fn a_new_range_is_held_and_ready() {
        let (kind, mut value) = range("r", "10.97.0.0/24", false);
        assert!(reconcile(vec![(kind, value.clone())]).is_empty());
        value["metadata"]["finalizers"] = json!(["example.org/hold"]);
        value["status"] = json!({});
        let writes = reconcile(vec![(kind, value)]);
        let finalizers = json!({"metadata": {"finalizers": ["example.org/hold", FINALIZER]}});
        assert_eq!(writes[0].1, finalizers);
        let ready = &writes[1].1["status"]["conditions"][0];
        assert_eq!((&ready["type"], &ready["status"]), (&json!("Ready"), &json!("True")));
    }

    #[test]
    fn a_range_goes_when_none_of_its_addresses_depends_on_it() {
        let going = || range("r", "10.97.0.0/24", true);
        let inside = || address("10.97.0.5");
        for (case, objects, goes) in [
            ("nothing in use", vec![going()], true),
            ("an address of its own", vec![going(), inside()], false),
            ("an address of elsewhere", vec![going(), address("10.98.0.5")], true),
            (
                "a wider range holds the address",
                vec![going(), inside(), range("wide", "10.97.0.0/16", false)],
                true,
            ),
            (
                "the wider range goes as well",
                vec![going(), inside(), range("wide", "10.97.0.0/16", true)],
                false,
            ),
        ] {
            let writes = reconcile(objects);
            assert_eq!(writes.len(), 1, "{case}: {writes:?}");
            if goes {
                assert_eq!(writes[0].1, json!({"metadata": {"finalizers": null}}), "{case}");
            } else {
                let ready = &writes[0].1["status"]["conditions"][0];
                assert_eq!(
                    (&ready["status"], &ready["reason"]),
                    (&json!("False"), &json!("Terminating")),
                    "{case}"
                );
            }
        }
    }
}
