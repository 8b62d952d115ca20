//! What a node may do: its own Node, Lease and pods, and of what pods name only what its own do.
//!
//! Source: kubernetes.io, "Using Node Authorization". The rules are the kubelet's; ours have what
//! the network's agent of `flatnet up` reads besides, which shows the same certificate.

use std::sync::{Arc, LazyLock};

use model::NamespacedName;
use model::layout::CLAIM_NAMESPACE;
use serde_json::{Value, json as tree};

use super::{Request, rules};
use crate::kinds::pod::POD;
use crate::{Object, Store, json, registry};

/// Where nodes keep the Leases that say that they live.
pub(crate) const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Marks a pod that a node shows of its own accord; it brings no rights.
pub(crate) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

static RULES: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let read = ["get", "list", "watch"];
    vec![
        tree!({"apiGroups": [""], "resources": ["nodes"],
               "verbs": ["create", "get", "list", "patch", "update", "watch"]}),
        tree!({"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch", "update"]}),
        tree!({"apiGroups": [""], "resources": ["pods"],
               "verbs": ["create", "delete", "get", "list", "watch"]}),
        tree!({"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch", "update"]}),
        tree!({"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]}),
        tree!({"apiGroups": [""], "resources": ["configmaps", "namespaces", "secrets", "services"],
               "verbs": read}),
        tree!({"apiGroups": [""], "resources": ["persistentvolumeclaims", "persistentvolumes"],
               "verbs": ["get"]}),
        tree!({"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]}),
        tree!({"apiGroups": ["", "events.k8s.io"], "resources": ["events"],
               "verbs": ["create", "patch", "update"]}),
        tree!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
               "verbs": ["create", "delete", "get", "list", "patch", "update"]}),
        tree!({"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read}),
        tree!({"apiGroups": ["networking.k8s.io"],
               "resources": ["networkpolicies", "servicecidrs"], "verbs": read}),
    ]
});

/// The rules of nodes, as the role `system:node` shows them. The role is bound to nobody: a node
/// has them within the limits of its own pods alone.
pub fn node_rules() -> &'static [Value] {
    &RULES
}

/// What a pod may name, and by that let its node read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
}

impl Store {
    /// Judges a request of a node.
    ///
    /// # Errors
    /// Why the node may not, for the end of the refusal.
    pub(super) fn judge_node(&self, node: &str, request: &Request<'_>) -> Result<(), String> {
        if !RULES.iter().any(|rule| rules::allows(rule, request)) {
            return Err(String::new());
        }
        let Request::Resource { verb, group, plural, namespace, name, .. } = *request else {
            return Ok(());
        };
        let links = |named| match self.names(node, namespace, named, name) {
            true => Ok(()),
            false => Err(no_relationship(node)),
        };
        match (group, plural) {
            ("", "secrets") => links(Named::Secret),
            ("", "configmaps") => links(Named::ConfigMap),
            ("", "persistentvolumeclaims") => links(Named::Claim),
            ("", "persistentvolumes") if !self.mounts(node, name) => Err(no_relationship(node)),
            ("", "serviceaccounts") => links(Named::ServiceAccount),
            ("", "nodes") if matches!(verb, "patch" | "update") && name != node => {
                Err(format!("node {node:?} is not allowed to modify node {name:?}"))
            }
            ("coordination.k8s.io", _) => judge_lease(node, verb, namespace, name),
            _ => Ok(()),
        }
    }

    /// Whether a pod on the node names an object of its namespace.
    fn names(&self, node: &str, namespace: &str, named: Named, name: &str) -> bool {
        !namespace.is_empty()
            && !name.is_empty()
            && self
                .pods_with(namespace, node)
                .any(|pod| runs_on(&pod.value, node) && refers(&pod.value, named, name))
    }

    /// Whether a pod on the node mounts a volume of the cluster, by a claim that has it.
    fn mounts(&self, node: &str, volume: &str) -> bool {
        let Some(claims) = registry::find("", "v1", "persistentvolumeclaims") else { return false };
        let shelf = self.shelf(claims).into_iter();
        shelf.flat_map(|shelf| &shelf.objects).any(|(key, claim)| {
            let bound = claim.untouched().value.peek("/spec/volumeName");
            !volume.is_empty()
                && bound.is_some_and(|bound| bound.as_str() == Some(volume))
                && self.names(node, &key.namespace, Named::Claim, &key.name)
        })
    }

    /// The pods of a namespace that may mention a text.
    fn pods_with(&self, namespace: &str, text: &str) -> impl Iterator<Item = Arc<Object>> {
        let first = NamespacedName::new(namespace, "");
        let shelf = self.shelf(&POD).into_iter();
        shelf
            .flat_map(move |shelf| shelf.objects.range(first.clone()..))
            .take_while(move |(key, _)| key.namespace == namespace)
            .filter(move |(_, pod)| pod.untouched().value.may_mention(text))
            .map(|(_, pod)| pod.lent())
    }
}

fn no_relationship(node: &str) -> String {
    format!("no relationship found between node '{node}' and this object")
}

/// A node's Lease has its name; claims of blocks of addresses are Leases too, which nodes make and
/// remove, their label looked at when they do.
fn judge_lease(node: &str, verb: &str, namespace: &str, name: &str) -> Result<(), String> {
    match namespace {
        LEASE_NAMESPACE if verb == "list" => {
            Err("can only get, create, update, patch, or delete a node lease".to_owned())
        }
        LEASE_NAMESPACE if name == node || verb == "create" => Ok(()),
        LEASE_NAMESPACE => {
            Err("can only access node lease with the same name as the requesting node".to_owned())
        }
        CLAIM_NAMESPACE if matches!(verb, "create" | "delete" | "list") => Ok(()),
        _ => Err(format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace")),
    }
}

pub(crate) fn is_mirror(pod: &Value) -> bool {
    let annotations = json::at(pod, "/metadata/annotations");
    annotations.is_some_and(|annotations| annotations.get(MIRROR_ANNOTATION).is_some())
}

fn runs_on(pod: &Value, node: &str) -> bool {
    json::text(pod, "/spec/nodeName") == node && !is_mirror(pod)
}

fn refers(pod: &Value, named: Named, name: &str) -> bool {
    let containers = ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"];
    let containers = || containers.iter().flat_map(|field| json::items(pod, field));
    let volumes = json::items(pod, "/spec/volumes");
    let is_it = |value: &Value, field: &str| json::text(value, field) == name;
    let in_containers = |variable: &str, all: &str| {
        containers().any(|container| {
            json::items(container, "/env").iter().any(|one| is_it(one, variable))
                || json::items(container, "/envFrom").iter().any(|one| is_it(one, all))
        })
    };
    let projected = |field: &str| {
        volumes.iter().any(|volume| {
            json::items(volume, "/projected/sources").iter().any(|source| is_it(source, field))
        })
    };
    match named {
        Named::Secret => {
            json::items(pod, "/spec/imagePullSecrets").iter().any(|one| is_it(one, "/name"))
                || in_containers("/valueFrom/secretKeyRef/name", "/secretRef/name")
                || projected("/secret/name")
                || volumes.iter().any(|volume| {
                    is_it(volume, "/secret/secretName")
                        || is_it(volume, "/csi/nodePublishSecretRef/name")
                })
        }
        Named::ConfigMap => {
            in_containers("/valueFrom/configMapKeyRef/name", "/configMapRef/name")
                || projected("/configMap/name")
                || volumes.iter().any(|volume| is_it(volume, "/configMap/name"))
        }
        Named::Claim => volumes.iter().any(|volume| {
            is_it(volume, "/persistentVolumeClaim/claimName")
                || (volume.get("ephemeral").is_some()
                    && name.strip_prefix(json::text(pod, "/metadata/name"))
                        == Some(&format!("-{}", json::text(volume, "/name"))))
        }),
        Named::ServiceAccount => is_it(pod, "/spec/serviceAccountName"),
    }
}
