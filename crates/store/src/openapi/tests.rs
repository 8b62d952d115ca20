use std::collections::BTreeSet;

use super::*;

fn rows() -> Vec<&'static Resource> {
    registry::resources().collect()
}

fn read(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// All references of a document lead somewhere within it.
fn check_references(document: &Value, version: Version) {
    let definitions = match version {
        Version::Two => &document["definitions"],
        Version::Three => &document["components"]["schemas"],
    };
    let mut waiting = vec![document];
    let mut found = BTreeSet::new();
    while let Some(tree) = waiting.pop() {
        match tree {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                waiting.extend(members.values());
            }
            Value::Array(items) => waiting.extend(items),
            _ => {}
        }
    }
    assert!(!found.is_empty());
    for reference in found {
        let name = reference.rsplit('/').next().expect("a name");
        assert!(definitions.get(name).is_some(), "{reference}");
    }
}

#[test]
fn every_kind_has_its_schema_and_offers_field_validation_on_patch() {
    let rows = rows();
    let index = v3_index(&rows);
    for row in rows.iter().copied() {
        let path = path_of(&[row]);
        let url = index["paths"][&path]["serverRelativeURL"].as_str().expect("a URL");
        let text = v3_document(&rows, &path).expect("a document");
        let hash = fingerprint(text.as_bytes());
        assert_eq!(url, format!("/openapi/v3/{path}?hash={hash}"));
        let document = read(&text);
        let found = document["paths"].as_object().expect("paths").values().any(|item| {
            let patch = &item["patch"];
            patch[KIND]["kind"] == row.kind
                && patch["parameters"]
                    .as_array()
                    .is_some_and(|all| all.iter().any(|one| one["name"] == "fieldValidation"))
        });
        assert!(found, "{row:?}");
        let schemas = document["components"]["schemas"].as_object().expect("schemas");
        let kind = json!([{"group": row.group, "version": row.version, "kind": row.kind}]);
        assert_eq!(schemas.values().filter(|one| one[KIND] == kind).count(), 1, "{row:?}");
        check_references(&document, Version::Three);
    }
    assert_eq!(v3_document(&rows, "apis/nope/v1"), None);
}

#[test]
fn version_2_has_every_kind_once_and_dry_run_on_patch() {
    let rows = rows();
    let document = read(&v2_json(&rows));
    check_references(&document, Version::Two);
    let definitions = document["definitions"].as_object().expect("definitions");
    for row in &rows {
        let kind = json!({"group": row.group, "version": row.version, "kind": row.kind});
        let found = definitions.values().filter(|one| one[KIND][0] == kind);
        assert_eq!(found.count(), 1, "{row:?}");
        let paths = document["paths"].as_object().expect("paths").values();
        let patches: Vec<&Value> =
            paths.map(|item| &item["patch"]).filter(|patch| patch[KIND] == kind).collect();
        assert_eq!(patches.len(), 1, "{row:?}");
        assert_eq!(patches[0]["parameters"][0]["name"], "dryRun", "{row:?}");
    }
    let octets = v2_protobuf(&rows);
    let contains = |text: &str| octets.windows(text.len()).any(|part| part == text.as_bytes());
    for name in definitions.keys() {
        assert!(contains(name), "{name}");
    }
    assert!(octets.starts_with(b"\x0a\x032.0\x12"));
}
