//! DELETE of one object and of a collection.

use std::sync::Arc;
use std::time::Duration;

use model::Timestamp;
use serde_json::Value;

use crate::conversion::{converter_for, unconverted};
use crate::kinds::core::NAMESPACE;
use crate::kinds::definition::DEFINITION;
use crate::read::present;
use crate::selector::{FieldSelector, LabelSelector, selects};
use crate::state::Content;
use crate::validate::FieldErrors;
use crate::{
    Context, DeleteOptions, Object, Operation, Preconditions, Propagation, Reply, Request,
    Resource, Status, Store, json,
};

use super::{meta, priority, update};

/// The finalizer under which an owner waits for what it owns.
const FOREGROUND_FINALIZER: &str = "foregroundDeletion";
/// The finalizer under which an owner waits until what it owns is released.
const ORPHAN_FINALIZER: &str = "orphan";
/// Seconds that a pod gets to stop when nobody says otherwise.
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// Namespaces that the cluster cannot be without.
const IMMORTAL_NAMESPACES: &[&str] = &["default", "kube-system", "kube-public"];

impl Store {
    /// DELETE of one object.
    pub(super) fn delete(
        &mut self,
        request: &Request,
        options: &DeleteOptions,
        context: &mut Context<'_>,
    ) -> Result<Reply, Status> {
        let resource = request.resource;
        let old = self.head_or_not_found(request)?;
        if resource == &NAMESPACE && IMMORTAL_NAMESPACES.contains(&request.name.as_str()) {
            let why = "this namespace may not be deleted";
            return Err(Status::forbidden(resource, &request.name, why));
        }
        priority::admit_delete(resource, &request.name)?;
        self.admit_subject(request, Some(&old.value), None, context)?;
        check_preconditions(resource, &old, &options.preconditions)?;
        self.webhook_point(request, Some(&old), None, context)?;
        let (object, gone) = self.remove_shown(resource, &old, options, context)?;
        if gone && !resource.returns_deleted {
            return Ok(Reply::Status(Status::deleted(resource, &request.name, old.uid())));
        }
        Ok(Reply::Object(object))
    }

    /// DELETE of all objects that the selectors choose.
    pub(super) fn delete_collection(
        &mut self,
        request: &Request,
        options: &DeleteOptions,
        labels: &LabelSelector,
        fields: &FieldSelector,
        context: &mut Context<'_>,
    ) -> Result<Reply, Status> {
        let resource = request.resource;
        if !resource.allows("deletecollection") {
            return Err(Status::method_not_allowed());
        }
        let mut chosen = self.head_objects(resource.storage);
        chosen.retain(|object| {
            request.namespace.is_empty() || request.namespace == object.key.namespace
        });
        let shown: Vec<_> =
            chosen.iter().filter_map(|object| self.conversions.present(resource, object)).collect();
        if self.conversions.is_wanting() {
            return Err(unconverted(resource));
        }
        let mut objects = Vec::new();
        for old in shown.iter().filter(|old| selects(labels, fields, old)) {
            objects.push(self.remove_shown(resource, old, options, context)?.0);
        }
        Ok(Reply::Objects(resource, objects))
    }

    /// Removes an object as a row shows it, and gives what becomes of it in the same form.
    fn remove_shown(
        &mut self,
        resource: &'static Resource,
        old: &Arc<Object>,
        options: &DeleteOptions,
        context: &mut Context<'_>,
    ) -> Result<(Arc<Object>, bool), Status> {
        let kept = self.head(resource, &old.key).filter(|_| resource.custom.is_some());
        let Some(kept) = kept else { return self.remove(resource, old, options, context) };
        let (object, gone) = self.remove(resource, &kept, options, context)?;
        if converter_for(resource, &object).is_none() {
            return Ok((present(resource, &object), gone));
        }
        // No more than this has changed, and that is the same in all versions.
        let mut value = old.value.clone();
        for field in
            ["deletionGracePeriodSeconds", "deletionTimestamp", "generation", "resourceVersion"]
        {
            json::copy(&mut value, &object.value, &format!("/metadata/{field}"));
        }
        let content = Content { value, managed_fields: old.managed_fields() };
        Ok((Arc::new(content.into_object(resource, old.key.clone(), object.revision)), gone))
    }

    /// Removes an object, or marks it when something is to happen first. Gives the object and
    /// whether it is gone. A custom object is given as it is kept, and stays in that version:
    /// what changes of it is the same in all.
    pub(crate) fn remove(
        &mut self,
        resource: &'static Resource,
        old: &Arc<Object>,
        options: &DeleteOptions,
        context: &mut Context<'_>,
    ) -> Result<(Arc<Object>, bool), Status> {
        let mut value = old.value.clone();
        if resource.custom.is_none() {
            set_propagation_finalizers(&mut value, options.propagation);
        } else if options.propagation == Some(Propagation::Orphan) {
            self.orphan_dependents(old, context);
        }
        let grace_seconds =
            if resource.graceful { pod_grace_seconds(&old.value, options) } else { 0 };
        mark(&mut value, grace_seconds, context.now);
        if resource == &NAMESPACE {
            json::set(&mut value, "/status/phase", "Terminating");
            self.delete_custom_objects(&old.key.name, context)?;
        } else if resource == &DEFINITION {
            self.delete_instances(&mut value, context)?;
        }
        let gone = update::may_go(&value);
        let resource = if resource.custom.is_some() { old.resource } else { resource };
        let content = Content { value, managed_fields: old.managed_fields() };
        if !gone && old.value == content.value {
            return Ok((old.clone(), false));
        }
        if resource.custom.is_some() {
            let operation = if gone { Operation::Delete } else { Operation::Update };
            return Ok((self.commit(resource, old.key.clone(), operation, content, context), gone));
        }
        Ok((self.finish_update(resource, old, content, context)?, gone))
    }
}

/// Sets or shortens the deletion deadline.
fn mark(value: &mut Value, grace_seconds: i64, now: Timestamp) {
    let deadline = |from: Timestamp, seconds: i64| {
        from.after(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))).to_string()
    };
    let marked = Timestamp::parse(json::text(value, "/metadata/deletionTimestamp"));
    let marked_grace = json::integer(value, "/metadata/deletionGracePeriodSeconds").unwrap_or(0);
    match marked {
        None => {
            json::set(value, "/metadata/deletionTimestamp", deadline(now, grace_seconds));
            json::set(value, "/metadata/deletionGracePeriodSeconds", grace_seconds);
            meta::bump_generation(value);
        }
        Some(end) if grace_seconds < marked_grace => {
            let earlier = end.seconds().saturating_sub(marked_grace);
            let begin = Timestamp::from_seconds(earlier);
            json::set(value, "/metadata/deletionTimestamp", deadline(begin, grace_seconds));
            json::set(value, "/metadata/deletionGracePeriodSeconds", grace_seconds);
        }
        // A later deletion never gives more time than the first.
        Some(_) => {}
    }
}

/// Only a pod that may run on a node needs time to stop.
fn pod_grace_seconds(pod: &Value, options: &DeleteOptions) -> i64 {
    let own = json::integer(pod, "/spec/terminationGracePeriodSeconds");
    let grace = options.grace_period_seconds.or(own).unwrap_or(DEFAULT_GRACE_SECONDS);
    let ended = matches!(json::text(pod, "/status/phase"), "Succeeded" | "Failed");
    if json::text(pod, "/spec/nodeName").is_empty() || ended {
        return 0;
    }
    // A negative grace period means the shortest that is none.
    if grace < 0 { 1 } else { grace }
}

fn set_propagation_finalizers(value: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else {
        return;
    };
    let mut finalizers: Vec<String> = json::texts(value, "/metadata/finalizers")
        .into_iter()
        .filter(|name| !matches!(*name, FOREGROUND_FINALIZER | ORPHAN_FINALIZER))
        .map(str::to_owned)
        .collect();
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => finalizers.push(FOREGROUND_FINALIZER.to_owned()),
        Propagation::Orphan => finalizers.push(ORPHAN_FINALIZER.to_owned()),
    }
    if finalizers.is_empty() {
        json::remove(value, "/metadata/finalizers");
    } else {
        json::set(value, "/metadata/finalizers", finalizers);
    }
}

pub(super) fn check_preconditions(
    resource: &Resource,
    object: &Object,
    preconditions: &Preconditions,
) -> Result<(), Status> {
    let fail = |why: String| {
        // The real server names the kind here, not the plural.
        let name = &object.key.name;
        let mut status = Status::conflict(resource, name, &why);
        let kind = if resource.group.is_empty() {
            resource.kind.to_owned()
        } else {
            format!("{}.{}", resource.kind, resource.group)
        };
        status.message = format!("Operation cannot be fulfilled on {kind} {name:?}: {why}");
        if let Some(details) = &mut status.details {
            details.kind = resource.kind.to_owned();
        }
        Err(status)
    };
    if let Some(uid) = preconditions.uid.as_deref().filter(|uid| *uid != object.uid()) {
        return fail(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The \
             object might have been deleted and then recreated",
            object.uid()
        ));
    }
    let version = object.revision.to_string();
    if let Some(wanted) = preconditions.resource_version.as_ref().filter(|rv| **rv != version) {
        return fail(format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the \
             ResourceVersion in record ({version}). The object might have been modified"
        ));
    }
    Ok(())
}

/// Reads a `DeleteOptions` body.
pub(crate) fn delete_options(value: &Value) -> Result<DeleteOptions, Status> {
    if value.is_null() {
        return Ok(DeleteOptions::default());
    }
    if !value.is_object() {
        return Err(Status::bad_request("the body of a DELETE must be a DeleteOptions object"));
    }
    let kind = json::text(value, "/kind");
    if !matches!(kind, "" | "DeleteOptions") {
        return Err(Status::bad_request(format!(
            "the body of a DELETE must be a DeleteOptions object, not a {kind}"
        )));
    }
    let propagation = match json::text(value, "/propagationPolicy") {
        // The form of before there were policies.
        "" => json::at(value, "/orphanDependents")
            .and_then(Value::as_bool)
            .map(|orphan| if orphan { Propagation::Orphan } else { Propagation::Background }),
        "Background" => Some(Propagation::Background),
        "Foreground" => Some(Propagation::Foreground),
        "Orphan" => Some(Propagation::Orphan),
        other => {
            let mut errors = FieldErrors::default();
            let supported = ["Background", "Foreground", "Orphan"];
            errors.unsupported("propagationPolicy", other, &supported);
            return Err(Status::invalid_kind("meta.k8s.io", "DeleteOptions", "", &errors));
        }
    };
    let text = |pointer| json::at(value, pointer).and_then(Value::as_str).map(str::to_owned);
    Ok(DeleteOptions {
        grace_period_seconds: json::integer(value, "/gracePeriodSeconds"),
        propagation,
        preconditions: Preconditions {
            uid: text("/preconditions/uid"),
            resource_version: text("/preconditions/resourceVersion"),
        },
    })
}
