//! `scale` and `binding`.

use std::sync::Arc;

use serde_json::{Value, json as tree};

use crate::conversion::Conversions;
use crate::kinds::apps;
use crate::state::Content;
use crate::validate::FieldErrors;
use crate::webhooks::Kind;
use crate::{Context, Object, PatchKind, Request, Resource, Status, Store, json, patch};

use super::managed::{self, Claim};
use super::{apply, meta};

/// What `scale` reads and writes.
const SCALE: Kind = ("autoscaling", "v1", "Scale");
/// What is posted to `binding`.
const BINDING: Kind = ("", "v1", "Binding");

impl Store {
    /// The published `autoscaling/v1 Scale` of an object.
    ///
    /// # Errors
    /// 404 when there is no such object, or the row has no scale.
    pub fn get_scale(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Value, Status> {
        self.scale_converted(resource, namespace, name, &mut Conversions::default())
    }

    /// As [`Store::get_scale`], with what webhooks have converted, or are to convert then.
    ///
    /// # Errors
    /// As for [`Store::get_scale`]; 500 where a webhook would have to convert the object.
    pub fn scale_converted(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        conversions: &mut Conversions,
    ) -> Result<Value, Status> {
        if !resource.has(crate::Subresource::Scale) {
            return Err(Status::unknown_path());
        }
        let object = self.get_converted(resource, namespace, name, conversions)?;
        Ok(scale_of(&object))
    }

    /// PUT on `scale`.
    pub(super) fn update_scale(
        &mut self,
        request: &Request,
        scale: &Value,
        context: &mut Context<'_>,
    ) -> Result<Value, Status> {
        let old = self.head_or_not_found(request)?;
        self.replace_scale(request, &old, scale, Claim::Changes(None), context)
    }

    /// PATCH on `scale`.
    pub(super) fn patch_scale(
        &mut self,
        request: &Request,
        kind: PatchKind,
        body: &Value,
        context: &mut Context<'_>,
    ) -> Result<Value, Status> {
        let old = self.head_or_not_found(request)?;
        // A Scale has no lists, so the strategic form is the merge form.
        let kind = if kind == PatchKind::Strategic { PatchKind::Merge } else { kind };
        let scale = patch::apply(request.resource, kind, &scale_of(&old), body)?;
        self.replace_scale(request, &old, &scale, Claim::Changes(None), context)
    }

    /// Server-side apply on `scale`: the manager owns the one field of the object that it sets.
    pub(super) fn apply_scale(
        &mut self,
        request: &Request,
        scale: &Value,
        force: bool,
        context: &mut Context<'_>,
    ) -> Result<Value, Status> {
        let old = self.head_or_not_found(request)?;
        apply::check_kind(scale, "autoscaling/v1", "Scale")?;
        let replicas = replicas_of(scale)?;
        let mut config = tree!({});
        json::set(&mut config, replicas_pointer(request.resource), replicas);
        let applied = apply::settle(request, Some(&old), &config, force, context)?;
        self.replace_scale(request, &old, scale, Claim::Settled(applied.managers), context)
    }

    fn replace_scale(
        &mut self,
        request: &Request,
        old: &Arc<Object>,
        scale: &Value,
        claim: Claim,
        context: &mut Context<'_>,
    ) -> Result<Value, Status> {
        let resource = request.resource;
        let mut scale = scale.clone();
        let shown = Content { value: scale_of(old), managed_fields: None };
        let shown = shown.into_object(resource, old.key.clone(), old.revision);
        self.webhook_point_as(SCALE, request, Some(&Arc::new(shown)), &mut scale, context)?;
        let scale = &scale;
        let version = json::text(scale, "/metadata/resourceVersion");
        if !version.is_empty() && version.parse() != Ok(old.revision) {
            return Err(Status::modified(resource, &request.name));
        }
        let replicas = replicas_of(scale)?;
        if replicas < 0 {
            let mut errors = FieldErrors::default();
            let why = "must be greater than or equal to 0";
            errors.invalid("spec.replicas", replicas, why);
            return Err(Status::invalid_kind("autoscaling", "Scale", &request.name, &errors));
        }
        let mut value = old.value.clone();
        json::set(&mut value, replicas_pointer(resource), replicas);
        let managed_fields = managed::after(request, Some(old), &value, claim, context)?;
        meta::count_generation(resource, &mut value, &old.value);
        let content = Content { value, managed_fields };
        let object = self.finish_update(resource, old, content, context)?;
        Ok(scale_of(&object))
    }

    /// POST on `binding`: gives a pod its node.
    pub(super) fn bind(
        &mut self,
        request: &Request,
        body: &Value,
        context: &mut Context<'_>,
    ) -> Result<Status, Status> {
        let old = self.head_or_not_found(request)?;
        let mut body = body.clone();
        self.webhook_point_as(BINDING, request, None, &mut body, context)?;
        let body = &body;
        let name = &request.name;
        let fail = |why: String| Err(Status::conflict(request.resource, name, why));
        let node = json::text(body, "/target/name");
        if node.is_empty() {
            let mut errors = FieldErrors::default();
            errors.required("target.name", "");
            return Err(Status::invalid_kind("", "Binding", name, &errors));
        }
        let uid = json::text(body, "/metadata/uid");
        if !uid.is_empty() && uid != old.uid() {
            return fail(format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                old.uid()
            ));
        }
        if old.is_terminating() {
            return fail(format!("pod {name} is being deleted, cannot be assigned to a host"));
        }
        let bound = json::text(&old.value, "/spec/nodeName");
        if !bound.is_empty() {
            return fail(format!("pod {name} is already assigned to node {bound:?}"));
        }
        if !json::items(&old.value, "/spec/schedulingGates").is_empty() {
            return fail(format!("pod {name} has non-empty .spec.schedulingGates"));
        }
        let mut value = old.value.clone();
        json::set(&mut value, "/spec/nodeName", node);
        set_condition(
            &mut value,
            tree!({
                "type": "PodScheduled",
                "status": "True",
                "lastProbeTime": null,
                "lastTransitionTime": context.now.to_string(),
            }),
        );
        json::strip_nulls(&mut value);
        let content = Content { value, managed_fields: old.managed_fields() };
        self.finish_update(request.resource, &old, content, context)?;
        Ok(Status::success(201))
    }
}

/// The number that a Scale wants; none means none.
fn replicas_of(scale: &Value) -> Result<i64, Status> {
    match json::at(scale, "/spec/replicas") {
        None => Ok(0),
        Some(number) => number.as_i64().filter(|n| i32::try_from(*n).is_ok()).ok_or_else(|| {
            Status::bad_request(
                "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal \
                 into Go struct field ScaleSpec.spec.replicas of type int32",
            )
        }),
    }
}

/// Puts a condition in the place of the one of its type.
pub(super) fn set_condition(value: &mut Value, condition: Value) {
    let kind = json::text(&condition, "/type").to_owned();
    let mut conditions = json::items(value, "/status/conditions").to_vec();
    conditions.retain(|other| json::text(other, "/type") != kind);
    conditions.push(condition);
    json::set(value, "/status/conditions", conditions);
}

/// Where an object has its wanted replicas.
fn replicas_pointer(resource: &Resource) -> &'static str {
    let scale = resource.custom.and_then(|custom| custom.scale.as_ref());
    scale.map_or("/spec/replicas", |scale| scale.spec_replicas.as_str())
}

/// The Scale of an object: its selector stands in it as text.
fn scale_of(object: &Object) -> Value {
    let value = &object.value;
    let mut metadata = tree!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(member) = value.pointer(&format!("/metadata/{field}")) {
            json::set(&mut metadata, &format!("/{field}"), member.clone());
        }
    }
    let (replicas, selector) = match object.resource.custom.and_then(|custom| custom.scale.as_ref())
    {
        None => ("/status/replicas", apps::scale_selector(object.resource, value)),
        Some(scale) => {
            let selector = scale.selector.as_deref().map(|pointer| json::text(value, pointer));
            (scale.status_replicas.as_str(), selector.unwrap_or_default().to_owned())
        }
    };
    let wanted = json::integer(value, replicas_pointer(object.resource));
    tree!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": wanted.unwrap_or(0)},
        "status": {
            "replicas": json::integer(value, replicas).unwrap_or(0),
            "selector": selector,
        },
    })
}
