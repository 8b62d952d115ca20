//! Who may do what: identities × requests against the real server. What is expected was
//! written from the documentation of the roles and of the node authorizer, not from our code.

mod support;

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use client::{Client, Endpoint, HttpsTransport, Kubeconfig, ResourcePath, Transport as _};
use controlplane::pki::{self, KubeconfigRequest, PkiRequest};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use support::{LOOPBACK, Scratch, Server, config, now, start, within};

/// Where `./x kubectl` puts Debian's kubectl 1.20.
const KUBECTL: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/kubectl-1.20/usr/bin/kubectl");
const RBAC: &str = "rbac.authorization.k8s.io";

/// Who asks, in the order of the columns of [`table`].
const IDENTITIES: [&str; 13] = [
    "nobody",
    "user jane, without a role",
    "user vera: view in shop",
    "user eddy: edit in shop",
    "user mary: admin in shop",
    "node a",
    "node b",
    "the agent's ServiceAccount",
    "shop's default ServiceAccount",
    "a ServiceAccount in vera's name",
    "an expired token",
    "a token for another audience",
    "the cluster's administrator",
];

/// What is asked, and what each of [`IDENTITIES`] gets: `x` allowed, `.` forbidden, `?` unknown.
fn table(ids: &Ids) -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let none = Value::Null;
    let label = json!({"metadata": {"labels": {"acme.com/x": "1"}}});
    let guarded = json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "1"}}});
    let pod = json!({"metadata": {"name": "new"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let mirror = json!({
        "metadata": {
            "name": "mirror",
            "annotations": {"kubernetes.io/config.mirror": "x"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": ids.node}],
        },
        "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "i"}]},
    });
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": "web-a"}});
    let bound = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec":
        {"boundObjectRef": {"kind": "Pod", "name": "web-a", "uid": ids.pod}}});
    let free =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let named = |name: &str| json!({"metadata": {"name": name}});
    let role = |resource: &str| {
        json!({"metadata": {"name": "new"},
            "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]})
    };
    let binding = |role: &str| binding_of("new", role, json!({"kind": "User", "name": "joe"}));
    let slice = json!({"metadata": {"name": "new"}, "addressType": "IPv4", "endpoints": []});
    let event = json!({"metadata": {"name": "new"}, "type": "Normal", "reason": "X",
        "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "web-a"}});
    let definition = json!({"metadata": {"name": "xs.acme.com"}, "spec": {}});
    let address = json!({"status": {"loadBalancer": {"ingress": [{"ip": "8.8.8.8"}]}}});
    let attributes = json!({"verb": "get", "namespace": "shop", "resource": "pods"});
    let own_access = json!({"spec": {"resourceAttributes": attributes}});
    let access = json!({"spec": {"user": "jane", "resourceAttributes": attributes}});
    vec![
        ("xxxxxxxxxxxxx", "GET", "/version", none.clone()),
        ("xxxxxxxxxxxxx", "GET", "/livez", none.clone()),
        ("?xxxxxxxxx??x", "GET", "/api", none.clone()),
        ("?xxxxxxxxx??x", "GET", "/openapi/v3", none.clone()),
        // Pods.
        ("?.xxxxxx.x??x", "GET", "/api/v1/namespaces/shop/pods", none.clone()),
        ("?.xxxxx..x??x", "GET", "/api/v1/namespaces/shop/pods/web-a", none.clone()),
        ("?....xxx..??x", "GET", "/api/v1/namespaces/other/pods", none.clone()),
        ("?....xxx..??x", "GET", "/api/v1/pods", none.clone()),
        ("?..xx.....??x", "POST", "/api/v1/namespaces/shop/pods", pod),
        ("?..xxx....??x", "POST", "/api/v1/namespaces/shop/pods", mirror),
        ("?..xx.....??x", "PATCH", "/api/v1/namespaces/shop/pods/web-a", label.clone()),
        ("?....x....??x", "PATCH", "/api/v1/namespaces/shop/pods/web-a/status", label_free()),
        ("?..xxx....??x", "DELETE", "/api/v1/namespaces/shop/pods/web-a", none.clone()),
        ("?..xx.x...??x", "DELETE", "/api/v1/namespaces/shop/pods/web-b", none.clone()),
        ("?..xx.....??x", "DELETE", "/api/v1/namespaces/shop/pods", none.clone()),
        ("?.xxx....x??x", "GET", "/api/v1/namespaces/shop/pods/web-0/log", none.clone()),
        ("?..xx.....??x", "GET", "/api/v1/namespaces/shop/pods/web-0/exec", none.clone()),
        ("?..xx.....??x", "POST", "/api/v1/namespaces/shop/pods/web-0/exec", none.clone()),
        ("?..xx.....??x", "POST", "/api/v1/namespaces/shop/pods/web-0/portforward", none.clone()),
        ("?..xxx....??x", "POST", "/api/v1/namespaces/shop/pods/web-a/eviction", eviction),
        ("?..xx.....??x", "GET", "/api/v1/namespaces/shop/pods/web-0/proxy/", none.clone()),
        ("?..xx.....??x", "POST", "/api/v1/namespaces/shop/services/web/proxy/", none.clone()),
        ("?.........??x", "GET", "/api/v1/nodes/a/proxy/healthz", none.clone()),
        ("?.xxx....x??x", "GET", "/apis/metrics.k8s.io/v1beta1/namespaces/shop/pods", none.clone()),
        ("?.........??x", "GET", "/apis/metrics.k8s.io/v1beta1/nodes", none.clone()),
        (
            "?.........??x",
            "POST",
            "/api/v1/namespaces/shop/pods/web-0/binding",
            json!({"target": {"kind": "Node", "name": "a"}}),
        ),
        // What pods name.
        ("?..xxx....??x", "GET", "/api/v1/namespaces/shop/secrets/used", none.clone()),
        ("?..xx.....??x", "GET", "/api/v1/namespaces/shop/secrets/unused", none.clone()),
        ("?..xx.....??x", "GET", "/api/v1/namespaces/shop/secrets", none.clone()),
        (
            "?..xxx....??x",
            "GET",
            "/api/v1/namespaces/shop/secrets?fieldSelector=metadata.name%3Dused",
            none.clone(),
        ),
        ("?.........??x", "GET", "/api/v1/secrets", none.clone()),
        ("?.xxxx...x??x", "GET", "/api/v1/namespaces/shop/configmaps/used", none.clone()),
        ("?.xxx....x??x", "GET", "/api/v1/namespaces/shop/configmaps/unused", none.clone()),
        ("?..xx.....??x", "POST", "/api/v1/namespaces/shop/configmaps", named("new")),
        ("?..xxx....??x", "POST", "/api/v1/namespaces/shop/serviceaccounts/runner/token", bound),
        ("?..xx.....??x", "POST", "/api/v1/namespaces/shop/serviceaccounts/runner/token", free),
        // Nodes.
        ("?....xxx..??x", "GET", "/api/v1/nodes", none.clone()),
        ("?....x....??x", "PATCH", "/api/v1/nodes/a", label.clone()),
        ("?.........??x", "PATCH", "/api/v1/nodes/a", guarded.clone()),
        ("?....x.x..??x", "PATCH", "/api/v1/nodes/a/status", label),
        ("?.....xx..??x", "PATCH", "/api/v1/nodes/b/status", label_free()),
        ("?.........??x", "DELETE", "/api/v1/nodes/a", none.clone()),
        (
            "?....x....??x",
            "PATCH",
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/a",
            label_free(),
        ),
        (
            "?.....x...??x",
            "DELETE",
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/b",
            none.clone(),
        ),
        // Services.
        ("?....xxx..??x", "GET", "/api/v1/services", none.clone()),
        ("?..xx.....??x", "PATCH", "/api/v1/namespaces/shop/services/web", label_free()),
        ("?.........??x", "PATCH", "/api/v1/namespaces/shop/services/web/status", address),
        (
            "?.........??x",
            "POST",
            "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices",
            slice,
        ),
        ("?....xxx..??x", "GET", "/apis/discovery.k8s.io/v1/endpointslices", none.clone()),
        // Workloads.
        (
            "?.xxx....x??x",
            "GET",
            "/apis/apps/v1/namespaces/shop/deployments/web/status",
            none.clone(),
        ),
        (
            "?..xx.....??x",
            "PATCH",
            "/apis/apps/v1/namespaces/shop/deployments/web/scale",
            json!({"spec": {"replicas": 2}}),
        ),
        ("?..xxxxx..??x", "POST", "/api/v1/namespaces/shop/events", event),
        // Rights.
        (
            "?...x.....??x",
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/roles",
            role("pods"),
        ),
        (
            "?.........??x",
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/roles",
            role("nodes"),
        ),
        (
            "?...x.....??x",
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings",
            binding("view"),
        ),
        (
            "?.........??x",
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings",
            binding("cluster-admin"),
        ),
        (
            "?.........??x",
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            binding("view"),
        ),
        ("?.........??x", "GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles", none.clone()),
        // Questions about rights and identities.
        (
            "?xxxxxxxxx??x",
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            own_access,
        ),
        (
            "?xxxxxxxxx??x",
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            json!({"spec": {"namespace": "shop"}}),
        ),
        ("?xxxxxxxxx??x", "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})),
        (
            "?.........??x",
            "POST",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            access.clone(),
        ),
        (
            "?...x.....??x",
            "POST",
            "/apis/authorization.k8s.io/v1/namespaces/shop/localsubjectaccessreviews",
            access.clone(),
        ),
        (
            "?.........??x",
            "POST",
            "/apis/authorization.k8s.io/v1/namespaces/other/localsubjectaccessreviews",
            access,
        ),
        (
            "?.........??x",
            "POST",
            "/apis/authentication.k8s.io/v1/tokenreviews",
            json!({"spec": {"token": "x"}}),
        ),
        (
            "?.........??x",
            "POST",
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
            json!({"metadata": {"name": "new"}, "spec": {}}),
        ),
        (
            "?.........??x",
            "GET",
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
            Value::Null,
        ),
        // The cluster.
        ("?.xxxxx..x??x", "GET", "/api/v1/namespaces/shop", none.clone()),
        ("?.........??x", "DELETE", "/api/v1/namespaces/shop", none),
        ("?.........??x", "POST", "/api/v1/namespaces", named("new")),
        (
            "?.........??x",
            "POST",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            definition,
        ),
    ]
}

/// A change that no restriction looks at.
fn label_free() -> Value {
    json!({"metadata": {"annotations": {"acme.com/x": "1"}}})
}

fn binding_of(name: &str, role: &str, subject: Value) -> Value {
    json!({
        "metadata": {"name": name},
        "subjects": [subject],
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
    })
}

/// What requests name that exists once the world is made.
struct Ids {
    node: String,
    pod: String,
}

#[tokio::test]
async fn nobody_may_more_or_less_than_the_documentation_says() {
    let scratch = Scratch::new("rights");
    let server = start(&scratch.0, 0).await;
    let ids = make_world(&server).await;
    let identities = identities(&server, &scratch.0).await;
    let mut faults = Vec::new();
    let table = table(&ids);
    assert!(table.len() >= 40 && identities.len() >= 12, "the matrix of X-27");
    for (expected, method, path, body) in &table {
        assert_eq!(expected.len(), identities.len(), "{method} {path}");
        for ((expected, identity), name) in expected.chars().zip(&identities).zip(IDENTITIES) {
            let (code, answer) = identity.ask(method, path, body).await;
            let found = match code {
                401 => '?',
                403 => '.',
                _ => 'x',
            };
            if found != expected {
                faults.push(format!(
                    "{name}: {method} {path} {body}: {found} and not {expected} ({code}: {answer})"
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    server.running.stop().await;
}

/// Headers of impersonation, the code of the answer, and what it says.
type Borrowed = (&'static [(&'static str, &'static str)], u16, &'static str);

/// Impersonation: only in the names that the roles list, and never by halves.
#[tokio::test]
async fn only_names_that_roles_list_may_be_borrowed() {
    let scratch = Scratch::new("impersonation");
    let server = start(&scratch.0, 0).await;
    make_world(&server).await;
    let deputy = Caller::with_token(&server, &token(&server, "shop", "deputy").await);
    let secrets = "/api/v1/namespaces/shop/pods";
    let cases: [Borrowed; 9] = [
        (&[("impersonate-user", "vera")], 200, ""),
        (
            &[("impersonate-user", "eddy")],
            403,
            "users \"eddy\" is forbidden: User \
            \"system:serviceaccount:shop:deputy\" cannot impersonate resource \"users\" in API \
            group \"\" at the cluster scope",
        ),
        (
            &[("impersonate-user", "vera"), ("impersonate-group", "system:masters")],
            403,
            "groups \"system:masters\" is forbidden",
        ),
        (&[("impersonate-user", "jane"), ("impersonate-group", "viewers")], 200, ""),
        (&[("impersonate-user", "jane")], 403, "pods is forbidden: User \"jane\" cannot list"),
        (
            &[("impersonate-user", "system:serviceaccount:shop:runner")],
            403,
            "serviceaccounts \"runner\" is forbidden",
        ),
        (
            &[("impersonate-user", "vera"), ("impersonate-uid", "1")],
            403,
            "uids.authentication.k8s.io \"1\" is forbidden",
        ),
        (
            &[("impersonate-user", "vera"), ("impersonate-extra-scopes", "all")],
            403,
            "cannot impersonate resource \"userextras/scopes\"",
        ),
        (&[("impersonate-group", "viewers")], 500, "without impersonating a user"),
    ];
    for (headers, expected, text) in cases {
        let (code, answer) = deputy.send("GET", secrets, &Value::Null, headers).await;
        assert_eq!(code, expected, "{headers:?}: {answer}");
        assert!(answer.contains(&text.replace('"', "\\\"")), "{headers:?}: {answer}");
    }
    server.running.stop().await;
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
    match server.client.create::<_, Value>(&path, &object).await {
        Ok(made) => made,
        Err(error) => panic!("{plural} {object}: {error}"),
    }
}

async fn make_world(server: &Server) -> Ids {
    for name in ["shop", "other", "kube-flatnet"] {
        make(server, "v1", "namespaces", json!({"metadata": {"name": name}})).await;
    }
    let in_shop = |name: &str| json!({"metadata": {"namespace": "shop", "name": name}});
    for name in ["default", "runner", "deputy"] {
        make(server, "v1", "serviceaccounts", in_shop(name)).await;
    }
    let agent = json!({"metadata": {"namespace": "kube-flatnet", "name": "flatnet"}});
    make(server, "v1", "serviceaccounts", agent).await;
    for name in ["used", "unused"] {
        make(server, "v1", "secrets", in_shop(name)).await;
        make(server, "v1", "configmaps", in_shop(name)).await;
    }
    let mut ids = Ids { node: String::new(), pod: String::new() };
    for name in ["a", "b"] {
        let node = make(server, "v1", "nodes", json!({"metadata": {"name": name}})).await;
        let lease = json!({"metadata": {"namespace": "kube-node-lease", "name": name}});
        make(server, "coordination.k8s.io/v1", "leases", lease).await;
        let volumes = match name {
            "a" => json!([
                {"name": "s", "secret": {"secretName": "used"}},
                {"name": "c", "configMap": {"name": "used"}},
            ]),
            _ => json!([]),
        };
        let account = if name == "a" { "runner" } else { "default" };
        let pod = make(
            server,
            "v1",
            "pods",
            json!({
                "metadata": {"namespace": "shop", "name": format!("web-{name}")},
                "spec": {"nodeName": name, "serviceAccountName": account, "volumes": volumes,
                    "containers": [{"name": "c", "image": "i"}]},
            }),
        )
        .await;
        if name == "a" {
            let uid =
                |object: &Value| object["metadata"]["uid"].as_str().expect("a uid").to_owned();
            ids = Ids { node: uid(&node), pod: uid(&pod) };
        }
    }
    // On no node, so that nothing is dialled for its log.
    let mut pod = in_shop("web-0");
    pod["spec"] = json!({"containers": [{"name": "c", "image": "i"}]});
    make(server, "v1", "pods", pod).await;
    let mut service = in_shop("web");
    service["spec"] = json!({"ports": [{"port": 80}]});
    make(server, "v1", "services", service).await;
    let mut deployment = in_shop("web");
    deployment["spec"] = json!({"selector": {"matchLabels": {"a": "b"}}, "template": {
        "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}});
    make(server, "apps/v1", "deployments", deployment).await;
    make_roles(server).await;
    ids
}

async fn make_roles(server: &Server) {
    const GROUP_VERSION: &str = "rbac.authorization.k8s.io/v1";
    let user = |name: &str| json!({"kind": "User", "name": name});
    let viewers = json!({"kind": "Group", "name": "viewers"});
    for (name, role, subject) in [
        ("vera", "view", user("vera")),
        ("viewers", "view", viewers),
        ("eddy", "edit", user("eddy")),
        ("mary", "admin", user("mary")),
    ] {
        let mut binding = binding_of(name, role, subject);
        binding["metadata"]["namespace"] = "shop".into();
        make(server, GROUP_VERSION, "rolebindings", binding).await;
    }
    let read = ["get", "list", "watch"];
    let roles = [
        // docs/real-clusters: what the agent's manifests ask for.
        (
            "flatnet",
            "kube-flatnet",
            json!([
                {"apiGroups": [""], "resources": ["nodes"], "verbs": read},
                {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
                {"apiGroups": [""], "resources": ["services", "pods"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"],
                 "verbs": ["list", "watch"]},
                {"apiGroups": ["networking.k8s.io"], "resources": ["servicecidrs"],
                 "verbs": ["list", "watch"]},
                {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
            ]),
        ),
        (
            "deputy",
            "shop",
            json!([
                {"apiGroups": [""], "resources": ["users"], "resourceNames": ["vera", "jane"],
                 "verbs": ["impersonate"]},
                {"apiGroups": [""], "resources": ["groups"], "resourceNames": ["viewers"],
                 "verbs": ["impersonate"]},
            ]),
        ),
    ];
    for (name, namespace, rules) in roles {
        let role = json!({"metadata": {"name": name}, "rules": rules});
        make(server, GROUP_VERSION, "clusterroles", role).await;
        let account = json!({"kind": "ServiceAccount", "namespace": namespace, "name": name});
        make(server, GROUP_VERSION, "clusterrolebindings", binding_of(name, name, account)).await;
    }
}

/// One identity: a connection, and the name that it borrows.
struct Caller {
    transport: HttpsTransport,
    name: Option<&'static str>,
}

impl Caller {
    fn of_endpoint(endpoint: Endpoint) -> Self {
        Self { transport: HttpsTransport::new(endpoint), name: None }
    }

    fn with_token(server: &Server, token: &str) -> Self {
        let endpoint = Endpoint::with_token(&url(server), &authorities(server), token);
        Self::of_endpoint(endpoint.expect("an endpoint"))
    }

    fn in_name(self, name: &'static str) -> Self {
        Self { name: Some(name), ..self }
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, String) {
        let headers: Vec<(&str, &str)> =
            self.name.iter().map(|name| ("impersonate-user", *name)).collect();
        self.send(method, path, body, &headers).await
    }

    /// Sends a request that changes nothing.
    async fn send(
        &self,
        method: &str,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> (u16, String) {
        let media_type = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let path = match method {
            "GET" => path.to_owned(),
            _ => format!("{path}?dryRun=All"),
        };
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let mut request =
            Request::builder().method(method).uri(path).header("content-type", media_type);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(text))).expect("a request");
        let answer = within("an answer", self.transport.send(request)).await.expect("an answer");
        let code = answer.status().as_u16();
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        (code, String::from_utf8_lossy(&body).into_owned())
    }
}

fn url(server: &Server) -> String {
    format!("https://{}", server.address)
}

fn authorities(server: &Server) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(&server.pki.authority)
        .and_then(Iterator::collect)
        .expect("the authority")
}

async fn identities(server: &Server, directory: &Path) -> Vec<Caller> {
    let admin = || Caller::of_endpoint(support::endpoint(server));
    let nobody = Endpoint::without_identity(&url(server), &authorities(server));
    let account = |namespace: &'static str, name: &'static str| async move {
        Caller::with_token(server, &token(server, namespace, name).await)
    };
    let names = ["a", "b"].map(str::to_owned);
    let request = PkiRequest {
        config: config(),
        server_addresses: vec![LOOPBACK],
        nodes: names.into_iter().map(|name| (name, vec![LOOPBACK])).collect(),
    };
    let pki = pki::ensure(&directory.join("pki"), &request, now()).expect("certificates");
    let node = |name: &str| {
        let identity = &pki.nodes[name].client;
        let request =
            KubeconfigRequest { cluster: "t", user: name, server: &url(server), identity };
        let path = directory.join(format!("{name}.kubeconfig"));
        let text = pki::kubeconfig_text(&pki, &request).expect("a kubeconfig");
        std::fs::write(&path, text).expect("written");
        let endpoint = Kubeconfig::read(&path).expect("a kubeconfig").endpoint();
        Caller::of_endpoint(endpoint.expect("an endpoint"))
    };
    let good = token(server, "shop", "runner").await;
    let of_others = token_with(server, "shop", "runner", json!({"audiences": ["vault"]})).await;
    vec![
        Caller::of_endpoint(nobody.expect("an endpoint")),
        admin().in_name("jane"),
        admin().in_name("vera"),
        admin().in_name("eddy"),
        admin().in_name("mary"),
        node("a"),
        node("b"),
        account("kube-flatnet", "flatnet").await,
        account("shop", "default").await,
        account("shop", "deputy").await.in_name("vera"),
        Caller::with_token(server, &expired(server, &good)),
        Caller::with_token(server, &of_others),
        admin(),
    ]
}

async fn token(server: &Server, namespace: &str, account: &str) -> String {
    token_with(server, namespace, account, json!({})).await
}

async fn token_with(server: &Server, namespace: &str, account: &str, spec: Value) -> String {
    let path = ResourcePath::new("v1", "serviceaccounts").namespace(namespace);
    let path = path.name(account).subresource("token");
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let answer: Value = server.client.create(&path, &request).await.expect("a token");
    answer["status"]["token"].as_str().expect("a token").to_owned()
}

/// A token of the server's own key, which was good until a minute ago.
fn expired(server: &Server, good: &str) -> String {
    let mut parts = good.split('.');
    let (head, claims) = (parts.next().expect("a head"), parts.next().expect("claims"));
    let claims = URL_SAFE_NO_PAD.decode(claims).expect("base64");
    let mut claims: Value = serde_json::from_slice(&claims).expect("claims");
    let ago = |seconds: i64| json!(now().seconds() - seconds);
    (claims["iat"], claims["nbf"], claims["exp"]) = (ago(660), ago(660), ago(60));
    let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = PrivatePkcs8KeyDer::from_pem_file(&server.pki.service_account_key).expect("the key");
    let random = SystemRandom::new();
    let key =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der(), &random)
            .expect("a key");
    let signature = key.sign(&random, signed.as_bytes()).expect("signed");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// Real kubectl in somebody's name.
#[tokio::test]
async fn kubectl_acts_in_the_name_that_as_says() {
    let scratch = Scratch::new("kubectl-as");
    let server = start(&scratch.0, 0).await;
    make_world(&server).await;
    let run = |arguments: &'static [&'static str]| {
        let kubeconfig = server.kubeconfig.clone();
        async move {
            tokio::process::Command::new(KUBECTL)
                .args(arguments)
                .env("KUBECONFIG", &kubeconfig)
                .env("HOME", kubeconfig.parent().expect("a directory"))
                .output()
                .await
                .expect("kubectl runs")
        }
    };
    let shown = run(&["get", "pods", "-n", "shop", "--as", "vera"]).await;
    assert!(shown.status.success(), "{shown:?}");
    let refused = run(&["delete", "pod", "-n", "shop", "web-a", "--as", "vera"]).await;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("User \"vera\" cannot delete resource \"pods\""), "{text}");
    let escalated = run(&[
        "create",
        "rolebinding",
        "mine",
        "-n",
        "shop",
        "--clusterrole=cluster-admin",
        "--user=mary",
        "--as=mary",
        "--as-group=system:authenticated",
    ])
    .await;
    let text = String::from_utf8_lossy(&escalated.stderr).into_owned();
    assert!(text.contains("is attempting to grant RBAC permissions not currently held:"), "{text}");
    // Questions are answered, also by the exit code.
    for (arguments, answer) in [
        (&["auth", "can-i", "get", "pods", "-n", "shop", "--as", "vera"][..], "yes\n"),
        (&["auth", "can-i", "get", "pods/log", "-n", "shop", "--as", "vera"], "yes\n"),
        (&["auth", "can-i", "delete", "deployments.apps", "-n", "shop", "--as", "vera"], "no\n"),
        (&["auth", "can-i", "get", "pods", "--as", "vera"], "no\n"),
        (&["auth", "can-i", "get", "/api", "--as", "vera"], "yes\n"),
        (&["auth", "can-i", "*", "*", "-A"], "yes\n"),
    ] {
        let asked = run(arguments).await;
        assert_eq!(String::from_utf8_lossy(&asked.stdout), answer, "{arguments:?}: {asked:?}");
        assert_eq!(asked.status.success(), answer == "yes\n", "{arguments:?}");
    }
    let listed = run(&["auth", "can-i", "--list", "-n", "shop", "--as", "vera"]).await;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    for row in ["selfsubjectaccessreviews.authorization.k8s.io", "pods/log ", "[get list watch]"] {
        assert!(text.contains(row), "{row}: {text}");
    }
    let client: &Client = &server.client;
    let mine = ResourcePath::new("rbac.authorization.k8s.io/v1", "rolebindings");
    let made = client.get_optional::<Value>(&mine.namespace("shop").name("mine")).await;
    assert_eq!(made.expect("an answer"), None);
    server.running.stop().await;
}
