//! `x-kubernetes-validations`: the rules of a schema in CEL (KEP-2876, KEP-4008 and kubernetes.io,
//! "Validation rules"), in the words of apiextensions-apiserver.
//!
//! A rule that names `oldSelf` judges changes: it runs where the old value is known, which it is not
//! within lists whose items have no keys. All others run also on creation, and leave alone what a
//! change left as it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::extent::extent_of;
use super::validate::{NO_FIELD, join};
use super::{Fault, List, Schema, flag, text};
use crate::cel::{Extent, Identity, OBJECT_COST_BUDGET, Program, Type, Value};

/// Where a schema has its rules.
pub(super) const RULES: &str = "x-kubernetes-validations";
/// Rules of one schema, so that a definition stays readable and its check bounded.
const MAX_RULES: usize = 100;
/// What one rule may cost for all values of an object together (`StaticEstimatedCostLimit`).
const RULE_COST_LIMIT: u64 = 10_000_000;
/// What all rules of a schema may cost together (`StaticEstimatedCRDCostLimit`).
const SCHEMA_COST_LIMIT: u64 = 100_000_000;
/// Most rules that are named when all together cost too much.
const MAX_BLAMED: usize = 4;
/// Longest message that an expression makes, in bytes (`MaxEvaluatedMessageExpressionSizeBytes`).
const MAX_MESSAGE_BYTES: usize = 5 * 1024;
/// Reasons that a rule may give.
const REASONS: &[&str] =
    &["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
/// Why rules end before they all ran.
const OUT_OF_BUDGET: &str = "validation failed due to running out of cost budget, no further \
                             validation rules will be run";

/// The rules of one schema, compiled.
#[derive(Debug)]
pub(super) struct Rules {
    kind: Type,
    /// The schema's type, which messages show for the value.
    shown: String,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    /// A rule that does not compile refuses all objects: [`check`] lets none into a definition, but
    /// one that is stored may come from elsewhere.
    program: Result<Program, String>,
    text: String,
    message: String,
    message_expression: Option<Program>,
    reason: String,
    /// Below the value, in the form of a fault's field.
    field: String,
    is_transition: bool,
    optional_old_self: bool,
}

/// The type that expressions see of a schema, from those of what stands below it; `None` for what
/// they do not see: values whose schema says nothing of them.
pub(super) fn type_of(
    tree: &Json,
    is_root: bool,
    properties: Vec<(&str, Type)>,
    items: Option<Type>,
    additional: Option<Type>,
) -> Option<Type> {
    if flag(tree, "x-kubernetes-int-or-string") {
        return Some(Type::Dyn);
    }
    let is_resource = is_root || flag(tree, "x-kubernetes-embedded-resource");
    match text(tree, "type") {
        "array" => items.map(|item| {
            let identity = match List::of(tree) {
                List::Atomic => Identity::Place,
                List::Set => Identity::Value,
                List::Map(keys) => Identity::Keys(keys),
            };
            Type::list_of(item, identity)
        }),
        "object" => match additional {
            Some(value) => Some(Type::map(Type::String, value)),
            None if is_resource => {
                let names = ["name", "generateName"].map(|name| (name, Type::String));
                let own = [
                    ("apiVersion", Type::String),
                    ("kind", Type::String),
                    ("metadata", Type::object(names)),
                ];
                Some(Type::object(properties.into_iter().chain(own)))
            }
            None => Some(Type::object(properties)),
        },
        "boolean" => Some(Type::Bool),
        "integer" => Some(Type::Int),
        "number" => Some(Type::Double),
        "string" => Some(match text(tree, "format") {
            "byte" => Type::Bytes,
            "date" | "date-time" => Type::Timestamp,
            "duration" => Type::Duration,
            _ => Type::String,
        }),
        _ => None,
    }
}

impl Rules {
    /// The rules of a schema; `None` without any.
    pub(super) fn compile(tree: &Json, kind: Option<&Type>) -> Option<Arc<Self>> {
        let rules = of(tree);
        let kind = kind.filter(|_| !rules.is_empty())?;
        let rules = rules.iter().take(MAX_RULES).map(|rule| Rule::compile(rule, kind)).collect();
        Some(Arc::new(Self { kind: kind.clone(), shown: text(tree, "type").to_owned(), rules }))
    }
}

impl Rule {
    fn compile(rule: &Json, kind: &Type) -> Self {
        let optional_old_self = flag(rule, "optionalOldSelf");
        let variables = variables(kind, optional_old_self);
        let program = Program::compile(text(rule, "rule"), &variables);
        let expression = text(rule, "messageExpression");
        let message_expression = match expression {
            "" => None,
            // A message that does not compile leaves the one that stands for it.
            expression => Program::compile(expression, &variables).ok(),
        };
        let uses = |program: &Program| program.uses("oldSelf");
        let is_transition = program.as_ref().is_ok_and(uses)
            || message_expression.as_ref().is_some_and(uses)
            || optional_old_self;
        Self {
            program,
            text: text(rule, "rule").trim().to_owned(),
            message: text(rule, "message").trim().to_owned(),
            message_expression,
            reason: text(rule, "reason").to_owned(),
            field: field_of(text(rule, "fieldPath")).unwrap_or_default().concat(),
            is_transition,
            optional_old_self,
        }
    }

    /// What faults name the rule by.
    fn shown(&self) -> &str {
        if self.message.is_empty() { &self.text } else { &self.message }
    }
}

/// What a rule can name.
fn variables(kind: &Type, optional_old_self: bool) -> [(&'static str, Type); 2] {
    let old = match optional_old_self {
        true => Type::optional(kind.clone()),
        false => kind.clone(),
    };
    [("self", kind.clone()), ("oldSelf", old)]
}

fn of(tree: &Json) -> &[Json] {
    tree.get(RULES).and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

impl Schema {
    /// What the rules say of an object that its schema allows, and of its change when the old one is
    /// given.
    pub fn validate_rules(&self, value: &Json, old: Option<&Json>) -> Vec<Fault> {
        let mut run = Run { faults: Vec::new(), budget: Some(OBJECT_COST_BUDGET) };
        run.judge(self, value, old, "");
        run.faults.truncate(super::MAX_FAULTS);
        run.faults
    }
}

/// One object under its rules.
struct Run {
    faults: Vec<Fault>,
    /// The cost that is left; `None` once no further rule may run.
    budget: Option<u64>,
}

impl Run {
    fn judge(&mut self, schema: &Schema, value: &Json, old: Option<&Json>, path: &str) {
        if !schema.has_rules || value.is_null() || self.faults.len() >= super::MAX_FAULTS {
            return;
        }
        for rule in schema.rules.iter().flat_map(|rules| &rules.rules) {
            if let (Some(rules), Some(_)) = (&schema.rules, self.budget) {
                self.apply(rules, rule, value, old, path);
            }
        }
        match value {
            Json::Object(members) => self.judge_members(schema, members, old, path),
            Json::Array(items) => self.judge_items(schema, items, old, path),
            _ => {}
        }
    }

    fn judge_members(
        &mut self,
        schema: &Schema,
        members: &Map<String, Json>,
        old: Option<&Json>,
        path: &str,
    ) {
        for (name, member) in members {
            let old = old.and_then(|old| old.get(name));
            match schema.property(name) {
                Some(inner) => self.judge(inner, member, old, &join(path, name)),
                None => {
                    if let Some(inner) = &schema.additional {
                        self.judge(inner, member, old, &format!("{path}[{name}]"));
                    }
                }
            }
        }
    }

    fn judge_items(&mut self, schema: &Schema, items: &[Json], old: Option<&Json>, path: &str) {
        let Some(inner) = schema.items.as_ref().filter(|inner| inner.has_rules) else { return };
        let known = schema.by_key(old);
        for (index, item) in items.iter().enumerate() {
            let old = schema.same_item(item, &known);
            self.judge(inner, item, old, &format!("{path}[{index}]"));
        }
    }

    /// Runs one rule.
    fn apply(&mut self, rules: &Rules, rule: &Rule, value: &Json, old: Option<&Json>, path: &str) {
        let field = if path.is_empty() { NO_FIELD } else { path };
        let shown: Json = rules.shown.as_str().into();
        let program = match &rule.program {
            Ok(program) => program,
            Err(error) => {
                let why = format!("rule compile error: {error}");
                return self.faults.push(Fault::invalid(field, &shown, &why));
            }
        };
        let is_spared = match rule.is_transition {
            true => old.is_none() && !rule.optional_old_self,
            false => old == Some(value),
        };
        if is_spared {
            return;
        }
        let old = old.map(|old| Value::of(old, &rules.kind));
        let mut variables = vec![("self", Value::of(value, &rules.kind))];
        match (rule.optional_old_self, old) {
            (true, old) => variables.push(("oldSelf", Value::optional(old))),
            (false, old) => variables.extend(old.map(|old| ("oldSelf", old))),
        }
        let (result, cost) = program.run(&variables);
        if !self.spend(cost) {
            return self.faults.push(Fault::invalid(field, &shown, OUT_OF_BUDGET));
        }
        let name = rule.shown();
        match result {
            Ok(Value::Bool(true)) => {}
            Ok(_) => self.refuse(rule, &variables, path, &shown),
            Err(error @ crate::cel::Error::CostLimit) => {
                let why = format!(
                    "'{error}': no further validation rules will be run due to call cost exceeds \
                     limit for rule: {name}"
                );
                self.faults.push(Fault::invalid(field, &shown, &why));
                self.budget = None;
            }
            Err(error) if error.to_string().starts_with("no such overload") => {
                let why = format!(
                    "'{error}': call arguments did not match a supported operator, function or \
                     macro signature for rule: {name}"
                );
                self.faults.push(Fault::invalid(field, &shown, &why));
            }
            Err(error) => {
                let why = format!("{error} evaluating rule: {name}");
                self.faults.push(Fault::invalid(field, &shown, &why));
            }
        }
    }

    /// Takes a cost from the budget; whether it was there.
    fn spend(&mut self, cost: u64) -> bool {
        self.budget = self.budget.and_then(|budget| budget.checked_sub(cost));
        self.budget.is_some()
    }

    /// Tells that a rule failed.
    fn refuse<'a>(
        &mut self,
        rule: &'a Rule,
        variables: &[(&'a str, Value<'a>)],
        path: &str,
        shown: &Json,
    ) {
        let mut told = match rule.message.as_str() {
            "" => format!("failed rule: {}", rule.text),
            message => message.to_owned(),
        };
        if let Some(expression) = &rule.message_expression {
            let (message, cost) = expression.run(variables);
            if !self.spend(cost) {
                let field = if path.is_empty() { NO_FIELD } else { path };
                return self.faults.push(Fault::invalid(field, shown, OUT_OF_BUDGET));
            }
            if let Ok(Value::Text(message)) = message
                && !message.trim().is_empty()
                && message.len() <= MAX_MESSAGE_BYTES
                && !message.contains('\n')
            {
                message.trim().clone_into(&mut told);
            }
        }
        let whole = format!("{path}{}", rule.field);
        let field = match whole.trim_start_matches('.') {
            "" => NO_FIELD,
            _ if path.is_empty() => whole.trim_start_matches('.'),
            _ => &whole,
        };
        self.faults.push(match rule.reason.as_str() {
            "FieldValueRequired" => Fault::required(field, &told),
            "FieldValueForbidden" => Fault::forbidden(field, &told),
            "FieldValueDuplicate" => Fault::duplicate(field, shown),
            _ => Fault::invalid(field, shown, &told),
        });
    }
}

/// A rule's `fieldPath` as parts of a fault's field: `.a.b['c']` is `.a`, `.b`, `[c]`.
fn field_of(path: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix("['") {
            let (name, after) = quoted.split_once("']")?;
            parts.push(format!("[{name}]"));
            rest = after;
            continue;
        }
        let member = rest.strip_prefix('.')?;
        let end = member.find(['.', '[']).unwrap_or(member.len());
        let (name, after) = member.split_at_checked(end)?;
        if name.is_empty() {
            return None;
        }
        parts.push(format!(".{name}"));
        rest = after;
    }
    Some(parts)
}

/// Whether a `fieldPath` leads somewhere in the schema.
fn leads_somewhere(tree: &Json, parts: &[String]) -> bool {
    let mut at = tree;
    for part in parts {
        let name = part.trim_start_matches(['.', '[']).trim_end_matches(']');
        let member = at.get("properties").and_then(|all| all.get(name));
        match member.or(at.get("additionalProperties").filter(|inner| inner.is_object())) {
            Some(inner) => at = inner,
            None => return false,
        }
    }
    !parts.is_empty()
}

/// Checks the rules of a structural schema and of all below it.
pub(super) fn check(tree: &Json, path: &str, faults: &mut Vec<Fault>) {
    let mut check = Check { faults, costs: Vec::new() };
    check.look(tree, path, Place { is_root: true, has_old: true, times: Some(1) });
    check.judge_total(path);
}

#[derive(Clone, Copy)]
struct Place {
    is_root: bool,
    /// Whether the old value can be told: not within lists without keys.
    has_old: bool,
    /// How often it can stand in an object; `None` below a list or a map without a limit.
    times: Option<u64>,
}

/// What is known of the values of a schema.
struct Seen {
    kind: Type,
    extent: Extent,
}

struct Check<'f> {
    faults: &'f mut Vec<Fault>,
    /// What rules cost at most, with their places.
    costs: Vec<(u64, String)>,
}

impl Check<'_> {
    fn look(&mut self, tree: &Json, path: &str, place: Place) -> Option<Seen> {
        let below = Place { is_root: false, ..place };
        let properties = tree.get("properties").and_then(Json::as_object).into_iter().flatten();
        let (mut types, mut extents) = (Vec::new(), Vec::new());
        for (name, inner) in properties {
            let path = format!("{path}.properties[{name}]");
            if let Some(seen) = self.look(inner, &path, below) {
                types.push((name.as_str(), seen.kind));
                extents.push((name.as_str(), seen.extent));
            }
        }
        let times = |limit: &str| Some(place.times?.saturating_mul(tree.get(limit)?.as_u64()?));
        let has_keys = matches!(List::of(tree), List::Map(_));
        let has_old = place.has_old && has_keys;
        let mut one = |name: &str, place: Place| {
            let inner = tree.get(name).filter(|inner| inner.is_object())?;
            let seen = self.look(inner, &format!("{path}.{name}"), place)?;
            Some((seen.kind, seen.extent))
        };
        let (item, item_extent) =
            one("items", Place { has_old, times: times("maxItems"), ..below }).unzip();
        let (value, value_extent) =
            one("additionalProperties", Place { times: times("maxProperties"), ..below }).unzip();
        let kind = type_of(tree, place.is_root, types, item, value);
        let extent = extent_of(tree, place.is_root, extents, item_extent.or(value_extent));
        let seen = kind.map(|kind| Seen { kind, extent });
        self.judge_rules(tree, path, place, seen.as_ref());
        seen
    }

    fn judge_rules(&mut self, tree: &Json, path: &str, place: Place, seen: Option<&Seen>) {
        let rules = of(tree);
        if rules.len() > MAX_RULES {
            let field = format!("{path}.{RULES}");
            self.faults.push(Fault::too_many(&field, rules.len() as u64, MAX_RULES as u64));
        }
        for (index, rule) in rules.iter().enumerate().take(MAX_RULES) {
            let path = format!("{path}.{RULES}[{index}]");
            match seen {
                Some(seen) => self.judge_rule(rule, tree, seen, &path, place),
                None => {
                    let why = "rules need a schema that says what the value is";
                    self.faults.push(Fault::forbidden(path, why));
                }
            }
        }
    }

    fn judge_rule(&mut self, rule: &Json, tree: &Json, seen: &Seen, path: &str, place: Place) {
        check_texts(rule, path, self.faults);
        let field_path = text(rule, "fieldPath");
        let parts = field_of(field_path);
        if !field_path.is_empty() && !parts.is_some_and(|parts| leads_somewhere(tree, &parts)) {
            let why = "fieldPath must be a valid path: a field of the schema, such as .spec.name";
            self.faults.push(Fault::invalid(format!("{path}.fieldPath"), &field_path.into(), why));
        }
        if text(rule, "rule").trim().is_empty() {
            return;
        }
        self.judge_expression(rule, &RULE, seen, path, place);
        if !text(rule, MESSAGE.name).is_empty() {
            self.judge_expression(rule, &MESSAGE, seen, path, place);
        }
    }

    fn judge_expression(
        &mut self,
        rule: &Json,
        which: &Expression,
        seen: &Seen,
        path: &str,
        place: Place,
    ) {
        let variables = variables(&seen.kind, flag(rule, "optionalOldSelf"));
        let field = format!("{path}.{}", which.name);
        let why = match Program::compile(text(rule, which.name), &variables) {
            Err(error) => format!("{}: {error}", which.failed),
            Ok(program) if !program.may_be(&which.wanted) => {
                format!("cel expression must evaluate to a {}", which.wanted)
            }
            Ok(program) if program.uses("oldSelf") && !place.has_old => {
                "oldSelf cannot be used on the uncorrelatable portion of the schema within \
                 a list without x-kubernetes-list-map-keys"
                    .to_owned()
            }
            Ok(program) => return self.judge_cost(&program, which, &seen.extent, place, field),
        };
        self.faults.push(Fault::invalid_shown(field, &go_text(rule), &why));
    }

    /// Refuses what could cost too much for an object that the schema allows.
    fn judge_cost(
        &mut self,
        program: &Program,
        which: &Expression,
        extent: &Extent,
        place: Place,
        field: String,
    ) {
        let once = program.estimate(&[("self", extent), ("oldSelf", extent)]);
        let cost = once.saturating_mul(place.times.unwrap_or_else(|| extent.most_times()));
        if cost > RULE_COST_LIMIT {
            let why = too_expensive(which.cost, cost, RULE_COST_LIMIT);
            self.faults.push(Fault::forbidden(&field, &why));
        }
        self.costs.push((cost, field));
    }

    fn judge_total(&mut self, path: &str) {
        let total = self.costs.iter().fold(0u64, |sum, (cost, _)| sum.saturating_add(*cost));
        if total <= SCHEMA_COST_LIMIT {
            return;
        }
        self.costs.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        let expensive = self.costs.iter().filter(|(cost, _)| *cost > total / 100);
        for (_, field) in expensive.take(MAX_BLAMED) {
            let why = "contributed to estimated rule & messageExpression cost total exceeding cost \
                       limit for entire OpenAPIv3 schema";
            self.faults.push(Fault::forbidden(field, why));
        }
        let what = "x-kubernetes-validations estimated rule & messageExpression cost total for \
                    entire OpenAPIv3 schema";
        self.faults.push(Fault::forbidden(path, &too_expensive(what, total, SCHEMA_COST_LIMIT)));
    }
}

/// One of a rule's two expressions.
struct Expression {
    name: &'static str,
    wanted: Type,
    failed: &'static str,
    cost: &'static str,
}

const RULE: Expression = Expression {
    name: "rule",
    wanted: Type::Bool,
    failed: "compilation failed",
    cost: "estimated rule cost",
};
const MESSAGE: Expression = Expression {
    name: "messageExpression",
    wanted: Type::String,
    failed: "messageExpression compilation failed",
    cost: "estimated messageExpression cost",
};

/// In the words of the real server (`getCostErrorMessage`).
fn too_expensive(what: &str, cost: u64, limit: u64) -> String {
    let exceeds = cost as f64 / limit as f64;
    let factor = if exceeds > 100.0 {
        "more than 100x".to_owned()
    } else if exceeds < 1.5 {
        format!("{exceeds:.6}x")
    } else {
        format!("{exceeds:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, \
         maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// Checks what of a rule is no expression.
fn check_texts(rule: &Json, path: &str, faults: &mut Vec<Fault>) {
    let source = text(rule, "rule").trim();
    let message = text(rule, "message");
    if source.is_empty() {
        faults.push(Fault::required(format!("{path}.rule"), "rule is not specified"));
    }
    let field = format!("{path}.message");
    if !message.is_empty() && message.trim().is_empty() {
        let why = "message must be non-empty if specified";
        faults.push(Fault::invalid(&field, &message.into(), why));
    } else if message.trim().contains('\n') {
        let why = "message must not contain line breaks";
        faults.push(Fault::invalid(&field, &message.into(), why));
    } else if message.is_empty()
        && source.contains('\n')
        && text(rule, "messageExpression").is_empty()
    {
        let why = "message must be specified if rule contains line breaks";
        faults.push(Fault::required(&field, why));
    }
    let reason = text(rule, "reason");
    if !reason.is_empty() && !REASONS.contains(&reason) {
        let known: Vec<Json> = REASONS.iter().map(|reason| (*reason).into()).collect();
        faults.push(Fault::unsupported(format!("{path}.reason"), &reason.into(), &known));
    }
}

/// A rule as Go prints it: the real server shows a refused one so.
fn go_text(rule: &Json) -> String {
    let quoted = |name: &str| format!("{:?}", text(rule, name));
    let pointer = |name: &str, kind: &str| match rule.get(name).filter(|value| !value.is_null()) {
        None => format!("({kind})(nil)"),
        Some(value) => format!("({kind})({value})"),
    };
    format!(
        "apiextensions.ValidationRule{{Rule:{}, Message:{}, MessageExpression:{}, Reason:{}, \
         FieldPath:{}, OptionalOldSelf:{}}}",
        quoted("rule"),
        quoted("message"),
        quoted("messageExpression"),
        pointer("reason", "*apiextensions.FieldValueErrorReason"),
        quoted("fieldPath"),
        pointer("optionalOldSelf", "*bool"),
    )
}

/// The old items of a list with keys, by those.
pub(super) type Known<'a> = BTreeMap<String, &'a Json>;

impl Schema {
    /// The items of an old list by their keys; none where items have no keys.
    pub(super) fn by_key<'a>(&self, old: Option<&'a Json>) -> Known<'a> {
        let is_keyed = matches!(self.list, List::Map(_));
        let items = old.and_then(Json::as_array).filter(|_| is_keyed);
        let keyed = |item: &'a Json| Some((self.key_of(item)?.to_string(), item));
        items.into_iter().flatten().filter_map(keyed).collect()
    }

    /// The old item with the keys of an item.
    pub(super) fn same_item<'a>(&self, item: &Json, known: &Known<'a>) -> Option<&'a Json> {
        if known.is_empty() {
            return None;
        }
        known.get(&self.key_of(item)?.to_string()).copied()
    }

    fn property(&self, name: &str) -> Option<&Self> {
        let place = self.properties.binary_search_by(|(known, _)| known.as_str().cmp(name));
        place.ok().and_then(|place| self.properties.get(place)).map(|(_, schema)| schema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_paths_are_read() {
        let parts = |path: &str| field_of(path).map(|parts| parts.concat());
        assert_eq!(parts(".spec.a['b.c']").as_deref(), Some(".spec.a[b.c]"));
        assert_eq!(parts(""), Some(String::new()));
        for wrong in ["spec", ".", ".a[0]", ".a['b"] {
            assert_eq!(parts(wrong), None, "{wrong}");
        }
    }
}
