//! The recorded bodies of a real server (`data/apiserver-golden.txt`), byte for byte after masking
//! what cannot be the same.

mod common;

use std::sync::Arc;

use common::{Api, object};
use model::ClusterConfig;
use serde_json::{Value, json};
use store::selector::{FieldSelector, LabelSelector};
use store::{
    Action, DeleteOptions, ListOptions, PatchKind, Reply, Request, Resource, Status, Store,
    StoreConfig, WatchOptions, record, registry,
};

/// The revision and the uid that the recording has.
const CURRENT: u64 = 1596;
const UID: &str = "9853ef8c-9057-4d76-94ee-e47f5b4ec0aa";

/// Answers that are not the store's: the shell's, or those of a feature that is not there.
const ELSEWHERE: &[(&str, &str)] = &[
    ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", "recorded without watch-list"),
    ("fieldValidation=Strict", "strict decoding comes with the field tables"),
    ("apply-patch+yaml", "server-side apply comes later"),
    ("{bad", "the shell parses bodies"),
    ("https://127.0.0.1:16443/nope", "the shell routes paths"),
    ("Accept: application/yaml", "the shell writes YAML"),
];

struct Section {
    request: String,
    body: String,
    code: u16,
}

fn sections() -> Vec<Section> {
    let text = include_str!("data/apiserver-golden.txt");
    text.split("\n## ")
        .skip(1)
        .map(|part| {
            let (request, rest) = part.split_once('\n').expect("a request line");
            // The answers of the last two requests stand without their requests.
            let rest = rest.split("\n{\n  \"kind\": \"Status\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {},\n  \"status\": \"Failure\",\n  \"message\": \"pods is").next().expect("text");
            let end = rest.rfind("\n[").expect("a code");
            let code = rest[end + 2..end + 5].parse().expect("a code");
            Section { request: request.to_owned(), body: rest[..end].to_owned(), code }
        })
        .collect()
}

/// A store at the recording's revision, with its ConfigMap `w1`.
fn recorded_api() -> Api {
    let mut api = Api::new();
    api.create("namespaces", "", json!({"metadata": {"name": "kube-system"}})).expect("created");
    let service = json!({
        "metadata": {"name": "kubernetes"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 443}]},
    });
    api.create("services", "default", service).expect("created");
    let old = json!({"metadata": {"name": "old"}});
    api.create("configmaps", "kube-system", old).expect("created");
    let revisions = [("configmaps/kube-system/old", 464), ("namespaces//default", CURRENT - 1)];
    let objects = api.log.iter().map(|record| {
        let key = record.object_key();
        let mut value = record.object.to_value();
        if let Some((_, revision)) = revisions.iter().find(|(known, _)| *known == key) {
            value["metadata"]["resourceVersion"] = revision.to_string().into();
        }
        record::object_from_bytes(
            &store::Definitions::default(),
            &key,
            value.to_string().as_bytes(),
        )
        .expect("an object")
    });
    let config = StoreConfig::from(&ClusterConfig::default());
    let store =
        Store::restore(config, store::Definitions::default(), objects.collect::<Vec<_>>(), [])
            .expect("a store");
    let mut api = Api::over(store);
    let body = json!({"metadata": {"name": "w1"}, "data": {"a": "b"}});
    let created = api.create("configmaps", "default", body).expect("created");
    assert_eq!(created.revision, CURRENT);
    api
}

#[test]
fn answers_are_those_of_the_real_server() {
    let mut compared = 0;
    for section in sections() {
        if ELSEWHERE.iter().any(|(part, _)| section.request.contains(part)) {
            continue;
        }
        let mut api = recorded_api();
        let uid = api.get("configmaps", "default", "w1").expect("stored").uid().to_owned();
        let (code, text) = answer(&mut api, &section.request);
        let text = text.replace(&uid, UID);
        assert_eq!(code, section.code, "{}\n{text}", section.request);
        if section.body.is_empty() {
            assert_eq!(text, "", "{}", section.request);
        } else {
            let expected = masked(&section.body);
            assert_eq!(masked(&text), expected, "{}", section.request);
        }
        compared += 1;
    }
    assert_eq!(compared, 28, "each recorded answer is compared, or stands in ELSEWHERE");
}

/// The JSON without times; dry-run uids are random.
fn masked(text: &str) -> Value {
    let mut value: Value = serde_json::from_str(text).expect("JSON");
    mask(&mut value);
    value
}

fn mask(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.contains_key("fieldsV1") {
                map.insert("time".to_owned(), "masked".into());
            }
            if map.contains_key("creationTimestamp") {
                map.insert("creationTimestamp".to_owned(), "masked".into());
            }
            if map.get("uid").is_some_and(|uid| uid != UID) {
                map.insert("uid".to_owned(), "masked".into());
            }
            map.values_mut().for_each(mask);
        }
        Value::Array(items) => items.iter_mut().for_each(mask),
        _ => {}
    }
}

/// The shell in small: routes a recorded curl line to the store.
fn answer(api: &mut Api, line: &str) -> (u16, String) {
    let (line, body) = match line.split_once(" -d ") {
        Some((line, body)) => (line, body),
        None => (line, ""),
    };
    let url = line.rsplit(' ').next().expect("a URL");
    let path = url.strip_prefix("https://127.0.0.1:16443").expect("the server");
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let parameter = |name: &str| {
        query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.replace("%3D", "="))
            .unwrap_or_default()
    };
    let header = |name: &str| {
        line.split("-H ")
            .filter_map(|part| part.split_once(": "))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.split(" https://").next().expect("a value").to_owned())
    };
    let method = match line.strip_prefix("-X ") {
        Some(rest) => rest.split(' ').next().expect("a method"),
        None => "GET",
    };
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (namespace, plural, name) = match parts.as_slice() {
        ["api", "v1", "namespaces", namespace, plural] => (*namespace, *plural, ""),
        ["api", "v1", "namespaces", namespace, plural, name] => (*namespace, *plural, *name),
        _ => ("", "nope", ""),
    };
    let Some(resource) = registry::find("", "v1", plural) else {
        return status(Status::unknown_path());
    };
    if method == "GET" {
        let accept = header("Accept").unwrap_or_default();
        return read(api, resource, namespace, name, &accept, &parameter).unwrap_or_else(status);
    }
    api.dry_run = parameter("dryRun") == "All";
    let content_type = header("Content-Type").unwrap_or_default();
    if content_type == "text/plain" {
        return status(Status::unknown_body_format());
    }
    let body = serde_json::from_str(body).unwrap_or(Value::Null);
    let action = match method {
        "POST" => Action::Create(body),
        "PUT" => Action::Update(body),
        "PATCH" => match PatchKind::from_media_type(&content_type) {
            Some(kind) => Action::Patch(kind, body),
            None => return status(Status::unknown_patch_type()),
        },
        "DELETE" => Action::Delete(DeleteOptions::from_value(&body).expect("options")),
        other => panic!("{other}"),
    };
    let request = Request {
        resource,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource: None,
        action,
    };
    match api.stage(&request) {
        Ok(staged) => match staged.reply {
            Reply::Status(success) => (staged.code, success.to_value().to_string()),
            _ => (staged.code, object(staged).to_value().to_string()),
        },
        Err(failure) => status(failure),
    }
}

fn read(
    api: &Api,
    resource: &'static Resource,
    namespace: &str,
    name: &str,
    accept: &str,
    parameter: &dyn Fn(&str) -> String,
) -> Result<(u16, String), Status> {
    if accept == "text/html" {
        return Err(Status::not_acceptable());
    }
    if !name.is_empty() {
        let object: Arc<store::Object> = api.store.get(resource, namespace, name)?;
        let partial = accept.contains("as=PartialObjectMetadata");
        let value = if partial { object.to_partial() } else { object.to_value() };
        return Ok((200, value.to_string()));
    }
    let labels = LabelSelector::parse(&parameter("labelSelector"))?;
    let fields = FieldSelector::parse(resource, &parameter("fieldSelector"))?;
    if parameter("watch") == "1" {
        let options = WatchOptions {
            namespace: namespace.to_owned(),
            labels,
            fields,
            resource_version: parameter("resourceVersion"),
            resource_version_match: parameter("resourceVersionMatch"),
            send_initial_events: (parameter("sendInitialEvents") == "true").then_some(true),
            allow_bookmarks: false,
        };
        let mut watcher = api.store.watch(resource, options)?;
        return Ok(match api.store.watch_next(&mut watcher, 100) {
            Ok(events) => {
                let lines = events.iter().map(|event| event.to_value().to_string());
                (200, lines.collect::<Vec<_>>().join("\n"))
            }
            Err(error) => (200, error.to_watch_event().to_string()),
        });
    }
    let options = ListOptions {
        namespace: namespace.to_owned(),
        labels,
        fields,
        limit: parameter("limit").parse().unwrap_or(0),
        resource_version: parameter("resourceVersion"),
        ..ListOptions::default()
    };
    Ok((200, api.store.list(resource, &options)?.to_value().to_string()))
}

fn status(status: Status) -> (u16, String) {
    (status.code, status.to_value().to_string())
}
