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

/// `GET /openapi/v3`: where the document of each group and version is. `rows` are those of
/// [`crate::Store::resources`].
pub fn v3_index(rows: &[&'static Resource]) -> Value {
    let mut paths = Map::new();
    for ((group, version), rows) in group_versions(rows) {
        let path = group_path(group, version);
        let hash = fingerprint(&document(group, version, &rows));
        let url = format!("/openapi/v3/{path}?hash={hash}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// `GET /openapi/v3/api/v1` and `GET /openapi/v3/apis/GROUP/VERSION`, by what follows
/// `/openapi/v3/`.
pub fn v3_document(rows: &[&'static Resource], path: &str) -> Option<Value> {
    let mut versions = group_versions(rows).into_iter();
    let ((group, version), rows) =
        versions.find(|((group, version), _)| group_path(group, version) == path)?;
    Some(document(group, version, &rows))
}

fn document(group: &str, version: &str, rows: &[&'static Resource]) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for row in rows {
        let place = if row.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("/{}{place}/{}", group_path(group, version), row.plural);
        paths.insert(format!("{collection}/{{name}}"), item_operations(row));
        paths.insert(collection, collection_operations(row));
        if let Some(custom) = row.custom {
            schemas.insert(schema_name(row), custom_schema(row, custom.tree));
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1"},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

/// `com.example.v1.Widget`, as the real server names it.
fn schema_name(row: &Resource) -> String {
    let reversed: Vec<&str> = row.group.rsplit('.').collect();
    format!("{}.{}.{}", reversed.join("."), row.version, row.kind)
}

/// The schema of a custom object, with what all objects have.
fn custom_schema(row: &Resource, schema: &Value) -> Value {
    let mut schema = schema.clone();
    let texts = [
        (
            "apiVersion",
            "APIVersion defines the versioned schema of this representation of an object.",
        ),
        ("kind", "Kind is a string value representing the REST resource this object represents."),
    ];
    for (name, text) in texts {
        let property = json!({"type": "string", "description": text});
        tree::set(&mut schema, &format!("/properties/{name}"), property);
    }
    let metadata = json!({"type": "object", "description": "Standard object's metadata."});
    tree::set(&mut schema, "/properties/metadata", metadata);
    let kind = json!({"group": row.group, "version": row.version, "kind": row.kind});
    tree::set(&mut schema, "/x-kubernetes-group-version-kind", json!([kind]));
    schema
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
        let rows: Vec<&Resource> = registry::resources().collect();
        let index = v3_index(&rows);
        for row in rows.iter().copied() {
            let path = group_path(row.group, row.version);
            let url = index["paths"][&path]["serverRelativeURL"].as_str().expect("a URL");
            assert!(url.starts_with(&format!("/openapi/v3/{path}?hash=")), "{url}");
            let document = v3_document(&rows, &path).expect("a document");
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
