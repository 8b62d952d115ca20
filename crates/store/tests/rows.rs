//! Every row of the registry goes through the same behaviours: no kind drifts from the others.

mod common;

use common::{Api, named, namespace_of, object, request, row, sample};
use serde_json::{Value, json};
use store::{
    Action, DeleteOptions, Include, ListOptions, PatchKind, Reply, Resource, Subresource,
    WatchOptions, registry, table,
};

/// Kinds whose names are no free choice: `addresses.rs` and `definitions.rs` look at those.
const NAMED: &[&str] = &["IPAddress", "CustomResourceDefinition"];

/// Runs a check for every row, each on a fresh store; a failure names the row.
fn for_each_row(check: impl Fn(&mut Api, &'static Resource)) {
    for resource in registry::resources().filter(|row| !NAMED.contains(&row.kind)) {
        let mut api = Api::new();
        println!("{resource:?}");
        check(&mut api, resource);
    }
}

fn create(api: &mut Api, resource: &'static Resource, name: &str) -> Value {
    let body = named(resource, name);
    let request = request(resource, namespace_of(resource), "", None, Action::Create(body));
    let staged = api.run(&request).unwrap_or_else(|status| panic!("{resource:?}: {status}"));
    assert_eq!(staged.code, 201);
    object(staged).value.clone()
}

fn update(
    api: &mut Api,
    resource: &'static Resource,
    name: &str,
    body: Value,
) -> Result<store::Staged, store::Status> {
    api.run(&request(resource, namespace_of(resource), name, None, Action::Update(body)))
}

/// Takes away what keeps volumes and claims while they are in use: that they wait for it is shown
/// elsewhere.
fn unprotect(api: &mut Api, resource: &'static Resource, name: &str) {
    if matches!(resource.kind, "PersistentVolume" | "PersistentVolumeClaim") {
        let patch = Action::Patch(PatchKind::Merge, json!({"metadata": {"finalizers": null}}));
        api.run(&request(resource, namespace_of(resource), name, None, patch)).expect("released");
    }
}

fn watch_all(api: &Api, resource: &'static Resource, from: u64) -> Vec<(String, String, u64)> {
    let options = WatchOptions { resource_version: from.to_string(), ..WatchOptions::default() };
    api.events(resource, options).expect("events")
}

#[test]
fn a_new_object_gets_its_system_fields() {
    for_each_row(|api, resource| {
        let value = create(api, resource, "one");
        let metadata = &value["metadata"];
        assert_eq!(value["kind"], resource.kind);
        assert_eq!(value["apiVersion"], resource.api_version());
        assert_eq!(metadata["creationTimestamp"], "2026-11-20T23:25:02Z");
        assert_eq!(metadata["uid"].as_str().map(str::len), Some(36));
        assert_eq!(metadata["resourceVersion"], api.store.revision().to_string());
        let namespace = metadata.get("namespace").and_then(Value::as_str);
        assert_eq!(namespace, resource.namespaced.then_some("default"));
        let found = api.store.get(resource, namespace_of(resource), "one").expect("stored");
        assert_eq!(found.value, value);
    });
}

#[test]
fn names_are_generated_on_request() {
    for_each_row(|api, resource| {
        let mut body = sample(resource);
        body["metadata"] = json!({"generateName": "pre-"});
        let request = request(resource, namespace_of(resource), "", None, Action::Create(body));
        let one = object(api.run(&request).expect("created")).key.name.clone();
        let other = object(api.run(&request).expect("created")).key.name.clone();
        assert!(one.starts_with("pre-") && one.len() == "pre-".len() + 5, "{one}");
        assert_ne!(one, other);
    });
}

#[test]
fn a_second_object_of_the_name_is_refused() {
    for_each_row(|api, resource| {
        create(api, resource, "one");
        let body = named(resource, "one");
        let request = request(resource, namespace_of(resource), "", None, Action::Create(body));
        let status = api.run(&request).expect_err("a conflict");
        assert_eq!((status.code, status.reason), (409, "AlreadyExists"));
        let text = format!("{} \"one\" already exists", resource.group_resource());
        assert_eq!(status.message, text);
    });
}

#[test]
fn a_dry_run_answers_and_leaves_nothing() {
    for_each_row(|api, resource| {
        let before = api.store.revision();
        api.dry_run = true;
        create(api, resource, "one");
        api.dry_run = false;
        assert_eq!(api.store.revision(), before);
        let status = api.store.get(resource, namespace_of(resource), "one").expect_err("nothing");
        assert_eq!(status.message, format!("{} \"one\" not found", resource.group_resource()));
        create(api, resource, "one");
    });
}

#[test]
fn an_unchanged_update_writes_nothing() {
    for_each_row(|api, resource| {
        let value = create(api, resource, "one");
        let before = api.store.revision();
        let staged = update(api, resource, "one", value.clone()).expect("accepted");
        assert!(staged.records.is_empty(), "{resource:?}");
        assert_eq!(object(staged).value, value);
        // The same, as a client sends it that knows no defaults.
        for kind in [PatchKind::Strategic, PatchKind::Merge] {
            let action = Action::Patch(kind, named(resource, "one"));
            let request = request(resource, namespace_of(resource), "one", None, action);
            api.run(&request).unwrap_or_else(|status| panic!("{resource:?} {kind:?}: {status}"));
            assert_eq!(api.store.revision(), before, "{resource:?} {kind:?}");
        }
    });
}

#[test]
fn a_stale_update_conflicts() {
    for_each_row(|api, resource| {
        let stale = create(api, resource, "one");
        let mut fresh = stale.clone();
        fresh["metadata"]["labels"]["tier"] = "a".into();
        update(api, resource, "one", fresh).expect("the first wins");
        let status = update(api, resource, "one", stale).expect_err("a conflict");
        assert_eq!((status.code, status.reason), (409, "Conflict"));
        let text = format!(
            "Operation cannot be fulfilled on {} \"one\": the object has been modified; please \
             apply your changes to the latest version and try again",
            resource.group_resource()
        );
        assert_eq!(status.message, text);
    });
}

#[test]
fn generation_counts_the_spec_and_nothing_else() {
    for_each_row(|api, resource| {
        let mut value = create(api, resource, "one");
        if value["metadata"].get("generation").is_none() {
            return;
        }
        assert_eq!(value["metadata"]["generation"], 1);
        value["metadata"]["labels"]["tier"] = "a".into();
        let updated = object(update(api, resource, "one", value).expect("accepted"));
        assert_eq!(updated.value["metadata"]["generation"], 1, "{resource:?}");
        if resource.subresource("scale").is_some() {
            let mut value = updated.value.clone();
            value["spec"]["replicas"] = 7.into();
            value["status"]["replicas"] = 7.into();
            let updated = object(update(api, resource, "one", value).expect("accepted"));
            assert_eq!(updated.value["metadata"]["generation"], 2);
            assert_ne!(updated.value["status"]["replicas"], 7, "the status is not for PUT");
        }
    });
}

#[test]
fn the_status_path_changes_the_status_alone() {
    for_each_row(|api, resource| {
        // What a quota says is counted by the server, whatever is written there.
        if resource.subresource("status").is_none() || resource.kind == "ResourceQuota" {
            return;
        }
        let mut value = create(api, resource, "one");
        let spec = value["spec"].clone();
        value["spec"] = json!({});
        let (field, tested) = match resource.kind {
            "Ingress" => ("loadBalancer", json!({"ingress": [{"ip": "192.0.2.1"}]})),
            "PersistentVolume" => ("reason", json!("Tested")),
            "CronJob" => ("active", json!([{"kind": "Job", "name": "one-1"}])),
            "Pod" => (
                "conditions",
                json!([{
                    "type": "Tested", "status": "True", "lastProbeTime": null,
                    "lastTransitionTime": "2026-11-20T23:25:02Z",
                }]),
            ),
            _ => (
                "conditions",
                json!([{
                    "type": "Tested", "status": "True",
                    "lastTransitionTime": "2026-11-20T23:25:02Z",
                }]),
            ),
        };
        value["status"][field] = tested.clone();
        let request = request(
            resource,
            namespace_of(resource),
            "one",
            Some(Subresource::Status),
            Action::Update(value),
        );
        let updated = object(api.run(&request).expect("accepted"));
        assert_eq!(updated.value["spec"], spec, "{resource:?}");
        assert_eq!(updated.value["status"][field], tested, "{resource:?}");
    });
}

#[test]
fn a_finalizer_holds_the_object_until_it_is_removed() {
    for_each_row(|api, resource| {
        let mut value = create(api, resource, "one");
        value["metadata"]["finalizers"] = json!(["example.org/hold"]);
        update(api, resource, "one", value).expect("accepted");
        let delete = |api: &mut Api| {
            let action = Action::Delete(DeleteOptions::default());
            api.run(&request(resource, namespace_of(resource), "one", None, action))
        };
        let marked = object(delete(api).expect("marked"));
        assert_eq!(marked.value["metadata"]["deletionGracePeriodSeconds"], 0);
        assert_eq!(marked.value["metadata"]["deletionTimestamp"], "2026-11-20T23:25:02Z");
        let before = api.store.revision();
        delete(api).expect("still there");
        assert_eq!(api.store.revision(), before, "a second deletion changes nothing");
        let mut value = marked.value.clone();
        value["metadata"]["finalizers"] = json!(["example.org/hold", "example.org/more"]);
        let status = update(api, resource, "one", value).expect_err("no new finalizers");
        assert!(status.message.contains("no new finalizers can be added"), "{status}");
        if resource.kind == "Namespace" {
            return;
        }
        let mut value = marked.value.clone();
        value["metadata"]["finalizers"] = json!([]);
        update(api, resource, "one", value).expect("released");
        assert!(api.store.get(resource, namespace_of(resource), "one").is_err(), "{resource:?}");
        let events = watch_all(api, resource, before);
        assert_eq!(events.last().map(|event| event.0.as_str()), Some("DELETED"));
    });
}

#[test]
fn a_deletion_answers_and_frees_the_name() {
    for_each_row(|api, resource| {
        if resource.kind == "Namespace" {
            return;
        }
        let value = create(api, resource, "one");
        unprotect(api, resource, "one");
        let wrong = DeleteOptions::from_value(&json!({"preconditions": {"uid": "nope"}}));
        let action = Action::Delete(wrong.expect("options"));
        let status = api
            .run(&request(resource, namespace_of(resource), "one", None, action))
            .expect_err("a precondition");
        assert_eq!(status.code, 409);
        let action = Action::Delete(DeleteOptions::default());
        let staged = api
            .run(&request(resource, namespace_of(resource), "one", None, action))
            .expect("deleted");
        match staged.reply {
            Reply::Object(object) => {
                assert_eq!(object.value["metadata"]["uid"], value["metadata"]["uid"])
            }
            Reply::Status(status) => {
                let status = status.to_value();
                assert_eq!(status["status"], "Success");
                assert_eq!(status["details"]["kind"], resource.plural);
                assert_eq!(status["details"]["uid"], value["metadata"]["uid"]);
            }
            other => panic!("{other:?}"),
        }
        create(api, resource, "one");
    });
}

#[test]
fn a_watch_sees_the_life_of_an_object() {
    for_each_row(|api, resource| {
        let from = api.store.revision();
        let mut value = create(api, resource, "one");
        let created = api.store.revision();
        value["metadata"]["labels"]["tier"] = "a".into();
        value["metadata"]["finalizers"] = Value::Null;
        update(api, resource, "one", value).expect("accepted");
        let action = Action::Delete(DeleteOptions::default());
        api.run(&request(resource, namespace_of(resource), "one", None, action)).expect("deleted");
        let events = watch_all(api, resource, from);
        let kinds: Vec<&str> = events.iter().map(|event| event.0.as_str()).collect();
        let last = if resource.kind == "Namespace" { "MODIFIED" } else { "DELETED" };
        assert_eq!(kinds, ["ADDED", "MODIFIED", last], "{resource:?}");
        let revisions: Vec<u64> = events.iter().map(|event| event.2).collect();
        assert_eq!(revisions, [created, created + 1, created + 2]);
        assert_eq!(watch_all(api, resource, created).len(), 2);
    });
}

#[test]
fn pages_cover_the_list_once_even_while_it_changes() {
    for_each_row(|api, resource| {
        for name in ["a", "b", "c", "d", "e"] {
            create(api, resource, name);
        }
        let all = api.store.list(resource, &ListOptions::default()).expect("a list").items.len();
        let mut options = ListOptions { limit: 2, ..ListOptions::default() };
        let mut names = Vec::new();
        loop {
            let page = api.store.list(resource, &options).expect("a page");
            names.extend(page.items.iter().map(|object| object.key.name.clone()));
            assert_eq!(page.remaining, (names.len() < all).then(|| all - names.len()));
            // What comes between two pages is not part of this list.
            create(api, resource, &format!("z{}", names.len()));
            let Some(token) = page.continue_token else { break };
            options.continue_token = token;
        }
        assert_eq!(names.len(), all);
        assert!(names.is_sorted() && !names.iter().any(|name| name.starts_with('z')), "{names:?}");
    });
}

#[test]
fn tables_have_a_cell_for_each_column() {
    for_each_row(|api, resource| {
        create(api, resource, "one");
        let found = api.store.get(resource, namespace_of(resource), "one").expect("stored");
        let later = api.now.after(std::time::Duration::from_secs(196));
        let table = table::table(resource, [&*found], json!({}), later, Include::Metadata, true);
        let columns = table["columnDefinitions"].as_array().expect("columns");
        let cells = table["rows"][0]["cells"].as_array().expect("cells");
        assert_eq!(columns.len(), cells.len());
        for (column, cell) in columns.iter().zip(cells) {
            match column["name"].as_str() {
                Some("Name") => assert_eq!(cell, "one"),
                Some("Age") => assert_eq!(cell, "3m16s"),
                _ => {}
            }
            let fits = match column["type"].as_str() {
                Some("integer") => cell.is_i64(),
                Some("boolean") => cell.is_boolean() || cell.is_string(),
                _ => cell.is_string(),
            };
            assert!(fits, "{resource:?} {column}: {cell}");
        }
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    });
}

#[test]
fn lists_carry_the_kind_once_and_never_null_items() {
    for_each_row(|api, resource| {
        let empty = ListOptions { namespace: "elsewhere".to_owned(), ..ListOptions::default() };
        let list = api.store.list(resource, &empty).expect("a list").to_value();
        if resource.namespaced {
            assert_eq!(list["items"], json!([]));
        }
        create(api, resource, "one");
        let list = api.store.list(resource, &ListOptions::default()).expect("a list").to_value();
        assert_eq!(list["kind"], format!("{}List", resource.kind));
        assert_eq!(list["metadata"]["resourceVersion"], api.store.revision().to_string());
        assert_eq!(list["items"][0].get("kind"), None);
    });
}

#[test]
fn what_nobody_acts_on_says_so_with_each_write() {
    for plural in ["networkpolicies", "ingresses"] {
        let mut api = Api::new();
        let resource = row(plural);
        let action = Action::Create(named(resource, "one"));
        let staged = api.act(plural, "default", "", None, action).expect("created");
        assert!(staged.warnings[0].contains("is stored, but nothing"), "{plural}");
    }
    let mut api = Api::new();
    let action = Action::Create(named(row("pods"), "one"));
    assert!(api.act("pods", "default", "", None, action).expect("created").warnings.is_empty());
}

#[test]
fn bodies_of_other_kinds_namespaces_and_shapes_are_refused() {
    for_each_row(|api, resource| {
        let attempt = |api: &mut Api, body: Value| {
            api.run(&request(resource, namespace_of(resource), "", None, Action::Create(body)))
                .expect_err("refused")
        };
        let mut body = named(resource, "one");
        body["kind"] = "Gadget".into();
        body["apiVersion"] = "v1".into();
        let status = attempt(api, body);
        let text = format!("Gadget in version \"v1\" cannot be handled as a {}", resource.kind);
        assert!(status.code == 400 && status.message.starts_with(&text), "{status}");
        let mut body = named(resource, "one");
        body["metadata"]["labels"] = json!({"a": 1});
        let status = attempt(api, body);
        assert!(
            status.message.ends_with(
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of \
                 type string"
            ),
            "{status}"
        );
        for body in [json!(null), json!([]), json!("text"), json!(7)] {
            assert_eq!(attempt(api, body).code, 400);
        }
        let mut body = named(resource, "UPPER_case/x");
        body["metadata"]["annotations"] = json!({"-bad-": ""});
        assert_eq!(attempt(api, body).code, 422);
        assert_eq!(
            api.store.list(resource, &ListOptions::default()).expect("a list").items.len(),
            usize::from(resource.kind == "Namespace")
        );
    });
}
