//! PodDisruptionBudgets: how many of the selected pods may be evicted now. The eviction itself
//! asks in the store (`store::write::evict`), which counts down until this controller has looked
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use model::Timestamp;
use model::kinds::IntOrString;
use model::meta::null_as_default;
use model::selector::LabelSelector;

use crate::conditions;
use crate::controller::Input;
use crate::kind::{Kind, ObjectKey};
use crate::object::{Condition, Object};
use crate::share::share;
use crate::snapshot::{Change, Snapshot};
use crate::write::{Outcome, Step};

const COMPONENT: &str = "controllermanager";
const ALLOWED: &str = "DisruptionAllowed";
/// How long an eviction that was allowed may take until the pod is being deleted: the deletion
/// may have failed, and the pod then counts again.
const DELETION_TIMEOUT: Duration = Duration::from_secs(120);

/// A PodDisruptionBudget.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct DisruptionBudget {
    /// `spec`.
    pub spec: DisruptionBudgetSpec,
    /// `status`.
    pub status: DisruptionBudgetStatus,
}

/// `spec` of a PodDisruptionBudget.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DisruptionBudgetSpec {
    /// Selects the pods; none when absent, all when empty.
    pub selector: Option<LabelSelector>,
    /// Pods that must stay.
    pub min_available: Option<IntOrString>,
    /// Pods that may be missing.
    pub max_unavailable: Option<IntOrString>,
}

/// `status` of a PodDisruptionBudget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DisruptionBudgetStatus {
    /// The generation that the status speaks of.
    pub observed_generation: i64,
    /// Evictions that were allowed and not seen yet: pod name to time.
    #[serde(deserialize_with = "null_as_default")]
    pub disrupted_pods: BTreeMap<String, Timestamp>,
    /// Evictions that are allowed now.
    pub disruptions_allowed: i32,
    /// Ready pods.
    pub current_healthy: i32,
    /// Pods that must be ready.
    pub desired_healthy: i32,
    /// Pods that there should be.
    pub expected_pods: i32,
    /// DisruptionAllowed.
    #[serde(deserialize_with = "null_as_default")]
    pub conditions: Vec<Condition>,
}

pub(crate) fn interested(change: &Change, snapshot: &Snapshot, keys: &mut BTreeSet<ObjectKey>) {
    for object in change.both() {
        match object.kind {
            Kind::PodDisruptionBudget => {
                keys.insert(object.key());
            }
            Kind::Pod => {
                let budgets =
                    snapshot.in_namespace(Kind::PodDisruptionBudget, &object.meta.namespace);
                keys.extend(budgets.filter(|budget| selects(budget, object)).map(|one| one.key()));
            }
            // The number of pods that there should be.
            Kind::Deployment
            | Kind::ReplicaSet
            | Kind::ReplicationController
            | Kind::StatefulSet => {
                let budgets =
                    snapshot.in_namespace(Kind::PodDisruptionBudget, &object.meta.namespace);
                keys.extend(budgets.map(|budget| budget.key()));
            }
            _ => {}
        }
    }
}

fn selects(budget: &Object, pod: &Object) -> bool {
    let selector = budget.disruption_budget().and_then(|view| view.spec.selector.as_ref());
    selector.is_some_and(|selector| selector.matches(&pod.meta.labels))
}

pub(crate) fn reconcile(key: &ObjectKey, snapshot: &Snapshot, input: &Input<'_>) -> Outcome {
    let mut outcome = Outcome::nothing();
    let Some(object) = snapshot.get(Kind::PodDisruptionBudget, &key.name) else { return outcome };
    let Some(budget) = object.disruption_budget() else { return outcome };
    if object.is_terminating() {
        return outcome;
    }
    let pods: Vec<&Arc<Object>> = snapshot
        .in_namespace(Kind::Pod, &key.name.namespace)
        .filter(|pod| selects(object, pod) && crate::replica_sets::is_unfinished(pod))
        .collect();
    if pods.is_empty() {
        outcome.report(object.report(COMPONENT, "NoPods", "No matching pods found"));
    }
    let mut status = DisruptionBudgetStatus {
        observed_generation: object.meta.generation,
        disrupted_pods: disrupted(budget, &pods, input.now, &mut outcome),
        conditions: budget.status.conditions.clone(),
        ..DisruptionBudgetStatus::default()
    };
    let condition = match expectation(budget, &pods, snapshot) {
        Ok((expected, desired)) => {
            count(&mut status, &pods, expected, desired);
            let enough = status.disruptions_allowed > 0;
            let reason = if enough { "SufficientPods" } else { "InsufficientPods" };
            conditions::new(ALLOWED, enough, reason, String::new(), input.now)
        }
        Err(why) => {
            let message = format!("Failed to calculate the number of expected pods: {why}");
            let reason = "CalculateExpectedPodCountFailed";
            outcome.report(object.report(COMPONENT, reason, message).warning());
            conditions::new(ALLOWED, false, "SyncFailed", why, input.now)
        }
    };
    let generation = (object.meta.generation > 0).then_some(object.meta.generation);
    conditions::set(&mut status.conditions, condition);
    for condition in &mut status.conditions {
        condition.observed_generation = generation;
    }
    if status != budget.status {
        outcome.push(Step::quiet(object.patch_status_unchanged(body(&status, budget))));
    }
    outcome
}

/// The status as a merge patch: pods that are no longer disrupted must be taken out by name.
fn body(status: &DisruptionBudgetStatus, budget: &DisruptionBudget) -> serde_json::Value {
    let mut body = json!(status);
    for pod in budget.status.disrupted_pods.keys() {
        if !status.disrupted_pods.contains_key(pod) {
            body["disruptedPods"][pod] = serde_json::Value::Null;
        }
    }
    body
}

/// The evictions that are still under way.
fn disrupted(
    budget: &DisruptionBudget,
    pods: &[&Arc<Object>],
    now: Timestamp,
    outcome: &mut Outcome,
) -> BTreeMap<String, Timestamp> {
    let mut left = BTreeMap::new();
    for (name, since) in &budget.status.disrupted_pods {
        let waits = pods.iter().any(|pod| pod.meta.name == *name && !pod.is_terminating());
        let age = now.since(*since);
        if waits && age < DELETION_TIMEOUT {
            outcome.requeue(DELETION_TIMEOUT - age);
            left.insert(name.clone(), *since);
        }
    }
    left
}

fn count(status: &mut DisruptionBudgetStatus, pods: &[&Arc<Object>], expected: i32, desired: i32) {
    let healthy = pods.iter().filter(|pod| {
        !pod.is_terminating()
            && !status.disrupted_pods.contains_key(&pod.meta.name)
            && pod.pod().is_some_and(|view| view.is_ready())
    });
    status.current_healthy = number(healthy.count());
    status.desired_healthy = desired;
    status.expected_pods = expected;
    let allowed = if expected > 0 { status.current_healthy - desired } else { 0 };
    status.disruptions_allowed = allowed.max(0);
}

/// How many pods there should be, and how many of them must be ready.
fn expectation(
    budget: &DisruptionBudget,
    pods: &[&Arc<Object>],
    snapshot: &Snapshot,
) -> Result<(i32, i32), String> {
    let spec = &budget.spec;
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(unavailable), _) => {
            let expected = wanted_by_controllers(pods, snapshot)?;
            let unavailable = share(Some(unavailable), 0, expected, true);
            Ok((expected, expected.saturating_sub(unavailable).max(0)))
        }
        (None, Some(IntOrString::Int(minimum))) => Ok((number(pods.len()), (*minimum).max(0))),
        (None, Some(minimum)) => {
            let expected = wanted_by_controllers(pods, snapshot)?;
            Ok((expected, share(Some(minimum), 0, expected, true)))
        }
        (None, None) => Ok((number(pods.len()), 0)),
    }
}

/// The sum of what the controllers of the pods want.
fn wanted_by_controllers(pods: &[&Arc<Object>], snapshot: &Snapshot) -> Result<i32, String> {
    let mut scales: BTreeMap<&str, i32> = BTreeMap::new();
    for pod in pods {
        // Pods that nobody manages are left out: nothing says how many there should be.
        let Some(reference) = pod.meta.controller() else { continue };
        let unknown = || {
            format!(
                "{}.{} does not implement the scale subresource",
                reference.kind.to_lowercase(),
                reference.api_version.split('/').next().unwrap_or_default(),
            )
        };
        let owner = snapshot.owner(reference, &pod.meta.namespace).map_err(|_| unknown())?;
        let Some(owner) = owner else { continue };
        let root = owner
            .meta
            .controller()
            .and_then(|root| snapshot.owner(root, &owner.meta.namespace).ok().flatten());
        let root = root.filter(|root| root.kind == Kind::Deployment).unwrap_or(owner);
        let scale = scale(root).ok_or_else(unknown)?;
        scales.insert(&root.meta.uid, scale);
    }
    Ok(scales.into_values().fold(0, i32::saturating_add))
}

fn scale(owner: &Object) -> Option<i32> {
    let deployment = owner.deployment().map(|view| view.spec.replicas());
    let set = owner.replica_set().map(|view| view.spec.replicas());
    let stateful = owner.stateful_set().map(|view| view.spec.replicas());
    deployment.or(set).or(stateful)
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixtures::{NOW, key, pod, snapshot, with_input, writes};

    fn budget(spec: Value, status: Value) -> Value {
        let mut all = json!({"selector": {"matchLabels": {"app": "web"}}});
        for (name, value) in spec.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        json!({"metadata": {"name": "b", "generation": 1}, "spec": all, "status": status})
    }

    fn run(budget: Value, pods: Vec<Value>, wanted: i32) -> Outcome {
        let set = json!({"metadata": {"name": "set", "uid": "uid-set"},
            "spec": {"replicas": wanted, "selector": {"matchLabels": {"app": "web"}}}});
        let pods = pods.into_iter().map(|pod| (Kind::Pod, pod));
        let objects = [(Kind::PodDisruptionBudget, budget), (Kind::ReplicaSet, set)];
        let snapshot = snapshot(objects.into_iter().chain(pods));
        with_input(None, |input| reconcile(&key(Kind::PodDisruptionBudget, "b"), &snapshot, input))
    }

    /// Allowed, healthy, desired, expected.
    fn numbers(outcome: &Outcome) -> [i64; 4] {
        let writes = writes(outcome);
        let status = &writes.last().expect("a status").1["status"];
        ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"]
            .map(|name| status[name].as_i64().unwrap_or(-1))
    }

    #[test]
    fn as_many_may_go_as_the_budget_leaves() {
        let ready = |names: &[&str]| -> Vec<Value> {
            names.iter().map(|name| pod(name, "n", Some(9))).collect()
        };
        let mut unready = ready(&["a", "b"]);
        unready.push(pod("c", "n", None));
        let mut going = ready(&["a", "b", "c"]);
        going[0]["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
        for (what, spec, pods, wanted) in [
            (
                "at least two of three",
                json!({"minAvailable": 2}),
                ready(&["a", "b", "c"]),
                [1, 3, 2, 3],
            ),
            (
                "a share of what is wanted",
                json!({"minAvailable": "50%"}),
                ready(&["a", "b", "c"]),
                [1, 3, 2, 3],
            ),
            (
                "one may be missing",
                json!({"maxUnavailable": 1}),
                ready(&["a", "b", "c"]),
                [1, 3, 2, 3],
            ),
            ("and one is missing", json!({"maxUnavailable": 1}), ready(&["a", "b"]), [0, 2, 2, 3]),
            (
                "one that is not ready is missing too",
                json!({"maxUnavailable": 1}),
                unready,
                [0, 2, 2, 3],
            ),
            ("and one that is going", json!({"maxUnavailable": 1}), going, [0, 2, 2, 3]),
            (
                "all may be missing",
                json!({"maxUnavailable": "100%"}),
                ready(&["a", "b"]),
                [2, 2, 0, 3],
            ),
        ] {
            assert_eq!(numbers(&run(budget(spec, json!({})), pods, 3)), wanted, "{what}");
        }
    }

    #[test]
    fn an_eviction_that_was_allowed_counts_until_it_is_seen_or_too_old() {
        let ago = |seconds: i64| Timestamp::from_seconds(NOW.seconds() - seconds);
        let pods = || vec![pod("a", "n", Some(9)), pod("b", "n", Some(9))];
        for (seconds, healthy, left) in [(5, 1, true), (121, 2, false)] {
            let status = json!({"disruptedPods": {"a": ago(seconds), "gone": ago(1)}});
            let outcome = run(budget(json!({"minAvailable": 1}), status), pods(), 2);
            assert_eq!(numbers(&outcome)[1], healthy);
            let writes = writes(&outcome);
            let disrupted = &writes[0].1["status"]["disruptedPods"];
            assert_eq!(disrupted["a"].is_string(), left);
            assert_eq!(disrupted["gone"], Value::Null);
            assert_eq!(outcome.requeue_after.is_some(), left);
        }
    }

    #[test]
    fn the_condition_says_why() {
        let spec = json!({"maxUnavailable": 1});
        let mut lonely = pod("a", "n", Some(9));
        lonely["metadata"]["ownerReferences"][0]["kind"] = json!("DaemonSet");
        for (pods, reason, event) in [
            (vec![pod("a", "n", Some(9))], "SufficientPods", None),
            (vec![], "InsufficientPods", Some("NoPods")),
            (vec![lonely], "InsufficientPods", None),
        ] {
            let outcome = run(budget(spec.clone(), json!({})), pods, 1);
            let writes = writes(&outcome);
            let condition = &writes[0].1["status"]["conditions"][0];
            assert_eq!(
                (&condition["type"], &condition["reason"]),
                (&json!(ALLOWED), &json!(reason))
            );
            assert_eq!(outcome.reports.first().map(|report| report.reason), event);
        }
    }
}
