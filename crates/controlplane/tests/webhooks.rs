//! Admission webhooks: a real HTTPS server that is asked about writes, and what becomes of them.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::{
    Client, ClientError, DeleteOptions, HttpsTransport, ListOptions, PatchKind, ResourcePath,
    Transport as _,
};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use support::{LOOPBACK, Scratch, Server, start};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const GROUP_VERSION: &str = "admissionregistration.k8s.io/v1";
/// Where `./x kubectl` puts Debian's kubectl 1.20.
const KUBECTL: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/kubectl-1.20/usr/bin/kubectl");

type Seen = Arc<Mutex<Vec<(String, Value)>>>;

/// A webhook server: the path says how it answers. It remembers what it was asked.
struct Hook {
    address: SocketAddr,
    authority: String,
    seen: Seen,
}

impl Hook {
    /// Listens on an address, with a certificate for that address and these names.
    async fn start(address: IpAddr, names: &[&str]) -> Self {
        Self::start_with(address, names, None).await
    }

    async fn start_with(address: IpAddr, names: &[&str], api: Option<Client>) -> Self {
        let mut subjects: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        subjects.push(address.to_string());
        let key = rcgen::KeyPair::generate().expect("a key");
        let parameters = rcgen::CertificateParams::new(subjects).expect("names");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        let authority = certificate.pem();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(certificate.der().to_vec())],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .expect("a configuration");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((address, 0)).await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let seen = Seen::default();
        let memory = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, memory, api) = (acceptor.clone(), Arc::clone(&memory), api.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| {
                        answer(Arc::clone(&memory), api.clone(), request)
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, authority, seen }
    }

    fn bundle(&self) -> String {
        STANDARD.encode(&self.authority)
    }

    /// A webhook of this server about all writes of ConfigMaps.
    fn webhook(&self, path: &str) -> Value {
        json!({
            "name": format!("{path}.example.org"),
            "clientConfig": {
                "url": format!("https://{}/{path}", self.address),
                "caBundle": self.bundle(),
            },
            "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"],
                "resources": ["configmaps"]}],
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        })
    }

    /// What it was asked since the last time: path and request.
    fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.seen.lock().expect("no panic"))
    }
}

async fn answer(
    seen: Seen,
    api: Option<Client>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let review: Value = serde_json::from_slice(&body).expect("a review");
    let mut asked = review["request"].clone();
    asked["query"] = query.into();
    let count = {
        let mut seen = seen.lock().expect("no panic");
        seen.push((path.clone(), asked));
        seen.len()
    };
    let patch = |operations: Value| {
        json!({"allowed": true, "patchType": "JSONPatch",
            "patch": STANDARD.encode(operations.to_string())})
    };
    let label = |key: &str, value: &str| {
        let labels = review["request"]["object"]["metadata"]["labels"].is_object();
        patch(match labels {
            true => {
                json!([{"op": "add", "path": format!("/metadata/labels/{key}"), "value": value}])
            }
            false => json!([{"op": "add", "path": "/metadata/labels", "value": {key: value}}]),
        })
    };
    let mut response = match path.as_str() {
        "deny" => json!({"allowed": false, "status": {"message": "not here"}}),
        "forbid" => json!({"allowed": false,
            "status": {"code": 403, "reason": "Forbidden", "message": "ask your admin"}}),
        "mute" => json!({"allowed": false}),
        "warn" => json!({"allowed": true, "warnings": ["that is old"]}),
        "halve" => patch(json!([{"op": "replace", "path": "/spec/replicas", "value": 1}])),
        "first" => label("first", &count.to_string()),
        "second" => label("second", &count.to_string()),
        "spoil" => label("bad label", "x"),
        "break" => patch(json!([{"op": "remove", "path": "/absent"}])),
        "slow" => {
            tokio::time::sleep(Duration::from_secs(5)).await;
            json!({"allowed": true})
        }
        "meddle" => {
            // Somebody else writes while the webhook thinks.
            if count == 1
                && let Some(api) = api
            {
                let path = ResourcePath::new("v1", "secrets").namespace("default").name("gate");
                let patch = json!({"metadata": {"labels": {"meddled": "yes"}}});
                let patched = api.patch::<_, Value>(&path, PatchKind::Merge, &patch).await;
                patched.expect("patched");
            }
            json!({"allowed": true})
        }
        _ => json!({"allowed": true}),
    };
    response["uid"] = match path.as_str() {
        "stranger" => "somebody-else".into(),
        _ => review["request"]["uid"].clone(),
    };
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": response});
    let text = if path == "garbage" { "no json".to_owned() } else { review.to_string() };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    if path == "moved" {
        *response.status_mut() = hyper::StatusCode::FOUND;
        response.headers_mut().insert("location", "/allow".parse().expect("a value"));
    }
    Ok(response)
}

async fn configure(server: &Server, kind: &str, webhooks: Value) -> Result<Value, ClientError> {
    let plural = match kind {
        "mutating" => "mutatingwebhookconfigurations",
        _ => "validatingwebhookconfigurations",
    };
    let path = ResourcePath::new(GROUP_VERSION, plural);
    let _ = server.client.delete(&path.clone().name("test"), &DeleteOptions::default()).await;
    let body = json!({"metadata": {"name": "test"}, "webhooks": webhooks});
    server.client.create(&path, &body).await
}

fn maps() -> ResourcePath {
    ResourcePath::new("v1", "configmaps").namespace("default")
}

async fn create(server: &Server, name: &str) -> Result<Value, ClientError> {
    let map = json!({"metadata": {"name": name, "labels": {"app": "x"}}, "data": {"a": "b"}});
    server.client.create(&maps(), &map).await
}

fn message(error: ClientError) -> (u16, String) {
    let status = error.status().expect("a Status");
    (status.code, status.message.clone())
}

#[tokio::test]
async fn denials_reach_the_client_in_the_real_servers_words() {
    let scratch = Scratch::new("webhook-deny");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    for (path, code, text) in [
        ("deny", 400, "admission webhook \"deny.example.org\" denied the request: not here"),
        (
            "forbid",
            403,
            "admission webhook \"forbid.example.org\" denied the request: ask your admin",
        ),
        (
            "mute",
            400,
            "admission webhook \"mute.example.org\" denied the request without explanation",
        ),
    ] {
        for kind in ["validating", "mutating"] {
            configure(&server, kind, json!([hook.webhook(path)])).await.expect("configured");
            let refused = message(create(&server, "a").await.expect_err("denied"));
            assert_eq!(refused, (code, text.to_owned()), "{kind}");
            configure(&server, kind, json!([])).await.expect("configured");
        }
    }
    configure(&server, "validating", json!([hook.webhook("deny")])).await.expect("configured");
    let output = tokio::process::Command::new(KUBECTL)
        .args(["create", "configmap", "a", "--from-literal=a=b"])
        .env("KUBECONFIG", &server.kubeconfig)
        .env("HOME", &scratch.0)
        .output()
        .await
        .expect("kubectl runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("admission webhook \"deny.example.org\" denied the request: not here"),
        "{text}"
    );
    let absent = server.client.get_optional::<Value>(&maps().name("a")).await.expect("an answer");
    assert_eq!(absent, None, "what was denied is not there");
    server.running.stop().await;
}

#[tokio::test]
async fn a_webhook_is_told_what_happens_and_only_of_what_its_rules_name() {
    let scratch = Scratch::new("webhook-told");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    let mut webhook = hook.webhook("allow");
    webhook["timeoutSeconds"] = 7.into();
    configure(&server, "validating", json!([webhook])).await.expect("configured");

    create(&server, "a").await.expect("created");
    let asked = hook.asked();
    assert_eq!(asked.len(), 1);
    let request = &asked[0].1;
    assert_eq!(request["operation"], "CREATE");
    assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(
        request["resource"],
        json!({"group": "", "version": "v1", "resource": "configmaps"})
    );
    assert_eq!((&request["name"], &request["namespace"]), (&json!("a"), &json!("default")));
    assert_eq!(request["object"]["data"]["a"], "b");
    assert!(request["object"]["metadata"]["uid"].is_string(), "as it is stored: {request}");
    assert_eq!(request["oldObject"], Value::Null);
    assert_eq!(request["dryRun"], false);
    assert_eq!(request["query"], "timeout=7s");
    let groups = request["userInfo"]["groups"].as_array().expect("groups");
    assert!(groups.contains(&"system:masters".into()));

    let patch = json!({"data": {"a": "c"}});
    let patched: Value =
        server.client.patch(&maps().name("a"), PatchKind::Merge, &patch).await.expect("patched");
    assert_eq!(patched["data"]["a"], "c");
    let request = hook.asked().pop().expect("asked").1;
    assert_eq!(request["operation"], "UPDATE");
    assert_eq!(
        (&request["object"]["data"]["a"], &request["oldObject"]["data"]["a"]),
        (&json!("c"), &json!("b"))
    );
    create(&server, "b").await.expect("created");
    hook.asked();
    server.client.delete(&maps().name("a"), &DeleteOptions::default()).await.expect("deleted");
    let request = hook.asked().pop().expect("asked").1;
    assert_eq!((&request["operation"], &request["object"]), (&json!("DELETE"), &Value::Null));
    assert_eq!(request["oldObject"]["metadata"]["name"], "a");

    // Other kinds, and reading, are none of its business.
    let secret = json!({"metadata": {"name": "s"}});
    let secrets = ResourcePath::new("v1", "secrets").namespace("default");
    server.client.create::<_, Value>(&secrets, &secret).await.expect("created");
    server.client.list::<Value>(&maps(), &ListOptions::default()).await.expect("listed");
    assert_eq!(hook.asked(), []);
    server.running.stop().await;
}

#[tokio::test]
async fn rules_and_selectors_choose() {
    let scratch = Scratch::new("webhook-rules");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    let selector = |key: &str, value: &str| json!({"matchLabels": {key: value}});
    let name = "kubernetes.io/metadata.name";
    let rule = |operation: &str, group: &str, resource: &str, scope: &str| {
        json!([{"operations": [operation], "apiGroups": [group], "apiVersions": ["*"],
            "resources": [resource], "scope": scope}])
    };
    let namespaces = ResourcePath::new("v1", "namespaces");
    let labelled = json!({"metadata": {"labels": {name: "default"}}});
    let patched = server
        .client
        .patch::<_, Value>(&namespaces.name("default"), PatchKind::Merge, &labelled)
        .await;
    patched.expect("labelled");
    let cases = [
        ("namespaceSelector", selector(name, "default"), true),
        ("namespaceSelector", selector(name, "other"), false),
        ("objectSelector", selector("app", "x"), true),
        ("objectSelector", selector("app", "y"), false),
        ("rules", rule("CREATE", "", "configmaps", "*"), true),
        ("rules", rule("UPDATE", "", "configmaps", "*"), false),
        ("rules", rule("CREATE", "apps", "configmaps", "*"), false),
        ("rules", rule("CREATE", "*", "*", "Namespaced"), true),
        ("rules", rule("CREATE", "*", "*/*", "Namespaced"), true),
        ("rules", rule("CREATE", "*", "*", "Cluster"), false),
        ("rules", rule("CREATE", "", "configmaps/status", "*"), false),
        ("rules", rule("CREATE", "", "secrets", "*"), false),
    ];
    for (index, (field, value, expected)) in cases.into_iter().enumerate() {
        let mut webhook = hook.webhook("deny");
        webhook[field] = value.clone();
        configure(&server, "validating", json!([webhook])).await.expect("configured");
        let made = create(&server, &format!("m{index}")).await;
        assert_eq!(made.is_err(), expected, "{field} {value}");
    }
    // The status of a pod is a rule's own affair.
    let mut webhook = hook.webhook("deny");
    webhook["rules"] = rule("UPDATE", "", "pods/status", "*");
    configure(&server, "validating", json!([webhook])).await.expect("configured");
    let pods = ResourcePath::new("v1", "pods").namespace("default");
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    server.client.create::<_, Value>(&pods, &pod).await.expect("created");
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let pod = pods.name("p");
    server.client.patch::<_, Value>(&pod, PatchKind::Merge, &label).await.expect("patched");
    let status = json!({"status": {"message": "x"}});
    let refused = server
        .client
        .patch::<_, Value>(&pod.subresource("status"), PatchKind::Merge, &status)
        .await;
    assert_eq!(message(refused.expect_err("denied")).0, 400);
    server.running.stop().await;
}

#[tokio::test]
async fn what_webhooks_change_is_defaulted_and_validated_like_all_else() {
    let scratch = Scratch::new("webhook-change");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    let mut first = hook.webhook("first");
    first["reinvocationPolicy"] = "IfNeeded".into();
    configure(&server, "mutating", json!([first, hook.webhook("second")])).await.expect("made");
    configure(&server, "validating", json!([hook.webhook("allow")])).await.expect("made");
    let made = create(&server, "a").await.expect("created");
    // The first is asked again, since the second changed what it had seen.
    let expected = json!({"app": "x", "first": "3", "second": "2"});
    assert_eq!(made["metadata"]["labels"], expected);
    let asked = hook.asked();
    let order: Vec<&str> = asked.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(order, ["first", "second", "first", "allow"]);
    assert_eq!(asked[3].1["object"]["metadata"]["labels"], expected, "judges see the outcome");
    let stored: Value = server.client.get(&maps().name("a")).await.expect("it");
    assert_eq!(stored["metadata"]["labels"], expected);

    for (path, code, text) in [
        ("spoil", 422, "metadata.labels: Invalid value: \"bad label\""),
        ("break", 500, "the patch of webhook \"break.example.org\" does not apply"),
    ] {
        configure(&server, "mutating", json!([hook.webhook(path)])).await.expect("made");
        let (found, refused) = message(create(&server, "b").await.expect_err("refused"));
        assert!(found == code && refused.contains(text), "{found} {refused}");
    }
    server.running.stop().await;
}

#[tokio::test]
async fn the_failure_policy_decides_over_a_webhook_that_cannot_be_asked() {
    let scratch = Scratch::new("webhook-failure");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    let other = Hook::start(LOOPBACK, &[]).await;
    let closed = {
        let listener = std::net::TcpListener::bind((LOOPBACK, 0)).expect("a port");
        listener.local_addr().expect("an address")
    };
    let url = |webhook: &mut Value, url: String| webhook["clientConfig"]["url"] = url.into();
    let mut dead = hook.webhook("dead");
    url(&mut dead, format!("https://{closed}/"));
    let mut slow = hook.webhook("slow");
    slow["timeoutSeconds"] = 1.into();
    let mut stranger = hook.webhook("allow");
    stranger["clientConfig"]["caBundle"] = other.bundle().into();
    let mut unknown = hook.webhook("allow");
    unknown["clientConfig"].as_object_mut().expect("an object").remove("caBundle");
    let mut metadata = hook.webhook("allow");
    url(&mut metadata, "https://169.254.169.254/".to_owned());
    let mut absent = hook.webhook("allow");
    absent["clientConfig"] = json!({"caBundle": hook.bundle(),
        "service": {"namespace": "default", "name": "nobody"}});
    let cases = [
        (dead, "refused"),
        (slow, "no answer within 1 s"),
        (stranger, "certificate"),
        (unknown, "no caBundle"),
        (metadata, "a link-local address"),
        (absent, "services \"nobody\" not found"),
        (hook.webhook("garbage"), "no JSON"),
        (hook.webhook("stranger"), "expected response.uid"),
        (hook.webhook("moved"), "302"),
    ];
    for (index, (mut webhook, text)) in cases.into_iter().enumerate() {
        let name = webhook["name"].as_str().expect("a name").to_owned();
        configure(&server, "validating", json!([webhook])).await.expect("configured");
        let (code, refused) = message(create(&server, &format!("m{index}")).await.expect_err(text));
        assert_eq!(code, 500, "{refused}");
        let begins = format!("Internal error occurred: failed calling webhook {name:?}: ");
        assert!(refused.starts_with(&begins) && refused.contains(text), "{text}: {refused}");
        webhook["failurePolicy"] = "Ignore".into();
        configure(&server, "validating", json!([webhook])).await.expect("configured");
        create(&server, &format!("m{index}")).await.expect(text);
    }
    server.running.stop().await;
}

#[tokio::test]
async fn nobody_locks_himself_out_by_a_webhook() {
    let scratch = Scratch::new("webhook-lockout");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    let mut all = hook.webhook("deny");
    all["rules"] = json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"],
        "resources": ["*/*"]}]);
    configure(&server, "validating", json!([all])).await.expect("configured");
    configure(&server, "mutating", json!([all])).await.expect("configured");
    create(&server, "a").await.expect_err("denied");
    // The server starts, with all that it needs, whatever they say.
    server.running.stop().await;
    let server = start(&scratch.0, 0).await;
    let roles = ResourcePath::new("rbac.authorization.k8s.io/v1", "clusterroles");
    assert!(server.client.get::<Value>(&roles.name("cluster-admin")).await.is_ok());
    configure(&server, "validating", json!([])).await.expect("configured");
    configure(&server, "mutating", json!([])).await.expect("configured");
    create(&server, "a").await.expect("created");
    server.running.stop().await;
}

#[tokio::test]
async fn dry_runs_warnings_and_collections() {
    let scratch = Scratch::new("webhook-rest");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    configure(&server, "validating", json!([hook.webhook("warn")])).await.expect("configured");
    let map = json!({"metadata": {"name": "dry"}});
    let request = Request::post("/api/v1/namespaces/default/configmaps?dryRun=All")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(map.to_string())))
        .expect("a request");
    let answer = support::endpoint(&server).send_once(request).await.expect("an answer");
    assert_eq!(answer.status(), 201);
    assert_eq!(answer.headers()["warning"], "299 - \"that is old\"");
    assert_eq!(hook.asked()[0].1["dryRun"], true);
    let absent = server.client.get_optional::<Value>(&maps().name("dry")).await.expect("an answer");
    assert_eq!(absent, None);

    for name in ["a", "b"] {
        create(&server, name).await.expect("created");
    }
    hook.asked();
    let request = Request::delete("/api/v1/namespaces/default/configmaps?labelSelector=app%3Dx")
        .body(Full::default())
        .expect("a request");
    let answer = support::endpoint(&server).send_once(request).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let asked = hook.asked();
    let names: Vec<&Value> =
        asked.iter().map(|(_, one)| &one["oldObject"]["metadata"]["name"]).collect();
    assert_eq!(names, ["a", "b"]);
    let left = server.client.list::<Value>(&maps(), &ListOptions::default()).await.expect("listed");
    assert!(
        left.items.iter().all(|one| one["metadata"]["labels"]["app"] != "x"),
        "{:?}",
        left.items
    );
    server.running.stop().await;
}

/// Between the look and the write somebody else writes: the webhook is asked again, about what
/// there is then; a client that named a version gets its conflict.
#[tokio::test]
async fn a_write_is_of_what_the_webhook_saw() {
    let scratch = Scratch::new("webhook-race");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start_with(LOOPBACK, &[], Some(server.client.clone())).await;
    let secrets = ResourcePath::new("v1", "secrets").namespace("default");
    let mut gate = json!({"metadata": {"name": "gate"}});
    let made: Value = server.client.create(&secrets, &gate).await.expect("created");
    let mut webhook = hook.webhook("meddle");
    webhook["rules"][0]["resources"] = json!(["secrets"]);
    // What the webhook itself writes it is not asked about.
    webhook["objectSelector"] = json!({"matchExpressions":
        [{"key": "asked", "operator": "Exists"}]});
    configure(&server, "validating", json!([webhook])).await.expect("configured");
    let path = secrets.name("gate");
    let label = json!({"metadata": {"labels": {"asked": "yes"}}});
    let patched: Value =
        server.client.patch(&path, PatchKind::Merge, &label).await.expect("patched");
    let expected = json!({"asked": "yes", "meddled": "yes"});
    assert_eq!(patched["metadata"]["labels"], expected, "nothing is lost");
    let asked = hook.asked();
    assert_eq!(asked.len(), 2, "what it saw first was not written");
    assert_eq!(asked[1].1["object"]["metadata"]["labels"], expected);

    let label = json!({"metadata": {"labels": {"meddled": null}}});
    server.client.patch::<_, Value>(&path, PatchKind::Merge, &label).await.expect("patched");
    hook.asked();
    let current: Value = server.client.get(&path).await.expect("it");
    gate["metadata"]["labels"] = json!({"asked": "again"});
    gate["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
    let refused = server.client.update::<_, Value>(&path, &gate).await.expect_err("a conflict");
    assert_eq!(message(refused).0, 409);
    assert_ne!(made["metadata"]["resourceVersion"], current["metadata"]["resourceVersion"]);
    server.running.stop().await;
}

#[tokio::test]
async fn configurations_that_could_not_be_honoured_are_refused() {
    let scratch = Scratch::new("webhook-configurations");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    let cases = [
        ("/name", json!("short"), "should be a domain with at least three segments"),
        ("/sideEffects", json!("Some"), "sideEffects: Unsupported value"),
        ("/admissionReviewVersions", json!(["v2"]), "must include v1"),
        ("/timeoutSeconds", json!(31), "must be between 1 and 30 seconds"),
        ("/timeoutSeconds", json!(0), "must be between 1 and 30 seconds"),
        ("/failurePolicy", json!("Maybe"), "failurePolicy: Unsupported value"),
        ("/reinvocationPolicy", json!("Always"), "reinvocationPolicy: Unsupported value"),
        (
            "/clientConfig/url",
            json!("http://example.org"),
            "'https' is the only allowed URL scheme",
        ),
        ("/clientConfig/url", json!("https://a@example.org"), "user information is not permitted"),
        ("/clientConfig/service", json!({"name": "a", "namespace": "b"}), "exactly one of url or"),
        ("/clientConfig/caBundle", json!("bm9uZQ=="), "unable to load root certificates"),
        ("/rules/0/operations", json!(["READ"]), "rules[0].operations[0]: Unsupported value"),
        ("/rules/0/resources", json!([]), "rules[0].resources: Required value"),
        ("/rules/0/scope", json!("Some"), "rules[0].scope: Unsupported value"),
        (
            "/objectSelector",
            json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}),
            "not a valid selector operator",
        ),
        (
            "/matchConditions",
            json!([{"name": "a", "expression": "object.spec.size() > 'a'"}]),
            "matchConditions[0].expression: Invalid value",
        ),
        (
            "/matchConditions",
            json!([{"name": "a", "expression": "request.nope == ''"}]),
            "compilation failed: ERROR: <input>:1:9: undefined field 'nope'",
        ),
        (
            "/matchConditions",
            json!([{"name": "a", "expression": "request.name"}]),
            "must evaluate to bool",
        ),
        (
            "/matchConditions",
            json!([{"name": "a", "expression": "true"}, {"name": "a", "expression": "true"}]),
            "matchConditions[1].name: Duplicate value",
        ),
    ];
    for (pointer, value, text) in cases {
        let mut webhook = hook.webhook("allow");
        if let Some(place) = webhook.pointer_mut(pointer) {
            *place = value.clone();
        } else {
            let (parent, member) = pointer.rsplit_once('/').expect("a pointer");
            webhook.pointer_mut(parent).expect("a parent")[member] = value.clone();
        }
        let refused = configure(&server, "mutating", json!([webhook])).await.expect_err(text);
        let (code, refused) = message(refused);
        assert!(code == 422 && refused.contains(text), "{pointer} {value}: {code} {refused}");
    }
    server.running.stop().await;
}

#[tokio::test]
async fn match_conditions_choose_too() {
    let scratch = Scratch::new("webhook-conditions");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    let failing = "object.nope.deep == 'x'";
    // Conditions, what they do with a failure, and what comes of the write: it is asked about,
    // it is not, or it is refused unasked.
    let cases: [(&[&str], &str, Option<bool>); 8] = [
        (&["object.data.a == 'b'"], "Fail", Some(true)),
        (&["object.data.a == 'c'"], "Fail", Some(false)),
        (&["request.operation == 'CREATE'", "oldObject == null"], "Fail", Some(true)),
        (&["request.userInfo.groups.exists(g, g == 'system:masters')"], "Fail", Some(true)),
        (&["request.userInfo.username.startsWith('system:')"], "Fail", Some(false)),
        (&[failing], "Fail", None),
        (&[failing], "Ignore", Some(false)),
        (&[failing, "request.dryRun"], "Fail", Some(false)),
    ];
    for (index, (expressions, policy, expected)) in cases.into_iter().enumerate() {
        for kind in ["validating", "mutating"] {
            let mut webhook = hook.webhook("deny");
            let conditions = expressions
                .iter()
                .enumerate()
                .map(|(place, text)| json!({"name": format!("c{place}"), "expression": text}));
            webhook["matchConditions"] = conditions.collect();
            webhook["failurePolicy"] = policy.into();
            configure(&server, kind, json!([webhook])).await.expect("configured");
            let made = create(&server, &format!("{kind}{index}")).await;
            let asked = hook.asked().len();
            match expected {
                Some(true) => assert!(made.is_err() && asked == 1, "{expressions:?}"),
                Some(false) => assert!(made.is_ok() && asked == 0, "{expressions:?}: {made:?}"),
                None => {
                    let (code, text) = message(made.expect_err("refused"));
                    let why = format!("is forbidden: expression '{failing}' resulted in error: ");
                    assert!(code == 403 && text.contains(&why) && asked == 0, "{code} {text}");
                }
            }
            configure(&server, kind, json!([])).await.expect("configured");
        }
    }
    server.running.stop().await;
}

/// What a request to a path comes to, for which the client has no call.
async fn raw(server: &Server, method: &str, path: &str, body: Value) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("content-type", "application/json");
    let request = request.body(Full::new(Bytes::from(body.to_string()))).expect("a request");
    let transport = HttpsTransport::new(support::endpoint(server));
    let answer = support::within("an answer", transport.send(request)).await.expect("an answer");
    let code = answer.status().as_u16();
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn subresources_and_connections_are_asked_about_in_kinds_of_their_own() {
    let scratch = Scratch::new("webhook-subresources");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    let template = json!({"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({"metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let deployments = ResourcePath::new("apps/v1", "deployments").namespace("default");
    server.client.create::<_, Value>(&deployments, &deployment).await.expect("created");
    let mut pod = json!({"metadata": {"name": "p"}});
    pod["spec"] = template["spec"].clone();
    let pods = ResourcePath::new("v1", "pods").namespace("default");
    server.client.create::<_, Value>(&pods, &pod).await.expect("created");
    let accounts = ResourcePath::new("v1", "serviceaccounts").namespace("default");
    let account = json!({"metadata": {"name": "runner"}});
    server.client.create::<_, Value>(&accounts, &account).await.expect("created");
    let with = |path: &str| {
        let mut webhook = hook.webhook(path);
        webhook["rules"] = json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"],
            "resources": ["*/scale", "pods/binding", "pods/eviction", "pods/exec",
                "serviceaccounts/token"]}]);
        json!([webhook])
    };
    let base = "/api/v1/namespaces/default";
    let scale = "/apis/apps/v1/namespaces/default/deployments/d/scale";
    let requests = [
        (
            "PUT",
            scale.to_owned(),
            json!({"metadata": {"name": "d"}, "spec": {"replicas": 3}}),
            "UPDATE",
            "Scale",
            200,
        ),
        (
            "POST",
            format!("{base}/serviceaccounts/runner/token"),
            json!({"spec": {}}),
            "CREATE",
            "TokenRequest",
            201,
        ),
        // No node has it, so that there is nobody to connect to.
        (
            "GET",
            format!("{base}/pods/p/exec?command=ls&command=-l&stdout=true"),
            Value::Null,
            "CONNECT",
            "PodExecOptions",
            400,
        ),
        (
            "POST",
            format!("{base}/pods/p/binding"),
            json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}}),
            "CREATE",
            "Binding",
            201,
        ),
        (
            "POST",
            format!("{base}/pods/p/eviction"),
            json!({"metadata": {"name": "p"}}),
            "CREATE",
            "Eviction",
            201,
        ),
    ];
    for (method, path, body, operation, kind, code) in &requests {
        configure(&server, "validating", with("deny")).await.expect("configured");
        let (found, answer) = raw(&server, method, path, body.clone()).await;
        let text = answer["message"].as_str().unwrap_or_default();
        assert!(found == 400 && text.contains("denied the request: not here"), "{kind}: {answer}");
        let asked = hook.asked();
        configure(&server, "validating", with("allow")).await.expect("configured");
        let (found, answer) = raw(&server, method, path, body.clone()).await;
        assert_eq!(found, *code, "{kind}: {answer}");
        assert_eq!(hook.asked().len(), 1, "{kind}: once, and not about what follows from it");
        let request = &asked[0].1;
        assert_eq!(
            (&request["operation"], &request["kind"]["kind"]),
            (&json!(operation), &json!(kind))
        );
        assert_eq!(request["object"]["kind"], *kind, "{request}");
        let part = path.split(['/', '?']).find(|part| request["subResource"] == *part);
        assert!(part.is_some() && request["namespace"] == "default", "{request}");
        match *kind {
            "Scale" => {
                assert_eq!(request["oldObject"]["spec"]["replicas"], 1);
                assert_eq!(request["resource"]["resource"], "deployments");
            }
            "PodExecOptions" => {
                assert_eq!(request["object"]["command"], json!(["ls", "-l"]));
                assert_eq!(request["object"]["stdout"], true);
            }
            _ => {}
        }
    }
    configure(&server, "validating", json!([])).await.expect("configured");
    configure(&server, "mutating", with("halve")).await.expect("configured");
    let (_, scaled) = raw(&server, "PUT", scale, requests[0].2.clone()).await;
    assert_eq!(scaled["spec"]["replicas"], 1, "a webhook's word counts: {scaled}");
    server.running.stop().await;
}

#[tokio::test]
async fn a_webhook_sees_other_versions_in_its_own_unless_it_wants_exact_ones() {
    let scratch = Scratch::new("webhook-equivalent");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    let schema = json!({"openAPIV3Schema": {"type": "object",
        "x-kubernetes-preserve-unknown-fields": true}});
    let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": schema});
    let definition = json!({"metadata": {"name": "widgets.acme.com"}, "spec": {
        "group": "acme.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [version("v1", true), version("v1beta1", false)]}});
    let definitions = ResourcePath::new("apiextensions.k8s.io/v1", "customresourcedefinitions");
    server.client.create::<_, Value>(&definitions, &definition).await.expect("created");
    let widgets = ResourcePath::new("acme.com/v1", "widgets").namespace("default");
    for (policy, asked) in [("Equivalent", true), ("Exact", false)] {
        let mut webhook = hook.webhook("first");
        webhook["rules"] = json!([{"operations": ["CREATE"], "apiGroups": ["acme.com"],
            "apiVersions": ["v1beta1"], "resources": ["widgets"]}]);
        webhook["matchPolicy"] = policy.into();
        configure(&server, "mutating", json!([webhook])).await.expect("configured");
        let widget = json!({"apiVersion": "acme.com/v1", "kind": "Widget",
            "metadata": {"name": policy.to_lowercase()}});
        let made: Value = server.client.create(&widgets, &widget).await.expect("created");
        assert_eq!(made["apiVersion"], "acme.com/v1");
        assert_eq!(made["metadata"]["labels"]["first"].is_string(), asked, "{made}");
        if let Some((_, request)) = hook.asked().pop() {
            assert_eq!(request["kind"]["version"], "v1beta1");
            assert_eq!(request["requestKind"]["version"], "v1");
            assert_eq!(request["object"]["apiVersion"], "acme.com/v1beta1");
        }
    }
    server.running.stop().await;
}

/// A Service's webhook, in a network of its own with an address that is not loopback's.
#[test]
fn a_service_is_called_at_its_ready_endpoints_under_its_name() {
    let program = std::env::current_exe().expect("this program");
    let script = format!(
        "ip link set lo up && ip address add 10.99.0.1/32 dev lo && exec {} --exact inner_service \
         --ignored --nocapture",
        program.display()
    );
    let ran = std::process::Command::new("unshare").args(["-n", "sh", "-c", &script]).output();
    let output = ran.expect("unshare runs (as root)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
#[ignore = "needs a network of its own: a_service_is_called_at_its_ready_endpoints_under_its_name"]
async fn inner_service() {
    let scratch = Scratch::new("webhook-service");
    let server = start(&scratch.0, 0).await;
    let address: IpAddr = "10.99.0.1".parse().expect("an address");
    let hook = Hook::start(address, &["hook.default.svc"]).await;
    let stranger = Hook::start(address, &["other.default.svc"]).await;
    let service = json!({"metadata": {"name": "hook"},
        "spec": {"ports": [{"name": "web", "port": 8443, "targetPort": hook.address.port()}]}});
    let services = ResourcePath::new("v1", "services").namespace("default");
    server.client.create::<_, Value>(&services, &service).await.expect("a service");
    let slices = ResourcePath::new("discovery.k8s.io/v1", "endpointslices").namespace("default");
    let slice = |ready: bool, port: u16| {
        json!({
            "metadata": {"name": "hook", "labels": {"kubernetes.io/service-name": "hook"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.99.0.1"], "conditions": {"ready": ready}}],
            "ports": [{"name": "web", "port": port, "protocol": "TCP"}],
        })
    };
    let _: Value =
        server.client.create(&slices, &slice(false, hook.address.port())).await.expect("a slice");
    let mut webhook = hook.webhook("deny");
    webhook["clientConfig"] = json!({"caBundle": hook.bundle(), "service":
        {"namespace": "default", "name": "hook", "port": 8443, "path": "/deny"}});
    configure(&server, "validating", json!([webhook])).await.expect("configured");
    let path = slices.name("hook");
    let (_, refused) = message(create(&server, "a").await.expect_err("nobody is ready"));
    assert!(refused.contains("no endpoints available for service \"hook\""), "{refused}");
    let ready: Value =
        server.client.update(&path, &slice(true, hook.address.port())).await.expect("ready");
    let (_, refused) = message(create(&server, "a").await.expect_err("denied"));
    assert!(refused.contains("denied the request: not here"), "{refused}");
    assert_eq!(hook.asked().len(), 1);
    // Another server at the same address is not believed.
    let mut moved = ready;
    moved["ports"][0]["port"] = stranger.address.port().into();
    let _: Value = server.client.update(&path, &moved).await.expect("moved");
    let (_, refused) = message(create(&server, "a").await.expect_err("a stranger"));
    assert!(refused.contains("certificate"), "{refused}");
    assert_eq!(stranger.asked(), []);
    server.running.stop().await;
}
