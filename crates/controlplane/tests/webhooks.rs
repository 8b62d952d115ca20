//! Admission webhooks: a real HTTPS server that is asked about writes, and what becomes of them.

#[path = "webhooks/conversion.rs"]
mod conversion;
#[path = "webhooks/hook.rs"]
mod hook;
#[path = "webhooks/matching.rs"]
mod matching;
mod support;

use std::net::IpAddr;

use client::{DeleteOptions, ListOptions, PatchKind, ResourcePath};
use hook::{Hook, configure, create, maps, message};
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use serde_json::{Value, json};
use support::{LOOPBACK, Scratch, start};

/// Where `./x kubectl` puts Debian's kubectl 1.20.
const KUBECTL: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/kubectl-1.20/usr/bin/kubectl");

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
        // Whom the machine trusts, if anybody.
        (unknown, "certificate"),
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
            "compilation failed: ERROR: <input>:1:8: undefined field 'nope'",
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
