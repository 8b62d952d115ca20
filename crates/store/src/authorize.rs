//! Role-based access control: whether a user may do what a request asks, by the roles and bindings
//! in the store. A request that no rule allows is denied.
//!
//! Source: kubernetes.io, "Using RBAC Authorization".

use serde_json::Value;

use crate::kinds::rbac;
use crate::{Resource, Status, Store, json};

/// The group that may do everything, whatever roles say: the way back for who locked himself out.
const MASTERS: &str = "system:masters";
/// The group of all who are known.
const AUTHENTICATED: &str = "system:authenticated";
/// The prefix of the names of ServiceAccounts, as users.
const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The user's name.
    pub name: &'a str,
    /// The groups that the user's credentials name.
    pub groups: &'a [String],
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// An object, a collection, or a part of an object.
    Resource {
        /// The API's verb: `get`, `list`, `watch`, `create`, …
        verb: &'a str,
        /// The resource.
        resource: &'a Resource,
        /// The subresource's name; empty for the object itself.
        subresource: &'a str,
        /// Empty for cluster-scoped ones, and for all namespaces.
        namespace: &'a str,
        /// Empty for collections.
        name: &'a str,
    },
    /// A document, such as `/openapi/v3`.
    Path {
        /// The HTTP method in lower case.
        verb: &'a str,
        /// The URL's path.
        path: &'a str,
    },
}

impl Store {
    /// Checks one request.
    ///
    /// # Errors
    /// 403, in the real server's words.
    pub fn authorize(&self, subject: Subject<'_>, request: &Request<'_>) -> Result<(), Status> {
        if subject.groups.iter().any(|group| group == MASTERS) {
            return Ok(());
        }
        let of_cluster = self.bindings(&rbac::CLUSTER_ROLE_BINDING, "");
        let allowed_by = |binding: &Value, namespace: &str| {
            binds(binding, &subject)
                && self.role(binding, namespace).is_some_and(|role| {
                    json::items(&role, "/rules").iter().any(|rule| allows(rule, request))
                })
        };
        if of_cluster.iter().any(|binding| allowed_by(binding, "")) {
            return Ok(());
        }
        let Request::Resource { namespace, .. } = request else {
            return Err(forbidden(&subject, request));
        };
        let in_namespace = match namespace.is_empty() {
            true => vec![],
            false => self.bindings(&rbac::ROLE_BINDING, namespace),
        };
        if in_namespace.iter().any(|binding| allowed_by(binding, namespace)) {
            return Ok(());
        }
        Err(forbidden(&subject, request))
    }

    fn bindings(&self, resource: &'static Resource, namespace: &str) -> Vec<Value> {
        let shelf = self.shelf(resource);
        let objects = shelf.into_iter().flat_map(|shelf| shelf.objects.iter());
        objects
            .filter(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.value.clone())
            .collect()
    }

    /// The role that a binding names; a binding to a role that does not exist grants nothing.
    fn role(&self, binding: &Value, namespace: &str) -> Option<Value> {
        let name = json::text(binding, "/roleRef/name");
        let found = match json::text(binding, "/roleRef/kind") {
            "ClusterRole" => self.get(&rbac::CLUSTER_ROLE, "", name),
            "Role" if !namespace.is_empty() => self.get(&rbac::ROLE, namespace, name),
            _ => return None,
        };
        found.ok().map(|object| object.value.clone())
    }
}

fn binds(binding: &Value, subject: &Subject<'_>) -> bool {
    json::items(binding, "/subjects").iter().any(|bound| {
        let name = json::text(bound, "/name");
        match json::text(bound, "/kind") {
            "User" => name == subject.name,
            "Group" => name == AUTHENTICATED || subject.groups.iter().any(|group| group == name),
            "ServiceAccount" => subject
                .name
                .strip_prefix(SERVICE_ACCOUNT_PREFIX)
                .and_then(|account| account.split_once(':'))
                .is_some_and(|account| account == (json::text(bound, "/namespace"), name)),
            _ => false,
        }
    })
}

fn allows(rule: &Value, request: &Request<'_>) -> bool {
    let lists = |field: &str, wanted: &str| {
        json::items(rule, &format!("/{field}"))
            .iter()
            .filter_map(Value::as_str)
            .any(|listed| listed == "*" || listed == wanted)
    };
    match *request {
        Request::Path { verb, path } => {
            lists("verbs", verb)
                && json::items(rule, "/nonResourceURLs").iter().filter_map(Value::as_str).any(
                    |listed| match listed.strip_suffix('*') {
                        Some(prefix) => path.starts_with(prefix),
                        None => listed == path,
                    },
                )
        }
        Request::Resource { verb, resource, subresource, name, .. } => {
            let plural = resource.plural;
            let resources = json::items(rule, "/resources");
            let names_it = resources.iter().filter_map(Value::as_str).any(|listed| {
                match listed.split_once('/') {
                    None => listed == "*" || (listed == plural && subresource.is_empty()),
                    Some((parent, part)) => {
                        (parent == "*" || parent == plural)
                            && part == subresource
                            && !subresource.is_empty()
                    }
                }
            });
            let names = json::items(rule, "/resourceNames");
            lists("verbs", verb)
                && lists("apiGroups", resource.group)
                && names_it
                && (names.is_empty() || names.iter().any(|listed| listed == name))
        }
    }
}

fn forbidden(subject: &Subject<'_>, request: &Request<'_>) -> Status {
    let user = subject.name;
    match *request {
        Request::Path { verb, path } => {
            let message = format!("forbidden: User {user:?} cannot {verb} path {path:?}");
            Status::failure(403, "Forbidden", message)
        }
        Request::Resource { verb, resource, subresource, namespace, name } => {
            let part = if subresource.is_empty() { "" } else { "/" };
            let scope = match namespace {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace {namespace:?}"),
            };
            let why = format!(
                "User {user:?} cannot {verb} resource \"{}{part}{subresource}\" in API group {:?} {scope}",
                resource.plural, resource.group
            );
            Status::forbidden(resource, name, why)
        }
    }
}
