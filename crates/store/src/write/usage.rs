//! What an object takes of the quotas of its namespace.
//!
//! Source: kubernetes.io, "Resource Quotas".

use model::Quantity;
use serde_json::Value;

use crate::kinds::limits::{Amounts, amounts};
use crate::kinds::quota::count;
use crate::{Resource, json};

use super::limits::of_pod;

/// Kinds that have a name of their own beside `count/…`.
const NAMED: [&str; 4] = ["configmaps", "replicationcontrollers", "resourcequotas", "secrets"];
/// What pods ask for and may be counted under its plain name too.
const PLAIN: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];

/// Whether objects of a resource are counted at all: Events come and go by themselves.
pub(super) fn is_counted(resource: &Resource) -> bool {
    resource.namespaced && resource.plural != "events"
}

/// The name under which objects are counted, whatever they are.
pub(super) fn count_name(resource: &Resource) -> String {
    format!("count/{}", resource.group_resource())
}

/// Whether more than the number of objects is counted, or the number under a name of its own.
pub(super) fn has_names(resource: &Resource) -> bool {
    resource.group.is_empty()
        && (NAMED.contains(&resource.plural)
            || matches!(resource.plural, "pods" | "services" | "persistentvolumeclaims"))
}

/// All that an object takes, under every name that a quota may limit.
pub(super) fn usage(resource: &Resource, value: &Value) -> Amounts {
    let mut used = Amounts::from([(count_name(resource), Quantity::ONE)]);
    match resource.plural {
        _ if !has_names(resource) => {}
        "pods" => add_pod(value, &mut used),
        "services" => add_service(value, &mut used),
        "persistentvolumeclaims" => add_claim(value, &mut used),
        plural => {
            used.insert(plural.to_owned(), Quantity::ONE);
        }
    }
    used
}

/// A pod that has ended takes nothing but its place among the objects.
fn add_pod(pod: &Value, used: &mut Amounts) {
    if matches!(json::text(pod, "/status/phase"), "Succeeded" | "Failed") {
        return;
    }
    used.insert("pods".to_owned(), Quantity::ONE);
    let overhead = amounts(pod, "/spec/overhead");
    for side in ["requests", "limits"] {
        let mut asked = of_pod(pod, side);
        for (name, amount) in &overhead {
            // What nobody limits stays without a limit.
            if side == "requests" || asked.contains_key(name) {
                let sum = asked.get(name).copied().unwrap_or_default() + *amount;
                asked.insert(name.clone(), sum);
            }
        }
        for (name, amount) in asked {
            let has_plain = PLAIN.contains(&name.as_str()) || name.starts_with("hugepages-");
            if side == "requests" && has_plain {
                used.insert(name.clone(), amount);
            }
            used.insert(format!("{side}.{name}"), amount);
        }
    }
}

fn add_service(service: &Value, used: &mut Amounts) {
    used.insert("services".to_owned(), Quantity::ONE);
    let ports = json::items(service, "/spec/ports");
    let kind = json::text(service, "/spec/type");
    let allocates = json::at(service, "/spec/allocateLoadBalancerNodePorts");
    let has_number = |port: &&Value| json::integer(port, "/nodePort").unwrap_or(0) != 0;
    let node_ports = match kind {
        "LoadBalancer" if allocates == Some(&Value::Bool(false)) => {
            ports.iter().filter(has_number).count()
        }
        "LoadBalancer" | "NodePort" => ports.len(),
        _ => 0,
    };
    used.insert("services.nodeports".to_owned(), count(node_ports));
    let balancers = usize::from(kind == "LoadBalancer");
    used.insert("services.loadbalancers".to_owned(), count(balancers));
}

fn add_claim(claim: &Value, used: &mut Amounts) {
    let asked = amounts(claim, "/spec/resources/requests");
    let storage = asked.get("storage").copied().unwrap_or_default();
    let all = [("persistentvolumeclaims", Quantity::ONE), ("requests.storage", storage)];
    let class = json::text(claim, "/spec/storageClassName");
    for (name, amount) in all {
        used.insert(name.to_owned(), amount);
        if !class.is_empty() {
            used.insert(format!("{class}.storageclass.storage.k8s.io/{name}"), amount);
        }
    }
}
