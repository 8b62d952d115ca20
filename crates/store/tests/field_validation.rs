//! `fieldValidation` (api-server 1.6): fields that a kind does not have, and the real server's
//! words for them.

mod common;

use common::{Api, request};
use serde_json::{Value, json};
use store::{Action, FieldDirective, FieldValidation, PatchKind, Status};

const SERVICE: &str = r#"{
    "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
    "spec": {"portz": 1, "ports": [{"port": 80, "port": 81}]}
}"#;

fn resource(plural: &str) -> &'static store::Resource {
    store::registry::find("", "v1", plural).expect("a resource")
}

/// A store whose shell found these faults.
fn api(directive: FieldDirective, faults: &[&str]) -> Api {
    let mut api = Api::new();
    let faults = faults.iter().map(|fault| (*fault).to_owned()).collect();
    api.validation = FieldValidation { directive, faults };
    api
}

fn read(text: &str, kind: &str) -> (Value, Vec<String>) {
    let message = schema::table().kind("v1", kind);
    let mut format = serde_json::Deserializer::from_str(text);
    let read = schema::decode::read(&mut format, message).expect("JSON");
    (read.value, read.faults)
}

/// Creates the Service and gives the warnings.
fn create(directive: FieldDirective) -> Result<Vec<String>, Status> {
    let (body, faults) = read(SERVICE, "Service");
    let mut api = api(directive, &[]);
    api.validation.faults = faults;
    let services = resource("services");
    let staged = api.run(&request(services, "default", "", None, Action::Create(body)))?;
    let stored = api.store.get(services, "default", "web").expect("stored");
    assert_eq!(stored.value["spec"]["portz"], Value::Null, "an unknown field is not stored");
    assert_eq!(stored.value["spec"]["ports"][0]["port"], 81);
    Ok(staged.warnings)
}

#[test]
fn faults_are_refused_told_or_passed_over_as_the_client_asks() {
    let refused = create(FieldDirective::Strict).expect_err("refused");
    assert_eq!((refused.code, refused.reason), (400, "BadRequest"));
    assert_eq!(
        refused.message,
        "Service in version \"v1\" cannot be handled as a Service: strict decoding error: unknown \
         field \"spec.portz\", duplicate field \"spec.ports[0].port\""
    );
    let warned = create(FieldDirective::Warn).expect("made");
    assert_eq!(warned, ["unknown field \"spec.portz\"", "duplicate field \"spec.ports[0].port\""]);
    assert_eq!(create(FieldDirective::Ignore), Ok(vec![]));
}

#[test]
fn a_wrong_type_is_told_before_unknown_fields() {
    let mut api = api(FieldDirective::Strict, &["unknown field \"spec.portz\""]);
    let body = json!({"metadata": {"name": "web"}, "spec": {"portz": 1, "ports": "x"}});
    let refused = api.create("services", "default", body).expect_err("refused");
    assert!(refused.message.contains("cannot unmarshal string"), "{refused}");
}

#[test]
fn a_patch_is_refused_with_what_it_says_or_makes() {
    let patches = [
        (
            PatchKind::Merge,
            json!({"data": {"a": "2"}, "dat": [1, null]}),
            "map[dat:[1 <nil>] data:map[a:2]]",
        ),
        (PatchKind::Strategic, json!({"dat": true}), "map[dat:true]"),
        (PatchKind::Json, json!([{"op": "add", "path": "/dat", "value": 1}]), "\\\"dat\\\":1"),
    ];
    for (kind, patch, shown) in patches {
        let mut api = Api::new();
        let body = json!({"metadata": {"name": "web"}, "data": {"a": "1"}});
        api.create("configmaps", "default", body).expect("made");
        let maps = resource("configmaps");
        let patch = request(maps, "default", "web", None, Action::Patch(kind, patch));
        api.validation.directive = FieldDirective::Strict;
        let refused = api.run(&patch).expect_err("refused");
        assert_eq!(refused.code, 422);
        let begin = " \"\" is invalid: patch: Invalid value: \"";
        let end = "\": strict decoding error: unknown field \"dat\"";
        assert!(refused.message.starts_with(begin), "{refused}");
        assert!(refused.message.ends_with(end), "{refused}");
        assert!(refused.message.contains(shown), "{refused}");
        api.validation.directive = FieldDirective::Warn;
        let staged = api.run(&patch).expect("patched");
        assert_eq!(staged.warnings, ["unknown field \"dat\""]);
    }
}
