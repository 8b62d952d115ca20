//! policy/v1: PodDisruptionBudget.

use serde_json::{Value, json as tree};

use super::apps::{validate_label_selector, validate_share};
use crate::json;
use crate::resource::{Resource, Subresource};
use crate::table::Column;
use crate::validate::{FieldErrors, one_of};

/// policy/v1 PodDisruptionBudget.
pub(crate) static POD_DISRUPTION_BUDGET: Resource = Resource {
    group: "policy",
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
    singular: "poddisruptionbudget",
    short_names: &["pdb"],
    subresources: &[Subresource::Status],
    storage: "poddisruptionbudgets.policy",
    has_generation: true,
    columns: &[
        Column::NAME,
        Column::text("Min Available", |value, _| limit(value, "minAvailable").into()),
        Column::text("Max Unavailable", |value, _| limit(value, "maxUnavailable").into()),
        Column::integer("Allowed Disruptions", |value, _| {
            json::integer(value, "/status/disruptionsAllowed").unwrap_or(0).into()
        }),
        Column::AGE,
    ],
    prepare_create: |value| {
        let zero = tree!({
            "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0,
        });
        json::set(value, "/status", zero);
    },
    validate,
    ..Resource::BASE
};

fn limit(value: &Value, name: &str) -> String {
    match json::at(value, &format!("/spec/{name}")) {
        None => "N/A".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(number) => number.to_string(),
    }
}

fn validate(value: &Value, _: Option<&Value>, errors: &mut FieldErrors) {
    let minimum = json::at(value, "/spec/minAvailable");
    let maximum = json::at(value, "/spec/maxUnavailable");
    if minimum.is_some() && maximum.is_some() {
        let spec = json::at(value, "/spec").cloned().unwrap_or_default();
        errors.invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set");
    }
    for (name, given) in [("minAvailable", minimum), ("maxUnavailable", maximum)] {
        validate_share(&format!("spec.{name}"), given, true, errors);
    }
    validate_label_selector("spec.selector", json::at(value, "/spec/selector"), errors);
    let policy = json::at(value, "/spec/unhealthyPodEvictionPolicy");
    let supported = ["AlwaysAllow", "IfHealthyBudget"];
    one_of(errors, "spec.unhealthyPodEvictionPolicy", policy, &supported);
}
