//! core/v1: ResourceQuota.

use model::Quantity;
use serde_json::{Value, json as tree};

use super::limits::{Amounts, amounts, quantity};
use crate::json;
use crate::names::qualified_name_faults;
use crate::resource::{Resource, Subresource};
use crate::table::Column;
use crate::validate::{FieldErrors, immutable};

/// core/v1 ResourceQuota. What is used is counted where objects are written (`write::quota`).
pub(crate) static RESOURCE_QUOTA: Resource = Resource {
    kind: "ResourceQuota",
    plural: "resourcequotas",
    singular: "resourcequota",
    short_names: &["quota"],
    subresources: &[Subresource::Status],
    storage: "resourcequotas",
    columns: &[
        Column::NAME,
        Column::text("Request", |value, _| usage(value, false).into()),
        Column::text("Limit", |value, _| usage(value, true).into()),
        Column::AGE,
    ],
    prepare_create: |value| json::set(value, "/status", tree!({})),
    validate,
    ..Resource::BASE
};

/// Names that stand for one kind of objects each.
const COUNTS: [&str; 9] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
/// Other names without a slash.
const AMOUNTS: [&str; 10] = [
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
];
/// What a quota of some pods may limit.
const SCOPED: [&str; 7] =
    ["cpu", "limits.cpu", "limits.memory", "memory", "pods", "requests.cpu", "requests.memory"];
/// The choices of pods.
const SCOPES: [&str; 6] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
];
/// Pairs that choose no pod at all.
const CONFLICTS: [[&str; 2]; 2] =
    [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];

/// One choice of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scope<'a> {
    pub(crate) name: &'a str,
    pub(crate) operator: &'a str,
    pub(crate) values: Vec<&'a str>,
}

/// The scopes of a quota, in either form.
pub(crate) fn scopes(quota: &Value) -> impl Iterator<Item = Scope<'_>> {
    let plain = json::texts(quota, "/spec/scopes").into_iter();
    let plain = plain.map(|name| Scope { name, operator: "Exists", values: Vec::new() });
    let chosen = json::items(quota, "/spec/scopeSelector/matchExpressions").iter();
    plain.chain(chosen.map(|one| Scope {
        name: json::text(one, "/scopeName"),
        operator: json::text(one, "/operator"),
        values: json::texts(one, "/values"),
    }))
}

/// What a column shows: limits of containers have one of their own.
fn usage(quota: &Value, of_limits: bool) -> String {
    let used = amounts(quota, "/status/used");
    let hard: Amounts = amounts(quota, "/status/hard");
    let shown = hard.iter().filter(|(name, _)| name.starts_with("limits.") == of_limits);
    let texts: Vec<String> = shown
        .map(|(name, hard)| {
            format!("{name}: {}/{hard}", used.get(name).copied().unwrap_or_default())
        })
        .collect();
    texts.join(", ")
}

fn validate(value: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    for (name, amount) in json::members(value, "/spec/hard") {
        validate_amount(name, amount, errors);
    }
    validate_scopes(value, errors);
    for (index, one) in
        json::items(value, "/spec/scopeSelector/matchExpressions").iter().enumerate()
    {
        validate_choice(&format!("spec.scopeSelector.matchExpressions[{index}]"), one, errors);
    }
    let Some(old) = old else { return };
    immutable(
        errors,
        "spec.scopes",
        json::at(value, "/spec/scopes"),
        json::at(old, "/spec/scopes"),
    );
}

fn validate_amount(name: &str, amount: &Value, errors: &mut FieldErrors) {
    let field = format!("spec.hard[{name}]");
    for fault in qualified_name_faults(name) {
        errors.invalid(field.as_str(), name, &fault);
    }
    let is_huge = name.starts_with("hugepages-") || name.starts_with("requests.hugepages-");
    let is_count = COUNTS.contains(&name) || name.starts_with("count/");
    if !name.contains('/') && !is_huge && !is_count && !AMOUNTS.contains(&name) {
        errors.invalid(field.as_str(), name, "must be a standard resource for quota");
    }
    match quantity(amount) {
        None => errors.invalid(field, amount.clone(), "must be a quantity"),
        Some(given) if given.is_negative() => {
            errors.invalid(field, amount.clone(), "must be greater than or equal to 0");
        }
        Some(given) if is_count && !given.is_whole() => {
            errors.invalid(field, amount.clone(), "must be an integer");
        }
        Some(_) => {}
    }
}

fn validate_scopes(quota: &Value, errors: &mut FieldErrors) {
    let names: Vec<&str> = scopes(quota).map(|scope| scope.name).collect();
    let hard: Vec<&str> = json::members(quota, "/spec/hard").map(|(name, _)| name).collect();
    let shown = || json::at(quota, "/spec/scopes").cloned().unwrap_or_else(|| tree!(names));
    for name in &names {
        if !SCOPES.contains(name) {
            errors.invalid("spec.scopes", shown(), "unsupported scope");
            continue;
        }
        let limits = |one: &&str| match *name {
            "BestEffort" => *one == "pods",
            _ => SCOPED.contains(one),
        };
        for _ in hard.iter().filter(|one| !limits(one)) {
            errors.invalid("spec.scopes", shown(), "unsupported scope applied to resource");
        }
    }
    for pair in CONFLICTS {
        if pair.iter().all(|one| names.contains(one)) {
            errors.invalid("spec.scopes", shown(), "conflicting scopes");
        }
    }
}

fn validate_choice(field: &str, choice: &Value, errors: &mut FieldErrors) {
    let (name, operator) = (json::text(choice, "/scopeName"), json::text(choice, "/operator"));
    let values = json::texts(choice, "/values");
    if name != "PriorityClass" && operator != "Exists" {
        let why = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, \
                   ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                   ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
        errors.invalid(format!("{field}.operator"), operator, why);
    }
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope \
                       selector";
            errors.required(format!("{field}.values"), why);
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope \
                       selector";
            errors.invalid(format!("{field}.values"), tree!(values), why);
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        _ => errors.invalid(format!("{field}.operator"), operator, "not a valid selector operator"),
    }
}

/// The amounts of two lists together.
pub(crate) fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = total.get(name).copied().unwrap_or_default() + *amount;
        total.insert(name.clone(), sum);
    }
}

/// As many.
pub(crate) fn count(number: usize) -> Quantity {
    Quantity::from(u32::try_from(number).unwrap_or(u32::MAX))
}
