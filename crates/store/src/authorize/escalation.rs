//! Escalation: nobody may grant, by a role or by a binding, what he does not have himself.
//!
//! Source: kubernetes.io, "Using RBAC Authorization", "Privilege escalation prevention and
//! bootstrapping".

use std::sync::LazyLock;

use serde_json::{Value, json as tree};

use super::{Request, Subject, rules};
use crate::kinds::rbac;
use crate::{Resource, Status, Store, json};

/// The rules of who may do everything.
static ALL_RIGHTS: LazyLock<[Value; 2]> = LazyLock::new(|| {
    [
        tree!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}),
        tree!({"nonResourceURLs": ["*"], "verbs": ["*"]}),
    ]
});

impl Store {
    /// Checks a role or a binding that is about to be written; other kinds pass.
    ///
    /// # Errors
    /// 403 naming what the writer does not have; 404 for a binding to a role that does not exist.
    pub(crate) fn confirm_no_escalation(
        &self,
        subject: Subject<'_>,
        resource: &'static Resource,
        value: &Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let is_let_go = old.is_some_and(|old| differs_for_collection_alone(value, old));
        if resource.group != rbac::GROUP || subject.is_master() || is_let_go {
            return Ok(());
        }
        let namespace = json::text(value, "/metadata/namespace");
        let name = json::text(value, "/metadata/name");
        let is_binding = [&rbac::ROLE_BINDING, &rbac::CLUSTER_ROLE_BINDING].contains(&resource);
        let (verb, role_kind, role_name) = match is_binding {
            true => {
                ("bind", json::text(value, "/roleRef/kind"), json::text(value, "/roleRef/name"))
            }
            // A new object has no name in its request: a right by name does not let anybody make it.
            false => ("escalate", resource.kind, old.map_or("", |_| name)),
        };
        let role_resource = if role_kind == "Role" { &rbac::ROLE } else { &rbac::CLUSTER_ROLE };
        let right = Request::Resource {
            verb,
            group: role_resource.group,
            plural: role_resource.plural,
            subresource: "",
            namespace,
            name: role_name,
        };
        if self.authorize(subject, &right).is_ok() {
            return Ok(());
        }
        let role = match is_binding {
            false => value,
            true => json::at(value, "/roleRef")
                .and_then(|reference| self.role(reference, namespace))
                .ok_or_else(|| Status::not_found(role_resource, role_name))?,
        };
        let missing = rules::missing(json::items(role, "/rules"), self.granted(subject, namespace))
            .map_err(|too_many| Status::forbidden(resource, name, too_many))?;
        let aggregates = |role: &Value| !is_binding && json::at(role, "/aggregationRule").is_some();
        if missing.is_empty() && (aggregates(value) || old.is_some_and(aggregates)) {
            // It gathers whatever anybody labels, and keeps no rule that somebody takes out.
            let lacks = rules::missing(&*ALL_RIGHTS, self.granted(subject, namespace));
            return match lacks.is_ok_and(|lacks| lacks.is_empty()) {
                true => Ok(()),
                false => {
                    let why = "must have cluster-admin privileges to use an aggregationRule";
                    Err(Status::forbidden(resource, name, why))
                }
            };
        }
        if missing.is_empty() {
            return Ok(());
        }
        let groups: Vec<String> = subject.groups.iter().map(|one| format!("{one:?}")).collect();
        let missing: Vec<String> = missing.into_iter().collect();
        let why = format!(
            "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently \
             held:\n{}",
            subject.name,
            groups.join(" "),
            missing.join("\n")
        );
        Err(Status::forbidden(resource, name, why))
    }
}

/// Whether a write changes only what the garbage collector changes, for which nobody needs the
/// rights of the role.
fn differs_for_collection_alone(value: &Value, old: &Value) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        for field in ["/metadata/ownerReferences", "/metadata/finalizers"] {
            json::remove(&mut object, field);
        }
        object
    };
    value != old && without(value) == without(old)
}
