//! Writes: one function per verb, written once over the rows of the registry.

mod admission;
mod aggregation;
mod apply;
mod create;
mod delete;
mod evict;
mod limits;
mod managed;
mod meta;
mod node_restriction;
mod priority;
mod quota;
mod service_account;
mod storage;
mod subresources;
mod update;
mod usage;
mod webhook_point;

use std::sync::Arc;

use model::NamespacedName;
use serde_json::{Value, json as tree};

use crate::conversion::{Conversions, unconverted};
use crate::kinds::ephemeral_containers;
use crate::read::present;
use crate::state::Content;
use crate::{
    Action, Context, FieldDirective, FieldValidation, Object, Operation, Reply, Request, Resource,
    Staged, Status, Store, Subresource, json,
};

pub(crate) use delete::delete_options;
pub(crate) use meta::{begin, validate_annotations, validate_labels};

impl Store {
    /// Runs one write against the head state. Nothing of it is visible to reads until
    /// [`Store::publish`]; a failed one leaves nothing behind.
    ///
    /// # Errors
    /// The `Status` that the client gets.
    pub fn stage(
        &mut self,
        request: &Request,
        context: &mut Context<'_>,
    ) -> Result<Staged, Status> {
        self.conversions = Conversions::default();
        let staged = self.stage_known(request, context);
        if self.conversions.is_wanting() { Err(unconverted(request.resource)) } else { staged }
    }

    /// As [`Store::stage`], with what webhooks have converted for it. Where more is to be converted
    /// the answer is that, and nothing has happened.
    ///
    /// # Errors
    /// As for [`Store::stage`].
    pub fn stage_converted(
        &mut self,
        request: &Request,
        context: &mut Context<'_>,
        conversions: Conversions,
    ) -> Result<Staged, Status> {
        self.conversions = conversions;
        let staged = self.stage_known(request, context);
        let conversions = std::mem::take(&mut self.conversions);
        match conversions.is_wanting() {
            true => Ok(Staged::unfinished(Reply::Conversions(Box::new(conversions)))),
            false => staged,
        }
    }

    fn stage_known(
        &mut self,
        request: &Request,
        context: &mut Context<'_>,
    ) -> Result<Staged, Status> {
        let staged_before = self.staged_count();
        let key = NamespacedName::new(request.namespace.clone(), request.name.clone());
        let existed = self.head(request.resource, &key).is_some();
        let mut warnings = Vec::new();
        self.removed.clear();
        self.proposal = None;
        let ran = self.run(request, context, &mut warnings);
        if let Some(proposal) = self.proposal.take() {
            return Ok(Staged::unfinished(Reply::Proposal(Box::new(proposal))));
        }
        let reply = ran?;
        self.follow_removals(context)?;
        if context.validation.directive == FieldDirective::Warn {
            warnings.append(&mut context.validation.faults);
        }
        let records = self.records_since(staged_before);
        let code = match &reply {
            Reply::Status(status) => status.code,
            // Also PUT and PATCH make objects.
            Reply::Object(_) if !existed => 201,
            _ => 200,
        };
        Ok(Staged { code, reply, warnings, records })
    }

    fn run(
        &mut self,
        request: &Request,
        context: &mut Context<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Reply, Status> {
        let resource = request.resource;
        if let Some(subresource) = request.subresource {
            if !resource.has(subresource) {
                return Err(Status::unknown_path());
            }
            return self.write_subresource(request, subresource, context);
        }
        let notice = |warnings: &mut Vec<String>| {
            warnings.extend(resource.notice.map(str::to_owned));
        };
        match &request.action {
            Action::Create(body) => {
                if !request.name.is_empty() {
                    return Err(Status::method_not_allowed());
                }
                let object = self.create(request, body, context)?;
                notice(warnings);
                Ok(Reply::Object(object))
            }
            Action::Update(body) => {
                let object = self.update(request, body, update::Part::Main, context)?;
                notice(warnings);
                Ok(Reply::Object(object))
            }
            Action::Patch(kind, patch) => {
                let object = self.patch(request, *kind, patch, update::Part::Main, context)?;
                notice(warnings);
                Ok(Reply::Object(object))
            }
            Action::Apply { config, force } => {
                let object = self.apply(request, config, *force, update::Part::Main, context)?;
                notice(warnings);
                Ok(Reply::Object(object))
            }
            Action::Delete(options) => self.delete(request, options, context),
            Action::DeleteCollection(options, labels, fields) => {
                self.delete_collection(request, options, labels, fields, context)
            }
        }
    }

    fn write_subresource(
        &mut self,
        request: &Request,
        subresource: Subresource,
        context: &mut Context<'_>,
    ) -> Result<Reply, Status> {
        use update::Part;
        match (subresource, &request.action) {
            (Subresource::Status, Action::Update(body)) => {
                self.update(request, body, Part::Status, context).map(Reply::Object)
            }
            (Subresource::Status, Action::Patch(kind, patch)) => {
                self.patch(request, *kind, patch, Part::Status, context).map(Reply::Object)
            }
            (Subresource::Status, Action::Apply { config, force }) => {
                self.apply(request, config, *force, Part::Status, context).map(Reply::Object)
            }
            (Subresource::EphemeralContainers, Action::Update(body))
                if json::text(body, "/kind") == "EphemeralContainers" =>
            {
                let old = self.head_or_not_found(request)?;
                let pod = ephemeral_containers::with_additions(&old.to_value(), body);
                // They were found in a kind that has no row, and so no fields.
                context.validation.faults.clear();
                self.update(request, &pod, Part::Added, context).map(Reply::Object)
            }
            (Subresource::EphemeralContainers, Action::Update(body)) => {
                self.update(request, body, Part::Added, context).map(Reply::Object)
            }
            (Subresource::EphemeralContainers, Action::Patch(kind, patch)) => {
                self.patch(request, *kind, patch, Part::Added, context).map(Reply::Object)
            }
            (Subresource::EphemeralContainers, Action::Apply { config, force }) => {
                self.apply(request, config, *force, Part::Added, context).map(Reply::Object)
            }
            (Subresource::Finalize, Action::Update(body)) => {
                self.check_emptied(&request.name)?;
                self.update(request, body, Part::Finalize, context).map(Reply::Object)
            }
            (Subresource::Scale, Action::Update(body)) => {
                self.update_scale(request, body, context).map(Reply::Value)
            }
            (Subresource::Scale, Action::Patch(kind, patch)) => {
                self.patch_scale(request, *kind, patch, context).map(Reply::Value)
            }
            (Subresource::Scale, Action::Apply { config, force }) => {
                self.apply_scale(request, config, *force, context).map(Reply::Value)
            }
            (Subresource::Binding, Action::Create(body)) => {
                self.bind(request, body, context).map(Reply::Status)
            }
            (Subresource::Eviction, Action::Create(body)) => {
                self.evict(request, body, context).map(Reply::Status)
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    /// Writes what stands in the form of a row, in the form in which its storage keeps it (two rows
    /// may share a storage), and gives it in the form of the row.
    fn keep(
        &mut self,
        resource: &'static Resource,
        key: NamespacedName,
        operation: Operation,
        content: Content,
        context: &mut Context<'_>,
    ) -> Result<Arc<Object>, Status> {
        let row = self.storage_row(resource);
        let Content { mut value, managed_fields } = content;
        if row == resource || resource.converter().is_none() {
            if row != resource && row.custom.is_none() {
                value = crate::kinds::events::convert(&value, row);
            }
            json::set(&mut value, "/apiVersion", row.api_version());
            let content = Content { value, managed_fields };
            let object = self.commit(resource, key, operation, content, context);
            return Ok(present(resource, &object));
        }
        let given = Content { value, managed_fields };
        let given = Arc::new(given.into_object(resource, key.clone(), 0));
        let kept = self.shown(row, &given)?;
        let old = self.head(row, &key).filter(|_| operation == Operation::Update);
        if let Some(old) = old.filter(|old| {
            old.value == kept.value
                && managed::is_same(&old.managed_fields(), &kept.managed_fields())
        }) {
            // What is new is lost in the version that is kept.
            return Ok(Arc::new(given.at_revision(old.revision)));
        }
        let object = self.commit(row, key, operation, Content::of(&kept), context);
        Ok(match object.revision {
            0 => given,
            revision => Arc::new(given.at_revision(revision)),
        })
    }

    /// An object as a row shows it.
    fn shown(
        &mut self,
        resource: &'static Resource,
        object: &Arc<Object>,
    ) -> Result<Arc<Object>, Status> {
        self.conversions.present(resource, object).ok_or_else(|| unconverted(resource))
    }

    fn head_or_not_found(&mut self, request: &Request) -> Result<Arc<Object>, Status> {
        let key = NamespacedName::new(request.namespace.clone(), request.name.clone());
        let found = self.head(request.resource, &key);
        let object = found.ok_or_else(|| Status::not_found(request.resource, &request.name))?;
        self.shown(request.resource, &object)
    }
}

/// Deepest nesting of an object, in levels: stored text must read back (the parser stops at 128,
/// and a log entry adds some).
pub const MAX_OBJECT_DEPTH: usize = 100;
/// Largest object, in bytes of its text, as etcd's default.
pub const MAX_OBJECT_BYTES: usize = 1_536 * 1024;

/// Refuses what could not be stored and read back. Patches reach sizes that no body has.
pub(crate) fn check_size(value: &Value) -> Result<(), Status> {
    let measure = json::measure(value, MAX_OBJECT_DEPTH);
    if measure.depth > MAX_OBJECT_DEPTH {
        return Err(Status::bad_request(format!(
            "the object is nested too deeply: at most {MAX_OBJECT_DEPTH} levels are allowed"
        )));
    }
    if measure.bytes > MAX_OBJECT_BYTES {
        return Err(too_large());
    }
    Ok(())
}

fn too_large() -> Status {
    let message = format!("Request entity too large: limit is {MAX_OBJECT_BYTES}");
    Status::failure(413, "RequestEntityTooLarge", message)
}

/// What a body says.
struct Body {
    /// The object, without `managedFields`.
    value: Value,
    /// Those, if any.
    managed_fields: Option<Value>,
}

/// Reads a body as an object of the row: right kind, no nulls, known fields of the right types.
fn decode(resource: &Resource, mut value: Value) -> Result<Body, Status> {
    check_size(&value)?;
    strip_nulls(resource, &mut value);
    if !value.is_object() {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; \
             json: cannot unmarshal into Go value of type struct",
            resource.kind
        )));
    }
    let version = resource.api_version();
    let given_version = json::text(&value, "/apiVersion");
    let given_kind = json::text(&value, "/kind");
    if !given_kind.is_empty() && given_kind != resource.kind {
        let from = if given_version.is_empty() { version.as_str() } else { given_version };
        let internal = if resource.group.is_empty() { "core" } else { resource.group };
        return Err(Status::bad_request(format!(
            "{given_kind} in version {from:?} cannot be handled as a {}: converting \
             ({from}.{given_kind}) to ({internal}.{}): unknown conversion",
            resource.kind, resource.kind
        )));
    }
    if !given_version.is_empty() && given_version != version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({given_version}) does not match the expected API version \
             ({version})"
        )));
    }
    check_types(resource, &value)?;
    if let Some(message) = resource.message() {
        schema::decode::prune_unknown(message, &mut value);
    }
    json::set(&mut value, "/apiVersion", version);
    json::set(&mut value, "/kind", resource.kind);
    let managed_fields = json::remove(&mut value, "/metadata/managedFields");
    meta::normalize(&mut value);
    Ok(Body { value, managed_fields })
}

/// Checks the types of what Go decodes; of a custom object that is the metadata, and the rest is
/// for its schema to judge.
fn check_types(resource: &Resource, value: &Value) -> Result<(), Status> {
    let Some(message) = resource.message() else { return Ok(()) };
    let checked = match (resource.custom, value.get("metadata")) {
        (None, _) => schema::decode::check_types(message, value),
        (Some(_), None) => Ok(()),
        (Some(_), Some(metadata)) => {
            schema::decode::check_types(message, &tree!({"metadata": metadata}))
        }
    };
    checked.map_err(|complaint| cannot_be_handled(resource, &complaint))
}

/// Clients send nulls for absent values. In custom objects a null may be a value.
fn strip_nulls(resource: &Resource, value: &mut Value) {
    match (resource.custom, value.as_object_mut()) {
        (Some(_), Some(members)) => {
            members.retain(|_, member| !member.is_null());
            members.get_mut("metadata").into_iter().for_each(json::strip_nulls);
        }
        _ => json::strip_nulls(value),
    }
}

/// As [`decode`], and refuses what `fieldValidation` forbids.
fn decode_strictly(
    resource: &Resource,
    value: Value,
    context: &Context<'_>,
) -> Result<Body, Status> {
    decode_as(resource, value, &context.validation)
}

fn decode_as(
    resource: &Resource,
    value: Value,
    validation: &FieldValidation,
) -> Result<Body, Status> {
    let body = decode(resource, value)?;
    match validation.complaint() {
        Some(complaint) => Err(cannot_be_handled(resource, &complaint)),
        None => Ok(body),
    }
}

/// Reads a body that is answered and not stored.
pub(crate) fn read(
    resource: &Resource,
    value: Value,
    validation: &FieldValidation,
) -> Result<Value, Status> {
    decode_as(resource, value, validation).map(|body| body.value)
}

fn cannot_be_handled(resource: &Resource, complaint: &str) -> Status {
    Status::bad_request(format!(
        "{} in version {:?} cannot be handled as a {}: {complaint}",
        resource.kind, resource.version, resource.kind
    ))
}
