//! The least of OpenAPI that `kubectl apply` needs: it looks for the `fieldValidation` parameter
//! on the PATCH operation of a kind, and gives up without.

use serde_json::{Map, Value, json};

use crate::discovery::{fingerprint, group_versions};
use crate::{Resource, json as tree};

/// Media type of the (empty) version 2 document. With an `@` in it, as clients ask for it, Go
/// clients cannot parse it.
pub const V2_MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// `GET /openapi/v2`: an empty protobuf document.
pub const V2_DOCUMENT: &[u8] = b"";

/// `GET /openapi/v3`: where the document of each group and version is.
pub fn v3_index() -> Value {
    let mut paths = Map::new();
    for (group, version) in group_versions().into_keys() {
        let path = group_path(group, version);
        let Some(document) = v3_document(group, version) else {
            continue;
        };
        let hash = fingerprint(&document);
        let url = format!("/openapi/v3/{path}?hash={hash}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// `GET /openapi/v3/api/v1` (`("", "v1")`) and `GET /openapi/v3/apis/GROUP/VERSION`.
pub fn v3_document(group: &str, version: &str) -> Option<Value> {
    let rows = group_versions().remove(&(group, version))?;
    let mut paths = Map::new();
    for row in rows {
        let place = if row.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("/{}{place}/{}", group_path(group, version), row.plural);
        paths.insert(format!("{collection}/{{name}}"), item_operations(row));
        paths.insert(collection, collection_operations(row));
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1"},
        "paths": paths,
        "components": {"schemas": {}},
    }))
}

fn item_operations(row: &Resource) -> Value {
    let operation = |action: &str| operation(row, action);
    json!({"patch": operation("patch"), "put": operation("put")})
}

fn collection_operations(row: &Resource) -> Value {
    json!({"post": operation(row, "post")})
}

fn operation(row: &Resource, action: &str) -> Value {
    let parameter = |name| {
        let schema = json!({"type": "string", "uniqueItems": true});
        json!({"name": name, "in": "query", "schema": schema})
    };
    let parameters = ["dryRun", "fieldManager", "fieldValidation"].map(parameter).to_vec();
    let mut value = json!({
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
    });
    tree::set(&mut value, "/x-kubernetes-action", action);
    tree::set(
        &mut value,
        "/x-kubernetes-group-version-kind",
        json!({"group": row.group, "version": row.version, "kind": row.kind}),
    );
    value
}

fn group_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry;

    #[test]
    fn every_kind_offers_field_validation_on_patch() {
        let index = v3_index();
        for row in registry::resources() {
            let path = group_path(row.group, row.version);
            let url = index["paths"][&path]["serverRelativeURL"].as_str().expect("a URL");
            assert!(url.starts_with(&format!("/openapi/v3/{path}?hash=")), "{url}");
            let document = v3_document(row.group, row.version).expect("a document");
            let found = document["paths"].as_object().expect("paths").values().any(|item| {
                let patch = &item["patch"];
                patch["x-kubernetes-group-version-kind"]["kind"] == row.kind
                    && patch["parameters"]
                        .as_array()
                        .is_some_and(|all| all.iter().any(|one| one["name"] == "fieldValidation"))
            });
            assert!(found, "{row:?}");
        }
    }
}
