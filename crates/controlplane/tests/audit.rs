//! The audit log: every request stands in it, and no secret.

mod support;

use std::sync::Arc;

use client::{Client, Endpoint, HttpsTransport, ListOptions, ResourcePath};
use controlplane::AuditOptions;
use serde_json::{Value, json};
use support::{Scratch, eventually, start_with};

#[tokio::test]
async fn requests_are_written_down_without_their_bodies() {
    let scratch = Scratch::new("audit");
    let file = scratch.0.join("audit.log");
    let path = file.clone();
    let server =
        start_with(&scratch.0, 0, |options| options.audit = Some(AuditOptions::new(path))).await;
    let secrets = ResourcePath::new("v1", "secrets").namespace("default");
    let secret =
        json!({"metadata": {"generateName": "till-"}, "stringData": {"pin": "s3cr3t-pin"}});
    let made: Value = server.client.create(&secrets, &secret).await.expect("a secret");
    let name = made["metadata"]["name"].as_str().expect("a name").to_owned();
    let _: Value = server.client.get(&secrets.clone().name(&name)).await.expect("a secret");
    let accounts = ResourcePath::new("v1", "serviceaccounts").namespace("default");
    let _: Value = server
        .client
        .create(&accounts, &json!({"metadata": {"name": "a"}}))
        .await
        .expect("an account");
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"});
    let token: Value = server
        .client
        .create(&accounts.name("a").subresource("token"), &request)
        .await
        .expect("a token");
    let token = token["status"]["token"].as_str().expect("a token").to_owned();
    let caller =
        Endpoint::with_token(&format!("https://{}", server.address), &authorities(&server), &token);
    let caller =
        Client::with_transport(Arc::new(HttpsTransport::new(caller.expect("an endpoint"))));
    let refused =
        caller.list::<Value>(&ResourcePath::new("v1", "secrets"), &ListOptions::default()).await;
    assert_eq!(refused.expect_err("no rights").status().map(|status| status.code), Some(403));

    let events = || -> Vec<Value> {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    };
    let find = |verb: &str, code: u16, subresource: Value| {
        events().into_iter().find(|event| {
            event["verb"] == verb
                && event["responseStatus"]["code"] == code
                && event["objectRef"]["subresource"] == subresource
                && event["sourceIPs"] == json!(["127.0.0.1"])
        })
    };
    eventually("the last request stands there", || async {
        find("list", 403, Value::Null).is_some()
    })
    .await;
    let created = find("create", 201, Value::Null).expect("the secret's making");
    assert_eq!(
        created["objectRef"],
        json!({
            "resource": "secrets", "namespace": "default", "name": name, "apiVersion": "v1",
        })
    );
    assert_eq!(created["kind"], "Event");
    assert_eq!(created["apiVersion"], "audit.k8s.io/v1");
    assert_eq!(created["level"], "Metadata");
    assert_eq!(created["stage"], "ResponseComplete");
    assert!(
        created["user"]["groups"].as_array().expect("groups").contains(&"system:masters".into())
    );
    let denied = find("list", 403, Value::Null).expect("the refusal");
    assert_eq!(denied["user"]["username"], "system:serviceaccount:default:a");
    assert!(find("create", 201, "token".into()).is_some(), "the TokenRequest");
    let text = std::fs::read_to_string(&file).expect("the log");
    for hidden in ["s3cr3t-pin", "czNjcjN0LXBpbg", token.as_str()] {
        assert!(!text.contains(hidden), "{hidden} is in the log");
    }
    server.running.stop().await;
}

fn authorities(server: &support::Server) -> Vec<rustls_pki_types::CertificateDer<'static>> {
    use rustls_pki_types::pem::PemObject as _;
    rustls_pki_types::CertificateDer::pem_file_iter(&server.pki.authority)
        .and_then(Iterator::collect)
        .expect("the authority")
}
