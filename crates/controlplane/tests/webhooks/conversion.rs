//! Webhooks that make versions of custom objects of one another.

use client::{ClientError, DeleteOptions, ListOptions, PatchKind, ResourcePath};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use serde_json::{Value, json};

use crate::KUBECTL;
use crate::hook::{Hook, message};
use crate::support::{self, LOOPBACK, Scratch, Server, start, within};

/// Doors have `spec.at: "HOST:PORT"` in v1, and `spec.host` and `spec.port` in v2.
fn definition(hook: &Hook, path: &str) -> Value {
    let text = json!({"type": "string"});
    let version = |name: &str, properties: Value| {
        let spec = json!({"type": "object", "properties": properties});
        let schema = json!({"type": "object", "properties": {"spec": spec}});
        json!({"name": name, "served": true, "storage": name == "v1",
               "schema": {"openAPIV3Schema": schema}})
    };
    json!({
        "metadata": {"name": "doors.example.org"},
        "spec": {
            "group": "example.org", "scope": "Namespaced",
            "names": {"plural": "doors", "kind": "Door"},
            "versions": [version("v1", json!({"at": text})),
                         version("v2", json!({"host": text, "port": text}))],
            "conversion": {"strategy": "Webhook", "webhook": {
                "clientConfig": {"url": format!("https://{}/{path}", hook.address),
                                 "caBundle": hook.bundle()},
                "conversionReviewVersions": ["v1"]}},
        },
    })
}

fn definitions() -> ResourcePath {
    ResourcePath::new("apiextensions.k8s.io/v1", "customresourcedefinitions")
}

fn doors(version: &'static str) -> ResourcePath {
    ResourcePath::new(version, "doors").namespace("default")
}

const V1: &str = "example.org/v1";
const V2: &str = "example.org/v2";

async fn define(server: &Server, hook: &Hook) {
    let crd = definition(hook, "convert");
    server.client.create::<_, Value>(&definitions(), &crd).await.expect("defined");
}

async fn make(server: &Server, name: &str) -> Value {
    let door = json!({"apiVersion": V1, "kind": "Door", "metadata": {"name": name},
        "spec": {"at": format!("{name}:80")}});
    server.client.create(&doors(V1), &door).await.expect("created")
}

async fn get(server: &Server, version: &'static str, name: &str) -> Result<Value, ClientError> {
    server.client.get(&doors(version).name(name)).await
}

async fn patch_definition(server: &Server, patch: Value) {
    let path = definitions().name("doors.example.org");
    let patched = server.client.patch::<_, Value>(&path, PatchKind::Merge, &patch).await;
    patched.expect("patched");
}

/// What the webhook answers; the path says how.
pub fn answer(path: &str, review: &Value) -> Value {
    let asked = &review["request"];
    let version = asked["desiredAPIVersion"].as_str().unwrap_or_default();
    let objects = asked["objects"].as_array().cloned().unwrap_or_default();
    let mut made: Vec<Value> = objects.iter().map(|object| converted(object, version)).collect();
    let mut result = json!({"status": "Success"});
    match path {
        "refuse" => result = json!({"status": "Failed", "message": "not on a Sunday"}),
        "fewer" => drop(made.pop()),
        "rename" => made.iter_mut().for_each(|one| one["metadata"]["name"] = "x".into()),
        _ => {}
    }
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
           "response": {"uid": asked["uid"], "result": result, "convertedObjects": made}})
}

fn converted(object: &Value, version: &str) -> Value {
    let mut made = object.clone();
    made["apiVersion"] = version.into();
    let text = |field: &str| object["spec"][field].as_str().unwrap_or_default().to_owned();
    made["spec"] = match version {
        V2 => {
            let at = text("at");
            let (host, port) = at.split_once(':').unwrap_or_default();
            json!({"host": host, "port": port})
        }
        _ => json!({"at": format!("{}:{}", text("host"), text("port"))}),
    };
    made
}

async fn kubectl(server: &Server, scratch: &Scratch, arguments: &[&str]) -> String {
    let output = tokio::process::Command::new(KUBECTL)
        .args(arguments)
        .env("KUBECONFIG", &server.kubeconfig)
        .env("HOME", &scratch.0)
        .output()
        .await
        .expect("kubectl runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr)).trim().to_owned()
}

/// The lines of a watch until it ends.
async fn watched(server: &Server, query: &str) -> Vec<Value> {
    let uri = format!("/apis/{V2}/namespaces/default/doors?watch=true&{query}");
    let request = Request::get(uri).body(Full::default()).expect("a request");
    let answer = support::endpoint(server).send_once(request).await.expect("an answer");
    let body = within("the end of the watch", answer.into_body().collect()).await;
    let body = body.expect("a body").to_bytes();
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).expect("an event")).collect()
}

#[tokio::test]
async fn a_webhook_makes_versions_of_one_another() {
    let scratch = Scratch::new("conversion");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    define(&server, &hook).await;
    for name in ["a", "b", "c"] {
        make(&server, name).await;
    }
    assert_eq!(hook.asked(), [], "they are kept as they came");
    let shown = get(&server, V2, "a").await.expect("converted");
    assert_eq!(shown["spec"], json!({"host": "a", "port": "80"}));
    hook.asked();
    let list = server.client.list::<Value>(&doors(V2), &ListOptions::default()).await;
    assert_eq!(list.expect("listed").items.len(), 3);
    let asked = hook.asked();
    assert_eq!(asked.len(), 1, "one review for the page");
    assert_eq!(asked[0].1["objects"].as_array().map(Vec::len), Some(3));
    assert_eq!(asked[0].1["query"], "timeout=30s");

    // Writes in the other version, whose names, identities and times the server chooses.
    let body = json!({"apiVersion": V2, "kind": "Door", "metadata": {"generateName": "d-"},
        "spec": {"host": "d", "port": "1"}});
    let made: Value = server.client.create(&doors(V2), &body).await.expect("created");
    assert_eq!(made["spec"], json!({"host": "d", "port": "1"}));
    let name = made["metadata"]["name"].as_str().expect("a name").to_owned();
    let kept = get(&server, V1, &name).await.expect("kept");
    assert_eq!(kept["spec"], json!({"at": "d:1"}));
    assert_eq!(kept["metadata"], made["metadata"]);
    let patch = json!({"spec": {"port": "2"}});
    let path = doors(V2).name(name.clone());
    let patched: Value =
        server.client.patch(&path, PatchKind::Merge, &patch).await.expect("patched");
    assert_eq!(patched["spec"], json!({"host": "d", "port": "2"}));
    let named = format!("doors.v2.example.org/{name}");
    let shown = ["get", &named, "-o", "jsonpath={.apiVersion} {.spec.port}"];
    assert_eq!(kubectl(&server, &scratch, &shown).await, "example.org/v2 2");
    server.client.delete(&path, &DeleteOptions::default()).await.expect("deleted");

    let since = kept["metadata"]["resourceVersion"].as_str().expect("a version");
    let events = watched(&server, &format!("resourceVersion={since}&timeoutSeconds=2")).await;
    let told: Vec<(&Value, &Value)> =
        events.iter().map(|event| (&event["type"], &event["object"]["spec"]["port"])).collect();
    let expected = [(json!("MODIFIED"), json!("2")), (json!("DELETED"), json!("2"))];
    assert_eq!(told, expected.iter().map(|(kind, port)| (kind, port)).collect::<Vec<_>>());

    // The storage version changes; what is there stays as it is, also over a restart.
    let mut versions = definition(&hook, "convert")["spec"]["versions"].clone();
    versions[0]["storage"] = false.into();
    versions[1]["storage"] = true.into();
    patch_definition(&server, json!({"spec": {"versions": versions}})).await;
    server.running.stop().await;
    let server = start(&scratch.0, 0).await;
    let found: Value =
        server.client.get(&definitions().name("doors.example.org")).await.expect("defined");
    assert_eq!(found["status"]["storedVersions"], json!(["v1", "v2"]));
    hook.asked();
    assert_eq!(get(&server, V1, "a").await.expect("kept")["spec"]["at"], "a:80");
    assert_eq!(hook.asked(), []);
    let moved = json!({"spec": {"port": "81"}});
    let path = doors(V2).name("a");
    server.client.patch::<_, Value>(&path, PatchKind::Merge, &moved).await.expect("rewritten");
    assert_eq!(hook.asked().len(), 1, "out of the old version");
    get(&server, V2, "a").await.expect("kept");
    assert_eq!(hook.asked(), []);
    assert_eq!(get(&server, V1, "a").await.expect("converted")["spec"]["at"], "a:81");
    server.running.stop().await;
}

#[tokio::test]
async fn a_conversion_that_fails_is_told_and_changes_nothing() {
    let scratch = Scratch::new("conversion-failure");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    define(&server, &hook).await;
    make(&server, "a").await;
    let door = "conversion webhook for example.org/v1, Kind=Door";
    for (path, expected) in [
        ("refuse", format!("{door} failed: not on a Sunday")),
        ("fewer", format!("{door} returned 0 objects, expected 1")),
        ("rename", format!("{door} returned invalid object: must have the same name: a != x")),
        (
            "garbage",
            format!(
                "{door} failed: Post \"https://{}/garbage?timeout=30s\": the answer is no JSON",
                hook.address
            ),
        ),
    ] {
        let config = definition(&hook, path)["spec"]["conversion"].clone();
        patch_definition(&server, json!({"spec": {"conversion": config}})).await;
        let (code, told) = message(get(&server, V2, "a").await.expect_err("not converted"));
        assert!(code == 500 && told.starts_with(&expected), "{code} {told}");
    }
    let config = definition(&hook, "refuse")["spec"]["conversion"].clone();
    patch_definition(&server, json!({"spec": {"conversion": config}})).await;
    let refused = format!("{door} failed: not on a Sunday");
    let output = kubectl(&server, &scratch, &["get", "doors.v2.example.org", "a"]).await;
    assert_eq!(output, format!("Error from server: {refused}"));
    let events = watched(&server, "timeoutSeconds=60").await;
    let [event] = events.as_slice() else { panic!("one event: {events:?}") };
    assert_eq!((&event["type"], &event["object"]["message"]), (&json!("ERROR"), &json!(refused)));
    assert_eq!(event["object"]["code"], 500);
    let path = doors(V2).name("a");
    let patch = json!({"spec": {"port": "2"}});
    let patched = server.client.patch::<_, Value>(&path, PatchKind::Merge, &patch).await;
    assert_eq!(message(patched.expect_err("not converted")).1, refused);
    let deleted = server.client.delete(&path, &DeleteOptions::default()).await;
    assert_eq!(message(deleted.expect_err("not converted")).1, refused);
    let body = json!({"apiVersion": V2, "kind": "Door", "metadata": {"name": "b"}, "spec": {}});
    let made = server.client.create::<_, Value>(&doors(V2), &body).await;
    let told = message(made.expect_err("not converted")).1;
    assert_eq!(told, "conversion webhook for example.org/v2, Kind=Door failed: not on a Sunday");
    assert_eq!(get(&server, V1, "a").await.expect("as it was")["spec"]["at"], "a:80");
    assert_eq!(message(get(&server, V1, "b").await.expect_err("never made")).0, 404);
    server.running.stop().await;
}

/// Who is asked about one version, or writes rules for it, sees writes of the others in it.
#[tokio::test]
async fn admission_sees_the_version_that_it_names() {
    let scratch = Scratch::new("conversion-admission");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    define(&server, &hook).await;
    let mut webhook = hook.webhook("open");
    webhook["rules"] = json!([{"operations": ["CREATE"], "apiGroups": ["example.org"],
        "apiVersions": ["v2"], "resources": ["doors"]}]);
    crate::hook::configure(&server, "mutating", json!([webhook])).await.expect("configured");
    let made = make(&server, "a").await;
    assert_eq!(made["spec"], json!({"at": "a:8080"}), "changed in v2, and taken back");
    let asked = hook.asked();
    let (_, seen) = asked.iter().find(|(path, _)| path == "open").expect("asked");
    assert_eq!(seen["object"]["spec"], json!({"host": "a", "port": "80"}));
    assert_eq!(seen["object"]["apiVersion"], V2);
    assert_eq!(
        (&seen["kind"]["version"], &seen["requestKind"]["version"]),
        (&json!("v2"), &json!("v1"))
    );

    crate::hook::configure(&server, "mutating", json!([])).await.expect("configured");
    let group = "admissionregistration.k8s.io/v1";
    let policy = json!({"metadata": {"name": "ports"}, "spec": {
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE"],
            "apiGroups": ["example.org"], "apiVersions": ["v2"], "resources": ["doors"]}]},
        "validations": [{"expression": "object.spec.port != '80'", "message": "not that one"}]}});
    let policies = ResourcePath::new(group, "validatingadmissionpolicies");
    server.client.create::<_, Value>(&policies, &policy).await.expect("a policy");
    let binding = json!({"metadata": {"name": "ports"}, "spec": {"policyName": "ports",
        "validationActions": ["Deny"]}});
    let bindings = ResourcePath::new(group, "validatingadmissionpolicybindings");
    server.client.create::<_, Value>(&bindings, &binding).await.expect("a binding");
    let door = json!({"apiVersion": V1, "kind": "Door", "metadata": {"name": "b"},
        "spec": {"at": "b:80"}});
    let made = server.client.create::<_, Value>(&doors(V1), &door).await;
    let told = message(made.expect_err("refused")).1;
    assert!(told.contains("not that one"), "{told}");
    server.running.stop().await;
}

/// A webhook that names no authorities is known by those that the machine trusts; the inner test
/// runs where these are what its environment says.
#[test]
fn without_a_bundle_the_machines_authorities_count() {
    let scratch = Scratch::new("conversion-trust");
    let program = std::env::current_exe().expect("this program");
    let ran = std::process::Command::new(program)
        .args(["--exact", "conversion::inner_trust", "--ignored", "--nocapture"])
        .env("SSL_CERT_FILE", scratch.0.join("authorities.pem"))
        .env_remove("SSL_CERT_DIR")
        .output();
    let output = ran.expect("the inner test runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
#[ignore = "needs an environment of its own: without_a_bundle_the_machines_authorities_count"]
async fn inner_trust() {
    let authorities = std::env::var_os("SSL_CERT_FILE").expect("a file for authorities");
    let scratch = Scratch::new("conversion-trust-inner");
    let server = start(&scratch.0, 0).await;
    let (hook, other) = (Hook::start(LOOPBACK, &[]).await, Hook::start(LOOPBACK, &[]).await);
    let mut crd = definition(&hook, "convert");
    let config = crd.pointer_mut("/spec/conversion/webhook/clientConfig").expect("a client");
    config.as_object_mut().expect("an object").remove("caBundle");
    server.client.create::<_, Value>(&definitions(), &crd).await.expect("defined");
    make(&server, "a").await;
    for (trusted, expected) in
        [(None, "trusts nobody"), (Some(&other), "certificate"), (Some(&hook), "")]
    {
        if let Some(trusted) = trusted {
            std::fs::write(&authorities, trusted.authority()).expect("written");
        }
        match get(&server, V2, "a").await {
            Ok(_) => assert_eq!(expected, "", "a stranger is believed"),
            Err(error) => {
                let (_, told) = message(error);
                assert!(!expected.is_empty() && told.contains(expected), "{expected:?}: {told}");
            }
        }
    }
    server.running.stop().await;
}
