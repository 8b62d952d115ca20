//! Containers that are added to a running pod to look into it (KEP-277): only additions, and nothing
//! that the pod's own life would have to wait for.

use serde_json::{Value, json as tree};

use super::pod_spec;
use crate::json;
use crate::validate::FieldErrors;

/// What a container of this kind cannot have.
const FORBIDDEN: [&str; 6] =
    ["lifecycle", "livenessProbe", "ports", "readinessProbe", "resources", "startupProbe"];

/// Checks the containers that a pod has now against those that it had.
pub(crate) fn validate(pod: &Value, old: &Value, errors: &mut FieldErrors) {
    const FIELD: &str = "spec.ephemeralContainers";
    let list = "/spec/ephemeralContainers";
    let (now, before) = (json::items(pod, list), json::items(old, list));
    for known in before {
        let name = json::text(known, "/name");
        let what = match now.iter().find(|one| json::text(one, "/name") == name) {
            Some(one) if one == known => continue,
            Some(_) => "changed",
            None => "removed",
        };
        let why = format!("existing ephemeral containers {name:?} may not be {what}\n");
        errors.forbidden(FIELD, &why);
    }
    let names = |list: &str| json::items(pod, list).iter().map(|one| json::text(one, "/name"));
    let own: Vec<&str> = names("/spec/initContainers").chain(names("/spec/containers")).collect();
    let spec = json::at(pod, "/spec").unwrap_or(&Value::Null);
    let volumes = pod_spec::validate_volumes("spec", spec, &mut FieldErrors::default());
    for (index, added) in now.iter().enumerate() {
        let field = format!("{FIELD}[{index}]");
        pod_spec::validate_container(&field, added, &volumes, errors);
        let name = json::text(added, "/name");
        let is_taken = own.contains(&name)
            || now[..index].iter().any(|other| json::text(other, "/name") == name);
        if is_taken && !name.is_empty() {
            errors.duplicate(format!("{field}.name"), name);
        }
        let target = json::text(added, "/targetContainerName");
        if !target.is_empty() && !own.contains(&target) {
            errors.not_found(format!("{field}.targetContainerName"), target);
        }
        for name in FORBIDDEN {
            if added.get(name).is_some_and(|value| *value != tree!({}) && *value != tree!([])) {
                let why = "cannot be set for an Ephemeral Container";
                errors.forbidden(format!("{field}.{name}"), why);
            }
        }
    }
}

/// The pod that a client means that knows this part as a kind of its own, as those before 1.22 do:
/// what it does not name stays, since it was never shown what is there.
pub(crate) fn with_additions(pod: &Value, additions: &Value) -> Value {
    let mut pod = pod.clone();
    let mut all = json::items(&pod, "/spec/ephemeralContainers").to_vec();
    for added in json::items(additions, "/ephemeralContainers") {
        let name = json::text(added, "/name");
        if all.iter().all(|known| json::text(known, "/name") != name) {
            all.push(added.clone());
        }
    }
    json::set(&mut pod, "/spec/ephemeralContainers", all);
    pod
}
