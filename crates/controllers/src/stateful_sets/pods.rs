//! The pods of a StatefulSet: who they are, and what people are told of them.

use serde_json::{Value, json};

use crate::kind::Kind;
use crate::object::Object;
use crate::revisions::{self, REVISION_HASH};
use crate::template;
use crate::write::{Outcome, Step, Write};

use super::{COMPONENT, Context, claims};

/// The label of a pod with its name, so that a Service can select one pod.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// The label of a pod with its ordinal.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The ordinal in the name of a pod; `None` for names that no pod of the set has.
pub(super) fn ordinal_of(set: &Object, pod: &Object) -> Option<i32> {
    let digits = pod.meta.name.strip_prefix(set.meta.name.as_str())?.strip_prefix('-')?;
    let ordinal: i32 = digits.parse().ok()?;
    // `web-01` and `web-+1` are names of others.
    (ordinal.to_string() == digits).then_some(ordinal)
}

/// The name of the revision that a pod is of.
pub(super) fn revision_of(pod: &Object) -> &str {
    pod.meta.labels.get(REVISION_HASH).map_or("", String::as_str)
}

/// Makes the pod of an ordinal, of the revision that belongs there.
pub(super) fn create(context: &Context<'_>, ordinal: i32, outcome: &mut Outcome) {
    let set = context.object;
    let name = format!("{}-{ordinal}", set.meta.name);
    if !claims::are_there(context, &name, outcome) {
        return;
    }
    let update = &context.set.spec.update_strategy;
    let partition = update.rolling_update.partition.unwrap_or(0).max(0);
    let keeps_old =
        update.kind != "OnDelete" && ordinal < context.ordinals().start.saturating_add(partition);
    let revision = if keeps_old { &context.current } else { &context.update };
    let template = match revisions::template_of(revision).filter(|_| keeps_old) {
        Some(template) => template,
        None => context.set.spec.template.clone(),
    };
    let mut body = template::pod(&template, set);
    body["metadata"]["name"] = json!(name);
    let labels = &mut body["metadata"]["labels"];
    labels[REVISION_HASH] = json!(revision.meta.name);
    labels[POD_NAME] = json!(name);
    labels[POD_INDEX] = json!(ordinal.to_string());
    body["spec"]["hostname"] = json!(name);
    body["spec"]["subdomain"] = match context.set.spec.service_name.as_str() {
        "" => Value::Null,
        service => json!(service),
    };
    claims::mount(context, &name, &mut body["spec"]);
    let namespace = set.meta.namespace.clone();
    let write = Write::Create { kind: Kind::Pod, namespace, body };
    outcome.push(told(context, &name, "create", Step::quiet(write)));
}

/// Deletes a pod.
pub(super) fn delete(context: &Context<'_>, pod: &Object) -> Step {
    told(context, &pod.meta.name, "delete", Step::quiet(pod.delete()))
}

/// Deletes a pod whose containers have ended for good.
pub(super) fn delete_ended(context: &Context<'_>, pod: &Object) -> Step {
    let failed = pod.pod().is_some_and(|view| view.status.phase == "Failed");
    let (reason, what) = match failed {
        true => ("RecreatingFailedPod", "failed"),
        false => ("RecreatingTerminatedPod", "terminated"),
    };
    let set = &context.object.meta;
    let message = format!("StatefulSet {} is recreating {what} Pod {}", set.key(), pod.meta.name);
    let report = context.object.report(COMPONENT, reason, message);
    let report = if failed { report.warning() } else { report };
    Step::quiet(pod.delete()).on_success(report)
}

/// Gives an adopted pod the labels of its place, where it lacks them.
pub(super) fn mend_identity(pod: &Object, ordinal: i32) -> Option<Step> {
    let wanted = [(POD_NAME, pod.meta.name.clone()), (POD_INDEX, ordinal.to_string())];
    if wanted.iter().all(|(key, value)| pod.meta.labels.get(*key) == Some(value)) {
        return None;
    }
    let labels: serde_json::Map<String, Value> =
        wanted.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect();
    Some(Step::quiet(pod.patch(json!({"metadata": {"labels": labels}}))))
}

fn told(context: &Context<'_>, pod: &str, verb: &str, step: Step) -> Step {
    let set = &context.object.meta.name;
    let (success, failure) = match verb {
        "create" => ("SuccessfulCreate", "FailedCreate"),
        _ => ("SuccessfulDelete", "FailedDelete"),
    };
    let tell = |reason, end: &str| {
        let message = format!("{verb} Pod {pod} in StatefulSet {set} {end}");
        context.object.report(COMPONENT, reason, message)
    };
    step.on_success(tell(success, "successful"))
        .on_failure(tell(failure, "failed error: {error}").warning())
}
