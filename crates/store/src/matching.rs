//! Which writes rules and selectors of admission take: those of webhooks and of policies.
//!
//! Source: kubernetes.io, "Dynamic Admission Control", "Matching requests".

use serde_json::Value;

use crate::kinds::admission_policy::{BINDING, POLICY};
use crate::kinds::apps::selects_labels;
use crate::kinds::core::NAMESPACE;
use crate::kinds::webhook::{MUTATING, VALIDATING};
use crate::webhooks::Proposal;
use crate::{Resource, Store, Subresource, json};

/// Kinds that admission itself is made of: nobody is asked about them, so that what is wrong with
/// them can be mended.
pub(crate) fn is_of_admission(resource: &Resource) -> bool {
    [&BINDING, &MUTATING, &POLICY, &VALIDATING].contains(&resource)
}

/// Whether a rule may take writes of a resource.
pub(crate) fn names(rule: &Value, resource: &Resource, subresource: Option<Subresource>) -> bool {
    let lists = |field: &str, wanted: &str| {
        json::texts(rule, field).iter().any(|listed| *listed == "*" || *listed == wanted)
    };
    let in_scope = match json::text(rule, "/scope") {
        "Cluster" => !resource.namespaced,
        "Namespaced" => resource.namespaced,
        _ => true,
    };
    let part = subresource.map_or("", Subresource::name);
    let is_named = json::texts(rule, "/resources").iter().any(|listed| {
        let (parent, listed_part) = listed.split_once('/').unwrap_or((listed, ""));
        (parent == "*" || parent == resource.plural)
            && (listed_part == part || (listed_part == "*" && listed.contains('/')))
    });
    in_scope
        && is_named
        && lists("/apiGroups", resource.group)
        && lists("/apiVersions", resource.version)
}

fn takes(rule: &Value, proposal: &Proposal, row: &Resource) -> bool {
    let operations = json::texts(rule, "/operations");
    let objects = json::texts(rule, "/resourceNames");
    operations.iter().any(|one| *one == "*" || *one == proposal.operation.name())
        && names(rule, row, proposal.subresource)
        && (objects.is_empty() || objects.contains(&proposal.name()))
}

impl Store {
    /// Whether one of some rules may take writes of a resource, by this version or, unless
    /// `matchPolicy` is `Exact`, by another one of it.
    pub(crate) fn may_take(
        &self,
        rules: &[Value],
        policy: &str,
        resource: &'static Resource,
        subresource: Option<Subresource>,
    ) -> bool {
        let mut rows = self.versions_of(resource, policy);
        rows.any(|row| rules.iter().any(|rule| names(rule, row, subresource)))
    }

    /// In which version of its resource some rules take a write; `None` when they do not.
    pub(crate) fn taken_as(
        &self,
        rules: &[Value],
        policy: &str,
        proposal: &Proposal,
    ) -> Option<&'static Resource> {
        let mut rows = self.versions_of(proposal.resource, policy);
        rows.find(|row| rules.iter().any(|rule| takes(rule, proposal, row)))
    }

    /// A row, and the others of its definition where they count as the same.
    fn versions_of(
        &self,
        resource: &'static Resource,
        policy: &str,
    ) -> impl Iterator<Item = &'static Resource> {
        let has_others = resource.custom.is_some() && policy != "Exact";
        let others = self.definitions.served();
        let others = others
            .filter(move |row| has_others && row.storage == resource.storage && *row != resource);
        std::iter::once(resource).chain(others)
    }

    /// Whether a `namespaceSelector` takes the object's namespace; a Namespace lies in itself, and
    /// what lies in none is always taken.
    pub(crate) fn is_in_namespaces(&self, holder: &Value, proposal: &Proposal) -> bool {
        let Some(selector) = json::at(holder, "/namespaceSelector") else { return true };
        if proposal.resource == &NAMESPACE {
            let old = proposal.old.as_ref().map(|old| &*old.value);
            let shown = proposal.object.as_ref().or(old);
            let labels = shown.and_then(|shown| json::at(shown, "/metadata/labels"));
            return selects_labels(selector, labels);
        }
        if !proposal.resource.namespaced {
            return true;
        }
        let namespace = self.get(&NAMESPACE, "", &proposal.namespace);
        let labels =
            namespace.as_ref().ok().and_then(|one| json::at(&one.value, "/metadata/labels"));
        selects_labels(selector, labels)
    }
}

/// Whether an `objectSelector` takes the object as it was or as it shall be.
pub(crate) fn selects(selector: &Value, proposal: &Proposal) -> bool {
    let old = proposal.old.as_ref().map(|old| &*old.value);
    [proposal.object.as_ref(), old]
        .into_iter()
        .flatten()
        .any(|object| selects_labels(selector, json::at(object, "/metadata/labels")))
}
