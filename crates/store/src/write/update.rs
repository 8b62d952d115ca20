//! PUT and PATCH, on the object and on its parts.

use std::sync::Arc;

use model::NamespacedName;
use serde_json::Value;

use crate::read::present;
use crate::validate::FieldErrors;
use crate::{
    Context, Object, Operation, PatchKind, Request, Resource, Status, Store, Subresource, json,
    patch,
};

use super::create::{set_namespace, validate};
use super::{decode, meta, to_storage};

/// Which part of the object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All but the status.
    Main,
    /// The status.
    Status,
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
        let value = decode(resource, body.clone())?;
        let key = NamespacedName::new(request.namespace.clone(), request.name.clone());
        if self.head(resource, &key).is_none()
            && resource.create_on_update
            && part == Part::Main
            && json::text(&value, "/metadata/name") == request.name
        {
            return self.create(request, body, context);
        }
        let old = self.head_or_not_found(request)?;
        self.replace(request, &old, value, part, context)
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
        let old = self.head_or_not_found(request)?;
        let patched = patch::apply(request.resource, kind, &old.value, body)?;
        let value = decode(request.resource, patched)?;
        self.replace(request, &old, value, part, context)
    }

    /// Puts `value` in the place of `old`, as far as `part` allows.
    pub(super) fn replace(
        &mut self,
        request: &Request,
        old: &Arc<Object>,
        mut value: Value,
        part: Part,
        context: &mut Context<'_>,
    ) -> Result<Arc<Object>, Status> {
        let resource = request.resource;
        check_name(request, &mut value)?;
        set_namespace(request, &mut value)?;
        check_version(resource, old, &value)?;
        meta::carry_over(&mut value, &old.value);
        restrict(resource, part, &mut value, &old.value);
        (resource.default)(&mut value);
        if part == Part::Main {
            (resource.prepare_update)(&mut value, &old.value);
        }
        meta::normalize(&mut value);
        meta::count_generation(resource, &mut value, &old.value);
        if part != Part::Finalize {
            validate(resource, &value, Some(&old.value))?;
        }
        self.allocate(resource, &old.key, &mut value, Some(&old.value), context)?;
        self.finish_update(resource, old, value, context)
    }

    /// Writes the new version, unless nothing changed; removes the object when this was the last
    /// thing that its deletion waited for.
    pub(super) fn finish_update(
        &mut self,
        resource: &'static Resource,
        old: &Arc<Object>,
        value: Value,
        context: &mut Context<'_>,
    ) -> Result<Arc<Object>, Status> {
        if value == old.value && !may_go(&value) {
            return Ok(old.clone());
        }
        let operation = if may_go(&value) { Operation::Delete } else { Operation::Update };
        let value = to_storage(resource, value);
        let object = self.commit(resource, old.key.clone(), operation, value, context);
        Ok(present(resource, &object))
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

fn check_name(request: &Request, value: &mut Value) -> Result<(), Status> {
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
        Part::Finalize => {
            let mut restricted = old.clone();
            json::copy(&mut restricted, value, "/spec/finalizers");
            *value = restricted;
        }
    }
}
