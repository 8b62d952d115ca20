//! NodeRestriction: what a node may change of the objects that it may write.
//!
//! Source: kubernetes.io, "Admission Control in Kubernetes", "NodeRestriction".

use std::collections::BTreeSet;

use model::NamespacedName;
use model::layout::{CLAIM_LABEL, CLAIM_NAMESPACE};
use serde_json::Value;

use crate::authorize::Subject;
use crate::authorize::node::{LEASE_NAMESPACE, is_mirror};
use crate::kinds::node::NODE;
use crate::kinds::pod::POD;
use crate::{Resource, Status, Store, Subresource, json, registry};

/// Labels of the cluster's own that a node may say of itself; others of `kubernetes.io` and
/// `k8s.io` decide where pods go and what they get.
const OWN_LABELS: [&str; 10] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Whole domains of such labels.
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// The domains that are the cluster's own.
const CLUSTER_DOMAINS: [&str; 2] = ["kubernetes.io", "k8s.io"];

/// One write of a node: what there was, and what there shall be.
pub(super) struct Change<'a> {
    pub resource: &'static Resource,
    pub subresource: Option<Subresource>,
    pub name: &'a str,
    pub old: Option<&'a Value>,
    pub new: Option<&'a Value>,
}

impl Store {
    /// Checks a write, if a node asks for it. Whether it may at all is decided before.
    pub(super) fn restrict_node(
        &self,
        subject: Subject<'_>,
        change: &Change<'_>,
    ) -> Result<(), Status> {
        let Some(node) = subject.node() else { return Ok(()) };
        let judged = match (change.resource.group, change.resource.plural) {
            ("", "nodes") => judge_node(node, change),
            ("", "pods") => self.judge_pod(node, change),
            ("coordination.k8s.io", "leases") => judge_lease(node, change),
            _ => Ok(()),
        };
        judged.map_err(|why| Status::forbidden(change.resource, change.name, why))
    }

    /// Checks a TokenRequest for a ServiceAccount, if a node sends it: it must be for a pod of its.
    ///
    /// # Errors
    /// 403.
    pub fn restrict_token(
        &self,
        subject: Subject<'_>,
        namespace: &str,
        account: &str,
        request: &Value,
    ) -> Result<(), Status> {
        let Some(node) = subject.node() else { return Ok(()) };
        let Some(accounts) = registry::find("", "v1", "serviceaccounts") else { return Ok(()) };
        let refuse = |why: &str| Err(Status::forbidden(accounts, account, why));
        let bound = |field: &str| json::text(request, field);
        if bound("/spec/boundObjectRef/kind") != "Pod" {
            return refuse("node requested token not bound to a pod");
        }
        let uid = bound("/spec/boundObjectRef/uid");
        if uid.is_empty() {
            return refuse("node requested token with a pod binding without a uid");
        }
        let pod = self.get(&POD, namespace, bound("/spec/boundObjectRef/name"))?;
        if pod.uid() != uid {
            return refuse("node requested token bound to a pod of another uid");
        }
        if json::text(&pod.value, "/spec/nodeName") != node {
            return refuse("node requested token bound to a pod scheduled on a different node");
        }
        if json::text(&pod.value, "/spec/serviceAccountName") != account {
            return refuse("node requested token for another service account than the pod's");
        }
        // A token for somebody else than the API is for whom the pod's own volumes name (KEP-4412).
        match json::texts(request, "/spec/audiences").as_slice() {
            [] => Ok(()),
            [audience] if names_audience(&pod.value, audience) => Ok(()),
            [audience] => refuse(&format!(
                "audience {audience:?} not found in pod spec volume, node {node:?} is not \
                 authorized to request tokens for this audience"
            )),
            _ => refuse("node may only request 0 or 1 audiences"),
        }
    }

    fn judge_pod(&self, node: &str, change: &Change<'_>) -> Result<(), String> {
        let is_own = |pod: &Value| json::text(pod, "/spec/nodeName") == node;
        let what = match (change.subresource, change.old, change.new) {
            (None, None, Some(pod)) => return self.judge_mirror(node, pod),
            (None, Some(pod), None) if is_own(pod) => return Ok(()),
            (None, Some(_), None) => "delete pods",
            (Some(Subresource::Status), Some(old), Some(new)) if is_own(old) => {
                let labels = |pod| json::at(pod, "/metadata/labels");
                if labels(old) == labels(new) {
                    return Ok(());
                }
                return Err(format!("node {node:?} cannot update labels through pod status"));
            }
            (Some(Subresource::Status), ..) => "update pod status for pods",
            (Some(Subresource::Eviction), Some(pod), _) if is_own(pod) => return Ok(()),
            (Some(Subresource::Eviction), ..) => "evict pods",
            _ => return Err(format!("node {node:?} can only create and delete mirror pods")),
        };
        Err(format!("node {node:?} can only {what} with spec.nodeName set to itself"))
    }

    /// A node makes mirror pods alone, which are of itself and give it nothing to read.
    fn judge_mirror(&self, node: &str, pod: &Value) -> Result<(), String> {
        if !is_mirror(pod) {
            return Err(format!(
                "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can \
                 only create mirror pods"
            ));
        }
        if json::text(pod, "/spec/nodeName") != node {
            return Err(format!(
                "node {node:?} can only create pods with spec.nodeName set to itself"
            ));
        }
        let owner = match json::items(pod, "/metadata/ownerReferences") {
            [owner] => owner,
            _ => {
                return Err(format!(
                    "node {node:?} can only create pods with a single owner reference set to itself"
                ));
            }
        };
        let own = self.head(&NODE, &NamespacedName::new("", node));
        let is_own = json::text(owner, "/apiVersion") == "v1"
            && json::text(owner, "/kind") == "Node"
            && json::text(owner, "/name") == node
            && own.is_some_and(|own| own.uid() == json::text(owner, "/uid"))
            && !json::flag(owner, "/blockOwnerDeletion");
        if !is_own {
            return Err(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ));
        }
        match reference(pod) {
            Some(what) => Err(format!("node {node:?} can not create pods that reference {what}")),
            None => Ok(()),
        }
    }
}

/// Whether a volume of a pod shows a token for an audience.
fn names_audience(pod: &Value, audience: &str) -> bool {
    json::items(pod, "/spec/volumes").iter().any(|volume| {
        let mut sources = json::items(volume, "/projected/sources").iter();
        sources.any(|source| json::text(source, "/serviceAccountToken/audience") == audience)
    })
}

/// What of the cluster's own a mirror pod names though it may not.
fn reference(pod: &Value) -> Option<&'static str> {
    let account = json::text(pod, "/spec/serviceAccountName");
    if !account.is_empty() {
        return Some("a service account");
    }
    if !json::items(pod, "/spec/imagePullSecrets").is_empty() {
        return Some("secrets");
    }
    let volumes = json::items(pod, "/spec/volumes");
    let has = |field: &str| volumes.iter().any(|volume| volume.get(field).is_some());
    let kinds = [
        ("secret", "secrets"),
        ("configMap", "configmaps"),
        ("projected", "projected volumes"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
        ("ephemeral", "persistentvolumeclaims"),
    ];
    if let Some((_, what)) = kinds.into_iter().find(|(field, _)| has(field)) {
        return Some(what);
    }
    let containers = ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"];
    let mut containers = containers.iter().flat_map(|field| json::items(pod, field));
    let names_any = containers.any(|container| {
        json::items(container, "/env").iter().any(|one| {
            json::at(one, "/valueFrom/secretKeyRef").is_some()
                || json::at(one, "/valueFrom/configMapKeyRef").is_some()
        }) || !json::items(container, "/envFrom").is_empty()
    });
    names_any.then_some("secrets or configmaps")
}

fn judge_node(node: &str, change: &Change<'_>) -> Result<(), String> {
    if change.name != node {
        let name = change.name;
        return Err(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    let Some(new) = change.new else { return Ok(()) };
    let labels = forbidden_labels(new, change.old);
    let shown = labels.iter().copied().collect::<Vec<_>>().join(", ");
    let Some(old) = change.old else {
        return match labels.is_empty() {
            true => Ok(()),
            false => Err(format!("is not allowed to set the following labels: {shown}")),
        };
    };
    let differs = |field: &str| json::at(new, field) != json::at(old, field);
    if differs("/spec/taints") {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    if differs("/metadata/ownerReferences") {
        return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    match labels.is_empty() {
        true => Ok(()),
        false => Err(format!("is not allowed to modify labels: {shown}")),
    }
}

/// The labels that differ and that are not for a node to say.
fn forbidden_labels<'a>(new: &'a Value, old: Option<&'a Value>) -> BTreeSet<&'a str> {
    fn keys(object: &Value) -> impl Iterator<Item = &str> {
        let labels = json::at(object, "/metadata/labels").and_then(Value::as_object);
        labels.into_iter().flatten().map(|(key, _)| key.as_str())
    }
    let value = |object: &'a Value, key: &str| {
        json::at(object, "/metadata/labels").and_then(|labels| labels.get(key))
    };
    keys(new)
        .chain(old.into_iter().flat_map(keys))
        .filter(|key| value(new, key) != old.and_then(|old| value(old, key)))
        .filter(|key| !may_say(key))
        .collect()
}

/// Whether a label is for a node to say of itself.
fn may_say(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else { return true };
    let is_in = |of: &str| {
        domain.strip_suffix(of).is_some_and(|front| front.is_empty() || front.ends_with('.'))
    };
    !CLUSTER_DOMAINS.iter().any(|of| is_in(of))
        || OWN_LABELS.contains(&label)
        || OWN_DOMAINS.iter().any(|of| is_in(of))
}

fn judge_lease(node: &str, change: &Change<'_>) -> Result<(), String> {
    let Some(lease) = change.new.or(change.old) else { return Ok(()) };
    let is_claim =
        json::at(lease, "/metadata/labels").is_some_and(|labels| labels.get(CLAIM_LABEL).is_some());
    match json::text(lease, "/metadata/namespace") {
        LEASE_NAMESPACE if change.name == node => Ok(()),
        LEASE_NAMESPACE => {
            Err("can only access node lease with the same name as the requesting node".to_owned())
        }
        CLAIM_NAMESPACE if is_claim => Ok(()),
        _ => Err(format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace")),
    }
}
