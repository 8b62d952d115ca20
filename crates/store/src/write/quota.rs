//! ResourceQuota: what a namespace may have is refused beyond that, and what it has is counted in
//! the transaction of every write, so that no two writers take the same rest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::NamespacedName;
use serde_json::{Value, json as tree};

use crate::kinds::limits::{Amounts, amounts};
use crate::kinds::pod::{POD, quality_of_service};
use crate::kinds::quota::{RESOURCE_QUOTA, Scope, add, scopes};
use crate::state::Content;
use crate::{Object, Operation, Resource, Status, Store, json};

use super::limits::of_container;
use super::usage::{count_name, has_names, is_counted, usage};

/// What every container must say itself where a quota limits it: pods could else take as much as
/// they like without being counted.
const MUST_BE_SAID: [&str; 6] =
    ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];

impl Store {
    /// Refuses what takes more than a quota of the namespace leaves.
    pub(super) fn admit_quota(
        &self,
        resource: &Resource,
        key: &NamespacedName,
        value: &Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        if !is_counted(resource) {
            return Ok(());
        }
        let mut quotas = self.quotas(&key.namespace);
        quotas.retain(|quota| applies(&quota.value, resource, value));
        if quotas.is_empty() {
            return Ok(());
        }
        let refuse = |why: String| Err(Status::forbidden(resource, &key.name, why));
        if old.is_none() && resource == &POD {
            for quota in &quotas {
                if let Some(why) = unsaid(&quota.value, value) {
                    return refuse(format!("failed quota: {}: must specify {why}", quota.key.name));
                }
            }
        }
        let wanted = usage(resource, value);
        for quota in &quotas {
            let before = old.filter(|old| applies(&quota.value, resource, old));
            let before = before.map(|old| usage(resource, old)).unwrap_or_default();
            if let Some(why) = excess(&quota.value, &wanted, &before) {
                return refuse(format!("exceeded quota: {}, {why}", quota.key.name));
            }
        }
        Ok(())
    }

    /// Gives a quota that is about to be written what is used of it. It is counted anew: what
    /// others wrote there does not matter.
    pub(crate) fn recount_quota(&self, key: &NamespacedName, quota: &mut Value) {
        let hard = amounts(quota, "/spec/hard");
        let mut used: Amounts =
            hard.keys().map(|name| (name.clone(), Default::default())).collect();
        let mut storages = BTreeSet::new();
        for resource in self.resources().into_iter().filter(|one| is_counted(one)) {
            let is_named = hard.contains_key(&count_name(resource)) || has_names(resource);
            if !is_named || !storages.insert(resource.storage) {
                continue;
            }
            for object in self.head_in_namespace(resource.storage, &key.namespace) {
                let is_itself = resource == &RESOURCE_QUOTA && object.key == *key;
                if !is_itself && applies(quota, resource, &object.value) {
                    add(&mut used, &masked(usage(resource, &object.value), &hard));
                }
            }
        }
        if applies(quota, &RESOURCE_QUOTA, quota) {
            add(&mut used, &masked(usage(&RESOURCE_QUOTA, quota), &hard));
        }
        let hard = json::at(quota, "/spec/hard").cloned();
        json::set(quota, "/status", status(hard, &used));
    }

    /// Counts what a write has changed in all quotas of the namespace but the written one.
    pub(crate) fn charge_quotas(
        &mut self,
        resource: &Resource,
        key: &NamespacedName,
        old: Option<&Value>,
        new: Option<&Value>,
    ) {
        if !is_counted(resource) {
            return;
        }
        for quota in self.quotas(&key.namespace) {
            if resource == &RESOURCE_QUOTA && quota.key == *key {
                continue;
            }
            let counted = |value: Option<&Value>| {
                let value = value.filter(|value| applies(&quota.value, resource, value));
                value.map(|value| usage(resource, value)).unwrap_or_default()
            };
            let (before, now) = (counted(old), counted(new));
            if before == now {
                continue;
            }
            let hard = amounts(&quota.value, "/spec/hard");
            let mut used = amounts(&quota.value, "/status/used");
            add(&mut used, &masked(now, &hard));
            for (name, amount) in masked(before, &hard) {
                let rest = used.get(&name).copied().unwrap_or_default() - amount;
                used.insert(name, rest);
            }
            let mut content = Content::of(&quota);
            let hard = json::at(&quota.value, "/spec/hard").cloned();
            json::set(&mut content.value, "/status", status(hard, &used));
            if content.value != quota.value {
                let key = quota.key.clone();
                self.stage_record(&RESOURCE_QUOTA, key, Operation::Update, content);
            }
        }
    }

    fn quotas(&self, namespace: &str) -> Vec<Arc<Object>> {
        self.head_in_namespace(RESOURCE_QUOTA.storage, namespace)
    }
}

fn status(hard: Option<Value>, used: &Amounts) -> Value {
    let used: BTreeMap<&String, String> =
        used.iter().map(|(name, amount)| (name, amount.to_string())).collect();
    let mut status = tree!({"hard": hard, "used": used});
    json::strip_nulls(&mut status);
    status
}

/// Of some amounts, those that a quota limits.
fn masked(mut amounts: Amounts, hard: &Amounts) -> Amounts {
    amounts.retain(|name, _| hard.contains_key(name));
    amounts
}

/// Whether a quota counts an object. With scopes it counts pods alone, and of those some.
fn applies(quota: &Value, resource: &Resource, value: &Value) -> bool {
    scopes(quota).all(|scope| resource == &POD && is_in_scope(&scope, value))
}

fn is_in_scope(scope: &Scope<'_>, pod: &Value) -> bool {
    let ends = json::integer(pod, "/spec/activeDeadlineSeconds").is_some_and(|limit| limit >= 0);
    match scope.name {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => quality_of_service(pod) == "BestEffort",
        "NotBestEffort" => quality_of_service(pod) != "BestEffort",
        "CrossNamespacePodAffinity" => looks_elsewhere(pod),
        "PriorityClass" => {
            let class = json::text(pod, "/spec/priorityClassName");
            match scope.operator {
                "In" => scope.values.contains(&class),
                "NotIn" => !scope.values.contains(&class),
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        _ => false,
    }
}

/// Whether the affinity of a pod names pods of other namespaces.
fn looks_elsewhere(pod: &Value) -> bool {
    let names = |term: &Value| {
        !json::items(term, "/namespaces").is_empty()
            || json::at(term, "/namespaceSelector").is_some()
    };
    ["podAffinity", "podAntiAffinity"].into_iter().any(|kind| {
        let of = |list: &str| {
            format!("/spec/affinity/{kind}/{list}DuringSchedulingIgnoredDuringExecution")
        };
        let required = json::items(pod, &of("required")).iter();
        let preferred = json::items(pod, &of("preferred")).iter();
        let preferred = preferred.filter_map(|one| json::at(one, "/podAffinityTerm"));
        required.chain(preferred).any(names)
    })
}

/// What containers do not say and must, with their names: `limits.cpu for: a,b; memory for: a`.
fn unsaid(quota: &Value, pod: &Value) -> Option<String> {
    let hard = amounts(quota, "/spec/hard");
    let required = MUST_BE_SAID.into_iter().filter(|name| hard.contains_key(*name));
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for name in required {
        let (side, resource) = name.split_once('.').unwrap_or(("requests", name));
        for list in ["/spec/containers", "/spec/initContainers"] {
            for container in json::items(pod, list) {
                if !of_container(container, side).contains_key(resource) {
                    missing.entry(name).or_default().insert(json::text(container, "/name"));
                }
            }
        }
    }
    let join = |names: &BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(",");
    let texts: Vec<String> =
        missing.iter().map(|(name, who)| format!("{name} for: {}", join(who))).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// What is too much, in the API's words.
fn excess(quota: &Value, wanted: &Amounts, before: &Amounts) -> Option<String> {
    let (hard, used) = (amounts(quota, "/spec/hard"), amounts(quota, "/status/used"));
    let mut texts: [Vec<String>; 3] = Default::default();
    for (name, limit) in &hard {
        let Some(wanted) = wanted.get(name) else { continue };
        let more = *wanted - before.get(name).copied().unwrap_or_default();
        let used = used.get(name).copied().unwrap_or_default();
        if more.is_negative() || more.is_zero() || used + more <= *limit {
            continue;
        }
        for (text, amount) in texts.iter_mut().zip([more, used, *limit]) {
            text.push(format!("{name}={amount}"));
        }
    }
    let [requested, used, limited] = texts.map(|text| text.join(","));
    (!requested.is_empty())
        .then(|| format!("requested: {requested}, used: {used}, limited: {limited}"))
}
