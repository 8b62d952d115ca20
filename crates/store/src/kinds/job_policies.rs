//! What a Job says about failures and about enough success, checked.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::json;
use crate::validate::{FieldErrors, one_of};

/// Rules of one policy.
const MAX_RULES: usize = 20;
/// Exit codes of one rule.
const MAX_EXIT_CODES: usize = 255;
/// Characters of the name of who runs a Job.
const MAX_MANAGER_LENGTH: usize = 63;

/// Checks `backoffLimitPerIndex`, `maxFailedIndexes`, `podFailurePolicy`, `successPolicy`,
/// `podReplacementPolicy` and `managedBy` of a Job's spec.
pub(super) fn validate(field: &str, spec: &Value, errors: &mut FieldErrors) {
    validate_index_limits(field, spec, errors);
    let failure = json::at(spec, "/podFailurePolicy");
    let replacement = json::at(spec, "/podReplacementPolicy");
    let path = format!("{field}.podReplacementPolicy");
    match failure {
        Some(_) => one_of(errors, path, replacement, &["Failed"]),
        None => one_of(errors, path, replacement, &["Failed", "TerminatingOrFailed"]),
    }
    let restarts = json::text(spec, "/template/spec/restartPolicy");
    for name in ["podFailurePolicy", "backoffLimitPerIndex"] {
        if json::at(spec, &format!("/{name}")).is_some() && restarts != "Never" {
            let why = format!("only \"Never\" is supported when {name} is specified");
            errors.invalid(format!("{field}.template.spec.restartPolicy"), restarts, &why);
        }
    }
    let rules = json::items(spec, "/podFailurePolicy/rules");
    let path = format!("{field}.podFailurePolicy.rules");
    count_rules(&path, rules, errors);
    for (index, rule) in rules.iter().enumerate() {
        validate_failure_rule(&format!("{path}[{index}]"), rule, spec, errors);
    }
    validate_success(&format!("{field}.successPolicy"), spec, errors);
    validate_manager(&format!("{field}.managedBy"), spec, errors);
}

fn validate_index_limits(field: &str, spec: &Value, errors: &mut FieldErrors) {
    let limit = json::at(spec, "/backoffLimitPerIndex");
    let most = json::at(spec, "/maxFailedIndexes");
    if !is_indexed(spec) {
        for (name, given) in [("backoffLimitPerIndex", limit), ("maxFailedIndexes", most)] {
            if let Some(given) = given {
                let why = "requires indexed completion mode";
                errors.invalid(format!("{field}.{name}"), given.clone(), why);
            }
        }
    }
    let Some(most) = most else { return };
    if limit.is_none() {
        errors.required(
            format!("{field}.backoffLimitPerIndex"),
            "when maxFailedIndexes is specified",
        );
    }
    let completions = json::integer(spec, "/completions");
    if most.as_i64().zip(completions).is_some_and(|(most, all)| most > all) {
        let why = "must be less than or equal to completions";
        errors.invalid(format!("{field}.maxFailedIndexes"), most.clone(), why);
    }
}

fn validate_failure_rule(path: &str, rule: &Value, spec: &Value, errors: &mut FieldErrors) {
    let action = format!("{path}.action");
    match json::text(rule, "/action") {
        "" => errors
            .required(action, "valid values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\""),
        "FailIndex" if json::at(spec, "/backoffLimitPerIndex").is_none() => {
            errors.invalid(action, "FailIndex", "requires the backoffLimitPerIndex to be set");
        }
        _ => {
            let actions = ["Count", "FailIndex", "FailJob", "Ignore"];
            one_of(errors, action, json::at(rule, "/action"), &actions);
        }
    }
    let codes = json::at(rule, "/onExitCodes");
    let patterns = json::items(rule, "/onPodConditions");
    match (codes, patterns) {
        (Some(_), [_, ..]) => {
            let why = "specifying both OnExitCodes and OnPodConditions is not supported";
            errors.invalid(path, rule.clone(), why);
        }
        (None, []) => {
            let why = "specifying one of OnExitCodes and OnPodConditions is required";
            errors.invalid(path, rule.clone(), why);
        }
        (Some(codes), []) => validate_codes(&format!("{path}.onExitCodes"), codes, spec, errors),
        (None, patterns) => validate_patterns(&format!("{path}.onPodConditions"), patterns, errors),
    }
}

fn validate_codes(path: &str, codes: &Value, spec: &Value, errors: &mut FieldErrors) {
    let operator = json::text(codes, "/operator");
    let name = json::text(codes, "/containerName");
    let known = ["/template/spec/containers", "/template/spec/initContainers"]
        .iter()
        .any(|list| json::items(spec, list).iter().any(|one| json::text(one, "/name") == name));
    if !name.is_empty() && !known {
        let why = "must be one of the container or initContainer names in the pod template";
        errors.invalid(format!("{path}.containerName"), name, why);
    }
    match operator {
        "" => errors.required(format!("{path}.operator"), "valid values: \"In\", \"NotIn\""),
        _ => one_of(
            errors,
            format!("{path}.operator"),
            json::at(codes, "/operator"),
            &["In", "NotIn"],
        ),
    }
    let values = json::items(codes, "/values");
    let list = format!("{path}.values");
    if values.is_empty() {
        errors.invalid(list, tree_of(values), "at least one value is required");
        return;
    }
    if values.len() > MAX_EXIT_CODES {
        errors.too_many(list, values.len(), MAX_EXIT_CODES);
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, value) in values.iter().enumerate() {
        if operator == "In" && value.as_i64() == Some(0) {
            let why = "must not be 0 for the In operator";
            errors.invalid(format!("{list}[{index}]"), value.clone(), why);
        }
        if !seen.insert(value.as_i64()) {
            errors.duplicate(format!("{list}[{index}]"), value.clone());
        }
    }
    if !values.is_sorted_by_key(|value| value.as_i64()) {
        errors.invalid(list, tree_of(values), "must be ordered");
    }
}

fn validate_patterns(path: &str, patterns: &[Value], errors: &mut FieldErrors) {
    if patterns.len() > MAX_RULES {
        errors.too_many(path, patterns.len(), MAX_RULES);
    }
    for (index, pattern) in patterns.iter().enumerate() {
        let field = |name: &str| format!("{path}[{index}].{name}");
        if json::text(pattern, "/type").is_empty() {
            errors.required(field("type"), "");
        }
        let status = json::at(pattern, "/status");
        one_of(errors, field("status"), status, &["False", "True", "Unknown"]);
    }
}

fn validate_success(path: &str, spec: &Value, errors: &mut FieldErrors) {
    let Some(policy) = json::at(spec, "/successPolicy") else { return };
    if !is_indexed(spec) {
        errors.invalid(path, policy.clone(), "requires indexed completion mode");
        return;
    }
    let rules = json::items(policy, "/rules");
    let path = format!("{path}.rules");
    if rules.is_empty() {
        let why = "at least one rules must be specified when the successPolicy is specified";
        errors.required(path, why);
        return;
    }
    count_rules(&path, rules, errors);
    let completions = json::integer(spec, "/completions").unwrap_or(0);
    for (index, rule) in rules.iter().enumerate() {
        validate_success_rule(&format!("{path}[{index}]"), rule, completions, errors);
    }
}

fn validate_success_rule(path: &str, rule: &Value, completions: i64, errors: &mut FieldErrors) {
    let count = json::at(rule, "/succeededCount");
    let indexes = json::at(rule, "/succeededIndexes").and_then(Value::as_str);
    if count.is_none() && indexes.is_none() {
        errors
            .required(path, "at least one of succeededCount or succeededIndexes must be specified");
    }
    let mut most = (completions, "the number of specified completions".to_owned());
    if let Some(text) = indexes {
        match count_indexes(text, completions) {
            Ok(number) => {
                if number < most.0 {
                    most = (
                        number,
                        "the number of indexes in the specified succeededIndexes field".to_owned(),
                    );
                }
            }
            Err(why) => errors.invalid(
                format!("{path}.succeededIndexes"),
                text,
                &format!("error parsing succeededIndexes: {why}"),
            ),
        }
    }
    let Some(count) = count else { return };
    let field = format!("{path}.succeededCount");
    match count.as_i64() {
        Some(number) if number > most.0 => {
            let why = format!("must be less than or equal to {} ({})", most.0, most.1);
            errors.invalid(field, count.clone(), &why);
        }
        Some(1..) => {}
        _ => errors.invalid(field, count.clone(), "must be greater than or equal to 1"),
    }
}

/// How many indexes a text such as `0-2,5` names: in order, and none beyond the last.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut count, mut next) = (0, 0);
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            text.parse::<i64>()
                .map_err(|_| format!("cannot convert string to integer for index: {text:?}"))
        };
        let (first, last) = (number(first)?, number(last)?);
        if first < next || last < first {
            return Err(format!("non-increasing order, previous: {}, current: {first}", next - 1));
        }
        if last >= completions {
            return Err(format!("too large index: {part:?}"));
        }
        count += last - first + 1;
        next = last + 1;
    }
    Ok(count)
}

fn validate_manager(path: &str, spec: &Value, errors: &mut FieldErrors) {
    let Some(manager) = json::at(spec, "/managedBy").and_then(Value::as_str) else { return };
    let (domain, rest) = manager.split_once('/').unwrap_or_default();
    if domain.is_empty() || rest.is_empty() || rest.contains('/') {
        let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        errors.invalid(path, manager, why);
    }
    if manager.len() > MAX_MANAGER_LENGTH {
        errors.too_long(path, MAX_MANAGER_LENGTH);
    }
}

fn count_rules(path: &str, rules: &[Value], errors: &mut FieldErrors) {
    if rules.len() > MAX_RULES {
        errors.too_many(path, rules.len(), MAX_RULES);
    }
}

fn is_indexed(spec: &Value) -> bool {
    json::text(spec, "/completionMode") == "Indexed"
}

fn tree_of(values: &[Value]) -> Value {
    Value::Array(values.to_vec())
}
