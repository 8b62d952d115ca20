//! What webhooks are asked about beside objects, and what narrows it.

use client::{HttpsTransport, ResourcePath, Transport as _};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use serde_json::{Value, json};

use crate::KUBECTL;
use crate::hook::{Hook, configure, create, message};
use crate::support::{self, LOOPBACK, Scratch, Server, start};

#[tokio::test]
async fn match_conditions_choose_too() {
    let scratch = Scratch::new("webhook-conditions");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    let failing = "object.nope.deep == 'x'";
    // Conditions, what they do with a failure, and what comes of the write: it is asked about,
    // it is not, or it is refused unasked.
    let cases: [(&[&str], &str, Option<bool>); 10] = [
        (&["object.data.a == 'b'"], "Fail", Some(true)),
        (&["object.data.a == 'c'"], "Fail", Some(false)),
        (&["request.operation == 'CREATE'", "oldObject == null"], "Fail", Some(true)),
        (&["request.userInfo.groups.exists(g, g == 'system:masters')"], "Fail", Some(true)),
        (&["request.userInfo.username.startsWith('system:')"], "Fail", Some(false)),
        (&["authorizer.requestResource.check('breakglass').allowed()"], "Fail", Some(true)),
        (&["authorizer.path('/x').check('get').errored()"], "Fail", Some(false)),
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

/// A webhook that is asked about what is written by subresources, and about commands.
fn of_subresources(hook: &Hook, path: &str) -> Value {
    let mut webhook = hook.webhook(path);
    webhook["rules"] = json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"],
        "resources": ["*/scale", "pods/binding", "pods/eviction", "pods/exec",
            "serviceaccounts/token"]}]);
    json!([webhook])
}

/// A Deployment `d`, a pod `p` on no node and an account `runner`.
async fn make_world(server: &Server) {
    let template = json!({"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({"metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let pod = json!({"metadata": {"name": "p"}, "spec": template["spec"]});
    let account = json!({"metadata": {"name": "runner"}});
    for (group_version, plural, object) in [
        ("apps/v1", "deployments", deployment),
        ("v1", "pods", pod),
        ("v1", "serviceaccounts", account),
    ] {
        let path = ResourcePath::new(group_version, plural).namespace("default");
        server.client.create::<_, Value>(&path, &object).await.expect("created");
    }
}

const SCALE: &str = "/apis/apps/v1/namespaces/default/deployments/d/scale";
/// What is sent where, what webhooks are told of it, and the code of the answer when they allow it.
type Sent = (&'static str, &'static str, Value, &'static str, &'static str, u16);

fn requests() -> [Sent; 5] {
    let named = json!({"metadata": {"name": "p"}});
    let mut binding = named.clone();
    binding["target"] = json!({"kind": "Node", "name": "n"});
    let scale = json!({"metadata": {"name": "d"}, "spec": {"replicas": 3}});
    [
        ("PUT", SCALE, scale, "UPDATE", "Scale", 200),
        (
            "POST",
            "/api/v1/namespaces/default/serviceaccounts/runner/token",
            json!({"spec": {}}),
            "CREATE",
            "TokenRequest",
            201,
        ),
        // No node has it, so that there is nobody to connect to.
        (
            "GET",
            "/api/v1/namespaces/default/pods/p/exec?command=ls&command=-l&stdout=true",
            Value::Null,
            "CONNECT",
            "PodExecOptions",
            400,
        ),
        ("POST", "/api/v1/namespaces/default/pods/p/binding", binding, "CREATE", "Binding", 201),
        ("POST", "/api/v1/namespaces/default/pods/p/eviction", named, "CREATE", "Eviction", 201),
    ]
}

#[tokio::test]
async fn subresources_and_connections_are_asked_about_in_kinds_of_their_own() {
    let scratch = Scratch::new("webhook-subresources");
    let server = start(&scratch.0, 0).await;
    let hook = Hook::start(LOOPBACK, &[]).await;
    make_world(&server).await;
    for (method, path, body, operation, kind, code) in requests() {
        let denied = of_subresources(&hook, "deny");
        configure(&server, "validating", denied).await.expect("configured");
        let (found, answer) = raw(&server, method, path, body.clone()).await;
        let text = answer["message"].as_str().unwrap_or_default();
        assert!(found == 400 && text.contains("denied the request: not here"), "{kind}: {answer}");
        let asked = hook.asked();
        let allowed = of_subresources(&hook, "allow");
        configure(&server, "validating", allowed).await.expect("configured");
        let (found, answer) = raw(&server, method, path, body).await;
        assert_eq!(found, code, "{kind}: {answer}");
        assert_eq!(hook.asked().len(), 1, "{kind}: once, and not about what follows from it");
        let request = &asked[0].1;
        assert_eq!(request["operation"], operation);
        assert_eq!(
            (&request["kind"]["kind"], &request["object"]["kind"]),
            (&json!(kind), &json!(kind))
        );
        let part = path.split(['/', '?']).find(|part| request["subResource"] == *part);
        assert!(part.is_some() && request["namespace"] == "default", "{request}");
        match kind {
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
    configure(&server, "mutating", of_subresources(&hook, "halve")).await.expect("configured");
    let scale = json!({"metadata": {"name": "d"}, "spec": {"replicas": 3}});
    let (_, scaled) = raw(&server, "PUT", SCALE, scale).await;
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

/// Real kubectl with a policy, as people write one.
#[tokio::test]
async fn kubectl_applies_a_policy_and_is_refused_by_it() {
    const POLICY: &str = r"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: owners
spec:
  matchConstraints:
    resourceRules:
    - apiGroups: ['']
      apiVersions: [v1]
      operations: [CREATE, UPDATE]
      resources: [configmaps]
  validations:
  - expression: has(object.metadata.labels) && 'owner' in object.metadata.labels
    message: every ConfigMap has an owner
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: everywhere
spec:
  policyName: owners
  validationActions: [Deny]
";
    let scratch = Scratch::new("webhook-policy");
    let server = start(&scratch.0, 0).await;
    let file = scratch.0.join("policy.yaml");
    std::fs::write(&file, POLICY).expect("written");
    let kubectl = async |arguments: &[&str]| {
        let run = tokio::process::Command::new(KUBECTL)
            .args(arguments)
            .env("KUBECONFIG", &server.kubeconfig)
            .env("HOME", &scratch.0)
            .output();
        let output = run.await.expect("kubectl runs");
        let all = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&all).into_owned())
    };
    let path = file.to_str().expect("a path");
    let (applied, text) = kubectl(&["apply", "-f", path]).await;
    assert!(applied && text.matches(" created").count() == 2, "{text}");
    let (_, text) = kubectl(&["get", "validatingadmissionpolicybindings"]).await;
    assert!(text.contains("POLICYNAME") && text.contains("owners"), "{text}");
    let (made, text) = kubectl(&["create", "configmap", "a", "--from-literal=a=b"]).await;
    let why = "ValidatingAdmissionPolicy 'owners' with binding 'everywhere' denied request: every \
               ConfigMap has an owner";
    assert!(!made && text.contains(why), "{text}");
    let (deleted, text) = kubectl(&["delete", "-f", path]).await;
    assert!(deleted, "{text}");
    let (made, text) = kubectl(&["create", "configmap", "a", "--from-literal=a=b"]).await;
    assert!(made, "{text}");
    server.running.stop().await;
}
