//! ValidatingAdmissionPolicies: which of them look at a write, with which parameters, and what they
//! say of it.
//!
//! Source: kubernetes.io, "Validating Admission Policy" (KEP-3488).

use std::collections::BTreeMap;
use std::sync::Arc;

use model::NamespacedName;
use schema::cel::{Program, Type, Value as Cel};
use serde_json::{Value, json as tree};

use crate::authorize::{Request, Subject};
use crate::conversion::converter_for;
use crate::expressions::{self, Rights, spend, truth};
use crate::kinds::admission_policy::{BINDING, POLICY};
use crate::kinds::apps::selects_labels;
use crate::kinds::core::NAMESPACE;
use crate::matching::selects;
use crate::object::Kept;
use crate::read::present;
use crate::webhooks::Proposal;
use crate::{Object, Resource, Status, Store, json};

/// Cost of all expressions of one policy for one write and one parameter (apiserver's
/// `RuntimeCELCostBudget`).
const BUDGET: u64 = schema::cel::OBJECT_COST_BUDGET;
/// Most parameters that one binding brings to one write.
const MAX_PARAMETERS: usize = 256;
/// Longest message that an expression makes, in bytes (the real server's).
const MAX_MESSAGE_BYTES: usize = 5 * 1024;
/// Longest audit annotation, in bytes (the real server's).
const MAX_ANNOTATION_BYTES: usize = 10 * 1024;
/// The audit annotation for what policies would have refused.
const FAILURE_ANNOTATION: &str = "validation.policy.admission.k8s.io/validation_failure";

/// What policies say of a write that they do not refuse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
    /// Annotations for the audit log.
    pub annotations: BTreeMap<String, String>,
    /// Failures that are only told to the audit log.
    unheeded: Vec<Value>,
}

/// What a validation failed with.
struct Failure {
    message: String,
    reason: String,
    /// The place of the expression.
    index: usize,
}

/// One policy with one of its bindings.
struct Bound<'a> {
    policy: &'a Value,
    binding: &'a Value,
}

/// What expressions of a policy see, whatever its parameters.
struct Seen<'a> {
    review: &'a Value,
    rights: &'a Rights<'a>,
    /// The object's namespace; null where it is in none.
    namespace: &'a Value,
}

/// The variables of policies; only one with a `paramKind` has parameters.
pub(crate) fn variables(has_params: bool) -> Vec<(&'static str, Type)> {
    let mut variables = expressions::WRITE.clone();
    variables.push(("namespaceObject", Type::Dyn));
    if has_params {
        variables.push(("params", Type::Dyn));
    }
    variables
}

/// The variables, and `variables` with those that a policy names itself.
pub(crate) fn with_composed(
    variables: &[(&'static str, Type)],
    composed: &[(&str, Type)],
) -> Vec<(&'static str, Type)> {
    let mut all = variables.to_vec();
    let fields = composed.iter().map(|(name, kind)| (*name, kind.clone()));
    all.push(("variables", Type::record(fields)));
    all
}

impl Store {
    /// Whether a policy that is bound may look at writes of a resource.
    pub(crate) fn concerns_policies(
        &self,
        resource: &'static Resource,
        subresource: Option<crate::Subresource>,
    ) -> bool {
        self.policies().any(|policy| {
            let constraints = "/spec/matchConstraints";
            let rules = json::items(policy, &format!("{constraints}/resourceRules"));
            let equivalence = json::text(policy, &format!("{constraints}/matchPolicy"));
            self.may_take(rules, equivalence, resource, subresource)
        })
    }

    /// In which versions of its resource policies look at a write.
    pub fn rows_of_policies(&self, proposal: &Proposal) -> Vec<&'static Resource> {
        let constraints = "/spec/matchConstraints";
        let policies = self.policies();
        policies
            .filter_map(|policy| self.taken_by(json::at(policy, constraints), proposal))
            .collect()
    }

    /// What policies say of a write. `review` shows it in a version of its kind.
    ///
    /// # Errors
    /// The first refusal, in the real server's words.
    pub fn judge_by_policies(
        &self,
        proposal: &Proposal,
        review: &dyn Fn(&'static Resource) -> Value,
    ) -> Result<Judgement, Status> {
        let mut judgement = Judgement::default();
        for policy in self.policies() {
            let Some(row) = self.taken_by(json::at(policy, "/spec/matchConstraints"), proposal)
            else {
                continue;
            };
            let name = json::text(policy, "/metadata/name");
            let bindings = self.bindings_of(name);
            let review = review(row);
            for binding in bindings {
                let resources = json::at(binding, "/spec/matchResources");
                if resources.is_some() && self.taken_by(resources, proposal).is_none() {
                    continue;
                }
                let bound = Bound { policy, binding };
                self.judge_bound(&bound, proposal, &review, &mut judgement)?;
            }
        }
        if !judgement.unheeded.is_empty() {
            let noted = Value::Array(std::mem::take(&mut judgement.unheeded)).to_string();
            judgement.annotations.insert(FAILURE_ANNOTATION.to_owned(), noted);
        }
        Ok(judgement)
    }

    /// Who writes a policy or a binding must be able to read the parameters that it names, since
    /// its messages can tell them.
    ///
    /// # Errors
    /// 403.
    pub(crate) fn confirm_reads_parameters(
        &self,
        subject: Subject<'_>,
        resource: &'static Resource,
        value: &Value,
    ) -> Result<(), Status> {
        let text = |field| json::text(value, field);
        let policy = match resource == &BINDING {
            false => None,
            true => self.get(&POLICY, "", text("/spec/policyName")).ok(),
        };
        let (kind, verb, namespace, name) = match (resource == &POLICY, resource == &BINDING) {
            (true, _) => (json::at(value, "/spec/paramKind"), "get", "", ""),
            (_, true) if json::at(value, "/spec/paramRef").is_some() => {
                let kind = policy.as_ref().map(|policy| &policy.value);
                let name = text("/spec/paramRef/name");
                let verb = if name.is_empty() { "list" } else { "get" };
                let kind = kind.and_then(|policy| json::at(policy, "/spec/paramKind"));
                (kind.or(Some(&Value::Null)), verb, text("/spec/paramRef/namespace"), name)
            }
            _ => return Ok(()),
        };
        let Some(kind) = kind else { return Ok(()) };
        let row = self.parameter_row(kind);
        // What is not served may be whatever it will be.
        let (group, plural) = row.map_or(("*", "*"), |row| (row.group, row.plural));
        let right = Request::Resource { verb, group, plural, subresource: "", namespace, name };
        self.authorize(subject, &right).map_err(|_| {
            let why = format!(
                "user {:?} does not have {verb:?} permission on what paramKind and paramRef refer \
                 to ({plural} of API group {group:?})",
                subject.name
            );
            Status::forbidden(resource, text("/metadata/name"), why)
        })
    }

    pub(crate) fn parameter_row(&self, kind: &Value) -> Option<&'static Resource> {
        let (version, kind) = (json::text(kind, "/apiVersion"), json::text(kind, "/kind"));
        let mut rows = self.resources().into_iter();
        rows.find(|row| row.kind == kind && row.api_version() == version)
    }

    fn policies(&self) -> impl Iterator<Item = &Value> {
        let shelf = self.shelf(&POLICY).into_iter();
        shelf.flat_map(|shelf| shelf.objects.values()).map(|kept| &*kept.settled().value)
    }

    fn bindings_of<'a>(&'a self, policy: &'a str) -> impl Iterator<Item = &'a Value> {
        let shelf = self.shelf(&BINDING).into_iter();
        let bindings =
            shelf.flat_map(|shelf| shelf.objects.values()).map(|kept| &*kept.settled().value);
        bindings.filter(move |binding| json::text(binding, "/spec/policyName") == policy)
    }

    /// In which version of its resource `MatchResources` take a write. Without rules they take all.
    fn taken_by(
        &self,
        constraints: Option<&Value>,
        proposal: &Proposal,
    ) -> Option<&'static Resource> {
        let constraints = constraints?;
        let equivalence = json::text(constraints, "/matchPolicy");
        let taken = |field| self.taken_as(json::items(constraints, field), equivalence, proposal);
        if taken("/excludeResourceRules").is_some() {
            return None;
        }
        let row = match json::items(constraints, "/resourceRules") {
            [] => proposal.resource,
            _ => taken("/resourceRules")?,
        };
        let is_selected = json::at(constraints, "/objectSelector")
            .is_none_or(|selector| selects(selector, proposal));
        (is_selected && self.is_in_namespaces(constraints, proposal)).then_some(row)
    }

    fn judge_bound(
        &self,
        bound: &Bound<'_>,
        proposal: &Proposal,
        review: &Value,
        judgement: &mut Judgement,
    ) -> Result<(), Status> {
        let parameters = match self.parameters(bound, proposal) {
            Ok(parameters) => parameters,
            Err(_) if bound.lets_failures_pass() => return Ok(()),
            Err(why) => {
                let message = format!("failed to configure binding: {why}");
                return Err(bound.refusal(proposal, &message, ""));
            }
        };
        let namespace = match proposal.namespace.as_str() {
            "" => Value::Null,
            _ if !proposal.resource.namespaced => Value::Null,
            name => self.get(&NAMESPACE, "", name).map_or(Value::Null, |one| one.value.clone()),
        };
        let rights = Rights::of(self, review);
        let seen = Seen { review, rights: &rights, namespace: &namespace };
        for parameter in parameters {
            let parameter = parameter.map_or(Value::Null, |object| object.to_value());
            let failures = bound.evaluate(&seen, &parameter, judgement);
            bound.act(&failures, proposal, judgement)?;
        }
        Ok(())
    }

    /// The parameters of a binding: one run of the policy for each, one without where there is
    /// nothing to refer to, and none where what is referred to may be absent.
    fn parameters(
        &self,
        bound: &Bound<'_>,
        proposal: &Proposal,
    ) -> Result<Vec<Option<Arc<Object>>>, String> {
        let (Some(kind), Some(reference)) =
            (json::at(bound.policy, "/spec/paramKind"), json::at(bound.binding, "/spec/paramRef"))
        else {
            return Ok(vec![None]);
        };
        let row = self.parameter_row(kind).ok_or_else(|| {
            let (version, kind) = (json::text(kind, "/apiVersion"), json::text(kind, "/kind"));
            format!("failed to find resource referenced by paramKind: '{version}, Kind={kind}'")
        })?;
        let named = json::text(reference, "/namespace");
        let namespace = match (row.namespaced, named) {
            (false, "") => "",
            (false, _) => {
                let why =
                    "paramRef.namespace must not be provided for a cluster-scoped `paramKind`";
                return Err(why.to_owned());
            }
            (true, "") if proposal.namespace.is_empty() => {
                return Err("cannot use namespaced paramRef in policy binding that matches \
                            cluster-scoped resources"
                    .to_owned());
            }
            (true, "") => &proposal.namespace,
            (true, named) => named,
        };
        let found: Vec<Arc<Object>> = match json::text(reference, "/name") {
            "" => {
                let selector = json::at(reference, "/selector").unwrap_or(&Value::Null);
                let shelf = self.shelf(row).into_iter();
                let objects = shelf.flat_map(|shelf| shelf.objects.values());
                let chosen = objects.filter(|kept| {
                    let object = kept.untouched();
                    let labels = || object.value.peek("/metadata/labels");
                    object.key.namespace == namespace
                        && selects_labels(selector, labels().as_deref())
                });
                chosen.take(MAX_PARAMETERS + 1).map(Kept::lent).collect()
            }
            name => {
                let key = NamespacedName::new(namespace, name);
                self.shelf(row).and_then(|shelf| shelf.get(&key)).into_iter().collect()
            }
        };
        if let Some(other) = found.iter().find(|object| converter_for(row, object).is_some()) {
            let (wanted, kept) = (row.api_version(), other.resource.version);
            return Err(format!(
                "paramKind names {wanted}, and params are kept as {kept}, which a webhook converts: \
                 name the version that they are kept in"
            ));
        }
        match (found.len(), json::text(reference, "/parameterNotFoundAction")) {
            (0, "Deny") => Err("no params found for policy binding with `Deny` \
                                parameterNotFoundAction"
                .to_owned()),
            (count, _) if count > MAX_PARAMETERS => Err(format!(
                "paramRef selects more than {MAX_PARAMETERS} objects: narrow its selector"
            )),
            _ => Ok(found.iter().map(|object| Some(present(row, object))).collect()),
        }
    }
}

impl Bound<'_> {
    fn lets_failures_pass(&self) -> bool {
        json::text(self.policy, "/spec/failurePolicy") == "Ignore"
    }

    /// What of the policy fails for a write.
    fn evaluate(
        &self,
        seen: &Seen<'_>,
        parameter: &Value,
        judgement: &mut Judgement,
    ) -> Vec<Failure> {
        let has_params = json::at(self.policy, "/spec/paramKind").is_some();
        let mut known = variables(has_params);
        let mut values = expressions::values(seen.review, seen.rights);
        values.push(("namespaceObject", Cel::of(seen.namespace, &Type::Dyn)));
        if has_params {
            values.push(("params", Cel::of(parameter, &Type::Dyn)));
        }
        let conditions = json::items(self.policy, "/spec/matchConditions");
        match expressions::hold(conditions, &known, &values) {
            Ok(true) => {}
            Ok(false) => return Vec::new(),
            Err(message) => return self.failed(message, 0).into_iter().collect(),
        }
        let mut budget = BUDGET;
        let programs = compose(self.policy, &known);
        let mut values = values.clone();
        let (composed, reasons) = run_composed(&programs, &values, &mut budget);
        let types: Vec<(&str, Type)> = programs
            .iter()
            .map(|(name, program)| {
                let kind = program.as_ref().map_or(Type::Dyn, |program| program.result().clone());
                (*name, kind)
            })
            .collect();
        known = with_composed(&known, &types);
        values.push(("variables", composed));
        let mut failures = Vec::new();
        for (index, validation) in json::items(self.policy, "/spec/validations").iter().enumerate()
        {
            match truth(json::text(validation, "/expression"), &known, &values, &mut budget) {
                Ok(true) => {}
                Ok(false) => {
                    let message = message(validation, &known, &values, &mut budget);
                    let reason = json::text(validation, "/reason").to_owned();
                    failures.push(Failure { message, reason, index });
                }
                Err(message) => failures.extend(self.failed(explained(message, &reasons), index)),
            }
        }
        failures.extend(self.annotate(&known, &values, &mut budget, judgement));
        failures
    }

    /// A failure of an expression, where those count.
    fn failed(&self, message: String, index: usize) -> Option<Failure> {
        let counts = !self.lets_failures_pass();
        counts.then(|| Failure { message, reason: String::new(), index })
    }

    /// Notes the policy's audit annotations.
    fn annotate(
        &self,
        known: &[(&str, Type)],
        values: &[(&str, Cel<'_>)],
        budget: &mut u64,
        judgement: &mut Judgement,
    ) -> Option<Failure> {
        let policy = json::text(self.policy, "/metadata/name");
        for (index, one) in json::items(self.policy, "/spec/auditAnnotations").iter().enumerate() {
            match text_of(json::text(one, "/valueExpression"), known, values, budget) {
                Ok(Some(text)) => {
                    let key = format!("{policy}/{}", json::text(one, "/key"));
                    let cut = text.chars().scan(0, |bytes, one| {
                        *bytes += one.len_utf8();
                        (*bytes <= MAX_ANNOTATION_BYTES).then_some(one)
                    });
                    judgement.annotations.insert(key, cut.collect());
                }
                Ok(None) => {}
                Err(message) => return self.failed(message, index),
            }
        }
        None
    }

    /// Does with failures what the binding says.
    fn act(
        &self,
        failures: &[Failure],
        proposal: &Proposal,
        judgement: &mut Judgement,
    ) -> Result<(), Status> {
        let actions = json::texts(self.binding, "/spec/validationActions");
        let (policy, binding) = self.names();
        for failure in failures {
            let message = &failure.message;
            if actions.contains(&"Audit") {
                judgement.unheeded.push(tree!({
                    "message": message,
                    "policy": policy,
                    "binding": binding,
                    "expressionIndex": failure.index,
                    "validationActions": actions,
                }));
            }
            if actions.contains(&"Warn") {
                judgement.warnings.push(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding \
                     '{binding}': {message}"
                ));
            }
            if actions.contains(&"Deny") {
                return Err(self.refusal(proposal, message, &failure.reason));
            }
        }
        Ok(())
    }

    fn names(&self) -> (&str, &str) {
        let name = |object| json::text(object, "/metadata/name");
        (name(self.policy), name(self.binding))
    }

    fn refusal(&self, proposal: &Proposal, message: &str, reason: &str) -> Status {
        let (policy, binding) = self.names();
        let message = format!(
            "ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: \
             {message}"
        );
        let mut status = Status::forbidden(proposal.resource, proposal.name(), &message)
            .with_cause("", message, "");
        (status.reason, status.code) = match reason {
            "Forbidden" => ("Forbidden", 403),
            "Unauthorized" => ("Unauthorized", 401),
            "RequestEntityTooLarge" => ("RequestEntityTooLarge", 413),
            _ => ("Invalid", 422),
        };
        status
    }
}

/// A policy's own variables, compiled.
pub(crate) fn compose<'a>(
    policy: &'a Value,
    known: &[(&'static str, Type)],
) -> Vec<(&'a str, Result<Program, String>)> {
    let mut types: Vec<(&str, Type)> = Vec::new();
    let mut programs = Vec::new();
    for variable in json::items(policy, "/spec/variables") {
        let name = json::text(variable, "/name");
        let scope = with_composed(known, &types);
        let program = Program::compile(json::text(variable, "/expression"), &scope);
        let kind = program.as_ref().map_or(Type::Dyn, |program| program.result().clone());
        types.push((name, kind));
        programs.push((name, program));
    }
    programs
}

/// The values of a policy's own variables. One that fails is absent, and its reason is told by the
/// expression that uses it.
fn run_composed<'a>(
    programs: &'a [(&'a str, Result<Program, String>)],
    values: &[(&'a str, Cel<'a>)],
    budget: &mut u64,
) -> (Cel<'a>, Vec<(&'a str, String)>) {
    let mut entries: Vec<(String, Cel<'a>)> = Vec::new();
    let mut reasons = Vec::new();
    for (name, program) in programs {
        let mut scope = values.to_vec();
        scope.push(("variables", Cel::map(entries.clone())));
        let ran = program.as_ref().map_err(String::clone).and_then(|program| {
            let (result, cost) = program.run(&scope);
            spend(budget, cost)?;
            result.map_err(|error| error.to_string())
        });
        match ran {
            Ok(value) => entries.push(((*name).to_owned(), value)),
            Err(why) => reasons.push((*name, explained(why, &reasons))),
        }
    }
    (Cel::map(entries), reasons)
}

/// A failure for want of a variable is that variable's.
fn explained(message: String, reasons: &[(&str, String)]) -> String {
    let lacks = |name: &str| message.ends_with(&format!("no such key: {name}"));
    match reasons.iter().find(|(name, _)| lacks(name)) {
        Some((name, why)) => {
            let end = message.len().saturating_sub(format!("no such key: {name}").len());
            let front = message.get(..end).unwrap_or_default();
            format!("{front}composited variable \"{name}\" fails to evaluate: {why}")
        }
        None => message,
    }
}

/// What a validation that failed says.
fn message(
    validation: &Value,
    known: &[(&str, Type)],
    values: &[(&str, Cel<'_>)],
    budget: &mut u64,
) -> String {
    let text = |field| json::text(validation, field).trim();
    let made = match text("/messageExpression") {
        "" => None,
        expression => {
            let known = expressions::without_authorizer(known);
            text_of(expression, &known, values, budget).ok().flatten()
        }
    };
    let made = made.map(|text| text.trim().to_owned());
    let is_good =
        |text: &String| !text.is_empty() && text.len() <= MAX_MESSAGE_BYTES && !text.contains('\n');
    match (made.filter(is_good), text("/message")) {
        (Some(made), _) => made,
        (None, "") => format!("failed expression: {}", text("/expression")),
        (None, message) => message.to_owned(),
    }
}

/// The text that an expression comes to; `None` for null.
fn text_of(
    expression: &str,
    known: &[(&str, Type)],
    values: &[(&str, Cel<'_>)],
    budget: &mut u64,
) -> Result<Option<String>, String> {
    let failed = |why: String| format!("expression '{expression}' resulted in error: {why}");
    let program = Program::compile(expression, known).map_err(failed)?;
    let (result, cost) = program.run(values);
    spend(budget, cost)?;
    match result {
        Ok(Cel::Text(text)) => Ok(Some(text.to_string())),
        Ok(Cel::Null) => Ok(None),
        Ok(_) => Err(failed("it is no text".to_owned())),
        Err(error) => Err(failed(error.to_string())),
    }
}
