//! Whether a user may do what a request asks: by the roles and bindings in the store, and for nodes
//! by what runs on them. A request that nothing allows is denied.
//!
//! Source: kubernetes.io, "Using RBAC Authorization" and "Using Node Authorization".

mod escalation;
pub mod impersonation;
pub(crate) mod node;
mod rules;

use model::NamespacedName;
use model::layout::{GROUP_MASTERS, GROUP_NODES};
use serde_json::Value;

use crate::kinds::rbac;
use crate::{Resource, Status, Store, json};

pub use node::node_rules;

/// The group of all who are known.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The prefix of the names of ServiceAccounts, as users.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// The prefix of the names of nodes, as users.
const NODE_PREFIX: &str = "system:node:";

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The user's name.
    pub name: &'a str,
    /// The groups that the user's credentials name.
    pub groups: &'a [String],
}

impl<'a> Subject<'a> {
    /// Whether roles do not matter: the way back for who locked himself out.
    pub(crate) fn is_master(self) -> bool {
        self.groups.iter().any(|group| group == GROUP_MASTERS)
    }

    /// The node that asks, if one does.
    pub(crate) fn node(self) -> Option<&'a str> {
        let name = self.name.strip_prefix(NODE_PREFIX).filter(|name| !name.is_empty())?;
        self.groups.iter().any(|group| group == GROUP_NODES).then_some(name)
    }
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
        if subject.is_master() {
            return Ok(());
        }
        let mut reason = String::new();
        if let Some(node) = subject.node() {
            match self.judge_node(node, request) {
                Ok(()) => return Ok(()),
                Err(why) => reason = why,
            }
        }
        let namespace = match request {
            Request::Resource { namespace, .. } => namespace,
            Request::Path { .. } => "",
        };
        match self.granted(subject, namespace).any(|rule| rules::allows(rule, request)) {
            true => Ok(()),
            false => Err(forbidden(&subject, request, &reason)),
        }
    }

    /// The rules that somebody has in a namespace; where it is empty, in the whole cluster.
    fn granted<'a>(
        &'a self,
        subject: Subject<'a>,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Value> {
        let of_cluster = self.bindings(&rbac::CLUSTER_ROLE_BINDING, "");
        let of_namespace = (!namespace.is_empty())
            .then(|| self.bindings(&rbac::ROLE_BINDING, namespace))
            .into_iter()
            .flatten();
        of_cluster
            .chain(of_namespace)
            .filter(move |binding| binds(binding, &subject))
            .filter_map(|binding| {
                self.role(
                    json::at(binding, "/roleRef")?,
                    json::text(binding, "/metadata/namespace"),
                )
            })
            .flat_map(|role| json::items(role, "/rules"))
    }

    fn bindings<'a>(
        &'a self,
        resource: &'static Resource,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Value> {
        let first = NamespacedName::new(namespace, "");
        let shelf = self.shelf(resource).into_iter();
        shelf
            .flat_map(move |shelf| shelf.objects.range(first.clone()..))
            .take_while(move |(key, _)| key.namespace == namespace)
            .map(|(_, object)| &object.value)
    }

    /// The role that a binding names; a binding to a role that does not exist grants nothing.
    fn role(&self, reference: &Value, namespace: &str) -> Option<&Value> {
        let (resource, namespace) = match json::text(reference, "/kind") {
            "ClusterRole" => (&rbac::CLUSTER_ROLE, ""),
            "Role" if !namespace.is_empty() => (&rbac::ROLE, namespace),
            _ => return None,
        };
        let key = NamespacedName::new(namespace, json::text(reference, "/name"));
        self.shelf(resource)?.objects.get(&key).map(|object| &object.value)
    }
}

fn binds(binding: &Value, subject: &Subject<'_>) -> bool {
    json::items(binding, "/subjects").iter().any(|bound| {
        let name = json::text(bound, "/name");
        match json::text(bound, "/kind") {
            "User" => name == subject.name,
            "Group" => subject.groups.iter().any(|group| group == name),
            "ServiceAccount" => subject
                .name
                .strip_prefix(SERVICE_ACCOUNT_PREFIX)
                .and_then(|account| account.split_once(':'))
                .is_some_and(|account| account == (json::text(bound, "/namespace"), name)),
            _ => false,
        }
    })
}

fn forbidden(subject: &Subject<'_>, request: &Request<'_>, reason: &str) -> Status {
    let user = subject.name;
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    match *request {
        Request::Path { verb, path } => {
            let message = format!("forbidden: User {user:?} cannot {verb} path {path:?}{reason}");
            Status::failure(403, "Forbidden", message)
        }
        Request::Resource { verb, resource, subresource, namespace, name } => {
            let part = if subresource.is_empty() { "" } else { "/" };
            let scope = match namespace {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace {namespace:?}"),
            };
            let why = format!(
                "User {user:?} cannot {verb} resource \"{}{part}{subresource}\" in API group {:?} {scope}{reason}",
                resource.plural, resource.group
            );
            Status::forbidden(resource, name, why)
        }
    }
}
