//! CEL in admission: what expressions of webhooks and policies see of a write, and match
//! conditions.
//!
//! Source: kubernetes.io, "Dynamic Admission Control", "Matching requests: matchConditions", and
//! "Validating Admission Policy".

use std::collections::BTreeSet;
use std::sync::LazyLock;

use schema::cel::Value as Cel;
use schema::cel::{Account, Authorizer, Decision, Program, Question, Target, Text, Type};
use serde_json::Value;

use crate::authorize::{Request, SERVICE_ACCOUNT_PREFIX, Subject};
use crate::validate::FieldErrors;
use crate::{Store, json};

/// Cost of all match conditions for one write (apiserver's
/// `RuntimeCELCostBudgetMatchConditions`).
const CONDITIONS_BUDGET: u64 = 2_500_000;
/// Most match conditions of one webhook or policy (the real server's).
const MAX_CONDITIONS: usize = 64;
/// The variable that asks who may do what, and the question about what the request is for.
const AUTHORIZER: &str = "authorizer";
const REQUEST_RESOURCE: &str = "authorizer.requestResource";
/// The group of all ServiceAccounts; with `:` and a namespace, of those of that.
const ACCOUNTS_GROUP: &str = "system:serviceaccounts";

/// A name and its type.
pub(crate) type Variable = (&'static str, Type);

/// What all expressions see: the object, what there was, the request, and who may do what.
pub(crate) static WRITE: LazyLock<Vec<Variable>> = LazyLock::new(|| {
    vec![
        ("object", Type::Dyn),
        ("oldObject", Type::Dyn),
        ("request", REQUEST.clone()),
        (AUTHORIZER, Type::AUTHORIZER),
        (REQUEST_RESOURCE, Type::RESOURCE_CHECK),
    ]
});

/// What is left for expressions that make messages.
pub(crate) fn without_authorizer<'v>(variables: &[(&'v str, Type)]) -> Vec<(&'v str, Type)> {
    let asks = |name: &str| name == AUTHORIZER || name == REQUEST_RESOURCE;
    variables.iter().filter(|(name, _)| !asks(name)).cloned().collect()
}

/// `AdmissionRequest` without the objects.
static REQUEST: LazyLock<Type> = LazyLock::new(|| {
    let texts = |names: [&'static str; 3]| Type::record(names.map(|name| (name, Type::String)));
    let kind = texts(["group", "version", "kind"]);
    let resource = texts(["group", "version", "resource"]);
    let user = Type::record([
        ("username", Type::String),
        ("uid", Type::String),
        ("groups", Type::list(Type::String)),
        ("extra", Type::map(Type::String, Type::list(Type::String))),
    ]);
    Type::record([
        ("kind", kind.clone()),
        ("resource", resource.clone()),
        ("subResource", Type::String),
        ("requestKind", kind),
        ("requestResource", resource),
        ("requestSubResource", Type::String),
        ("name", Type::String),
        ("namespace", Type::String),
        ("operation", Type::String),
        ("userInfo", user),
        ("dryRun", Type::Bool),
        ("options", Type::Dyn),
    ])
});

/// Who may do what, asked by whoever makes the request of an AdmissionReview.
pub(crate) struct Rights<'a> {
    store: &'a Store,
    user: &'a str,
    groups: Vec<String>,
}

impl<'a> Rights<'a> {
    pub(crate) fn of(store: &'a Store, review: &'a Value) -> Self {
        let groups = json::texts(review, "/request/userInfo/groups");
        Self {
            store,
            user: json::text(review, "/request/userInfo/username"),
            groups: groups.into_iter().map(str::to_owned).collect(),
        }
    }
}

impl Authorizer for Rights<'_> {
    fn decide(&self, account: Option<Account<'_>>, question: &Question<'_>) -> Decision {
        let request = match *question {
            Question::Path { verb, path } => Request::Path { verb, path },
            Question::Resource { verb, group, resource, subresource, namespace, name } => {
                Request::Resource { verb, group, plural: resource, subresource, namespace, name }
            }
        };
        let (is_allowed, reason) = match account {
            None => {
                let subject = Subject { name: self.user, groups: &self.groups };
                self.store.decide(subject, &request)
            }
            // An account that is only named has not logged in: it is not `system:authenticated`.
            Some(Account { namespace, name }) => {
                let name = format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}");
                let own = format!("{ACCOUNTS_GROUP}:{namespace}");
                let groups = [ACCOUNTS_GROUP.to_owned(), own];
                self.store.decide(Subject { name: &name, groups: &groups }, &request)
            }
        };
        // Roles are read from the store itself, which cannot fail.
        Decision { is_allowed, reason, error: String::new() }
    }
}

/// The values of [`WRITE`] for an AdmissionReview.
pub(crate) fn values<'a>(
    review: &'a Value,
    rights: &'a Rights<'_>,
) -> Vec<(&'static str, Cel<'a>)> {
    static ABSENT: Value = Value::Null;
    let part = |pointer: &str| review.pointer(pointer).unwrap_or(&ABSENT);
    let text = |pointer: &str| Text::Given(json::text(review, pointer));
    let target = Target {
        group: text("/request/requestResource/group"),
        resource: text("/request/requestResource/resource"),
        subresource: text("/request/requestSubResource"),
        namespace: text("/request/namespace"),
        name: text("/request/name"),
    };
    vec![
        (AUTHORIZER, Cel::authorizer(rights)),
        (REQUEST_RESOURCE, Cel::resource_check(rights, target)),
        ("object", Cel::of(part("/request/object"), &Type::Dyn)),
        ("oldObject", Cel::of(part("/request/oldObject"), &Type::Dyn)),
        ("request", Cel::of(part("/request"), &REQUEST)),
    ]
}

/// Whether all conditions hold. One that is false decides, whatever others come to.
///
/// # Errors
/// What conditions failed with.
pub(crate) fn hold<'a>(
    conditions: &'a [Value],
    variables: &[(&str, Type)],
    values: &[(&'a str, Cel<'a>)],
) -> Result<bool, String> {
    let mut budget = CONDITIONS_BUDGET;
    let mut failures = Vec::new();
    for condition in conditions {
        match truth(json::text(condition, "/expression"), variables, values, &mut budget) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(failure) => failures.push(failure),
        }
    }
    match failures.as_slice() {
        [] => Ok(true),
        [one] => Err(one.clone()),
        several => Err(format!("[{}]", several.join(", "))),
    }
}

/// What an expression that must be true or false comes to.
///
/// # Errors
/// Why it comes to nothing, as the real server says it.
pub(crate) fn truth(
    expression: &str,
    variables: &[(&str, Type)],
    values: &[(&str, Cel<'_>)],
    budget: &mut u64,
) -> Result<bool, String> {
    let failed = |why: String| format!("expression '{expression}' resulted in error: {why}");
    let program = Program::compile(expression, variables).map_err(failed)?;
    let (result, cost) = program.run(values);
    spend(budget, cost)?;
    match result {
        Ok(Cel::Bool(truth)) => Ok(truth),
        Ok(_) => Err(failed("it is neither true nor false".to_owned())),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Takes a cost from a budget.
///
/// # Errors
/// When it is not there.
pub(crate) fn spend(budget: &mut u64, cost: u64) -> Result<(), String> {
    match budget.checked_sub(cost) {
        Some(rest) => {
            *budget = rest;
            Ok(())
        }
        None => {
            *budget = 0;
            Err("validation failed due to running out of cost budget, no further validation rules \
                 will be run"
                .to_owned())
        }
    }
}

/// Checks match conditions when they are written.
pub(crate) fn check_conditions(
    at: &str,
    conditions: &[Value],
    variables: &[(&str, Type)],
    errors: &mut FieldErrors,
) {
    if conditions.len() > MAX_CONDITIONS {
        errors.too_many(at, conditions.len(), MAX_CONDITIONS);
    }
    let mut known = BTreeSet::new();
    for (index, condition) in conditions.iter().enumerate().take(MAX_CONDITIONS) {
        let name = json::text(condition, "/name");
        if name.is_empty() {
            errors.required(format!("{at}[{index}].name"), "");
        } else if !known.insert(name) {
            errors.duplicate(format!("{at}[{index}].name"), name);
        }
        let field = format!("{at}[{index}].expression");
        check(&field, json::text(condition, "/expression"), variables, &[Type::Bool], errors);
    }
}

/// Checks one expression, which must come to one of some types.
pub(crate) fn check(
    field: &str,
    expression: &str,
    variables: &[(&str, Type)],
    wanted: &[Type],
    errors: &mut FieldErrors,
) -> Type {
    if expression.trim().is_empty() {
        errors.required(field, "");
        return Type::Dyn;
    }
    match Program::compile(expression, variables) {
        Err(error) => {
            errors.invalid(field, expression, &format!("compilation failed: {error}"));
            Type::Dyn
        }
        Ok(program) => {
            let found = program.result();
            if !wanted.is_empty() && *found != Type::Dyn && !wanted.contains(found) {
                let names: Vec<String> = wanted.iter().map(Type::to_string).collect();
                errors.invalid(
                    field,
                    expression,
                    &format!("must evaluate to {}", names.join(" or ")),
                );
            }
            found.clone()
        }
    }
}
