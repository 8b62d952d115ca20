//! ValidatingAdmissionPolicies: what they refuse, warn of and note, by their bindings and
//! parameters.

mod support;

use client::{ClientError, PatchKind, ResourcePath, Transport as _};
use controlplane::AuditOptions;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use serde_json::{Value, json};
use support::{Scratch, Server, start, start_with};

const GROUP_VERSION: &str = "admissionregistration.k8s.io/v1";

async fn put(server: &Server, plural: &'static str, object: Value) -> Result<Value, ClientError> {
    let collection = ResourcePath::new(GROUP_VERSION, plural);
    let name = object["metadata"]["name"].as_str().expect("a name");
    let path = collection.clone().name(name);
    match server.client.get_optional::<Value>(&path).await.expect("an answer") {
        None => server.client.create(&collection, &object).await,
        Some(found) => {
            let mut object = object;
            object["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"].clone();
            server.client.update(&path, &object).await
        }
    }
}

/// A policy about ConfigMaps, with some more of its spec.
fn policy(more: Value) -> Value {
    let mut policy = json!({"metadata": {"name": "sizes"}, "spec": {
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE", "UPDATE"],
            "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]},
        "validations": [{"expression": "int(object.data.size) <= 10"}],
    }});
    for (name, value) in more.as_object().expect("fields") {
        policy["spec"][name] = value.clone();
    }
    policy
}

fn binding(more: Value) -> Value {
    let mut binding = json!({"metadata": {"name": "all"},
        "spec": {"policyName": "sizes", "validationActions": ["Deny"]}});
    for (name, value) in more.as_object().expect("fields") {
        binding["spec"][name] = value.clone();
    }
    binding
}

async fn bind(server: &Server, of_policy: Value, of_binding: Value) {
    put(server, "validatingadmissionpolicies", policy(of_policy)).await.expect("a policy");
    let bound = put(server, "validatingadmissionpolicybindings", binding(of_binding)).await;
    bound.expect("a binding");
}

/// What the write of a ConfigMap of a size comes to: refused with a code and a message, or not.
async fn write(server: &Server, namespace: &'static str, size: &str) -> Option<(u16, String)> {
    let path = ResourcePath::new("v1", "configmaps").namespace(namespace);
    let map = json!({"metadata": {"generateName": "m-", "labels": {"app": "x"}},
        "data": {"size": size}});
    let error = server.client.create::<_, Value>(&path, &map).await.err()?;
    let status = error.status().expect("a Status");
    Some((status.code, status.message.clone()))
}

#[tokio::test]
async fn a_bound_policy_refuses_in_the_real_servers_words() {
    let scratch = Scratch::new("policies");
    let server = start(&scratch.0, 0).await;
    let made = put(&server, "validatingadmissionpolicies", policy(json!({}))).await;
    let made = made.expect("a policy");
    assert_eq!(made["spec"]["failurePolicy"], "Fail");
    assert_eq!(made["status"]["observedGeneration"], 1);
    assert_eq!(write(&server, "default", "11").await, None, "nobody has bound it");

    let denied = |why: &str| {
        format!("ValidatingAdmissionPolicy 'sizes' with binding 'all' denied request: {why}")
    };
    let text = "int(object.data.size) <= 10";
    let variables = json!([
        {"name": "size", "expression": "int(object.data.size)"},
        {"name": "doubled", "expression": "variables.size * 2"},
    ]);
    // A policy, a size, and the refusal's code and words.
    let cases = [
        (json!({}), "11", Some((422, format!("failed expression: {text}")))),
        (json!({}), "10", None),
        (
            json!({"validations": [{"expression": text, "message": "too large",
                "reason": "Forbidden"}]}),
            "11",
            Some((403, "too large".to_owned())),
        ),
        (
            json!({"variables": variables, "validations": [{
                "expression": "variables.doubled <= 20", "message": "unused",
                "messageExpression": "string(variables.size) + ' is too large for ' + request.namespace",
            }]}),
            "12",
            Some((422, "12 is too large for default".to_owned())),
        ),
        (
            json!({"variables": variables,
                "validations": [{"expression": "variables.doubled <= 20"}]}),
            "x",
            Some((
                422,
                "expression 'variables.doubled <= 20' resulted in error: composited variable \
                 \"doubled\" fails to evaluate: composited variable \"size\" fails to evaluate"
                    .to_owned(),
            )),
        ),
        (json!({}), "x", Some((422, format!("expression '{text}' resulted in error: ")))),
        (json!({"failurePolicy": "Ignore"}), "x", None),
        (json!({"failurePolicy": "Ignore"}), "11", Some((422, "failed expression".to_owned()))),
        (
            json!({"matchConditions": [{"name": "named", "expression": "has(object.data.gate)"}]}),
            "11",
            None,
        ),
        (
            json!({"validations": [{"expression":
                "namespaceObject.metadata.name == 'default' && oldObject == null && \
                 request.operation == 'CREATE' && object.metadata.labels.app == 'x'"}]}),
            "11",
            None,
        ),
        (
            json!({"matchConstraints": {"resourceRules": [{"operations": ["UPDATE"],
                "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]}}),
            "11",
            None,
        ),
    ];
    for (more, size, expected) in cases {
        bind(&server, more.clone(), json!({})).await;
        let found = write(&server, "default", size).await;
        match (&found, &expected) {
            (None, None) => {}
            (Some((code, message)), Some((wanted, why))) => {
                assert!(code == wanted && message.contains(&denied(why)), "{more}: {found:?}");
            }
            _ => panic!("{more}: {found:?}"),
        }
    }
    server.running.stop().await;
}

#[tokio::test]
async fn bindings_say_where_and_with_which_parameters() {
    let scratch = Scratch::new("policies-bindings");
    let server = start(&scratch.0, 0).await;
    let namespaces = ResourcePath::new("v1", "namespaces");
    let test = json!({"metadata": {"name": "test", "labels": {"env": "test"}}});
    server.client.create::<_, Value>(&namespaces, &test).await.expect("created");
    let maps = ResourcePath::new("v1", "configmaps").namespace("default");
    for (name, most) in [("strict", "3"), ("lax", "30")] {
        let limit = json!({"metadata": {"name": name, "labels": {"limit": "yes"}},
            "data": {"size": "1", "most": most}});
        server.client.create::<_, Value>(&maps, &limit).await.expect("created");
    }
    let rules = |resource: &str| {
        json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"],
            "resources": [resource]}])
    };
    let by_parameter = json!({
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "validations": [{"expression": "int(object.data.size) <= int(params.data.most)"}],
    });
    let named = |name: &str, action: &str| {
        json!({"paramRef": {"name": name, "namespace": "default",
            "parameterNotFoundAction": action}})
    };
    let selected = json!({"paramRef": {"selector": {"matchLabels": {"limit": "yes"}},
        "namespace": "default", "parameterNotFoundAction": "Deny"}});
    // Policy, binding, namespace and size of the write; whether it is refused.
    let cases = [
        (
            json!({}),
            json!({"matchResources": {"namespaceSelector":
            {"matchLabels": {"env": "test"}}}}),
            "default",
            "11",
            false,
        ),
        (
            json!({}),
            json!({"matchResources": {"namespaceSelector":
            {"matchLabels": {"env": "test"}}}}),
            "test",
            "11",
            true,
        ),
        (
            json!({}),
            json!({"matchResources": {"objectSelector":
            {"matchLabels": {"app": "y"}}}}),
            "test",
            "11",
            false,
        ),
        (
            json!({}),
            json!({"matchResources": {"resourceRules": rules("secrets")}}),
            "test",
            "11",
            false,
        ),
        (
            json!({}),
            json!({"matchResources": {"excludeResourceRules": rules("configmaps")}}),
            "test",
            "11",
            false,
        ),
        (by_parameter.clone(), named("lax", "Deny"), "test", "11", false),
        (by_parameter.clone(), named("strict", "Deny"), "test", "4", true),
        (by_parameter.clone(), named("absent", "Allow"), "test", "99", false),
        (by_parameter.clone(), named("absent", "Deny"), "test", "1", true),
        (by_parameter.clone(), selected.clone(), "test", "2", false),
        (by_parameter, selected, "test", "20", true),
    ];
    for (of_policy, of_binding, namespace, size, refused) in cases {
        bind(&server, of_policy, of_binding.clone()).await;
        let found = write(&server, namespace, size).await;
        assert_eq!(found.is_some(), refused, "{of_binding}: {found:?}");
        if of_binding["paramRef"]["name"] == "absent" && refused {
            let (_, message) = found.expect("refused");
            let why = "failed to configure binding: no params found for policy binding with \
                       `Deny` parameterNotFoundAction";
            assert!(message.contains(why), "{message}");
        }
    }
    // What is written through a subresource is judged in its own kind.
    let replicas = json!({"validations": [{"expression": "object.spec.replicas < 5"}],
        "matchConstraints": {"resourceRules": rules("deployments/scale")}});
    let deployments = ResourcePath::new("apps/v1", "deployments").namespace("default");
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 6,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    bind(&server, replicas, json!({})).await;
    server.client.create::<_, Value>(&deployments, &deployment).await.expect("no scale");
    let scale = deployments.name("d").subresource("scale");
    for (replicas, refused) in [(7, true), (3, false)] {
        let patch = json!({"spec": {"replicas": replicas}});
        let patched = server.client.patch::<_, Value>(&scale, PatchKind::Merge, &patch).await;
        assert_eq!(patched.is_err(), refused, "{replicas}");
    }
    server.running.stop().await;
}

#[tokio::test]
async fn what_is_not_refused_is_told_to_the_client_or_the_audit_log() {
    let scratch = Scratch::new("policies-audit");
    let log = scratch.0.join("audit.log");
    let options = AuditOptions::new(log.clone());
    let server = start_with(&scratch.0, 0, |all| all.audit = Some(options)).await;
    let annotations = json!([{"key": "size", "valueExpression": "'size ' + object.data.size"}]);
    let of_policy = json!({"auditAnnotations": annotations});
    bind(&server, of_policy, json!({"validationActions": ["Warn", "Audit"]})).await;
    let map = json!({"metadata": {"name": "large"}, "data": {"size": "11"}});
    let request = Request::post("/api/v1/namespaces/default/configmaps")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(map.to_string())))
        .expect("a request");
    let transport = client::HttpsTransport::new(support::endpoint(&server));
    let answer = transport.send(request).await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 201);
    let warning = answer.headers()["warning"].to_str().expect("text");
    let told = "Validation failed for ValidatingAdmissionPolicy 'sizes' with binding 'all': \
                failed expression: int(object.data.size) <= 10";
    assert!(warning.contains(told), "{warning}");
    server.running.stop().await;
    let text = std::fs::read_to_string(&log).expect("a log");
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let mut events = events.filter(|event| event["objectRef"]["name"] == "large");
    let noted = events.next().expect("an event")["annotations"].clone();
    assert_eq!(noted["sizes/size"], "size 11");
    let failure = noted["validation.policy.admission.k8s.io/validation_failure"].as_str();
    let failure: Value = serde_json::from_str(failure.expect("a failure")).expect("JSON");
    assert_eq!(failure[0]["policy"], "sizes");
    assert_eq!(failure[0]["validationActions"], json!(["Warn", "Audit"]));
}

#[tokio::test]
async fn policies_that_mean_nothing_are_refused() {
    let scratch = Scratch::new("policies-wrong");
    let server = start(&scratch.0, 0).await;
    let expression = |text: &str| json!({"validations": [{"expression": text}]});
    for (more, text) in [
        (json!({"matchConstraints": null}), "spec.matchConstraints: Required value"),
        (json!({"failurePolicy": "Maybe"}), "spec.failurePolicy: Unsupported value"),
        (json!({"validations": []}), "validations or auditAnnotations must contain at least one"),
        (expression("object.("), "spec.validations[0].expression: Invalid value"),
        (expression("1 + 1"), "must evaluate to bool"),
        (expression("params.x == 1"), "undeclared reference to 'params'"),
        (
            expression("authorizer.allowed()"),
            "found no matching overload for 'allowed' applied to \
             'kubernetes.authorization.Authorizer.()'",
        ),
        (
            json!({"validations": [{"expression": "true", "messageExpression":
                "authorizer.path('/').check('get').reason()"}]}),
            "undeclared reference to 'authorizer'",
        ),
        (expression("variables.none"), "undefined field 'none'"),
        (
            json!({"variables": [{"name": "a b", "expression": "1"}]}),
            "name is not a valid CEL identifier",
        ),
        (
            json!({"validations": [{"expression": "true", "messageExpression": "1"}]}),
            "messageExpression: Invalid value: \"1\": must evaluate to string",
        ),
        (
            json!({"validations": [{"expression": "true", "reason": "Because"}]}),
            "spec.validations[0].reason: Unsupported value",
        ),
    ] {
        let made = put(&server, "validatingadmissionpolicies", policy(more.clone())).await;
        let error = made.expect_err(text);
        let status = error.status().expect("a Status");
        assert!(status.code == 422 && status.message.contains(text), "{more}: {}", status.message);
    }
    for (more, text) in [
        (json!({"policyName": ""}), "spec.policyName: Required value"),
        (json!({"validationActions": []}), "spec.validationActions: Required value"),
        (json!({"validationActions": ["Deny", "Warn"]}), "must not contain both Deny and Warn"),
        (json!({"validationActions": ["Shout"]}), "Unsupported value: \"Shout\""),
        (
            json!({"paramRef": {"name": "a"}}),
            "spec.paramRef.parameterNotFoundAction: Required value",
        ),
        (
            json!({"paramRef": {"parameterNotFoundAction": "Deny"}}),
            "one of name or selector must be specified",
        ),
    ] {
        let made = put(&server, "validatingadmissionpolicybindings", binding(more.clone())).await;
        let error = made.expect_err(text);
        let status = error.status().expect("a Status");
        assert!(status.code == 422 && status.message.contains(text), "{more}: {}", status.message);
    }
    server.running.stop().await;
}

/// A role of the namespace `default` with one rule, bound to one subject.
async fn grant(server: &Server, name: &'static str, rule: Value, subject: Value) {
    const VERSION: &str = "rbac.authorization.k8s.io/v1";
    let roles = ResourcePath::new(VERSION, "roles").namespace("default");
    let role = json!({"metadata": {"name": name}, "rules": [rule]});
    server.client.create::<_, Value>(&roles, &role).await.expect("a role");
    let bindings = ResourcePath::new(VERSION, "rolebindings").namespace("default");
    let binding = json!({"metadata": {"name": name}, "subjects": [subject],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}});
    server.client.create::<_, Value>(&bindings, &binding).await.expect("a binding");
}

/// What the write of a ConfigMap by a user of no groups comes to: its code and message.
async fn write_as(server: &Server, user: &str) -> (u16, String) {
    let map = json!({"metadata": {"generateName": "m-"}});
    let request = Request::post("/api/v1/namespaces/default/configmaps")
        .header("content-type", "application/json")
        .header("impersonate-user", user)
        .body(Full::new(Bytes::from(map.to_string())))
        .expect("a request");
    let transport = client::HttpsTransport::new(support::endpoint(server));
    let answer = transport.send(request).await.expect("an answer");
    let code = answer.status().as_u16();
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    (code, body["message"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_policy_asks_who_may_do_what() {
    let scratch = Scratch::new("policies-authorizer");
    let server = start(&scratch.0, 0).await;
    let rule = |resource: &str, verbs: Value, names: Value| {
        json!({"apiGroups": [""],
        "resources": [resource], "verbs": verbs, "resourceNames": names})
    };
    let user = |name: &str| json!({"kind": "User", "name": name});
    let created = || rule("configmaps", json!(["create"]), json!([]));
    grant(&server, "ann-writes", created(), user("ann")).await;
    grant(&server, "bob-writes", created(), user("bob")).await;
    grant(&server, "bob-publishes", rule("configmaps", json!(["publish"]), json!([])), user("bob"))
        .await;
    grant(&server, "bob-enters", rule("pods/exec", json!(["create"]), json!(["web"])), user("bob"))
        .await;
    let robot = json!({"kind": "ServiceAccount", "name": "robot", "namespace": "default"});
    grant(&server, "robot-lists", rule("pods", json!(["list"]), json!([])), robot).await;

    let publishes = "authorizer.requestResource.check('publish').allowed()";
    let exec = "authorizer.group('').resource('pods').subresource('exec').namespace('default')";
    let exec = |name: &str| format!("{exec}.name('{name}').check('create').allowed()");
    let robot = |name: &str, scope: &str| {
        format!(
            "authorizer.serviceAccount('default', '{name}').group('').resource('pods'){scope}\
             .check('list').allowed()"
        )
    };
    // An expression, and whether Ann's and Bob's writes pass.
    let cases = [
        (publishes.to_owned(), false, true),
        (format!("!{publishes}"), true, false),
        (exec("web"), false, true),
        (exec("other"), false, false),
        (robot("robot", ".namespace('default')"), true, true),
        (robot("robot", ".namespace('kube-system')"), false, false),
        (robot("robot", ""), false, false),
        (robot("other", ".namespace('default')"), false, false),
        ("authorizer.path('/healthz').check('get').allowed()".to_owned(), true, true),
        ("authorizer.path('/metrics').check('get').allowed()".to_owned(), false, false),
        (
            "authorizer.requestResource.check('publish').reason().startsWith('RBAC: allowed by \
             RoleBinding \"bob-publishes/default\"')"
                .to_owned(),
            false,
            true,
        ),
        ("!authorizer.requestResource.check('publish').errored()".to_owned(), true, true),
    ];
    for (expression, ann, bob) in cases {
        bind(&server, json!({"validations": [{"expression": expression}]}), json!({})).await;
        for (name, passes) in [("ann", ann), ("bob", bob)] {
            let (code, message) = write_as(&server, name).await;
            assert_eq!(code, if passes { 201 } else { 422 }, "{expression} {name}: {message}");
        }
    }
    // What a variable and a condition ask, and what three questions cost.
    let variables = json!([{"name": "publisher", "expression": publishes}]);
    let by_variable = json!({"variables": variables, "validations": [{"expression":
        "variables.publisher", "message": "only publishers"}]});
    bind(&server, by_variable, json!({})).await;
    assert!(write_as(&server, "ann").await.1.ends_with("only publishers"));
    assert_eq!(write_as(&server, "bob").await.0, 201);
    let by_condition = json!({"validations": [{"expression": "false"}],
        "matchConditions": [{"name": "others", "expression": format!("!{publishes}")}]});
    bind(&server, by_condition, json!({})).await;
    assert_eq!(write_as(&server, "ann").await.0, 422);
    assert_eq!(write_as(&server, "bob").await.0, 201);
    let costly = format!("!({publishes} || {publishes} || {publishes})");
    bind(&server, json!({"validations": [{"expression": costly}]}), json!({})).await;
    let (code, message) = write_as(&server, "ann").await;
    assert!(code == 422 && message.contains("cost limit exceeded"), "{message}");
    server.running.stop().await;
}

#[tokio::test]
async fn a_policys_status_warns_of_fields_that_its_kinds_do_not_have() {
    let scratch = Scratch::new("policies-types");
    let server = start(&scratch.0, 0).await;
    let rule = |group: &str, version: &str, resources: Value| {
        json!({"operations": ["CREATE"],
        "apiGroups": [group], "apiVersions": [version], "resources": resources})
    };
    let apps = || rule("apps", "v1", json!(["deployments", "replicasets", "deployments/scale"]));
    // A policy's rules, what else its spec has, and its warnings: fields and texts.
    let cases = [
        (
            json!([rule("apps", "v1", json!(["deployments"]))]),
            json!({"validations": [{"expression": "object.replicas > 1"}]}),
            json!([{"fieldRef": "spec.validations[0].expression", "warning":
                "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'\n | \
                 object.replicas > 1\n | ......^\n"}]),
        ),
        (
            json!([apps(), rule("", "v1", json!(["configmaps"]))]),
            json!({"validations": [
                {"expression": "has(object.metadata) && oldObject == null"},
                {"expression": "object.spec.replicas > 1",
                    "messageExpression": "object.metadata.nam"},
            ]}),
            json!([
                {"fieldRef": "spec.validations[1].expression", "warning":
                    "/v1, Kind=ConfigMap: ERROR: <input>:1:7: undefined field 'spec'\n | \
                     object.spec.replicas > 1\n | ......^\n"},
                {"fieldRef": "spec.validations[1].messageExpression", "warning":
                    "/v1, Kind=ConfigMap: ERROR: <input>:1:16: undefined field 'nam'\n | \
                     object.metadata.nam\n | ...............^\n\n\
                     apps/v1, Kind=Deployment: ERROR: <input>:1:16: undefined field 'nam'\n | \
                     object.metadata.nam\n | ...............^\n\n\
                     apps/v1, Kind=ReplicaSet: ERROR: <input>:1:16: undefined field 'nam'\n | \
                     object.metadata.nam\n | ...............^\n"},
            ]),
        ),
        (
            json!([rule("", "v1", json!(["secrets"]))]),
            json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
                "variables": [{"name": "all", "expression": "params.data"}],
                "validations": [{"expression": "variables.all.size() == params.size"}]}),
            json!([{"fieldRef": "spec.validations[0].expression", "warning":
                "/v1, Kind=Secret: ERROR: <input>:1:31: undefined field 'size'\n | \
                 variables.all.size() == params.size\n | ..............................^\n"}]),
        ),
        (
            json!([rule("*", "v1", json!(["deployments"])), rule("apps", "v1", json!(["*"]))]),
            json!({"validations": [{"expression": "object.replicas > 1"}]}),
            Value::Null,
        ),
    ];
    let path = ResourcePath::new(GROUP_VERSION, "validatingadmissionpolicies").name("sizes");
    for (rules, mut more, expected) in cases {
        more["matchConstraints"] = json!({"resourceRules": rules});
        put(&server, "validatingadmissionpolicies", policy(more)).await.expect("a policy");
        let read = server.client.get_optional::<Value>(&path).await.expect("an answer");
        let read = read.expect("the policy");
        assert_eq!(read["status"]["typeChecking"]["expressionWarnings"], expected);
        assert!(read["status"]["typeChecking"].is_object());
        assert_eq!(read["status"]["observedGeneration"], read["metadata"]["generation"]);
    }
    server.running.stop().await;
}
