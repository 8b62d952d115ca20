//! Admission: what the real server's built-in plugins do that matters here, in their order.

use model::NamespacedName;
use serde_json::{Value, json as tree};

use crate::kinds::core::NAMESPACE;
use crate::kinds::pod::POD;
use crate::{Context, Request, Resource, Status, Store, json};

use super::node_restriction::Change;

/// Seconds that a pod stays on a node that is not ready or unreachable, by default.
pub(crate) const DEFAULT_TOLERATION_SECONDS: i64 = 300;

impl Store {
    /// What depends on who writes: the limits of nodes, and that nobody grants what he has not.
    pub(super) fn admit_subject(
        &self,
        request: &Request,
        old: Option<&Value>,
        new: Option<&Value>,
        context: &Context<'_>,
    ) -> Result<(), Status> {
        let Some(subject) = context.subject else { return Ok(()) };
        let (resource, subresource) = (request.resource, request.subresource);
        let name = new.or(old).map_or("", |object| json::text(object, "/metadata/name"));
        let change = Change { resource, subresource, name, old, new };
        self.restrict_node(subject, &change)?;
        let Some(new) = new else { return Ok(()) };
        self.confirm_reads_parameters(subject, resource, new)?;
        self.confirm_no_escalation(subject, resource, new, old)
    }

    /// NamespaceLifecycle: the namespace must exist and not be on its way out.
    pub(super) fn admit_namespace(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<(), Status> {
        if !resource.namespaced {
            return Ok(());
        }
        let key = NamespacedName::new("", namespace);
        let Some(object) = self.head(&NAMESPACE, &key) else {
            return Err(Status::not_found(&NAMESPACE, namespace));
        };
        if object.is_terminating() {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being \
                 terminated"
            );
            let cause = format!("namespace {namespace} is being terminated");
            return Err(Status::forbidden(resource, name, why).with_cause(
                "NamespaceTerminating",
                cause,
                "metadata.namespace",
            ));
        }
        Ok(())
    }
}

/// RuntimeClass: there are none, since this runtime starts all containers in one way. A pod that
/// asks for a stronger sandbox must not run without it.
pub(super) fn refuse_runtime_class(pod: &Value) -> Result<(), Status> {
    let class = json::text(pod, "/spec/runtimeClassName");
    if class.is_empty() {
        return Ok(());
    }
    let why = format!("pod rejected: RuntimeClass {class:?} not found");
    Err(Status::forbidden(&POD, json::text(pod, "/metadata/name"), why))
}

/// DefaultTolerationSeconds: pods outlive a short absence of their node.
pub(super) fn add_default_tolerations(pod: &mut Value) {
    let existing = json::items(pod, "/spec/tolerations").to_vec();
    let mut tolerations = existing.clone();
    for taint in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerates = |toleration: &Value| {
            let (key, effect) = (json::text(toleration, "/key"), json::text(toleration, "/effect"));
            (key.is_empty() || key == taint) && (effect.is_empty() || effect == "NoExecute")
        };
        if !existing.iter().any(tolerates) {
            tolerations.push(tree!({
                "key": taint,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": DEFAULT_TOLERATION_SECONDS,
            }));
        }
    }
    json::set(pod, "/spec/tolerations", tolerations);
}
