//! The claims of a StatefulSet's pods: they outlive the pods, so that the next of the same name has
//! the same data.

use serde_json::{Value, json};

use model::meta::OwnerReference;

use crate::kind::Kind;
use crate::object::{Object, beside};
use crate::write::{Outcome, Step, Write, list_or_null};

use super::{COMPONENT, Context};

/// Whether a claim may be one of a pod of the set.
pub(super) fn is_of(set: &Object, claim: &str) -> bool {
    let templates = set.stateful_set().map_or(&[][..], |view| &view.spec.volume_claim_templates);
    templates.iter().any(|template| {
        let rest = claim.strip_prefix(name_of(template));
        let rest = rest.and_then(|rest| rest.strip_prefix('-')?.strip_prefix(&*set.meta.name));
        rest.is_some_and(|rest| rest.starts_with('-'))
    })
}

/// Whether all claims of a pod are there; makes those that are missing. One that is being deleted
/// must be gone first.
pub(super) fn are_there(context: &Context<'_>, pod: &str, outcome: &mut Outcome) -> bool {
    let mut all = true;
    for template in &context.set.spec.volume_claim_templates {
        let name = format!("{}-{pod}", name_of(template));
        let key = beside(&context.object.meta, &name);
        match context.snapshot.get(Kind::PersistentVolumeClaim, &key) {
            Some(claim) => all &= !claim.is_terminating(),
            None => {
                all = false;
                outcome.push(create(context, template, &name, pod));
            }
        }
    }
    all
}

/// Gives the pod its claims as volumes, in the place of volumes of the same names.
pub(super) fn mount(context: &Context<'_>, pod: &str, spec: &mut Value) {
    let templates = &context.set.spec.volume_claim_templates;
    if templates.is_empty() {
        return;
    }
    let mut volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    volumes.retain(|volume| templates.iter().all(|one| volume["name"] != name_of(one)));
    volumes.extend(templates.iter().map(|template| {
        let name = name_of(template);
        json!({"name": name, "persistentVolumeClaim": {"claimName": format!("{name}-{pod}")}})
    }));
    spec["volumes"] = json!(volumes);
}

/// Has claims go with the set, or with a pod that is one too many, where the set says so
/// (KEP-1847).
pub(super) fn set_owners(context: &Context<'_>, outcome: &mut Outcome) {
    let policy = &context.set.spec.persistent_volume_claim_retention_policy;
    let (with_set, with_pod) = (policy.when_deleted == "Delete", policy.when_scaled == "Delete");
    let wanted_ordinals = context.ordinals();
    for (ordinal, pod) in &context.pods {
        let condemned = !wanted_ordinals.contains(ordinal);
        let owner = match (with_set, with_pod && condemned) {
            (_, true) => Some(pod.controller_reference()),
            (true, false) => Some(context.object.controller_reference()),
            (false, false) => None,
        };
        for template in &context.set.spec.volume_claim_templates {
            let name = format!("{}-{}", name_of(template), pod.meta.name);
            let key = beside(&context.object.meta, &name);
            let claim = context.snapshot.get(Kind::PersistentVolumeClaim, &key);
            outcome.steps.extend(claim.and_then(|claim| {
                let ours = [context.object.meta.uid.as_str(), pod.meta.uid.as_str()];
                own(claim, &ours, owner.as_ref())
            }));
        }
    }
}

/// Makes `owner` the only one of `ours` that owns the claim. Other owners stay.
fn own(claim: &Object, ours: &[&str], owner: Option<&OwnerReference>) -> Option<Step> {
    let present = &claim.meta.owner_references;
    let (held, mut wanted): (Vec<_>, Vec<_>) =
        present.iter().cloned().partition(|reference| ours.contains(&reference.uid.as_str()));
    if held.iter().map(|one| &one.uid).eq(owner.iter().map(|one| &one.uid)) {
        return None;
    }
    wanted.extend(owner.cloned());
    let body = json!({"metadata": {"ownerReferences": list_or_null(&wanted)}});
    Some(Step::quiet(claim.patch_unchanged(body)))
}

fn create(context: &Context<'_>, template: &Value, name: &str, pod: &str) -> Step {
    let set = &context.object.meta;
    let mut labels = template.pointer("/metadata/labels").cloned().unwrap_or_else(|| json!({}));
    for (key, value) in &context.set.spec.selector.match_labels {
        labels[key] = json!(value);
    }
    let mut metadata = json!({"name": name, "namespace": set.namespace, "labels": labels});
    if let Some(annotations) = template.pointer("/metadata/annotations") {
        metadata["annotations"] = annotations.clone();
    }
    let mut body = Kind::PersistentVolumeClaim.object(metadata);
    body["spec"] = template["spec"].clone();
    let tell = |reason, end: &str| {
        let message = format!("create Claim {name} Pod {pod} in StatefulSet {} {end}", set.name);
        context.object.report(COMPONENT, reason, message)
    };
    let namespace = set.namespace.clone();
    Step::quiet(Write::Create { kind: Kind::PersistentVolumeClaim, namespace, body })
        .on_success(tell("SuccessfulCreate", "success"))
        .on_failure(tell("FailedCreate", "failed error: {error}").warning())
}

/// The name of the volume in the pods.
fn name_of(template: &Value) -> &str {
    template.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}
