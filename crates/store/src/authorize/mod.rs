//! Whether a user may do what a request asks: by the roles and bindings in the store, and for nodes
//! by what runs on them. A request that nothing allows is denied.
//!
//! Source: kubernetes.io, "Using RBAC Authorization" and "Using Node Authorization".

mod escalation;
pub mod impersonation;
pub(crate) mod node;
mod rules;

use std::collections::BTreeMap;

use model::NamespacedName;
use model::layout::{GROUP_MASTERS, GROUP_NODES};
use serde_json::{Value, json as tree};

use crate::kinds::rbac;
use crate::{Resource, Status, Store, json};

pub use node::node_rules;

/// The group of all who are known.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The prefix of the names of ServiceAccounts, as users.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// The prefix of the names of nodes, as users.
const NODE_PREFIX: &str = "system:node:";

/// Somebody who is known: what a certificate, a token or an impersonation says of him
/// (authentication.k8s.io/v1 UserInfo).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The name; a certificate's common name.
    pub name: String,
    /// The identity behind the name, where there is one.
    pub uid: String,
    /// The groups; a certificate's organizations.
    pub groups: Vec<String>,
    /// What else is known.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The user as one who asks.
    pub fn subject(&self) -> Subject<'_> {
        Subject { name: &self.name, groups: &self.groups }
    }

    /// The user as a `UserInfo`.
    pub fn info(&self) -> Value {
        let mut info = tree!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            json::set(&mut info, "/uid", self.uid.clone());
        }
        if !self.extra.is_empty() {
            json::set(&mut info, "/extra", tree!(self.extra));
        }
        info
    }
}

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
        /// The API group; empty for core.
        group: &'a str,
        /// The resource's plural.
        plural: &'a str,
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

/// Why a request is allowed.
enum Grant<'a> {
    /// Its sender may do everything.
    Master,
    /// Its sender is a node, and it is about what the node runs.
    Node,
    /// A binding gives the right.
    Bound(Bound<'a>),
}

/// A binding that names somebody, and the role that it gives.
#[derive(Clone, Copy)]
struct Bound<'a> {
    binding: &'a Value,
    /// The entry of the binding that names him.
    subject: &'a Value,
    role: &'a Value,
}

impl Store {
    /// Checks one request.
    ///
    /// # Errors
    /// 403, in the real server's words.
    pub fn authorize(&self, subject: Subject<'_>, request: &Request<'_>) -> Result<(), Status> {
        match self.judge(subject, request) {
            Ok(_) => Ok(()),
            Err(reason) => Err(forbidden(&subject, request, &reason)),
        }
    }

    /// Whether a request is allowed, and why, as reviews tell it; the reason may be empty.
    pub(crate) fn decide(&self, subject: Subject<'_>, request: &Request<'_>) -> (bool, String) {
        match self.judge(subject, request) {
            Ok(Grant::Master | Grant::Node) => (true, String::new()),
            Ok(Grant::Bound(bound)) => (true, format!("RBAC: allowed by {}", bound.describe())),
            Err(reason) => (false, reason),
        }
    }

    /// The error says what more than "no rule allows it" is known.
    fn judge<'a>(
        &'a self,
        subject: Subject<'a>,
        request: &Request<'a>,
    ) -> Result<Grant<'a>, String> {
        if subject.is_master() {
            return Ok(Grant::Master);
        }
        let mut reason = String::new();
        if let Some(node) = subject.node() {
            match self.judge_node(node, request) {
                Ok(()) => return Ok(Grant::Node),
                Err(why) => reason = why,
            }
        }
        let namespace = match *request {
            Request::Resource { namespace, .. } => namespace,
            Request::Path { .. } => "",
        };
        let allows = |bound: &Bound<'_>| {
            json::items(bound.role, "/rules").iter().any(|rule| rules::allows(rule, request))
        };
        self.bound(subject, namespace).find(allows).map(Grant::Bound).ok_or(reason)
    }

    /// The rules that somebody has in a namespace; where it is empty, in the whole cluster.
    pub(crate) fn granted<'a>(
        &'a self,
        subject: Subject<'a>,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Value> {
        self.bound(subject, namespace).flat_map(|bound| json::items(bound.role, "/rules"))
    }

    /// The bindings that name somebody, those of the cluster first.
    fn bound<'a>(
        &'a self,
        subject: Subject<'a>,
        namespace: &'a str,
    ) -> impl Iterator<Item = Bound<'a>> {
        let of_cluster = self.bindings(&rbac::CLUSTER_ROLE_BINDING, "");
        let of_namespace = (!namespace.is_empty())
            .then(|| self.bindings(&rbac::ROLE_BINDING, namespace))
            .into_iter()
            .flatten();
        of_cluster.chain(of_namespace).filter_map(move |binding| {
            let subject = entry_of(binding, &subject)?;
            let namespace = json::text(binding, "/metadata/namespace");
            let role = self.role(json::at(binding, "/roleRef")?, namespace)?;
            Some(Bound { binding, subject, role })
        })
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
            .map(|(_, kept)| &*kept.settled().value)
    }

    /// The role that a binding names; a binding to a role that does not exist grants nothing.
    fn role(&self, reference: &Value, namespace: &str) -> Option<&Value> {
        let (resource, namespace) = match json::text(reference, "/kind") {
            "ClusterRole" => (&rbac::CLUSTER_ROLE, ""),
            "Role" if !namespace.is_empty() => (&rbac::ROLE, namespace),
            _ => return None,
        };
        let key = NamespacedName::new(namespace, json::text(reference, "/name"));
        self.shelf(resource)?.objects.get(&key).map(|kept| &*kept.settled().value)
    }
}

impl Bound<'_> {
    /// As the real server tells it.
    fn describe(&self) -> String {
        let (binding, subject) = (self.binding, self.subject);
        let text = |field| json::text(binding, field);
        let (name, namespace) = (text("/metadata/name"), text("/metadata/namespace"));
        let (kind, name) = match namespace {
            "" => ("ClusterRoleBinding", name.to_owned()),
            namespace => ("RoleBinding", format!("{name}/{namespace}")),
        };
        let named = match (json::text(subject, "/kind"), json::text(subject, "/name")) {
            (kind @ "ServiceAccount", name) => {
                format!("{kind} {:?}", format!("{name}/{}", json::text(subject, "/namespace")))
            }
            (kind, name) => format!("{kind} {name:?}"),
        };
        format!(
            "{kind} {name:?} of {} {:?} to {named}",
            text("/roleRef/kind"),
            text("/roleRef/name")
        )
    }
}

/// The entry of a binding that names somebody.
fn entry_of<'a>(binding: &'a Value, subject: &Subject<'_>) -> Option<&'a Value> {
    json::items(binding, "/subjects").iter().find(|bound| {
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
        Request::Resource { verb, group, plural, subresource, namespace, name } => {
            let part = if subresource.is_empty() { "" } else { "/" };
            let scope = match namespace {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace {namespace:?}"),
            };
            let why = format!(
                "User {user:?} cannot {verb} resource \"{plural}{part}{subresource}\" in API group \
                 {group:?} {scope}{reason}"
            );
            Status::forbidden_by_name(group, plural, name, why)
        }
    }
}
