//! Server-side apply (KEP-555): PATCH with what the manager wants, and nothing else.

use std::sync::Arc;

use model::NamespacedName;
use schema::apply::{self, Applied, Conflict, Manager, Managers, Operation};
use serde_json::{Value, json as tree};

use crate::status::Cause;
use crate::{Context, FieldDirective, Object, Request, Resource, Status, Store, Subresource, json};

use super::managed::{self, Claim};
use super::update::{Part, check_name};
use super::{Body, check_size, decode, meta};

/// Who owns the fields of an object that nobody was on record for when it was applied first.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// kubectl's name as a manager. It moves from applying by itself to server-side apply.
const KUBECTL: &str = "kubectl";
/// What kubectl applied by itself, as JSON text.
const LAST_APPLIED: &str =
    "/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration";

impl Store {
    /// Applies a configuration; makes the object where there is none.
    pub(super) fn apply(
        &mut self,
        request: &Request,
        config: &Value,
        force: bool,
        part: Part,
        context: &mut Context<'_>,
    ) -> Result<Arc<Object>, Status> {
        let resource = request.resource;
        let key = NamespacedName::new(request.namespace.clone(), request.name.clone());
        let old = self.head(resource, &key);
        let old = old.map(|old| self.shown(resource, &old)).transpose()?;
        if old.is_none() && part != Part::Main {
            return Err(Status::not_found(resource, &request.name));
        }
        let config = configuration(request, config, part, context)?;
        let applied = settle(request, old.as_deref(), &config, force, context)?;
        let Body { mut value, .. } = decode(resource, applied.object)?;
        let claim = Claim::Settled(applied.managers);
        match old {
            Some(old) => self.replace(request, &old, value, part, claim, context),
            None => {
                check_name(request, &mut value)?;
                self.create_decoded(request, value, claim, context)
            }
        }
    }
}

/// Refuses a configuration of another kind.
pub(super) fn check_kind(config: &Value, api_version: &str, kind: &str) -> Result<(), Status> {
    let given = (json::text(config, "/apiVersion"), json::text(config, "/kind"));
    if given == (api_version, kind) {
        return Ok(());
    }
    Err(Status::bad_request(format!("invalid object type: {}", type_text(given.0, given.1))))
}

/// What the apply makes of the object and of its managers.
pub(super) fn settle(
    request: &Request,
    old: Option<&Object>,
    config: &Value,
    force: bool,
    context: &Context<'_>,
) -> Result<Applied, Status> {
    let nothing = tree!({});
    let live = old.map_or(&nothing, |old| &old.value);
    let Some(message) = request.resource.message() else {
        return Err(Status::internal(format!("{:?} has no fields", request.resource)));
    };
    let manager = managed::manager(request, Operation::Apply, context);
    let managers = managers_before(request, old, context);
    let attempt =
        |force| apply::apply(message, live, config, &managers, &manager, force, context.now);
    let mut applied = match attempt(force) {
        Ok(applied) => applied,
        Err(conflicts) => {
            let conflicts = without_own(request, live, conflicts, context);
            if !conflicts.is_empty() {
                return Err(refusal(&conflicts));
            }
            attempt(true).map_err(|conflicts| refusal(&conflicts))?
        }
    };
    if context.manager == KUBECTL && json::at(&applied.object, LAST_APPLIED).is_some() {
        let mut last = config.clone();
        json::remove(&mut last, LAST_APPLIED);
        json::set(&mut applied.object, LAST_APPLIED, format!("{last}\n"));
        // What is too large for it goes without, as in the real server.
        if meta::annotation_bytes(&applied.object) > meta::MAX_ANNOTATIONS_BYTES {
            json::remove(&mut applied.object, LAST_APPLIED);
        }
    }
    Ok(applied)
}

/// Reads a configuration: only fields that the kind has, each item of a list once, and only the
/// part that may be applied here.
fn configuration(
    request: &Request,
    config: &Value,
    part: Part,
    context: &Context<'_>,
) -> Result<Value, Status> {
    let resource = request.resource;
    check_size(config)?;
    let mut config = config.clone();
    super::strip_nulls(resource, &mut config);
    if !config.is_object() {
        return Err(Status::bad_request("error decoding YAML: the body is no object"));
    }
    check_kind(&config, &resource.api_version(), resource.kind)?;
    if config.pointer("/metadata/managedFields").is_some() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let faults = &context.validation.faults;
    if context.validation.directive == FieldDirective::Strict && !faults.is_empty() {
        let why = faults.join(", ");
        return Err(Status::bad_request(format!("error strict decoding YAML: {why}")));
    }
    super::check_types(resource, &config)?;
    if let Some(message) = resource.message() {
        let problems = apply::problems(message, &config);
        if !problems.is_empty() {
            return Err(not_typed(request, &problems));
        }
    }
    restrict(resource, part, &mut config);
    meta::normalize(&mut config);
    Ok(config)
}

/// Takes out what this path may not change: nobody owns it by an apply here.
fn restrict(resource: &Resource, part: Part, config: &mut Value) {
    if part == Part::Main {
        if resource.has(Subresource::Status) {
            json::remove(config, "/status");
        }
        return;
    }
    let own = if part == Part::Added { "spec" } else { "status" };
    if let Some(members) = config.as_object_mut() {
        members.retain(|name, _| {
            matches!(name.as_str(), "apiVersion" | "kind" | "metadata") || name == own
        });
    }
    if part == Part::Added
        && let Some(spec) = config.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.retain(|name, _| name == "ephemeralContainers");
    }
    let through_status = resource.metadata_through_status;
    if let Some(metadata) = json::object_mut(config, "/metadata") {
        metadata.retain(|name, _| match name.as_str() {
            "name" | "namespace" | "uid" | "resourceVersion" => true,
            "labels" | "annotations" => through_status,
            _ => false,
        });
    }
}

/// The managers of an object. One that nobody is on record for belongs to its past.
fn managers_before(request: &Request, old: Option<&Object>, context: &Context<'_>) -> Managers {
    let managers = managed::of_object(old);
    let (true, Some(old), Some(message)) = (managers.is_empty(), old, request.resource.message())
    else {
        return managers;
    };
    let manager = Manager {
        name: BEFORE_FIRST_APPLY.to_owned(),
        ..managed::manager(request, Operation::Update, context)
    };
    let mut live = old.value.clone();
    if request.resource.has(Subresource::Status) {
        json::remove(&mut live, "/status");
    }
    apply::update(message, &tree!({}), &live, &managers, &manager, context.now)
}

/// The conflicts that remain when kubectl takes back what it applied by itself before: fields
/// that still have the values of its last configuration.
fn without_own(
    request: &Request,
    live: &Value,
    mut conflicts: Vec<Conflict>,
    context: &Context<'_>,
) -> Vec<Conflict> {
    let last: Option<Value> = serde_json::from_str(json::text(live, LAST_APPLIED)).ok();
    if let (KUBECTL, Some(mut last), Some(message)) =
        (context.manager, last, request.resource.message())
    {
        json::strip_nulls(&mut last);
        let own = apply::still(message, &last, live);
        for conflict in &mut conflicts {
            conflict.fields = conflict.fields.difference(&own);
        }
        conflicts.retain(|conflict| !conflict.fields.is_empty());
    }
    conflicts
}

/// The real server's words for conflicts.
fn refusal(conflicts: &[Conflict]) -> Status {
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    for conflict in conflicts {
        let shown = shown(&conflict.manager);
        lines.push(format!("conflicts with {shown}:"));
        for field in conflict.fields.paths() {
            lines.push(format!("- {field}"));
            causes.push(Cause {
                reason: "FieldManagerConflict".to_owned(),
                message: format!("conflict with {shown}"),
                field,
            });
        }
    }
    let message = match causes.as_slice() {
        [only] => format!("Apply failed with 1 conflict: {}: {}", only.message, only.field),
        several => format!("Apply failed with {} conflicts: {}", several.len(), lines.join("\n")),
    };
    Status::apply_conflict(message, causes)
}

fn shown(manager: &Manager) -> String {
    let mut text = format!("{:?}", manager.name);
    if !manager.subresource.is_empty() {
        text.push_str(&format!(" with subresource {:?}", manager.subresource));
    }
    if manager.operation == Operation::Update {
        text.push_str(&format!(" using {}", manager.api_version));
    }
    text
}

/// The real server calls this a fault of its own.
fn not_typed(request: &Request, problems: &[String]) -> Status {
    let resource = request.resource;
    let place = match request.namespace.as_str() {
        "" => format!("/{}", request.name),
        namespace => format!("{namespace}/{}", request.name),
    };
    let problems = match problems {
        [only] => only.clone(),
        several => format!("errors:\n  {}", several.join("\n  ")),
    };
    let kind = type_text(&resource.api_version(), resource.kind);
    let message = format!("failed to create typed patch object ({place}; {kind}): {problems}");
    Status::failure(500, "", message)
}

/// A kind as Go prints it: `apps/v1, Kind=Deployment`, `/v1, Kind=Pod`.
fn type_text(api_version: &str, kind: &str) -> String {
    let slash = if api_version.contains('/') { "" } else { "/" };
    format!("{slash}{api_version}, Kind={kind}")
}
