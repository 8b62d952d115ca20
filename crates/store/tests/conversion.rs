//! Versions that a webhook makes of one another: what it is asked, what its answers mean, and what
//! comes of reads and writes meanwhile.

mod common;

use common::{Api, request, row};
use serde_json::{Value, json};
use store::conversion::{Batch, Conversions};
use store::selector::{FieldSelector, LabelSelector};
use store::webhooks::Admission;
use store::{
    Action, Context, DeleteOptions, EventType, FieldValidation, ListOptions, PatchKind, Reply,
    Request, Resource, Staged, Status, WatchEvent, WatchOptions,
};

/// Doors have `spec.at: "HOST:PORT"` in v1, and `spec.host` and `spec.port` in v2.
fn doors(storage: &str) -> Value {
    let version = |name: &str, properties: Value| {
        let spec = json!({"type": "object", "properties": properties});
        let schema = json!({"type": "object", "properties": {"spec": spec}});
        json!({"name": name, "served": true, "storage": name == storage,
               "schema": {"openAPIV3Schema": schema},
               "selectableFields": [{"jsonPath": if name == "v1" { ".spec.at" } else { ".spec.host" }}]})
    };
    let text = json!({"type": "string"});
    let second = json!({"host": text, "port": text, "color": {"type": "string", "default": "red"}});
    json!({
        "metadata": {"name": "doors.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "doors", "kind": "Door"},
            "versions": [version("v1", json!({"at": text})), version("v2", second)],
            "conversion": {"strategy": "Webhook", "webhook": {
                "clientConfig": {"url": "https://example.com/convert"},
                "conversionReviewVersions": ["v0", "v1"]}},
        },
    })
}

fn defined() -> Api {
    let mut api = Api::new();
    api.create("customresourcedefinitions", "", doors("v1")).expect("a definition");
    api
}

fn of(api: &Api, version: &str) -> &'static Resource {
    api.store.find("example.com", version, "doors").expect("served")
}

fn door(name: &str) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Door",
           "metadata": {"name": name, "labels": {"n": name}}, "spec": {"at": format!("{name}:80")}})
}

/// What the webhook makes of an object.
fn converted(object: &Value, version: &str) -> Value {
    let mut made = object.clone();
    made["apiVersion"] = version.into();
    made["spec"] = match (object["spec"]["at"].as_str(), version) {
        (Some(at), "example.com/v2") => {
            let (host, port) = at.split_once(':').expect("a port");
            json!({"host": host, "port": port, "unknown": true})
        }
        (None, "example.com/v1") => {
            let text = |field: &str| object["spec"][field].as_str().unwrap_or_default().to_owned();
            json!({"at": format!("{}:{}", text("host"), text("port"))})
        }
        _ => panic!("{object} to {version}"),
    };
    made
}

fn answer(review: &Value) -> Value {
    let asked = &review["request"];
    let version = asked["desiredAPIVersion"].as_str().expect("a version");
    let objects = asked["objects"].as_array().expect("objects");
    let objects: Vec<Value> = objects.iter().map(|object| converted(object, version)).collect();
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
           "response": {"uid": asked["uid"], "result": {"status": "Success"},
                        "convertedObjects": objects}})
}

/// Asks the webhook for what is missing; how many objects each review had.
fn convert(conversions: &mut Conversions) -> Vec<usize> {
    let batches = conversions.take_wanted();
    let counts = batches.iter().map(|batch| {
        let review = batch.review("u").expect("a review");
        let made = batch.converted("u", &answer(&review)).expect("converted");
        let count = made.len();
        conversions.learn(batch, made);
        count
    });
    counts.collect()
}

fn read<T>(
    reviews: &mut Vec<usize>,
    mut read: impl FnMut(&mut Conversions) -> Result<T, Status>,
) -> Result<T, Status> {
    let mut conversions = Conversions::default();
    for _ in 0..20 {
        let found = read(&mut conversions);
        if !conversions.is_wanting() {
            return found;
        }
        reviews.extend(convert(&mut conversions));
    }
    panic!("nothing comes of it: {reviews:?}");
}

/// Runs a write with conversions; how many objects each review had.
fn write(api: &mut Api, request: &Request) -> (Result<Staged, Status>, Vec<usize>) {
    let mut conversions = Conversions::default();
    let mut reviews = Vec::new();
    for _ in 0..20 {
        let mut random = common::Seeded(7);
        let mut context = Context {
            now: api.now,
            random: &mut random,
            subject: None,
            manager: api.manager,
            create_refusal: None,
            dry_run: false,
            validation: FieldValidation::default(),
            admission: Admission::Whole,
        };
        let before = api.store.revision();
        let staged = api.store.stage_converted(request, &mut context, conversions);
        api.store.publish();
        match staged.map(|staged| (staged.reply.clone(), staged)) {
            Ok((Reply::Conversions(wanted), _)) => {
                assert_eq!(api.store.revision(), before, "nothing happened yet");
                conversions = *wanted;
                reviews.extend(convert(&mut conversions));
            }
            Ok((_, staged)) => return (Ok(staged), reviews),
            Err(status) => return (Err(status), reviews),
        }
    }
    panic!("nothing comes of it: {reviews:?}");
}

fn get(api: &Api, version: &str, name: &str) -> (Value, Vec<usize>) {
    let mut reviews = Vec::new();
    let row = of(api, version);
    let found = read(&mut reviews, |known| api.store.get_converted(row, "default", name, known));
    (found.expect("there").to_value(), reviews)
}

fn act(api: &mut Api, version: &str, name: &str, action: Action) -> (Value, Vec<usize>) {
    let request = request(of(api, version), "default", name, None, action);
    let (staged, reviews) = write(api, &request);
    match staged.expect("written").reply {
        Reply::Object(object) => (object.to_value(), reviews),
        Reply::Status(status) => (status.to_value(), reviews),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_way_of_reading_and_writing_goes_by_the_webhook() {
    let mut api = defined();
    let (made, asked) = act(&mut api, "v1", "", Action::Create(door("a")));
    assert_eq!((&made["spec"]["at"], asked.len()), (&json!("a:80"), 0), "kept as it came");
    assert!(get(&api, "v1", "a").1.is_empty(), "it is kept in this version");
    let (shown, asked) = get(&api, "v2", "a");
    assert_eq!(asked, [1]);
    // Unknown fields are taken out; defaults are those of the version that it is kept in.
    assert_eq!(shown["spec"], json!({"host": "a", "port": "80"}));
    assert_eq!(shown["metadata"], made["metadata"]);
    let without = api.store.get(of(&api, "v2"), "default", "a").expect_err("not converted");
    assert!(without.message.contains("only the conversion webhook"), "{without}");

    let mut other = json!({"apiVersion": "example.com/v2", "kind": "Door",
        "metadata": {"name": "b"}, "spec": {"host": "b", "port": "81"}});
    let (made, asked) = act(&mut api, "v2", "", Action::Create(other.clone()));
    assert_eq!(asked, [1], "into the version that is kept");
    assert_eq!(made["spec"], json!({"host": "b", "port": "81", "color": "red"}));
    let (kept, asked) = get(&api, "v1", "b");
    assert_eq!((&kept["spec"], asked.len()), (&json!({"at": "b:81"}), 0));
    assert_eq!(kept["metadata"]["managedFields"][0]["apiVersion"], "example.com/v2");

    other["metadata"]["resourceVersion"] = kept["metadata"]["resourceVersion"].clone();
    other["spec"]["port"] = "82".into();
    let (made, asked) = act(&mut api, "v2", "b", Action::Update(other));
    assert_eq!((&made["spec"]["port"], asked), (&json!("82"), vec![1, 1]), "out and in again");
    let merge = |port: &str| Action::Patch(PatchKind::Merge, json!({"spec": {"port": port}}));
    let same = json!({"spec": {"at": "b:82"}});
    let (same, asked) = act(&mut api, "v1", "b", Action::Patch(PatchKind::Merge, same));
    assert_eq!((asked, &same["metadata"]), (vec![], &made["metadata"]), "nothing changed");
    assert_eq!(act(&mut api, "v2", "b", merge("83")).1, [1, 1]);
    let config = json!({"apiVersion": "example.com/v2", "kind": "Door",
        "metadata": {"name": "b"}, "spec": {"port": "84"}});
    let apply = Action::Apply { config, force: true };
    assert_eq!(act(&mut api, "v2", "b", apply).0["spec"]["host"], "b");
    assert_eq!(get(&api, "v1", "b").0["spec"]["at"], "b:84");

    let held = json!({"metadata": {"finalizers": ["example.com/held"]}});
    act(&mut api, "v1", "b", Action::Patch(PatchKind::Merge, held));
    let (marked, asked) = act(&mut api, "v2", "b", Action::Delete(DeleteOptions::default()));
    assert_eq!((asked, &marked["spec"]["port"]), (vec![1], &json!("84")));
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let (gone, _) = act(&mut api, "v2", "a", Action::Delete(DeleteOptions::default()));
    assert_eq!(gone["status"], "Success");
}

#[test]
fn a_page_is_one_review_and_selectors_see_what_was_made() {
    let mut api = defined();
    for name in ["a", "b", "c"] {
        act(&mut api, "v1", "", Action::Create(door(name)));
    }
    let row = of(&api, "v2");
    let list = |labels: &str, fields: &str, limit: usize| {
        let options = ListOptions {
            labels: LabelSelector::parse(labels).expect("a selector"),
            fields: FieldSelector::parse(row, fields).expect("a selector"),
            limit,
            ..ListOptions::default()
        };
        let mut reviews = Vec::new();
        let found = read(&mut reviews, |known| api.store.list_converted(row, &options, known));
        let found = found.expect("a list");
        let hosts = found.items.iter().map(|item| item.value["spec"]["host"].clone());
        (hosts.collect::<Vec<Value>>(), reviews, found.remaining)
    };
    assert_eq!(list("", "", 0), (vec!["a".into(), "b".into(), "c".into()], vec![3], None));
    assert_eq!(list("", "", 2), (vec!["a".into(), "b".into()], vec![2], Some(1)));
    assert_eq!(list("n=c", "", 0), (vec!["c".into()], vec![3], None));
    assert_eq!(list("", "spec.host=b", 1), (vec!["b".into()], vec![3], None));

    let options = WatchOptions {
        fields: FieldSelector::parse(row, "spec.host=b").expect("a selector"),
        ..WatchOptions::default()
    };
    let mut watcher = api.store.watch(row, options).expect("a watch");
    let mut next = |api: &Api| {
        let mut reviews = Vec::new();
        let events =
            read(&mut reviews, |known| api.store.watch_converted(&mut watcher, 100, known));
        events.expect("events")
    };
    let shown = |events: &[WatchEvent]| match events {
        [WatchEvent::Object(kind, object)] => (*kind, object.value["spec"].clone()),
        other => panic!("{other:?}"),
    };
    let first = json!({"host": "b", "port": "80"});
    assert_eq!(shown(&next(&api)), (EventType::Added, first.clone()));
    let moved = |at: &str| Action::Patch(PatchKind::Merge, json!({"spec": {"at": at}}));
    act(&mut api, "v1", "b", moved("x:80"));
    assert_eq!(shown(&next(&api)), (EventType::Deleted, first), "it left the selection");
    act(&mut api, "v1", "c", moved("b:1"));
    assert_eq!(shown(&next(&api)), (EventType::Added, json!({"host": "b", "port": "1"})));
    let without = api.store.watch(row, WatchOptions::default()).expect("a watch");
    let told = api.store.watch_next(&mut without.clone(), 100).expect_err("not converted");
    assert_eq!(told.code, 500);
}

#[test]
fn what_was_kept_in_another_version_stays_in_it_until_it_is_written() {
    let mut api = defined();
    for name in ["a", "b"] {
        act(&mut api, "v1", "", Action::Create(door(name)));
    }
    let path = |index: usize| format!("/spec/versions/{index}/storage");
    let swap = json!([{"op": "replace", "path": path(0), "value": false},
                      {"op": "replace", "path": path(1), "value": true}]);
    let changed = api
        .patch("customresourcedefinitions", "", "doors.example.com", PatchKind::Json, swap)
        .expect("changed");
    assert_eq!(changed.value["status"]["storedVersions"], json!(["v1", "v2"]));
    assert!(get(&api, "v1", "a").1.is_empty());
    assert_eq!(get(&api, "v2", "a").1, [1]);
    let color = Action::Patch(PatchKind::Merge, json!({"spec": {"color": "blue"}}));
    assert_eq!(act(&mut api, "v2", "a", color).1, [1], "out of the old version, kept in the new");
    assert!(get(&api, "v2", "a").1.is_empty());
    assert_eq!(get(&api, "v1", "a").0["spec"], json!({"at": "a:80"}));
    // A version that objects may be kept in cannot go; the webhook knows no other.
    let gone = json!([{"op": "remove", "path": "/spec/versions/0"}]);
    let refused = api
        .patch("customresourcedefinitions", "", "doors.example.com", PatchKind::Json, gone)
        .expect_err("refused");
    assert!(refused.message.contains("v1 was previously a storage version"), "{refused}");

    // What the server deletes by itself needs no webhook.
    api.delete("customresourcedefinitions", "", "doors.example.com", json!({})).expect("deleted");
    assert_eq!(api.store.find("example.com", "v1", "doors"), None);
    assert!(api.store.get(row("customresourcedefinitions"), "", "doors.example.com").is_err());
}

/// The batch that a read of two objects asks for, or of one.
fn batch(api: &Api, limit: usize) -> Batch {
    let mut conversions = Conversions::default();
    let options = ListOptions { limit, ..ListOptions::default() };
    api.store.list_converted(of(api, "v2"), &options, &mut conversions).expect_err("wanting");
    conversions.take_wanted().pop().expect("a batch")
}

#[test]
fn what_is_no_answer_is_refused_in_the_words_of_the_real_server() {
    let mut api = defined();
    act(&mut api, "v1", "", Action::Create(door("a")));
    let one = batch(&api, 1);
    let review = one.review("u").expect("a review");
    assert_eq!(review["apiVersion"], "apiextensions.k8s.io/v1");
    assert_eq!(review["request"]["desiredAPIVersion"], "example.com/v2");
    assert_eq!(review["request"]["objects"][0]["spec"]["at"], "a:80");
    let door = "conversion webhook for example.com/v1, Kind=Door";
    let object = "/response/convertedObjects/0";
    let at = |pointer: &str| format!("{object}{pointer}");
    let cases = [
        (
            "/kind".to_owned(),
            json!("Other"),
            "failed: expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got apiextensions.k8s.io/v1, Kind=Other",
        ),
        ("/response".to_owned(), Value::Null, "failed: no response provided"),
        ("/response/uid".to_owned(), json!("x"), "failed: expected response.uid=\"u\", got \"x\""),
        (
            "/response/result".to_owned(),
            json!({"status": "Failure", "message": "no way"}),
            "failed: no way",
        ),
        (
            "/response/result".to_owned(),
            json!({}),
            "failed: response.result.status was '', not 'Success'",
        ),
        ("/response/convertedObjects".to_owned(), json!([]), "returned 0 objects, expected 1"),
        (
            object.to_owned(),
            json!([]),
            "returned invalid object at index 0: invalid groupVersion (expected example.com/v2, received )",
        ),
        (
            at("/apiVersion"),
            json!("example.com/v1"),
            "returned invalid object at index 0: invalid groupVersion (expected example.com/v2, received example.com/v1)",
        ),
        (
            at("/kind"),
            json!("Gate"),
            "returned invalid object at index 0: invalid kind (expected Door, received Gate)",
        ),
        (
            at("/metadata/name"),
            json!("b"),
            "returned invalid object: must have the same name: a != b",
        ),
        (
            at("/metadata/namespace"),
            json!(""),
            "returned invalid object: must have the same namespace: default != ",
        ),
        (
            at("/metadata/labels"),
            json!([]),
            "returned invalid metadata: invalid metadata.labels of type []interface {} in converted object",
        ),
        (
            at("/metadata/labels"),
            json!({"a": 1}),
            "returned invalid metadata: metadata.labels[a] must be a string, but is int64 in converted object",
        ),
        (
            at("/metadata/labels"),
            json!({"a b": "c"}),
            "returned invalid metadata: metadata.labels: Invalid value: \"a b\"",
        ),
        (
            at("/metadata/annotations"),
            json!({"a b": "c"}),
            "returned invalid metadata: metadata.annotation: Invalid value: \"a b\"",
        ),
    ];
    for (pointer, value, expected) in cases {
        let mut wrong = answer(&review);
        // Only what may be there is put there.
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        match wrong.pointer_mut(parent).expect("a parent") {
            Value::Array(items) => items[0] = value,
            parent => parent[name] = value,
        }
        let refused = one.converted("u", &wrong).expect_err(expected);
        assert_eq!((refused.code, refused.reason), (500, ""), "{refused}");
        assert!(refused.message.starts_with(&format!("{door} {expected}")), "{refused}");
    }
    // Metadata stays what it was but for labels and annotations.
    let mut changed = answer(&review);
    let metadata = changed.pointer_mut(&at("/metadata")).expect("metadata");
    metadata["labels"] = json!({"new": "label"});
    metadata["finalizers"] = json!(["example.com/none"]);
    metadata["generation"] = 17.into();
    let made = one.converted("u", &changed).expect("converted").remove(0).to_value();
    let mut expected = review["request"]["objects"][0]["metadata"].clone();
    expected["labels"] = json!({"new": "label"});
    assert_eq!(made["metadata"], expected);

    act(&mut api, "v1", "", Action::Create(self::door("b")));
    let two = batch(&api, 2);
    let review = two.review("u").expect("a review");
    let mut turned = answer(&review);
    let objects = turned.pointer_mut("/response/convertedObjects").and_then(Value::as_array_mut);
    objects.expect("objects").reverse();
    let refused = two.converted("u", &turned).expect_err("another order");
    let expected = "returned invalid converted object at index 1: must have the same name: a != b";
    assert_eq!(refused.message, format!("{door} {expected}"));
}
