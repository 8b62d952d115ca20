//! Discovery documents, both the old lists and the aggregated form, from the registry.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::definitions::version_rank;
use crate::{Resource, Subresource};

/// The rows that documents are about: [`crate::Store::served`].
type Rows<'a> = &'a [&'static Resource];

/// Media type of the aggregated form.
pub const AGGREGATED_MEDIA_TYPE: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// `GET /api`: the versions of the core group. `server` is the address to tell clients.
pub fn api_versions(server: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}],
    })
}

/// `GET /apis`: the named groups.
pub fn api_group_list(rows: Rows<'_>) -> Value {
    let groups: Vec<Value> =
        group_names(rows).into_iter().filter_map(|group| group_value(rows, group)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/GROUP`; `None` for a group that is not served.
pub fn api_group(rows: Rows<'_>, group: &str) -> Option<Value> {
    let mut value = group_value(rows, group)?;
    crate::json::set(&mut value, "/kind", "APIGroup");
    crate::json::set(&mut value, "/apiVersion", "v1");
    Some(value)
}

/// `GET /api/v1` (`("", "v1")`) and `GET /apis/GROUP/VERSION`; `None` for one that is not served.
pub fn api_resource_list(rows: Rows<'_>, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for row in of_version(rows, group, version) {
        let mut entry = json!({
            "name": row.plural,
            "singularName": row.singular,
            "namespaced": row.namespaced,
            "kind": row.kind,
            "verbs": row.verbs,
        });
        if !row.short_names.is_empty() {
            crate::json::set(&mut entry, "/shortNames", row.short_names);
        }
        if !row.categories.is_empty() {
            crate::json::set(&mut entry, "/categories", row.categories);
        }
        resources.push(entry);
        for subresource in row.subresources {
            resources.push(subresource_entry(row, *subresource));
        }
    }
    let group_version =
        if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!resources.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version,
            "resources": resources,
        })
    })
}

/// The aggregated document of `GET /api` (`core`) or of `GET /apis`.
pub fn aggregated(rows: Rows<'_>, core: bool) -> Value {
    let names = if core { vec![""] } else { group_names(rows) };
    let items: Vec<Value> = names.into_iter().map(|group| aggregated_group(rows, group)).collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

/// The entity tag of a document, with its quotes: it changes when the document does.
pub fn etag(document: &[u8]) -> String {
    format!("\"{}\"", fingerprint(document))
}

/// A short text that changes when the document does (FNV-1a, 64 bits).
pub(crate) fn fingerprint(document: &[u8]) -> String {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
    let hash = document.iter().fold(OFFSET, step);
    format!("{hash:016X}")
}

/// The groups and versions that are served, with their rows.
pub(crate) fn group_versions(
    rows: Rows<'_>,
) -> BTreeMap<(&'static str, &'static str), Vec<&'static Resource>> {
    let mut groups: BTreeMap<_, Vec<&'static Resource>> = BTreeMap::new();
    for row in rows {
        groups.entry((row.group, row.version)).or_default().push(row);
    }
    groups
}

fn group_names(rows: Rows<'_>) -> Vec<&'static str> {
    let mut names = Vec::new();
    for row in rows {
        if !row.group.is_empty() && !names.contains(&row.group) {
            names.push(row.group);
        }
    }
    names
}

fn of_version(rows: Rows<'_>, group: &str, version: &str) -> Vec<&'static Resource> {
    let fits = |row: &&Resource| row.group == group && row.version == version;
    rows.iter().copied().filter(fits).collect()
}

/// The versions of a group, the preferred one first.
fn versions(rows: Rows<'_>, group: &str) -> Vec<&'static str> {
    let of_group = rows.iter().filter(|row| row.group == group);
    let mut versions: Vec<&'static str> = of_group.map(|row| row.version).collect();
    versions.sort_by_cached_key(|version| Reverse(version_rank(version)));
    versions.dedup();
    versions
}

fn group_value(rows: Rows<'_>, group: &str) -> Option<Value> {
    let version =
        |version: &str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    let versions: Vec<Value> = versions(rows, group).into_iter().map(version).collect();
    let preferred = versions.first().filter(|_| !group.is_empty())?.clone();
    Some(json!({"name": group, "versions": versions, "preferredVersion": preferred}))
}

fn aggregated_group(rows: Rows<'_>, group: &str) -> Value {
    let version = |version: &str| {
        let resources = of_version(rows, group, version).into_iter();
        let resources: Vec<Value> = resources.map(aggregated_resource).collect();
        json!({"version": version, "freshness": "Current", "resources": resources})
    };
    let versions: Vec<Value> = versions(rows, group).into_iter().map(version).collect();
    let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(row: &'static Resource) -> Value {
    let mut value = json!({
        "resource": row.plural,
        "responseKind": {"group": row.group, "version": row.version, "kind": row.kind},
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": row.verbs,
    });
    if !row.short_names.is_empty() {
        crate::json::set(&mut value, "/shortNames", row.short_names);
    }
    if !row.categories.is_empty() {
        crate::json::set(&mut value, "/categories", row.categories);
    }
    let subresources: Vec<Value> = row
        .subresources
        .iter()
        .map(|subresource| {
            let (group, version, kind, verbs) = response(row, *subresource);
            json!({
                "subresource": subresource.name(),
                "responseKind": {"group": group, "version": version, "kind": kind},
                "verbs": verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        crate::json::set(&mut value, "/subresources", subresources);
    }
    value
}

fn subresource_entry(row: &Resource, subresource: Subresource) -> Value {
    let (group, version, kind, verbs) = response(row, subresource);
    let mut entry = json!({
        "name": format!("{}/{}", row.plural, subresource.name()),
        "singularName": "",
        "namespaced": row.namespaced,
        "kind": kind,
        "verbs": verbs,
    });
    if (group, version) != (row.group, row.version) {
        crate::json::set(&mut entry, "/group", group);
        crate::json::set(&mut entry, "/version", version);
    }
    entry
}

type Response = (&'static str, &'static str, &'static str, &'static [&'static str]);

/// Group, version and kind that a subresource answers with, and its verbs.
fn response(row: &Resource, subresource: Subresource) -> Response {
    const READ_WRITE: &[&str] = &["get", "patch", "update"];
    const CONNECT: &[&str] = &["create", "get"];
    match subresource {
        Subresource::Status | Subresource::EphemeralContainers => {
            (row.group, row.version, row.kind, READ_WRITE)
        }
        Subresource::Scale => ("autoscaling", "v1", "Scale", READ_WRITE),
        Subresource::Binding => ("", "v1", "Binding", &["create"]),
        Subresource::Eviction => ("policy", "v1", "Eviction", &["create"]),
        Subresource::Finalize => ("", "v1", "Namespace", &["update"]),
        Subresource::Log => ("", "v1", "Pod", &["get"]),
        Subresource::Token => ("authentication.k8s.io", "v1", "TokenRequest", &["create"]),
        Subresource::Attach => ("", "v1", "PodAttachOptions", CONNECT),
        Subresource::Exec => ("", "v1", "PodExecOptions", CONNECT),
        Subresource::PortForward => ("", "v1", "PodPortForwardOptions", CONNECT),
        Subresource::Proxy => {
            let kind = match row.kind {
                "Node" => "NodeProxyOptions",
                "Service" => "ServiceProxyOptions",
                _ => "PodProxyOptions",
            };
            ("", "v1", kind, &["create", "delete", "get", "patch", "update"])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry;

    fn rows() -> Vec<&'static Resource> {
        registry::resources().collect()
    }

    #[test]
    fn both_forms_name_the_same_resources() {
        let mut legacy = Vec::new();
        for (group, version) in group_versions(&rows()).into_keys() {
            let list = api_resource_list(&rows(), group, version).expect("a served group");
            for entry in list["resources"].as_array().expect("a list") {
                legacy.push(format!("{group}/{}", entry["name"].as_str().expect("a name")));
            }
        }
        let mut combined = Vec::new();
        for document in [aggregated(&rows(), true), aggregated(&rows(), false)] {
            for group in document["items"].as_array().expect("a list") {
                let name = group["metadata"]["name"].as_str().unwrap_or_default();
                for entry in group["versions"][0]["resources"].as_array().expect("a list") {
                    let plural = entry["resource"].as_str().expect("a name");
                    combined.push(format!("{name}/{plural}"));
                    for sub in entry["subresources"].as_array().into_iter().flatten() {
                        let sub = sub["subresource"].as_str().expect("a name");
                        combined.push(format!("{name}/{plural}/{sub}"));
                    }
                }
            }
        }
        legacy.sort();
        combined.sort();
        assert_eq!(legacy, combined);
        assert_eq!(api_resource_list(&rows(), "nope", "v1"), None);
        assert_eq!(api_group(&rows(), "nope"), None);
    }

    #[test]
    fn the_entity_tag_follows_the_document() {
        let tag = |is_core| etag(aggregated(&rows(), is_core).to_string().as_bytes());
        assert_eq!(tag(true), tag(true));
        assert_ne!(tag(true), tag(false));
    }
}
