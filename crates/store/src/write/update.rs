//! PUT and PATCH, on the object and on its parts.

use std::sync::Arc;

use model::NamespacedName;
use serde_json::Value;

use crate::kinds::ephemeral_containers;
use crate::state::Content;
use crate::validate::FieldErrors;
use crate::{
    Context, Object, Operation, PatchKind, Request, Resource, Status, Store, Subresource, json,
    patch,
};

use super::create::{fail, set_namespace, validate};
use super::managed::{self, Claim};
use super::{Body, decode, decode_strictly, meta};

/// Which part of the object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All but the status.
    Main,
    /// The status.
    Status,
    /// The containers that are added to a running pod.
    Added,
    /// The finalizers of a namespace's spec.
    Finalize,
}

impl Store {
    /// PUT.
    pub(super) fn update(
        &mut self,
        request: &Request,
        body: &Value,
        part: Part,
        context: &mut Context<'_>,
    ) -> Result<Arc<Object>, Status> {
        let resource = request.resource;
        let Body { value, managed_fields } = decode_strictly(resource, body.clone(), context)?;
        let key = NamespacedName::new(request.namespace.clone(), request.name.clone());
        if self.head(resource, &key).is_none()
            && resource.create_on_update
            && part == Part::Main
            && json::text(&value, "/metadata/name") == request.name
        {
            return self.create(request, body, context);
        }
        let old = self.head_or_not_found(request)?;
        self.replace(request, &old, value, part, Claim::Changes(managed_fields), context)
    }

    /// PATCH: the patched object takes the way of an update.
    pub(super) fn patch(
        &mut self,
        request: &Request,
        kind: PatchKind,
        body: &Value,
        part: Part,
        context: &mut Context<'_>,
    ) -> Result<Arc<Object>, Status> {
        if request.resource.custom.is_some() && kind == PatchKind::Strategic {
            return Err(Status::no_strategic_patch());
        }
        let old = self.head_or_not_found(request)?;
        let patched = patch::apply(request.resource, kind, &old.to_value(), body)?;
        if let Some(message) = request.resource.message() {
            // What stood twice in the patch is known already.
            let unknown = schema::decode::unknown_fields(message, &patched);
            context.validation.faults.extend(unknown);
        }
        let complaint = context.validation.complaint().map(|complaint| {
            let shown = match kind {
                PatchKind::Json => patched.to_string(),
                PatchKind::Merge | PatchKind::Strategic => go_text(body),
            };
            let mut errors = FieldErrors::default();
            errors.invalid("patch", shown, &complaint);
            Status::invalid_kind("", "", "", &errors)
        });
        // A wrong type is told first.
        let Body { value, managed_fields } = decode(request.resource, patched)?;
        complaint.map_or(Ok(()), Err)?;
        self.replace(request, &old, value, part, Claim::Changes(managed_fields), context)
    }

    /// Puts `value` in the place of `old`, as far as `part` allows.
    pub(super) fn replace(
        &mut self,
        request: &Request,
        old: &Arc<Object>,
        mut value: Value,
        part: Part,
        claim: Claim,
        context: &mut Context<'_>,
    ) -> Result<Arc<Object>, Status> {
        let resource = request.resource;
        check_version(resource, old, &value)?;
        hold_to(request, old, part, &mut value)?;
        let managed_fields = managed::after(request, Some(old), &value, claim, context)?;
        if self.webhook_point(request, Some(old), Some(&mut value), context)? {
            hold_to(request, old, part, &mut value)?;
        }
        if part == Part::Main {
            (resource.prepare_update)(&mut value, &old.value);
        }
        meta::normalize(&mut value);
        meta::count_generation(resource, &mut value, &old.value);
        self.admit_priority_class(resource, &value)?;
        match part {
            Part::Finalize => {}
            Part::Main | Part::Status => validate(resource, &value, Some(&old.value))?,
            Part::Added => validate_added(resource, &value, &old.value)?,
        }
        self.admit_subject(request, Some(&old.value), Some(&value), context)?;
        self.admit_growth(resource, &value, &old.value)?;
        self.allocate(resource, &old.key, &mut value, Some(&old.value), context)?;
        if part == Part::Main {
            self.establish(resource, &mut value, context)?;
            self.admit_quota(resource, &old.key, &value, Some(&old.value))?;
        }
        self.finish_update(resource, old, Content { value, managed_fields }, context)
    }

    /// Writes the new version, unless nothing changed; removes the object when this was the last
    /// thing that its deletion waited for.
    pub(super) fn finish_update(
        &mut self,
        resource: &'static Resource,
        old: &Arc<Object>,
        content: Content,
        context: &mut Context<'_>,
    ) -> Result<Arc<Object>, Status> {
        let Content { value, managed_fields } = content;
        let is_same =
            value == old.value && managed::is_same(&managed_fields, &old.managed_fields());
        if is_same && !may_go(&value) {
            return Ok(old.clone());
        }
        let operation = if may_go(&value) { Operation::Delete } else { Operation::Update };
        let content = Content { value, managed_fields };
        self.keep(resource, old.key.clone(), operation, content, context)
    }
}

/// Checks containers that were added. In all else the pod is what it was.
fn validate_added(resource: &Resource, value: &Value, old: &Value) -> Result<(), Status> {
    let mut errors = FieldErrors::default();
    ephemeral_containers::validate(value, old, &mut errors);
    fail(resource, json::text(value, "/metadata/name"), &errors)
}

/// Takes back what a write of this part of the object may not change, and fills in what it leaves
/// out.
fn hold_to(request: &Request, old: &Object, part: Part, value: &mut Value) -> Result<(), Status> {
    check_name(request, value)?;
    set_namespace(request, value)?;
    meta::carry_over(value, &old.value);
    restrict(request.resource, part, value, &old.value);
    request.resource.fill(value);
    Ok(())
}

/// A tree as Go prints it: the real server shows a refused patch so.
fn go_text(value: &Value) -> String {
    let join = |texts: Vec<String>| texts.join(" ");
    match value {
        Value::Object(members) => {
            let members =
                members.iter().map(|(name, member)| format!("{name}:{}", go_text(member)));
            format!("map[{}]", join(members.collect()))
        }
        Value::Array(items) => format!("[{}]", join(items.iter().map(go_text).collect())),
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".to_owned(),
        other => other.to_string(),
    }
}

/// Whether an object that is being deleted has nothing left to wait for.
pub(super) fn may_go(value: &Value) -> bool {
    json::at(value, "/metadata/deletionTimestamp").is_some()
        && json::items(value, "/metadata/finalizers").is_empty()
        && json::integer(value, "/metadata/deletionGracePeriodSeconds").unwrap_or(0) == 0
        && (json::text(value, "/kind") != "Namespace"
            || json::items(value, "/spec/finalizers").is_empty())
}

pub(super) fn check_name(request: &Request, value: &mut Value) -> Result<(), Status> {
    let name = json::text(value, "/metadata/name");
    if name.is_empty() {
        json::set(value, "/metadata/name", request.name.clone());
    } else if name != request.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            request.name
        )));
    }
    Ok(())
}

/// Optimistic locking: who names a version or an identity means that one.
fn check_version(resource: &Resource, old: &Object, value: &Value) -> Result<(), Status> {
    let name = &old.key.name;
    let uid = json::text(value, "/metadata/uid");
    if !uid.is_empty() && uid != old.uid() {
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: /registry/{}/{}, ResourceVersion: 0, \
             AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object \
             meta: {}",
            resource.plural,
            old.key,
            old.uid()
        );
        return Err(Status::conflict(resource, name, why));
    }
    let version = json::text(value, "/metadata/resourceVersion");
    if version.is_empty() || version == "0" {
        if resource.unconditional_update {
            return Ok(());
        }
        let mut errors = FieldErrors::default();
        let why = "must be specified for an update";
        errors.invalid("metadata.resourceVersion", version, why);
        return Err(Status::invalid(resource, name, &errors));
    }
    if version.parse() != Ok(old.revision) {
        return Err(Status::modified(resource, name));
    }
    Ok(())
}

/// Takes back what this path may not change.
fn restrict(resource: &Resource, part: Part, value: &mut Value, old: &Value) {
    match part {
        Part::Main => {
            if resource.has(Subresource::Status) {
                json::copy(value, old, "/status");
            }
        }
        Part::Status => {
            let mut restricted = old.clone();
            json::copy(&mut restricted, value, "/status");
            if resource.metadata_through_status {
                json::copy(&mut restricted, value, "/metadata/labels");
                json::copy(&mut restricted, value, "/metadata/annotations");
            }
            *value = restricted;
        }
        Part::Added => {
            let mut restricted = old.clone();
            json::copy(&mut restricted, value, "/spec/ephemeralContainers");
            *value = restricted;
        }
        Part::Finalize => {
            let mut restricted = old.clone();
            json::copy(&mut restricted, value, "/spec/finalizers");
            *value = restricted;
        }
    }
}
