//! CustomResourceDefinitions and their objects.

mod common;

use common::{Api, object, request, row};
use serde_json::{Value, json};
use store::selector::{FieldSelector, LabelSelector};
use store::{
    Action, Definitions, DeleteOptions, FieldDirective, FieldValidation, Include, ListOptions,
    Object, PatchKind, Record, Reply, Resource, Staged, Status, Store, StoreConfig, Subresource,
    WatchOptions, discovery, openapi, record, table,
};

/// A definition with two versions, as people write them.
fn gadgets() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "gadgets", "kind": "Gadget", "shortNames": ["gd"], "categories": ["all"]},
            "versions": [version("v1beta1", false), version("v1", true)],
        },
    })
}

fn version(name: &str, storage: bool) -> Value {
    json!({
        "name": name, "served": true, "storage": storage,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "required": ["size"], "properties": {
                "size": {"type": "integer", "minimum": 1},
                "color": {"type": "string", "default": "red"},
                "replicas": {"type": "integer"},
                "ports": {"type": "array", "x-kubernetes-list-type": "map",
                          "x-kubernetes-list-map-keys": ["port"],
                          "items": {"type": "object", "required": ["port"], "properties": {
                              "port": {"type": "integer"}, "name": {"type": "string"}}}},
            }},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }}},
        "subresources": {"status": {}, "scale": {
            "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }},
        "selectableFields": [{"jsonPath": ".spec.color"}],
        "additionalPrinterColumns": [
            {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            {"name": "Ready", "type": "string",
             "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
    })
}

fn gadget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": name}, "spec": spec})
}

fn defined() -> Api {
    let mut api = Api::new();
    api.create("customresourcedefinitions", "", gadgets()).expect("a definition");
    api
}

fn rows(api: &Api, version: &str) -> &'static Resource {
    api.store.find("example.com", version, "gadgets").expect("served")
}

fn run(api: &mut Api, name: &str, action: Action) -> Result<Staged, Status> {
    let row = rows(api, "v1");
    api.run(&request(row, "default", name, None, action))
}

fn make(api: &mut Api, name: &str, spec: Value) -> std::sync::Arc<Object> {
    object(run(api, "", Action::Create(gadget(name, spec))).expect("made"))
}

#[test]
fn a_definition_is_established_at_once() {
    let mut api = Api::new();
    let made = api.create("customresourcedefinitions", "", gadgets()).expect("a definition");
    let status = &made.value["status"];
    assert_eq!(status["acceptedNames"]["singular"], "gadget");
    assert_eq!(status["acceptedNames"]["listKind"], "GadgetList");
    assert_eq!(status["storedVersions"], json!(["v1"]));
    let conditions: Vec<&Value> = status["conditions"].as_array().expect("some").iter().collect();
    let shown = |index: usize| {
        let one = conditions[index];
        (one["type"].clone(), one["status"].clone(), one["reason"].clone(), one["message"].clone())
    };
    assert_eq!(
        shown(0),
        ("NamesAccepted".into(), "True".into(), "NoConflicts".into(), "no conflicts found".into())
    );
    assert_eq!(shown(1).2, "InitialNamesAccepted");
    let rows = api.store.resources();
    let group = discovery::api_group(&rows, "example.com").expect("a group");
    assert_eq!(group["preferredVersion"]["version"], "v1");
    assert_eq!(group["versions"][1]["version"], "v1beta1");
    let list = discovery::api_resource_list(&rows, "example.com", "v1").expect("a version");
    let names: Vec<&str> = list["resources"]
        .as_array()
        .expect("some")
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!(names, ["gadgets", "gadgets/status", "gadgets/scale"]);
    assert_eq!(list["resources"][0]["shortNames"], json!(["gd"]));
    assert!(discovery::aggregated(&rows, false).to_string().contains("\"resource\":\"gadgets\""));
    let document = openapi::v3_document(&rows, "apis/example.com/v1").expect("a document");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    let schemas = &document["components"]["schemas"];
    let schema = &schemas["com.example.v1.Gadget"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["minimum"], 1);
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Gadget");
    let metadata = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    let reference = format!("#/components/schemas/{metadata}");
    assert_eq!(schema["properties"]["metadata"], json!({"$ref": reference}));
    assert_eq!(schemas[metadata]["properties"]["name"], json!({"type": "string"}));
    let document: Value = serde_json::from_str(&openapi::v2_json(&rows)).expect("JSON");
    let size = &document["definitions"]["com.example.v1.Gadget"]["properties"]["spec"];
    assert_eq!(size["properties"]["size"]["type"], "integer");
    assert_eq!(size["properties"]["size"].get("minimum"), None);
}

/// Lets clients select gadgets by some paths.
fn select_by(crd: &mut Value, paths: &[&str]) {
    let fields: Vec<Value> = paths.iter().map(|path| json!({"jsonPath": path})).collect();
    crd["spec"]["versions"][1]["selectableFields"] = fields.into();
}

#[test]
fn a_wrong_definition_is_refused_in_the_words_of_the_real_server() {
    let mut api = Api::new();
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 13] = [
        (
            |crd| crd["metadata"]["name"] = "x.example.com".into(),
            r#"metadata.name: Invalid value: "x.example.com": must be spec.names.plural+"."+spec.group"#,
        ),
        (
            |crd| crd["spec"]["scope"] = "Galaxy".into(),
            r#"spec.scope: Unsupported value: "Galaxy": supported values: "Cluster", "Namespaced""#,
        ),
        (
            |crd| crd["spec"]["versions"][0]["storage"] = true.into(),
            r#"spec.versions: Invalid value: ["v1beta1","v1"]: must have exactly one version marked as storage version"#,
        ),
        (
            |crd| crd["spec"]["versions"][1]["schema"] = json!({}),
            "spec.versions[1].schema.openAPIV3Schema: Required value: schemas are required",
        ),
        (
            |crd| {
                let schema = json!({"type": "object", "properties": {"spec": {}}});
                crd["spec"]["versions"][1]["schema"]["openAPIV3Schema"] = schema;
            },
            "spec.versions[1].schema.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified object fields",
        ),
        (
            |crd| crd["spec"]["conversion"] = json!({"strategy": "Webhook"}),
            "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
        ),
        (
            |crd| {
                crd["spec"]["versions"][1]["subresources"]["scale"]["specReplicasPath"] =
                    ".a".into()
            },
            r#"spec.versions[1].subresources.scale.specReplicasPath: Invalid value: ".a": should be a json path under .spec"#,
        ),
        (
            |crd| {
                crd["spec"]["group"] = "gateway.k8s.io".into();
                crd["metadata"]["name"] = "gadgets.gateway.k8s.io".into();
            },
            r#"metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation "api-approved.kubernetes.io""#,
        ),
        (
            |crd| select_by(crd, &[".spec.color", ".spec.color"]),
            r#"spec.versions[1].selectableFields[1]: Duplicate value: ".spec.color""#,
        ),
        (
            |crd| select_by(crd, &[".spec"]),
            r#"spec.versions[1].selectableFields[0]: Invalid value: ".spec": must point to a field of type string, boolean or integer"#,
        ),
        (
            |crd| select_by(crd, &[".spec.colour"]),
            r#"spec.versions[1].selectableFields[0].jsonPath: Invalid value: ".spec.colour": is an invalid path"#,
        ),
        (
            |crd| select_by(crd, &[".metadata.name"]),
            r#"spec.versions[1].selectableFields[0]: Invalid value: ".metadata.name": must not point to fields in metadata"#,
        ),
        (
            |crd| crd["spec"]["names"]["kind"] = "no_kind".into(),
            r#"spec.names.kind: Invalid value: "no_kind": may have mixed case, but should otherwise match: a DNS-1035 label"#,
        ),
    ];
    for (change, expected) in cases {
        let mut crd = gadgets();
        change(&mut crd);
        let refused = api.create("customresourcedefinitions", "", crd).expect_err(expected);
        assert_eq!(refused.code, 422);
        assert!(refused.message.contains(expected), "{refused}");
    }
}

#[test]
fn a_webhook_that_converts_is_named_wholly() {
    let mut api = Api::new();
    let mut crd = gadgets();
    let service = json!({"namespace": "default", "name": "convert"});
    crd["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {
        "clientConfig": {"service": service}, "conversionReviewVersions": ["v1"]}});
    let config = "spec.conversion.webhookClientConfig";
    for (pointer, value, expected) in [
        ("/webhook", Value::Null, format!("{config}: Required value")),
        (
            "/webhook/clientConfig/service",
            Value::Null,
            format!("{config}: Required value: exactly one of url or service"),
        ),
        (
            "/webhook/clientConfig",
            json!({"url": "http://example.com"}),
            format!("{config}.url: Invalid value: \"http://example.com\": 'https' is the only"),
        ),
        (
            "/webhook/clientConfig/service/name",
            Value::Null,
            format!("{config}.service.name: Required value"),
        ),
        (
            "/webhook/clientConfig",
            json!({"url": "https://example.com", "caBundle": "bm9uZQ=="}),
            format!("{config}.caBundle: Invalid value"),
        ),
        (
            "/webhook/conversionReviewVersions",
            Value::Null,
            "spec.conversion.conversionReviewVersions: Required value".to_owned(),
        ),
        ("/strategy", "None".into(), format!("{config}: Forbidden: should not be set when")),
    ] {
        let mut wrong = crd.clone();
        let place = format!("/spec/conversion{pointer}");
        *wrong.pointer_mut(&place).expect("a member") = value;
        let refused = api.create("customresourcedefinitions", "", wrong).expect_err(pointer);
        assert!(refused.message.contains(&expected), "{refused}");
    }
    let made = api.create("customresourcedefinitions", "", crd.clone()).expect("made");
    assert_eq!(made.value["spec"]["conversion"]["webhook"]["clientConfig"]["service"]["port"], 443);
}

#[test]
fn an_object_is_defaulted_pruned_and_judged() {
    let mut api = defined();
    let made = make(&mut api, "g", json!({"size": 3, "typo": 1}));
    assert_eq!(made.value["spec"], json!({"size": 3, "color": "red"}));
    assert_eq!(made.value["metadata"]["generation"], 1);
    let refused =
        run(&mut api, "", Action::Create(gadget("h", json!({"size": "3"})))).expect_err("a type");
    assert_eq!(
        refused.message,
        r#"Gadget.example.com "h" is invalid: spec.size: Invalid value: "string": spec.size in body must be of type integer: "string""#
    );
    let refused = run(&mut api, "", Action::Create(gadget("h", json!({})))).expect_err("required");
    assert_eq!(refused.message, r#"Gadget.example.com "h" is invalid: spec.size: Required value"#);
    api.validation = FieldValidation {
        directive: FieldDirective::Strict,
        faults: vec![r#"unknown field "spec.typo""#.to_owned()],
    };
    let refused =
        run(&mut api, "", Action::Create(gadget("h", json!({"size": 1})))).expect_err("strict");
    assert_eq!(refused.code, 400);
    assert!(
        refused.message.ends_with(r#"strict decoding error: unknown field "spec.typo""#),
        "{refused}"
    );
}

/// As a GatewayClass, which waits for its controller by a default.
#[test]
fn an_object_has_the_defaults_of_its_status_from_the_start() {
    let mut api = Api::new();
    let mut crd = gadgets();
    for version in crd["spec"]["versions"].as_array_mut().expect("versions") {
        let status = &mut version["schema"]["openAPIV3Schema"]["properties"]["status"];
        status["default"] = json!({"ready": "Unknown"});
    }
    api.create("customresourcedefinitions", "", crd).expect("a definition");
    let mut config = gadget("g", json!({"size": 3}));
    config["status"] = json!({"ready": "True"});
    let apply = || Action::Apply { config: config.clone(), force: false };
    let made = object(run(&mut api, "g", apply()).expect("made"));
    assert_eq!(made.value["status"], json!({"ready": "Unknown"}), "not by who makes it");
    let again = object(run(&mut api, "g", apply()).expect("applied again"));
    assert_eq!(again.value["metadata"], made.value["metadata"], "nothing is written");
}

#[test]
fn patches_and_applies_work_but_strategic_ones() {
    let mut api = defined();
    make(&mut api, "g", json!({"size": 3}));
    let merged = run(&mut api, "g", Action::Patch(PatchKind::Merge, json!({"spec": {"size": 4}})));
    let merged = object(merged.expect("merged"));
    assert_eq!(
        (&merged.value["spec"]["size"], &merged.value["metadata"]["generation"]),
        (&json!(4), &json!(2))
    );
    let refused =
        run(&mut api, "g", Action::Patch(PatchKind::Strategic, json!({}))).expect_err("no");
    assert_eq!(refused.code, 415);
    let apply = |api: &mut Api, manager, ports: Value, force| {
        api.manager = manager;
        let config = gadget("s", json!({"size": 1, "ports": ports}));
        run(api, "s", Action::Apply { config, force })
    };
    apply(&mut api, "one", json!([{"port": 1, "name": "a"}]), false).expect("applied");
    let both = apply(&mut api, "two", json!([{"port": 2}]), false).expect("applied");
    let ports = json!([{"port": 1, "name": "a"}, {"port": 2}]);
    assert_eq!(object(both).value["spec"]["ports"], ports, "items are told apart by their key");
    let conflict =
        apply(&mut api, "two", json!([{"port": 1, "name": "b"}]), false).expect_err("owned");
    assert!(
        conflict.message.contains(r#"conflict with "one": .spec.ports[port=1].name"#),
        "{conflict}"
    );
}

#[test]
fn versions_show_the_same_object() {
    let mut api = defined();
    make(&mut api, "g", json!({"size": 3}));
    let old = api.store.get(rows(&api, "v1beta1"), "default", "g").expect("served");
    assert_eq!(old.value["apiVersion"], "example.com/v1beta1");
    let mut body = gadget("h", json!({"size": 1}));
    body["apiVersion"] = "example.com/v1beta1".into();
    let row = rows(&api, "v1beta1");
    let made = api.run(&request(row, "default", "", None, Action::Create(body))).expect("made");
    assert_eq!(object(made).value["apiVersion"], "example.com/v1beta1");
    let stored = api.store.get(rows(&api, "v1"), "default", "h").expect("served");
    assert_eq!(stored.value["apiVersion"], "example.com/v1");
    // A version that is no longer served is gone, its objects are not.
    let served = json!([{"op": "replace", "path": "/spec/versions/0/served", "value": false}]);
    api.patch("customresourcedefinitions", "", "gadgets.example.com", PatchKind::Json, served)
        .expect("patched");
    assert_eq!(api.store.find("example.com", "v1beta1", "gadgets"), None);
    api.store.get(rows(&api, "v1"), "default", "h").expect("served");
}

#[test]
fn columns_selectors_and_scale_follow_the_definition() {
    let mut api = defined();
    make(&mut api, "g", json!({"size": 3, "replicas": 2}));
    make(&mut api, "h", json!({"size": 1, "color": "blue"}));
    let status = json!({"status": {
        "replicas": 1, "selector": "app=g", "conditions": [{"type": "Ready", "status": "True"}],
    }});
    let row = rows(&api, "v1");
    let part = Some(Subresource::Status);
    let patch = Action::Patch(PatchKind::Merge, status);
    let ready = object(api.run(&request(row, "default", "g", part, patch)).expect("patched"));
    assert_eq!(ready.value["metadata"]["generation"], 1, "a status is no change of what is wanted");
    let shown = table::table(row, [&*ready], json!({}), api.now, Include::None, true);
    let names: Vec<&Value> = shown["columnDefinitions"]
        .as_array()
        .expect("some")
        .iter()
        .map(|one| &one["name"])
        .collect();
    assert_eq!(names, ["Name", "Size", "Ready", "Age"]);
    assert_eq!(shown["rows"][0]["cells"], json!(["g", 3, "True", "0s"]));
    let list = |fields: &str| {
        let options = ListOptions {
            labels: LabelSelector::parse("").expect("a selector"),
            fields: FieldSelector::parse(row, fields).expect("a selector"),
            ..ListOptions::default()
        };
        let list = api.store.list(row, &options).expect("a list");
        assert_eq!(list.to_value()["kind"], "GadgetList");
        list.items.iter().map(|one| one.key.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(list("spec.color=blue"), ["h"]);
    assert_eq!(list("metadata.name=g"), ["g"]);
    let scale = api.store.get_scale(row, "default", "g").expect("a scale");
    assert_eq!(scale["spec"]["replicas"], 2);
    assert_eq!(scale["status"], json!({"replicas": 1, "selector": "app=g"}));
    let patch = Action::Patch(PatchKind::Merge, json!({"spec": {"replicas": 5}}));
    api.run(&request(row, "default", "g", Some(Subresource::Scale), patch)).expect("scaled");
    let scaled = api.store.get(row, "default", "g").expect("there");
    assert_eq!(scaled.value["spec"]["replicas"], 5);
}

#[test]
fn a_definition_takes_its_objects_with_it() {
    let mut api = defined();
    make(&mut api, "g", json!({"size": 3}));
    let mut held = gadget("held", json!({"size": 1}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    run(&mut api, "", Action::Create(held)).expect("made");
    let row = rows(&api, "v1");
    let from = api.store.revision();
    let options = WatchOptions { resource_version: from.to_string(), ..WatchOptions::default() };
    let mut watcher = api.store.watch(row, options).expect("a watch");
    let delete = Action::Delete(DeleteOptions::default());
    let crd = row_of_definitions();
    let marked = api.run(&request(crd, "", "gadgets.example.com", None, delete)).expect("marked");
    let marked = object(marked).value.clone();
    let finalizers = json!(["customresourcecleanup.apiextensions.k8s.io"]);
    assert_eq!(marked["metadata"]["finalizers"], finalizers);
    assert_eq!(marked["status"]["conditions"][2]["type"], "Terminating");
    assert!(api.store.get(row, "default", "g").is_err());
    let refused =
        run(&mut api, "", Action::Create(gadget("new", json!({"size": 1})))).expect_err("no");
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (405, "create not allowed while custom resource definition is terminating")
    );
    let release = Action::Patch(PatchKind::Merge, json!({"metadata": {"finalizers": null}}));
    run(&mut api, "held", release).expect("released");
    assert!(api.store.get(crd, "", "gadgets.example.com").is_err(), "the last object is gone");
    assert_eq!(api.store.find("example.com", "v1", "gadgets"), None);
    let events = api.store.watch_next(&mut watcher, 100).expect("events");
    assert_eq!(events.len(), 3, "g is gone, held is marked, held is gone");
    let ended = api.store.watch_next(&mut watcher, 100).expect_err("the kind is gone");
    assert_eq!(ended.code, 404);
    // A definition of the same name begins anew.
    api.create("customresourcedefinitions", "", gadgets()).expect("a definition");
    assert!(
        api.store.list(rows(&api, "v1"), &ListOptions::default()).expect("a list").items.is_empty()
    );
}

fn row_of_definitions() -> &'static Resource {
    row("customresourcedefinitions")
}

#[test]
fn who_comes_second_waits_for_the_names() {
    let mut api = defined();
    let mut other = gadgets();
    other["metadata"]["name"] = "things.example.com".into();
    other["spec"]["names"] = json!({"plural": "things", "kind": "Thing", "shortNames": ["gd"]});
    let waiting = api.create("customresourcedefinitions", "", other).expect("stored");
    let names = &waiting.value["status"]["conditions"][0];
    assert_eq!(
        (&names["status"], &names["reason"]),
        (&json!("False"), &json!("ShortNamesConflict"))
    );
    assert_eq!(names["message"], r#""gd" is already in use"#);
    assert_eq!(api.store.find("example.com", "v1", "things"), None);
    let delete = Action::Delete(DeleteOptions::default());
    let gone = api.run(&request(row_of_definitions(), "", "gadgets.example.com", None, delete));
    assert!(matches!(gone.expect("deleted").reply, Reply::Status(_)));
    assert!(api.store.find("example.com", "v1", "things").is_some(), "the name is free now");
}

#[test]
fn a_restart_finds_definitions_and_objects() {
    let mut api = defined();
    make(&mut api, "g", json!({"size": 3}));
    let mut definitions = Definitions::default();
    let mut objects = Vec::new();
    for entry in &api.log {
        if let (true, Some(bytes)) =
            (entry.resource() == row_of_definitions(), entry.object_bytes())
        {
            definitions.take(&serde_json::from_slice(bytes).expect("JSON"));
        }
    }
    for entry in &api.log {
        let bytes = entry.object_bytes().expect("bytes");
        let read = record::object_from_bytes(&definitions, &entry.object_key(), bytes);
        objects.push(read.expect("an object"));
    }
    let log = api.log.iter().map(|entry| {
        Record::from_bytes(&definitions, entry.revision, &entry.to_bytes()).expect("an entry")
    });
    let log: Vec<Record> = log.collect();
    let config = StoreConfig::from(&model::ClusterConfig::default());
    let store = Store::restore(config, definitions, objects, log).expect("a store");
    let api = Api::over(store);
    let found = api.store.get(rows(&api, "v1"), "default", "g").expect("there");
    assert_eq!(found.value["spec"]["color"], "red");
    let watch = WatchOptions { resource_version: "1".to_owned(), ..WatchOptions::default() };
    assert_eq!(api.events(rows(&api, "v1"), watch).expect("events").len(), 1);
    let unknown =
        record::object_from_bytes(&Definitions::default(), "gadgets.example.com/default/g", b"{}");
    assert!(unknown.is_err());
}

#[test]
fn what_custom_objects_own_goes_with_them() {
    let mut api = defined();
    let owner = make(&mut api, "owner", json!({"size": 1}));
    let reference = |owner: &Object| {
        json!({
            "apiVersion": owner.value["apiVersion"], "kind": owner.value["kind"],
            "name": owner.key.name, "uid": owner.uid(),
        })
    };
    let owned =
        |name: &str, owners: Value| json!({"metadata": {"name": name, "ownerReferences": owners}});
    let other = make(&mut api, "other", json!({"size": 1}));
    api.create("configmaps", "default", owned("one", json!([reference(&owner)]))).expect("made");
    let both = json!([reference(&owner), reference(&other)]);
    api.create("configmaps", "default", owned("both", both)).expect("made");
    let stays = api.create("configmaps", "default", owned("stays", json!([]))).expect("made");
    let mut child = gadget("child", json!({"size": 1}));
    child["metadata"]["ownerReferences"] = json!([reference(&stays)]);
    run(&mut api, "", Action::Create(child)).expect("made");

    run(&mut api, "owner", Action::Delete(DeleteOptions::default())).expect("deleted");
    let names = |api: &Api| api.names("configmaps", "", "");
    assert_eq!(names(&api), ["both", "stays"]);
    let orphan =
        DeleteOptions::from_value(&json!({"propagationPolicy": "Orphan"})).expect("options");
    run(&mut api, "other", Action::Delete(orphan)).expect("deleted");
    assert_eq!(names(&api), ["both", "stays"], "an orphan stays");
    // An owner of the program's own kinds takes custom objects along.
    api.act("configmaps", "default", "stays", None, Action::Delete(DeleteOptions::default()))
        .expect("deleted");
    assert!(api.store.get(rows(&api, "v1"), "default", "child").is_err());
}

#[test]
fn a_namespace_waits_for_its_custom_objects() {
    let mut api = defined();
    let shop = json!({"metadata": {"name": "shop"}, "spec": {"finalizers": ["kubernetes"]}});
    api.create("namespaces", "", shop).expect("made");
    let row = rows(&api, "v1");
    for (name, finalizers) in [("free", json!([])), ("held", json!(["example.com/hold"]))] {
        let mut body = gadget(name, json!({"size": 1}));
        body["metadata"]["finalizers"] = finalizers;
        api.run(&request(row, "shop", "", None, Action::Create(body))).expect("made");
    }
    let delete = Action::Delete(DeleteOptions::default());
    api.act("namespaces", "", "shop", None, delete).expect("marked");
    assert!(api.store.get(row, "shop", "free").is_err());
    let finalize = |api: &mut Api| {
        let body = json!({"metadata": {"name": "shop"}, "spec": {"finalizers": []}});
        api.act("namespaces", "", "shop", Some(Subresource::Finalize), Action::Update(body))
    };
    let refused = finalize(&mut api).expect_err("not empty");
    assert_eq!(refused.code, 409);
    let release = Action::Patch(PatchKind::Merge, json!({"metadata": {"finalizers": null}}));
    api.run(&request(row, "shop", "held", None, release)).expect("released");
    finalize(&mut api).expect("empty");
    assert!(api.store.get(common::row("namespaces"), "", "shop").is_err());
}

/// A definition whose objects have rules.
fn ruled() -> Value {
    let mut crd = gadgets();
    let spec = "/spec/versions/1/schema/openAPIV3Schema/properties/spec";
    let schema = crd.pointer_mut(spec).expect("a schema");
    schema["x-kubernetes-validations"] = json!([
        {"rule": "!has(self.replicas) || self.replicas <= self.size", "fieldPath": ".replicas",
         "messageExpression": "'at most ' + string(self.size)"},
        {"rule": "self.color == oldSelf.color", "message": "color is immutable"},
    ]);
    let status = "/spec/versions/1/schema/openAPIV3Schema/properties/status";
    *crd.pointer_mut(status).expect("a schema") = json!({
        "type": "object", "properties": {"phase": {"type": "string"}},
        "x-kubernetes-validations": [{"rule": "self.phase != 'Lost'"}],
    });
    crd
}

#[test]
fn objects_are_judged_by_the_rules_of_their_definition() {
    let mut api = Api::new();
    let create = request(row_of_definitions(), "", "", None, Action::Create(ruled()));
    assert_eq!(api.run(&create).expect("made").warnings, Vec::<String>::new());
    let create = |spec: Value| Action::Create(gadget("one", spec));
    let refused =
        run(&mut api, "", create(json!({"size": 1, "replicas": 2}))).expect_err("refused");
    assert_eq!(refused.code, 422);
    assert_eq!(
        refused.message,
        "Gadget.example.com \"one\" is invalid: spec.replicas: Invalid value: \"object\": at most 1"
    );
    // Rules only stumble over an object that is wrong anyway.
    let refused = run(&mut api, "", create(json!({"replicas": 2}))).expect_err("refused");
    assert!(refused.message.contains("spec.size: Required value"), "{}", refused.message);
    assert!(refused.message.contains("some validation rules were not checked"));
    run(&mut api, "", create(json!({"size": 3, "replicas": 2}))).expect("made");
    let patch = |value: Value| Action::Patch(PatchKind::Merge, value);
    let refused =
        run(&mut api, "one", patch(json!({"spec": {"color": "blue"}}))).expect_err("refused");
    assert!(refused.message.ends_with(r#"spec: Invalid value: "object": color is immutable"#));
    run(&mut api, "one", patch(json!({"spec": {"replicas": 3}}))).expect("changed");
    let status = patch(json!({"status": {"phase": "Lost"}}));
    let row = rows(&api, "v1");
    let refused = api
        .run(&request(row, "default", "one", Some(Subresource::Status), status))
        .expect_err("refused");
    assert!(refused.message.contains("status: Invalid value"), "{}", refused.message);
}

#[test]
fn a_rule_that_does_not_compile_refuses_the_definition() {
    let mut api = Api::new();
    let mut crd = ruled();
    let rule =
        "/spec/versions/1/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations/0/rule";
    *crd.pointer_mut(rule).expect("a rule") = "frobnicate(self)".into();
    let refused = api.create("customresourcedefinitions", "", crd).expect_err("refused");
    assert_eq!(refused.code, 422);
    let field =
        "spec.versions[1].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule";
    assert!(refused.message.contains(field), "{}", refused.message);
    assert!(
        refused.message.contains("undeclared reference to 'frobnicate'"),
        "{}",
        refused.message
    );
}
