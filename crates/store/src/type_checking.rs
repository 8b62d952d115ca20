//! What the status of a ValidatingAdmissionPolicy warns of: expressions that name what objects of
//! the kinds in its constraints do not have. When they run they see objects of any kind.
//!
//! Source: kubernetes.io, "Validating Admission Policy", "Type checking".

use std::collections::BTreeSet;

use schema::cel::{Program, Type};
use serde_json::{Value, json as tree};

use crate::kinds::core::NAMESPACE;
use crate::policies::{compose, variables, with_composed};
use crate::{Resource, Store, json};

/// Kinds that one rule may bring to the check (apiserver's `maxTypesToCheck`).
const MAX_KINDS: usize = 10;
/// Longest text of all expressions of a policy that are checked, in bytes: they are compiled once a
/// kind, while writes wait.
const MAX_EXPRESSION_BYTES: usize = 64 * 1024;
/// Longest text of all warnings of a policy, in bytes; what is beyond is left out.
const MAX_WARNING_BYTES: usize = 64 * 1024;

/// A kind by group, version and name, in the order in which warnings name it.
type Kind = (&'static str, &'static str, &'static str);

/// One kind, and what expressions see of its objects.
struct Seen<'a> {
    kind: Kind,
    known: Vec<(&'static str, Type)>,
    composed: Vec<(&'a str, Type)>,
}

impl Store {
    /// `status.typeChecking` of a policy.
    pub(crate) fn type_checking(&self, policy: &Value) -> Value {
        let warnings = self.expression_warnings(policy);
        if warnings.is_empty() { tree!({}) } else { tree!({"expressionWarnings": warnings}) }
    }

    fn expression_warnings(&self, policy: &Value) -> Vec<Value> {
        let expressions = expressions(policy);
        let composed = json::items(policy, "/spec/variables").iter();
        let composed = composed.map(|variable| json::text(variable, "/expression").len());
        let written = expressions.iter().map(|(_, text)| text.len());
        if written.chain(composed).sum::<usize>() > MAX_EXPRESSION_BYTES {
            return Vec::new();
        }
        let seen: Vec<Seen<'_>> =
            self.rows_to_check(policy).into_iter().map(|row| self.seen(row, policy)).collect();
        let mut room = MAX_WARNING_BYTES;
        let mut warnings = Vec::new();
        for (field, expression) in expressions {
            let found = seen.iter().filter_map(|one| one.warning(expression));
            let mut warning = found.collect::<Vec<_>>().join("\n");
            let mut end = warning.len().min(room);
            while !warning.is_char_boundary(end) {
                end -= 1;
            }
            warning.truncate(end);
            room -= warning.len();
            if warning.is_empty() {
                continue;
            }
            warnings.push(tree!({"fieldRef": field, "warning": warning}));
        }
        warnings
    }

    /// The rows of the kinds that the rules name one by one: neither what `*` stands for nor
    /// subresources.
    fn rows_to_check(&self, policy: &Value) -> Vec<&'static Resource> {
        let mut found: BTreeSet<Kind> = BTreeSet::new();
        let mut rows = Vec::new();
        'rules: for rule in json::items(policy, "/spec/matchConstraints/resourceRules") {
            let (groups, versions) = (named(rule, "/apiGroups"), named(rule, "/apiVersions"));
            let resources: BTreeSet<&str> = json::texts(rule, "/resources").into_iter().collect();
            let resources: Vec<&str> =
                resources.into_iter().filter(|name| !name.contains(['*', '/'])).collect();
            let mut count = 0;
            for (group, version) in
                groups.iter().flat_map(|group| versions.iter().map(move |one| (group, one)))
            {
                for row in resources.iter().filter_map(|name| self.find(group, version, name)) {
                    if found.insert((row.group, row.version, row.kind)) {
                        rows.push(row);
                    }
                    count += 1;
                    if count == MAX_KINDS {
                        break 'rules;
                    }
                }
            }
        }
        rows.sort_by_key(|row| (row.group, row.version, row.kind));
        rows
    }

    fn seen<'a>(&self, row: &'static Resource, policy: &'a Value) -> Seen<'a> {
        let parameters = json::at(policy, "/spec/paramKind");
        let mut known = variables(parameters.is_some());
        for (name, kind) in &mut known {
            *kind = match *name {
                "object" | "oldObject" => type_of(row),
                "namespaceObject" => type_of(&NAMESPACE),
                // What is not served yet may be whatever it will be.
                "params" => {
                    let row = parameters.and_then(|kind| self.parameter_row(kind));
                    row.map_or(Type::Dyn, type_of)
                }
                _ => continue,
            };
        }
        let composed = compose(policy, &known).into_iter();
        let composed = composed.map(|(name, program)| {
            (name, program.map_or(Type::Dyn, |program| program.result().clone()))
        });
        let composed = composed.collect();
        Seen { kind: (row.group, row.version, row.kind), known, composed }
    }
}

impl Seen<'_> {
    /// What is wrong with an expression for objects of the kind, as the real server tells it.
    fn warning(&self, expression: &str) -> Option<String> {
        let scope = with_composed(&self.known, &self.composed);
        let why = Program::compile(expression, &scope).err()?;
        let (group, version, kind) = self.kind;
        Some(format!("{group}/{version}, Kind={kind}: {why}\n"))
    }
}

/// Objects of a row as expressions see them.
fn type_of(row: &'static Resource) -> Type {
    match (row.custom, row.message()) {
        (Some(custom), _) => Type::of_schema(custom.tree),
        (None, Some(message)) => Type::of_kind(message),
        (None, None) => Type::Dyn,
    }
}

/// The entries of a list, none of them where `*` is among them.
fn named<'a>(rule: &'a Value, field: &str) -> BTreeSet<&'a str> {
    let entries: BTreeSet<&str> = json::texts(rule, field).into_iter().collect();
    if entries.iter().any(|one| one.contains('*')) { BTreeSet::new() } else { entries }
}

/// The expressions that are checked, and where they stand.
fn expressions(policy: &Value) -> Vec<(String, &str)> {
    let validations = json::items(policy, "/spec/validations").iter().enumerate();
    let both = validations.flat_map(|(index, validation)| {
        ["expression", "messageExpression"].map(|field| {
            let at = format!("spec.validations[{index}].{field}");
            (at, json::text(validation, &format!("/{field}")))
        })
    });
    both.filter(|(_, text)| !text.is_empty()).collect()
}
