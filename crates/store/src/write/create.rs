//! POST.

use std::sync::Arc;

use model::NamespacedName;
use serde_json::Value;

use crate::names::{GENERATE_NAME_ATTEMPTS, generate};
use crate::state::Content;
use crate::validate::FieldErrors;
use crate::{Context, Object, Operation, Request, Resource, Status, Store, Subresource, json};

use super::managed::{self, Claim};
use super::{Body, admission, decode_strictly, meta};

impl Store {
    /// Creates an object: decode, default, admit, prepare, validate, allocate, write, in the order
    /// of the real server.
    pub(super) fn create(
        &mut self,
        request: &Request,
        body: &Value,
        context: &mut Context<'_>,
    ) -> Result<Arc<Object>, Status> {
        let Body { value, managed_fields } =
            decode_strictly(request.resource, body.clone(), context)?;
        self.create_decoded(request, value, Claim::Changes(managed_fields), context)
    }

    /// Creates an object that is decoded.
    pub(super) fn create_decoded(
        &mut self,
        request: &Request,
        mut value: Value,
        claim: Claim,
        context: &mut Context<'_>,
    ) -> Result<Arc<Object>, Status> {
        if let Some(refusal) = &context.create_refusal {
            return Err(refusal.clone());
        }
        let resource = request.resource;
        set_namespace(request, &mut value)?;
        let generated = self.generate_name(request, &mut value, context)?;
        resource.fill(&mut value);
        let has_status = resource.has(Subresource::Status);
        let status = if has_status { json::remove(&mut value, "/status") } else { None };
        // What admission adds below is nobody's, as with the real server.
        let managed_fields = managed::after(request, None, &value, claim, context)?;
        if let Some(status) = status.filter(|_| resource.keeps_status_on_create) {
            json::set(&mut value, "/status", status);
        }
        self.admit_custom(request)?;
        self.admit_create(resource, &request.namespace, &mut value, context)?;
        if self.webhook_point(request, None, Some(&mut value), context)? {
            set_namespace(request, &mut value)?;
            resource.fill(&mut value);
            if has_status && !resource.keeps_status_on_create {
                json::remove(&mut value, "/status");
            }
        }
        meta::begin(resource, &mut value, context);
        (resource.prepare_create)(&mut value);
        validate(resource, &value, None)?;
        self.admit_subject(request, None, Some(&value), context)?;
        let name = json::text(&value, "/metadata/name").to_owned();
        let key = NamespacedName::new(request.namespace.clone(), name.clone());
        if let Some(existing) = self.head(resource, &key) {
            return Err(already_exists(resource, &name, &existing, generated));
        }
        self.allocate(resource, &key, &mut value, None, context)?;
        self.establish(resource, &mut value, context)?;
        self.admit_quota(resource, &key, &value, None)?;
        if let Some(custom) = resource.custom {
            // The status that was taken away has defaults too, as the real server's reads show.
            custom.fill(&mut value);
        }
        let content = Content { value, managed_fields };
        self.keep(resource, key, Operation::Create, content, context)
    }

    /// Gives Services their addresses and node ports.
    pub(super) fn allocate(
        &self,
        resource: &'static Resource,
        key: &NamespacedName,
        value: &mut Value,
        old: Option<&Value>,
        context: &mut Context<'_>,
    ) -> Result<(), Status> {
        if resource != &crate::kinds::service::SERVICE {
            return Ok(());
        }
        let errors = self.allocations.fill(key, value, old, context.random, context.dry_run);
        fail(resource, &key.name, &errors)
    }

    /// Chooses a name where only `generateName` is given; whether it did.
    fn generate_name(
        &self,
        request: &Request,
        value: &mut Value,
        context: &mut Context<'_>,
    ) -> Result<bool, Status> {
        let base = json::text(value, "/metadata/generateName").to_owned();
        if !json::text(value, "/metadata/name").is_empty() || base.is_empty() {
            return Ok(false);
        }
        let mut key = NamespacedName::new(request.namespace.clone(), String::new());
        for _ in 0..GENERATE_NAME_ATTEMPTS {
            key.name = generate(&base, context.random);
            if self.head(request.resource, &key).is_none() {
                break;
            }
        }
        json::set(value, "/metadata/name", key.name);
        Ok(true)
    }

    fn admit_create(
        &self,
        resource: &'static Resource,
        namespace: &str,
        value: &mut Value,
        context: &mut Context<'_>,
    ) -> Result<(), Status> {
        self.admit_namespace(resource, namespace, json::text(value, "/metadata/name"))?;
        if resource == &crate::kinds::pod::POD {
            self.admit_limits(namespace, value)?;
            self.admit_service_account(namespace, value, context)?;
            admission::refuse_runtime_class(value)?;
            admission::add_default_tolerations(value);
            self.admit_priority(value)?;
        }
        self.admit_storage(resource, value);
        self.admit_priority_class(resource, value)
    }
}

/// Checks an object as it would be stored.
pub(super) fn validate(
    resource: &Resource,
    value: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let mut errors = FieldErrors::default();
    meta::validate(resource, value, old, &mut errors);
    resource.check(value, old, &mut errors);
    fail(resource, json::text(value, "/metadata/name"), &errors)
}

pub(super) fn fail(resource: &Resource, name: &str, errors: &FieldErrors) -> Result<(), Status> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(resource, name, errors)) }
}

/// Checks the body's namespace against the URL's, and fills it in.
pub(super) fn set_namespace(request: &Request, value: &mut Value) -> Result<(), Status> {
    let given = json::text(value, "/metadata/namespace");
    if !request.resource.namespaced {
        if !given.is_empty() {
            return Err(Status::bad_request("namespace may not be set on cluster-scoped objects"));
        }
        return Ok(());
    }
    if !given.is_empty() && given != request.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    json::set(value, "/metadata/namespace", request.namespace.clone());
    Ok(())
}

fn already_exists(resource: &Resource, name: &str, existing: &Object, generated: bool) -> Status {
    let mut status = Status::already_exists(resource, name);
    if generated {
        status.message = format!(
            "{}, the server was not able to generate a unique name for the object",
            status.message
        );
    } else if existing.is_terminating() {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}
