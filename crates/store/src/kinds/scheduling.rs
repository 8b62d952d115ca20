//! scheduling.k8s.io: PriorityClass.

use serde_json::Value;

use crate::json;
use crate::resource::Resource;
use crate::table::Column;
use crate::validate::{FieldErrors, immutable};

/// Names with this beginning are the system's.
const SYSTEM_PREFIX: &str = "system-";
/// The classes that every cluster has, with their values.
pub const SYSTEM_PRIORITY_CLASSES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
/// The highest value of any other class.
const MAX_USER_VALUE: i64 = 1_000_000_000;
/// What a class says about preemption.
const POLICIES: [&str; 2] = ["PreemptLowerPriority", "Never"];
/// What it says where nobody says anything.
pub(crate) const DEFAULT_POLICY: &str = "PreemptLowerPriority";

/// scheduling.k8s.io/v1 PriorityClass.
pub(crate) static PRIORITY_CLASS: Resource = Resource {
    group: "scheduling.k8s.io",
    kind: "PriorityClass",
    plural: "priorityclasses",
    singular: "priorityclass",
    short_names: &["pc"],
    namespaced: false,
    storage: "priorityclasses.scheduling.k8s.io",
    has_generation: true,
    columns: &[
        Column::NAME,
        Column::integer("Value", |value, _| number(value).into()),
        Column::boolean("Global-Default", |value, _| json::flag(value, "/globalDefault").into()),
        Column::AGE,
        Column::text("PreemptionPolicy", |value, _| match json::text(value, "/preemptionPolicy") {
            "" => "<unset>".into(),
            policy => policy.into(),
        }),
    ],
    default: |value| {
        json::set_default(value, "/value", 0);
        json::set_default_text(value, "/preemptionPolicy", DEFAULT_POLICY);
    },
    validate,
    ..Resource::BASE
};

/// The priority of a class.
pub(crate) fn number(class: &Value) -> i64 {
    json::integer(class, "/value").unwrap_or(0)
}

/// The value of a class that every cluster has.
pub(crate) fn system_value(name: &str) -> Option<i64> {
    SYSTEM_PRIORITY_CLASSES.iter().find(|(class, _)| *class == name).map(|(_, value)| *value)
}

fn validate(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let name = json::text(value, "/metadata/name");
    let number = number(value);
    if name.starts_with(SYSTEM_PREFIX) {
        let fault = match system_value(name) {
            None => Some(format!("{name} is not a known system priority class")),
            Some(wanted) if wanted != number => {
                Some(format!("value of {name} PriorityClass must be {wanted}"))
            }
            Some(_) if json::flag(value, "/globalDefault") => {
                Some(format!("globalDefault of {name} PriorityClass must be false"))
            }
            Some(_) => None,
        };
        if let Some(fault) = fault {
            let why = format!(
                "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use \
                 only. error: {fault}"
            );
            errors.forbidden("metadata.name", &why);
        }
    } else if number > MAX_USER_VALUE {
        let why = format!("maximum allowed value of a user defined priority is {MAX_USER_VALUE}");
        errors.forbidden("value", &why);
    }
    let policy = json::text(value, "/preemptionPolicy");
    if !POLICIES.contains(&policy) {
        errors.unsupported("preemptionPolicy", policy, &POLICIES);
    }
    let Some(old) = old else { return };
    if number != self::number(old) {
        errors.forbidden("value", "may not be changed in an update.");
    }
    let member = |object| json::at(object, "/preemptionPolicy");
    immutable(errors, "preemptionPolicy", member(value), member(old));
}
