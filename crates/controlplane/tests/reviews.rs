//! Reviews of rights and identities, and tokens, as clients ask for them: in JSON and in protobuf.

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use client::Transport as _;
use client::{Client, ClientError, DeleteOptions, Endpoint, HttpsTransport, ResourcePath};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use support::{Scratch, Server, endpoint, start, within};

const AUTHORIZATION: &str = "authorization.k8s.io/v1";
const AUTHENTICATION: &str = "authentication.k8s.io/v1";
const RBAC: &str = "rbac.authorization.k8s.io/v1";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// What a request came to: its code, its `Warning` headers and its body.
struct Answered {
    code: u16,
    warnings: Vec<String>,
    body: Value,
}

/// POSTs an object; in somebody's name where one is given.
async fn post(server: &Server, path: &str, body: &Value, name: Option<&str>) -> Answered {
    send(endpoint(server), path, body.to_string().into(), "application/json", name).await
}

async fn send(
    endpoint: Endpoint,
    path: &str,
    body: Bytes,
    media_type: &str,
    name: Option<&str>,
) -> Answered {
    let mut request = Request::post(path).header("content-type", media_type);
    if media_type != "application/json" {
        request = request.header("accept", media_type);
    }
    if let Some(name) = name {
        request = request.header("impersonate-user", name);
    }
    let request = request.body(Full::new(body)).expect("a request");
    let answer = within("an answer", HttpsTransport::new(endpoint).send(request)).await;
    let answer = answer.expect("an answer");
    let code = answer.status().as_u16();
    let warnings = answer.headers().get_all("warning").iter();
    let warnings = warnings.map(|text| text.to_str().expect("text").to_owned()).collect();
    let text = answer.into_body().collect().await.expect("a body").to_bytes();
    let body = match text.starts_with(schema::protobuf::MAGIC) {
        true => schema::protobuf::decode(&text).expect("protobuf"),
        false => serde_json::from_slice(&text).expect("JSON"),
    };
    Answered { code, warnings, body }
}

async fn make(
    server: &Server,
    group_version: &'static str,
    plural: &'static str,
    object: Value,
) -> Value {
    let mut path = ResourcePath::new(group_version, plural);
    if let Some(namespace) = object["metadata"]["namespace"].as_str() {
        path = path.namespace(namespace);
    }
    let made: Result<Value, ClientError> = server.client.create(&path, &object).await;
    made.unwrap_or_else(|error| panic!("{plural} {object}: {error}"))
}

/// A namespace `shop` where vera may look, with the account `runner`.
async fn make_world(server: &Server) {
    make(server, "v1", "namespaces", json!({"metadata": {"name": "shop"}})).await;
    let account = json!({"metadata": {"namespace": "shop", "name": "runner"}});
    make(server, "v1", "serviceaccounts", account).await;
    let binding = json!({
        "metadata": {"namespace": "shop", "name": "lookers"},
        "subjects": [{"kind": "User", "name": "vera"},
            {"kind": "ServiceAccount", "namespace": "shop", "name": "runner"}],
        "roleRef": {"kind": "ClusterRole", "name": "view"},
    });
    make(server, RBAC, "rolebindings", binding).await;
}

fn access(kind: &str, spec: Value) -> Value {
    json!({"apiVersion": AUTHORIZATION, "kind": kind, "spec": spec})
}

fn pods(verb: &str, namespace: &str) -> Value {
    json!({"verb": verb, "namespace": namespace, "resource": "pods"})
}

#[tokio::test]
async fn reviews_of_rights_say_yes_or_no_and_why() {
    let scratch = Scratch::new("reviews");
    let server = start(&scratch.0, 0).await;
    make_world(&server).await;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let kind = "SelfSubjectAccessReview";
    let question = access(kind, json!({"resourceAttributes": pods("list", "shop")}));
    let answered = post(&server, path, &question, Some("vera")).await;
    let reason = "RBAC: allowed by RoleBinding \"lookers/shop\" of ClusterRole \"view\" to User \
                  \"vera\"";
    assert_eq!(answered.code, 201);
    let expected = json!({
        "apiVersion": AUTHORIZATION, "kind": kind, "metadata": {},
        "spec": {"resourceAttributes": pods("list", "shop")},
        "status": {"allowed": true, "reason": reason},
    });
    assert_eq!(answered.body, expected);
    for (attributes, allowed) in [
        (pods("delete", "shop"), false),
        (pods("list", ""), false),
        (pods("*", "shop"), false),
        (
            json!({"verb": "get", "namespace": "shop", "resource": "pods", "subresource": "log"}),
            true,
        ),
        (
            json!({"verb": "get", "namespace": "shop", "group": "acme.com", "resource": "pods"}),
            false,
        ),
    ] {
        let question = access(kind, json!({"resourceAttributes": attributes}));
        let answered = post(&server, path, &question, Some("vera")).await;
        assert_eq!(answered.body["status"]["allowed"], allowed, "{question}");
    }
    let document = access(kind, json!({"nonResourceAttributes": {"verb": "get", "path": "/api"}}));
    let answered = post(&server, path, &document, Some("vera")).await;
    assert_eq!(answered.body["status"]["allowed"], true);
    let answered = post(&server, path, &question, None).await;
    assert_eq!(answered.body["status"], json!({"allowed": true}), "the administrator");
    server.running.stop().await;
}

#[tokio::test]
async fn the_rights_of_others_are_told_to_whoever_may_ask() {
    let scratch = Scratch::new("reviews-others");
    let server = start(&scratch.0, 0).await;
    make_world(&server).await;
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let account = "system:serviceaccount:shop:runner";
    let spec = json!({"user": account, "resourceAttributes": pods("get", "shop")});
    let question = access("SubjectAccessReview", spec);
    let answered = post(&server, path, &question, None).await;
    let reason = "RBAC: allowed by RoleBinding \"lookers/shop\" of ClusterRole \"view\" to \
                  ServiceAccount \"runner/shop\"";
    assert_eq!(answered.body["status"], json!({"allowed": true, "reason": reason}));
    assert_eq!(post(&server, path, &question, Some("vera")).await.code, 403);
    let delegate = json!({
        "metadata": {"name": "delegate"}, "subjects": [{"kind": "User", "name": "vera"}],
        "roleRef": {"kind": "ClusterRole", "name": "system:auth-delegator"},
    });
    make(&server, RBAC, "clusterrolebindings", delegate).await;
    assert_eq!(post(&server, path, &question, Some("vera")).await.code, 201);
    // Groups count alone too.
    let masters = json!({"groups": ["system:masters"], "resourceAttributes": pods("delete", "")});
    let answered = post(&server, path, &access("SubjectAccessReview", masters), None).await;
    assert_eq!(answered.body["status"], json!({"allowed": true}));

    let local = "/apis/authorization.k8s.io/v1/namespaces/shop/localsubjectaccessreviews";
    let kind = "LocalSubjectAccessReview";
    let spec = json!({"user": "vera", "resourceAttributes": pods("get", "shop")});
    let answered = post(&server, local, &access(kind, spec), None).await;
    assert_eq!(answered.body["metadata"], json!({"namespace": "shop"}));
    assert_eq!(answered.body["status"]["allowed"], true);
    let both = json!({"resourceAttributes": pods("get", "shop"),
        "nonResourceAttributes": {"verb": "get", "path": "/api"}, "user": "a"});
    let own = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let named = json!({"apiVersion": AUTHORIZATION, "kind": "SelfSubjectAccessReview",
        "metadata": {"name": "x"}, "spec": {"resourceAttributes": pods("get", "")}});
    let elsewhere = json!({"user": "vera", "resourceAttributes": pods("get", "default")});
    for (path, body, code, text) in [
        (path, access("SubjectAccessReview", both), 422, "cannot be specified in combination with"),
        (
            path,
            access("SubjectAccessReview", json!({"resourceAttributes": pods("get", "")})),
            422,
            "spec.user: Invalid value: \"\": at least one of user or group must be specified",
        ),
        (own, access("SelfSubjectAccessReview", json!({})), 422, "exactly one of nonResource"),
        (own, named, 422, "metadata: Invalid value"),
        (own, access("SubjectAccessReview", json!({})), 400, "cannot be handled as a SelfSubject"),
        (local, access(kind, elsewhere), 400, "must match namespace: shop"),
    ] {
        let answered = post(&server, path, &body, None).await;
        let message = answered.body["message"].as_str().unwrap_or_default();
        assert!(answered.code == code && message.contains(text), "{body}: {}", answered.body);
    }
    server.running.stop().await;
}

#[tokio::test]
async fn everybody_hears_his_own_rules_and_who_he_is() {
    let scratch = Scratch::new("reviews-own");
    let server = start(&scratch.0, 0).await;
    make_world(&server).await;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let question = access("SelfSubjectRulesReview", json!({"namespace": "shop"}));
    let answered = post(&server, path, &question, Some("vera")).await;
    let status = &answered.body["status"];
    assert_eq!((answered.code, &status["incomplete"]), (201, &json!(false)));
    let rules = status["resourceRules"].as_array().expect("rules");
    let basic = json!({"verbs": ["create"], "apiGroups": ["authentication.k8s.io"],
        "resources": ["selfsubjectreviews"]});
    assert!(rules.contains(&basic), "{status}");
    let has = |resource: &str| {
        rules.iter().any(|rule| {
            rule["resources"].as_array().is_some_and(|all| all.contains(&resource.into()))
        })
    };
    assert!(has("pods") && !has("secrets"), "{status}");
    assert!(!status["nonResourceRules"].as_array().expect("rules").is_empty());
    let elsewhere = access("SelfSubjectRulesReview", json!({"namespace": "default"}));
    let answered = post(&server, path, &elsewhere, Some("vera")).await;
    assert!(!answered.body["status"]["resourceRules"].to_string().contains("\"pods\""));
    let nowhere = access("SelfSubjectRulesReview", json!({}));
    assert_eq!(post(&server, path, &nowhere, Some("vera")).await.code, 400);

    // As kubectl from 1.32 on asks: protobuf in both directions.
    let question = json!({"apiVersion": AUTHENTICATION, "kind": "SelfSubjectReview"});
    let bytes = schema::protobuf::encode(&question).expect("a known kind");
    let (token, _) = token(&server, json!({})).await;
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let answered = send(
        with_token(&server, &token),
        path,
        bytes.into(),
        "application/vnd.kubernetes.protobuf",
        None,
    )
    .await;
    let info = &answered.body["status"]["userInfo"];
    assert_eq!(
        (answered.code, &info["username"]),
        (201, &json!("system:serviceaccount:shop:runner"))
    );
    assert_eq!(
        info["groups"],
        json!(["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"])
    );
    assert!(info["uid"].is_string(), "{info}");
    let credential = &info["extra"]["authentication.kubernetes.io/credential-id"][0];
    assert!(credential.as_str().is_some_and(|text| text.starts_with("JTI=")), "{info}");
    server.running.stop().await;
}

/// A token of shop's `runner`, and what else is answered.
async fn token(server: &Server, spec: Value) -> (String, Answered) {
    let path = "/api/v1/namespaces/shop/serviceaccounts/runner/token";
    let body = json!({"apiVersion": AUTHENTICATION, "kind": "TokenRequest", "spec": spec});
    let answered = post(server, path, &body, None).await;
    let token = answered.body["status"]["token"].as_str().unwrap_or_default().to_owned();
    (token, answered)
}

fn with_token(server: &Server, token: &str) -> Endpoint {
    let authorities = CertificateDer::pem_file_iter(&server.pki.authority)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .expect("the authority");
    let url = format!("https://{}", server.address);
    Endpoint::with_token(&url, &authorities, token).expect("an endpoint")
}

/// What a GET is answered: its code and its JSON.
async fn get(endpoint: Endpoint, path: &str) -> (u16, Value) {
    let request = Request::get(path).body(Full::new(Bytes::new())).expect("a request");
    let answer = within("an answer", HttpsTransport::new(endpoint).send(request)).await;
    let answer = answer.expect("an answer");
    let code = answer.status().as_u16();
    let text = answer.into_body().collect().await.expect("a body").to_bytes();
    (code, serde_json::from_slice(&text).expect("JSON"))
}

/// As programs do that check tokens without asking the API server: Vault, service meshes.
#[tokio::test]
async fn others_check_tokens_by_the_issuers_published_keys() {
    let scratch = Scratch::new("reviews-issuer");
    let server = start(&scratch.0, 0).await;
    make_world(&server).await;
    let (token, _) = token(&server, json!({})).await;
    let (code, issuer) =
        get(with_token(&server, &token), "/.well-known/openid-configuration").await;
    assert_eq!((code, &issuer["issuer"]), (200, &json!(ISSUER)));
    let keys = issuer["jwks_uri"].as_str().and_then(|uri| uri.strip_prefix(ISSUER));
    let (code, keys) = get(with_token(&server, &token), keys.expect("a path")).await;
    assert_eq!(code, 200);
    let key = &keys["keys"][0];
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).expect("base64url");
    let (signed, signature) = token.rsplit_once('.').expect("a signature");
    let header = signed.split_once('.').expect("a header").0;
    let header: Value = serde_json::from_slice(&decode(header)).expect("JSON");
    assert_eq!((&header["alg"], &header["kid"]), (&json!("ES256"), &key["kid"]));
    let coordinate = |name: &str| decode(key[name].as_str().expect("text"));
    let point = [vec![4], coordinate("x"), coordinate("y")].concat();
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    assert!(key.verify(signed.as_bytes(), &decode(signature)).is_ok());
    assert!(key.verify(b"another", &decode(signature)).is_err());
    let (code, _) = get(endpoint(&server), "/openid/v1/jwks").await;
    assert_eq!(code, 200, "for administrators too");
    server.running.stop().await;
}

async fn review_token(server: &Server, spec: Value) -> Answered {
    let body = json!({"apiVersion": AUTHENTICATION, "kind": "TokenReview", "spec": spec});
    post(server, "/apis/authentication.k8s.io/v1/tokenreviews", &body, None).await
}

#[tokio::test]
async fn a_token_is_good_for_whom_it_names_as_long_as_what_it_is_bound_to() {
    let scratch = Scratch::new("reviews-tokens");
    let server = start(&scratch.0, 0).await;
    make_world(&server).await;
    let node = make(&server, "v1", "nodes", json!({"metadata": {"name": "a"}})).await;
    let pod = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {"nodeName": "a",
        "serviceAccountName": "runner", "containers": [{"name": "c", "image": "i"}]}});
    let pod = make(&server, "v1", "pods", pod).await;
    let uid = |object: &Value| object["metadata"]["uid"].clone();
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": uid(&pod)});
    let spec = json!({"boundObjectRef": bound, "audiences": ["vault", ISSUER]});
    let (held, answered) = token(&server, spec.clone()).await;
    assert_eq!((answered.code, &answered.body["spec"]["expirationSeconds"]), (201, &json!(3600)));
    assert_eq!(answered.body["spec"]["boundObjectRef"], bound);

    let answered = review_token(&server, json!({"token": held})).await;
    let status = &answered.body["status"];
    assert_eq!((answered.code, &status["authenticated"]), (201, &json!(true)));
    assert_eq!(status["audiences"], json!([ISSUER]));
    let extra = &status["user"]["extra"];
    for (key, value) in [
        ("pod-name", json!("web")),
        ("pod-uid", uid(&pod)),
        ("node-name", json!("a")),
        ("node-uid", uid(&node)),
    ] {
        assert_eq!(extra[format!("authentication.kubernetes.io/{key}")], json!([value]), "{extra}");
    }
    for (audiences, expected) in
        [(json!(["vault", "other"]), json!(["vault"])), (json!(["other"]), Value::Null)]
    {
        let answered = review_token(&server, json!({"token": held, "audiences": audiences})).await;
        assert_eq!(answered.body["status"]["audiences"], expected);
        assert_eq!(answered.body["status"]["authenticated"] == true, !expected.is_null());
    }
    assert_eq!(review_token(&server, json!({})).await.code, 400);
    let forged = review_token(&server, json!({"token": format!("{held}x")})).await;
    assert_eq!(forged.body["status"], json!({"user": {}, "error": "invalid bearer token"}));

    // The token ends with the pod, also when another has its name.
    let pods = ResourcePath::new("v1", "pods").namespace("shop");
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    server.client.delete(&pods.clone().name("web"), &now).await.expect("deleted");
    let of = |body: &Value| body["status"]["authenticated"] == true;
    assert!(!of(&review_token(&server, json!({"token": held})).await.body));
    let again = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {
        "serviceAccountName": "default", "containers": [{"name": "c", "image": "i"}]}});
    make(&server, "v1", "pods", again).await;
    assert!(!of(&review_token(&server, json!({"token": held})).await.body));
    let client = Client::with_transport(std::sync::Arc::new(HttpsTransport::new(with_token(
        &server, &held,
    ))));
    let refused = client.get::<Value>(&pods.clone().name("web")).await.expect_err("ended");
    assert_eq!(refused.status().map(|status| status.code), Some(401));

    // What cannot be granted.
    let stale = token(&server, spec).await.1;
    assert_eq!(stale.code, 409, "{}", stale.body);
    for (spec, code, text) in [
        (
            json!({"boundObjectRef": {"kind": "Pod", "name": "web"}}),
            400,
            "different serviceaccount",
        ),
        (json!({"boundObjectRef": {"kind": "Secret", "name": "none"}}), 404, "not found"),
        (json!({"boundObjectRef": {"kind": "Job", "name": "x"}}), 400, "cannot bind token for"),
        (json!({"expirationSeconds": 599}), 422, "less than 10 minutes"),
        (json!({"expirationSeconds": 1_i64 << 33}), 422, "larger than 2^32 seconds"),
    ] {
        let answered = token(&server, spec.clone()).await.1;
        let message = answered.body["message"].as_str().unwrap_or_default();
        assert!(answered.code == code && message.contains(text), "{spec}: {}", answered.body);
    }
    let long = token(&server, json!({"expirationSeconds": 90_000})).await.1;
    assert_eq!(long.body["spec"]["expirationSeconds"], 86_400);
    let told = "requested expiration of 90000 seconds shortened to 86400 seconds";
    assert!(long.warnings.iter().any(|warning| warning.contains(told)), "{:?}", long.warnings);
    server.running.stop().await;
}

#[tokio::test]
async fn roles_of_roles_follow_what_they_select() {
    let scratch = Scratch::new("reviews-aggregation");
    let server = start(&scratch.0, 0).await;
    make_world(&server).await;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let widgets = json!({"verb": "get", "namespace": "shop", "group": "acme.com",
        "resource": "widgets"});
    let question = access("SelfSubjectAccessReview", json!({"resourceAttributes": widgets}));
    let may = async || {
        post(&server, path, &question, Some("vera")).await.body["status"]["allowed"] == true
    };
    assert!(!may().await);
    let label = "rbac.authorization.k8s.io/aggregate-to-view";
    let rules = json!([{"apiGroups": ["acme.com"], "resources": ["widgets"], "verbs": ["get"]}]);
    let role =
        json!({"metadata": {"name": "widgets", "labels": {(label): "true"}}, "rules": rules});
    make(&server, RBAC, "clusterroles", role).await;
    assert!(may().await, "with the write that makes it so");
    let roles = ResourcePath::new(RBAC, "clusterroles");
    for role in ["view", "edit", "admin"] {
        let found: Value = server.client.get(&roles.clone().name(role)).await.expect("a role");
        let all = found["rules"].as_array().expect("rules");
        assert!(all.contains(&rules[0]), "{role}: what view has, edit and admin have too");
    }
    // Rules that somebody writes into it do not stay.
    let mine = json!({"rules": rules});
    let view = roles.clone().name("view");
    let patched: Value =
        server.client.patch(&view, client::PatchKind::Merge, &mine).await.expect("patched");
    assert!(patched["rules"].as_array().is_some_and(|all| all.len() > 5), "{patched}");
    server.client.delete(&roles.name("widgets"), &DeleteOptions::default()).await.expect("deleted");
    assert!(!may().await);
    server.running.stop().await;
}
