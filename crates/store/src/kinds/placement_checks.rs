//! Checks of where a pod wants to run: affinity and spread.

use serde_json::Value;

use super::apps::validate_label_selector;
use crate::json;
use crate::validate::{FieldErrors, one_of};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Checks affinity and spread of a pod spec that stands at `field`.
pub(super) fn validate(field: &str, spec: &Value, errors: &mut FieldErrors) {
    if let Some(affinity) = json::at(spec, "/affinity/nodeAffinity") {
        validate_node_affinity(&format!("{field}.affinity.nodeAffinity"), affinity, errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        if let Some(affinity) = json::at(spec, &format!("/affinity/{kind}")) {
            validate_pod_affinity(&format!("{field}.affinity.{kind}"), affinity, errors);
        }
    }
    let constraints = json::items(spec, "/topologySpreadConstraints");
    for (index, constraint) in constraints.iter().enumerate() {
        validate_spread(&format!("{field}.topologySpreadConstraints[{index}]"), constraint, errors);
    }
}

fn validate_node_affinity(field: &str, affinity: &Value, errors: &mut FieldErrors) {
    if let Some(required) = json::at(affinity, &format!("/{REQUIRED}")) {
        let field = format!("{field}.{REQUIRED}.nodeSelectorTerms");
        let terms = json::items(required, "/nodeSelectorTerms");
        if terms.is_empty() {
            errors.required(field.as_str(), "must have at least one node selector term");
        }
        for (index, term) in terms.iter().enumerate() {
            validate_node_term(&format!("{field}[{index}]"), term, errors);
        }
    }
    for (index, preferred) in json::items(affinity, &format!("/{PREFERRED}")).iter().enumerate() {
        let field = format!("{field}.{PREFERRED}[{index}]");
        validate_weight(&field, preferred, errors);
        if let Some(term) = json::at(preferred, "/preference") {
            validate_node_term(&format!("{field}.preference"), term, errors);
        }
    }
}

fn validate_node_term(field: &str, term: &Value, errors: &mut FieldErrors) {
    for list in ["matchExpressions", "matchFields"] {
        for (index, expression) in json::items(term, &format!("/{list}")).iter().enumerate() {
            let field = format!("{field}.{list}[{index}]");
            let values = json::items(expression, "/values").len();
            let place = format!("{field}.values");
            match json::text(expression, "/operator") {
                "In" | "NotIn" if values == 0 => {
                    errors.required(place, "must be specified when `operator` is 'In' or 'NotIn'");
                }
                "Exists" | "DoesNotExist" if values > 0 => {
                    let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.forbidden(place, why);
                }
                "Gt" | "Lt" if values != 1 => {
                    let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                    errors.required(place, why);
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
                other => {
                    let why = "not a valid selector operator";
                    errors.invalid(format!("{field}.operator"), other, why);
                }
            }
        }
    }
}

fn validate_pod_affinity(field: &str, affinity: &Value, errors: &mut FieldErrors) {
    for (index, term) in json::items(affinity, &format!("/{REQUIRED}")).iter().enumerate() {
        validate_pod_term(&format!("{field}.{REQUIRED}[{index}]"), term, errors);
    }
    for (index, preferred) in json::items(affinity, &format!("/{PREFERRED}")).iter().enumerate() {
        let field = format!("{field}.{PREFERRED}[{index}]");
        validate_weight(&field, preferred, errors);
        if let Some(term) = json::at(preferred, "/podAffinityTerm") {
            validate_pod_term(&format!("{field}.podAffinityTerm"), term, errors);
        }
    }
}

fn validate_pod_term(field: &str, term: &Value, errors: &mut FieldErrors) {
    for selector in ["labelSelector", "namespaceSelector"] {
        if let Some(given) = json::at(term, &format!("/{selector}")) {
            validate_label_selector(&format!("{field}.{selector}"), Some(given), errors);
        }
    }
    if json::text(term, "/topologyKey").is_empty() {
        errors.required(format!("{field}.topologyKey"), "can not be empty");
    }
}

fn validate_weight(field: &str, preferred: &Value, errors: &mut FieldErrors) {
    let weight = json::integer(preferred, "/weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.invalid(format!("{field}.weight"), weight, "must be in the range 1-100");
    }
}

fn validate_spread(field: &str, constraint: &Value, errors: &mut FieldErrors) {
    let skew = json::integer(constraint, "/maxSkew").unwrap_or(0);
    if skew <= 0 {
        errors.invalid(format!("{field}.maxSkew"), skew, "must be greater than zero");
    }
    if json::text(constraint, "/topologyKey").is_empty() {
        errors.required(format!("{field}.topologyKey"), "can not be empty");
    }
    let actions = ["DoNotSchedule", "ScheduleAnyway"];
    let given = constraint.get("whenUnsatisfiable");
    one_of(errors, format!("{field}.whenUnsatisfiable"), given, &actions);
    let minimum = json::integer(constraint, "/minDomains");
    if let Some(domains) = minimum.filter(|domains| *domains <= 0) {
        errors.invalid(format!("{field}.minDomains"), domains, "must be greater than zero");
    }
    if let Some(selector) = json::at(constraint, "/labelSelector") {
        validate_label_selector(&format!("{field}.labelSelector"), Some(selector), errors);
    }
}
