//! What the failure of a pod means for its Job (KEP-3329, KEP-3850), and when enough has succeeded
//! (KEP-3998).

use std::collections::BTreeSet;

use crate::job::{ExitCodes, FailureRule, Job, SuccessRule};
use crate::object::{Object, condition};
use crate::pod::{ContainerStatus, Pod};

use super::count::parse;

/// What a pod's failure means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts.
    Count,
    /// It counts as nothing.
    Ignore,
    /// Its index has failed for good.
    FailIndex,
    /// The whole Job has, for this reason.
    FailJob(String),
}

/// What the failure of a pod means: the first rule that fits it decides.
pub(super) fn judge(job: &Job, pod: &Object) -> Verdict {
    let Some(view) = pod.pod() else { return Verdict::Count };
    let rules = job.spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (index, rule) in rules.enumerate() {
        let Some(what) = fits(rule, pod, view) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{what} matching FailJob rule at index {index}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

/// Whether the failure of a pod ends the work on its index.
pub(super) fn fails_index(job: &Job, pod: &Object, earlier_failures: i32) -> bool {
    let Some(limit) = job.spec.backoff_limit_per_index else { return false };
    match judge(job, pod) {
        Verdict::FailIndex => true,
        Verdict::Ignore => false,
        Verdict::Count | Verdict::FailJob(_) => earlier_failures >= limit,
    }
}

/// The first rule by which enough indexes have succeeded.
pub(super) fn succeeds(job: &Job, succeeded: &BTreeSet<i32>) -> Option<String> {
    let rules = &job.spec.success_policy.as_ref()?.rules;
    let index = rules.iter().position(|rule| is_met(rule, succeeded))?;
    Some(format!("Matched rules at index {index}"))
}

fn is_met(rule: &SuccessRule, succeeded: &BTreeSet<i32>) -> bool {
    let enough = |count: usize| {
        rule.succeeded_count
            .is_some_and(|wanted| i32::try_from(count).unwrap_or(i32::MAX) >= wanted)
    };
    match &rule.succeeded_indexes {
        None => enough(succeeded.len()),
        Some(indexes) => {
            let wanted = parse(indexes);
            enough(wanted.intersection(succeeded).count())
                || (rule.succeeded_count.is_none() && wanted.is_subset(succeeded))
        }
    }
}

/// What about the pod fits a rule, in words.
fn fits(rule: &FailureRule, pod: &Object, view: &Pod) -> Option<String> {
    let (namespace, name) = (&pod.meta.namespace, &pod.meta.name);
    if let Some(wanted) = &rule.on_exit_codes {
        let status = &view.status;
        let mut all = status.container_statuses.iter().chain(&status.init_container_statuses);
        let (container, code) =
            all.find_map(|container| Some((&container.name, exit_code(wanted, container)?)))?;
        return Some(format!(
            "Container {container} for pod {namespace}/{name} failed with exit code {code}"
        ));
    }
    let mut patterns = rule.on_pod_conditions.iter();
    let kind = patterns.find_map(|pattern| {
        let found = condition(&view.status.conditions, &pattern.kind)?;
        (found.status == pattern.status()).then_some(&pattern.kind)
    })?;
    Some(format!("Pod {namespace}/{name} has condition {kind}"))
}

/// The exit code of a container that failed as the rule says.
fn exit_code(wanted: &ExitCodes, container: &ContainerStatus) -> Option<i32> {
    let code = container.state.terminated.as_ref()?.exit_code;
    let named = wanted.container_name.as_ref().is_none_or(|name| *name == container.name);
    let is_in = wanted.values.contains(&code);
    let fits = if wanted.operator == "NotIn" { !is_in } else { is_in };
    (code != 0 && named && fits).then_some(code)
}
