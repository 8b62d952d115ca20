//! Who may do what over HTTP: ServiceAccount tokens, roles, and what nodes may.

mod support;

use client::{Client, ClientError, DeleteOptions, ListOptions, PatchKind, ResourcePath};
use serde_json::{Value, json};
use support::{Scratch, Server, start};

const RBAC: &str = "rbac.authorization.k8s.io/v1";

fn accounts() -> ResourcePath {
    ResourcePath::new("v1", "serviceaccounts").namespace("default")
}

/// A ServiceAccount's token, asked for as kubectl and kubelets do.
async fn token(server: &Server, account: &str, spec: Value) -> Result<String, ClientError> {
    let path = accounts().name(account).subresource("token");
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec,
    });
    let answer: Value = server.client.create(&path, &request).await?;
    Ok(answer["status"]["token"].as_str().expect("a token").to_owned())
}

/// A client with a token and the authority as files, as pods have them.
fn client_with(server: &Server, scratch: &Scratch, token: &str) -> Client {
    let directory = scratch.0.join("serviceaccount");
    std::fs::create_dir_all(&directory).expect("a directory");
    std::fs::copy(&server.pki.authority, directory.join("ca.crt")).expect("copied");
    std::fs::write(directory.join("token"), token).expect("written");
    let url = format!("https://{}", server.address);
    Client::from_service_account(&url, &directory).expect("a client")
}

fn code<T>(answer: Result<T, ClientError>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(error) => error.status().map_or(0, |status| status.code),
    }
}

async fn list(client: &Client, plural: &'static str) -> u16 {
    let path = ResourcePath::new("v1", plural);
    code(client.list::<Value>(&path, &ListOptions::default()).await)
}

#[tokio::test]
async fn an_account_may_what_its_roles_say_from_the_moment_they_do() {
    let scratch = Scratch::new("authorization");
    let server = start(&scratch.0, 0).await;
    let account = json!({"metadata": {"name": "flatnet"}});
    let _: Value = server.client.create(&accounts(), &account).await.expect("an account");
    let token = token(&server, "flatnet", json!({})).await.expect("a token");
    let client = client_with(&server, &scratch, &token);
    assert_eq!(list(&client, "nodes").await, 403, "nothing is allowed without a role");

    let role = json!({
        "metadata": {"name": "flatnet"},
        "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}],
    });
    let _: Value =
        server.client.create(&ResourcePath::new(RBAC, "clusterroles"), &role).await.expect("role");
    let bindings = ResourcePath::new(RBAC, "clusterrolebindings");
    let binding = json!({
        "metadata": {"name": "flatnet"},
        "subjects": [{"kind": "ServiceAccount", "name": "flatnet", "namespace": "default"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flatnet"},
    });
    let _: Value = server.client.create(&bindings, &binding).await.expect("a binding");
    assert_eq!(list(&client, "nodes").await, 200);
    assert_eq!(list(&client, "secrets").await, 403);
    let patch = json!({"metadata": {"labels": {"a": "b"}}});
    let node = ResourcePath::new("v1", "nodes").name("node1");
    let patched = client.patch::<_, Value>(&node, PatchKind::Merge, &patch).await;
    assert_eq!(code(patched), 403);

    // What is taken back is gone at once, and the token ends with its account.
    server
        .client
        .delete(&bindings.name("flatnet"), &DeleteOptions::default())
        .await
        .expect("deleted");
    assert_eq!(list(&client, "nodes").await, 403);
    server
        .client
        .delete(&accounts().name("flatnet"), &DeleteOptions::default())
        .await
        .expect("deleted");
    assert_eq!(list(&client, "nodes").await, 401);
    server.running.stop().await;
}

/// a PUT and an apply make what is absent, so who may only change things may not use them to
/// make some. With the right to create, the same requests do.
#[tokio::test]
async fn to_change_is_not_to_create() {
    let scratch = Scratch::new("create-rights");
    let server = start(&scratch.0, 0).await;
    let account = json!({"metadata": {"name": "a"}});
    let _: Value = server.client.create(&accounts(), &account).await.expect("an account");
    let token = token(&server, "a", json!({})).await.expect("a token");
    let roles = ResourcePath::new(RBAC, "clusterroles");
    let role = json!({
        "metadata": {"name": "a"},
        "rules": [{"apiGroups": [""], "resources": ["services"], "verbs": ["update", "patch"]}],
    });
    let _: Value = server.client.create(&roles, &role).await.expect("a role");
    let binding = json!({
        "metadata": {"name": "a"},
        "subjects": [{"kind": "ServiceAccount", "name": "a", "namespace": "default"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "a"},
    });
    let bindings = ResourcePath::new(RBAC, "clusterrolebindings");
    let _: Value = server.client.create(&bindings, &binding).await.expect("a binding");
    for (rights, expected) in [("patch", (403, 403)), ("create", (201, 201))] {
        let rule = json!([{"op": "add", "path": "/rules/0/verbs/-", "value": rights}]);
        let _: Value = server
            .client
            .patch(&roles.clone().name("a"), PatchKind::Json, &rule)
            .await
            .expect("rights");
        let put = send(&server, &token, "PUT", "put", "application/json").await;
        let applied = send(&server, &token, "PATCH", "applied", "application/apply-patch+yaml");
        assert_eq!((put, applied.await), expected, "with the right to {rights}");
    }
    let applied = send(&server, &token, "PATCH", "applied", "application/apply-patch+yaml").await;
    assert_eq!(applied, 200);
    server.running.stop().await;
}

/// Sends a Service with a token; gives the code of the answer.
async fn send(server: &Server, token: &str, method: &str, name: &str, media_type: &str) -> u16 {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}]},
    });
    let path = format!("/api/v1/namespaces/default/services/{name}?fieldManager=test");
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", media_type)
        .body(http_body_util::Full::new(hyper::body::Bytes::from(service.to_string())))
        .expect("a request");
    let kubeconfig = json!({
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {
            "server": format!("https://{}", server.address),
            "certificate-authority": server.pki.authority,
        }}],
        "users": [{"name": "u", "user": {"token": token}}],
    });
    let path = server.kubeconfig.with_extension("token");
    std::fs::write(&path, kubeconfig.to_string()).expect("written");
    let endpoint = client::Kubeconfig::read(&path).expect("a kubeconfig").endpoint();
    let endpoint = endpoint.expect("an endpoint");
    let answer = support::within("an answer", endpoint.send_once(request)).await;
    answer.expect("an answer").status().as_u16()
}

#[tokio::test]
async fn tokens_that_are_not_ours_or_for_others_are_nobodys() {
    let scratch = Scratch::new("tokens");
    let server = start(&scratch.0, 0).await;
    let account = json!({"metadata": {"name": "a"}});
    let _: Value = server.client.create(&accounts(), &account).await.expect("an account");
    let good = token(&server, "a", json!({})).await.expect("a token");
    assert_eq!(
        list(&client_with(&server, &scratch, &good), "pods").await,
        403,
        "known, but without rights"
    );
    let for_others = token(&server, "a", json!({"audiences": ["vault"]})).await.expect("a token");
    let (signed, signature) = good.rsplit_once('.').expect("three parts");
    let (head, _) = signed.split_once('.').expect("three parts");
    let forged = format!("{head}.eyJzdWIiOiJzeXN0ZW06YWRtaW4ifQ.{signature}");
    for (token, why) in [
        (for_others.as_str(), "another audience"),
        (forged.as_str(), "other claims under the signature"),
        (signed, "no signature"),
        ("a.b.c", "nothing at all"),
    ] {
        assert_eq!(list(&client_with(&server, &scratch, token), "pods").await, 401, "{why}");
    }
    let short = token(&server, "a", json!({"expirationSeconds": 5})).await;
    assert_eq!(code(short), 422);
    let absent = token(&server, "nobody", json!({})).await;
    assert_eq!(code(absent), 404);
    let pod = json!({"boundObjectRef": {"kind": "Pod", "name": "gone"}});
    let absent = token(&server, "a", pod).await;
    assert_eq!(code(absent), 404);
    server.running.stop().await;
}

#[tokio::test]
async fn a_node_may_report_itself_but_not_rule() {
    let scratch = Scratch::new("node-rights");
    let server = start(&scratch.0, 0).await;
    let pki = controlplane::pki::Pki::at(&scratch.0.join("pki"), [&"node1".to_owned()]);
    let identity = &pki.nodes["node1"].client;
    let url = format!("https://{}", server.address);
    let request = controlplane::pki::KubeconfigRequest {
        cluster: "test",
        user: "node1",
        server: &url,
        identity,
    };
    let text = controlplane::pki::kubeconfig_text(&pki, &request).expect("a kubeconfig");
    let path = scratch.0.join("node-kubeconfig");
    std::fs::write(&path, text).expect("written");
    let node = Client::from_kubeconfig(&path).await.expect("a client");
    let nodes = ResourcePath::new("v1", "nodes");
    let own = json!({"metadata": {"name": "node1"}});
    assert_eq!(code(node.create::<_, Value>(&nodes, &own).await), 200);
    assert_eq!(list(&node, "pods").await, 200);
    let roles = ResourcePath::new(RBAC, "clusterroles");
    let role = json!({"metadata": {"name": "mine"}, "rules": []});
    assert_eq!(code(node.create::<_, Value>(&roles, &role).await), 403);
    let namespaces = ResourcePath::new("v1", "namespaces");
    let namespace = json!({"metadata": {"name": "mine"}});
    assert_eq!(code(node.create::<_, Value>(&namespaces, &namespace).await), 403);
    let deletion = node.delete(&nodes.name("node1"), &DeleteOptions::default()).await;
    assert_eq!(code(deletion), 403);
    server.running.stop().await;
}
