//! `eviction`: a deletion that asks the pod's PodDisruptionBudget first.

use std::sync::Arc;

use serde_json::{Value, json as tree};

use crate::kinds::apps::selects_labels;
use crate::kinds::policy::POD_DISRUPTION_BUDGET;
use crate::state::Content;
use crate::webhooks::{Admission, Kind};
use crate::{Action, Context, DeleteOptions, Object, Request, Status, Store, Subresource, json};

use super::subresources::set_condition;

/// What is posted to `eviction`.
const EVICTION: Kind = ("policy", "v1", "Eviction");
/// Evictions of one budget that may be under way: its controller is then far behind.
const MAX_DISRUPTED_PODS: usize = 2_000;
/// When a client asks again whose budget has not been looked at yet.
const PROCESSING_RETRY_SECONDS: u32 = 10;

impl Store {
    /// POST on `eviction`.
    pub(super) fn evict(
        &mut self,
        request: &Request,
        body: &Value,
        context: &mut Context<'_>,
    ) -> Result<Status, Status> {
        let name = json::text(body, "/metadata/name");
        if !name.is_empty() && name != request.name {
            return Err(Status::bad_request("name in URL does not match name in Eviction object"));
        }
        let mut body = body.clone();
        self.webhook_point_as(EVICTION, request, None, &mut body, context)?;
        // They are asked about the eviction; what follows from it is the server's.
        context.admission = Admission::Whole;
        let mut options =
            DeleteOptions::from_value(json::at(&body, "/deleteOptions").unwrap_or(&Value::Null))?;
        let pod = self.head_or_not_found(request)?;
        if counts(&pod) {
            self.spend_budget(&pod, context)?;
        }
        super::delete::check_preconditions(request.resource, &pod, &options.preconditions)?;
        self.tell_why(&pod, context)?;
        // Telling it made a new version.
        options.preconditions.resource_version = None;
        self.delete(request, &options, context)?;
        Ok(Status::success(201))
    }

    /// Says on the pod that it is evicted, before it goes (KEP-3329).
    fn tell_why(&mut self, pod: &Arc<Object>, context: &mut Context<'_>) -> Result<(), Status> {
        let mut value = pod.value.clone();
        let condition = tree!({
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting",
            "lastTransitionTime": context.now.to_string(),
        });
        set_condition(&mut value, condition);
        let content = Content { value, managed_fields: pod.managed_fields() };
        self.finish_update(pod.resource, pod, content, context).map(drop)
    }

    /// Takes one eviction from the budget of a pod, where it has one.
    fn spend_budget(&mut self, pod: &Object, context: &mut Context<'_>) -> Result<(), Status> {
        let labels = json::at(&pod.value, "/metadata/labels");
        let mut budgets = self.head_objects(POD_DISRUPTION_BUDGET.storage);
        budgets.retain(|budget| {
            let selector = json::at(&budget.value, "/spec/selector");
            budget.key.namespace == pod.key.namespace
                && selector.is_some_and(|selector| selects_labels(selector, labels))
        });
        let budget = match budgets.as_slice() {
            [] => return Ok(()),
            [budget] => budget.clone(),
            _ => {
                let message = "This pod has more than one PodDisruptionBudget, which the eviction \
                               subresource does not support.";
                return Err(Status::failure(500, "InternalError", message));
            }
        };
        if !is_ready(pod) && lets_unready_go(&budget.value) {
            return Ok(());
        }
        check(&budget.value, &budget.key.name)?;
        let mut value = budget.value.clone();
        let allowed = json::integer(&value, "/status/disruptionsAllowed").unwrap_or(0);
        json::set(&mut value, "/status/disruptionsAllowed", allowed - 1);
        if let Some(pods) = json::object_mut(&mut value, "/status/disruptedPods") {
            pods.insert(pod.key.name.clone(), context.now.to_string().into());
        }
        let write = Request {
            resource: &POD_DISRUPTION_BUDGET,
            namespace: budget.key.namespace.clone(),
            name: budget.key.name.clone(),
            subresource: Some(Subresource::Status),
            action: Action::Update(value),
        };
        self.write_subresource(&write, Subresource::Status, context).map(drop)
    }
}

/// Whether a pod serves anybody: only then is a budget asked.
fn counts(pod: &Object) -> bool {
    let phase = json::text(&pod.value, "/status/phase");
    !matches!(phase, "Succeeded" | "Failed" | "Pending") && !pod.is_terminating()
}

fn is_ready(pod: &Object) -> bool {
    let conditions = json::items(&pod.value, "/status/conditions");
    let ready = conditions.iter().find(|condition| json::text(condition, "/type") == "Ready");
    ready.is_some_and(|condition| json::text(condition, "/status") == "True")
}

/// Whether pods that are not ready need no budget (KEP-3017): with `AlwaysAllow`, or while the
/// others are enough.
fn lets_unready_go(budget: &Value) -> bool {
    if json::text(budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow" {
        return true;
    }
    let number = |name: &str| json::integer(budget, &format!("/status/{name}")).unwrap_or(0);
    let desired = number("desiredHealthy");
    desired > 0 && number("currentHealthy") >= desired
}

fn check(budget: &Value, name: &str) -> Result<(), Status> {
    let number = |pointer: &str| json::integer(budget, pointer).unwrap_or(0);
    if number("/status/observedGeneration") < number("/metadata/generation") {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        let mut status = refused(cause);
        if let Some(details) = &mut status.details {
            details.retry_after_seconds = Some(PROCESSING_RETRY_SECONDS);
        }
        return Err(status);
    }
    let under_way = json::members(budget, "/status/disruptedPods").count();
    if under_way > MAX_DISRUPTED_PODS {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Status::forbidden(&POD_DISRUPTION_BUDGET, name, why));
    }
    if number("/status/disruptionsAllowed") > 0 {
        return Ok(());
    }
    Err(refused(format!(
        "The disruption budget {name} needs {} healthy pods and has {} currently",
        number("/status/desiredHealthy"),
        number("/status/currentHealthy"),
    )))
}

fn refused(cause: String) -> Status {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    Status::failure(429, "TooManyRequests", message).with_cause("DisruptionBudget", cause, "")
}
