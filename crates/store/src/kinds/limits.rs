//! core/v1: LimitRange.

use std::collections::{BTreeMap, BTreeSet};

use model::Quantity;
use serde_json::Value;

use crate::json;
use crate::resource::Resource;
use crate::table::Column;
use crate::validate::FieldErrors;

/// Amounts by resource.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

/// core/v1 LimitRange.
pub(crate) static LIMIT_RANGE: Resource = Resource {
    kind: "LimitRange",
    plural: "limitranges",
    singular: "limitrange",
    short_names: &["limits"],
    storage: "limitranges",
    columns: &[
        Column::NAME,
        Column::text("Created At", |value, _| {
            json::text(value, "/metadata/creationTimestamp").into()
        }),
    ],
    default: |value| {
        for limit in json::items_mut(value, "/spec/limits") {
            if json::text(limit, "/type") == "Container" {
                default_container(limit);
            }
        }
    },
    validate,
    ..Resource::BASE
};

/// The amounts of a list of resources; what is no quantity is left out.
pub(crate) fn amounts(value: &Value, pointer: &str) -> Amounts {
    let members = json::members(value, pointer);
    members.filter_map(|(name, amount)| Some((name.to_owned(), quantity(amount)?))).collect()
}

/// One amount, as text or as a number.
pub(crate) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text),
        Value::Number(number) => Quantity::parse(&number.to_string()),
        _ => None,
    }
}

/// What is allowed at most is given where nobody says how much; of what is given, all is asked
/// for; else what must be asked for at least.
fn default_container(limit: &mut Value) {
    for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")]
    {
        let given: Vec<(String, Value)> = json::members(limit, &format!("/{from}"))
            .map(|(name, amount)| (name.to_owned(), amount.clone()))
            .collect();
        if given.is_empty() {
            continue;
        }
        if let Some(target) = json::object_mut(limit, &format!("/{to}")) {
            for (name, amount) in given {
                target.entry(name).or_insert(amount);
            }
        }
    }
}

fn validate(value: &Value, _: Option<&Value>, errors: &mut FieldErrors) {
    let mut kinds = BTreeSet::new();
    for (index, limit) in json::items(value, "/spec/limits").iter().enumerate() {
        let field = format!("spec.limits[{index}]");
        let kind = json::text(limit, "/type");
        if kind.is_empty() {
            errors.required(format!("{field}.type"), "");
        } else if !kinds.insert(kind) {
            errors.duplicate(format!("{field}.type"), kind);
        }
        if kind == "Pod" {
            for name in ["default", "defaultRequest"] {
                if json::members(limit, &format!("/{name}")).next().is_some() {
                    let why = "may not be specified when `type` is 'Pod'";
                    errors.forbidden(format!("{field}.{name}"), why);
                }
            }
        }
        validate_amounts(&field, limit, errors);
        validate_order(&field, limit, errors);
    }
}

/// Refuses what is no amount, or less than nothing.
fn validate_amounts(field: &str, limit: &Value, errors: &mut FieldErrors) {
    for list in ["min", "max", "default", "defaultRequest", "maxLimitRequestRatio"] {
        for (name, amount) in json::members(limit, &format!("/{list}")) {
            let field = format!("{field}.{list}[{name}]");
            match quantity(amount) {
                None => errors.invalid(field, amount.clone(), "must be a quantity"),
                Some(quantity) if quantity.is_negative() => {
                    errors.invalid(field, amount.clone(), "must be greater than or equal to 0");
                }
                Some(_) => {}
            }
        }
    }
}

/// Refuses amounts that no container could keep to.
fn validate_order(field: &str, limit: &Value, errors: &mut FieldErrors) {
    let lists = ["min", "max", "default", "defaultRequest", "maxLimitRequestRatio"];
    let [min, max, given, request, ratio] = lists.map(|list| amounts(limit, &format!("/{list}")));
    // The list that is wrong, and what may not be greater than what, with their names.
    let orders = [
        ("min", &min, "min value", &max, "max value"),
        ("defaultRequest", &min, "min value", &request, "default request value"),
        ("defaultRequest", &request, "default request value", &max, "max value"),
        ("defaultRequest", &request, "default request value", &given, "default limit value"),
        ("default", &min, "min value", &given, "default value"),
        ("default", &given, "default value", &max, "max value"),
    ];
    for (list, lower, lower_name, upper, upper_name) in orders {
        for (name, low) in lower {
            let Some(high) = upper.get(name).filter(|high| low > high) else { continue };
            let wrong = if lower_name == "min value" && list != "min" { high } else { low };
            let why = format!("{lower_name} {low} is greater than {upper_name} {high}");
            errors.invalid(format!("{field}.{list}[{name}]"), wrong.to_string(), &why);
        }
    }
    for (name, ratio) in &ratio {
        let field = format!("{field}.maxLimitRequestRatio[{name}]");
        if *ratio < Quantity::ONE {
            errors.invalid(field, ratio.to_string(), &format!("ratio {ratio} is less than 1"));
            continue;
        }
        let widest = max.get(name).zip(min.get(name)).and_then(|(max, min)| max.ratio(min));
        if let Some(widest) = widest.filter(|widest| ratio.ones() > *widest) {
            let why = format!("ratio {ratio} is greater than max/min = {widest:.6}");
            errors.invalid(field, ratio.to_string(), &why);
        }
    }
}
